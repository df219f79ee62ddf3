"""Bounding: what is kept of a unit depends on that unit's rows and the window's salt, and on nothing else.

Samples are tested in test_samples.py, codes of ids in test_codes.py.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.privacy import bound, keys, packed, wide
from edge_agg.privacy.bound import Bounded, Bounding, Rows
from edge_agg.privacy.ids import Texts
from edge_agg.privacy.layout import Layout
from edge_agg.privacy.permutation import Keying, Permutation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SALT = b"a salt for tests"
N_CELLS = 6
SIZES = {"who": 1 << 16, "v": 4}
"""Readings: `who` names the unit, for the test's eyes only; `v` is a value, 4 where there is none."""

Unit = int | str
Limits = tuple[int, int]
Group = tuple[str, int]
"""A key and a cell."""


class Row(NamedTuple):
    """One row."""

    unit: Unit
    cell: int
    time_us: int
    v: int
    key: str = ""
    total: int = 0


class Kind(NamedTuple):
    """What a plan asks of bounding beyond its limits."""

    totals: bool = False
    discover: bool = False
    numbers: bool = False
    """Whether the keys it discovers are integers, in one public cell."""


PLAIN, TOTALS, KEYS, ALL = Kind(), Kind(totals=True), Kind(discover=True), Kind(totals=True, discover=True)
NUMBERS = Kind(discover=True, numbers=True)
NUMBERED = [0, 1, 2, 3, 2**17, 2**18 - 1, 2**18, 2**18 + 1, 2**40, 2**63 - 1, -1, -(2**63)]
"""Integer keys: those below 2**18 fit a word."""

ints = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**28, 2**40, 2**63 - 1])
texts = st.sampled_from(
    ["", "a", "b", "é", "日本", "\0", "a\0", "twelve bytes", "thirteen byte", "x" * 300, "x" * 299 + "y"]
)
small = st.integers(0, 3)


