"""What a plan's noise will do to its answers, foretold from the plan alone.

Place: asked before anything is spent, by `edge-agg check` and `preview`; it needs what the cells hold, from a sample or
taken for granted.
Invariants: pure; first-order propagation of the noise's exact standard deviations (the delta method), so it holds where
counts stand well above their noise, and says so where they do not. Clipping and bounding are not in it.

A truth is what one cell of one window at one site holds on average: the exact vectors, before noise. Adding up `copies`
of it (sites, cells, windows) multiplies the truth by `copies` and the noise's variance by the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from edge_agg.contract.plan import Count, DistinctUnits, Histogram, Mean, Quantiles, Ratio, Sum, Variance
from edge_agg.contract.release import KeySpec, Mechanism
from edge_agg.contract.vectors import vectors_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_agg.contract.plan import Metric, Plan
    from edge_agg.contract.tree import Tree
    from edge_agg.contract.vectors import Vector
    from edge_agg.privacy.measurement import Measurement

Floats: TypeAlias = npt.NDArray[np.float64]
Truth: TypeAlias = Mapping[str, Floats]
"""By vector: float64[1], or float64[nodes] for bins."""

TYPICAL_ROWS = 1_000
"""Rows that a cell is taken to hold at one site and window, where nothing better is known."""
_CLEAR = 3.0
"""A denominator that is not this many standard deviations above 0 makes no ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number that an analyst will read, and how far off noise alone will put it."""

    metric: str
    part: str
    """Which number of the metric: `q0.5`, `a bin`; empty where there is one."""
    value: float
    """What the truth makes it."""
    error: float
    """Its standard error; infinite where the count below it is lost in noise."""
    rank: float | None = None
    """Of a quantile: the standard error of its rank, as a share of the rows."""
    step: float | None = None
    """Of a quantile: the width of the bin it lies in; it is not known more finely than that."""

    @property
    def label(self) -> str:
        """What it is called."""
        return f"{self.metric} {self.part}".rstrip()

    @property
    def relative(self) -> float:
        """The error as a share of the value."""
        return self.error / abs(self.value) if self.value else math.inf


def figures(measurement: Measurement, truth: Truth, *, copies: int = 1) -> list[Figure]:
    """Foretell every metric of a plan, over `copies` of a cell."""
    specs = {spec.name: spec for spec in measurement.specs}
    sigma = {name: deviation(spec.mechanism, spec.scale) * math.sqrt(copies) for name, spec in specs.items()}
    return _figures(measurement.plan, {name: values * copies for name, values in truth.items()}, sigma)


def values(plan: Plan, truth: Truth) -> dict[str, float]:
    """What a truth makes of every metric, by :attr:`Figure.label`, without any noise."""
    return {figure.label: figure.value for figure in _figures(plan, truth, dict.fromkeys(truth, 0.0))}


def assumed(plan: Plan, rows: int) -> dict[str, Floats]:
    """What a cell is taken to hold: so many rows, each unit with as many as it may have, values where noise hurts most.

    A mean at the edge of its range feels the noise of its count most; values for quantiles are spread evenly over the
    bins; a sum has the middle of its range in every row.
    """
    units = max(1.0, rows / plan.bounds.max_rows_per_partition)
    truth: dict[str, Floats] = {}
    for metric in plan.metric:
        for vector in vectors_of(plan, metric):
            if isinstance(metric, Sum):
                middle = sum(metric.grid) / 2
                truth[vector.name] = np.array([middle * (units if metric.clip == "unit" else rows)])
            elif not isinstance(metric, Ratio):
                truth[vector.name] = _assumed(vector, rows, units)
    return truth


def units_to_show(selection: KeySpec, chance: float) -> int:
    """How many units a key needs at one site to be released with at least that chance."""
    needed = selection.threshold + 1
    low, high = 0, needed + 64 * math.ceil(selection.scale)
    while low < high:
        middle = (low + high) // 2
        if chances_to_show(selection, [middle])[0] >= chance:
            high = middle
        else:
            low = middle + 1
    return low


def chances_to_show(selection: KeySpec, units: Sequence[int] | npt.NDArray[np.int64]) -> Floats:
    """The chance that a key with so many units is released, float64[n_keys]: noise lifts it above the threshold."""
    least = selection.threshold + 1 - np.asarray(units, dtype=np.int64)
    reach, tail = _tail(selection.mechanism, selection.scale)
    return tail[np.clip(least, -reach, reach + 1) + reach]


@lru_cache(maxsize=256)
def deviation(mechanism: Mechanism, scale: float) -> float:
    """The standard deviation of the noise, in grid steps."""
    if mechanism is Mechanism.LAPLACE:
        return math.sqrt(2 * math.exp(-1 / scale)) / -math.expm1(-1 / scale)
    if scale > 2:
        return scale  # the discrete Gaussian's, but for a part in 10**30
    x = np.arange(1, 40)
    weights = np.exp(-((x / scale) ** 2) / 2)
    return math.sqrt(float(2 * (weights * x**2).sum() / (1 + 2 * weights.sum())))


def rank_deviation(bins: int, tree: Tree, q: float, at: int, share: float = 0.0) -> float:
    """The standard deviation of "rows below, less q times all rows", in those of one node.

    Read from the whole tree by least squares: with A the nodes over the bins (each node adds its bins up) and g the
    weights of the bins, the variance is g' (A'A)^-1 g. Padding is known to be empty and has no say.

    Args:
        bins: how many there are.
        tree: how they are arranged.
        q: the quantile.
        at: an edge, from 0.
        share: of the way to the next edge, where values are interpolated.

    Source: Gauss-Markov; Hay, Rastogi, Miklau, Suciu 2010 for trees of counts.
    """
    variances, neighbours = _rank_moments(bins, tree.branching, tree.height, q)
    if share == 0:
        return math.sqrt(variances[at])
    mixed = (1 - share) ** 2 * variances[at] + share**2 * variances[at + 1] + 2 * share * (1 - share) * neighbours[at]
    return math.sqrt(max(float(mixed), 0.0))


@lru_cache(maxsize=64)
def _rank_moments(bins: int, branching: int, height: int, q: float) -> tuple[Floats, Floats]:
    """At each edge the variance, and the covariance with the next edge's."""
    leaf = np.arange(bins)
    normal = np.zeros((bins, bins))
    for level in range(height):
        node = leaf // branching**level
        normal += node[:, None] == node[None, :]
    below = np.tril(np.ones((bins + 1, bins)), -1) - q
    solved = np.linalg.solve(normal, below.T)
    variances = np.einsum("eb,be->e", below, solved).clip(0)
    return variances, np.einsum("eb,be->e", below[1:], solved[:, :-1])


