"""What an answer holds: exact totals, the noise behind them, and who stands behind each bucket.

Not proved here: that an interval covers the truth (test_combine), nor that the lake holds what was acked (test_server).
"""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from cloud_collector import totals as room
from cloud_collector.caller import LOCAL
from cloud_collector.combine import half_width
from cloud_collector.errors import QuestionInvalid
from cloud_collector.noise import Noise, Term
from cloud_collector.query import Query
from cloud_collector.question import Asked, Grid, Question
from cloud_collector.ratio import ratio_interval
from edge_agg.contract.cells import keys
from edge_agg.contract.codec import to_us
from edge_agg.contract.plan import parse_plan
from edge_agg.contract.v1.query_pb2 import EstimateRequest, Filter
from edge_agg.contract.vectors import plan_vectors
from tests.cloud_collector.front import PLAN, PLAN_TEXT, FakeLake, FakeRegistry, registered, week

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_agg.contract.plan import Plan

DAY_US = 86_400_000_000
BROAD = 40.0  # a scale at which noise is wider than a grid step
CELLS = list(keys(PLAN))
Row = dict[str, Any]


@pytest.fixture
def lake(tmp_path: Path) -> FakeLake:
    return FakeLake(tmp_path)


def ask(lake: FakeLake, metric: str = "departures", *, nodes: Sequence[str] = (), **more: Any) -> list[Row]:
    plan: Plan = more.pop("plan", PLAN)
    by = tuple(more.pop("by", ()))
    asked = Question(plan=plan.name, metric=metric, by=by, **more)
    query = Query(FakeRegistry(registered(*nodes, plan=plan)), lake, lambda: None)  # type: ignore[arg-type]  # fakes
    return list(query.estimate(asked, LOCAL).to_pylist())


def column(rows: list[Row], name: str) -> list[Any]:
    return [row[name] for row in rows]


def vectors(first: str, cells: Sequence[int]) -> dict[str, list[int]]:
    """One vector's cells, and zeros in all others."""
    return {vector.name: list(cells) if vector.name == first else [0] * len(CELLS) for vector in plan_vectors(PLAN)}


def check_totals(lake: FakeLake) -> None:
    rows = ask(lake, by=["carrier"])
    assert column(rows, "carrier") == ["UA", "AA", "other"]  # the plan's order
    assert column(rows, "value") == [2.0 * (1 + 2), 2.0 * (3 + 4), 2.0 * (5 + 6) - 14]
    noise = Noise.of(
        [Term(mechanism="gaussian", scale=BROAD, count=2 * 2 + 2)]
    )  # releases x nights, and one more node's
    widths = {row["hi"] - row["value"] for row in rows} | {row["value"] - row["lo"] for row in rows}
    assert widths == {float(half_width(noise, 0.95))}


