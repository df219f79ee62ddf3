"""The main job on a slice of the real flights: the demo's own path, with a tap on the wire.

What these tests prove: what arrives is the bounded truth plus the declared noise, and nothing else left the sites.
What they do not prove: that the noise is as strong as declared against an adversary; the audits in `tests/privacy` do.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import polars as pl
import pytest
from nbclient import NotebookClient
from scipy import stats

from cloud_collector import connect
from edge_agg.config import load_plan
from edge_agg.contract import arrow, codec
from edge_agg.contract.vectors import plan_vectors
from examples.flights import demo
from examples.flights.chart import band_chart
from examples.flights.events import COLUMNS, flights, write_events
from examples.flights.site import PLAN, collector, lay_out, run_agents
from examples.flights.truth import bounded_truth
from tests.wiretap import Wiretap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_agg.contract.v1.release_pb2 import SealedRelease

FALSE_ALARM = 1e-6
"""The chance that a right program fails one of the checks below."""
START, END = date(2013, 1, 7), date(2013, 2, 4)
VECTORS = [vector.name for vector in plan_vectors(load_plan(PLAN))]
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A finished run of the main job, its collector still up."""

    home: Path
    address: str
    tap: Wiretap
    truth: pl.DataFrame
    released: pl.DataFrame


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Four weeks at three sites, through three agents, a tap and a collector."""
    home = tmp_path_factory.mktemp("job")
    for _ in write_events(home / "events", start=START, end=END):
        pass
    port = _free_port()
    tap = Wiretap(port)
    agents = lay_out(home, port=port, start=START, end=END, uplink_port=tap.port)
    with collector(home / "collector.toml") as address:
        run_agents(agents, lambda _name, _event: None)
        with connect(address) as client:
            client.estimate("flight_delays", "departures")  # an answer seals what had landed
        truth = pl.concat(bounded_truth(config) for config in agents)
        files = sorted((home / "collector" / "lake").glob("**/*.parquet"))
        released = pl.concat(pl.read_parquet(file) for file in files).rename({"window_start": "start"})
        yield Job(home=home, address=address, tap=tap, truth=truth, released=released)
    tap.close()


def test_every_released_cell_is_the_bounded_truth_within_its_noise(job: Job) -> None:
    """Each of the 480 released values is its exact bounded value plus noise of the declared scale.

    None is farther than the false-alarm rate allows, and all together spread as the scale says (chi-squared, both
    sides).

    Mutants, run below: a site's rows exchanged with another's; no noise at all; noise of half the declared scale.
    """
    assert _fits(job.released, job.truth)


@pytest.mark.parametrize("mutant", ["sites exchanged", "no noise", "half the noise"])
def test_the_comparison_with_the_truth_catches(job: Job, mutant: str) -> None:
    """The check above fails where the rule is broken."""
    released, truth = job.released, job.truth
    joined = released.join(truth, on=["node", "start", "carrier"], suffix="_exact", validate="1:1")
    if mutant == "sites exchanged":
        truth = truth.with_columns(pl.col("node").replace({"ewr": "lga", "lga": "ewr"}))
    else:
        share = 0 if mutant == "no noise" else 0.5
        exact = [pl.col(f"{name}_exact") for name in VECTORS]
        noisy = [pl.col(name) for name in VECTORS]
        weak = [(x + (y - x) * share).alias(name) for x, y, name in zip(exact, noisy, VECTORS, strict=True)]
        released = joined.with_columns(weak).select(released.columns)
    assert not _fits(released, truth)


def test_the_answer_is_the_sum_of_what_was_released(job: Job) -> None:
    """What a notebook is told is the released cells added up over sites and weeks, with complete coverage."""
    with connect(job.address) as client:
        answer = client.estimate("flight_delays", "departures", by=["carrier"])
    wanted = dict(job.released.group_by("carrier").agg(pl.col("departures").sum()).iter_rows())
    assert dict(zip(answer["carrier"], answer["value"], strict=True)) == wanted
    assert set(answer["status"]) == {"complete"}
    assert answer["nodes_reporting"].to_list() == answer["nodes_expected"].to_list() == [3] * 10


def test_no_unit_id_leaves_a_site(job: Job) -> None:
    """Not one byte sequence that left a site, went into a log or was stored at the collector is a tail number.

    Scanned: the wire as it was, every payload decompressed, every log, every file of the collector. Mutant, run here:
    the same scan finds tail numbers in a site's own events.
    """
    tails = _tail_numbers(job)
    payloads = (arrow._inflate(release.payload, 1 << 20) for release in _releases(job))
    logs = (path.read_bytes() for path in job.home.glob("*.log"))
    stored = (path.read_bytes() for path in (job.home / "collector").rglob("*") if path.is_file())
    assert not _found(tails, chain(map(bytes, job.tap.sent), payloads, logs, stored))
    events = pl.read_parquet(next((job.home / "events").glob("*/*.parquet")))
    assert _found(tails, [events.write_ndjson().encode()])


def test_no_exact_count_leaves_a_site(job: Job) -> None:
    """Of everything that went up, no more values equal their exact value than the noise itself hits zero.

    Every message on the wire parses as a batch of releases, each payload is its plan's int64 vectors and nothing else.
    """
    plan = load_plan(PLAN)
    exact = {
        (row["node"], row["start"]): rows
        for (row, rows) in (
            (group.row(0, named=True), group) for group in job.truth.partition_by("node", "start", maintain_order=True)
        )
    }
    releases = _releases(job)
    assert len(releases) == len(exact) == 12
    for name in VECTORS:
        hits, cells, zero = 0, 0, 0.0
        for sealed in releases:
            release, _ = codec.open_sealed(sealed.header, sealed.payload)
            values = arrow.decode(sealed.payload, VECTORS, release.rows)
            truth = exact[release.agent, release.window_start][name].to_numpy()
            scale = next(spec.scale for spec in release.vectors if spec.name == name)
            hits, cells, zero = hits + int((values[name] == truth).sum()), cells + len(truth), 1 / (scale * 2.5066)
        assert hits <= stats.binom.isf(FALSE_ALARM, cells, zero)
    assert set(plan.events.columns) == set(COLUMNS)


def test_the_quickstart_notebook_runs(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of the notebook that `make notebook` opens runs against a store as the demo leaves it."""
    monkeypatch.setitem(os.environ, "COLLECTOR", job.address)
    book = nbformat.reads(NOTEBOOK.read_text(), as_version=4)  # type: ignore[no-untyped-call]  # nbformat has no types
    NotebookClient(book, timeout=120).execute()
    shown = [cell.outputs for cell in book.cells if cell.cell_type == "code" and cell.outputs]
    assert len(shown) >= 5


