"""The aggregates: integers only, clipped row by row, and sums that cannot wrap."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.contract.plan import MAX_UNITS
from edge_agg.contract.vectors import Clip, plan_vectors
from edge_agg.privacy.aggregate import Sensitivity, count_rows, count_units, sum_sensitivity, sum_values, to_grid

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from edge_agg.contract.plan import Plan

CLIP = Clip(lower=-300, upper=1800, centre=750, resolution=0.1)
FROM_ZERO = Clip(lower=-300, upper=1800, centre=0, resolution=0.1)


def grid(*readings: float | None, clip: Clip = FROM_ZERO) -> list[int]:
    """The contributions of some readings; None is a null."""
    values = np.array([math.nan if reading is None else reading for reading in readings])
    valid = np.array([reading is not None for reading in readings], dtype=np.bool_)
    steps = to_grid(values, valid, lower=-30.0, upper=180.0, clip=clip)
    assert steps.dtype == np.int64
    return [int(step) for step in steps]


def test_values_are_clipped_and_put_on_the_grid() -> None:
    """Hand-computed: inside, on and beyond both bounds."""
    assert grid(0.0, 12.34, -12.36, 180.0, 180.1, 1e9, -30.0, -31.0) == [0, 123, -124, 1800, 1800, 1800, -300, -300]


def test_infinities_clip() -> None:
    """An infinite reading counts as the bound on its side."""
    assert grid(math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324) == [1800, -300, 1800, -300, 0]


def test_a_null_contributes_nothing() -> None:
    """A row without a value is 0 in the sum also where 0 is not the centre, so NaN never gets into an integer."""
    assert grid(None, 75.0, None, clip=CLIP) == [0, 0, 0]
    assert grid(None, clip=Clip(lower=5, upper=9, centre=0, resolution=1.0)) == [0]


def test_a_mean_counts_from_its_centre() -> None:
    """Contributions lie as far below as above, which halves the sensitivity."""
    assert grid(-30.0, 180.0, 75.0, 75.1, clip=CLIP) == [-1050, 1050, 0, 1]


def test_rounding_is_to_the_nearest_step() -> None:
    """Half a step goes to the even one: no drift to either side."""
    clip = Clip(lower=-10, upper=10, centre=0, resolution=1.0)
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 0.51])
    steps = to_grid(values, np.ones(7, dtype=np.bool_), lower=-10.0, upper=10.0, clip=clip)
    assert steps.tolist() == [0, 2, 2, 0, -2, 0, 1]


@given(reading=st.floats(allow_nan=False), integers=st.booleans())
def test_no_reading_leaves_the_bounds(reading: float, integers: bool) -> None:  # noqa: FBT001  # drawn by Hypothesis
    """Whatever is read, a contribution stays within the clip: it is what makes the sensitivity true."""
    (step,) = grid(float(round(reading)) if integers and math.isfinite(reading) else reading, clip=CLIP)
    assert abs(step) <= sum_sensitivity(1, 1, CLIP).linf == 1050


@pytest.mark.parametrize("reading", [-(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1])
def test_integer_extremes_clip(reading: int) -> None:
    """Integer columns come as doubles; the ends of int64 clip like any other number."""
    (step,) = grid(*np.array([reading], dtype=np.int64).astype(np.float64))
    assert step == (1800 if reading > 0 else -300)


def test_mutant_no_clipping_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: values are put on the grid as they come; the test of the bounds fails."""
    monkeypatch.setattr(np, "clip", lambda values, lower, upper: values)
    with pytest.raises(AssertionError):
        test_values_are_clipped_and_put_on_the_grid()


def ints(*values: int) -> npt.NDArray[np.int64]:
    """An int64 array."""
    return np.array(values, dtype=np.int64)


def test_vectors_by_hand() -> None:
    """Rows, units and values of each cell, zeros in the cells that nothing fell in."""
    cell, first = ints(3, 0, 3, 3), np.array([True, True, False, True])
    assert count_rows(cell, 5).tolist() == [1, 0, 0, 3, 0]
    assert count_units(cell, first, 5).tolist() == [1, 0, 0, 2, 0]
    assert sum_values(cell, ints(5, -7, 1, 1), 5).tolist() == [-7, 0, 0, 7, 0]


def test_an_empty_window_has_vectors_of_zeros() -> None:
    """An empty window is released like any other: as many cells, int64."""
    none = np.array([], dtype=np.bool_)
    for vector in (count_rows(ints(), 3), count_units(ints(), none, 3), sum_values(ints(), ints(), 3)):
        assert vector.dtype == np.int64
        assert vector.tolist() == [0, 0, 0]


def test_sums_are_exact_beyond_doubles() -> None:
    """Integer sums, not floating-point ones: 2**53 + 1 is told from 2**53."""
    assert sum_values(ints(0, 0), ints(2**53, 1), 1).tolist() == [2**53 + 1]


@given(cells=st.integers(1, 100_000), linf=st.integers(1, 2**40))
def test_l2_is_rounded_up(cells: int, linf: int) -> None:
    """The square of l2 is never below cells * linf**2, and the double before it would be."""
    moves = Sensitivity(linf=linf, cells=cells)
    square = cells * linf**2
    assert Fraction(moves.l2) ** 2 >= square
    assert Fraction(math.nextafter(math.nextafter(moves.l2, 0.0), 0.0)) ** 2 < square
    assert moves.l1 == cells * linf


@pytest.mark.parametrize("kind", ["sum", "mean"])
@pytest.mark.parametrize(("lower", "upper"), [(-16383.0, 16383.0), (0.0, 16383.0), (-16383.0, 0.0), (16382.0, 16383.0)])
def test_the_largest_sum_that_a_plan_admits_fits(
    plan_of: Callable[..., Plan], kind: str, lower: float, upper: float
) -> None:
    """Every unit that one window may hold, with all its rows in one cell at the farthest value: below 2**62.

    The bounds are the widest that the plan accepts at 2**20 rows a partition; one step more is refused.
    """
    metric = f'kind = "{kind}"\ncolumn = "x"\nlower = {lower}\nupper = {upper}\nresolution = 1.0'
    plan = plan_of(metric, max_rows=2**20)
    clip = plan_vectors(plan)[0].clip
    assert clip is not None
    each = sum_sensitivity(1, plan.bounds.max_rows_per_partition, clip).linf
    assert each * MAX_UNITS < 2**62
    total = sum_values(ints(*[0] * 8), ints(*[each * MAX_UNITS // 8] * 8), 1)
    assert int(total[0]) == each * MAX_UNITS // 8 * 8
    with pytest.raises(Exception, match="too fine"):
        plan_of(metric.replace("16383.0", "16384.0"), max_rows=2**20)
