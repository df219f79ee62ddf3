"""The noise behind an answer: which draws were added up, and the law of their sum.

Place: the lake's scales become terms, terms add up over sites and windows, and `combine.py` asks the sum for its law.
Invariants: equal sums are equal values; a law is known by its characteristic function, a product over the draws, so a
million draws cost what one does.
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

SERIES_BELOW = 2.0
"""A discrete Gaussian is summed term by term below this scale, by Poisson's formula above: there its variance is a
Gaussian's."""


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

    @property
    def sigma(self) -> float:
        """The standard deviation, in grid steps; without noise it is next to nothing, and still divides."""
        return max(math.sqrt(self.variance), 1e-30)

    def times(self, count: int) -> Noise:
        """The sum of `count` independent sums like this one."""
        return Noise.of(Term(mechanism=t.mechanism, scale=t.scale, count=t.count * count) for t in self.terms)

    def __add__(self, other: Noise) -> Noise:
        return Noise(terms=self.terms + other.terms)


def log_cf(noise: Noise, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of E[exp(i t Z)], which is real and positive for both mechanisms."""
    total = np.zeros_like(t)
    for term in noise.terms:
        one = _laplace_log_cf if term.mechanism == "laplace" else _gaussian_log_cf
        total += term.count * one(term.scale, t)
    return total


@lru_cache(maxsize=4096)
def _variance(mechanism: Mechanism, scale: float) -> float:
    if mechanism == "laplace":
        return _laplace_spread(scale) / 2  # 2 p / (1 - p)^2
    if scale >= SERIES_BELOW:
        return scale * scale  # short by a factor of 1 - 1e-32
    x, p = _gaussian_series(scale)
    return float(2 * p @ (x * x))


def _laplace_spread(scale: float) -> float:
    """4 p / (1 - p)^2 with p = exp(-1 / scale)."""
    return 4 * math.exp(-1 / scale) / math.expm1(-1 / scale) ** 2


def _laplace_log_cf(scale: float, t: NDArray[np.float64]) -> NDArray[np.float64]:
    """(1 - p)^2 / (1 - 2 p cos t + p^2)."""
    return -np.log1p(_laplace_spread(scale) * np.sin(t / 2) ** 2)


def _gaussian_log_cf(scale: float, t: NDArray[np.float64]) -> NDArray[np.float64]:
    if scale < SERIES_BELOW:
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
