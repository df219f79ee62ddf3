"""What a sum of noises is: the same draws make the same value, with the variance of the discrete laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_collector.noise import Mechanism, Noise, Term
from tests.cloud_collector.laws import MECHANISMS, noise, noises, pmf, terms


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_variance_is_that_of_the_discrete_law(mechanism: Mechanism) -> None:
    """Not the continuous law's, which is far off below a scale of 1; and variances of independent draws add up."""
    for scale in np.geomspace(0.05, 300, 25).tolist():
        p = pmf(mechanism, scale)
        x = np.arange(len(p)) - len(p) // 2
        assert noise((mechanism, scale, 12)).variance == pytest.approx(12 * float(p @ x**2), rel=1e-9)


@settings(deadline=None)
@given(left=st.lists(terms, max_size=5), right=st.lists(terms, max_size=5))
def test_noise_is_canonical(left: list[Term], right: list[Term]) -> None:
    """The same draws make the same value and the same hash, in any order and grouping."""
    apart = Noise.of(left) + Noise.of(right)
    together = Noise.of([*reversed(right), *left])
    assert apart == together
    assert hash(apart) == hash(together)
    assert len({(term.mechanism, term.scale) for term in apart.terms}) == len(apart.terms)
    assert apart.variance == together.variance


@settings(deadline=None)
@given(of=noises, count=st.integers(1, 5))
def test_times_is_repeated_addition(of: Noise, count: int) -> None:
    """Several sums like this one make the noise that adding them up makes."""
    total = Noise.of([])
    for _ in range(count):
        total += of
    assert of.times(count) == total


def test_bad_terms_are_refused() -> None:
    """A scale, count or mechanism that no plan can have is an error, not a number."""
    for scale in (0.0, -1.0, math.nan, math.inf, 2.0**63):
        with pytest.raises(ValueError, match="scale"):
            noise(("gaussian", scale, 1))
    with pytest.raises(ValueError, match="count"):
        noise(("gaussian", 1.0, 0))
    with pytest.raises(ValueError, match="mechanism"):
        noise(("geometric", 1.0, 1))  # type: ignore[arg-type]