def rows_of_units(units: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    """Windows with few units, cells, keys, times and values, so that ties and overruns are common."""
    row = st.builds(
        Row,
        units,
        st.integers(0, N_CELLS - 1),
        small | st.just(-(2**63)),
        st.integers(0, SIZES["v"]),
        st.sampled_from(["", "k", "other", "a key of more than twelve bytes"]),
        st.integers(-3, 3) | st.just(2**31) | st.just(-(2**31)),
    )
    return st.lists(row, max_size=40)


windows = rows_of_units(ints) | rows_of_units(texts)
bounds = st.tuples(st.integers(1, 4), st.integers(1, 4))
kinds = st.sampled_from([PLAIN, TOTALS, KEYS, ALL, NUMBERS, NUMBERS._replace(totals=True)])


def who(unit: Unit) -> int:
    """A number for a unit that does not depend on other units."""
    return int.from_bytes(hashlib.sha256(repr(unit).encode()).digest()[:4]) % SIZES["who"]


def group_of(row: Row, kind: Kind) -> Group:
    """The key and the cell that a row has under a kind."""
    if kind.numbers:
        return str(NUMBERED[(len(row.key) * N_CELLS + row.cell) % len(NUMBERED)]), 0
    return row.key if kind.discover else "", row.cell


def as_rows(rows: Sequence[Row], kind: Kind = PLAIN) -> Rows:
    """Rows as the window hands them over."""
    names, cells = [group_of(row, kind)[0] for row in rows], [group_of(row, kind)[1] for row in rows]
    key = pa.array([int(name) for name in names], pa.int64()) if kind.numbers else pa.array(names, pa.string())
    return Rows(
        unit=pa.array([row.unit for row in rows], None if rows else pa.string()),
        cell=np.array(cells, dtype=np.int64),
        key=key if kind.discover else None,
        time_us=np.array([row.time_us for row in rows], dtype=np.int64),
        readings={
            "who": np.array([who(row.unit) for row in rows], dtype=np.int64),
            "v": np.array([row.v for row in rows], dtype=np.int64),
        },
        totals={"t": np.array([row.total for row in rows], dtype=np.int64)} if kind.totals else {},
    )


def window(limits: Limits, kind: Kind = PLAIN, **options: Any) -> Bounding:
    """An empty window."""
    defaults: dict[str, Any] = {"n_cells": 1 if kind.numbers else N_CELLS, "readings": SIZES, "salt": SALT}
    return Bounding(
        max_partitions=limits[0],
        max_rows=limits[1],
        totals=["t"] if kind.totals else [],
        discover=kind.discover,
        **(defaults | options),
    )


def filled(batches: Iterable[Sequence[Row]], limits: Limits, kind: Kind = PLAIN, **options: Any) -> Bounding:
    """A window that took some batches, merged after each."""
    state = window(limits, kind, **options)
    for batch in batches:
        state.add(as_rows(batch, kind))
        state._state.merge()
    return state


def bounded(batches: Iterable[Sequence[Row]], limits: Limits, kind: Kind = PLAIN) -> Bounded:
    """What is kept of some batches, merged after each."""
    return filled(batches, limits, kind).kept()


Kept = dict[int, dict[Group, tuple[Counter[int], int]]]
"""Of each unit and group: how often each value was kept, and the total."""


def kept_by_unit(result: Bounded) -> Kept:
    """A result without its order and its codes."""
    values: dict[int, dict[Group, Counter[int]]] = defaultdict(lambda: defaultdict(Counter))
    totals: Counter[tuple[int, Group]] = Counter()
    total = result.totals.get("t", np.zeros(len(result.cell), np.int64))
    for i in range(len(result.cell)):
        group = ("" if result.key is None else result.keys[result.key[i]], int(result.cell[i]))
        unit = int(result.readings["who"][i])
        values[unit][group][int(result.readings["v"][i])] += 1
        totals[unit, group] += int(total[i])
    return {
        unit: {group: (counts, totals[unit, group]) for group, counts in groups.items()}
        for unit, groups in values.items()
    }


def key_of(one: Unit) -> Any:
    """The keyed hash of an id or a key."""
    if isinstance(one, int):
        return Keying(SALT).of_integers(np.array([one]).view(np.uint64))
    return Keying(SALT).of_texts(pl.Series([one]))


def place(unit_key: Any, group: Group, kind: Kind) -> tuple[Any, ...]:
    """Where a group stands among a unit's."""
    permutation, cell = Permutation(2**18 if kind.numbers else N_CELLS), np.array([group[1]], np.uint32)
    if not kind.discover:
        return (int(permutation.place(cell, unit_key)[0]),)
    if not kind.numbers:
        hashed = keys.place_by_hash(key_of(group[0]), cell, unit_key, keys._PLACE_BITS)
        return int(hashed[0]), group[0].encode(), group[1]
    number = int(group[0])
    if 0 <= number < 2**18:
        return int(permutation.place(np.array([number]), unit_key)[0]), number
    return int(keys.place_by_hash(key_of(number), cell, unit_key, permutation.bits)[0]), number


def reference(rows: Sequence[Row], limits: Limits, kind: Kind = PLAIN) -> Kept:
    """The rule, unit by unit, in plain Python; only the keyed permutation and mixing are borrowed."""
    layout = Layout(SIZES, Permutation(2**18 if kind.numbers else N_CELLS).bits)
    kept: Kept = {}
    for unit in {row.unit for row in rows}:
        groups: dict[Group, list[Row]] = defaultdict(list)
        for row in rows:
            if row.unit == unit:
                groups[group_of(row, kind)].append(row)
        unit_key = key_of(unit)

        def priority(row: Row, unit_key: Any = unit_key) -> tuple[int, ...]:
            one = as_rows([row])
            return tuple(int(word[0]) for word in layout.encode(unit_key, one.time_us, one.readings))

        chosen = sorted(groups, key=lambda group, unit_key=unit_key: place(unit_key, group, kind))[: limits[0]]  # type: ignore[misc]
        kept[who(unit)] = {
            group: (
                Counter(row.v for row in sorted(groups[group], key=priority)[: limits[1]]),
                sum(row.total for row in groups[group]) if kind.totals else 0,
            )
            for group in chosen
        }
    return kept


def cut(rows: Sequence[Row], data: st.DataObject) -> list[Sequence[Row]]:
    """The same rows in another order, in up to five batches."""
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    return [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, len(rows)])]


