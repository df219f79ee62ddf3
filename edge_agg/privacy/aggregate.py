"""The aggregates, each beside its sensitivity and the proof of it.

Place: step 5 of an event's way: bounded rows in, exact int64 vectors over the plan's cells out, for the noise. Before
bounding, the same room puts values on the grid, because that is what the proofs rest on.
Invariants: integers only; a vector's length is the plan's; the sensitivity is that of privacy.md's table, under
add/remove of all rows of one privacy unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from edge_agg.contract.tree import Tree
    from edge_agg.contract.vectors import Clip

    Int64s = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Float64s = npt.NDArray[np.float64]

_MAX_STEPS = 2**31
"""What one row can add to a unit's total, in grid steps: 2**31 rows of one unit cannot wrap it."""

_EVEN = 0.25
"""Of a step: how far an edge may lie off for edges to be spaced evenly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How far one unit can move a vector, in grid steps."""

    linf: int
    """In one value."""
    cells: int
    """Cells it can move: min(max_partitions, n_cells)."""
    levels: int = 1
    """Of a tree: on each level a unit moves a cell's nodes as far as on any other."""

    @property
    def l1(self) -> int:
        """At most `cells` cells move by at most `linf` each, on each level."""
        return self.cells * self.linf * self.levels

    @property
    def l2(self) -> float:
        """sqrt(cells * levels) * linf, rounded up to the next double whose square is large enough.

        Within a cell and level, moves that add to at most linf have the largest l2 norm when they fall on one node.
        """
        square = self.cells * self.levels * self.linf**2
        root = math.sqrt(square)
        while Fraction(root) ** 2 < square:
            root = math.nextafter(root, math.inf)
        return root


def count_units(cell: Int64s, first: Bools, n_cells: int) -> Int64s:
    """Units with a kept row in each cell, int64[n_cells].

    Args:
        cell: the kept rows' cells, int64[n_kept].
        first: whether a row is the first of its unit in its cell, bool[n_kept].
        n_cells: cells of the plan.
    """
    return np.bincount(np.compress(first, cell), minlength=n_cells).astype(np.int64, copy=False)


def units_sensitivity(cells: int) -> Sensitivity:
    """A unit is counted once in each cell it keeps rows in, and it keeps rows in at most `cells` cells.

    The same holds for discovered keys: a unit in at most `cells` cells has at most `cells` keys, each counted once.
    """
    return Sensitivity(linf=1, cells=cells)


def count_rows(cell: Int64s, n_cells: int) -> Int64s:
    """Kept rows in each cell, int64[n_cells]."""
    return np.bincount(cell, minlength=n_cells).astype(np.int64, copy=False)


def rows_sensitivity(cells: int, max_rows: int) -> Sensitivity:
    """A unit keeps at most `max_rows` rows in a cell; rows without a value only lower that (also for valid rows)."""
    return Sensitivity(linf=max_rows, cells=cells)


def count_bins(cell: Int64s, code: Int64s, n_cells: int, tree: Tree) -> Int64s:
    """Kept rows in each node of each cell's tree, int64[n_cells, nodes]; a row counts once on each level."""
    leaves = np.bincount(cell * tree.leaves + code, minlength=n_cells * tree.leaves).astype(np.int64)
    levels = [leaves.reshape(n_cells, size, tree.leaves // size).sum(axis=2) for size in tree.sizes]
    return np.concatenate(levels, axis=1)


def bins_sensitivity(cells: int, max_rows: int, levels: int) -> Sensitivity:
    """All `max_rows` rows of a unit in a cell may fall in one bin, and so in one node of each level."""
    return Sensitivity(linf=max_rows, cells=cells, levels=levels)


def sum_values(cell: Int64s, values: Int64s, n_cells: int) -> Int64s:
    """Sum of the kept rows' contributions to a vector, int64[n_cells].

    Cannot wrap: the plan proves n_rows * |value| < 2**62 when it is parsed.
    """
    total = np.zeros(n_cells, dtype=np.int64)
    np.add.at(total, cell, values)
    return total


def sum_sensitivity(cells: int, max_rows: int, clip: Clip) -> Sensitivity:
    """At most `max_rows` values of a unit fall in a cell, each within max(|lower - centre|, |upper - centre|) of 0."""
    return Sensitivity(linf=max_rows * _farthest(clip), cells=cells)


def squares_sensitivity(cells: int, max_rows: int, clip: Clip) -> Sensitivity:
    """As a sum, of squares: each lies within 0 and the square of the farthest value from the centre."""
    return Sensitivity(linf=max_rows * _farthest(clip) ** 2, cells=cells)


def totals_sensitivity(cells: int, clip: Clip) -> Sensitivity:
    """A unit adds to a cell one total, clipped to `[lower, upper]`, however many rows stand behind it."""
    return Sensitivity(linf=_farthest(clip), cells=cells)


def _farthest(clip: Clip) -> int:
    return max(abs(clip.lower - clip.centre), abs(clip.upper - clip.centre))


def to_grid(values: Float64s, *, lower: int, upper: int, resolution: float) -> Int64s:
    """Each row's step on the grid, clipped, counted from `lower`: 0 .. upper - lower.

    Infinities clip; no NaN comes here.
    Clipping comes before summing, row by row: it is what makes `sum_sensitivity` true.
    """
    steps = np.clip(values, lower * resolution, upper * resolution) / resolution
    return np.rint(steps, out=steps).astype(np.int64) - lower


def to_bins(values: Float64s, *, edges: Sequence[float]) -> Int64s:
    """Each row's bin, `[edge, next edge)`; what lies below or above all edges falls in the bin at that end."""
    inner = np.asarray(edges[1:-1])
    guess = _guessed(values, np.asarray(edges))
    if guess is None:
        return np.searchsorted(inner, values, side="right").astype(np.int64)
    below = np.concatenate([[-np.inf], inner, [np.inf]])
    wrong = below.take(guess) > values
    wrong |= below[1:].take(guess) <= values
    if wrong.any():
        at = np.flatnonzero(wrong)
        guess[at] = np.searchsorted(inner, values[at], side="right")
    return guess


def _guessed(values: Float64s, edges: Float64s) -> Int64s | None:
    """About which bin each row falls in; None where edges are not spaced evenly. A guess costs a fifth of a search."""
    last = len(edges) - 1
    with np.errstate(all="ignore"):
        per_step = last / (edges[-1] - edges[0])
        even = np.abs((edges - edges[0]) * per_step - np.arange(last + 1)).max() < _EVEN
    if not even or not np.isfinite(per_step):
        return None
    steps = np.clip(values, edges[0], edges[-1])
    steps -= edges[0]
    steps *= per_step
    return np.minimum(steps.astype(np.int64), last - 1)


def to_steps(values: Float64s, resolution: float) -> Int64s:
    """Each row's value in grid steps, within 2**31 of 0, for a total that is clipped once it is whole."""
    farthest = min(_MAX_STEPS * resolution, float(np.finfo(np.float64).max))
    return np.rint(np.clip(values, -farthest, farthest) / resolution).astype(np.int64)
