"""A measurement: what it costs is the sum of its maps, and no unit moves it farther than it declares."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.plan import parse_plan
from edge_agg.contract.release import DELTA_GRID, RHO_GRID, KeySpec, Mechanism, VectorSpec
from edge_agg.contract.vectors import payload_columns
from edge_agg.errors import PlanRefused
from edge_agg.privacy import aggregate, measurement, noise
from edge_agg.privacy.bound import Bounding
from edge_agg.privacy.measurement import Measurement, compile_plan, sensitivity_of, units_of_keys
from edge_agg.privacy.rows import read_events
from tests.edge_agg.compiled import compiled_once
from tests.fakes import Row, batch_of, small_plan_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from edge_agg.contract.plan import Plan
    from edge_agg.privacy.bound import Bounded, Rows

    PlanOf = Callable[..., Plan]
    RowsOf = Callable[[Measurement, Sequence[Any]], Rows]

COUNT = 'kind = "count"'
UNITS = 'kind = "distinct_units"'
SUM = 'kind = "sum"\ncolumn = "x"\nlower = -2.0\nupper = 5.0\nresolution = 0.5'
MEAN = 'kind = "mean"\ncolumn = "x"\nlower = -2.0\nupper = 5.0\nresolution = 0.5'
VARIANCE = MEAN.replace("mean", "variance")
TOTAL = SUM + '\nclip = "unit"'
HISTOGRAM = 'kind = "histogram"\ncolumn = "x"\nedges = [0.0, 1.0, 2.0]'
QUANTILES = 'kind = "quantiles"\ncolumn = "x"\nlower = -2.0\nupper = 6.0\nbins = 16\nquantiles = [0.5]'
KINDS = [COUNT, UNITS, SUM, MEAN, VARIANCE, TOTAL, HISTOGRAM, QUANTILES]
DISCOVER = "delta = 1e-7"
CELLS = 4

# Metrics, cells, L0, Li, mechanism; then by hand: the sensitivity of each vector, and of each the share of the loss.
TABLE: list[tuple[list[str], int, int, int, str, list[float], list[Fraction]]] = [
    ([COUNT], 4, 2, 3, "laplace", [6], [Fraction(1)]),
    ([COUNT], 4, 2, 3, "gaussian", [math.sqrt(18)], [Fraction(1)]),
    ([UNITS], 4, 2, 3, "laplace", [2], [Fraction(1)]),
    ([UNITS], 9, 4, 3, "gaussian", [2], [Fraction(1)]),
    ([SUM], 4, 2, 3, "laplace", [2 * 3 * 10], [Fraction(1)]),
    ([SUM], 4, 1, 3, "gaussian", [30], [Fraction(1)]),
    # Grid -4 .. 10, centre 3: seven steps to either side.
    ([MEAN], 4, 2, 3, "laplace", [2 * 3 * 7, 6], [Fraction(1, 2)] * 2),
    ([MEAN], 4, 4, 1, "gaussian", [14, 2], [Fraction(1, 2)] * 2),
    # The second moment about the centre: seven steps, squared.
    ([VARIANCE], 4, 2, 3, "laplace", [2 * 3 * 7, 6, 2 * 3 * 49], [Fraction(1, 3)] * 3),
    ([VARIANCE], 4, 4, 1, "gaussian", [14, 2, 98], [Fraction(1, 3)] * 3),
    # A mean and a variance with the same bounds share two vectors, at the larger weight of the two.
    ([MEAN, VARIANCE + "\nweight = 2.0"], 4, 1, 1, "laplace", [7, 1, 49], [Fraction(1, 3)] * 3),
    # A unit's whole total within -4 .. 10: its rows do not come into it.
    ([TOTAL], 4, 2, 3, "laplace", [2 * 10], [Fraction(1)]),
    ([TOTAL], 4, 4, 3, "gaussian", [20], [Fraction(1)]),
    # All rows in one bin.
    ([HISTOGRAM], 4, 2, 3, "laplace", [6], [Fraction(1)]),
    ([HISTOGRAM], 4, 2, 3, "gaussian", [math.sqrt(18)], [Fraction(1)]),
    # Sixteen bins: flat under Laplace noise, two levels of four under Gaussian noise, and a row counts on each.
    ([QUANTILES], 4, 2, 3, "laplace", [6], [Fraction(1)]),
    ([QUANTILES], 4, 2, 3, "gaussian", [math.sqrt(2 * 2 * 9)], [Fraction(1)]),
    # More partitions than there are cells: the cells are the limit.
    ([COUNT], 3, 50, 2, "laplace", [6], [Fraction(1)]),
    # Weights 1 : 3, and a mean's two vectors share its weight each: 1 : 3 : 2 : 2.
    ([COUNT, UNITS + "\nweight = 3.0"], 4, 1, 1, "laplace", [1, 1], [Fraction(1, 4), Fraction(3, 4)]),
    (
        [COUNT, UNITS + "\nweight = 3.0", MEAN + "\nweight = 2.0"],
        4,
        1,
        1,
        "gaussian",
        [1, 1, 7, 1],
        [Fraction(1, 8), Fraction(3, 8), Fraction(2, 8), Fraction(2, 8)],
    ),
]


@pytest.mark.parametrize(("metrics", "cells", "partitions", "rows", "mechanism", "moves", "shares"), TABLE)
def test_plans_by_hand(
    *,
    plan_of: PlanOf,
    metrics: list[str],
    cells: int,
    partitions: int,
    rows: int,
    mechanism: str,
    moves: list[float],
    shares: list[Fraction],
) -> None:
    """Sensitivity, share and scale of every vector, and the charge, as computed by hand at epsilon 1."""
    plan = plan_of(*metrics, cells=cells, max_partitions=partitions, max_rows=rows, mechanism=mechanism)
    compiled = compile_plan(plan)
    whole = noise.rho_within(1.0, 1e-6) if mechanism == "gaussian" else Fraction(1)
    assert [spec.sensitivity for spec in compiled.specs] == pytest.approx(moves, rel=1e-15)
    for spec, move, share in zip(compiled.specs, moves, shares, strict=True):
        loss = float(whole * share)
        scale = move / math.sqrt(2 * loss) if mechanism == "gaussian" else move / loss
        assert spec.mechanism == Mechanism(mechanism)
        assert spec.loss == pytest.approx(loss, rel=1e-9)
        assert spec.scale == pytest.approx(scale, rel=1e-9)
    rho = float(whole) if mechanism == "gaussian" else 0.5
    assert float(compiled.charge.rho) == pytest.approx(rho, rel=1e-9)
    assert compiled.charge.delta == 0


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize("metrics", [[COUNT], [COUNT, UNITS, SUM, MEAN], [COUNT + "\nweight = 0.001", MEAN]])
@pytest.mark.parametrize("epsilon", [0.1, 7.3])
def test_the_charge_is_the_sum_of_the_maps(plan_of: PlanOf, metrics: list[str], mechanism: str, epsilon: float) -> None:
    """Exactly the vectors' own losses, rounded up to the grid, and never more than the plan's budget.

    Pure epsilon is charged epsilon**2 / 2 of the sum, rounded up as well.
    """
    compiled = compile_plan(plan_of(*metrics, mechanism=mechanism, epsilon=epsilon))
    for spec in compiled.specs:
        assert spec.loss == noise.loss_of(spec.mechanism, scale=spec.scale, sensitivity=spec.sensitivity)
    spent = sum(Fraction(spec.loss) for spec in compiled.specs)
    if mechanism == "gaussian":
        assert compiled.charge.rho == Fraction(math.ceil(spent * RHO_GRID), RHO_GRID)
        assert compiled.charge.rho <= noise.rho_within(epsilon, 1e-6)
        assert noise.epsilon_of(compiled.charge.rho, 1e-6) <= epsilon
    else:
        assert spent <= Fraction(epsilon)
        assert spent**2 / 2 <= compiled.charge.rho <= spent**2 / 2 + Fraction(2, RHO_GRID)


def test_the_same_plan_compiles_to_the_same_scales(plan_of: PlanOf) -> None:
    """Calibration is a function of the plan: every site adds the same noise."""
    plan = plan_of(*KINDS)
    assert compile_plan(plan).specs == compile_plan(plan).specs


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_an_impossible_budget_is_refused(plan_of: PlanOf, mechanism: str) -> None:
    """No scale up to 2**50 fits: the plan is refused when it is compiled, and the vector is named."""
    with pytest.raises(PlanRefused, match="vector m0: no noise scale"):
        compile_plan(plan_of(COUNT, epsilon=1e-300, delta=1e-12, mechanism=mechanism))
    with pytest.raises(PlanRefused, match="vector m1: no noise scale"):
        compile_plan(plan_of(COUNT, UNITS + "\nweight = 1e-300", mechanism=mechanism))


def test_draw_takes_the_measured_vectors_in_order(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each vector is drawn once, with its own mechanism and scale, in the payload's order."""
    compiled = compile_plan(plan_of(COUNT, UNITS, SUM, MEAN))
    asked = []

    def fake(mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        asked.append((mechanism, scale, int(exact[0])))
        return exact + 100

    monkeypatch.setattr(noise, "draw", fake)
    exact = {vector.name: np.array([i, i], dtype=np.int64) for i, vector in enumerate(compiled.vectors)}
    drawn = compiled.draw(exact)
    assert list(drawn) == [vector.name for vector in compiled.vectors] == [spec.name for spec in compiled.specs]
    assert asked == [(spec.mechanism, spec.scale, i) for i, spec in enumerate(compiled.specs)]
    assert [int(vector[0]) for vector in drawn.values()] == [100 + i for i in range(len(asked))]


# Grey box: how far one unit moves the exact vectors

readings = st.none() | st.sampled_from([-math.inf, -1e300, -2.0, -0.75, 0.0, 1.5, 5.0, 5.1, math.inf])


def exact(plan: Plan, rows_of: RowsOf, events: Sequence[Any], salt: bytes) -> dict[str, npt.NDArray[np.int64]]:
    """The exact vectors of some events, by the measurement's own way."""
    compiled = compiled_once(plan)
    state = compiled.bounding(salt)
    if events:
        state.add(rows_of(compiled, events))
    return compiled.exact(state.kept())


def overruns(plan: Plan, less: dict[str, Any], more: dict[str, Any]) -> list[str]:
    """The vectors that moved farther than declared, in any of the norms or in what they were calibrated to."""
    found = []
    compiled = compiled_once(plan)
    for vector, spec in zip(compiled.vectors, compiled.specs, strict=True):
        moved = (more[vector.name] - less[vector.name]).astype(object)
        declared = sensitivity_of(plan, vector)
        l1, square = int(abs(moved).sum()), int((moved**2).sum())
        reach = Fraction(spec.sensitivity)
        within = square <= reach**2 if spec.mechanism is Mechanism.GAUSSIAN else l1 <= reach
        if (
            int(abs(moved).max()) > declared.linf
            or l1 > declared.l1
            or square > Fraction(declared.l2) ** 2
            or not within
        ):
            found.append(vector.name)
    return found


@settings(max_examples=40)
@given(
    kind=st.sampled_from(KINDS),
    mechanism=st.sampled_from(["gaussian", "laplace"]),
    limits=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    others=st.lists(st.tuples(st.integers(0, 3), st.integers(0, CELLS - 1), st.integers(0, 3), readings), max_size=15),
    mine=st.lists(st.tuples(st.integers(0, CELLS - 1), st.integers(0, 3), readings), min_size=1, max_size=25),
    data=st.data(),
)
def test_one_unit_moves_no_vector_farther_than_declared(
    *,
    plan_of: PlanOf,
    rows_of: RowsOf,
    event: Callable[..., Any],
    salt: bytes,
    kind: str,
    mechanism: str,
    limits: tuple[int, int],
    others: list[Any],
    mine: list[Any],
    data: st.DataObject,
) -> None:
    """Adding or removing all rows of one unit, whatever it sends, moves l-infinity, l1 and l2 within the declared."""
    plan = plan_of(kind, cells=CELLS, max_partitions=limits[0], max_rows=limits[1], mechanism=mechanism)
    without = [event(unit=u, cell=c, time_us=t, reading=r) for u, c, t, r in others]
    added = [event(unit=99, cell=c, time_us=t, reading=r) for c, t, r in mine]
    with_it = data.draw(st.permutations(without + added))
    assert overruns(plan, exact(plan, rows_of, without, salt), exact(plan, rows_of, with_it, salt)) == []


def extreme(event: Callable[..., Any], *, cells: int, rows: int, reading: float) -> list[Any]:
    """One unit that sends many rows in many cells, all with one reading."""
    return [event(unit=99, cell=cell, time_us=t, reading=reading) for cell in range(cells) for t in range(rows)]


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize(
    ("kind", "reading"),
    [
        (COUNT, 0.0),
        (UNITS, 0.0),
        (SUM, math.inf),
        (MEAN, math.inf),
        (MEAN, -9.0),
        (VARIANCE, math.inf),
        (TOTAL, math.inf),
        (HISTOGRAM, 1.5),
        (QUANTILES, -math.inf),
    ],
)
@pytest.mark.parametrize(("partitions", "rows"), [(1, 1), (2, 3), (4, 2), (9, 5)])
def test_some_unit_moves_each_vector_as_far_as_declared(
    *,
    plan_of: PlanOf,
    rows_of: RowsOf,
    event: Callable[..., Any],
    salt: bytes,
    kind: str,
    reading: float,
    mechanism: str,
    partitions: int,
    rows: int,
) -> None:
    """The declared sensitivity is attained, so no noise is wasted: a unit that sends too much moves just that far."""
    plan = plan_of(kind, cells=CELLS, max_partitions=partitions, max_rows=rows, mechanism=mechanism)
    mine = extreme(event, cells=CELLS, rows=rows + 2, reading=reading)
    less, more = exact(plan, rows_of, [], salt), exact(plan, rows_of, mine, salt)
    assert overruns(plan, less, more) == []
    for vector, spec in zip(compiled_once(plan).vectors, compiled_once(plan).specs, strict=True):
        moved = np.abs(more[vector.name] - less[vector.name])
        declared = sensitivity_of(plan, vector)
        assert (moved.max(), moved.sum()) == (declared.linf, declared.l1)
        attained = math.sqrt((moved**2).sum()) if mechanism == "gaussian" else moved.sum()
        assert attained == pytest.approx(spec.sensitivity, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_mutant_no_bounding_is_caught(
    *,
    plan_of: PlanOf,
    rows_of: RowsOf,
    event: Callable[..., Any],
    salt: bytes,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Mutant: everything is kept; one busy unit then moves every kind of vector too far."""
    plan = plan_of(kind, cells=CELLS, max_partitions=1, max_rows=2)
    mine = extreme(event, cells=CELLS, rows=5, reading=math.inf)
    assert overruns(plan, exact(plan, rows_of, [], salt), exact(plan, rows_of, mine, salt)) == []
    original = Bounding.__init__

    def unbounded(self: Bounding, **options: Any) -> None:
        original(self, **{**options, "max_partitions": 10**6, "max_rows": 10**6})

    monkeypatch.setattr(Bounding, "__init__", unbounded)
    assert overruns(plan, exact(plan, rows_of, [], salt), exact(plan, rows_of, mine, salt)) != []


def test_mutant_a_total_clipped_before_it_is_whole_is_caught(
    *, plan_of: PlanOf, rows_of: RowsOf, event: Callable[..., Any], salt: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: rows are clipped and their total is not; a unit with many rows shows it."""
    plan = plan_of(TOTAL, cells=CELLS, max_partitions=1, max_rows=2)
    mine = extreme(event, cells=CELLS, rows=50, reading=4.0)
    less, more = exact(plan, rows_of, [], salt), exact(plan, rows_of, mine, salt)
    assert overruns(plan, less, more) == []
    assert more["m0"].max() == 10
    with monkeypatch.context() as mutant:
        mutant.setattr(np, "clip", lambda values, lower, upper: values)
        assert overruns(plan, less, exact(plan, rows_of, mine, salt)) == ["m0"]


@pytest.mark.parametrize("kind", [SUM, MEAN])
def test_mutant_a_looser_clip_is_caught(
    *,
    plan_of: PlanOf,
    event: Callable[..., Any],
    salt: bytes,
    rows_of: RowsOf,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Mutant: a sensitivity that is one grid step too small; the extreme reading shows it."""
    plan = plan_of(kind, cells=CELLS, max_partitions=1, max_rows=2)
    mine = extreme(event, cells=CELLS, rows=2, reading=math.inf)
    assert overruns(plan, exact(plan, rows_of, [], salt), exact(plan, rows_of, mine, salt)) == []
    original = aggregate.sum_sensitivity
    monkeypatch.setattr(
        "edge_agg.privacy.measurement.sum_sensitivity",
        lambda cells, rows, clip: aggregate.Sensitivity(linf=original(cells, rows, clip).linf - 1, cells=cells),
    )
    assert overruns(plan, exact(plan, rows_of, [], salt), exact(plan, rows_of, mine, salt)) == [
        compiled_once(plan).vectors[0].name
    ]


def test_exact_vectors_by_hand(plan_of: PlanOf, rows_of: RowsOf, event: Callable[..., Any], salt: bytes) -> None:
    """Within the bounds nothing is lost: counts, units, sums and valid rows of a small window."""
    plan = plan_of(*KINDS, cells=CELLS, mechanism="laplace")
    events = [
        event(unit=1, cell=0, time_us=0, reading=1.0),
        event(unit=1, cell=0, time_us=1, reading=None),
        event(unit=1, cell=2, time_us=2, reading=99.0),
        event(unit=2, cell=0, time_us=0, reading=-0.5),
    ]
    vectors = {name: vector.tolist() for name, vector in exact(plan, rows_of, events, salt).items()}
    assert vectors == {
        "m0": [3, 0, 1, 0],
        "m1": [2, 0, 1, 0],
        "m2": [2 - 1, 0, 10, 0],
        "m3_sum": [(2 - 3) + (-1 - 3), 0, 10 - 3, 0],
        "m3_count": [2, 0, 1, 0],
        "m4_squares": [(2 - 3) ** 2 + (-1 - 3) ** 2, 0, 49, 0],
        "m5": [2 - 1, 0, 10, 0],
        "m6": [[1, 1], [0, 0], [0, 1], [0, 0]],
        "m7": [
            [int(i in (3, 6)) for i in range(16)],
            [0] * 16,
            [int(i == 15) for i in range(16)],
            [0] * 16,
        ],
    }


def test_a_total_holds_the_rows_beyond_the_limit(
    plan_of: PlanOf, rows_of: RowsOf, event: Callable[..., Any], salt: bytes
) -> None:
    """All of a unit's rows in a cell are added up, then clipped: by sign, by cell, nulls as nothing."""
    plan = plan_of(TOTAL, COUNT, cells=CELLS, max_partitions=4, max_rows=1)
    events = [
        *[event(unit=1, cell=0, time_us=t, reading=r) for t, r in enumerate([2.0, -1.0, None, 0.5, 1.0])],
        *[event(unit=1, cell=1, time_us=t, reading=4.0) for t in range(3)],
        *[event(unit=1, cell=2, time_us=t, reading=-4.0) for t in range(3)],
        event(unit=2, cell=0, time_us=0, reading=1e9),
    ]
    vectors = exact(plan, rows_of, events, salt)
    assert vectors["m0"].tolist() == [4 - 2 + 1 + 2 + 10, 10, -4, 0]
    assert vectors["m1"].tolist() == [2, 1, 1, 0]


def test_an_empty_window_is_measured_like_any_other(plan_of: PlanOf, rows_of: RowsOf, salt: bytes) -> None:
    """No events: as many vectors and cells as ever, all zeros before the noise."""
    plan = plan_of(*KINDS, cells=CELLS)
    columns = compiled_once(plan).draw(exact(plan, rows_of, [], salt))
    assert tuple(columns) == payload_columns(plan)
    assert {len(column) for column in columns.values()} == {CELLS}
    assert not any(vector.any() for vector in exact(plan, rows_of, [], salt).values())


def test_bins_are_columns_in_the_order_of_their_tree(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector of bins is drawn as one and leaves as a column a node."""
    monkeypatch.setattr(noise, "draw", lambda mechanism, scale, exact: exact)
    compiled = compile_plan(plan_of(HISTOGRAM, COUNT, cells=2))
    columns = compiled.draw({"m0": np.array([[1, 2], [3, 4]]), "m1": np.array([5, 6])})
    assert {name: column.tolist() for name, column in columns.items()} == {
        "m0__0": [1, 3],
        "m0__1": [2, 4],
        "m1": [5, 6],
    }


# Discovered keys


@pytest.mark.parametrize(
    ("mechanism", "moves"), [("laplace", [3, 3, 6]), ("gaussian", [math.sqrt(3), math.sqrt(3), math.sqrt(12)])]
)
def test_the_selection_of_keys_has_its_share_by_hand(plan_of: PlanOf, mechanism: str, moves: list[float]) -> None:
    """Weights 2 for the selection, 1 and 1 for the vectors; a Gaussian plan's delta is less what discovery takes.

    One unit has at most L0 = 3 keys, whatever the number of public cells; it has one row or two in each.
    """
    plan = plan_of(
        UNITS, COUNT, cells=1, max_partitions=3, max_rows=2, mechanism=mechanism, discover="delta = 1e-7, weight = 2.0"
    )
    compiled = compile_plan(plan)
    assert compiled.selection is not None
    whole = noise.rho_within(1.0, 1e-6 - 1e-7) if mechanism == "gaussian" else Fraction(1)
    specs: list[KeySpec | VectorSpec] = [compiled.selection, *compiled.specs]
    assert [spec.sensitivity for spec in specs] == pytest.approx(moves, rel=1e-15)
    for spec, share in zip(specs, (Fraction(1, 2), Fraction(1, 4), Fraction(1, 4)), strict=True):
        assert spec.loss <= whole * share
        assert spec.loss == pytest.approx(float(whole * share), rel=1e-9)
    spent = sum((Fraction(spec.loss) for spec in specs), Fraction(0))
    rho = spent if mechanism == "gaussian" else spent**2 / 2
    assert rho <= compiled.charge.rho <= rho + Fraction(2, RHO_GRID)
    assert (compiled.selection.partition, compiled.selection.mechanism) == ("key", Mechanism(mechanism))
    assert (
        compiled.selection.threshold
        == noise.threshold_of(Mechanism(mechanism), scale=compiled.selection.scale, cells=3, delta=1e-7)[0]
    )
    assert Fraction(compiled.selection.delta) <= compiled.charge.delta <= Fraction(1e-7) + Fraction(1, DELTA_GRID)
    if mechanism == "gaussian":
        assert noise.epsilon_of(compiled.charge.rho, 1e-6 - float(compiled.charge.delta)) <= 1.0


def test_a_selection_that_is_not_paid_for_would_be_caught(plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: the charge of a plan without discovery; the delta of the plan spent twice."""
    keyed, plain = (compile_plan(plan_of(COUNT, discover=discover)) for discover in (DISCOVER, None))
    assert keyed.selection is not None
    vectors = sum((Fraction(spec.loss) for spec in keyed.specs), Fraction(0))
    assert keyed.charge.rho >= vectors + Fraction(keyed.selection.loss) > vectors
    assert plain.charge.delta == 0 < keyed.charge.delta
    assert noise.epsilon_of(plain.charge.rho, 1e-6 - 1e-7) > 1.0  # the rho of all of delta, beside a discovery


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"discover": "delta = 1e-30"}, "partition key: no threshold"),
        ({"discover": "delta = 1e-30", "mechanism": "laplace"}, "partition key: no threshold"),
        ({"discover": "delta = 1e-7, weight = 1e-300"}, "partition key: no noise scale"),
    ],
)
def test_an_impossible_discovery_is_refused(plan_of: PlanOf, changes: dict[str, str], named: str) -> None:
    """A delta that no map can show to be small enough, or a share that no scale fits: refused when it is compiled."""
    with pytest.raises(PlanRefused, match=named):
        compile_plan(plan_of(COUNT, **changes))


def keyed_rows(event: Callable[..., Any], held: dict[str, int]) -> list[Any]:
    """As many units for each key as it says, with two rows each in two cells."""
    return [
        event(unit=1000 * i + unit, cell=cell, time_us=row, reading=1.0, key=key)
        for i, (key, units) in enumerate(held.items())
        for unit in range(units)
        for cell in (0, 1)
        for row in (0, 1)
    ]


def selecting(plan: Plan, rows_of: RowsOf, events: Sequence[Any], salt: bytes) -> tuple[Measurement, Bounded]:
    """A plan's measurement, and what is kept of some events."""
    compiled = compiled_once(plan)
    state = compiled.bounding(salt)
    if events:
        state.add(rows_of(compiled, events))
    return compiled, state.kept()


def threshold_at(compiled: Measurement, threshold: int) -> Measurement:
    """The measurement with another threshold."""
    assert compiled.selection is not None
    return replace(compiled, selection=replace(compiled.selection, threshold=threshold))


def passed(compiled: Measurement, bounded: Bounded) -> list[str]:
    """The keys that leave."""
    keys = compiled.release([bounded]).keys
    assert keys is not None
    return list(keys.texts)


def no_noise(mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A draw that adds nothing."""
    return exact


def test_only_keys_strictly_above_the_threshold_leave_sorted_with_all_their_cells(
    *,
    plan_of: PlanOf,
    rows_of: RowsOf,
    event: Callable[..., Any],
    salt: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Noisy units on the threshold do not pass, one more does; what leaves is theirs alone, ascending by text."""
    monkeypatch.setattr(noise, "draw", no_noise)
    plan = plan_of(COUNT, UNITS, HISTOGRAM, cells=3, max_partitions=8, max_rows=2, discover=DISCOVER, epsilon=20.0)
    selection = compiled_once(plan).selection
    assert selection is not None
    at = selection.threshold
    held = {"zz": at + 1, "on": at, "b": at + 5, "under": at - 1, "Ä": at + 1}
    compiled, bounded = selecting(plan, rows_of, keyed_rows(event, held), salt)
    noisy = compiled.release([bounded])
    assert noisy.keys == ("key", ["b", "zz", "Ä"])
    counts = [2 * (at + 5)] * 2 + [0] + ([2 * (at + 1)] * 2 + [0]) * 2
    assert noisy.columns["m0"].tolist() == counts
    assert noisy.columns["m1"].tolist() == [count // 2 for count in counts]
    assert noisy.columns["m2__1"].tolist() == counts
    assert tuple(noisy.columns) == payload_columns(plan)
    # Mutant: at the threshold or above, as the library's own mechanism would release.
    assert passed(threshold_at(compiled, at - 1), bounded) == ["b", "on", "zz", "Ä"]


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_release_without_keys_has_every_column_and_no_row(
    *, plan_of: PlanOf, rows_of: RowsOf, event: Callable[..., Any], salt: bytes, kind: str, rows: int
) -> None:
    """No key, or none that passed: nothing but the shape leaves, whatever the metrics."""
    plan = plan_of(kind, discover=DISCOVER)
    compiled, bounded = selecting(plan, rows_of, keyed_rows(event, {f"k{i}": 1 for i in range(rows)}), salt)
    noisy = threshold_at(compiled, 2**40).release([bounded])
    assert noisy.keys == ("key", [])
    assert {name: len(column) for name, column in noisy.columns.items()} == dict.fromkeys(payload_columns(plan), 0)


def test_a_key_that_bounding_left_without_a_unit_never_passes(
    *,
    plan_of: PlanOf,
    rows_of: RowsOf,
    event: Callable[..., Any],
    salt: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One unit with a thousand keys has at most L0 chances to show one: delta is for no more.

    Mutant: every key that was seen takes part.
    """
    monkeypatch.setattr(noise, "draw", lambda mechanism, scale, exact: exact + 2**41)
    plan = plan_of(COUNT, max_partitions=3, discover=DISCOVER)
    mine = [event(unit=7, cell=0, time_us=0, reading=None, key=f"k{i:04}") for i in range(1000)]
    compiled, bounded = selecting(plan, rows_of, mine, salt)
    seen = replace(bounded, keys=[*bounded.keys, "never kept"])
    assert len(passed(compiled, seen)) == 3
    monkeypatch.setattr(measurement, "units_of_keys", lambda bounded: np.ones(len(bounded.keys), dtype=np.int64))
    assert "never kept" in passed(compiled, seen)


@pytest.mark.parametrize("order", ["abcde", "edcba", "cebad"])
def test_more_keys_than_a_release_holds_leave_the_least_out(
    *,
    plan_of: PlanOf,
    rows_of: RowsOf,
    event: Callable[..., Any],
    salt: bytes,
    monkeypatch: pytest.MonkeyPatch,
    order: str,
) -> None:
    """The largest noisy ones stay, of equal ones the first by text; the order in which keys came says nothing.

    Mutant: ties broken by the order of the data, which shows in one of these orders.
    """
    monkeypatch.setattr(noise, "draw", no_noise)
    monkeypatch.setattr(measurement, "max_keys", lambda plan: 3)
    plan = plan_of(COUNT, discover=DISCOVER, max_partitions=8)
    held = {"c": 4, "e": 5, "b": 4, "a": 1, "d": 4}
    compiled, bounded = selecting(plan, rows_of, keyed_rows(event, held), salt)
    assert bounded.key is not None
    place = np.array([order.index(key) for key in bounded.keys])
    as_it_came = replace(bounded, keys=list(order), key=place[bounded.key])
    assert passed(threshold_at(compiled, 0), as_it_came) == ["b", "c", "e"]
    first = np.argsort(-units_of_keys(as_it_came), kind="stable")[:3]
    assert (sorted(order[i] for i in first) == ["b", "c", "e"]) == (order != "edcba")


def test_where_every_event_is_a_unit_a_keys_units_are_its_rows() -> None:
    """Each row is another unit, also next to one that is equal; it has one key and one cell."""
    text = small_plan_text('name = "n"\nkind = "distinct_units"', discover=1e-9, max_rows=1)
    plan = parse_plan(text.replace('column = "u"\n', "event = true\n"))
    compiled = compile_plan(plan)
    assert compiled.selection is not None
    assert compiled.selection.sensitivity == compiled.specs[0].sensitivity == 1
    state = compiled.bounding(b"a salt for tests")
    rows = [Row(u=None, k=key) for key in "abbabb"]
    state.add(read_events(plan, compiled.vectors, batch_of(rows, plan)).rows)
    kept = state.kept()
    assert dict(zip(kept.keys, units_of_keys(kept).tolist(), strict=True)) == {"a": 2, "b": 4}
    assert sorted(compiled.exact(kept, np.arange(2))["n"].tolist()) == [2, 4]


own_keys = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcde"), st.integers(0, 1)), max_size=30)


@settings(max_examples=40)
@given(rows=own_keys, cells=st.integers(1, 6))
def test_a_unit_counts_once_for_a_key_in_however_many_cells(
    *, plan_of: PlanOf, rows_of: RowsOf, event: Callable[..., Any], salt: bytes, rows: list[Any], cells: int
) -> None:
    """By brute force over what was kept, and no more than the limit of cells for one unit.

    Mutant: cells counted in place of units.
    """
    plan = plan_of(COUNT, cells=2, max_partitions=cells, discover=DISCOVER)
    events = [event(unit=u, cell=c, time_us=i, reading=None, key=k) for i, (u, k, c) in enumerate(rows)]
    _, bounded = selecting(plan, rows_of, events, salt)
    assert bounded.key is not None
    pairs = set(zip(bounded.unit.tolist(), bounded.key.tolist(), strict=True))
    wanted = [sum(key == i for _, key in pairs) for i in range(len(bounded.keys))]
    assert units_of_keys(bounded).tolist() == wanted
    assert all(sum(unit == u for u, _ in pairs) <= cells for unit, _ in pairs)
    by_cells = np.bincount(bounded.key[bounded.first], minlength=len(wanted)).tolist()
    triples = {(u, k, c) for (u, k), c in zip(zip(bounded.unit, bounded.key, strict=True), bounded.cell, strict=True)}
    assert (by_cells == wanted) == (len(triples) == len(pairs))


@settings(max_examples=30)
@given(
    kind=st.sampled_from(KINDS),
    limits=st.tuples(st.integers(1, 5), st.integers(1, 3)),
    others=own_keys,
    mine=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 1), readings), min_size=1, max_size=25),
)
def test_one_unit_moves_no_keys_count_and_no_vector_farther_than_declared(
    *,
    plan_of: PlanOf,
    rows_of: RowsOf,
    event: Callable[..., Any],
    salt: bytes,
    kind: str,
    limits: tuple[int, int],
    others: list[Any],
    mine: list[Any],
) -> None:
    """With a unit's rows and without: distinct units move by 1 in at most L0 keys.

    And whatever keys then pass, each vector stays within its sensitivity.
    """
    plan = plan_of(kind, cells=2, max_partitions=limits[0], max_rows=limits[1], discover=DISCOVER)
    without = [event(unit=u, cell=c, time_us=i, reading=1.0, key=k) for i, (u, k, c) in enumerate(others)]
    added = [event(unit=99, cell=c, time_us=i, reading=r, key=k) for i, (k, c, r) in enumerate(mine)]
    compiled, less = selecting(plan, rows_of, without, salt)
    _, more = selecting(plan, rows_of, [*added, *without], salt)
    before, after = (dict(zip(b.keys, units_of_keys(b).tolist(), strict=True)) for b in (less, more))
    moved = [after.get(key, 0) - before.get(key, 0) for key in {*before, *after}]
    assert set(moved) <= {0, 1}
    assert sum(moved) <= limits[0]
    assert compiled.selection is not None
    assert compiled.selection.sensitivity >= math.sqrt(limits[0])
    both = sorted({key for key in before if key in after})
    found = [np.array([list(b.keys).index(key) for key in both], dtype=np.int64) for b in (less, more)]
    exacts = [compiled.exact(b, indices) for b, indices in zip((less, more), found, strict=True)]
    if both:
        assert overruns(plan, *exacts) == []