@settings(max_examples=100)
@given(rows=windows, limits=bounds, kind=kinds, data=st.data())
def test_order_and_cut_of_rows_do_not_matter(rows: list[Row], limits: Limits, kind: Kind, data: st.DataObject) -> None:
    """Any order of rows, in any micro-batches, with a merge after each: the same rows are kept."""
    assert kept_by_unit(bounded(cut(rows, data), limits, kind)) == kept_by_unit(bounded([rows], limits, kind))


@settings(max_examples=100)
@given(rows=windows, limits=bounds, kind=kinds)
def test_the_kernel_equals_the_rule(rows: list[Row], limits: Limits, kind: Kind) -> None:
    """Sorting and ranking keeps what the rule of privacy.md keeps, unit by unit, with the totals of all rows."""
    assert kept_by_unit(bounded([rows], limits, kind)) == reference(rows, limits, kind)


@settings(max_examples=50)
@given(rows=windows, limits=bounds, kind=kinds)
def test_a_unit_is_kept_as_if_it_were_alone(rows: list[Row], limits: Limits, kind: Kind) -> None:
    """No unit moves another: what is kept of each is what is kept when it comes alone."""
    alone: Kept = {}
    for unit in {row.unit for row in rows}:
        alone |= kept_by_unit(bounded([[row for row in rows if row.unit == unit]], limits, kind))
    assert kept_by_unit(bounded([rows], limits, kind)) == alone


@settings(max_examples=50)
@given(rows=windows, limits=bounds, kind=kinds, data=st.data())
def test_units_can_be_left_out(rows: list[Row], limits: Limits, kind: Kind, data: st.DataObject) -> None:
    """What is kept without some units is what is kept had they never come; ids that never came change nothing."""
    out = data.draw(st.lists(ints if rows and isinstance(rows[0].unit, int) else texts, max_size=4, unique=True))
    state = filled(cut(rows, data), limits, kind)
    left, without = [row for row in rows if row.unit not in out], pa.array(out, None if out else pa.string())
    result, expected = state.kept(without=without), bounded([left], limits, kind)
    assert kept_by_unit(result) == kept_by_unit(expected)
    assert result.keys == expected.keys
    assert kept_by_unit(state.kept()) == kept_by_unit(bounded([rows], limits, kind))


@given(rows=windows, kind=kinds, data=st.data())
def test_the_units_are_those_with_kept_rows(rows: list[Row], kind: Kind, data: st.DataObject) -> None:
    """Each id once, in an order that does not tell when it came."""
    came = filled(cut(rows, data), (2, 2), kind).units().to_pylist()
    assert sorted(came, key=repr) == sorted({row.unit for row in rows}, key=repr)
    assert came == filled([rows], (2, 2), kind).units().to_pylist()


def violations(result: Bounded, rows: Sequence[Row], limits: Limits, kind: Kind = PLAIN) -> list[str]:
    """Every way in which a result breaks the bounds."""
    found, kept = [], kept_by_unit(result)
    key = np.zeros(len(result.cell), np.int64) if result.key is None else result.key
    firsts = Counter[tuple[int, int, int]]()
    for unit, k, cell, first in zip(result.unit, key, result.cell, result.first, strict=True):
        firsts[int(unit), int(k), int(cell)] += int(first)
    if set(firsts.values()) - {1}:
        found.append("not exactly one first row of a unit in a cell")
    if any((result.totals["t"][~result.first] != 0) if kind.totals else []):
        found.append("a total beside the first row")
    changes = result.unit[1:] != result.unit[:-1]
    if len(result.unit) and changes.sum() + 1 != len(np.unique(result.unit)):
        found.append("a unit's rows do not lie together")
    return [*found, *excesses(kept, rows, limits, kind)]


