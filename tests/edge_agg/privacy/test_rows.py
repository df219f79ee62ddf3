"""Rows: what a typed batch becomes before bounding, each row by itself."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract import cells
from edge_agg.contract.codec import to_us
from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.vectors import plan_vectors, readings_of
from edge_agg.ingest.decode import typed_schema
from edge_agg.privacy import aggregate, rows
from edge_agg.privacy.bounded import Rows, Unread
from edge_agg.privacy.rows import Events, read_events
from tests.fakes import MONDAY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLAN = """
[plan]
name = "p"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "{unit}", s = "string", i = "integer", b = "boolean", x = "{value}" }}
[privacy_unit]
column = "u"
[bounds]
max_partitions = 1
max_rows_per_partition = 2
[window]
every = "1d"
{partitions}
[[metric]]
name = "n"
kind = "count"
[[metric]]
name = "total"
kind = "sum"
column = "x"
lower = -2.0
upper = 4.0
resolution = 0.5
[[metric]]
name = "level"
kind = "mean"
column = "x"
lower = -2.0
upper = 4.0
resolution = 0.5
[budget]
mechanism = "gaussian"
epsilon = 1.0
delta = 1e-6
"""
STRINGS: list[Any] = ["a", "b", "c"]
INTEGERS: list[Any] = [-7, 0, 2**62]
BOOLEANS: list[Any] = [True, False]


def plan_of(*, other: Sequence[bool] = (True, False, True), unit: str = "string", value: str = "float") -> Plan:
    """A plan with a partition of strings, one of integers and one of booleans, in this order."""
    tables = [
        f'[[partition]]\ncolumn = "{column}"\nvalues = {values}\nother = {str(flag).lower()}'
        for column, values, flag in zip("sib", ('["a", "b", "c"]', str(INTEGERS), "[true, false]"), other, strict=True)
    ]
    return parse_plan(PLAN.format(unit=unit, value=value, partitions="\n".join(tables)))


def read(plan: Plan, *events: dict[str, Any]) -> Events:
    """Read events; what an event leaves out has a usable value."""
    usual = {"t": MONDAY, "u": "unit" if plan.events.columns["u"] == "string" else 1, "s": "a", "i": 0, "b": True}
    filled = [{**usual, "x": 1.0, **event} for event in events]
    schema = typed_schema(plan.events.columns)
    batch = pa.RecordBatch.from_pylist(filled, schema)
    return read_events(plan, plan_vectors(plan), batch)


def wide_plan() -> Plan:
    """The plan, and a histogram, quantiles and a total of each unit besides."""
    more = """
[[metric]]
name = "shape"
kind = "histogram"
column = "x"
edges = [0.0, 1.0, 2.0, 10.0]
[[metric]]
name = "middle"
kind = "quantiles"
column = "x"
lower = 0.0
upper = 101.0
bins = 101
quantiles = [0.5]
[[metric]]
name = "spent"
kind = "sum"
column = "x"
lower = -2.0
upper = 4.0
resolution = 0.5
clip = "unit"
[budget]"""
    return parse_plan(PLAN.format(unit="string", value="float", partitions="").replace("[budget]", more))


def units(found: Events) -> list[Any]:
    """Each usable row's unit."""
    assert found.rows.unit is not None
    ids: list[Any] = found.rows.unit.to_pylist()
    return ids


def bins(found: Events) -> list[int]:
    """Each usable row's bin of the histogram."""
    sizes = {reading.size: name for name, reading in readings_of(plan_vectors(wide_plan())).items()}
    return [int(code) for code in found.rows.readings[sizes[3]]]


keys = st.fixed_dictionaries(
    {
        "s": st.sampled_from([*STRINGS, "z", "", None]),
        "i": st.sampled_from([*INTEGERS, 5, -(2**63), None]),
        "b": st.sampled_from([True, False, None]),
    }
)
flags = st.tuples(st.booleans(), st.booleans(), st.booleans())


def code_by_hand(values: list[Any], key: Any, *, other: bool) -> int | None:
    """A key's place in its dimension, or None where its row has no cell."""
    if key is not None and key in values:
        return values.index(key)
    return len(values) if other else None


