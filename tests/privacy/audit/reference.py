"""Noise and loss as the textbooks have them: exact discrete distributions, tests of a sample, rho of an epsilon.

Place: what releases and charges are compared with; written out here, so that it shares no code with what it judges.
Source: Canonne, Kamath, Steinke 2020 for both distributions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    Float64s = npt.NDArray[np.float64]

_TAILS = 40
"""Scales on either side that are summed over; a Laplace tail beyond has mass e**-40."""
_EXPECTED = 25
"""Draws that a bin of the chi-squared test holds at least, on average."""


def rho_of(epsilon: float, delta: float) -> float:
    """The rho whose best conversion to delta gives epsilon (Canonne, Kamath, Steinke 2020, proposition 12)."""

    def log_delta(rho: float) -> float:
        def bound(log_excess: float) -> float:
            a = 1 + math.exp(log_excess)
            return (a - 1) * (a * rho - epsilon) + (a - 1) * math.log1p(-1 / a) - math.log(a)

        return float(optimize.minimize_scalar(bound, bounds=(-6, 12), method="bounded", options={"xatol": 1e-10}).fun)

    return float(optimize.brentq(lambda rho: log_delta(rho) - math.log(delta), 1e-9, 10 * epsilon, xtol=1e-16))


def pmf(mechanism: str, scale: float) -> tuple[Int64s, Float64s]:
    """The integers that matter, and the probability of each."""
    k = np.arange(-int(_TAILS * scale) - 2, int(_TAILS * scale) + 3)
    weight = np.exp(-(k**2) / (2 * scale**2)) if mechanism == "gaussian" else np.exp(-np.abs(k) / scale)
    return k, weight / weight.sum()


def chi_squared(drawn: Int64s, mechanism: str, scale: float) -> float:
    """The p-value that the sample is that noise, over bins that hold about equally many."""
    k, probability = pmf(mechanism, scale)
    bins = min(200, len(drawn) // _EXPECTED)
    below = np.cumsum(probability)
    edges = np.unique(k[np.searchsorted(below, np.arange(1, bins) / bins)])
    at = np.searchsorted(edges, k, side="left")
    expected = np.bincount(at, probability, minlength=len(edges) + 1) * len(drawn)
    observed = np.bincount(np.searchsorted(edges, drawn, side="left"), minlength=len(edges) + 1)
    return float(stats.chisquare(observed, expected * len(drawn) / expected.sum()).pvalue)


def kolmogorov_smirnov(drawn: Int64s, mechanism: str, scale: float) -> float:
    """The p-value of the largest distance between distribution functions; for integers it errs towards no alarm."""
    k, probability = pmf(mechanism, scale)
    inside = np.clip(drawn, k[0], k[-1])
    found = np.cumsum(np.bincount(inside - k[0], minlength=len(k))) / len(drawn)
    distance = np.abs(found - np.cumsum(probability)).max()
    return float(stats.kstwo.sf(distance, len(drawn)))


def tails(drawn: Int64s, mechanism: str, scale: float) -> float:
    """The p-value of how many draws lie beyond three scales: few, but they are what hides the extreme neighbour."""
    k, probability = pmf(mechanism, scale)
    beyond = float(probability[np.abs(k) > 3 * scale].sum())
    return float(stats.binomtest(int((np.abs(drawn) > 3 * scale).sum()), len(drawn), beyond).pvalue)


def correlation(one: Int64s, other: Int64s) -> float:
    """The p-value that two samples are uncorrelated: under independence the correlation is about normal."""
    found = np.corrcoef(one, other)[0, 1] * np.sqrt(len(one))
    return float(2 * stats.norm.sf(abs(found)))
