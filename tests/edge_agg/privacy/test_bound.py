"""Bounding: what is kept of a unit depends on that unit's rows and the window's salt, and on nothing else.

Distribution tests use fixed salts and a false-alarm rate of 1e-6 each: they pass or fail once and for all.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from edge_agg.privacy import bound
from edge_agg.privacy.bound import Bounded, Bounding, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FALSE_ALARM = 1e-6
SALT = b"a salt for tests"
N_CELLS = 6

Unit = int | str


class Row(NamedTuple):
    """One row, its two values included: `who` names the unit, `v` is a reading."""

    unit: Unit
    cell: int
    time_us: int
    v: int


ints = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 2**63 - 1])
texts = st.sampled_from(["", "a", "b", "é", "日本", "\0", "a\0", "x" * 300])
small = st.integers(0, 3)


def rows_of_units(units: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Row]]:
    """Windows with few units, cells, times and values, so that ties and overruns are common."""
    row = st.builds(Row, units, st.integers(0, N_CELLS - 1), small | st.just(-(2**63)), small | st.just(2**63 - 1))
    return st.lists(row, max_size=40)


windows = rows_of_units(ints) | rows_of_units(texts)
bounds = st.tuples(st.integers(1, 4), st.integers(1, 4))


def as_rows(rows: Sequence[Row], codes: dict[Unit, int]) -> Rows:
    """Rows as the window hands them over; `who` carries the unit through, for the test's eyes only."""
    return Rows(
        unit=pa.array([row.unit for row in rows]),
        cell=np.array([row.cell for row in rows], dtype=np.int64),
        time_us=np.array([row.time_us for row in rows], dtype=np.int64),
        values={
            "who": np.array([codes[row.unit] for row in rows], dtype=np.int64),
            "v": np.array([row.v for row in rows], dtype=np.int64),
        },
    )


def codes_of(rows: Sequence[Row]) -> dict[Unit, int]:
    """A number for each unit that does not depend on the order of rows: what is compared are equal numbers."""
    units = sorted({row.unit for row in rows}, key=lambda unit: (str(type(unit)), unit))
    return {unit: int.from_bytes(hashlib.sha256(repr(unit).encode()).digest()[:4]) for unit in units}


def bounded(
    batches: Sequence[Sequence[Row]], limits: tuple[int, int], salt: bytes = SALT, n_cells: int = N_CELLS
) -> Bounded:
    """What is kept of some batches, merged after each."""
    codes = codes_of([row for batch in batches for row in batch])
    state = Bounding(max_partitions=limits[0], max_rows=limits[1], n_cells=n_cells, names=("who", "v"), salt=salt)
    for batch in batches:
        state.add(as_rows(batch, codes))
        state._merge()
    return state.kept()


Kept = dict[int, Counter[tuple[int, int]]]


def kept_by_unit(result: Bounded) -> Kept:
    """Of each unit: how often each (cell, value) was kept."""
    kept: Kept = defaultdict(Counter)
    for cell, who, v in zip(result.cell, result.values["who"], result.values["v"], strict=True):
        kept[int(who)][int(cell), int(v)] += 1
    return dict(kept)


def reference(rows: Sequence[Row], limits: tuple[int, int], salt: bytes = SALT) -> Kept:
    """The rule, unit by unit, in plain Python; only the keyed permutation and mixing are borrowed."""
    codes, by_unit = codes_of(rows), defaultdict(list)
    for row in rows:
        by_unit[row.unit].append(row)
    kept: Kept = {}
    for unit, mine in by_unit.items():
        state = Bounding(max_partitions=1, max_rows=1, n_cells=N_CELLS, names=(), salt=salt)
        key = bound._mix(bound._hash(pa.array([unit]), state._seed) ^ state._key)

        def priority(row: Row, key: Any = key) -> int:
            mixed = key
            for number in (row.time_us, codes[row.unit], row.v):
                mixed = bound._mix(mixed ^ np.array([number % 2**64], dtype=np.uint64))
            return int(mixed[0])

        def place(cell: int, key: Any = key) -> int:
            return int(bound._permute(np.array([cell], dtype=np.uint64), key, 12)[0])

        cells = sorted({row.cell for row in mine}, key=place)[: limits[0]]
        kept[codes[unit]] = Counter(
            (row.cell, row.v)
            for cell in cells
            for row in sorted((row for row in mine if row.cell == cell), key=lambda row: (priority(row), row.v))[
                : limits[1]
            ]
        )
    return kept