def _figures(plan: Plan, truth: Truth, sigma: Mapping[str, float]) -> list[Figure]:
    return [figure for metric in plan.metric for figure in _metric(plan, metric, truth, sigma)]


def _metric(plan: Plan, metric: Metric, truth: Truth, sigma: Mapping[str, float]) -> Iterator[Figure]:
    vectors = vectors_of(plan, metric)
    match metric:
        case Count() | DistinctUnits() | Sum():
            value, error = _additive(vectors[0], truth, sigma)
            yield Figure(metric=metric.name, part="", value=value, error=error)
        case Mean() | Variance():
            yield _moment(metric, vectors, truth, sigma)
        case Ratio():
            (above, above_error), (below, below_error) = (_additive(vector, truth, sigma) for vector in vectors)
            value = above / below if below else math.nan
            error = math.hypot(above_error, value * below_error) / abs(below) if below else math.inf
            clear = abs(below) > _CLEAR * below_error
            yield Figure(metric=metric.name, part="", value=value, error=error if clear else math.inf)
        case Histogram():
            bins = truth[vectors[0].name]
            yield Figure(metric=metric.name, part="a bin", value=float(bins.mean()), error=sigma[vectors[0].name])
        case Quantiles():
            for q in metric.quantiles:
                yield _quantile(metric, q, vectors[0], truth, sigma)


def _additive(vector: Vector, truth: Truth, sigma: Mapping[str, float]) -> tuple[float, float]:
    step = 1.0 if vector.clip is None else vector.clip.resolution
    return float(truth[vector.name][0]) * step, sigma[vector.name] * step


