"""A measurement: a plan compiled into bound, aggregate, noise, and what it costs.

Place: compiled once when the agent starts; then, for each window, `bounding` takes rows, `exact` aggregates what was
kept, and `draw` adds the noise, after the ledger has been charged `charge`.
Invariants: a plan compiles to the same scales whatever the data; the charge is the sum of the vectors' own maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.contract.cells import n_cells
from edge_agg.contract.release import Charge, Mechanism, VectorSpec
from edge_agg.contract.vectors import Vector, plan_vectors
from edge_agg.errors import PlanRefused
from edge_agg.privacy import noise
from edge_agg.privacy.aggregate import (
    Sensitivity,
    count_rows,
    count_units,
    rows_sensitivity,
    sum_sensitivity,
    sum_values,
    units_sensitivity,
)
from edge_agg.privacy.bound import Bounded, Bounding

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_agg.contract.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A compiled plan; build it with :func:`compile_plan`."""

    plan: Plan
    vectors: tuple[Vector, ...]
    specs: tuple[VectorSpec, ...]
    """How each vector is made, in the same order."""
    charge: Charge
    """What one draw costs one unit: add it to the ledger before drawing."""

    @property
    def summed(self) -> tuple[str, ...]:
        """The vectors that are sums of per-row contributions."""
        return tuple(vector.name for vector in self.vectors if vector.column is not None)

    def bounding(self, salt: bytes) -> Bounding:
        """An empty window under this plan's bounds."""
        bounds = self.plan.bounds
        return Bounding(
            max_partitions=bounds.max_partitions,
            max_rows=bounds.max_rows_per_partition,
            n_cells=n_cells(self.plan),
            names=self.summed,
            salt=salt,
        )

    def exact(self, bounded: Bounded) -> dict[str, npt.NDArray[np.int64]]:
        """The exact vectors, int64[n_cells] each, in the payload's order. They never leave the device."""
        cells = n_cells(self.plan)
        return {vector.name: _aggregate(vector, bounded, cells) for vector in self.vectors}

    def draw(self, exact: dict[str, npt.NDArray[np.int64]]) -> dict[str, npt.NDArray[np.int64]]:
        """Fresh noise on every vector: once for each charge.

        Guarantee: `charge.rho`-zCDP under add/remove of all rows of one privacy unit in this window at this agent.
        """
        return {spec.name: noise.draw(spec.mechanism, spec.scale, exact[spec.name]) for spec in self.specs}


def compile_plan(plan: Plan) -> Measurement:
    """Calibrate a plan.

    The window's loss is split over the vectors by weight: rho under Gaussian noise, epsilon under Laplace noise.

    Raises:
        PlanRefused: no noise scale fits the budget.
    """
    vectors = plan_vectors(plan)
    mechanism = Mechanism(plan.budget.mechanism)
    loss = (
        noise.rho_within(plan.budget.epsilon, plan.budget.delta)
        if mechanism is Mechanism.GAUSSIAN
        else Fraction(plan.budget.epsilon)
    )
    weights = sum(Fraction(vector.weight) for vector in vectors)
    specs = tuple(_spec(plan, vector, mechanism, loss * Fraction(vector.weight) / weights) for vector in vectors)
    spent = sum((Fraction(spec.loss) for spec in specs), Fraction(0))
    rho = spent if mechanism is Mechanism.GAUSSIAN else noise.rho_of_pure(math.nextafter(float(spent), math.inf))
    return Measurement(plan=plan, vectors=vectors, specs=specs, charge=Charge.rounded_up(rho=rho))


def sensitivity_of(plan: Plan, vector: Vector) -> Sensitivity:
    """How far one unit can move this vector after bounding."""
    cells, rows = min(plan.bounds.max_partitions, n_cells(plan)), plan.bounds.max_rows_per_partition
    match vector.of:
        case "units":
            return units_sensitivity(cells)
        case "rows":
            return rows_sensitivity(cells, rows)
        case "values":
            assert vector.clip is not None, "a vector of values has a grid"
            return sum_sensitivity(cells, rows, vector.clip)


def _aggregate(vector: Vector, bounded: Bounded, cells: int) -> npt.NDArray[np.int64]:
    match vector.of:
        case "units":
            return count_units(bounded.cell, bounded.first, cells)
        case "rows" if vector.column is None:
            return count_rows(bounded.cell, cells)
        case _:
            return sum_values(bounded.cell, bounded.values[vector.name], cells)


def _spec(plan: Plan, vector: Vector, mechanism: Mechanism, share: Fraction) -> VectorSpec:
    moves = sensitivity_of(plan, vector)
    distance = moves.l2 if mechanism is Mechanism.GAUSSIAN else float(moves.l1)
    loss = math.nextafter(float(share), 0.0)
    try:
        scale = noise.calibrate(mechanism, sensitivity=distance, loss=loss)
    except ValueError as error:
        raise PlanRefused(f"vector {vector.name}: {error}") from None
    return VectorSpec(
        name=vector.name,
        mechanism=mechanism,
        scale=scale,
        sensitivity=distance,
        loss=noise.loss_of(mechanism, scale=scale, sensitivity=distance),
    )