@settings(max_examples=50)
@given(rows=windows, limits=bounds, data=st.data())
def test_order_and_cut_of_rows_do_not_matter(rows: list[Row], limits: tuple[int, int], data: st.DataObject) -> None:
    """Any order of rows, in any micro-batches, with a merge after each: the same rows are kept."""
    shuffled = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    batches = [shuffled[a:b] for a, b in itertools.pairwise([0, *cuts, len(rows)])]
    assert kept_by_unit(bounded(batches, limits)) == kept_by_unit(bounded([rows], limits))


@settings(max_examples=50)
@given(rows=windows, limits=bounds)
def test_the_kernel_equals_the_rule(rows: list[Row], limits: tuple[int, int]) -> None:
    """One sort over packed keys keeps what the rule of privacy.md keeps, unit by unit."""
    assert kept_by_unit(bounded([rows], limits)) == reference(rows, limits)


@settings(max_examples=50)
@given(rows=windows, limits=bounds)
def test_a_unit_is_kept_as_if_it_were_alone(rows: list[Row], limits: tuple[int, int]) -> None:
    """No unit moves another: what is kept of each is what is kept when it comes alone."""
    alone: Kept = {}
    for unit in {row.unit for row in rows}:
        alone |= kept_by_unit(bounded([[row for row in rows if row.unit == unit]], limits))
    assert kept_by_unit(bounded([rows], limits)) == alone


def violations(result: Bounded, rows: Sequence[Row], limits: tuple[int, int]) -> list[str]:
    """Every way in which a result breaks the bounds."""
    found = []
    kept, firsts = kept_by_unit(result), Counter[tuple[int, int]]()
    for cell, who, first in zip(result.cell, result.values["who"], result.first, strict=True):
        firsts[int(who), int(cell)] += int(first)
    if set(firsts.values()) - {1}:
        found.append("not exactly one first row of a unit in a cell")
    came: Kept = defaultdict(Counter)
    codes = codes_of(rows)
    for row in rows:
        came[codes[row.unit]][row.cell, row.v] += 1
    for who, mine in came.items():
        there, cells = kept.get(who, Counter()), {cell for cell, _ in mine}
        held = Counter(cell for cell, _ in there.elements())
        wanted = {cell: min(limits[1], sum(n for (c, _), n in mine.items() if c == cell)) for cell in cells}
        if there - mine:
            found.append("rows that never came")
        if len(held) != min(limits[0], len(cells)):
            found.append("too many or too few cells")
        if any(n != wanted[cell] for cell, n in held.items()):
            found.append("too many or too few rows")
    return found


@settings(max_examples=50)
@given(rows=windows, limits=bounds)
def test_bounds_hold_and_nothing_is_wasted(rows: list[Row], limits: tuple[int, int]) -> None:
    """Of each unit exactly min(L0, touched) cells and min(Li, there) rows, one of them first, none invented.

    Hence everything is kept of a unit that is within its bounds.
    """
    assert violations(bounded([rows], limits), rows, limits) == []


MANY = [Row(unit, cell, time, time) for unit in range(20) for cell in range(N_CELLS) for time in range(4)]


def broken_take(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Bounding._merge

    def merge(self: Bounding) -> None:
        self._max_partitions = self._max_rows = 2**40
        honest(self)

    monkeypatch.setattr(Bounding, "_merge", merge)


def broken_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "_starts", lambda keys: np.arange(len(keys)) == 0)