@given(st.lists(keys, max_size=12), flags)
def test_a_rows_cell_is_that_of_its_keys_in_the_plans_order(
    events: list[dict[str, Any]], other: tuple[bool, bool, bool]
) -> None:
    """Guarantee: codes follow `cells.keys`; null and unlisted keys go to `other`, or their row is dropped."""
    plan = plan_of(other=other)
    names = list(cells.keys(plan))
    expected = []
    for event in events:
        codes = [
            code_by_hand(values, event[column], other=flag)
            for column, values, flag in zip("sib", (STRINGS, INTEGERS, BOOLEANS), other, strict=True)
        ]
        if None not in codes:
            shown = [
                "other" if code == len(values) else cells.key_text(values[code])
                for code, values in zip(codes, (STRINGS, INTEGERS, BOOLEANS), strict=True)
                if code is not None
            ]
            expected.append(names.index((shown[0], shown[1], shown[2])))
    found = read(plan, *events)
    assert found.rows.cell.tolist() == expected
    assert found.dropped == len(events) - len(expected)


def test_a_code_in_the_wrong_order_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the sizes of the dimensions turned round; the cell no longer carries its keys."""
    plan = plan_of()
    event = {"s": "b", "i": -7, "b": False}
    honest = read(plan, event).rows.cell[0]
    assert list(cells.keys(plan))[honest] == ("b", "-7", "false")
    monkeypatch.setattr(rows, "shape", lambda p: cells.shape(p)[::-1])
    assert read(plan, event).rows.cell[0] != honest


def test_a_partition_of_one_key_changes_no_cell() -> None:
    """Guarantee: a dimension of size 1 leaves the cells of the others as they are, wherever it stands."""
    table = '[[partition]]\ncolumn = "{column}"\nvalues = [{keys}]'
    for order in ("sb", "bs"):
        tables = [table.format(column=c, keys={"s": '"a", "b", "c"', "b": "true"}[c]) for c in order]
        plan = parse_plan(PLAN.format(unit="string", value="float", partitions="\n".join(tables)))
        assert cells.shape(plan) in {(3, 1), (1, 3)}
        assert read(plan, {"s": "c"}, {"s": "a"}, {"s": "b"}, {"s": "c", "b": False}).rows.cell.tolist() == [2, 0, 1]


def test_rows_without_a_unit_or_a_time_are_dropped() -> None:
    """Guarantee: nobody's row, and a row of no window, count nowhere."""
    found = read(plan_of(), {"u": None}, {"t": None}, {"u": None, "t": None}, {"u": "kept"})
    assert (found.dropped, units(found)) == (3, ["kept"])
    assert found.time_us.tolist() == [to_us(MONDAY)]


def test_keeping_a_row_without_a_unit_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: nulls pass; a row without a time would land in 1970, a row without a unit would be nobody's."""
    monkeypatch.setattr(rows._Usable, "need", lambda self, column: None)
    assert read(plan_of(), {"t": None}, {"u": None}).dropped == 0


@pytest.mark.parametrize("unit", ["string", "integer"])
def test_a_unit_is_its_value(unit: str) -> None:
    """Guarantee: equal ids are one unit, others are not, also the extremes and the empty string."""
    ids: list[Any] = ["N1", "", "N1", "Ünï", "n1"] if unit == "string" else [0, -(2**63), 0, 2**63 - 1, 1]
    assert units(read(plan_of(unit=unit), *[{"u": name} for name in ids])) == ids


# Readings: the grid is -4 .. 8 in steps of 0.5, so codes are 0 .. 12, and 13 is "no value"

MISSING = 13


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_has_a_code_of_its_own(missing: float | None) -> None:
    """Guarantee: null and NaN keep their row, with the code that is no value's: the reading's size."""
    plan = plan_of()
    assert [reading.size for reading in readings_of(plan_vectors(plan)).values()] == [MISSING]
    found = read(plan, {"x": missing}, {"x": 0.0})
    assert (len(found.rows.cell), found.dropped) == (2, 0)
    assert found.rows.readings["r0"].tolist() == [MISSING, 4]


