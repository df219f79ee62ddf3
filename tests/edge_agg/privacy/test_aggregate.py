"""The aggregates: integers only, clipped row by row, and sums that cannot wrap."""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import MAX_UNITS
from edge_agg.contract.tree import Tree, flat
from edge_agg.contract.vectors import Clip, plan_vectors
from edge_agg.privacy import aggregate
from edge_agg.privacy.aggregate import (
    Sensitivity,
    bins_sensitivity,
    count_bins,
    count_rows,
    count_units,
    rows_sensitivity,
    squares_sensitivity,
    sum_sensitivity,
    sum_values,
    to_bins,
    to_grid,
    to_steps,
    totals_sensitivity,
    units_sensitivity,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from edge_agg.contract.plan import Plan

CLIP = Clip(lower=-300, upper=1800, centre=750, resolution=0.1)
FROM_ZERO = Clip(lower=-300, upper=1800, centre=0, resolution=0.1)


def grid(*readings: float, lower: int = -300, upper: int = 1800, resolution: float = 0.1) -> list[int]:
    """Readings on a grid, in steps from 0."""
    steps = to_grid(np.array(readings, dtype=np.float64), lower=lower, upper=upper, resolution=resolution)
    assert steps.dtype == np.int64
    return [int(step) + lower for step in steps]


def test_values_are_clipped_and_put_on_the_grid() -> None:
    """Hand-computed: inside, on and beyond both bounds."""
    assert grid(0.0, 12.34, -12.36, 180.0, 180.1, 1e9, -30.0, -31.0) == [0, 123, -124, 1800, 1800, 1800, -300, -300]


def test_infinities_clip() -> None:
    """An infinite reading counts as the bound on its side."""
    assert grid(math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324) == [1800, -300, 1800, -300, 0]


def test_rounding_is_to_the_nearest_step() -> None:
    """Half a step goes to the even one: no drift to either side."""
    readings = (0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 0.51)
    assert grid(*readings, lower=-10, upper=10, resolution=1.0) == [0, 2, 2, 0, -2, 0, 1]


@given(
    reading=st.floats(allow_nan=False),
    lower=st.integers(-(2**33), 2**33),
    steps=st.integers(1, 2**33),
    resolution=st.sampled_from([0.1, 1 / 3, 1.0, 1e-9, 7e5, 5e-324, 1e290]),
)
def test_no_reading_leaves_the_bounds(reading: float, lower: int, steps: int, resolution: float) -> None:
    """Whatever is read, on the finest and the widest grid, a step lies within the clip: so sensitivities are true."""
    (step,) = grid(reading, lower=lower, upper=lower + steps, resolution=resolution)
    assert lower <= step <= lower + steps


@pytest.mark.parametrize("reading", [-(2**63), 2**63 - 1, 2**53 + 1, -(2**53) - 1])
def test_integer_extremes_clip(reading: int) -> None:
    """Integer columns come as doubles; the ends of int64 clip like any other number."""
    assert grid(float(reading)) == [1800 if reading > 0 else -300]


def test_mutant_no_clipping_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: values are put on the grid as they come; the test of the bounds fails."""
    monkeypatch.setattr(np, "clip", lambda values, lower, upper: values)
    with pytest.raises(AssertionError):
        test_values_are_clipped_and_put_on_the_grid()


@pytest.mark.parametrize("resolution", [0.1, 1.0, 5e-324, 1e300])
def test_what_a_row_adds_to_a_total_is_bounded_before_it_is_added(resolution: float) -> None:
    """2**31 steps at most, on any grid, infinities too: 2**31 rows of one unit cannot wrap its total."""
    values = np.array([math.inf, -math.inf, 0.0, 3 * resolution, -1.7e308])
    steps = to_steps(values, resolution).tolist()
    assert steps[2:4] == [0, 3]
    assert all(abs(step) <= 2**31 for step in steps)
    assert steps[0] > 0 > steps[1]
    assert steps[0] == -steps[1] == (2**31 if resolution < 1e290 else round(1.7976931348623157e308 / resolution))


def test_bins_by_hand() -> None:
    """An inner edge belongs to the bin above it; the outer bins take what lies beyond."""
    values = np.array([-math.inf, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 99.0, math.inf])
    assert to_bins(values, edges=(0.0, 1.0, 2.0, 3.0)).tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2]
    assert to_bins(values, edges=(0.0, 1.0)).tolist() == [0] * 9


def searched(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """The bin of each value, found by search."""
    return [bisect.bisect_right(edges[1:-1], value) for value in values]


@given(
    lower=st.floats(-1e6, 1e6),
    width=st.floats(1e-6, 1e6),
    bins=st.integers(1, 40),
    strays=st.lists(st.floats(allow_nan=False), max_size=20),
)
def test_bins_of_even_edges_are_those_of_a_search(lower: float, width: float, bins: int, strays: list[float]) -> None:
    """Every edge, its neighbours among the floats, and anything else fall where a search puts them."""
    edges = tuple(lower + width * i for i in range(bins + 1))
    assume(all(below < above for below, above in itertools.pairwise(edges)))
    values = [*strays, *(near for edge in edges for near in (math.nextafter(edge, -math.inf), edge))]
    assert to_bins(np.array(values), edges=edges).tolist() == searched(values, edges)


@given(
    edges=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=12, unique=True).map(sorted),
    strays=st.lists(st.floats(allow_nan=False), max_size=20),
)
def test_bins_of_any_edges_are_those_of_a_search(edges: list[float], strays: list[float]) -> None:
    """However unevenly edges lie, up to the ends of the floats."""
    values = [*strays, *edges]
    assert to_bins(np.array(values), edges=edges).tolist() == searched(values, edges)


def test_bins_guessed_without_a_look_would_be_caught() -> None:
    """Mutant: the guess itself, which rounding puts on the wrong side of an edge now and then."""
    edges, values = [i * 0.1 for i in range(11)], [math.nextafter(i * 0.1, -math.inf) for i in range(11)]
    guess = aggregate._guessed(np.array(values), np.array(edges))
    assert guess is not None
    assert guess.tolist() != searched(values, edges) == to_bins(np.array(values), edges=edges).tolist()


def ints(*values: int) -> npt.NDArray[np.int64]:
    """An int64 array."""
    return np.array(values, dtype=np.int64)


def test_vectors_by_hand() -> None:
    """Rows, units and values of each cell, zeros in the cells that nothing fell in."""
    cell, first = ints(3, 0, 3, 3), np.array([True, True, False, True])
    assert count_rows(cell, 5).tolist() == [1, 0, 0, 3, 0]
    assert count_units(cell, first, 5).tolist() == [1, 0, 0, 2, 0]
    assert sum_values(cell, ints(5, -7, 1, 1), 5).tolist() == [-7, 0, 0, 7, 0]


TREE = Tree(branching=2, height=2)


def test_nodes_of_trees_by_hand() -> None:
    """Two cells, four leaves in two levels: columns are the two upper nodes, then the leaves."""
    cell, code = ints(0, 0, 0, 1), ints(0, 1, 3, 2)
    assert count_bins(cell, code, 2, TREE).tolist() == [[2, 1, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0]]
    assert count_bins(cell, code, 2, flat(5)).tolist() == [[1, 1, 0, 1, 0], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize("tree", [TREE, flat(3)])
def test_no_cells_have_no_nodes(tree: Tree) -> None:
    """Where no discovered key passed there are no rows, and still all columns."""
    nodes = count_bins(ints(), ints(), 0, tree)
    assert nodes.shape == (0, tree.nodes)
    assert nodes.dtype == np.int64


@given(
    branching=st.integers(2, 4),
    height=st.integers(1, 3),
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 63)), max_size=30),
)
def test_every_row_counts_once_on_each_level(branching: int, height: int, rows: list[tuple[int, int]]) -> None:
    """Each node is the sum of those below it, and each level holds all rows of the cell."""
    tree = Tree(branching=branching, height=height)
    cell, code = ints(*[c for c, _ in rows]), ints(*[leaf % tree.leaves for _, leaf in rows])
    nodes = count_bins(cell, code, 3, tree)
    levels = np.split(nodes, np.cumsum(tree.sizes)[:-1], axis=1)
    for upper, lower in itertools.pairwise(levels):
        assert np.array_equal(upper, lower.reshape(3, upper.shape[1], branching).sum(axis=2))
    assert all(level.sum(axis=1).tolist() == np.bincount(cell, minlength=3).tolist() for level in levels)


def test_an_empty_window_has_vectors_of_zeros() -> None:
    """An empty window is released like any other: as many cells, int64."""
    none = np.array([], dtype=np.bool_)
    for vector in (count_rows(ints(), 3), count_units(ints(), none, 3), sum_values(ints(), ints(), 3)):
        assert vector.dtype == np.int64
        assert vector.tolist() == [0, 0, 0]


def test_sums_are_exact_beyond_doubles() -> None:
    """Integer sums, not floating-point ones: 2**53 + 1 is told from 2**53."""
    assert sum_values(ints(0, 0), ints(2**53, 1), 1).tolist() == [2**53 + 1]


@given(cells=st.integers(1, 100_000), linf=st.integers(1, 2**62), levels=st.integers(1, 10))
def test_l2_is_rounded_up(cells: int, linf: int, levels: int) -> None:
    """The square of l2 is never below cells * levels * linf**2, and the double before it would be."""
    moves = Sensitivity(linf=linf, cells=cells, levels=levels)
    square = cells * levels * linf**2
    assert Fraction(moves.l2) ** 2 >= square
    assert Fraction(math.nextafter(math.nextafter(moves.l2, 0.0), 0.0)) ** 2 < square
    assert moves.l1 == cells * levels * linf


# Sensitivities: what a bounded unit can add to each vector, farthest first; more units do not come into it


def moves(contribution: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    """How far a unit's contribution reaches: l-infinity, l1, and l2 squared."""
    far = [abs(int(move)) for move in contribution.ravel()]
    return max(far, default=0), sum(far), sum(move**2 for move in far)


def within(contribution: npt.NDArray[np.int64], declared: Sensitivity) -> bool:
    """Whether all three norms are no more than declared."""
    linf, l1, square = moves(contribution)
    return linf <= declared.linf and l1 <= declared.l1 and square <= Fraction(declared.l2) ** 2


def attains(contribution: npt.NDArray[np.int64], declared: Sensitivity) -> bool:
    """Whether all three norms are what is declared (l2 up to its rounding)."""
    linf, l1, square = moves(contribution)
    return (linf, l1) == (declared.linf, declared.l1) and math.isclose(math.sqrt(square), declared.l2, rel_tol=1e-12)


clips = st.builds(
    lambda low, steps, centred: Clip(
        lower=low, upper=low + steps, centre=(2 * low + steps) // 2 if centred else 0, resolution=1.0
    ),
    st.integers(-50, 50),
    st.integers(1, 60),
    st.booleans(),
)
kept = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40)