def broken_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "_permute", lambda cell, unit_hash, bits: cell // np.uint64(2))


def broken_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bounding, "_order", lambda self, keyed, unit: np.arange(len(unit)))


@pytest.mark.parametrize("break_it", [broken_take, broken_starts, broken_permutation, broken_order])
def test_mutants_of_the_kernel_are_caught(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Mutants: nothing truncated; runs not told apart; cells that collide; rows unsorted."""
    rows = MANY[::7] + MANY
    assert violations(bounded([rows], (2, 3)), rows, (2, 3)) == []
    break_it(monkeypatch)
    assert violations(bounded([rows], (2, 3)), rows, (2, 3)) != []


def test_mutant_a_cell_sample_that_ignores_the_unit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: every unit keeps its lowest cells; uniformity fails."""
    monkeypatch.setattr(bound, "_permute", lambda cell, unit_hash, bits: cell)
    assert uniform_p(kept_cells(2_000, [0, 1, 2, 3], 1, n_cells=4), 4) < FALSE_ALARM


def test_mutant_a_row_sample_by_time_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the priority of a row is its time; which rows are kept is then no sample."""
    monkeypatch.setattr(bound, "_mix", lambda x: x & np.uint64(0xFFFF))
    assert stats.chisquare(kept_rows(2_000, 5, 2)).pvalue < FALSE_ALARM


def test_mutant_truncation_by_arrival_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: equal keys everywhere, so that what is kept hangs on the order of rows."""
    monkeypatch.setattr(Bounding, "_order", lambda self, keyed, unit: np.lexsort((keyed.place, unit)))
    forward, backward = bounded([MANY], (2, 2)), bounded([MANY[::-1]], (2, 2))
    assert kept_by_unit(forward) != kept_by_unit(backward)


def kept_cells(
    n_units: int, cells: Sequence[int], limit: int, n_cells: int, salt: bytes = SALT
) -> np.ndarray[Any, Any]:
    """Which cells each unit keeps when all touch the same ones: int[n_units, limit], indices into `cells`, sorted."""
    state = Bounding(max_partitions=limit, max_rows=1, n_cells=n_cells, names=("who",), salt=salt)
    who = np.repeat(np.arange(n_units), len(cells))
    zero = np.zeros(len(who), dtype=np.int64)
    cell = np.tile(np.array(cells, dtype=np.int64), n_units)
    state.add(Rows(unit=pa.array(who), cell=cell, time_us=zero, values={"who": who}))
    result = state.kept()
    order = np.lexsort((result.cell, result.values["who"]))
    return np.searchsorted(np.array(cells), result.cell[order]).reshape(n_units, limit)


def uniform_p(kept: np.ndarray[Any, Any], n: int) -> float:
    """The p-value of "every set of that size, out of n, is kept equally often", by chi-squared."""
    sets = itertools.combinations(range(n), kept.shape[1])
    counts = Counter(map(tuple, kept.tolist()))
    return float(stats.chisquare([counts[chosen] for chosen in sets]).pvalue)


SPREADS = [
    (2, [0, 1]),
    (5, [0, 1, 2, 3, 4]),
    (13, [1, 3, 4, 12]),
    (100, [0, 32, 64, 96]),
    (4096, [0, 1, 2048, 4095]),
    (100_000, [0, 1, 65_536, 99_999]),
    (100_000, [0, 32_768, 65_536, 98_304]),
]


@pytest.mark.parametrize(("n_cells", "cells"), SPREADS)
def test_each_cell_is_kept_equally_often(n_cells: int, cells: list[int]) -> None:
    """A unit that touches k cells and may keep one keeps each with probability 1/k, wherever they lie."""
    assert uniform_p(kept_cells(10_000, cells, 1, n_cells), len(cells)) > FALSE_ALARM


@pytest.mark.parametrize(("n_cells", "cells"), SPREADS[1:])
def test_each_pair_of_cells_is_kept_equally_often(n_cells: int, cells: list[int]) -> None:
    """A unit that may keep two cells keeps each pair equally often: no two cells stick together."""
    assert uniform_p(kept_cells(10_000, cells, 2, n_cells), len(cells)) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize(("n_cells", "cells"), [(5, [0, 1, 2, 3, 4]), (20, list(range(10))), (100_000, [0, 1, 2, 3])])
def test_samples_of_cells_are_uniform_at_scale(n_cells: int, cells: list[int], limit: int) -> None:
    """The same for 200,000 units, where an unevenness of about 2 % would show."""
    assert uniform_p(kept_cells(200_000, cells, limit, n_cells), len(cells)) > FALSE_ALARM


def test_mutant_too_few_rounds_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: one round of the permutation on no more bits than the cells need; pairs stick together."""
    monkeypatch.setattr(bound, "_ROUNDS", 1)
    monkeypatch.setattr(bound, "_LEAST_BITS", 1)
    assert uniform_p(kept_cells(10_000, [0, 1, 2, 3, 4], 2, 5), 5) < FALSE_ALARM


def kept_rows(n_units: int, there: int, limit: int) -> np.ndarray[Any, Any]:
    """How often each of a unit's rows in one cell is kept, by its time; scaled so that chi-squared applies."""
    state = Bounding(max_partitions=1, max_rows=limit, n_cells=1, names=("v",), salt=SALT)
    unit = np.repeat(np.arange(n_units), there)
    row = np.tile(np.arange(there), n_units)
    zero = np.zeros(len(unit), dtype=np.int64)
    state.add(Rows(unit=pa.array(unit), cell=zero, time_us=row * 3_600_000_000, values={"v": row}))
    counts = np.bincount(state.kept().values["v"], minlength=there)
    assert counts.sum() == n_units * limit
    # Kept together, `limit` of `there` vary less than draws with replacement: by (there - limit) / (there - 1).
    mean = n_units * limit / there
    scaled: np.ndarray[Any, Any] = mean + (counts - mean) * np.sqrt((there - 1) / (there - limit))
    return scaled


@pytest.mark.parametrize(("there", "limit"), [(2, 1), (5, 2), (10, 9)])
def test_each_row_is_kept_equally_often(there: int, limit: int) -> None:
    """A row's chance to be kept does not hang on its time or value."""
    assert stats.chisquare(kept_rows(10_000, there, limit)).pvalue > FALSE_ALARM


def test_the_salt_changes_the_sample() -> None:
    """What a unit keeps in one window says nothing about what it keeps in the next: the pair is uniform too."""
    first, second = (kept_cells(20_000, range(5), 1, 5, salt)[:, 0] for salt in (b"window one" * 2, b"window two" * 2))
    assert stats.chisquare(np.bincount(first * 5 + second, minlength=25)).pvalue > FALSE_ALARM


def test_one_salt_gives_one_sample() -> None:
    """A restart in the middle of a window keeps the same rows."""
    assert kept_by_unit(bounded([MANY], (2, 2))) == kept_by_unit(bounded([MANY], (2, 2)))


@pytest.mark.parametrize("bits", [12, 13])
def test_the_permutation_is_a_bijection(bits: int) -> None:
    """Two cells of one unit never share a place, whatever the unit's hash."""
    cells = np.arange(1 << bits, dtype=np.uint64)
    for unit_hash in (0, 1, 2**64 - 1, 0x9E3779B97F4A7C15, 0x61C8864680B583EB):
        places = bound._permute(cells, np.full(len(cells), unit_hash, dtype=np.uint64), bits)
        assert len(np.unique(places)) == len(cells)
        assert int(places.max()) < 1 << bits


@pytest.mark.parametrize("kind", [str, int, lambda unit: 2**40 + int(unit)])
def test_units_whose_hashes_collide_stay_apart(monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], Unit]) -> None:
    """Ids decide, not hashes: even if every unit had the same hash, each keeps its own rows."""
    rows = [row._replace(unit=kind(str(codes_of([row])[row.unit] % 1000))) for row in MANY]
    monkeypatch.setattr(bound, "_hash", lambda unit, seed: np.zeros(len(unit), np.uint64))
    assert violations(bounded([rows], (2, 3)), rows, (2, 3)) == []


