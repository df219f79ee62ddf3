"""Rows: what a typed batch becomes before bounding, each row by itself."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.contract import cells
from edge_agg.contract.codec import to_us
from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.vectors import plan_vectors
from edge_agg.ingest.decode import typed_schema
from edge_agg.privacy import rows
from edge_agg.privacy.rows import Events, read_events
from tests.fakes import MONDAY

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    assert found.cell.tolist() == expected
    assert found.dropped == len(events) - len(expected)


def test_a_code_in_the_wrong_order_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the sizes of the dimensions turned round; the cell no longer carries its keys."""
    plan = plan_of()
    event = {"s": "b", "i": -7, "b": False}
    honest = read(plan, event).cell[0]
    assert list(cells.keys(plan))[honest] == ("b", "-7", "false")
    monkeypatch.setattr(rows, "shape", lambda p: cells.shape(p)[::-1])
    assert read(plan, event).cell[0] != honest


def test_rows_without_a_unit_or_a_time_are_dropped() -> None:
    """Guarantee: nobody's row, and a row of no window, count nowhere."""
    found = read(plan_of(), {"u": None}, {"t": None}, {"u": None, "t": None}, {"u": "kept"})
    assert (found.dropped, found.unit.to_pylist()) == (3, ["kept"])
    assert found.time_us.tolist() == [to_us(MONDAY)]


def test_taking_a_null_for_a_value_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: nulls pass as values; a row without a time would land in 1970, a null would count as a reading."""
    monkeypatch.setattr(rows, "_valid", lambda column: np.ones(len(column), dtype=np.bool_))
    found = read(plan_of(), {"t": None}, {"x": None})
    assert found.dropped != 1
    assert found.values["level_count"].tolist() != [1, 0]


@pytest.mark.parametrize("unit", ["string", "integer"])
def test_a_unit_is_its_value(unit: str) -> None:
    """Guarantee: equal ids are one unit, others are not, also the extremes and the empty string."""
    ids: list[Any] = ["N1", "", "N1", "Ünï", "n1"] if unit == "string" else [0, -(2**63), 0, 2**63 - 1, 1]
    found = read(plan_of(unit=unit), *[{"u": name} for name in ids])
    assert found.unit.to_pylist() == ids


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_missing_value_leaves_its_row_out_of_that_metric_only(missing: float | None) -> None:
    """Guarantee: null and NaN add 0 to the sum and to the mean's count, and the row still counts as a row."""
    found = read(plan_of(), {"x": missing}, {"x": 0.0})
    assert len(found.cell) == 2
    assert found.values["total"].tolist() == [0, 0]
    assert found.values["level_sum"].tolist() == [0, -2]  # counted from the centre, 1.0, in steps of 0.5
    assert found.values["level_count"].tolist() == [0, 1]


@pytest.mark.parametrize(("value", "steps"), [(math.inf, 8), (-math.inf, -4), (1e308, 8), (-1e308, -4), (0.26, 1)])
def test_values_are_clipped_and_put_on_the_grid(value: float, steps: int) -> None:
    """Guarantee: infinities and everything beyond the bounds become the bounds."""
    found = read(plan_of(), {"x": value})
    assert found.values["total"].tolist() == [steps]
    assert found.values["level_sum"].tolist() == [steps - 2]
    assert found.values["level_count"].tolist() == [1]


def test_integers_of_64_bits_clip() -> None:
    """Guarantee: an integer column is summed by the same grid, to its extremes."""
    found = read(plan_of(value="integer"), {"x": 2**63 - 1}, {"x": -(2**63)}, {"x": 3}, {"x": None})
    assert found.values["total"].tolist() == [8, -4, 6, 0]
    assert found.values["level_count"].tolist() == [1, 1, 1, 0]


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
    names = sorted(found.values)
    columns = [found.values[name].tolist() for name in names]
    return list(zip(found.unit.to_pylist(), found.time_us.tolist(), found.cell.tolist(), *columns, strict=True))


@given(st.lists(mixed, max_size=10))
def test_what_becomes_of_a_row_depends_on_that_row_alone(events: list[dict[str, Any]]) -> None:
    """Guarantee: a batch is read as its rows are read one by one; every contribution is within the clip."""
    plan = plan_of(other=(True, True, True))
    together = plain(read(plan, *events))
    assert together == [row for event in events for row in plain(read(plan, event))]
    for vector in plan_vectors(plan):
        if vector.clip is not None:
            place = 3 + sorted(v.name for v in plan_vectors(plan) if v.column).index(vector.name)
            low, high = vector.clip.lower - vector.clip.centre, vector.clip.upper - vector.clip.centre
            assert all(row[place] == 0 or low <= row[place] <= high for row in together)


def test_a_value_that_is_not_clipped_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no clip; one row could move the sum by more than its sensitivity."""

    def unclipped(found: Any, valid: Any, *, lower: float, upper: float, clip: Any) -> Any:
        return np.where(valid, np.rint(np.nan_to_num(found) / clip.resolution).astype(np.int64) - clip.centre, 0)

    monkeypatch.setattr(rows, "to_grid", unclipped)
    assert read(plan_of(), {"x": 1e6}).values["total"].tolist() != [8]


def test_take_keeps_the_rows_that_are_asked_for() -> None:
    """A window's rows are its own, in the order asked; all of them are taken as they are."""
    found = read(plan_of(), {"u": "a"}, {"u": "b"}, {"u": "a"}, {"u": "c", "x": 2.0})
    taken = found.take(np.array([3, 0], dtype=np.intp))
    assert taken.unit.to_pylist() == ["c", "a"]
    assert taken.values["total"].tolist() == [4, 2]
    assert found.take(np.arange(4)).unit.to_pylist() == ["a", "b", "a", "c"]


def test_an_empty_batch_has_no_rows() -> None:
    """Nothing in, nothing out, of the same types."""
    found = read(plan_of())
    assert (len(found.cell), len(found.unit), found.dropped) == (0, 0, 0)
    assert found.cell.dtype == found.time_us.dtype == np.int64