@pytest.mark.slow
def test_the_demo_drops_no_flight() -> None:
    """Every flight of the package lies in the history that the demo's agents are told of; mutant: it ends with 2013."""
    moments = flights()["time_hour"].dt.date()
    assert demo.START <= moments.min() <= moments.max() < demo.END  # type: ignore[operator]  # there are flights


def test_a_chart_breaks_where_nothing_was_released() -> None:
    """A week without a value is in the chart's data, so that no line is drawn across it; its days are those of UTC.

    Mutant: such weeks are left out, and the line goes on.
    """
    weeks = [datetime(2013, 1, day, tzinfo=UTC) for day in (7, 14, 21)]
    frame = pl.DataFrame({"start": weeks, **{key: [1.0, None, 2.0] for key in ("value", "lo", "hi")}})
    said = band_chart(frame, title="t", y="minutes").to_dict()
    (rows,) = said["datasets"].values()
    assert [row["value"] for row in rows] == [1.0, None, 2.0]
    assert all(layer["encoding"]["x"]["scale"] == {"type": "utc"} for layer in said["layer"])


def _fits(released: pl.DataFrame, truth: pl.DataFrame) -> bool:
    joined = released.join(truth, on=["node", "start", "carrier"], suffix="_exact", validate="1:1")
    assert joined.height == truth.height == 120, "every cell of every window was released, and nothing else"
    for name in VECTORS:
        z = ((joined[name] - joined[f"{name}_exact"]) / joined[f"{name}__scale"]).to_numpy()
        spread = float((z**2).sum())
        if abs(z).max() > stats.norm.isf(FALSE_ALARM / len(z) / 2):
            return False
        if not stats.chi2.ppf(FALSE_ALARM, len(z)) <= spread <= stats.chi2.isf(FALSE_ALARM, len(z)):
            return False
    return True


def _releases(job: Job) -> list[SealedRelease]:
    return [release for request in job.tap.requests() for release in request.releases]


def _tail_numbers(job: Job) -> list[bytes]:
    files = (job.home / "events").glob("*/*.parquet")
    tails = pl.concat(pl.read_parquet(file, columns=["tailnum"]) for file in files)["tailnum"].drop_nulls().unique()
    return [tail.encode() for tail in tails if len(tail) >= 5]


def _found(needles: list[bytes], haystacks: Iterable[bytes]) -> bool:
    return any(needle in haystack for haystack in haystacks for needle in needles)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