def test_taking_a_missing_value_for_a_number_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: what is missing is read as 0."""
    honest = rows._numbers
    monkeypatch.setattr(rows, "_numbers", lambda column: (honest(column)[0], None))
    assert read(plan_of(), {"x": None}, {"x": math.nan}).rows.readings["r0"].tolist() == [4, 4]


@pytest.mark.parametrize(("value", "code"), [(math.inf, 12), (-math.inf, 0), (1e308, 12), (-1e308, 0), (0.26, 5)])
def test_values_are_clipped_and_put_on_the_grid(value: float, code: int) -> None:
    """Guarantee: infinities and everything beyond the bounds become the bounds."""
    assert read(plan_of(), {"x": value}).rows.readings["r0"].tolist() == [code]


def test_integers_of_64_bits_clip() -> None:
    """Guarantee: an integer column is read by the same grid, to its extremes."""
    found = read(plan_of(value="integer"), {"x": 2**63 - 1}, {"x": -(2**63)}, {"x": 3}, {"x": None})
    assert found.rows.readings["r0"].tolist() == [12, 0, 10, MISSING]


def test_one_column_read_two_ways_has_two_readings() -> None:
    """Metrics with other bounds, or bins, do not share codes; those with the same do."""
    plan = wide_plan()
    found = read(plan, {"x": 2.0}, {"x": None})
    names = readings_of(plan_vectors(plan))
    assert {reading.size: found.rows.readings[name].tolist() for name, reading in names.items()} == {
        MISSING: [8, MISSING],
        3: [2, 3],
        101: [2, 101],
    }


@pytest.mark.parametrize(
    ("value", "bin_"),
    [
        (-math.inf, 0),
        (-5.0, 0),
        (0.0, 0),
        (math.nextafter(1.0, 0.0), 0),
        (1.0, 1),
        (1.5, 1),
        (2.0, 2),
        (10.0, 2),
        (10.1, 2),
        (math.inf, 2),
        (math.nan, 3),
        (None, 3),
    ],
)
def test_bins_are_half_open_and_the_outer_ones_take_what_lies_beyond(value: float | None, bin_: int) -> None:
    """Guarantee: edges 0, 1, 2, 10: a value on an edge belongs above it; none is lost but null and NaN."""
    assert bins(read(wide_plan(), {"x": value})) == [bin_]


def test_bins_that_are_open_below_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a value on an edge falls in the bin below it."""

    def below(values: Any, *, edges: Sequence[float]) -> Any:
        return np.searchsorted(np.asarray(edges[1:-1]), values, side="left").astype(np.int64)

    monkeypatch.setattr(rows, "to_bins", below)
    assert bins(read(wide_plan(), {"x": 1.0})) == [0]


@pytest.mark.parametrize(
    ("value", "steps"),
    [(3.0, 6), (-0.26, -1), (1e6, 2 * 10**6), (math.inf, 2**31), (-1e300, -(2**31)), (None, 0), (math.nan, 0)],
)
def test_a_rows_part_of_a_total_is_not_clipped_to_the_bounds(value: float | None, steps: int) -> None:
    """Guarantee: only the whole total is, once all of it is there; a row adds 2**31 steps at most, a null nothing."""
    assert read(wide_plan(), {"x": value}).rows.totals["spent"].tolist() == [steps]


def test_every_event_its_own_unit_needs_no_id() -> None:
    """Guarantee: without a column of units none is read, and nobody's row is a row like any other."""
    plan = parse_plan(
        PLAN.format(unit="string", value="float", partitions="")
        .replace('column = "u"', "event = true")
        .replace("max_rows_per_partition = 2", "max_rows_per_partition = 1")
    )
    found = read(plan, {"u": None}, {"u": "a"}, {"t": None})
    assert (found.rows.unit, found.rows.cell.tolist(), found.dropped) == (None, [0, 0], 1)
    assert found.take(np.array([1], dtype=np.intp)).unit is None


# Calendars

CALENDAR = '[[partition]]\ncolumn = "{column}"\ncalendar = "{part}"\ntimezone = "{zone}"'


def calendar_plan(part: str, zone: str, column: str = "t") -> Plan:
    """A plan by hour or weekday of the event's time, or of another timestamp."""
    table = CALENDAR.format(column=column, part=part, zone=zone)
    text = PLAN.format(unit="string", value="float", partitions=table)
    return parse_plan(text.replace('s = "string"', 's = "string", at = "timestamp"'))


ZONES = ["UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"]
moments = st.integers(0, 199 * 365 * 24).map(
    lambda hours: datetime(1900, 1, 2, tzinfo=UTC) + hours * timedelta(hours=1)
)


@settings(max_examples=30)
@given(st.lists(moments, min_size=1, max_size=10), st.sampled_from(ZONES))
def test_hours_and_weekdays_are_those_of_the_zone(times: list[datetime], zone: str) -> None:
    """Guarantee: what a clock and a calendar on the wall there show, by another implementation, up to the year 2099.

    Beyond it the table of zones that is used knows no daylight saving.
    """
    local = [time.astimezone(ZoneInfo(zone)) for time in times]
    for part, wanted in (("hour", [t.hour for t in local]), ("weekday", [t.isoweekday() for t in local])):
        plan = calendar_plan(part, zone)
        names = [int(key) for (key,) in cells.keys(plan)]
        assert [names[cell] for cell in read(plan, *[{"t": t} for t in times]).rows.cell] == wanted


