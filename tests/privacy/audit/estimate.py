"""A lower bound on epsilon from samples of releases on two neighbouring inputs.

Place: the last step of the black-box audit; it knows nothing of plans, agents or mechanisms.
Method: on a training sample the event that looks worst is chosen (scores that are likelihood ratios under Laplace or
Gaussian noise, sums, and which keys are there; any threshold); on a fresh sample, Clopper-Pearson bounds give
eps_hat = ln((low(p1) - delta) / up(p0)), which a true mechanism exceeds its epsilon with probability at most ALPHA.
Invariant: what was learned from the training sample is fixed before the fresh one is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Sample = npt.NDArray[np.float64]
    """One release a row, one released value a column; NaN where a key was not released."""
    Scores = npt.NDArray[np.float64]
    Pair: TypeAlias = tuple[Sample, Sample]
    Hat: TypeAlias = Callable[[int, int, int, int], float]
    """A lower bound from how often an event happened on each side, of so many runs."""

ALPHA = 1e-6
"""How often one direction of one audit of a true mechanism may cry wolf."""
_THRESHOLDS = 400
_COLUMNS = 4
"""Columns that are looked at alone: those that tell the sides apart best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A set of releases: those whose score is no less than a threshold."""

    score: Callable[[Sample], Scores]
    threshold: float

    def hits(self, sample: Sample) -> int:
        """How many releases of a sample are in it."""
        return int((self.score(sample) >= self.threshold).sum())


def clopper_pearson(hits: int, runs: int) -> tuple[float, float]:
    """Bounds on a probability, each side wrong with probability at most ALPHA / 2."""
    low = float(stats.beta.ppf(ALPHA / 2, hits, runs - hits + 1)) if hits else 0.0
    up = float(stats.beta.ppf(1 - ALPHA / 2, hits + 1, runs - hits)) if hits < runs else 1.0
    return low, up


def epsilon_hat(hits1: int, hits0: int, runs1: int, runs0: int, delta: float) -> float:
    """The lower bound on epsilon from how often an event happened on each side."""
    low, up = clopper_pearson(hits1, runs1)[0], clopper_pearson(hits0, runs0)[1]
    return math.log((low - delta) / up) if low > delta else -math.inf


def mu_hat(hits1: int, hits0: int, runs1: int, runs0: int) -> float:
    """The lower bound on how many standard deviations a Gaussian was moved by, from the same counts.

    Source: Dong, Roth, Su 2022: under noise that makes mu-GDP no event has z(p1) - z(p0) > mu, z the normal quantile.
    """
    low, up = clopper_pearson(hits1, runs1)[0], clopper_pearson(hits0, runs0)[1]
    return float(stats.norm.ppf(low) - stats.norm.ppf(up)) if low > 0 and up < 1 else -math.inf


def audited(train: Pair, fresh: Pair, delta: float) -> float:
    """The larger lower bound on epsilon of the two directions: the unit added, and the unit removed.

    False-alarm rate: at most 2 * ALPHA, one ALPHA a direction.
    """
    return bounded_by(train, fresh, partial(epsilon_hat, delta=delta))


def bounded_by(train: Pair, fresh: Pair, hat: Hat) -> float:
    """The same for any lower bound."""
    found = []
    for one, zero in ((0, 1), (1, 0)):
        event = chosen(train[one], train[zero], hat)
        hits = event.hits(fresh[one]), event.hits(fresh[zero])
        found.append(hat(*hits, len(fresh[one]), len(fresh[zero])))
    return max(found)


def chosen(one: Sample, zero: Sample, hat: Hat) -> Event:
    """The event that looks worst on a training sample."""
    best, worst = Event(score=lambda sample: np.zeros(len(sample)), threshold=0.0), -math.inf
    for score in _scores(one, zero):
        ones, zeros = np.sort(score(one)), np.sort(score(zero))
        for threshold in np.unique(np.quantile(np.concatenate([ones, zeros]), np.linspace(0, 1, _THRESHOLDS))):
            hits1, hits0 = (len(side) - int(np.searchsorted(side, threshold)) for side in (ones, zeros))
            found = hat(hits1, hits0, len(ones), len(zeros))
            if found > worst:
                best, worst = Event(score=score, threshold=float(threshold)), found
    return best


def _scores(one: Sample, zero: Sample) -> list[Callable[[Sample], Scores]]:
    """What a release may be judged by: the joint likelihood ratio, and each column's own.

    Where only some of the windows move (a sample of cells was kept), they move by more than the middle does: so the
    ratio is also taken between centres that lie two and three times the mean's move apart.
    """
    middle1, middle0 = _centre(one, np.median), _centre(zero, np.median)
    spread = np.maximum(_spread(one, middle1), _spread(zero, middle0))
    there = np.log(_share(one) / _share(zero)), np.log((1 - _share(one)) / (1 - _share(zero)))
    telling = np.argsort(-(np.abs(middle1 - middle0) / spread + np.abs(there[0]) + np.abs(there[1])))[:_COLUMNS]

    def ratio_to(other: Scores, columns: slice, *, gaussian: bool) -> Callable[[Sample], Scores]:
        m1, m0, s = other[columns], middle0[columns], spread[columns]

        def score(sample: Sample) -> Scores:
            x = sample[:, columns]
            ratio = (m1 - m0) * (x - (m1 + m0) / 2) / s**2 if gaussian else (np.abs(x - m0) - np.abs(x - m1)) / s
            known = ~np.isnan(x)
            keys = np.where(known, there[0][columns], there[1][columns])
            return np.asarray((np.where(known, ratio, 0.0) + keys).sum(axis=1), dtype=np.float64)

        return score

    moved = _centre(one, np.mean) - _centre(zero, np.mean)
    alone = [slice(i, i + 1) for i in telling.tolist()]
    return [
        *(ratio_to(middle1, columns, gaussian=kind) for kind in (False, True) for columns in [slice(None), *alone]),
        *(ratio_to(middle0 + times * moved, slice(None), gaussian=False) for times in (2, 3)),
    ]


def _centre(sample: Sample, of: Callable[[Scores], np.floating[Any]]) -> Scores:
    """The median or mean of what was released of each column; 0 where nothing was."""
    return np.array([float(of(column[~np.isnan(column)])) if _any(column) else 0.0 for column in sample.T])


def _spread(sample: Sample, middle: Scores) -> Scores:
    """The mean distance from the middle, at least a little."""
    distance = [np.abs(c[~np.isnan(c)] - m).mean() if _any(c) else 1.0 for c, m in zip(sample.T, middle, strict=True)]
    return np.maximum(np.array(distance, dtype=np.float64), 1e-3)


def _share(sample: Sample) -> Scores:
    """How often each column was released, smoothed away from 0 and 1."""
    return np.asarray(((~np.isnan(sample)).sum(axis=0) + 1.0) / (len(sample) + 2.0), dtype=np.float64)


def _any(column: Scores) -> bool:
    return bool((~np.isnan(column)).any())
