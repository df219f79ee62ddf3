"""Every kind of metric from an agent's own release to the analyst's frame: release, landing, lake, query, client.

Intervals are asked for at 99.9999 %, so a right program fails one of the checks below once in 5,000 runs; that they
cover what they say is shown in the rooms of intervals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

import cloud_collector
from cloud_collector import estimate as room
from cloud_collector import spread
from cloud_collector.combine import Interval
from cloud_collector.config import Config, PlanEntry
from cloud_collector.errors import QuestionInvalid
from cloud_collector.order import Bins
from cloud_collector.totals import Rows
from edge_agg.contract.plan import parse_plan
from tests.cloud_collector.agents import released
from tests.cloud_collector.front import push, running, week

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cloud_collector.client import Client

SURE = 0.999999
HEAD = """
[events]
time = "at"
columns = { at = "timestamp", visitor = "string", floor = "integer", page = "string", seconds = "float" }

[privacy_unit]
column = "visitor"

[bounds]
max_partitions = 2
max_rows_per_partition = 5

[window]
every = "7d"

[budget]
mechanism = "gaussian"
epsilon = 40.0
delta = 1e-6
"""
CLIP = 'column = "seconds"\nlower = 0.0\nupper = 100.0\nresolution = 0.5'
PUBLIC = f"""
[plan]
name = "visits"
version = 1
{HEAD}
[[partition]]
column = "floor"
range = {{ start = 0, stop = 3 }}

[[partition]]
column = "at"
name = "Day"
calendar = "weekday"

[[metric]]
name = "rows"
kind = "count"

[[metric]]
name = "people"
kind = "distinct_units"

[[metric]]
name = "stay"
kind = "mean"
{CLIP}

[[metric]]
name = "stay_variance"
kind = "variance"
{CLIP}

[[metric]]
name = "stay_bins"
kind = "histogram"
column = "seconds"
edges = [0.0, 10.0, 30.0, 100.0]

[[metric]]
name = "stay_quantiles"
kind = "quantiles"
column = "seconds"
lower = 1.0
upper = 128.0
bins = 64
spacing = "logarithmic"
quantiles = [0.25, 0.5, 0.9]

[[metric]]
name = "spent"
kind = "sum"
clip = "unit"
column = "seconds"
lower = 0.0
upper = 200.0
resolution = 0.5

[[metric]]
name = "spent_each"
kind = "ratio"
numerator = "spent"
denominator = "people"
"""
FOUND = f"""
[plan]
name = "pages"
version = 1
{HEAD}
[[partition]]
column = "page"
discover = {{ delta = 1e-7, max_bytes = 40 }}

[[partition]]
column = "floor"
range = {{ start = 0, stop = 3 }}

[[metric]]
name = "views"
kind = "count"