def _moment(metric: Mean | Variance, vectors: Sequence[Vector], truth: Truth, sigma: Mapping[str, float]) -> Figure:
    """A mean S/n, or a variance Q/n - (S/n)**2, by the derivatives to S, n and Q."""
    first, count = vectors[0], vectors[1]
    assert first.clip is not None, "a mean is on a grid"
    n, step = float(truth[count.name][0]), first.clip.resolution
    if n <= _CLEAR * sigma[count.name]:
        return Figure(metric=metric.name, part="", value=math.nan, error=math.inf)
    mean = float(truth[first.name][0]) / n
    if isinstance(metric, Mean):
        error = math.hypot(sigma[first.name], mean * sigma[count.name]) / n
        return Figure(metric=metric.name, part="", value=(first.clip.centre + mean) * step, error=error * step)
    square = float(truth[vectors[2].name][0]) / n
    variance = square - mean**2
    parts = (sigma[vectors[2].name], 2 * mean * sigma[first.name], (2 * mean**2 - square) * sigma[count.name])
    return Figure(metric=metric.name, part="", value=variance * step**2, error=math.hypot(*parts) / n * step**2)


def _quantile(metric: Quantiles, q: float, vector: Vector, truth: Truth, sigma: Mapping[str, float]) -> Figure:
    """A quantile: its rank's error, and what values lie that far to either side, on average."""
    assert vector.tree is not None, "quantiles have a tree"
    edges = metric.all_edges
    bins = len(edges) - 1
    leaves = truth[vector.name][len(truth[vector.name]) - vector.tree.leaves :][:bins]
    below = np.concatenate([[0.0], np.cumsum(leaves)])
    n = float(below[-1])
    value, at, share = _invert(metric, below, q * n)
    part, width = f"q{q:g}", edges[at + 1] - edges[at]
    error = sigma[vector.name] * rank_deviation(bins, vector.tree, q, at, share)
    if n <= _CLEAR * error:
        return Figure(metric=metric.name, part=part, value=value, error=math.inf, step=width)
    low, high = (_invert(metric, below, min(max(q * n + side * error, 0.0), n))[0] for side in (-1, 1))
    return Figure(metric=metric.name, part=part, value=value, error=(high - low) / 2, rank=error / n, step=width)


def _invert(metric: Quantiles, below: Floats, rank: float) -> tuple[float, int, float]:
    """The value at a rank, its bin, and how far into the bin it is interpolated."""
    edges = metric.all_edges
    at = min(max(int(np.searchsorted(below, rank, side="left")) - 1, 0), len(edges) - 2)
    inside = float(below[at + 1] - below[at])
    share = (rank - float(below[at])) / inside if inside > 0 else 0.5
    low, high = edges[at], edges[at + 1]
    if metric.spacing == "logarithmic":
        return low * (high / low) ** share, at, share
    return low + (high - low) * share, at, share


def _assumed(vector: Vector, rows: int, units: float) -> Floats:
    match vector.of:
        case "units":
            return np.array([units])
        case "values" | "squares" if vector.clip is not None:
            edge = float(vector.clip.upper - vector.clip.centre)
            return np.array([rows * (edge if vector.of == "values" else edge**2)])
        case "bins" if vector.tree is not None and vector.reading is not None:
            leaves = np.zeros(vector.tree.leaves)
            leaves[: vector.reading.size] = rows / vector.reading.size
            return np.concatenate([leaves.reshape(size, -1).sum(axis=1) for size in vector.tree.sizes])
    return np.array([float(rows)])


@lru_cache(maxsize=16)
def _tail(mechanism: Mechanism, scale: float) -> tuple[int, Floats]:
    """P(noise >= k) for k = -reach .. reach + 1."""
    reach = math.ceil(scale * (12 if mechanism is Mechanism.GAUSSIAN else 45)) + 1
    k = np.arange(-reach, reach + 1)
    weights = np.exp(-((k / scale) ** 2) / 2) if mechanism is Mechanism.GAUSSIAN else np.exp(-np.abs(k) / scale)
    tail = np.concatenate([np.cumsum(weights[::-1])[::-1] / weights.sum(), [0.0]])
    return reach, tail
