"""What a unit keeps is a sample: of its cells, of its keys, of its rows.

Distribution tests use fixed salts and a false-alarm rate of 1e-6 each: they pass or fail once and for all.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from edge_agg.privacy import permutation
from edge_agg.privacy.bound import Bounding, Rows
from edge_agg.privacy.layout import Layout
from edge_agg.privacy.permutation import Permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

FALSE_ALARM = 1e-6
SALT = b"a salt for tests"


def kept_cells(
    n_units: int, cells: Sequence[int], limit: int, n_cells: int, salt: bytes = SALT
) -> np.ndarray[Any, Any]:
    """Which cells each unit keeps when all touch the same ones: int[n_units, limit], indices into `cells`, sorted."""
    state = Bounding(
        max_partitions=limit, max_rows=1, n_cells=n_cells, readings={}, totals=[], discover=False, salt=salt
    )
    unit = np.repeat(np.arange(n_units), len(cells))
    zero = np.zeros(len(unit), dtype=np.int64)
    cell = np.tile(np.array(cells, dtype=np.int64), n_units)
    state.add(Rows(unit=pa.array(unit), cell=cell, key=None, time_us=zero, readings={}, totals={}))
    result = state.kept()
    order = np.lexsort((result.cell, result.unit))
    return np.searchsorted(np.array(cells), result.cell[order]).reshape(n_units, limit)


def kept_keys(n_units: int, keys: Sequence[str], limit: int) -> np.ndarray[Any, Any]:
    """The same of discovered keys, which must be sorted."""
    state = Bounding(max_partitions=limit, max_rows=1, n_cells=1, readings={}, totals=[], discover=True, salt=SALT)
    unit = np.repeat(np.arange(n_units), len(keys))
    zero = np.zeros(len(unit), dtype=np.int64)
    key = pa.DictionaryArray.from_arrays(pa.array(np.tile(np.arange(len(keys), dtype=np.int32), n_units)), list(keys))
    state.add(Rows(unit=pa.array(unit), cell=zero, key=key, time_us=zero, readings={}, totals={}))
    result = state.kept()
    assert result.key is not None
    assert list(result.keys) == list(keys)
    return result.key[np.lexsort((result.key, result.unit))].reshape(n_units, limit)


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


@pytest.mark.parametrize("limit", [1, 2])
def test_each_key_is_kept_equally_often(limit: int) -> None:
    """The same of discovered keys, short and long."""
    keys = ["", "a", "b", "thirteen bytes or so"]
    assert uniform_p(kept_keys(10_000, keys, limit), len(keys)) > FALSE_ALARM


def test_mutant_too_few_rounds_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: one round of the permutation on no more bits than the cells need; pairs stick together."""
    monkeypatch.setattr(permutation, "_ROUNDS", 1)
    monkeypatch.setattr(permutation, "_LEAST_BITS", 1)
    assert uniform_p(kept_cells(10_000, [0, 1, 2, 3, 4], 2, 5), 5) < FALSE_ALARM


def test_mutant_a_cell_sample_that_ignores_the_unit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: every unit keeps its lowest cells; uniformity fails."""
    monkeypatch.setattr(Permutation, "place", lambda self, cell, key: cell.astype(np.uint32))
    monkeypatch.setattr(Permutation, "cell", lambda self, place, key: place)
    assert uniform_p(kept_cells(2_000, [0, 1, 2, 3], 1, n_cells=4), 4) < FALSE_ALARM


def kept_rows(n_units: int, there: int, limit: int) -> np.ndarray[Any, Any]:
    """How often each of a unit's rows in one cell is kept, by its time; scaled so that chi-squared applies."""
    sizes = {"v": there}
    state = Bounding(max_partitions=1, max_rows=limit, n_cells=1, readings=sizes, totals=[], discover=False, salt=SALT)
    unit = np.repeat(np.arange(n_units), there)
    row = np.tile(np.arange(there), n_units)
    zero = np.zeros(len(unit), dtype=np.int64)
    state.add(
        Rows(unit=pa.array(unit), cell=zero, key=None, time_us=row * 3_600_000_000, readings={"v": row}, totals={})
    )
    counts = np.bincount(state.kept().readings["v"], minlength=there)
    assert counts.sum() == n_units * limit
    # Kept together, `limit` of `there` vary less than draws with replacement: by (there - limit) / (there - 1).
    mean = n_units * limit / there
    scaled: np.ndarray[Any, Any] = mean + (counts - mean) * np.sqrt((there - 1) / (there - limit))
    return scaled


@pytest.mark.parametrize(("there", "limit"), [(2, 1), (5, 2), (10, 9)])
def test_each_row_is_kept_equally_often(there: int, limit: int) -> None:
    """A row's chance to be kept does not hang on its time or value."""
    assert stats.chisquare(kept_rows(10_000, there, limit)).pvalue > FALSE_ALARM


def test_equal_readings_do_not_go_together() -> None:
    """A row that stands alone with its reading is kept as often as one of many that read the same: by its time."""
    n_units, there = 10_000, 5
    state = Bounding(max_partitions=1, max_rows=1, n_cells=1, readings={"v": 2}, totals=[], discover=False, salt=SALT)
    unit, row = np.repeat(np.arange(n_units), there), np.tile(np.arange(there), n_units)
    alone = (row == 0).astype(np.int64)
    state.add(
        Rows(unit=pa.array(unit), cell=row * 0, key=None, time_us=row * 1_000_000, readings={"v": alone}, totals={})
    )
    kept = int(state.kept().readings["v"].sum())
    assert stats.binomtest(kept, n_units, 1 / there).pvalue > FALSE_ALARM


def test_mutant_a_row_sample_by_time_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the priority of a row is its reading, which grows with its time; what is kept is then no sample."""
    monkeypatch.setattr(Layout, "encode", lambda self, key, time_us, readings: [readings["v"].astype(np.uint64)])
    assert stats.chisquare(kept_rows(2_000, 5, 2)).pvalue < FALSE_ALARM


def test_the_salt_changes_the_sample() -> None:
    """What a unit keeps in one window says nothing about what it keeps in the next: the pair is uniform too."""
    first, second = (kept_cells(20_000, range(5), 1, 5, salt)[:, 0] for salt in (b"window one" * 2, b"window two" * 2))
    assert stats.chisquare(np.bincount(first * 5 + second, minlength=25)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("n_cells", [1, 4096, 4097])
def test_the_permutation_is_a_bijection(n_cells: int) -> None:
    """Two cells of one unit never share a place, whatever the unit's key; and the cell comes back from its place."""
    permuted = Permutation(n_cells)
    cells = np.arange(1 << permuted.bits, dtype=np.uint32)
    for key in (0, 1, 2**64 - 1, 0x9E3779B97F4A7C15, 0x61C8864680B583EB):
        keys = np.full(len(cells), key, dtype=np.uint64)
        places = permuted.place(cells, keys)
        assert len(np.unique(places)) == len(cells)
        assert int(places.max()) < 1 << permuted.bits
        assert (permuted.cell(places, keys) == cells).all()