def bounded(rows: list[tuple[int, int]], cells: int, max_rows: int) -> list[tuple[int, int]]:
    """What bounding keeps of one unit: its first cells, and its first rows there."""
    chosen = list(dict.fromkeys(cell for cell, _ in rows))[:cells]
    return [row for cell in chosen for row in [r for r in rows if r[0] == cell][:max_rows]]


@given(rows=kept, cells=st.integers(1, 6), max_rows=st.integers(1, 4), clip=clips, height=st.integers(1, 3))
def test_no_unit_moves_a_vector_farther_than_declared(
    *, rows: list[tuple[int, int]], cells: int, max_rows: int, clip: Clip, height: int
) -> None:
    """Whatever one unit keeps, its contribution to each kind of vector stays within l-infinity, l1 and l2."""
    mine = bounded(rows, cells, max_rows)
    cell, number = ints(*[c for c, _ in mine]), ints(*[n for _, n in mine])
    first = np.array([i == 0 or cell[i] != cell[i - 1] for i in range(len(cell))], dtype=np.bool_)
    steps = number % (clip.upper - clip.lower + 1) + (clip.lower - clip.centre)
    tree = Tree(branching=3, height=height)
    assert within(count_rows(cell, 6), rows_sensitivity(cells, max_rows))
    assert within(count_units(cell, first, 6), units_sensitivity(cells))
    assert within(sum_values(cell, steps, 6), sum_sensitivity(cells, max_rows, clip))
    assert within(sum_values(cell, steps * steps, 6), squares_sensitivity(cells, max_rows, clip))
    assert within(count_bins(cell, number % tree.leaves, 6, tree), bins_sensitivity(cells, max_rows, height))
    if clip.centre == 0 and clip.lower <= 0 <= clip.upper:
        totals = np.clip(ints(*[997 * n - 30_000 for n in number[first]]), clip.lower, clip.upper)
        assert within(sum_values(cell[first], totals, 6), totals_sensitivity(cells, clip))