def test_mutant_units_told_apart_by_their_hash_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a hash of two bits stands for the unit (ids never compared); people then share one bound."""

    def by_hash(unit: Any, unit_hash: Any) -> Any:
        return unit_hash % np.uint64(4)

    monkeypatch.setattr(bound, "_codes", by_hash)
    assert violations(bounded([MANY], (2, 3)), MANY, (2, 3)) != []


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 5), min_size=1, max_size=30))
def test_codes_are_equal_exactly_where_ids_are(ids: list[int]) -> None:
    """For integers of any size, their texts too, and whatever the hash: good, weak, or constant."""
    for unit in (pa.array(ids, pa.int64()), pa.array([str(one) for one in ids])):
        for unit_hash in (bound._hash(unit, 7), bound._hash(unit, 7) % np.uint64(2), np.zeros(len(ids), np.uint64)):
            codes = bound._codes(unit, unit_hash).tolist()
            assert [[a == b for b in codes] for a in codes] == [[a == b for b in ids] for a in ids]
            assert max(codes) < 2**28


def test_ties_of_the_packed_key_are_broken_by_the_whole_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Priorities that differ only in bits for which the packed key has no room still decide, whatever the order."""
    original = bound._mix
    monkeypatch.setattr(bound, "_mix", lambda x: original(x) >> np.uint64(54))
    assert kept_by_unit(bounded([MANY], (2, 2))) == reference(MANY, (2, 2))
    assert kept_by_unit(bounded([MANY[::-1]], (2, 2))) == reference(MANY, (2, 2))


