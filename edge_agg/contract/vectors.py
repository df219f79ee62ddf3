"""The vectors of a plan: which int64 columns it releases, and which of them each metric reads.

Place: the agent measures these vectors, the payload's schema lists their columns, the collector combines them into
metrics.
Invariant: a vector that two metrics need is released once and paid for once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from edge_agg.contract.cells import n_cells
from edge_agg.contract.grammar import (
    MAX_CELLS,
    MAX_KEY_BYTES,
    MAX_VALUES,
    Count,
    DistinctUnits,
    Histogram,
    Mean,
    Metric,
    Plan,
    Quantiles,
    Ratio,
    Sum,
    Variance,
)
from edge_agg.contract.tree import Tree, flat, least_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


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
class Reading:
    """How a row's value becomes a small integer: a step of a grid, or a bin. Several vectors may share one."""

    column: str
    lower: int = 0
    """Of a grid: the first step."""
    upper: int = 0
    """Of a grid: the last step."""
    resolution: float = 0.0
    """Of a grid: the value of one step."""
    edges: tuple[float, ...] = ()
    """Of bins: their edges, one more than bins."""

    @property
    def size(self) -> int:
        """How many codes there are, from 0; the code `size` itself stands for a row without a value."""
        return len(self.edges) - 1 if self.edges else self.upper - self.lower + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """Int64 values over the plan's cells: one column, or for bins one column a node of their tree."""

    name: str
    """Its column in the payload and in the lake, or what its columns' names begin with."""
    of: Literal["rows", "units", "values", "squares", "totals", "bins"]
    """Kept rows; units with a kept row; sum of clipped values; sum of their squares about the centre; sum of each
    unit's clipped total; kept rows in each node of a tree of bins."""
    column: str | None = None
    """For rows, the column that must have a value (None: any row); else what is read."""
    clip: Clip | None = None
    """For values, squares and totals: their grid."""
    reading: Reading | None = None
    """How the column is read, where it is read row by row."""
    tree: Tree | None = None
    """For bins: how they are arranged."""
    weight: float = 1.0
    """Its share of the loss, against the other vectors'."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns in the payload and in the lake."""
        return (self.name,) if self.tree is None else tuple(f"{self.name}__{i}" for i in range(self.tree.nodes))


def metric_vectors(plan: Plan, metric: Metric) -> tuple[Vector, ...]:  # noqa: PLR0911  # a return a kind
    """The vectors that one metric reads, as if it were alone.

    Returns:
        (value,) for count, distinct_units and sum; (sum, count) for a mean; (sum, count, squares) for a variance;
        (bins,) for a histogram and for quantiles; (numerator, denominator) for a ratio.
    """
    name, weight = metric.name, metric.weight
    match metric:
        case Count():
            return (Vector(name=name, of="rows", weight=weight),)
        case DistinctUnits():
            return (Vector(name=name, of="units", weight=weight),)
        case Sum(clip="unit"):
            return (
                Vector(name=name, of="totals", column=metric.column, clip=_clip(metric, centred=False), weight=weight),
            )
        case Sum():
            return (_read(metric, "values", name, centred=False),)
        case Mean():
            return _read(metric, "values", f"{name}_sum"), _read(metric, "rows", f"{name}_count")
        case Variance():
            first, second = _read(metric, "values", f"{name}_sum"), _read(metric, "rows", f"{name}_count")
            return first, second, _read(metric, "squares", f"{name}_squares")
        case Histogram() | Quantiles():
            return (_binned(plan, metric),)
        case Ratio():
            by_name = {other.name: other for other in plan.metric}
            above, below = by_name[metric.numerator], by_name[metric.denominator]
            return (*metric_vectors(plan, above), *metric_vectors(plan, below))


def plan_vectors(plan: Plan) -> tuple[Vector, ...]:
    """Every vector the plan releases, in the payload's order; what two metrics share takes the larger weight."""
    merged: dict[tuple[object, ...], Vector] = {}
    for vector in _all(plan):
        same = merged.setdefault(_identity(vector), vector)
        if vector.weight > same.weight:
            merged[_identity(vector)] = replace(same, weight=vector.weight)
    return tuple(merged.values())


def vectors_of(plan: Plan, metric: Metric) -> tuple[Vector, ...]:
    """The released vectors that a metric reads, in the order of :func:`metric_vectors`."""
    released = {_identity(vector): vector for vector in plan_vectors(plan)}
    return tuple(released[_identity(vector)] for vector in metric_vectors(plan, metric))


def payload_columns(plan: Plan) -> tuple[str, ...]:
    """The int64 columns of the plan's payloads, in order; discovered keys stand before them."""
    return tuple(column for vector in plan_vectors(plan) for column in vector.columns)


def max_keys(plan: Plan) -> int:
    """How many discovered keys one release may hold: as many as fit the limits of cells, of values and of text.

    0 where the plan discovers none.
    """
    partition = plan.discovered
    if partition is None or partition.discover is None:
        return 0
    cells = n_cells(plan)
    values = MAX_VALUES // (cells * len(payload_columns(plan)))
    return min(MAX_CELLS // cells, values, MAX_KEY_BYTES // partition.discover.max_bytes)


def readings_of(vectors: Sequence[Vector]) -> dict[str, Reading]:
    """The distinct ways in which rows are read, each under a short name."""
    distinct = dict.fromkeys(vector.reading for vector in vectors if vector.reading is not None)
    return {f"r{i}": reading for i, reading in enumerate(distinct)}


def totals_of(vectors: Sequence[Vector]) -> dict[str, Vector]:
    """The vectors of totals that are clipped a unit at a time, by name."""
    return {vector.name: vector for vector in vectors if vector.of == "totals"}


def _all(plan: Plan) -> Iterator[Vector]:
    for metric in plan.metric:
        if not isinstance(metric, Ratio):
            yield from metric_vectors(plan, metric)


def _identity(vector: Vector) -> tuple[object, ...]:
    # A count of rows with a value does not care where the value is clipped.
    return (vector.of, vector.column, vector.clip, vector.tree, vector.reading if vector.tree else None)


def _clip(metric: Sum | Mean | Variance, *, centred: bool) -> Clip:
    lower, upper = metric.grid
    return Clip(lower=lower, upper=upper, centre=(lower + upper) // 2 if centred else 0, resolution=metric.resolution)


def _read(
    metric: Sum | Mean | Variance, of: Literal["rows", "values", "squares"], name: str, *, centred: bool = True
) -> Vector:
    clip = _clip(metric, centred=centred)
    reading = Reading(column=metric.column, lower=clip.lower, upper=clip.upper, resolution=clip.resolution)
    kept = None if of == "rows" else clip
    return Vector(name=name, of=of, column=metric.column, clip=kept, reading=reading, weight=metric.weight)


def _binned(plan: Plan, metric: Histogram | Quantiles) -> Vector:
    reading = Reading(column=metric.column, edges=metric.all_edges)
    tree = flat(reading.size) if isinstance(metric, Histogram) else least_error(reading.size, plan.budget.mechanism)
    return Vector(name=metric.name, of="bins", column=metric.column, reading=reading, tree=tree, weight=metric.weight)
