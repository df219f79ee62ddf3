"""Derived columns and filters: each row by itself, as a row at a time would have it, and neighbours stay neighbours."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any
from unicodedata import ucd_3_2_0
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.vectors import plan_vectors
from edge_agg.ingest.decode import typed_schema
from edge_agg.privacy import derive as deriving
from edge_agg.privacy import lower as lowering
from edge_agg.privacy.derive import derive
from edge_agg.privacy.lower import lower, table
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.rows import read_events
from tests.fakes import MONDAY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Row = dict[str, Any]

PLAN = """
[plan]
name = "p"
version = 1
[events]
time = "t"
columns = { t = "timestamp", u = "string", s = "string", i = "integer", b = "boolean", x = "float" }
[privacy_unit]
column = "u"
[bounds]
max_partitions = 1
max_rows_per_partition = 2
[window]
every = "1d"
[[metric]]
name = "n"
kind = "count"
[budget]
mechanism = "gaussian"
epsilon = 1.0
delta = 1e-6
"""
ALL = """
[[derive]]
column = "renamed"
from = "x"
[[derive]]
column = "band"
from = "renamed"
buckets = [-1.0, 0, 2.5]
[[derive]]
column = "step"
from = "i"
buckets = [-9.3e18, -0.5, 9007199254740996, 9.3e18]
numbered = true
[[derive]]
column = "fine"
from = "x"
buckets = [-9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8]
numbered = true
[[derive]]
column = "hour"
from = "t"
calendar = "hour"
[[derive]]
column = "day"
from = "t"
calendar = "weekday"
[[derive]]
column = "local"
from = "t"
calendar = "hour"
timezone = "Asia/Kolkata"
[[derive]]
column = "small"
from = "s"
lower = true
[[derive]]
column = "head"
from = "small"
first = 2
[[derive]]
column = "name"
from = "head"
map = { ab = "AB", "\\u03c3" = "sigma" }
otherwise = "rest"
[[derive]]
column = "code"
from = "i"
map = { "404" = "missing", "-1" = "none" }
"""
FILTERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'column = "s"\nequals = "Ab"': ("s", lambda v: v == "Ab"),
    'column = "s"\nnot_equals = "Ab"': ("s", lambda v: v != "Ab"),
    'column = "s"\nin = ["Ab", ""]': ("s", lambda v: v in {"Ab", ""}),
    'column = "i"\nequals = 404': ("i", lambda v: v == 404),
    'column = "i"\nat_least = 9007199254740993': ("i", lambda v: v >= 2**53 + 1),
    'column = "i"\nbelow = 0': ("i", lambda v: v < 0),
    'column = "x"\nequals = 0': ("x", lambda v: v == 0),
    'column = "x"\nnot_equals = 0.0': ("x", lambda v: v != 0),
    'column = "x"\nin = [0, 2.5]': ("x", lambda v: v in {0.0, 2.5}),
    'column = "x"\nabove = 2.5': ("x", lambda v: v > 2.5),
    'column = "x"\nat_most = -1': ("x", lambda v: v <= -1),
    'column = "b"\nequals = true': ("b", lambda v: v is True),
    'column = "b"\nnot_equals = true': ("b", lambda v: v is False),
    'column = "band"\nin = ["..-1", "0..2.5"]': ("band", lambda v: v in {"..-1", "0..2.5"}),
    'column = "hour"\nat_least = 12': ("hour", lambda v: v >= 12),
    'column = "name"\nnot_equals = "rest"': ("name", lambda v: v != "rest"),
}


@cache
def plan_of(more: str = ALL, *filters: str) -> Plan:
    """The plan with derivations, and with some filters."""
    return parse_plan(PLAN + more + "".join(f"[[filter]]\n{text}\n" for text in filters))


def batch_of(plan: Plan, rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as `decode` gives them."""
    schema = typed_schema(plan.events.columns)
    return pa.RecordBatch.from_arrays([pa.array([r[f.name] for r in rows], f.type) for f in schema], schema=schema)


def lower_by_hand(text: str) -> str:
    """Letter by letter."""
    small = [letter.lower() if ucd_3_2_0.category(letter) != "Cn" else letter for letter in text]
    return "".join(new if len(new) == 1 else old for old, new in zip(text, small, strict=True))


def bucket(value: float, edges: Sequence[float]) -> int:
    """How many edges a value has reached; Python compares integers with floats exactly."""
    return sum(value >= edge for edge in edges)