@pytest.mark.parametrize(("cells", "max_rows", "height"), [(1, 1, 1), (2, 3, 2), (6, 4, 3)])
@pytest.mark.parametrize("clip", [CLIP, FROM_ZERO, Clip(lower=-3, upper=2, centre=-1, resolution=1.0)])
def test_some_unit_moves_each_vector_as_far_as_declared(cells: int, max_rows: int, height: int, clip: Clip) -> None:
    """The declared sensitivity is attained: all rows at the farthest value, in one bin, so no noise is wasted."""
    cell = np.repeat(np.arange(cells), max_rows)
    first = np.arange(len(cell)) % max_rows == 0
    far = max(clip.lower - clip.centre, clip.upper - clip.centre, key=abs)
    steps, code = np.full(len(cell), far), np.full(len(cell), 4)
    tree = Tree(branching=5, height=height)
    assert attains(count_rows(cell, 9), rows_sensitivity(cells, max_rows))
    assert attains(count_units(cell, first, 9), units_sensitivity(cells))
    assert attains(sum_values(cell, steps, 9), sum_sensitivity(cells, max_rows, clip))
    assert attains(sum_values(cell, steps * steps, 9), squares_sensitivity(cells, max_rows, clip))
    assert attains(count_bins(cell, code, 9, tree), bins_sensitivity(cells, max_rows, height))
    assert attains(sum_values(cell[first], steps[first], 9), totals_sensitivity(cells, clip))


