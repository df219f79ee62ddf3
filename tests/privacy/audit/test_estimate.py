"""The estimate itself: it accuses no true mechanism, sees what it should, and learns nothing from the fresh sample."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from tests.privacy.audit.estimate import ALPHA, Event, audited, clopper_pearson, epsilon_hat, mu_hat
from tests.privacy.audit.reference import pmf

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.privacy.audit.estimate import Sample

RUNS = 6_400


def integers(seed: int, scale: float) -> Callable[[int], Sample]:
    """Samples of a release of three cells under exact discrete Laplace noise; the first cell is moved."""
    generator = np.random.default_rng(seed)
    k, probability = pmf("laplace", scale)

    def sample(move: int) -> Sample:
        drawn = k[np.searchsorted(np.cumsum(probability), generator.random((RUNS, 3)))].astype(np.float64)
        drawn[:, 0] += move
        return drawn

    return sample


def found(sample: Callable[[int], Sample], move: int) -> float:
    """The lower bound for a move."""
    return audited((sample(move), sample(0)), (sample(move), sample(0)), 0.0)


@pytest.mark.slow
def test_a_true_mechanism_is_not_accused() -> None:
    """Forty audits of exact noise at epsilon 1: every bound is below it, and above a half. False-alarm rate: 8e-5."""
    bounds = [found(integers(seed, 2.0), 2) for seed in range(40)]
    assert 0.5 < min(bounds) <= max(bounds) <= 1.0


@pytest.mark.slow
def test_half_the_noise_is_found() -> None:
    """At epsilon 2 the bound lies clear of 1, every time."""
    assert min(found(integers(seed, 1.0), 2) for seed in range(20)) > 1.5


@pytest.mark.slow
def test_floating_point_noise_is_found() -> None:
    """Laplace noise at epsilon 1.5, in doubles: the audit finds more, in the last bits of the sums (Mironov 2012)."""
    generator = np.random.default_rng(3)

    def sample(move: int) -> Sample:
        drawn = generator.laplace(0, 1, (RUNS, 3))
        drawn[:, 0] += move * 1.5
        return drawn

    assert max(found(sample, 1) for _ in range(10)) > 2.0


def test_an_event_that_never_happened_is_bounded() -> None:
    """Clopper and Pearson by hand where there are no hits, and where there are only hits."""
    low, up = clopper_pearson(0, 100)
    assert low == 0.0
    assert up == pytest.approx(1 - (ALPHA / 2) ** (1 / 100))
    low, up = clopper_pearson(100, 100)
    assert low == pytest.approx((ALPHA / 2) ** (1 / 100))
    assert up == 1.0


def test_delta_comes_off_first() -> None:
    """No bound where what happened is within delta."""
    assert epsilon_hat(10, 0, 10_000, 10_000, 0.01) == -math.inf
    assert epsilon_hat(9_000, 10, 10_000, 10_000, 0.01) > 5
    assert epsilon_hat(9_000, 10, 10_000, 10_000, 0.5) < epsilon_hat(9_000, 10, 10_000, 10_000, 0.01)


def test_an_event_is_fixed_before_it_is_counted() -> None:
    """Its hits on a sample depend on that sample alone."""
    event = Event(score=lambda sample: sample[:, 0], threshold=1.0)
    assert event.hits(np.array([[0.0], [1.0], [2.0]])) == 2


def test_a_gaussian_that_moves_is_measured_in_its_own_deviations() -> None:
    """By hand: at threshold 0 a move by mu gives normal quantiles mu apart; the bound lies below, nearer with runs."""
    bounds = [mu_hat(round(runs * stats.norm.cdf(0.5)), runs // 2, runs, runs) for runs in (10**3, 10**5, 10**7)]
    assert bounds[0] < bounds[1] < bounds[2] < 0.5
    assert bounds[2] == pytest.approx(0.5, abs=0.01)
    assert mu_hat(0, 0, 100, 100) == mu_hat(100, 100, 100, 100) == -math.inf
