"""A measurement: what it costs is the sum of its maps, and no unit moves it farther than it declares."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.plan import plan_hash
from edge_agg.contract.release import RHO_GRID, Mechanism
from edge_agg.errors import PlanRefused
from edge_agg.privacy import aggregate, noise
from edge_agg.privacy.bound import Bounding
from edge_agg.privacy.measurement import Measurement, compile_plan, sensitivity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from edge_agg.contract.plan import Plan
    from edge_agg.privacy.bound import Rows

    PlanOf = Callable[..., Plan]
    RowsOf = Callable[[Measurement, Sequence[Any]], Rows]

COUNT = 'kind = "count"'
UNITS = 'kind = "distinct_units"'
SUM = 'kind = "sum"\ncolumn = "x"\nlower = -2.0\nupper = 5.0\nresolution = 0.5'
MEAN = 'kind = "mean"\ncolumn = "x"\nlower = -2.0\nupper = 5.0\nresolution = 0.5'
KINDS = [COUNT, UNITS, SUM, MEAN]
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
    compiled = compile_plan(plan_of(*KINDS))
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


_compiled: dict[bytes, Measurement] = {}


def compiled_once(plan: Plan) -> Measurement:
    """A plan's measurement; calibration is the slow part, and it is the same each time."""
    key = plan_hash(plan)
    if key not in _compiled:
        _compiled[key] = compile_plan(plan)
    return _compiled[key]


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
    ("kind", "reading"), [(COUNT, 0.0), (UNITS, 0.0), (SUM, math.inf), (MEAN, math.inf), (MEAN, -9.0)]
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
    plan = plan_of(*KINDS, cells=CELLS)
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
    }


def test_an_empty_window_is_measured_like_any_other(plan_of: PlanOf, rows_of: RowsOf, salt: bytes) -> None:
    """No events: as many vectors and cells as ever, all zeros before the noise."""
    vectors = exact(plan_of(*KINDS, cells=CELLS), rows_of, [], salt)
    assert {name: vector.tolist() for name, vector in vectors.items()} == dict.fromkeys(
        ("m0", "m1", "m2", "m3_sum", "m3_count"), [0] * CELLS
    )