def test_mutant_sensitivities_are_caught() -> None:
    """Mutants: a tree without its levels, squares by the linear bound, rows for a total, a bound one cell short."""
    rows, clip = 3, Clip(lower=-4, upper=9, centre=0, resolution=1.0)
    cell = np.repeat(np.arange(2), rows)
    tree = Tree(branching=2, height=3)
    bins = count_bins(cell, np.zeros_like(cell), 2, tree)
    assert within(bins, bins_sensitivity(2, rows, 3))
    assert not within(bins, bins_sensitivity(2, rows, 1))
    squares = sum_values(cell, np.full(len(cell), 81), 2)
    assert within(squares, squares_sensitivity(2, rows, clip))
    assert not within(squares, sum_sensitivity(2, rows, clip))
    added_up = sum_values(cell, np.full(len(cell), 9), 2)  # clipped row by row, then added up
    assert within(added_up, sum_sensitivity(2, rows, clip))
    assert not within(added_up, totals_sensitivity(2, clip))
    assert not within(count_rows(cell, 2), rows_sensitivity(1, rows))


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
    each = sum_sensitivity(1, plan.bounds.max_rows_per_partition, clip_of(plan, "values")).linf
    assert each * MAX_UNITS < 2**62
    total = sum_values(ints(*[0] * 8), ints(*[each * MAX_UNITS // 8] * 8), 1)
    assert int(total[0]) == each * MAX_UNITS // 8 * 8
    with pytest.raises(PlanInvalid, match="too fine"):
        plan_of(metric.replace("16383.0", "16384.0"), max_rows=2**20)


def test_the_largest_squares_and_totals_that_a_plan_admits_fit(plan_of: Callable[..., Plan]) -> None:
    """The same for squares, about the centre, and for totals, whose bounds are as far as one row can reach."""
    metric = 'kind = "variance"\ncolumn = "x"\nlower = 0.0\nupper = 8188.0\nresolution = 1.0'
    plan = plan_of(metric, max_rows=2**10)
    each = squares_sensitivity(1, 2**10, clip_of(plan, "squares"))
    assert 2**61 < each.linf * MAX_UNITS < 2**62
    with pytest.raises(PlanInvalid, match="too fine"):
        plan_of(metric.replace("8188.0", "8192.0"), max_rows=2**10)
    metric = f'kind = "sum"\nclip = "unit"\ncolumn = "x"\nlower = 0.0\nupper = {2.0**31 - 1}\nresolution = 1.0'
    plan = plan_of(metric, max_rows=2**20)
    assert totals_sensitivity(1, clip_of(plan, "totals")).linf * MAX_UNITS < 2**62
    with pytest.raises(PlanInvalid, match="too fine"):
        plan_of(metric.replace(str(2.0**31 - 1), str(2.0**31)))


def clip_of(plan: Plan, of: str) -> Clip:
    """The grid of a plan's vector of that kind."""
    (clip,) = [vector.clip for vector in plan_vectors(plan) if vector.of == of]
    assert clip is not None
    return clip
