"""The aggregates, each beside its sensitivity and the proof of it.

Place: step 5 of an event's way: bounded rows in, exact int64 vectors over the plan's cells out, for the noise.
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
    import numpy.typing as npt

    from edge_agg.contract.vectors import Clip

    Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """How far one unit can move a vector, in grid steps."""

    linf: int
    """In one cell."""
    cells: int
    """Cells it can move: min(max_partitions, n_cells)."""

    @property
    def l1(self) -> int:
        """At most `cells` cells move by at most `linf` each."""
        return self.cells * self.linf

    @property
    def l2(self) -> float:
        """sqrt(cells) * linf, rounded up to the next double whose square is large enough."""
        square = self.cells * self.linf**2
        root = math.sqrt(square)
        while Fraction(root) ** 2 < square:
            root = math.nextafter(root, math.inf)
        return root


def count_units(cell: Int64s, first: npt.NDArray[np.bool_], n_cells: int) -> Int64s:
    """Units with a kept row in each cell, int64[n_cells].

    Args:
        cell: the kept rows' cells, int64[n_kept].
        first: whether a row is the first of its unit in its cell, bool[n_kept].
        n_cells: cells of the plan.
    """
    return np.bincount(cell[first], minlength=n_cells).astype(np.int64)


def units_sensitivity(cells: int) -> Sensitivity:
    """A unit is counted once in each cell it keeps rows in, and it keeps rows in at most `cells` cells."""
    return Sensitivity(linf=1, cells=cells)


def count_rows(cell: Int64s, n_cells: int) -> Int64s:
    """Kept rows in each cell, int64[n_cells]."""
    return np.bincount(cell, minlength=n_cells).astype(np.int64)


def rows_sensitivity(cells: int, max_rows: int) -> Sensitivity:
    """A unit keeps at most `max_rows` rows in a cell; rows without a value only lower that (also for valid rows)."""
    return Sensitivity(linf=max_rows, cells=cells)


def sum_values(cell: Int64s, values: Int64s, n_cells: int) -> Int64s:
    """Sum of the kept rows' contributions to a vector, int64[n_cells].

    Cannot wrap: the plan proves n_rows * |value| < 2**62 when it is parsed.
    """
    total = np.zeros(n_cells, dtype=np.int64)
    np.add.at(total, cell, values)
    return total


def sum_sensitivity(cells: int, max_rows: int, clip: Clip) -> Sensitivity:
    """At most `max_rows` values of a unit fall in a cell, each within max(|lower - centre|, |upper - centre|) of 0."""
    return Sensitivity(linf=max_rows * max(abs(clip.lower - clip.centre), abs(clip.upper - clip.centre)), cells=cells)


def to_grid(
    values: npt.NDArray[np.float64], valid: npt.NDArray[np.bool_], *, lower: float, upper: float, clip: Clip
) -> npt.NDArray[np.int64]:
    """Each row's contribution to a sum: clipped, on the grid, counted from the centre; 0 where there is no value.

    Clipping comes before summing, row by row: it is what makes `sum_sensitivity` true.
    """
    clipped = np.clip(np.where(valid, values, 0.0), lower, upper)
    steps = np.clip(np.rint(clipped / clip.resolution).astype(np.int64), clip.lower, clip.upper)
    return np.where(valid, steps - clip.centre, 0)
