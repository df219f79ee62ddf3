"""Rows that come too late in their unit's order are dropped when they come; nothing else is, and nothing shows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.privacy import reach
from edge_agg.privacy.bound import Bounding, Rows
from edge_agg.privacy.reach import Reach

SALT = b"a salt for tests"
N_CELLS = 64

Groups = list[tuple[int, int]]
"""Of unit and place, each once, sorted."""
groups = st.lists(st.tuples(st.integers(0, 9) | st.just(2**22), st.integers(0, 20)), unique=True, max_size=60).map(
    sorted
)


def learned(held: Groups, limit: int, known: Reach | None = None) -> Reach:
    """What is known after a merge of some groups."""
    known = Reach(limit) if known is None else known
    unit, place = (np.array([group[i] for group in held], np.uint64) for i in (0, 1))
    rank = np.array([sum(one == unit_ for one, _ in held[:at]) for at, (unit_, _) in enumerate(held)], np.intp)
    known.learn(unit, place.astype(np.uint32), rank < limit)
    return known


def taken(known: Reach, asked: Groups) -> Groups:
    """The rows that are let in."""
    wanted = known.within(np.array([u for u, _ in asked], np.uint64), np.array([p for _, p in asked], np.uint32))
    return asked if wanted is None else [asked[at] for at in wanted.tolist()]


@given(first=groups, second=groups, asked=groups, limit=st.integers(1, 4))
def test_exactly_what_could_never_be_kept_is_dropped(first: Groups, second: Groups, asked: Groups, limit: int) -> None:
    """A row is let in unless its unit, as last seen, keeps as many cells as it may, all of them nearer."""
    known = learned(second, limit, learned(first, limit))
    wanted = []
    for unit, place in asked:
        seen = [
            sorted(p for u, p in held if u == unit)[limit - 1 : limit] if unit < reach.MOST_UNITS else []
            for held in (second, first)
        ]
        last = next((one[0] for one in seen if one), None)
        if last is None or place <= last:
            wanted.append((unit, place))
    assert taken(known, asked) == wanted
    known.forget()
    assert taken(known, asked) == asked


def window(limit: int) -> Bounding:
    """An empty window without readings."""
    return Bounding(
        max_partitions=limit, max_rows=2, n_cells=N_CELLS, readings={}, totals=[], discover=False, salt=SALT
    )


def batch(unit: pa.Array, cell: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Rows:
    """Rows without readings."""
    return Rows(unit=unit, cell=cell, key=None, time_us=np.zeros(len(cell), np.int64), readings={}, totals={})


def kept_in_parts(limit: int) -> Counter[tuple[int, int]]:
    """What is kept of many rows of few units, merged often: how often each unit's code and cell."""
    rng = np.random.default_rng(1)
    state = window(limit)
    for _ in range(20):
        state.add(batch(pa.array([f"unit {i}" for i in rng.integers(0, 9, 50)]), rng.integers(0, N_CELLS, 50)))
        state._state.merge()
    kept = state.kept()
    return Counter(zip(kept.unit.tolist(), kept.cell.tolist(), strict=True))


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_nothing_shows(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """The same is kept whether rows are dropped early or not."""
    early = kept_in_parts(limit)
    monkeypatch.setattr(Reach, "within", lambda *_: None)
    assert kept_in_parts(limit) == early


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_mutant_a_reach_that_is_too_short_is_caught(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Mutant: the last place is taken for half of what it is."""
    early = kept_in_parts(limit)
    honest = Reach.learn
    monkeypatch.setattr(Reach, "learn", lambda self, unit, place, stays: honest(self, unit, place // 2, stays))
    assert kept_in_parts(limit) != early


def test_rows_that_cannot_be_kept_do_not_wait() -> None:
    """Once a unit keeps as much as it may, what it sends besides takes no room, however much it is."""
    state = window(2)
    unit, cell = pa.array(["one"] * 1_024), np.arange(1_024) % N_CELLS
    state.add(batch(unit, cell))
    state._state.merge()
    assert state.rows == 4
    state.add(batch(unit, cell))
    assert state.rows == 4 + 2 * 16  # those of the kept cells alone, of which there are 16 each
    state._state.merge()
    assert state.rows == 4