def test_an_empty_window_keeps_nothing() -> None:
    """No rows, no cells; and an empty batch changes nothing."""
    result = bounded([[], []], (1, 1))
    assert len(result.cell) == len(result.first) == len(result.values["v"]) == 0
    assert kept_by_unit(bounded([[], MANY, []], (2, 2))) == kept_by_unit(bounded([MANY], (2, 2)))


def test_the_state_is_bounded_by_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows one unit sends, the state holds what may be kept and the rows that wait for a merge."""
    monkeypatch.setattr(bound, "MERGE_ROWS", 100)
    state = Bounding(max_partitions=2, max_rows=3, n_cells=N_CELLS, names=("who", "v"), salt=SALT)
    codes = codes_of([Row("u", 0, 0, 0)])
    held = []
    for time in range(600):
        state.add(as_rows([Row("u", time % N_CELLS, time, time)], codes))
        held.append(state.rows)
    assert max(held) <= 100 + 2 * 3
    assert len(state.kept().cell) == 2 * 3
    assert state.rows == 2 * 3


def test_more_units_than_the_overflow_proof_allows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that no sum wraps counts units, so bounding does too."""
    monkeypatch.setattr(bound, "MAX_UNITS", 3)
    assert bounded([MANY[: 4 * N_CELLS * 3]], (1, 1)).first.sum() == 3
    with pytest.raises(OverflowError, match="more privacy units"):
        bounded([MANY[: 4 * N_CELLS * 4]], (1, 1))


@pytest.mark.parametrize("salt", [b"", b"short", bytes(65)])
def test_a_salt_that_is_none_is_refused(salt: bytes) -> None:
    """An empty key would make the sample of a unit public."""
    with pytest.raises(ValueError, match="salt"):
        Bounding(max_partitions=1, max_rows=1, n_cells=1, names=(), salt=salt)
