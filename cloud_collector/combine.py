"""How far noisy answers may lie from the truth: the last step, between the lake and the analyst.

Agents add integer noise; sums over sites and windows add those draws up. This room turns the sum into intervals.

Invariants:
- Totals are never clamped: an interval may reach below zero.
- A half width is the smallest that holds, or negligibly larger; never smaller.
- An interval speaks of the noise alone, not of what clipping and bounding left out.

Every law here is known by its characteristic function, a product over the draws, so a million draws cost what one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

Mechanism = Literal["gaussian", "laplace"]

_REACH = 24  # standard deviations each way before a law wraps around; a Laplace tail there is exp(-34)
_FREQUENCIES = 6144  # at most; they then end at 800 / sigma
_ANGLES = 16  # steps from "all noise is the numerator's" to "all noise is the denominator's"
_SERIES_BELOW = 2.0  # a discrete Gaussian is summed term by term below this scale, by Poisson's formula above


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Term:
    """Independent draws of one mechanism at one scale.

    Raises:
        ValueError: a mechanism, scale or count that no plan can have; the release it came from is malformed.
    """

    mechanism: Mechanism
    """`gaussian`: P(x) ~ exp(-x^2 / 2 scale^2); `laplace`: P(x) ~ exp(-|x| / scale); both over the integers."""
    scale: float
    """In grid steps."""
    count: int
    """How many draws were added up."""

    def __post_init__(self) -> None:
        if self.mechanism not in get_args(Mechanism):
            raise ValueError("mechanism must be gaussian or laplace")
        if not 0 < self.scale < 2**63:
            raise ValueError("scale must lie in (0, 2**63)")
        if self.count < 1:
            raise ValueError("count must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A sum of independent terms; equal sums are equal values, whatever order they were built in."""

    terms: tuple[Term, ...]
    """Sorted, one for each mechanism and scale; none at all is no noise."""

    def __post_init__(self) -> None:
        counts: dict[tuple[Mechanism, float], int] = {}
        for term in self.terms:
            key = (term.mechanism, term.scale)
            counts[key] = counts.get(key, 0) + term.count
        merged = sorted(Term(mechanism=m, scale=s, count=n) for (m, s), n in counts.items())
        object.__setattr__(self, "terms", tuple(merged))

    @classmethod
    def of(cls, terms: Iterable[Term]) -> Noise:
        """Add the terms up."""
        return cls(terms=tuple(terms))

    @property
    def variance(self) -> float:
        """In squared grid steps."""
        return math.fsum(term.count * _variance(term.mechanism, term.scale) for term in self.terms)

    def __add__(self, other: Noise) -> Noise:
        return Noise(terms=self.terms + other.terms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A closed interval, in the unit of the answer that it belongs to."""

    lo: float
    hi: float


def half_width(noise: Noise, confidence: float = 0.95) -> int:
    """Bound the summed noise.

    Args:
        noise: what was added to the answer.
        confidence: in (0, 1).

    Returns:
        The smallest integer h with P(|Z| <= h) >= confidence: exact for one draw, and for sums up to a variance of
        65,000; beyond that conservative, by less than 1e-7 in probability at confidences above one half.

    Raises:
        ValueError: confidence is not in (0, 1); ask again.

    Source: one Laplace draw in closed form; else the inversion of the characteristic function on the lattice, its
    truncation bounded by Abel's lemma and counted against the mass.
    """
    _check_confidence(confidence)
    return _half_width(noise, confidence)


def sum_interval(total: int, noise: Noise, *, unit: float = 1.0, confidence: float = 0.95) -> Interval:
    """Bound the true total behind a noisy one.

    Args:
        total: noisy, in grid steps.
        noise: what was added to it.
        unit: what one grid step is worth.
        confidence: in (0, 1).

    Returns:
        total -+ half width, in units.

    Raises:
        ValueError: unit is not positive, or confidence is not in (0, 1); ask again.
    """
    if not 0 < unit < math.inf:
        raise ValueError("unit must be positive")
    h = half_width(noise, confidence)
    return Interval(lo=(total - h) * unit, hi=(total + h) * unit)


def ratio(numerator: int, denominator: int) -> float | None:
    """Divide two noisy totals; None where the denominator is not positive, for then the quotient says nothing."""
    return numerator / denominator if denominator > 0 else None


def ratio_interval(
    *,
    numerator: int,
    numerator_noise: Noise,
    denominator: int,
    denominator_noise: Noise,
    lower: float,
    upper: float,
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
    _check_confidence(confidence)
    if not lower <= upper:
        raise ValueError("lower must not be above upper")
    sigmas = _sigma(numerator_noise), _sigma(denominator_noise)
    found = Interval(lo=lower, hi=upper)
    for _ in range(3):
        nodes = _nodes(found, sigmas[1] / sigmas[0])
        z = max(_critical(numerator_noise, denominator_noise, confidence, node) for node in nodes)
        found = _hull(_fieller(numerator, z * sigmas[0], denominator, z * sigmas[1]), lower, upper)
    return found


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError("confidence must lie between 0 and 1")


@lru_cache(maxsize=4096)
def _half_width(noise: Noise, confidence: float) -> int:
    match noise.terms:
        case (Term(mechanism="laplace", scale=scale, count=1),):
            # P(|X| > h) = 2 p^(h+1) / (1 + p), with p = exp(-1 / scale)
            return math.ceil(scale * math.log(2 / ((1 + math.exp(-1 / scale)) * (1 - confidence)))) - 1
    law = _lattice_law(noise)
    low, high = -1, law.period // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if law.mass(middle + 0.5) >= confidence else (middle, high)
    return high


@dataclass(frozen=True, slots=True, kw_only=True)
class _Law:
    """A symmetric law, wrapped around a circle, as a sine series; `last` is the weight where the series was cut."""

    period: int
    frequencies: NDArray[np.float64]
    weights: NDArray[np.float64]
    last: float

    def mass(self, x: float) -> float:
        """P(|Z| < x), less what the cut may hide: by Abel's lemma, falling weights add to last / sin(half a turn)."""
        series = float(self.weights @ np.sin(x * self.frequencies))
        rest = self.last / math.sin(math.pi * x / self.period) if self.last else 0.0
        return 2 / self.period * (x + series - rest)


def _lattice_law(noise: Noise) -> _Law:
    """The law over the integers: the whole Fourier sum, or its first frequencies if they are many."""
    half = math.ceil(_REACH * max(math.sqrt(noise.variance), 1))
    t = _frequencies(2 * half + 1, min(half, _FREQUENCIES))
    weights = np.exp(_log_cf(noise, t)) / np.sin(t / 2)
    last = float(weights[-1]) if half > _FREQUENCIES else 0.0
    return _Law(period=2 * half + 1, frequencies=t, weights=weights, last=last)


def _frequencies(period: int, count: int) -> NDArray[np.float64]:
    return np.linspace(0, 2 * math.pi * count / period, count + 1)[1:]


@lru_cache(maxsize=4096)
def _critical(numerator: Noise, denominator: Noise, confidence: float, node: int) -> float:
    """The quantile, in standard deviations, of N's noise - theta D's, at the angle atan(theta sigma_D / sigma_N).

    Neither lattice survives in the difference W, so it is blurred by a spline K no wider than `blur`, and half of that
    is added to the quantile: if |W + K| <= x then |W| <= x + blur / 2. The blur is as fine as the frequencies can
    resolve, or one step of the lattice that matters more, if that is finer: within it the smooth law is near enough.
    """
    angle = math.pi / 2 * node / _ANGLES
    steps = math.cos(angle) / _sigma(numerator), math.sin(angle) / _sigma(denominator)
    blur = min(steps[0] if 2 * node <= _ANGLES else steps[1], max(min(steps), 1 / 32))
    period = 2 * math.ceil(_REACH + blur)
    t = _frequencies(period, _FREQUENCIES)
    log_cf = _log_cf(numerator, steps[0] * t) + _log_cf(denominator, steps[1] * t)
    spline = np.sinc(blur * t / (8 * math.pi)) ** 4
    law = _Law(period=period, frequencies=t, weights=np.exp(log_cf) * spline / (t / 2), last=0.0)
    low, high = 0.0, period / 2
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if law.mass(middle) >= confidence else (middle, high)
    return high + blur / 2


def _nodes(thetas: Interval, slope: float) -> range:
    """The angles that enclose those of `thetas`."""
    least = 0.0 if thetas.lo <= 0 <= thetas.hi else min(abs(thetas.lo), abs(thetas.hi))
    most = max(abs(thetas.lo), abs(thetas.hi))
    low, high = (math.atan(slope * theta) * 2 / math.pi * _ANGLES for theta in (least, most))
    return range(math.floor(low), math.ceil(high) + 1)


def _fieller(n: float, n_width: float, d: float, d_width: float) -> tuple[Interval, ...]:
    """{theta: (n - theta d)^2 <= n_width^2 + (theta d_width)^2}: an interval, all but an interval, or everything."""
    lead = d * d - d_width**2
    inside = (n * d_width) ** 2 + lead * n_width**2
    if inside <= 0 or lead == 0:
        return (Interval(lo=-math.inf, hi=math.inf),)
    low, high = sorted((n * d + sign * math.sqrt(inside)) / lead for sign in (-1, 1))
    if lead > 0:
        return (Interval(lo=low, hi=high),)
    return Interval(lo=-math.inf, hi=low), Interval(lo=high, hi=math.inf)


def _hull(parts: tuple[Interval, ...], lower: float, upper: float) -> Interval:
    within = [(max(part.lo, lower), min(part.hi, upper)) for part in parts]
    within = [(lo, hi) for lo, hi in within if lo <= hi]
    if within:
        return Interval(lo=min(lo for lo, _ in within), hi=max(hi for _, hi in within))
    below = max((part.hi for part in parts if part.hi < lower), default=-math.inf)
    above = min((part.lo for part in parts if part.lo > upper), default=math.inf)
    nearest = lower if lower - below <= above - upper else upper
    return Interval(lo=nearest, hi=nearest)


def _sigma(noise: Noise) -> float:
    return max(math.sqrt(noise.variance), 1e-30)  # no noise at all still divides


@lru_cache(maxsize=4096)
def _variance(mechanism: Mechanism, scale: float) -> float:
    if mechanism == "laplace":
        return _laplace_spread(scale) / 2  # 2 p / (1 - p)^2
    if scale >= _SERIES_BELOW:
        return scale * scale  # short by a factor of 1 - 1e-32
    x, p = _gaussian_series(scale)
    return float(2 * p @ (x * x))


def _log_cf(noise: Noise, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of E[exp(i t Z)], which is real and positive for both mechanisms."""
    total = np.zeros_like(t)
    for term in noise.terms:
        one = _laplace_log_cf if term.mechanism == "laplace" else _gaussian_log_cf
        total += term.count * one(term.scale, t)
    return total


def _laplace_spread(scale: float) -> float:
    """4 p / (1 - p)^2 with p = exp(-1 / scale)."""
    return 4 * math.exp(-1 / scale) / math.expm1(-1 / scale) ** 2


def _laplace_log_cf(scale: float, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 - p)^2 / (1 - 2 p cos t + p^2)."""
    return -np.log1p(_laplace_spread(scale) * np.sin(t / 2) ** 2)


def _gaussian_log_cf(scale: float, t: NDArray[np.float64]) -> NDArray[np.float64]:
    if scale < _SERIES_BELOW:
        x, p = _gaussian_series(scale)
        return np.asarray(np.log1p(-4 * p @ np.sin(np.outer(x, t) / 2) ** 2))
    turn = 2 * math.pi
    t = np.abs(t - turn * np.rint(t / turn))  # two turns away weigh exp(-8 pi^2) at most: left out
    return np.asarray(np.log1p(np.exp(-(scale**2) * turn * (turn / 2 - t))) - (scale * t) ** 2 / 2)


def _gaussian_series(scale: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The positive integers that matter, and their probabilities."""
    reach = math.ceil(12 * scale)
    x = np.linspace(1, reach, reach)
    p = np.exp(-((x / max(scale, 0.01)) ** 2) / 2)  # at 0.01 they are already 0
    return x, p / (1 + 2 * float(p.sum()))