def test_daylight_saving_by_hand() -> None:
    """Paris, 2013: no hour 2 on 31 March, hour 2 twice on 27 October; midnight there is the day before in UTC."""
    plan = calendar_plan("hour", "Europe/Paris")
    spring = [datetime(2013, 3, 31, hour, 30, tzinfo=UTC) for hour in (0, 1)]
    autumn = [datetime(2013, 10, 27, hour, 30, tzinfo=UTC) for hour in (0, 1)]
    assert read(plan, *[{"t": t} for t in spring + autumn]).rows.cell.tolist() == [1, 3, 2, 2]
    evening = datetime(2013, 6, 2, 22, 30, tzinfo=UTC)  # Sunday in UTC, Monday in Paris
    assert read(calendar_plan("weekday", "Europe/Paris"), {"t": evening}).rows.cell.tolist() == [0]
    assert read(calendar_plan("weekday", "UTC"), {"t": evening}).rows.cell.tolist() == [6]


def test_a_calendar_that_forgets_its_zone_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: every calendar is UTC's."""
    from msgspec.structs import replace

    honest = rows._calendar
    monkeypatch.setattr(rows, "_calendar", lambda partition, column: honest(replace(partition, timezone=None), column))
    with pytest.raises(AssertionError):
        test_daylight_saving_by_hand()


def test_another_timestamp_than_the_events_may_be_null() -> None:
    """Guarantee: a row without a moment has no hour, so it has no cell."""
    found = read(calendar_plan("hour", "UTC", "at"), {"at": None}, {"at": MONDAY + timedelta(hours=5)})
    assert (found.dropped, found.rows.cell.tolist()) == (1, [5])


# Discovered keys


def discovering_plan(column: str = "s", max_bytes: int = 4) -> Plan:
    """A plan that discovers keys, beside a public partition."""
    tables = (
        f'[[partition]]\ncolumn = "{column}"\ndiscover = {{ delta = 1e-8, max_bytes = {max_bytes} }}\n'
        '[[partition]]\ncolumn = "b"\nvalues = [false, true]'
    )
    return parse_plan(PLAN.format(unit="string", value="float", partitions=tables))


def test_a_discovered_key_is_its_text_and_has_no_code() -> None:
    """Guarantee: the key stays beside the public cell; without one, or too long in UTF-8, the row is dropped."""
    found = read(
        discovering_plan(),
        *({"s": key} for key in ("abcd", "abcde", None, "", "ééé", "éé")),
        {"s": "x", "b": False},
        {"s": "x", "b": None},
    )
    assert found.rows.key is not None
    assert found.rows.key.to_pylist() == ["abcd", "", "éé", "x"]
    assert (found.rows.cell.tolist(), found.dropped) == ([1, 1, 1, 0], 4)


def test_an_integer_key_is_its_decimal_text() -> None:
    """Guarantee: signs and all 64 bits; null has no key, and what is too long is dropped by the same rule."""
    found = read(discovering_plan("i", 20), {"i": -7}, {"i": -(2**63)}, {"i": 2**63 - 1}, {"i": None}, {"i": 0})
    assert found.rows.key is not None
    assert found.rows.key.cast(pa.string()).to_pylist() == ["-7", str(-(2**63)), str(2**63 - 1), "0"]
    edges = [{"i": number} for number in (-100, -99, -10, -9, 0, 9, 10, 99, 100, 999, 1000)]
    for most in (1, 2, 3, 4):
        kept = read(discovering_plan("i", most), *edges).rows.key
        assert kept is not None
        assert kept.to_pylist() == [edge["i"] for edge in edges if len(str(edge["i"])) <= most]


