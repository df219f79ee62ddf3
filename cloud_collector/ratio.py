"""Ratios of noisy totals: means of clipped values, and ratios that a plan declares.

Place: above `combine.py`, which bounds the noise of a weighted sum; below the query room.
Invariant: the interval is a confidence set of the true ratio, whatever the true totals are; where the denominator is
lost in noise it says so by being the whole range.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cloud_collector.combine import Interval, check_confidence, critical

if TYPE_CHECKING:
    from cloud_collector.noise import Noise

ANGLES = 16
"""Steps from "all noise is the numerator's" to "all noise is the denominator's"."""


def ratio(numerator: int, denominator: int) -> float | None:
    """Divide two noisy totals; None where the denominator is not positive, for then the quotient says nothing."""
    return numerator / denominator if denominator > 0 else None


def ratio_interval(
    *,
    numerator: int,
    numerator_noise: Noise,
    denominator: int,
    denominator_noise: Noise,
    lower: float = -math.inf,
    upper: float = math.inf,
    confidence: float = 0.95,
) -> Interval:
    """Bound the ratio of two true totals, such as a mean of clipped values.

    At the true ratio theta, N - theta D is noise alone, whatever the totals are. So the thetas at which it is no
    larger than that noise's quantile are a confidence set, even where D is weak. The quantile depends on theta; each
    round takes the worst over what the last round left, which never loses a member of the set.

    Args:
        numerator: noisy, in grid steps.
        numerator_noise: what was added to it.
        denominator: noisy; may be zero or negative.
        denominator_noise: what was added to it, independently of the numerator's.
        lower: the least that the true ratio can be, in grid steps of the numerator per step of the denominator.
        upper: the most that it can be.
        confidence: in (0, 1).

    Returns:
        The hull of the confidence set within [lower, upper]; the end nearest to the set if none of it lies within.

    Raises:
        ValueError: lower is above upper, or confidence is not in (0, 1); ask again.

    Source: Fieller, Some problems in interval estimation, JRSS B 16 (1954), with the law's own quantile for Student's.
    """
    check_confidence(confidence)
    if not lower <= upper:
        raise ValueError("lower must not be above upper")
    found = Interval(lo=lower, hi=upper)
    for _ in range(3):
        nodes = angles(found, denominator_noise.sigma / numerator_noise.sigma)
        z = max(_quantile(numerator_noise, denominator_noise, confidence, node) for node in nodes)
        parts = fieller(numerator, z * numerator_noise.sigma, denominator, z * denominator_noise.sigma)
        found = hull(parts, lower, upper)
    return found


def angles(thetas: Interval, slope: float) -> range:
    """The steps of a right angle that enclose atan(slope |theta|) for every theta."""
    least = 0.0 if thetas.lo <= 0 <= thetas.hi else min(abs(thetas.lo), abs(thetas.hi))
    most = max(abs(thetas.lo), abs(thetas.hi))
    low, high = (math.atan(slope * theta) * 2 / math.pi * ANGLES for theta in (least, most))
    return range(math.floor(low), math.ceil(high) + 1)


def fieller(n: float, n_width: float, d: float, d_width: float) -> tuple[Interval, ...]:
    """{theta: (n - theta d)^2 <= n_width^2 + (theta d_width)^2}: an interval, all but an interval, or everything."""
    lead = d * d - d_width**2
    inside = (n * d_width) ** 2 + lead * n_width**2
    if lead == 0 or (lead < 0 and inside <= 0):
        return (Interval(lo=-math.inf, hi=math.inf),)
    low, high = sorted((n * d + sign * math.sqrt(inside)) / lead for sign in (-1, 1))
    if lead > 0:
        return (Interval(lo=low, hi=high),)
    return Interval(lo=-math.inf, hi=low), Interval(lo=high, hi=math.inf)


def hull(parts: tuple[Interval, ...], lower: float, upper: float) -> Interval:
    """The least interval that holds what of the parts lies in [lower, upper]; if nothing does, the nearest end."""
    within = [(max(part.lo, lower), min(part.hi, upper)) for part in parts]
    within = [(lo, hi) for lo, hi in within if lo <= hi]
    if within:
        return Interval(lo=min(lo for lo, _ in within), hi=max(hi for _, hi in within))
    below = max((part.hi for part in parts if part.hi < lower), default=-math.inf)
    above = min((part.lo for part in parts if part.lo > upper), default=math.inf)
    nearest = lower if lower - below <= above - upper else upper
    return Interval(lo=nearest, hi=nearest)


def _quantile(numerator: Noise, denominator: Noise, confidence: float, node: int) -> float:
    """The quantile, in standard deviations, of N's noise - theta D's, at the angle atan(theta sigma_D / sigma_N)."""
    angle = math.pi / 2 * node / ANGLES
    weights = math.cos(angle) / numerator.sigma, math.sin(angle) / denominator.sigma
    return critical(((weights[0], numerator), (weights[1], denominator)), confidence)