def test_totals_are_exact_and_every_draw_of_noise_is_counted(lake: FakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value is the sum of the released cells of its group, never clamped; its interval knows how many were added."""
    for n in range(2):
        lake.write("a", n, vectors("departures", [1, 2, 3, 4, 5, 6]), scale=BROAD)
    lake.write("b", 0, vectors("departures", [0, 0, 0, 0, -7, -7]), scale=BROAD)
    check_totals(lake)
    assert ask(lake, where=(("carrier", ("other",)), ("night", ("true",))))[0]["value"] == 12 - 7
    assert min(column(ask(lake, by=["carrier", "night"], start_us=to_us(week(0)), end_us=to_us(week(1))), "value")) < 0

    real = room._total
    with monkeypatch.context() as mutant:
        mutant.setattr(room, "_total", lambda asked, scales, sums, draws: real(asked, scales, sums, 1))
        with pytest.raises(AssertionError):
            check_totals(lake)


def check_beyond_floats(lake: FakeLake) -> None:
    assert ask(lake)[0]["value"] == 1.0


def test_sums_are_integers_beyond_what_floats_hold(lake: FakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells of 2**62 that cancel leave exactly what is left."""
    big = 2**62
    lake.write("a", 0, vectors("departures", [big, big, big, 1 - big, -big, -big]))
    check_beyond_floats(lake)

    real = room.Rows._run
    with monkeypatch.context() as mutant:
        mutant.setattr(
            room.Rows,
            "_run",
            lambda self, select, where, params: real(
                self, select.replace('sum("departures")', 'sum("departures"::double)'), where, params
            ),
        )
        with pytest.raises(AssertionError):
            check_beyond_floats(lake)


def check_mixed_scales(lake: FakeLake) -> None:
    row = ask(lake)[0]
    noise = Noise.of([Term(mechanism="gaussian", scale=scale, count=6) for scale in (BROAD, 2 * BROAD)])
    assert row["hi"] - row["value"] == half_width(noise, 0.95)


def test_releases_of_different_scales_keep_their_own(lake: FakeLake) -> None:
    """Noise is added up scale by scale, not at the first one's scale."""
    lake.write("a", 0, scale=BROAD)
    lake.write("b", 0, scale=2 * BROAD)
    check_mixed_scales(lake)
    lake.written.pop()
    lake.write("b", 0, scale=BROAD)
    with pytest.raises(AssertionError):
        check_mixed_scales(lake)


def test_a_sum_and_a_mean_are_in_the_columns_unit(lake: FakeLake) -> None:
    """Grid steps become values: 0.5 a step, and a mean's centre is added back."""
    cells = {"departures": 0, "aircraft": 0, "total": 30, "late_sum": -40, "late_count": 10}
    lake.write("a", 0, {name: [value] * 6 for name, value in cells.items()}, scale=2.0)
    total, late = ask(lake, "total")[0], ask(lake, "late")[0]
    assert total["value"] == 6 * 30 * 0.5
    assert total["hi"] - total["value"] == half_width(Noise.of([Term(mechanism="gaussian", scale=2.0, count=6)])) * 0.5
    assert late["value"] == 0.5 * (-240 / 60 + 150)
    noise = Noise.of([Term(mechanism="gaussian", scale=2.0, count=6)])
    steps = ratio_interval(
        numerator=-240, numerator_noise=noise, denominator=60, denominator_noise=noise, lower=-210, upper=210
    )
    assert (late["lo"], late["hi"]) == (0.5 * (steps.lo + 150), 0.5 * (steps.hi + 150))


def test_a_mean_of_nothing_has_no_value(lake: FakeLake) -> None:
    """Where the noisy count is not positive the quotient says nothing; the interval stays within the clip bounds."""
    lake.write("a", 0, {**vectors("late_count", [-1] * 6), "late_sum": [5] * 6}, scale=BROAD)
    row = ask(lake, "late")[0]
    assert row["value"] is None
    assert -30 <= row["lo"] <= row["hi"] <= 180


def check_coverage(lake: FakeLake) -> None:
    rows = ask(lake, nodes=["a", "b", "c"], every_us=7 * DAY_US, end_us=to_us(week(5)))
    assert column(rows, "status") == ["complete", "exhausted", "lost", "vetoed", "offline"]
    assert column(rows, "windows_reporting") == [3, 1, 1, 1, 0]
    assert column(rows, "windows_expected") == [3] * 5
    assert column(rows, "nodes_reporting") == [3, 1, 1, 1, 0]
    assert column(rows, "nodes_expected") == [3] * 5
    assert column(rows, "value")[-1] is None
    whole = ask(lake, nodes=["a", "b", "c"], end_us=to_us(week(5)))[0]
    assert (whole["windows_reporting"], whole["windows_expected"]) == (6, 15)
    assert (whole["nodes_reporting"], whole["nodes_expected"]) == (3, 3)
    assert whole["status"] == "offline"  # five pairs; the typed reasons stand for less


def write_typed(lake: FakeLake) -> None:
    for node in "abc":
        lake.write(node, 0)
    for n, status in enumerate(("exhausted", "lost", "vetoed"), start=1):
        lake.write("a", n)
        lake.write("b", n, status=status)
        if n == 2:
            lake.write("c", n, status=status)


def test_what_is_missing_is_typed_and_counted(lake: FakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expected pairs of node and window that were not released show why, the most frequent reason first."""
    write_typed(lake)
    check_coverage(lake)

    real = room.Rows.records

    def forget(self: Any, nodes: Any, grid: Any) -> Any:
        return {key: record for key, record in real(self, nodes, grid).items() if record["released"]}

    with monkeypatch.context() as mutant:
        mutant.setattr(room.Rows, "records", forget)
        with pytest.raises(AssertionError):
            check_coverage(lake)


def test_by_node_shows_each_nodes_own_coverage(lake: FakeLake) -> None:
    """With `node` in `by`, a row speaks of that node alone; a node that never reported has its rows too."""
    write_typed(lake)
    rows = ask(lake, nodes=["a", "b", "d"], by=["node"], where=(("node", ("a", "b", "d")),))
    assert column(rows, "node") == ["a", "b", "d"]
    assert column(rows, "windows_reporting") == [4, 1, 0]
    assert column(rows, "windows_expected") == [4, 4, 4]
    assert column(rows, "status") == ["complete", "exhausted", "offline"]
    assert column(rows, "value") == [24.0, 6.0, None]


def test_a_node_that_nobody_expects_is_added_up_and_counted(lake: FakeLake) -> None:
    """An unregistered node's releases are in the value, so they are in the coverage, which never exceeds itself."""
    lake.write("a", 0)
    lake.write("b", 0)
    lake.write("a", 1)
    rows = ask(lake, nodes=["a"], every_us=7 * DAY_US)
    assert column(rows, "value") == [12.0, 6.0]
    assert column(rows, "nodes_expected") == [2, 1]
    assert column(rows, "status") == ["complete", "complete"]
    by_node = ask(lake, nodes=["a"], by=["node"], every_us=7 * DAY_US)
    assert column(by_node, "windows_expected") == [1, 1, 1, 0]
    assert by_node[-1]["status"] == "offline"
    assert by_node[-1]["value"] is None


def test_without_registered_nodes_those_ever_seen_are_expected(lake: FakeLake) -> None:
    """A node that once reported is missed when it does not."""
    lake.write("a", 0)
    lake.write("b", 0)
    lake.write("a", 1)
    assert column(ask(lake, every_us=7 * DAY_US), "windows_expected") == [2, 2]
    assert column(ask(lake, every_us=7 * DAY_US), "status") == ["complete", "offline"]


def test_two_tenants_nodes_of_one_name_stay_apart(lake: FakeLake) -> None:
    """A node is a tenant and a name."""
    lake.write("a", 0)
    lake.write("a", 0, 5, tenant="acme")
    rows = ask(lake, by=["node"])
    assert column(rows, "node") == ["a", "acme/a"]
    assert column(rows, "value") == [6.0, 30.0]
    assert ask(lake)[0]["windows_expected"] == 2


def test_nothing_is_silently_absent(lake: FakeLake) -> None:
    """Every bucket times every key that is kept is a row, in the plan's order, also where nobody reported."""
    lake.write("a", 0)
    lake.write("a", 2)
    rows = ask(lake, by=["night", "carrier"], every_us=7 * DAY_US, where=(("carrier", ("other", "UA")),))
    assert [(row["start"], row["night"], row["carrier"]) for row in rows] == [
        (week(n), night, carrier) for n in range(3) for night in ("false", "true") for carrier in ("UA", "other")
    ]
    assert column(rows, "value") == [1.0] * 4 + [None] * 4 + [1.0] * 4


def test_buckets_are_aligned_to_the_first_monday_of_1970(lake: FakeLake) -> None:
    """Whatever the range, a window falls into the same bucket; one that the range cuts says so in start and end."""
    for n in range(6):
        lake.write("a", n)
    rows = ask(lake, every_us=21 * DAY_US, start_us=to_us(week(1)), end_us=to_us(week(5)))
    first = week(0) - (week(0) - datetime(1970, 1, 5, tzinfo=UTC)) % timedelta(days=21)
    edges = [week(1), first + timedelta(days=21), first + timedelta(days=42), week(5)]
    edges = sorted({edge for edge in edges if week(1) <= edge <= week(5)})
    assert [(row["start"], row["end"]) for row in rows] == list(itertools.pairwise(edges))
    assert column(rows, "windows_expected") == [2, 2]
    assert column(rows, "windows_reporting") == [2, 2]
    assert column(rows, "value") == [12.0, 12.0]  # the windows before and after the range are in no bucket


def test_the_range_is_that_of_the_landed_windows_unless_it_is_given(lake: FakeLake) -> None:
    """Windows with a status but no values count as landed; a range that is given holds, landed or not."""
    lake.write("a", 1)
    lake.write("a", 3, status="lost")
    row = ask(lake)[0]
    assert (row["start"], row["end"], row["windows_expected"]) == (week(1), week(4), 3)
    row = ask(lake, start_us=to_us(week(0)), end_us=to_us(week(8)))[0]
    assert (row["start"], row["end"], row["windows_expected"]) == (
        week(0),
        week(8),
        7,
    )  # who is not named is expected from its first window on
    assert ask(lake, start_us=to_us(week(9))) == []  # after all that landed


def check_future(lake: FakeLake) -> None:
    query = Query(
        FakeRegistry(registered()),  # type: ignore[arg-type]  # a fake
        lake,  # type: ignore[arg-type]  # a fake
        lambda: None,
        now_us=lambda: to_us(week(3)) + DAY_US,
    )
    (row,) = query.estimate(Question(plan="flights", metric="departures"), LOCAL).to_pylist()
    assert (row["start"], row["end"], row["value"]) == (week(1), week(4), 12.0)
    asked = Question(plan="flights", metric="departures", end_us=to_us(week(3000)))
    (row,) = query.estimate(asked, LOCAL).to_pylist()
    assert (row["end"], row["value"]) == (week(3000), 18.0)


def test_a_window_of_the_future_moves_nobodys_range(lake: FakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default a range ends with the window of now at the latest; who asks for later ones gets them.

    Mutant: it ends with the latest window that landed, so one wrong clock makes everybody late for decades.
    """
    lake.write("a", 1)
    lake.write("b", 3)
    lake.write("a", 2500)
    check_future(lake)
    real = Grid.of.__func__  # type: ignore[attr-defined]  # of a class method
    monkeypatch.setattr(Grid, "of", classmethod(lambda cls, *about, now_us: real(cls, *about, now_us=2**61)))
    with pytest.raises(AssertionError):
        check_future(lake)


def test_before_anything_landed(lake: FakeLake) -> None:
    """With a range there are typed rows; without one there is none to speak of."""
    assert ask(lake, nodes=["a"]) == []
    rows = ask(lake, nodes=["a"], by=["night"], start_us=to_us(week(0)), end_us=to_us(week(1)))
    assert column(rows, "status") == ["offline", "offline"]
    assert column(rows, "value") == [None, None]
    assert ask(lake, start_us=to_us(week(0)), end_us=to_us(week(1)))[0]["status"] == "offline"


def check_caught_up(folder: Path) -> None:
    lake = FakeLake(folder)
    query = Query(FakeRegistry(registered("a")), lake, lambda: lake.write("a", 0))  # type: ignore[arg-type]  # fakes
    assert query.estimate(Question(plan="flights", metric="departures"), LOCAL).num_rows == 1


def test_the_landing_is_sealed_before_the_lake_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer holds what was acked before the question."""
    check_caught_up(tmp_path)
    real = Query.__init__
    with monkeypatch.context() as mutant:
        mutant.setattr(Query, "__init__", lambda self, registry, lake, _: real(self, registry, lake, lambda: None))
        with pytest.raises(AssertionError):
            check_caught_up(tmp_path)


def test_the_same_question_has_the_same_answer(lake: FakeLake) -> None:
    """Byte for byte; and the stream says what it is an estimate of, and what its intervals leave out."""
    for node in "abcd":
        lake.write(node, 0, 7, scale=BROAD)
    query = Query(FakeRegistry(registered()), lake, lambda: None)  # type: ignore[arg-type]  # fakes
    asked = EstimateRequest(plan="flights", metric="late", by=["carrier"], confidence=0.9)
    first, second = query.answer(asked, LOCAL), query.answer(asked, LOCAL)
    assert first == second
    about = {key.decode(): value.decode() for key, value in pa.ipc.open_stream(first).schema.metadata.items()}
    assert about["metric"] == "late"
    assert about["confidence"] == "0.9"
    assert about["note"].endswith("noise, not bias")


def test_columns_that_need_quoting_and_integer_keys(lake: FakeLake) -> None:
    """A plan may call its column `Order` or `select`; its keys are text, whatever their type."""
    text = PLAN_TEXT.replace('"carrier"', '"select"').replace("carrier =", "select =")
    text = text.replace('values = ["UA", "AA"]', "values = [10, 9]").replace('select = "string"', 'select = "integer"')
    plan = parse_plan(text)
    lake.write("a", 0, plan=plan)
    rows = ask(lake, plan=plan, by=["select"])
    assert [(row["select"], row["value"]) for row in rows] == [("10", 2.0), ("9", 2.0), ("other", 2.0)]
    assert ask(lake, plan=plan, where=(("select", ("9",)),))[0]["value"] == 2.0


def test_a_plan_without_partitions(lake: FakeLake) -> None:
    """One cell; a window without values adds nothing to it."""
    head, _, tail = PLAN_TEXT.partition("[[partition]]")
    plan = parse_plan(head + tail[tail.index("[[metric]]") :])
    lake.write("a", 0, 5, plan=plan)
    lake.write("a", 1, status="vetoed", plan=plan)
    row = ask(lake, plan=plan)[0]
    assert (row["value"], row["windows_reporting"], row["windows_expected"], row["status"]) == (5.0, 1, 2, "vetoed")


def test_a_path_is_never_a_pattern(tmp_path: Path) -> None:
    """A lake in `lake[1]` is not read from `lake1`, which that would match."""
    for name, value in (("lake1", 7), ("lake[1]", 1)):
        (tmp_path / name).mkdir()
        lake = FakeLake(tmp_path / name)
        lake.write("a", 0, value)
    assert ask(lake)[0]["value"] == 6.0


CANARY = "Robert'); DROP TABLE"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "metric": ({"metric": CANARY}, "metric: the plan has departures, aircraft, total, late"),
    "by": ({"by": [CANARY]}, "by: the plan has carrier, night, node"),
    "by twice": ({"by": ["node", "node"]}, "by: names a column twice"),
    "every": ({"every_us": 8 * DAY_US}, "every: must be a multiple of the plan's window, 7d"),
    "every zero": ({"every_us": 0}, "every: must be a multiple"),
    "where": ({"where": ((CANARY, ("UA",)),)}, "where: the plan has carrier, night, node"),
    "where key": ({"where": (("carrier", ("UA", CANARY)),)}, "where.carrier: the plan's keys are UA, AA, other"),
    "where none": ({"where": (("carrier", ()),)}, "where.carrier: names no value"),
    "where node": ({"where": (("node", (CANARY,)),)}, "where.node: not a known node"),
    "start": ({"start_us": to_us(week(0)) + 1}, "start: must lie on the plan's windows, 7d from 1970-01-05"),
    "end": ({"end_us": to_us(week(0)) + DAY_US}, "end: must lie on the plan's windows"),
    "years": ({"start_us": -(2**63)}, "start: must lie in the years 1 to 9999"),
    "order": ({"start_us": to_us(week(1)), "end_us": to_us(week(1))}, "end: must lie after start"),
    "confidence": ({"confidence": 1.0}, "confidence: must lie in"),
    "not a number": ({"confidence": float("nan")}, "confidence: must lie in"),
    "size": ({"by": ["carrier"], "every_us": 7 * DAY_US, "start_us": to_us(week(-100_000))}, "over 100000 rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_names_what_is_wrong_and_repeats_nothing(lake: FakeLake, name: str) -> None:
    """The text names the argument and what the plan has instead; no value of the question comes back in it."""
    lake.write("a", 0)
    more, expected = WRONG[name]
    with pytest.raises(QuestionInvalid) as raised:
        ask(lake, **more)
    assert expected in str(raised.value)
    assert CANARY not in str(raised.value)


def test_filters_on_a_discovered_column_keep_what_all_of_them_name() -> None:
    """Any text may be named; naming nothing in common asks for nothing, not for everything."""
    listed = 'values = ["UA", "AA"]\nother = true'
    plan = parse_plan(PLAN_TEXT.replace(listed, "discover = { delta = 1e-9 }"))

    def wanted(*filters: tuple[str, ...]) -> tuple[str, ...] | None:
        where = tuple(("carrier", values) for values in filters)
        return Asked.of(plan, Question(plan=plan.name, metric="departures", where=where)).wanted

    assert wanted() is None
    assert wanted(("b", "a", "a")) == ("a", "b")
    assert wanted(("b", "a"), ("b", "c")) == ("b",)
    assert wanted(("a",), ("b",)) == ()


def test_a_question_is_read_from_the_wire() -> None:
    """What is absent stays absent: zero and absent differ."""
    assert Question.read(EstimateRequest(plan="p", metric="m")) == Question(plan="p", metric="m")
    full = EstimateRequest(
        plan="p",
        version=2,
        metric="m",
        by=["node"],
        every_us=0,
        where=[Filter(column="c", values=["x"])],
        start_us=0,
        end_us=1,
        confidence=0.5,
    )
    assert Question.read(full) == Question(
        plan="p",
        version=2,
        metric="m",
        by=("node",),
        every_us=0,
        where=(("c", ("x",)),),
        start_us=0,
        end_us=1,
        confidence=0.5,
    )
