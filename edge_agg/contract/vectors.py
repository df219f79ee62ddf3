"""The vectors of a plan: which int64 columns it releases, and which of them each metric reads.

Place: the agent measures these vectors, the payload's schema lists them, the collector combines them into metrics.
Invariant: a count that two metrics need is one vector, released once and paid for once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge_agg.contract.plan import Count, DistinctUnits, Mean, Metric, Plan, Sum

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A fixed-point reading of a column: integers in `[lower, upper]` grid steps, counted from `centre`."""

    lower: int
    """The lower bound in grid steps."""
    upper: int
    """The upper bound in grid steps."""
    centre: int
    """The grid step that is subtracted from each value: 0 for a sum, the middle for a mean."""
    resolution: float
    """The value of one grid step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """One int64 vector over the plan's cells."""

    name: str
    """Its column in the payload and in the lake."""
    of: Literal["rows", "units", "values"]
    """Kept rows, units with a kept row, or the sum of clipped values."""
    column: str | None = None
    """For values, what is summed; for rows, the column that must have a value (None: any row)."""
    clip: Clip | None = None
    """For values, their grid."""
    weight: float = 1.0
    """Its share of the loss, against the other vectors'."""


def metric_vectors(metric: Metric) -> tuple[Vector, ...]:
    """The vectors that one metric reads, as if it were alone: (value,) or (numerator, denominator)."""
    name, weight = metric.name, metric.weight
    match metric:
        case Count():
            return (Vector(name=name, of="rows", weight=weight),)
        case DistinctUnits():
            return (Vector(name=name, of="units", weight=weight),)
        case Sum():
            lower, upper = metric.grid
            clip = Clip(lower=lower, upper=upper, centre=0, resolution=metric.resolution)
            return (Vector(name=name, of="values", column=metric.column, clip=clip, weight=weight),)
        case Mean():
            lower, upper = metric.grid
            clip = Clip(lower=lower, upper=upper, centre=(lower + upper) // 2, resolution=metric.resolution)
            return (
                Vector(name=f"{name}_sum", of="values", column=metric.column, clip=clip, weight=weight),
                Vector(name=f"{name}_count", of="rows", column=metric.column, weight=weight),
            )


def plan_vectors(plan: Plan) -> tuple[Vector, ...]:
    """Every vector the plan releases, in the payload's order; what two metrics share takes the larger weight."""
    merged: dict[tuple[object, ...], Vector] = {}
    for vector in _all(plan):
        same = merged.get(_identity(vector))
        if same is None:
            merged[_identity(vector)] = vector
        elif vector.weight > same.weight:
            merged[_identity(vector)] = Vector(
                name=same.name, of=same.of, column=same.column, clip=same.clip, weight=vector.weight
            )
    return tuple(merged.values())


def vectors_of(plan: Plan, metric: Metric) -> tuple[Vector, ...]:
    """The released vectors that a metric reads: (value,), or (numerator, denominator) for a mean."""
    released = {_identity(vector): vector for vector in plan_vectors(plan)}
    return tuple(released[_identity(vector)] for vector in metric_vectors(metric))


def _all(plan: Plan) -> Iterator[Vector]:
    for metric in plan.metric:
        yield from metric_vectors(metric)


def _identity(vector: Vector) -> tuple[object, ...]:
    return (vector.of, vector.column, vector.clip)