def by_hand(row: Row) -> Row:
    """All of `ALL`, of one row."""

    def of(value: Any, make: Callable[[Any], Any]) -> Any:
        return None if value is None or (isinstance(value, float) and math.isnan(value)) else make(value)

    small = of(row["s"], lower_by_hand)
    head = of(small, lambda text: text[:2])
    return row | {
        "renamed": row["x"],
        "band": of(row["x"], lambda x: ["..-1", "-1..0", "0..2.5", "2.5.."][bucket(x, [-1.0, 0.0, 2.5])]),
        "step": of(row["i"], lambda i: bucket(i, [-9.3e18, -0.5, float(2**53 + 4), 9.3e18])),
        "fine": of(row["x"], lambda x: bucket(x, range(-9, 9))),
        "hour": of(row["t"], lambda t: t.hour),
        "day": of(row["t"], lambda t: t.isoweekday()),
        "local": of(row["t"], lambda t: t.astimezone(ZoneInfo("Asia/Kolkata")).hour),
        "small": small,
        "head": head,
        "name": of(head, lambda text: {"ab": "AB", "\u03c3": "sigma"}.get(text, "rest")),
        "code": of(row["i"], {404: "missing", -1: "none"}.get),
    }


def plain(rows: Sequence[Row]) -> list[str]:
    """Rows that can be compared, NaN and all."""
    return [repr(sorted((name, str(v) if name == "t" else v) for name, v in row.items())) for row in rows]


GOLDEN_PAIRS = 874
GOLDEN_LETTERS = "37572e3d1c628649f24b5a8fee80436bf48e2b822b094e106a3b26d76023bfba"

letters = st.sampled_from("aAbBzZ\u00c9\u00e9\u0130\u03a3\u03c3\u10a0\u2126\u212a\U00010400\U00010d50\u1c89 \x007")
ids = st.sampled_from(["u1", "u2", "u3", None])
events = st.fixed_dictionaries(
    {
        "t": st.none() | st.datetimes(datetime(1900, 1, 2), datetime(2200, 12, 30), timezones=st.just(UTC)),  # noqa: DTZ001  # naive bounds, as asked
        "u": ids,
        "s": st.none()
        | st.sampled_from(["Ab", "", "ab", "\u03a3"])
        | st.text(letters, max_size=5)
        | st.text(max_size=5),
        "i": st.none()
        | st.sampled_from([404, -1, 0, 2**53, 2**53 + 1, 2**53 + 3, 2**63 - 1, -(2**63)])
        | st.integers(-(2**63), 2**63 - 1),
        "b": st.none() | st.booleans(),
        "x": st.none() | st.sampled_from([-1.0, 0.0, -0.0, 2.5]) | st.floats(),
    }
)
filters = st.lists(st.sampled_from(list(FILTERS)), max_size=3)


def passes(row: Row, chosen: Sequence[str]) -> bool:
    """Whether a row stands all comparisons; without a value it stands none."""
    looked = [(row[column], holds) for column, holds in map(FILTERS.__getitem__, chosen)]
    return all(v is not None and not (isinstance(v, float) and math.isnan(v)) and holds(v) for v, holds in looked)


@given(st.lists(events, max_size=12), filters, st.integers(0, 3))
def test_each_row_becomes_what_it_would_alone(rows: list[Row], chosen: list[str], cut: int) -> None:
    """Guarantee: all derivations in order, then all filters, give what a row at a time gives; also of a slice."""
    plan = plan_of(ALL, *chosen)
    found = derive(plan, batch_of(plan, rows).slice(cut))
    found.validate(full=True)
    assert {field.name: field.type for field in found.schema} == {
        field.name: field.type for field in typed_schema(plan.columns)
    }
    expected = [row for row in map(by_hand, rows[cut:]) if passes(row, chosen)]
    assert plain(found.to_pylist()) == plain([{name: row[name] for name in plan.columns} for row in expected])


@given(st.lists(events, max_size=8), filters, st.randoms(use_true_random=False))
def test_the_order_of_rows_commutes(rows: list[Row], chosen: list[str], random: Any) -> None:
    """Guarantee: deriving after shuffling is shuffling after deriving."""
    plan = plan_of(ALL, *chosen)
    order = random.sample(range(len(rows)), len(rows))
    shuffled = derive(plan, batch_of(plan, [rows[i] for i in order]))
    tagged = {i: derive(plan, batch_of(plan, [rows[i]])).to_pylist() for i in order}
    assert plain(shuffled.to_pylist()) == plain([row for i in order for row in tagged[i]])