[[metric]]
name = "stay"
kind = "quantiles"
column = "seconds"
lower = 0.0
upper = 100.0
bins = 10
quantiles = [0.5]
"""


def events(seed: int, people: int) -> pl.DataFrame:
    """A week of visitors, each on one floor and page, with up to 5 rows: within the bounds, so nothing is cut."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, 6, people)
    who = np.repeat(np.arange(people), rows)
    day = rng.integers(0, 7, people)[who]
    page = np.where(np.arange(people) < people // 3, "home", "größe")[who]
    return pl.DataFrame(
        {
            "at": [week(0).replace(day=7 + int(d)) for d in day],
            "visitor": [f"v{seed}-{i}" for i in who],
            "floor": rng.integers(0, 3, people)[who],
            "page": page,
            "seconds": np.minimum(rng.exponential(25, len(who)).round() + 1, 99.0),
        }
    )


def shifted(frame: pl.DataFrame, n: int) -> pl.DataFrame:
    return frame.with_columns(pl.col("at") + pl.duration(weeks=n))


SITES = ("a", "b", "c")
WEEKS = {(site, n): shifted(events(3 * i + n, 600), n) for i, site in enumerate(SITES) for n in range(2)}
ALL = pl.concat(WEEKS.values())


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A collector that holds two weeks of three sites, under both plans.

    On site b nobody sees `größe` in week 1; and `rare` is one visitor's page at site a.
    """
    folder = tmp_path_factory.mktemp("collector")
    entries = []
    for name, text in (("visits", PUBLIC), ("pages", FOUND)):
        (folder / f"{name}.toml").write_text(text)
        entries.append(PlanEntry(path=folder / f"{name}.toml", nodes=SITES))
    config = Config(
        listen="127.0.0.1:0",
        data=folder / "data",
        seal_every_s=60.0,
        max_message_bytes=2**22,
        max_queued_releases=100,
        max_batch=64,
        plans=tuple(entries),
    )
    public, found = parse_plan(PUBLIC), parse_plan(FOUND)
    with running(config) as address:
        for (site, n), frame in WEEKS.items():
            seen = frame.filter(pl.col("page") == "home") if (site, n) == ("b", 1) else frame
            if (site, n) == ("a", 0):
                rare = pl.col("visitor") == frame["visitor"][0]
                seen = frame.with_columns(page=pl.when(rare).then(pl.lit("rare")).otherwise("page"))
            receipts = push(address, released(public, site, n, frame), released(found, site, n, seen))
            assert [refusal for _, refusal in receipts] == ["", ""]
        yield address


@pytest.fixture
def c(url: str) -> Iterator[Client]:
    with cloud_collector.connect(url) as client:
        yield client


def check(frame: pl.DataFrame, truth: Sequence[float], *, within: float) -> None:
    """Every interval holds the truth and is no wider than what makes the check worth anything."""
    assert frame.height == len(truth)
    assert (frame["lo"] <= pl.Series(truth)).all()
    assert (pl.Series(truth) <= frame["hi"]).all()
    assert (frame["hi"] - frame["lo"]).max() <= within  # type: ignore[operator]  # a column of floats
    assert ((frame["lo"] <= frame["value"]) & (frame["value"] <= frame["hi"])).all()


def check_variance(c: Client) -> None:
    frame = c.estimate("visits", "stay_variance", by="floor", confidence=SURE)
    truth = [float(np.var(ALL.filter(floor=floor)["seconds"].to_numpy())) for floor in range(3)]
    check(frame, truth, within=400.0)


def test_a_variance_is_in_squared_units(c: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The population variance of what was kept; a wrong unit, or the second moment in its place, is caught."""
    check_variance(c)
    assert c.estimate("visits", "stay_variance", by="floor")["hi"].max() < 2500  # type: ignore[operator]  # floats
    mutants: dict[str, tuple[object, str, Callable[..., object]]] = {
        "unit": (room, "_scaled", lambda value, interval, _: room._row(value, interval)),
        "second moment": (spread, "_union", lambda moments, *_: Interval(lo=0, hi=moments.second)),
    }
    for name, (place, part, mutant) in mutants.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, part, mutant)
            with pytest.raises(AssertionError):
                check_variance(c)
            assert name


def test_a_histogram_has_a_row_a_bin(c: Client) -> None:
    """With its public edges beside it; what lies beyond an edge counts in the bin at that end."""
    frame = c.estimate("visits", "stay_bins", by=["floor"], confidence=SURE)
    assert frame.columns[:5] == ["start", "end", "floor", "bin_lower", "bin_upper"]
    assert frame["bin_lower"].to_list() == [0.0, 10.0, 30.0] * 3
    assert frame["bin_upper"].to_list() == [10.0, 30.0, 100.0] * 3
    truth = [
        float(ALL.filter(pl.col("floor") == floor, pl.col("seconds") >= low, pl.col("seconds") < high).height)
        for floor in range(3)
        for low, high in ((0, 10), (10, 30), (30, 100))
    ]
    check(frame, truth, within=400.0)
    assert c.estimate("visits", "stay_bins", by=["floor", "node"], every="7d").height == 3 * 3 * 3 * 2


