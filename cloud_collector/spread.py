"""The variance of clipped values, out of three noisy totals.

Place: above `ratio.py`, whose confidence sets it is made of; below the query room.
Invariants: the value is never clamped, the interval is; its coverage holds whatever the true totals are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloud_collector.combine import Interval, check_confidence, critical
from cloud_collector.ratio import ANGLES, angles, fieller, ratio_interval

if TYPE_CHECKING:
    from cloud_collector.noise import Noise

_MEAN_SHARE = 1 / 25  # of the chance to miss, spent on the mean; its error matters in second order only
_MEANS = 33  # at which the set is looked at, besides the estimate's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Noisy totals of one group, values counted in grid steps from a centre, each with noise of its own."""

    first: int
    """The sum of (v - centre)."""
    count: int
    second: int
    """The sum of (v - centre)^2."""
    first_noise: Noise
    count_noise: Noise
    second_noise: Noise


def variance(moments: Moments) -> float | None:
    """The population variance in squared grid steps, negative if noise makes it so; None if no row is counted."""
    if moments.count <= 0:
        return None
    # in integers, for the two terms may be large and alike
    return (moments.second * moments.count - moments.first**2) / moments.count**2


def variance_interval(moments: Moments, *, lower: float, upper: float, confidence: float = 0.95) -> Interval:
    """Bound the population variance of the values that were counted.

    For the true mean m and variance V, S2 - 2 m S1 + (m^2 - V) n is 0, so the same sum of the noisy totals is noise
    alone. For a given m that makes a confidence set for V, by Fieller's argument. The true m lies in a confidence set
    of its own, and the union over that set is the answer: by Bonferroni it covers with `confidence`, one part in 25 of
    whose complement is spent on m. Over the set the sum moves in second order only, by (m - estimate)^2 n, so with n
    far above its noise the union is hardly wider than a known mean would make it; coverage at 95 % is then 95.2 %.

    Args:
        moments: the noisy totals.
        lower: the least value, in grid steps from the centre.
        upper: the largest.
        confidence: in (0, 1).

    Returns:
        Squared grid steps, within [0, (upper - mean) (mean - lower)] for the most favourable mean, so never above
        ((upper - lower) / 2)^2; the nearer end if nothing of the set lies within.

    Raises:
        ValueError: lower is above upper, or confidence is not in (0, 1); ask again.

    Source: Fieller 1954; the bound of Bhatia and Davis, A better bound on the variance, Amer. Math. Monthly 107 (2000).
    """
    check_confidence(confidence)
    means = ratio_interval(
        numerator=moments.first,
        numerator_noise=moments.first_noise,
        denominator=moments.count,
        denominator_noise=moments.count_noise,
        lower=lower,
        upper=upper,
        confidence=1 - (1 - confidence) * _MEAN_SHARE,
    )
    middle = min(max((lower + upper) / 2, means.lo), means.hi)
    most = (upper - middle) * (middle - lower)
    points = _points(moments, means)
    left = 1 - (1 - confidence) * (1 - _MEAN_SHARE)
    found = _union(moments, points, 1 / math.sqrt(1 - left), most)  # Chebyshev's quantile, to begin with
    for _ in range(2):
        found = _union(moments, points, _worst(moments, means, found, left), most)
    return found


def _points(moments: Moments, means: Interval) -> list[float]:
    """Means over the whole set, and the likeliest: between neighbours the variances that fit hardly differ."""
    step = (means.hi - means.lo) / (_MEANS - 1)
    likeliest = moments.first / moments.count if moments.count else means.lo
    return [*(means.lo + i * step for i in range(_MEANS - 1)), means.hi, min(max(likeliest, means.lo), means.hi)]


def _union(moments: Moments, points: list[float], z: float, most: float) -> Interval:
    """The hull, within [0, most], of every variance that some mean does not rule out."""
    parts = [
        Interval(lo=part.lo + m * m, hi=part.hi + m * m)
        for m in points
        for part in fieller(
            moments.second - 2 * m * moments.first,
            z * _numerator_sigma(moments, m),
            moments.count,
            z * moments.count_noise.sigma,
        )
    ]
    within = [part for part in parts if part.hi >= 0 and part.lo <= most]
    if within:
        return Interval(lo=max(0.0, min(p.lo for p in within)), hi=min(most, max(p.hi for p in within)))
    nearest = 0.0 if any(part.hi < 0 for part in parts) else most
    return Interval(lo=nearest, hi=nearest)


def _numerator_sigma(moments: Moments, m: float) -> float:
    """The standard deviation of S2 - 2 m S1."""
    return math.hypot(moments.second_noise.sigma, 2 * m * moments.first_noise.sigma)


def _worst(moments: Moments, means: Interval, variances: Interval, confidence: float) -> float:
    """The largest quantile, in standard deviations, of the noise in S2 - 2 m S1 + (m^2 - V) n over both ranges."""
    farthest = max(abs(means.lo), abs(means.hi))
    nearest = 0.0 if means.lo <= 0 <= means.hi else min(abs(means.lo), abs(means.hi))
    weights = Interval(lo=nearest**2 - variances.hi, hi=farthest**2 - variances.lo)
    sigmas = _numerator_sigma(moments, nearest), _numerator_sigma(moments, farthest)
    least = angles(weights, moments.count_noise.sigma / sigmas[1])
    largest = angles(weights, moments.count_noise.sigma / sigmas[0])
    return max(
        _quantile(moments, tilt, node, confidence)
        for tilt in angles(means, 2 * moments.first_noise.sigma / moments.second_noise.sigma)
        for node in range(least.start, largest.stop)
    )


def _quantile(moments: Moments, tilt: int, node: int, confidence: float) -> float:
    """The quantile where `tilt` says how much of the numerator's noise is S1's, and `node` how much of all is n's."""
    above, beside = math.pi / 2 * node / ANGLES, math.pi / 2 * tilt / ANGLES
    second, first, count = moments.second_noise, moments.first_noise, moments.count_noise
    mix = (
        (math.cos(above) * math.cos(beside) / second.sigma, second),
        (math.cos(above) * math.sin(beside) / first.sigma, first),
        (math.sin(above) / count.sigma, count),
    )
    return critical(mix, confidence)
