"""How far noisy answers may lie from the truth: the last step, between the lake and the analyst.

Agents add integer noise; sums over sites and windows add those draws up. This room turns a sum into an interval, and
bounds any weighted sum for the rooms above it: `ratio.py`, `spread.py`, `order.py`.

Invariants:
- Totals are never clamped: an interval may reach below zero.
- A half width is the smallest that holds, or negligibly larger; never smaller.
- An interval speaks of the noise alone, not of what clipping and bounding left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from cloud_collector.noise import SERIES_BELOW, Noise, Term, log_cf

if TYPE_CHECKING:
    from numpy.typing import NDArray

Mix = tuple[tuple[float, Noise], ...]
"""(weight, noise), each drawn independently of the others: the law of the weighted sum."""

_REACH = 24  # standard deviations each way before a law wraps around; a Laplace tail there is exp(-34)
_FREQUENCIES = 6144  # at most; they then end at 800 / sigma
_SMOOTH = 1 / 48  # standard deviations a step: on finer lattices, sums of Gaussians are as good as normal


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A closed interval, in the unit of the answer that it belongs to."""

    lo: float
    hi: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """What was added up for one group, over sites and windows: each vector's columns, and the noise in each column."""

    sums: tuple[tuple[int, ...], ...]
    noises: tuple[Noise, ...]

    def __add__(self, other: Total) -> Total:
        pairs = zip(self.sums, other.sums, strict=True)
        return Total(
            sums=tuple(tuple(a + b for a, b in zip(left, right, strict=True)) for left, right in pairs),
            noises=tuple(a + b for a, b in zip(self.noises, other.noises, strict=True)),
        )


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
    check_confidence(confidence)
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


def critical(mix: Mix, confidence: float) -> float:
    """Bound a weighted sum of noises, whose weights share no lattice.

    Args:
        mix: real weights of any sign, and what they weigh.
        confidence: in (0, 1).

    Returns:
        A number x >= 0 with P(|W| <= x) >= confidence, in the unit of the weights; larger than the least such number by
        a hundredth of a standard deviation, or by half a step of the lattice that matters most.

    Raises:
        ValueError: confidence is not in (0, 1); ask again.

    No lattice survives in W, so it is blurred by a spline K no wider than `blur`, and half of that is added to the
    quantile: if |W + K| <= x then |W| <= x + blur / 2. The blur is as fine as the frequencies can resolve, or one step
    of the lattice that matters most, if that is finer: within it the smooth law is near enough. Where all noise is
    Gaussian on fine lattices, the normal quantile and three quarters of a blur are no less than that.
    """
    check_confidence(confidence)
    return _critical(tuple((abs(weight), noise) for weight, noise in mix), confidence)


def check_confidence(confidence: float) -> None:
    """Refuse what is no probability, or says nothing."""
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


@lru_cache(maxsize=4096)
def _critical(mix: Mix, confidence: float) -> float:
    weighed = [(weight * noise.sigma, weight, noise) for weight, noise in mix if weight and noise.variance]
    sigma = math.sqrt(math.fsum(share * share for share, _, _ in weighed))
    if sigma == 0:
        return 0.0
    steps = [(share / sigma, weight / sigma, noise) for share, weight, noise in weighed]
    blur = min(max(steps, key=lambda part: part[0])[1], max(min(step for _, step, _ in steps), 1 / 32))
    if max(step for _, step, _ in steps) <= _SMOOTH and all(_is_normal(noise) for _, _, noise in steps):
        return sigma * (NormalDist().inv_cdf((1 + confidence) / 2) + 0.75 * blur)
    period = 2 * math.ceil(_REACH + blur)
    t = _frequencies(period, _FREQUENCIES)
    logs = np.zeros_like(t)
    for _, step, noise in steps:
        logs += log_cf(noise, step * t)
    spline = np.sinc(blur * t / (8 * math.pi)) ** 4
    law = _Law(period=period, frequencies=t, weights=np.exp(logs) * spline / (t / 2), last=0.0)
    low, high = 0.0, period / 2
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if law.mass(middle) >= confidence else (middle, high)
    return sigma * (high + blur / 2)


def _is_normal(noise: Noise) -> bool:
    """Whether the noise is Gaussian but for its lattice."""
    return all(term.mechanism == "gaussian" and term.scale >= SERIES_BELOW for term in noise.terms)


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
    weights = np.exp(log_cf(noise, t)) / np.sin(t / 2)
    last = float(weights[-1]) if half > _FREQUENCIES else 0.0
    return _Law(period=2 * half + 1, frequencies=t, weights=weights, last=last)


def _frequencies(period: int, count: int) -> NDArray[np.float64]:
    return np.linspace(0, 2 * math.pi * count / period, count + 1)[1:]