def check_quantiles(c: Client) -> None:
    frame = c.estimate("visits", "stay_quantiles", confidence=SURE)
    truth = [float(np.quantile(ALL["seconds"].to_numpy(), q, method="inverted_cdf")) for q in (0.25, 0.5, 0.9)]
    check(frame, truth, within=40.0)


def test_quantiles_have_a_row_a_quantile(c: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read from a tree over logarithmic bins; a tree read as if it were flat is caught."""
    frame = c.estimate("visits", "stay_quantiles")
    assert frame["quantile"].to_list() == [0.25, 0.5, 0.9]
    assert frame["value"].is_sorted()
    check_quantiles(c)
    with monkeypatch.context() as patch:
        patch.setattr(room, "Bins", lambda **fields: Bins(**{**fields, "nodes": fields["nodes"][::-1]}))
        with pytest.raises(AssertionError):
            check_quantiles(c)


def test_a_ratio_is_read_from_two_metrics(c: Client) -> None:
    """Seconds spent a visitor: nothing more was released for it than the sum and the visitors."""
    frame = c.estimate("visits", "spent_each", by="floor", confidence=SURE)
    each = ALL.group_by("visitor", "floor").agg(pl.col("seconds").sum().clip(0, 200))
    truth = each.group_by("floor").agg(pl.col("seconds").mean()).sort("floor")["seconds"].to_list()
    check(frame, truth, within=100.0)
    above, below = (c.estimate("visits", name, by="floor")["value"] for name in ("spent", "people"))
    assert (above / below).to_list() == pytest.approx(frame["value"].to_list())


def test_calendars_and_ranges_are_keys_like_others(c: Client) -> None:
    """A partition goes by its name; its keys are text, in the plan's order."""
    frame = c.estimate("visits", "rows", by="Day", confidence=SURE)
    assert frame["Day"].to_list() == [str(day) for day in range(1, 8)]
    truth = [float(ALL.filter(pl.col("at").dt.weekday() == day).height) for day in range(1, 8)]
    check(frame, truth, within=400.0)
    some = c.estimate("visits", "rows", where={"floor": ["0", "2"], "Day": "1"})
    assert some.height == 1
    with pytest.raises(QuestionInvalid, match=r"where\.floor: the plan's keys are 0, 1, 2"):
        c.estimate("visits", "rows", where={"floor": "3"})


def check_found(c: Client) -> None:
    frame = c.estimate("pages", "views", by="page", every="7d", confidence=SURE)
    assert frame["page"].to_list() == ["größe", "home"] * 2
    assert frame["windows_reporting"].to_list() == [3, 3, 2, 3]
    assert frame["nodes_reporting"].to_list() == [3, 3, 2, 3]
    assert frame["windows_expected"].to_list() == [3] * 4
    assert frame["status"].to_list() == ["complete", "complete", "suppressed", "complete"]


def test_discovered_keys_are_listed_and_what_lacks_them_is_suppressed(
    c: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that the range holds, by text; a site and window without one is typed; one visitor's key never shows."""
    check_found(c)
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "held", lambda self, asked, nodes, grid: {})
        with pytest.raises(AssertionError):
            check_found(c)
    by_node = c.estimate("pages", "views", by=["page", "node"], every="7d", start=week(1))
    assert by_node.filter(pl.col("status") != "complete").select("page", "node", "value").rows() == [
        ("größe", "b", None)
    ]
    assert by_node["windows_expected"].to_list() == [1] * 6


def test_where_on_a_discovered_key_takes_any_text(c: Client) -> None:
    """A key that nobody released is answered, typed, and not refused: whether it exists is not told."""
    frame = c.estimate("pages", "views", by="page", where={"page": ["home", "rare", "'; drop table"]})
    assert frame["page"].to_list() == ["'; drop table", "home", "rare"]
    assert frame["status"].to_list() == ["suppressed", "complete", "suppressed"]
    assert frame["value"].is_null().to_list() == [True, False, True]
    both = c.estimate("pages", "views", where={"page": ["größe", "home"]})
    assert both.select("windows_reporting", "windows_expected", "status").row(0) == (6, 6, "suppressed")
    none = c.estimate("pages", "views", where={"page": "rare"})
    assert none.select("value", "windows_reporting", "nodes_reporting", "status").row(0) == (None, 0, 0, "suppressed")


def test_a_sum_over_discovered_keys_adds_up_what_was_released(c: Client) -> None:
    """All keys together, and on one floor; the answer says that suppressed keys are left out, and counts them.

    Mutant: a window that has any key lacks none, so a sum without one site's key is complete.
    """
    parts = c.estimate("pages", "views", by="page")["value"].sum()
    whole = c.estimate("pages", "views")
    assert whole["value"].to_list() == [parts]
    assert whole["status"].to_list() == ["suppressed"]
    assert whole["absent"].struct.field("suppressed").to_list() == [1]
    assert whole["note"][0].startswith("sum of released keys only")
    by_node = c.estimate("pages", "views", by="node", every="7d")
    assert by_node.filter(status="suppressed").select("node", "start").rows() == [("b", week(1))]
    assert not c.estimate("pages", "views", by="page")["note"].str.contains("keys").any()
    floors = c.estimate("pages", "views", by=["floor", "page"])
    assert floors.height == 3 * 2
    assert floors["value"].sum() == parts
    median = c.estimate("pages", "stay", by="page", confidence=SURE)
    truth = [float(np.median(ALL.filter(page=page)["seconds"].to_numpy())) for page in ("größe", "home")]
    check(median, truth, within=60.0)


def test_an_analyst_reads_what_each_kind_means(c: Client) -> None:
    """In one line, with the bounds and the clip."""
    plans = c.plans().filter(plan="visits")
    assert plans["kind"].to_list() == [
        *("count", "distinct_units", "mean", "variance", "histogram", "quantiles", "sum", "ratio")
    ]
    assert plans["by"][0].to_list() == ["floor", "Day"]
    said = dict(plans.select("metric", "reads_as").rows())
    assert said["stay_variance"].startswith("population variance of seconds, clipped to 0 .. 100, over rows kept")
    assert said["stay_bins"].startswith("rows in each bin of seconds, by 3 bins from 0 to 100, over rows kept")
    assert said["stay_quantiles"].startswith("quantiles 0.25, 0.5, 0.9 of seconds, by 64 bins from 1 to 128")
    assert said["spent"].startswith("sum of each visitor's seconds in a window and partition, clipped to 0 .. 200")
    assert said["spent_each"].startswith("spent / people: (sum of each visitor's seconds")
    found = c.plans().filter(plan="pages")
    assert found["by"][0].to_list() == ["page", "floor"]
    assert all("sums over keys leave it out" in text for text in found["reads_as"])


def test_a_window_in_which_no_key_passed(tmp_path: Path) -> None:
    """It was released, so it is on record; for every key it is suppressed, and it adds nothing."""
    (tmp_path / "pages.toml").write_text(FOUND)
    limits = {"seal_every_s": 60.0, "max_message_bytes": 2**20, "max_queued_releases": 10, "max_batch": 10}
    entry = PlanEntry(path=tmp_path / "pages.toml", nodes=())
    config = Config(listen="127.0.0.1:0", data=tmp_path / "data", plans=(entry,), **limits)  # type: ignore[arg-type]  # numbers all
    plan = parse_plan(FOUND)
    with running(config) as address, cloud_collector.connect(address) as client:
        for site in "ab":
            receipts = push(address, released(plan, site, 0, events(0, 2)))
            assert receipts[0][1] == ""
        row = client.estimate("pages", "views").row(0, named=True)
        assert (row["value"], row["windows_reporting"], row["windows_expected"]) == (None, 0, 2)
        assert row["status"] == "suppressed"
        assert client.estimate("pages", "views", by="page").height == 0