@given(st.lists(events, max_size=10), filters, ids)
def test_neighbours_stay_neighbours(rows: list[Row], chosen: list[str], unit: str | None) -> None:
    """Guarantee: without a unit's rows comes out what came out before, without that unit's rows: at distance one."""
    plan = plan_of(ALL, *chosen)
    whole = derive(plan, batch_of(plan, rows)).to_pylist()
    without = derive(plan, batch_of(plan, [row for row in rows if row["u"] != unit])).to_pylist()
    assert plain(without) == plain([row for row in whole if row["u"] != unit])


def differs(rows: Sequence[Row], *chosen: str) -> bool:
    """Whether what comes out differs from a row at a time, or does not come out."""
    plan = plan_of(ALL, *chosen)
    try:
        found = derive(plan, batch_of(plan, rows)).to_pylist()
    except (ValueError, IndexError, pa.ArrowInvalid):
        return True
    expected = [{name: row[name] for name in plan.columns} for row in map(by_hand, rows) if passes(row, chosen)]
    return plain(found) != plain(expected)


ROW: Row = {"t": MONDAY, "u": "u1", "s": "AB", "i": 404, "b": True, "x": 0.0}
TRICKY: dict[str, Row] = {
    "null": dict.fromkeys(ROW),
    "nan": ROW | {"x": math.nan},
    "edge": ROW | {"x": 2.5},
    "exact": ROW | {"i": 2**53 + 3},
    "sigma": ROW | {"s": "A\u03a3"},
    "Unicode 16": ROW | {"s": "\U00010d50"},
    "sunday": ROW | {"t": MONDAY - timedelta(hours=1)},
    "before 1970": ROW | {"t": datetime(1969, 12, 31, 23, 59, tzinfo=UTC)},
    "narrower": ROW | {"s": "\u212a\u2126"},
    "code point": ROW | {"s": "\u00c9\u00c9\u00c9"},
}


@pytest.mark.parametrize("name", TRICKY)
def test_what_is_tricky_is_right(name: str) -> None:
    """Each of the rows that the mutants below get wrong is right."""
    assert not differs([TRICKY[name], ROW], 'column = "x"\nnot_equals = 0.0')
    assert not differs([TRICKY[name], ROW])


def _bytes_cut(text: pa.Array, _: int, stop: int) -> pa.Array:
    return pc.binary_slice(text.cast(pa.binary()), 0, stop)


MUTANTS: list[tuple[str, str, object, str, Any]] = [
    ("NaN is a value", "nan", deriving, "_missing", lambda held: np.asarray(held.is_null())),
    ("a null is a value", "null", deriving, "_missing", lambda held: None),
    ("integers as floats", "exact", deriving, "_whole_edges", np.array),
    ("the week begins on Thursday", "sunday", deriving, "_THURSDAY", 0),
    ("no letter but ASCII", "code point", deriving, "lower", pc.ascii_lower),
    ("the library's letters", "Unicode 16", deriving, "lower", pc.utf8_lower),
    ("characters are bytes", "code point", pc, "utf8_slice_codeunits", _bytes_cut),
    ("what is moved is not measured", "narrower", lowering, "_widths", lambda points: np.ones(len(points), np.int64)),
]  # fmt: skip


@pytest.mark.parametrize(("row", "module", "name", "broken"), [m[1:] for m in MUTANTS], ids=[m[0] for m in MUTANTS])
def test_mutant_a_wrong_way_is_caught(
    monkeypatch: pytest.MonkeyPatch, row: str, module: object, name: str, broken: Any
) -> None:
    """Mutants: each breaks one step, and the comparison with a row at a time sees it."""
    monkeypatch.setattr(module, name, broken)
    assert differs([TRICKY[row], ROW], 'column = "x"\nnot_equals = 0.0') or differs([TRICKY[row], ROW])


def test_mutant_a_value_that_depends_on_the_batch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: an edge at the batch's own mean; the rows of one unit then move those of another."""
    plan = plan_of()
    rows = [ROW | {"u": "u1", "x": 0.5}, ROW | {"u": "u2", "x": 100.0}]

    def moved() -> bool:
        whole = derive(plan, batch_of(plan, rows)).to_pylist()
        return plain(derive(plan, batch_of(plan, rows[:1])).to_pylist()) != plain(whole[:1])

    assert not moved()

    def at_the_mean(derivation: Any, edges: Any, old: pa.Array) -> pa.Array:
        above = pc.greater_equal(old, pc.mean(old)).cast(pa.int64())
        return above if derivation.numbered else above.cast(pa.string())

    monkeypatch.setattr(deriving, "_bucketed", at_the_mean)
    assert moved()