def excesses(kept: Kept, rows: Sequence[Row], limits: Limits, kind: Kind) -> list[str]:
    """Every way in which a unit keeps not min(L0, touched) of its cells, and min(Li, there) rows of each."""
    came: dict[int, dict[Group, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        came[who(row.unit)][group_of(row, kind)].append(row)
    found = ["units that never came"] if set(kept) - set(came) else []
    for unit, groups in came.items():
        there = kept.get(unit, {})
        if len(there) != min(limits[0], len(groups)):
            found.append("too many or too few cells")
        for group, (values, total) in there.items():
            if values - Counter(row.v for row in groups[group]):
                found.append("rows that never came")
            if values.total() != min(limits[1], len(groups[group])):
                found.append("too many or too few rows")
            if kind.totals and total != sum(row.total for row in groups[group]):
                found.append("a total that is not whole")
    return found


@settings(max_examples=100)
@given(rows=windows, limits=bounds, kind=kinds, data=st.data())
def test_bounds_hold_and_nothing_is_wasted(rows: list[Row], limits: Limits, kind: Kind, data: st.DataObject) -> None:
    """Of each unit exactly min(L0, touched) cells and min(Li, there) rows, one of them first, none invented.

    Hence everything is kept of a unit that is within its bounds.
    """
    assert violations(bounded(cut(rows, data), limits, kind), rows, limits, kind) == []


MANY = [
    Row(unit, cell, time, time, f"key {time % 2} of two", unit + time)
    for unit in range(20)
    for cell in range(N_CELLS)
    for time in range(4)
]


def broken_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Bounding.__init__

    def unbounded(self: Bounding, **options: Any) -> None:
        honest(self, **options | {"max_partitions": 2**40, "max_rows": 2**40})

    monkeypatch.setattr(Bounding, "__init__", unbounded)


def broken_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (packed, wide, bound):
        monkeypatch.setattr(module, "starts", lambda keys: np.arange(len(keys)) == 0)


def broken_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Permutation, "place", lambda self, cell, key: (cell // 2).astype(np.uint32))


def broken_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed.Packed, "_sorted", lambda self: self._rows[: self.size])
    monkeypatch.setattr(wide.Wide, "_order", lambda self, rows: np.arange(len(rows.unit)))


def broken_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "_whole", lambda total, begins: total)


MUTANTS: list[tuple[Kind, Callable[[pytest.MonkeyPatch], None]]] = [
    *itertools.product([PLAIN, TOTALS, KEYS], [broken_truncation, broken_starts, broken_order]),
    (PLAIN, broken_permutation),
    (TOTALS, broken_permutation),
    (TOTALS, broken_totals),
]


@pytest.mark.parametrize(("kind", "break_it"), MUTANTS)
def test_mutants_of_the_kernel_are_caught(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Mutants: nothing truncated; runs not told apart; rows unsorted; cells that collide; totals of kept rows only."""
    rows = MANY[::7] + MANY
    assert violations(bounded([rows], (2, 3), kind), rows, (2, 3), kind) == []
    break_it(monkeypatch)
    assert violations(bounded([rows], (2, 3), kind), rows, (2, 3), kind) != []


def test_mutant_truncation_by_arrival_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no priority, so that what is kept hangs on the order of rows."""

    def by_arrival(self: Layout, key: Any, time_us: Any, readings: Any) -> list[Any]:
        word = readings["who"] | (readings["v"] << 17) | (np.arange(len(key)) << 20)
        return [word.astype(np.uint64)]

    monkeypatch.setattr(Layout, "encode", by_arrival)
    assert kept_by_unit(bounded([MANY], (2, 2))) != kept_by_unit(bounded([MANY[::-1]], (2, 2)))


def wide_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no row fitted one word."""
    monkeypatch.setattr("edge_agg.privacy.layout._LEAST_UNIT_BITS", 64)


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one word had room for eight units only."""
    honest = Layout.__init__

    def init(self: Layout, readings: Any, place_bits: int) -> None:
        honest(self, readings, place_bits)
        self.unit_bits = 3

    monkeypatch.setattr(Layout, "__init__", init)


@pytest.mark.parametrize("forced", [wide_only, narrow])
@pytest.mark.parametrize("kind", [int, str, lambda unit: 2**40 + unit])
def test_columns_keep_what_packed_words_keep(
    monkeypatch: pytest.MonkeyPatch, forced: Callable[[pytest.MonkeyPatch], None], kind: Callable[[int], Unit]
) -> None:
    """Row for row: from the start, and where a window outgrows its words."""
    rows = [row._replace(unit=kind(int(row.unit))) for row in MANY]
    batches = [rows[i::5] for i in range(5)]
    kept = kept_by_unit(bounded(batches, (2, 3)))
    forced(monkeypatch)
    state = filled(batches, (2, 3))
    assert isinstance(state._state, wide.Wide)
    assert kept_by_unit(state.kept()) == kept == kept_by_unit(bounded([rows[::-1]], (2, 3)))


@pytest.mark.parametrize("largest", [0, 19, 2**20 - 1, 2**20, 2**28 - 1])
def test_short_words_are_sorted_as_long_ones_are(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Words that fit 32 bits are sorted in 32: that changes nothing, at either side of the limit."""
    unit = pa.array([min(int(row.unit), 1) * largest for row in MANY])
    zero = np.zeros(len(MANY), np.int64)
    cell = np.array([row.cell for row in MANY])

    def kept() -> list[tuple[int, int, bool]]:
        state = window((2, 3), readings={})
        for part in (slice(0, 200), slice(200, None)):
            state.add(Rows(unit=unit[part], cell=cell[part], key=None, time_us=zero[part], readings={}, totals={}))
            state._state.merge()
        result = state.kept()
        return list(zip(result.unit.tolist(), result.cell.tolist(), result.first.tolist(), strict=True))

    short = kept()
    monkeypatch.setattr(packed, "_NARROW_BITS", 0)
    assert kept() == short
    assert len(short) == 2 * 3 * len(set(unit.to_pylist()))


def test_readings_that_fill_words_come_back() -> None:
    """A plan whose readings do not fit one word, or two, is bounded as well, and each code comes back as it was."""
    sizes = {f"r{i}": 2**33 + i for i in range(4)} | {"flag": 1, "row": 3}
    state, rows = window((1, 2), readings=sizes), 3
    given_codes = {name: np.array([size, 0, 1], np.int64) for name, size in sizes.items()} | {"row": np.arange(rows)}
    zero = np.zeros(rows, np.int64)
    state.add(Rows(unit=pa.array(["a", "b", "c"]), cell=zero, key=None, time_us=zero, readings=given_codes, totals={}))
    result = state.kept()
    for name, given_code in given_codes.items():
        assert result.readings[name].tolist() == given_code[result.readings["row"]].tolist()


def test_integers_that_outgrow_their_own_codes_are_recoded() -> None:
    """Ids that begin small, then large or negative: the same is kept as if they had come in any other order."""
    rows = [row._replace(unit=unit) for row in MANY for unit in [[0, 3, -1, 2**28, 2**63 - 1][int(row.unit) % 5]]]
    batches = [[row for row in rows if row.unit == unit] for unit in (0, 3, -1, 2**28, 2**63 - 1)]
    for order in (batches, batches[::-1], [rows]):
        assert kept_by_unit(bounded(order, (2, 3))) == reference(rows, (2, 3))


def test_keys_that_tie_are_told_apart_by_their_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two places for all keys, which of them are kept does not hang on the order in which they came."""
    monkeypatch.setattr(keys, "_PLACE_BITS", 1)
    rows = [
        Row(unit, cell, 0, 0, key) for unit in range(9) for cell in (0, 1) for key in ("b", "a", "d", "c", "long " * 9)
    ]
    for limits in ((1, 1), (3, 1), (4, 2)):
        expected = reference(rows, limits, KEYS)
        assert kept_by_unit(bounded([rows], limits, KEYS)) == expected
        assert kept_by_unit(bounded([[row] for row in reversed(rows)], limits, KEYS)) == expected


def test_mutant_keys_that_tie_by_arrival_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the code of a key, which others' rows decide on, stands for its text."""
    monkeypatch.setattr(keys, "_PLACE_BITS", 1)
    monkeypatch.setattr(keys.Keys, "ranks", lambda self: np.arange(self.bound))
    rows = [Row(unit, 0, 0, 0, key) for unit in range(9) for key in ("b", "a", "d", "c")]
    assert kept_by_unit(bounded([rows], (2, 1), KEYS)) != kept_by_unit(bounded([rows[::-1]], (2, 1), KEYS))


def numbered(numbers: Sequence[int]) -> list[Row]:
    """Three units, each with a row of each of some integer keys; the units differ in their keys' places."""
    return [
        Row(unit, cell, 0, 0, "x" * length)
        for unit in range(3)
        for number in numbers
        for length, cell in [divmod(NUMBERED.index(number), N_CELLS)]
    ]


def test_integer_keys_fit_a_word_until_one_does_not() -> None:
    """A large key sends the window to columns, and what is kept of those who never had one stays as it was."""
    few, all_ = numbered(NUMBERED[:6]), numbered(NUMBERED)
    small = filled([few], (2, 1), NUMBERS)
    assert isinstance(small._state, packed.Packed)
    expected = kept_by_unit(small.kept())
    small.add(as_rows([row._replace(unit=9) for row in all_[6:12]], NUMBERS))
    assert isinstance(small._state, wide.Wide)
    after = kept_by_unit(small.kept())
    assert {unit: after[unit] for unit in expected} == expected == reference(few, (2, 1), NUMBERS)


def test_mutant_places_that_hang_on_how_rows_are_held_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: in columns, integers get their places by hash, though they had others as words."""
    rows = numbered(NUMBERED[:7])
    batches = [[row for row in rows if row.key != "x"], [row for row in rows if row.key == "x"]]

    def agree() -> bool:
        return kept_by_unit(bounded(batches, (2, 1), NUMBERS)) == kept_by_unit(bounded([rows], (2, 1), NUMBERS))

    def by_hash(self: keys.Keys, key: pa.Array, cell: Any, unit_key: Any) -> Any:
        return keys.place_by_hash(self._codes.encode(key)[1], cell, unit_key, 18)

    assert agree()
    monkeypatch.setattr(keys.Keys, "place", by_hash)
    assert not agree()


def test_keys_of_no_kept_row_are_not_listed() -> None:
    """A unit brings at most `max_partitions` keys into the list, however many it sends: each could pass a threshold."""
    rows = [Row("u", 0, 0, 0, f"key {i}") for i in range(50)]
    result = bounded([rows], (3, 1), KEYS)
    assert len(result.keys) == 3
    assert list(result.keys) == sorted(result.keys)
    assert result.key is not None
    assert sorted(result.key) == [0, 1, 2]


def test_without_units_every_row_is_kept() -> None:
    """Event level: each row is its own unit's only one, with its own readings, total and key."""
    state = window((1, 1), ALL)
    for batch in (MANY[:100], MANY[100:], []):
        rows = as_rows(batch, ALL)
        state.add(
            Rows(
                unit=None,
                cell=rows.cell,
                key=rows.key,
                time_us=rows.time_us,
                readings=rows.readings,
                totals=rows.totals,
            )
        )
    result = state.kept(without=pa.array([3]))
    assert result.first.all()
    assert len(np.unique(result.unit)) == len(MANY) == state.rows
    assert result.key is not None
    assert Counter(
        zip(
            result.cell.tolist(),
            result.readings["who"].tolist(),
            result.readings["v"].tolist(),
            [result.keys[k] for k in result.key],
            result.totals["t"].tolist(),
            strict=True,
        )
    ) == Counter((row.cell, who(row.unit), row.v, row.key, row.total) for row in MANY)
    assert len(state.units()) == 0


@pytest.mark.parametrize("kind", [PLAIN, ALL])
def test_an_empty_window_keeps_nothing(kind: Kind) -> None:
    """No rows, no cells; and an empty batch changes nothing."""
    for state in (window((1, 1), kind), filled([[], []], (1, 1), kind)):
        result = state.kept()
        assert len(result.cell) == len(result.first) == len(result.readings["v"]) == len(result.unit) == 0
        assert len(state.units()) == len(result.keys) == state.rows == 0
    assert kept_by_unit(bounded([[], MANY, []], (2, 2), kind)) == kept_by_unit(bounded([MANY], (2, 2), kind))


def test_a_batch_is_cut_and_a_unit_may_be_longer_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that suit the cache do not show: neither those of a batch, nor those of the state."""
    rows = [*MANY, *(Row(7, time % N_CELLS, time, time % 5) for time in range(300))]
    expected = reference(rows, (2, 3))
    for size in (1, 3, 64):
        monkeypatch.setattr(bound, "BATCH_ROWS", size)
        monkeypatch.setattr(packed, "BLOCK_ROWS", size)
        assert kept_by_unit(bounded([rows], (2, 3))) == expected
        blocks = list(filled([rows], (2, 3)).blocks())
        assert sum(len(np.unique(block.unit)) for block in blocks) == 20


@pytest.mark.parametrize("kind", [PLAIN, ALL])
def test_the_state_is_bounded_by_what_is_kept(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    """However many rows one unit sends, the state holds what may be kept and the rows that wait for a merge."""
    monkeypatch.setattr(bound, "MERGE_ROWS", 100)
    state = window((2, 3), kind)
    held = []
    for time in range(600):
        state.add(as_rows([Row("u", time % N_CELLS, time, time % 5)], kind))
        held.append(state.rows)
    assert max(held) <= 100 + 2 * 3
    assert len(state.kept().cell) == 2 * 3
    assert state.rows == 2 * 3


@pytest.mark.parametrize("kind", [str, lambda unit: unit + 2**40, lambda unit: unit])
def test_more_units_than_the_overflow_proof_allows_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[[int], Unit]
) -> None:
    """The proof that no sum wraps counts units, so bounding does too; at event level it counts rows."""
    monkeypatch.setattr(bound, "MAX_UNITS", 3)
    rows = [row._replace(unit=kind(int(row.unit))) for row in MANY]
    assert bounded([rows[: 4 * N_CELLS * 3]], (1, 1)).first.sum() == 3
    with pytest.raises(OverflowError, match="more privacy units"):
        bounded([rows[: 4 * N_CELLS * 4]], (1, 1))
    state, batch = window((1, 1)), as_rows(rows[:2])
    alone = Rows(unit=None, cell=batch.cell, key=None, time_us=batch.time_us, readings=batch.readings, totals={})
    state.add(alone)
    with pytest.raises(OverflowError, match="more rows"):
        state.add(alone)


@pytest.mark.parametrize("salt", [b"", b"short", bytes(65)])
def test_a_salt_that_is_none_is_refused(salt: bytes) -> None:
    """An empty key would make the sample of a unit public."""
    with pytest.raises(ValueError, match="salt"):
        window((1, 1), salt=salt)


def test_one_salt_gives_one_sample() -> None:
    """A restart in the middle of a window keeps the same rows; another salt keeps others."""
    assert kept_by_unit(bounded([MANY], (2, 2))) == kept_by_unit(bounded([MANY], (2, 2)))
    assert kept_by_unit(bounded([MANY], (2, 2))) != kept_by_unit(
        filled([MANY], (2, 2), salt=b"another one, " * 2).kept()
    )


def test_rows_can_be_chosen() -> None:
    """`take` keeps all columns in step."""
    result = bounded([MANY], (2, 2), ALL)
    index = np.flatnonzero(result.cell % 2 == 0)[::-1]
    chosen = result.take(index)
    assert chosen.key is not None
    assert result.key is not None
    for column in ("cell", "key", "unit", "first"):
        assert (getattr(chosen, column) == getattr(result, column)[index]).all()
    assert (chosen.readings["v"] == result.readings["v"][index]).all()
    assert (chosen.totals["t"] == result.totals["t"][index]).all()


def test_mutant_units_told_apart_by_their_keys_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: two bits of a hash stand for the unit, ids never compared; people then share one bound."""
    rows = [row._replace(unit=str(row.unit)) for row in MANY]
    honest = Keying.of_texts
    monkeypatch.setattr(Keying, "of_texts", lambda self, ids: honest(self, ids) % np.uint64(4))
    assert violations(bounded([rows], (2, 3)), rows, (2, 3)) == []
    monkeypatch.setattr(Texts, "differ", lambda self, codes, asked: np.zeros(len(asked), np.bool_))
    assert violations(bounded([rows], (2, 3)), rows, (2, 3)) != []