def test_a_key_of_any_length_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: characters are counted in place of bytes."""
    monkeypatch.setattr(pc, "binary_length", pc.utf8_length)
    assert read(discovering_plan(), {"s": "ééé"}).dropped == 0


# Every row by itself

values = st.none() | st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 4.0, 4.000001])
mixed = st.builds(
    lambda key, u, t, x: {**key, "u": u, "t": t, "x": x},
    keys,
    st.sampled_from(["a", "b", None]),
    st.sampled_from([MONDAY, MONDAY + timedelta(days=300), None]),
    values,
)


def plain(found: Events) -> list[tuple[Any, ...]]:
    """Each usable row in plain values."""
    taken = found.rows
    columns = [taken.time_us, taken.cell, *taken.readings.values(), *taken.totals.values()]
    texts = [] if taken.key is None else [taken.key.to_pylist()]
    return list(zip(units(found), *[column.tolist() for column in columns], *texts, strict=True))


@pytest.mark.parametrize("of", [plan_of, wide_plan, discovering_plan, lambda: calendar_plan("hour", "Europe/Paris")])
@settings(max_examples=30)
@given(events=st.lists(mixed, max_size=10))
def test_what_becomes_of_a_row_depends_on_that_row_alone(of: Callable[[], Plan], events: list[dict[str, Any]]) -> None:
    """Guarantee: a batch is read as its rows are read one by one, and every code is one that the reading has."""
    plan = of()
    if "at" in plan.events.columns:
        events = [{**event, "at": event["t"]} for event in events]
    found = read(plan, *events)
    assert plain(found) == [row for event in events for row in plain(read(plan, event))]
    assert found.dropped + len(found.rows.cell) == len(events)
    for name, reading in readings_of(plan_vectors(plan)).items():
        assert all(0 <= code <= reading.size for code in found.rows.readings[name])
    assert all(0 <= cell < cells.n_cells(plan) for cell in found.rows.cell)


def test_a_row_that_is_read_by_its_neighbours_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: values are clipped to what the batch has."""
    honest = aggregate.to_grid

    def relative(found: Any, **bounds: Any) -> Any:
        return honest(found - found.min(), **bounds)

    monkeypatch.setattr(rows, "to_grid", relative)
    low, high = {"x": 0.0}, {"x": 3.0}
    plan = plan_of()
    assert plain(read(plan, low, high)) != plain(read(plan, low)) + plain(read(plan, high))


def test_a_value_that_is_not_clipped_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no clip; the code of one row lies beyond the reading's size, and its value beyond the sensitivity."""

    def unclipped(found: Any, *, lower: int, upper: int, resolution: float) -> Any:
        return np.rint(found / resolution).astype(np.int64) - lower

    monkeypatch.setattr(rows, "to_grid", unclipped)
    assert read(plan_of(), {"x": 1e6}).rows.readings["r0"][0] > MISSING


def test_take_keeps_the_rows_that_are_asked_for() -> None:
    """A window's rows are its own, in the order asked, in every column; all of them are taken as they are."""
    plan = wide_plan()
    found = read(plan, {"u": "a"}, {"u": "b"}, {"u": "a"}, {"u": "c", "x": 2.0})
    taken = found.take(np.array([3, 0], dtype=np.intp))
    assert taken.unit is not None
    assert taken.unit.to_pylist() == ["c", "a"]
    assert taken.totals["spent"].tolist() == [4, 2]
    assert {name: codes.tolist() for name, codes in taken.readings.items()} == {
        name: [int(codes[3]), int(codes[0])] for name, codes in found.rows.readings.items()
    }
    assert found.take(np.arange(4)) is found.rows
    keyed = read(discovering_plan(), {"s": "a"}, {"s": "b"}, {"s": "c"}).take(np.array([2], dtype=np.intp))
    assert keyed.key is not None
    assert keyed.key.to_pylist() == ["c"]


def test_an_empty_batch_has_no_rows() -> None:
    """Nothing in, nothing out, of the same types."""
    found = read(wide_plan())
    assert (len(found.rows.cell), units(found), found.dropped) == (0, [], 0)
    assert found.rows.cell.dtype == found.time_us.dtype == np.int64
    assert {codes.dtype for codes in found.rows.readings.values()} == {np.dtype(np.int64)}
    keyed = read(discovering_plan())
    assert keyed.rows.key is not None
    assert keyed.rows.key.to_pylist() == []


def test_values_are_read_of_those_rows_alone_that_are_there_when_they_are_asked_for() -> None:
    """Guarantee: however rows are cut and taken, a row's numbers are its own, and no other row's value is looked at.

    Mutant: all values are read as soon as the events are.
    """
    looked: list[int] = []

    def read_and_tell(column: pa.Array) -> Any:
        looked.append(len(column))
        return column.to_numpy(zero_copy_only=False).astype(np.int64) * 10

    values = pa.array([float(i) for i in range(9)])
    unread = Unread(columns={"x": values}, reads={"tens": ("x", read_and_tell)})
    zero = np.zeros(9, np.int64)
    rows = Rows(unit=None, cell=zero, key=None, time_us=zero, readings=unread, totals=unread)
    some = rows.slice(2, 5).take(np.array([4, 0]))
    assert not looked
    assert [some.readings["tens"].tolist(), some.totals["tens"].tolist()] == [[60, 20], [60, 20]]
    assert looked == [2, 2]
    eager = replace(rows, readings=dict(unread)).slice(2, 5).take(np.array([4, 0]))
    assert eager.readings["tens"].tolist() == [60, 20]
    assert looked == [2, 2, 9]
