"""From a group's totals to what an analyst reads: values and intervals in the metric's own unit.

Place: after the totals; one function a kind of metric, over the rooms of intervals.
Invariants: pure; a value is never clamped; every interval has the confidence that was asked for.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from cloud_collector.combine import Interval, Total, sum_interval
from cloud_collector.order import Bins, quantile, quantile_interval
from cloud_collector.ratio import ratio, ratio_interval
from cloud_collector.spread import Moments, variance, variance_interval
from edge_agg.contract.plan import Histogram, Mean, Metric, Quantiles, Ratio, Variance

if TYPE_CHECKING:
    from cloud_collector.question import Asked
    from edge_agg.contract.vectors import Clip, Vector

Estimate = tuple[float | None, float | None, float | None]
"""Value, lo and hi; the value alone is None where noise leaves nothing to divide by, all where nothing was released."""


def columns(metric: Metric) -> tuple[str, ...]:
    """The columns that tell the rows of one group apart."""
    match metric:
        case Histogram():
            return ("bin_lower", "bin_upper")
        case Quantiles():
            return ("quantile",)
        case _:
            return ()


def parts(metric: Metric) -> list[tuple[float, ...]]:
    """What stands in those columns: a row a bin or quantile, else one row a group."""
    match metric:
        case Histogram():
            return list(itertools.pairwise(metric.all_edges))
        case Quantiles():
            return [(q,) for q in metric.quantiles]
        case _:
            return [()]


def estimates(asked: Asked, total: Total | None) -> list[Estimate]:
    """A group's estimates, in the order of :func:`parts`.

    Args:
        asked: the metric, its vectors, and the confidence.
        total: what was released for the group; None if nothing was.
    """
    metric, confidence = asked.metric, asked.question.confidence
    if total is None:
        return [(None, None, None)] * len(parts(metric))
    match metric:
        case Mean():
            return [_mean(asked.vectors, total, confidence)]
        case Variance():
            return [_variance(asked.vectors, total, confidence)]
        case Ratio():
            return [_ratio(asked.vectors, total, confidence)]
        case Quantiles():
            return _quantiles(metric, asked.vectors[0], total, confidence)
        case _:
            unit, noise = _unit(asked.vectors[0]), total.noises[0]
            found = ((one, sum_interval(one, noise, unit=unit, confidence=confidence)) for one in total.sums[0])
            return [_row(one * unit, interval) for one, interval in found]


def _mean(vectors: tuple[Vector, ...], total: Total, confidence: float) -> Estimate:
    clip = _clip(vectors[0])
    ((first,), (count,)), (first_noise, count_noise) = total.sums, total.noises
    interval = ratio_interval(
        numerator=first,
        numerator_noise=first_noise,
        denominator=count,
        denominator_noise=count_noise,
        lower=clip.lower - clip.centre,
        upper=clip.upper - clip.centre,
        confidence=confidence,
    )
    value = ratio(first, count)
    return _row(
        None if value is None else (value + clip.centre) * clip.resolution,
        Interval(lo=(interval.lo + clip.centre) * clip.resolution, hi=(interval.hi + clip.centre) * clip.resolution),
    )


def _variance(vectors: tuple[Vector, ...], total: Total, confidence: float) -> Estimate:
    clip = _clip(vectors[0])
    (first,), (count,), (second,) = total.sums
    first_noise, count_noise, second_noise = total.noises
    moments = Moments(
        first=first,
        count=count,
        second=second,
        first_noise=first_noise,
        count_noise=count_noise,
        second_noise=second_noise,
    )
    lower, upper = clip.lower - clip.centre, clip.upper - clip.centre
    interval = variance_interval(moments, lower=lower, upper=upper, confidence=confidence)
    return _scaled(variance(moments), interval, clip.resolution**2)


def _ratio(vectors: tuple[Vector, ...], total: Total, confidence: float) -> Estimate:
    ((above,), (below,)), (above_noise, below_noise) = total.sums, total.noises
    interval = ratio_interval(
        numerator=above,
        numerator_noise=above_noise,
        denominator=below,
        denominator_noise=below_noise,
        confidence=confidence,
    )
    signed = vectors[1].clip is not None and vectors[1].clip.lower < 0  # or a negative sum is noise
    value = ratio(-above, -below) if signed and below < 0 else ratio(above, below)
    return _scaled(value, interval, _unit(vectors[0]) / _unit(vectors[1]))


def _quantiles(metric: Quantiles, vector: Vector, total: Total, confidence: float) -> list[Estimate]:
    assert vector.tree is not None, "quantiles are read from a tree"
    bins = Bins(
        nodes=total.sums[0],
        noise=total.noises[0],
        edges=metric.all_edges,
        branching=vector.tree.branching,
        height=vector.tree.height,
        logarithmic=metric.spacing == "logarithmic",
    )
    return [_row(quantile(bins, q), quantile_interval(bins, q, confidence)) for q in metric.quantiles]


def _row(value: float | None, interval: Interval) -> Estimate:
    return value, interval.lo, interval.hi


def _scaled(value: float | None, interval: Interval, unit: float) -> Estimate:
    return _row(None if value is None else value * unit, Interval(lo=interval.lo * unit, hi=interval.hi * unit))


def _clip(vector: Vector) -> Clip:
    assert vector.clip is not None, "a sum has a grid"
    return vector.clip


def _unit(vector: Vector) -> float:
    """What one step of a total is worth."""
    return 1.0 if vector.clip is None else vector.clip.resolution