def test_a_plan_without_derivations_sees_the_batch_itself() -> None:
    """What is not asked for costs nothing, and changes nothing."""
    plan = plan_of("")
    batch = batch_of(plan, [ROW])
    assert derive(plan, batch) is batch


def test_a_column_that_another_plan_reads_does_not_stand_in_for_a_derived_one() -> None:
    """A batch has the columns of all plans of the agent: one that is called as a derived column is not taken for it."""
    plan = plan_of('[[derive]]\ncolumn = "hour"\nfrom = "t"\ncalendar = "hour"\n')
    batch = batch_of(plan, [ROW | {"t": MONDAY + timedelta(hours=7)}]).append_column("hour", pa.array([99]))
    assert derive(plan, batch).column("hour").to_pylist() == [7]


def test_deriving_twice_is_deriving_once() -> None:
    """A preview derives once for itself and once on the agent's way: the same comes out."""
    plan = plan_of(ALL, 'column = "hour"\nat_least = 0')
    once = derive(plan, batch_of(plan, list(TRICKY.values())))
    assert plain(derive(plan, once).to_pylist()) == plain(once.to_pylist())


def test_a_derived_column_is_a_partition_and_a_metrics_column() -> None:
    """Rows are coded by a derived label, read by a derived number, and a filtered row is none: it is not counted."""
    more = """
[[derive]]
column = "band"
from = "x"
buckets = [0, 10]
[[derive]]
column = "step"
from = "x"
buckets = [0, 10]
numbered = true
[[filter]]
column = "b"
equals = true
[[partition]]
column = "band"
values = ["..0", "0..10", "10.."]
[[metric]]
name = "steps"
kind = "sum"
column = "step"
lower = 0
upper = 2
resolution = 1
"""
    plan = plan_of(more)
    rows = [ROW | {"x": x} for x in (-1.0, 3.0, 10.0, None)] + [ROW | {"b": None}]
    found = read_events(plan, plan_vectors(plan), batch_of(plan, rows))
    assert found.rows.cell.tolist() == [0, 1, 2]
    assert next(iter(found.rows.readings.values())).tolist() == [0, 1, 2]
    assert found.dropped == 1


def test_derived_keys_are_discovered() -> None:
    """A derived text is found in the data as a read one is: bounded, counted and shown above the threshold."""
    more = """
[[derive]]
column = "head"
from = "s"
first = 1
[[partition]]
column = "head"
discover = { delta = 1e-7 }
"""
    plan = plan_of(more)
    measurement = compile_plan(plan)
    bounding = measurement.bounding(b"a salt of some length")
    rows = [ROW | {"u": f"u{i}", "s": f"k{i}"} for i in range(500)] + [ROW | {"u": "v", "s": "z"}]
    bounding.add(read_events(plan, plan_vectors(plan), batch_of(plan, rows)).rows)
    noisy = measurement.release(bounding.blocks())
    assert noisy.keys is not None
    assert list(noisy.keys.texts) == ["k"]


def test_the_letters_are_those_of_unicode_3_2_for_ever() -> None:
    """Golden: what becomes of each character; another Python, Polars or Arrow does not change it."""
    pairs = [(point, int(small)) for point, small in enumerate(table()) if point != small]
    assert len(pairs) == GOLDEN_PAIRS
    assert hashlib.sha256(repr(pairs).encode()).hexdigest() == GOLDEN_LETTERS


def test_the_letters_are_simple_lower_case() -> None:
    """For every character that Unicode 3.2 had, Arrow's table of simple lower case says the same, but for one."""
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000 and ucd_3_2_0.category(chr(p)) != "Cn"]
    text = pa.array([chr(p) for p in points])
    told = [p for p, ours, theirs in zip(points, lower(text).to_pylist(), pc.utf8_lower(text).to_pylist(), strict=True) if ours != theirs]  # fmt: skip  # noqa: E501
    assert told == [0x130]


@given(st.lists(st.none() | st.text(letters, max_size=6) | st.text(max_size=6), max_size=8), st.integers(0, 2))
@example(["\u212a\u2126", "\u023a", None], 0)
def test_lower_case_is_letter_by_letter(texts: list[str | None], cut: int) -> None:
    """Guarantee: each text becomes what its letters become one by one, whatever their width, and a null stays."""
    found = lower(pa.array(texts, pa.string()).slice(cut))
    found.validate(full=True)
    assert found.to_pylist() == [None if text is None else lower_by_hand(text) for text in texts[cut:]]
