"""Noise: what it costs is what its map says, and what is drawn has the distribution that the map is about."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opendp import combinators
from scipy import stats

from edge_agg.contract.release import RHO_GRID, Mechanism
from edge_agg.privacy import noise

if TYPE_CHECKING:
    import numpy.typing as npt

FALSE_ALARM = 1e-6
GAUSSIAN, LAPLACE = Mechanism.GAUSSIAN, Mechanism.LAPLACE


def by_hand(mechanism: Mechanism, scale: float, distance: float) -> Fraction:
    """The loss by the textbook, exactly: d**2 / (2 s**2) or d / s."""
    ratio = Fraction(distance) / Fraction(scale)
    return ratio**2 / 2 if mechanism is GAUSSIAN else ratio


@settings(max_examples=50)
@given(
    mechanism=st.sampled_from(Mechanism),
    scale=st.floats(0.01, 1e12),
    distance=st.integers(1, 10**9).map(float) | st.integers(1, 10**9).map(math.sqrt),
)
def test_the_map_is_the_textbooks_rounded_up(mechanism: Mechanism, scale: float, distance: float) -> None:
    """Never below the exact loss, and above it by no more than rounding."""
    exact = by_hand(mechanism, scale, distance)
    assert (
        exact
        <= Fraction(noise.loss_of(mechanism, scale=scale, sensitivity=distance))
        <= exact * (1 + Fraction(1, 10**12))
    )


@pytest.mark.parametrize("mechanism", Mechanism)
@pytest.mark.parametrize("sensitivity", [1.0, 5.0, math.sqrt(2) * 5250, 1e9])
@pytest.mark.parametrize("loss", [1e-6, 0.022, 1.0, 8.0])
def test_calibration_is_within_the_loss_and_tight(mechanism: Mechanism, sensitivity: float, loss: float) -> None:
    """The scale loses at most what was asked, and 0.1 % less noise would lose more."""
    scale = noise.calibrate(mechanism, sensitivity=sensitivity, loss=loss)
    assert noise.loss_of(mechanism, scale=scale, sensitivity=sensitivity) <= loss
    assert noise.loss_of(mechanism, scale=scale * 0.999, sensitivity=sensitivity) > loss


@pytest.mark.parametrize("mechanism", Mechanism)
@pytest.mark.parametrize("loss", [0.0, 1e-300])
def test_an_impossible_loss_is_refused(mechanism: Mechanism, loss: float) -> None:
    """No scale up to 2**50 is enough: refused, in place of a draw that could overflow."""
    with pytest.raises(ValueError, match="no noise scale"):
        noise.calibrate(mechanism, sensitivity=5.0, loss=loss)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 1.0, 3.7, 64.0])
def test_rho_of_pure_is_half_the_square(epsilon: float) -> None:
    """epsilon-DP is epsilon**2 / 2-zCDP, rounded up."""
    exact = Fraction(epsilon) ** 2 / 2
    assert exact <= noise.rho_of_pure(epsilon) <= exact * (1 + Fraction(1, 10**12))


def gaussian_delta(rho: float, epsilon: float) -> float:
    """The exact delta of a continuous Gaussian of that rho at epsilon (Balle, Wang 2018)."""
    mu = math.sqrt(2 * rho)
    above, below = stats.norm.logcdf(mu / 2 - epsilon / mu), epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu)
    return float(math.exp(above) - math.exp(below))


@pytest.mark.parametrize("rho", [1e-5, 0.02, 0.5, 3.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-6, 1e-2])
def test_epsilon_lies_between_the_exact_gaussian_and_the_simple_bound(rho: float, delta: float) -> None:
    """Not below what a Gaussian truly loses, nor above rho + 2 sqrt(rho ln(1 / delta)) (Bun, Steinke 2016)."""
    epsilon = noise.epsilon_of(Fraction(rho), delta)
    assert gaussian_delta(rho, epsilon) <= delta
    assert epsilon <= rho + 2 * math.sqrt(rho * math.log(1 / delta)) + 1e-9


@pytest.mark.parametrize("steps", [1, 3, 7, 10**9 + 7, 24231226473, 2**40 + 1])
def test_epsilon_is_that_of_a_gaussian_that_loses_no_less(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The square root of rho rounds; the Gaussian whose epsilon is shown is one whose map is not below rho."""
    rho, seen = Fraction(steps, RHO_GRID), []
    original = combinators.make_fix_delta

    class Watched:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def map(self, distance: float) -> Any:
            seen.append(Fraction(noise.loss_of(GAUSSIAN, scale=1.0, sensitivity=distance)))
            return self.inner.map(distance)

    monkeypatch.setattr(combinators, "make_fix_delta", lambda *args: Watched(original(*args)))
    noise.epsilon_of.__wrapped__(rho, 1e-6)
    assert len(seen) == 1
    assert rho <= seen[0] <= rho * (1 + Fraction(1, 10**12))


def test_nothing_lost_is_epsilon_zero() -> None:
    """An account that was never charged shows 0."""
    assert noise.epsilon_of(Fraction(0), 1e-6) == 0.0


@settings(max_examples=10)
@given(rhos=st.tuples(st.integers(1, 2**42), st.integers(1, 2**42)), delta=st.sampled_from([1e-9, 1e-6, 1e-3]))
def test_epsilon_grows_with_rho_and_falls_with_delta(rhos: tuple[int, int], delta: float) -> None:
    """More loss never shows as less."""
    low, high = (Fraction(rho, RHO_GRID) for rho in sorted(rhos))
    assert noise.epsilon_of(low, delta) <= noise.epsilon_of(high, delta)
    assert noise.epsilon_of(low, delta) >= noise.epsilon_of(low, delta * 10)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 64.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5])
def test_rho_within_is_the_largest_that_fits(epsilon: float, delta: float) -> None:
    """The budget in rho is on the grid, loses at most epsilon, and one step more would not fit."""
    rho = noise.rho_within(epsilon, delta)
    assert (rho * RHO_GRID).denominator == 1
    assert noise.epsilon_of(rho, delta) <= epsilon < noise.epsilon_of(rho + Fraction(1, RHO_GRID), delta)


@pytest.mark.parametrize("near", [0.0, 2.0**-40, 0.02, 0.5, 63.9, 1e6])
def test_rho_within_does_not_hang_on_where_the_search_begins(monkeypatch: pytest.MonkeyPatch, near: float) -> None:
    """Only the map says where the search ends: from any beginning it ends at the same rho."""
    found = noise.rho_within(1.0, 1e-9)
    noise.rho_within.cache_clear()
    monkeypatch.setattr(noise, "_rho_near", lambda *_: near)
    assert noise.rho_within(1.0, 1e-9) == found
    noise.rho_within.cache_clear()


@given(last=st.integers(0, 1000), near=st.integers(-5, 1100), more=st.integers(1, 1000))
def test_a_search_ends_at_the_last_number_that_fits(last: int, near: int, more: int) -> None:
    """Guarantee: wherever it begins, also outside of where it may end, it ends at the last one, below its bound."""
    found = noise._last(lambda number: number <= last, near=near, high=last + more)
    assert found == last
    assert noise._last(lambda number: number <= last, near=near, high=max(1, last)) == max(0, last - 1)


def test_a_search_that_ends_where_it_begins_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: what is near is taken for what is found."""
    monkeypatch.setattr(noise, "_last", lambda holds, *, near, high: near)
    with pytest.raises(AssertionError):
        test_rho_within_does_not_hang_on_where_the_search_begins(monkeypatch, 0.5)
    noise.rho_within.cache_clear()


def test_rho_within_is_monotone() -> None:
    """A larger epsilon or delta never buys less."""
    rhos = [noise.rho_within(epsilon, 1e-9) for epsilon in (0.5, 1.0, 2.0)]
    assert rhos == sorted(rhos)
    assert noise.rho_within(1.0, 1e-9) < noise.rho_within(1.0, 1e-5)


def pmf(mechanism: Mechanism, scale: float, support: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The exact discrete distribution, normalised over all the integers that matter."""
    k = np.arange(-1000, 1001)
    weight = {GAUSSIAN: -(k**2) / (2 * scale**2), LAPLACE: -np.abs(k) / scale}[mechanism]
    probability = np.exp(weight)
    whole: npt.NDArray[np.float64] = probability[support + 1000] / probability.sum()
    return whole


def goodness(drawn: npt.NDArray[np.int64], mechanism: Mechanism, scale: float) -> float:
    """The p-value of the exact distribution, by chi-squared; tails pooled until 10 are expected in a bin."""
    n = len(drawn)
    edge = 0
    while 2 * pmf(mechanism, scale, np.arange(edge + 1, 1001)).sum() * n > 20:
        edge += 1
    support = np.arange(-edge, edge + 1)
    inner = pmf(mechanism, scale, support)
    tail = (1 - inner.sum()) / 2
    expected = np.concatenate([[tail], inner, [tail]]) * n
    expected[1], expected[-2] = expected[1] + expected[0], expected[-2] + expected[-1]
    observed = np.bincount(np.clip(drawn, -edge, edge) + edge, minlength=len(support))
    return float(stats.chisquare(observed, expected[1:-1]).pvalue)


CASES = [(GAUSSIAN, 0.5), (GAUSSIAN, 1.0), (GAUSSIAN, 4.3), (LAPLACE, 0.5), (LAPLACE, 1.0), (LAPLACE, 4.3)]


@pytest.mark.parametrize(("mechanism", "scale"), CASES)
def test_draws_have_the_exact_discrete_distribution(mechanism: Mechanism, scale: float) -> None:
    """5,000 draws against the exact pmf; a true sampler fails one run in a million."""
    exact = np.full(5_000, 7, dtype=np.int64)
    assert goodness(noise.draw(mechanism, scale, exact) - exact, mechanism, scale) > FALSE_ALARM


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "scale"), CASES)
def test_many_draws_have_the_exact_discrete_distribution(mechanism: Mechanism, scale: float) -> None:
    """The same for 200,000 draws."""
    drawn = noise.draw(mechanism, scale, np.zeros(200_000, dtype=np.int64))
    assert goodness(drawn, mechanism, scale) > FALSE_ALARM


@pytest.mark.parametrize(("mechanism", "scale"), CASES)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_mutant_another_scale_is_caught(
    monkeypatch: pytest.MonkeyPatch, mechanism: Mechanism, scale: float, factor: float
) -> None:
    """Mutants: half and twice the noise."""
    original = noise._measurement
    monkeypatch.setattr(noise, "_measurement", lambda mechanism, scale: original(mechanism, scale * factor))
    drawn = noise.draw(mechanism, scale, np.zeros(2_000, dtype=np.int64))
    assert goodness(drawn, mechanism, scale) < FALSE_ALARM


def test_mutant_the_other_mechanism_is_caught() -> None:
    """Mutant: Laplace noise of the Gaussian's standard deviation passes for Gaussian noise."""
    drawn = noise.draw(LAPLACE, 4.3 / math.sqrt(2), np.zeros(5_000, dtype=np.int64))
    assert goodness(drawn, GAUSSIAN, 4.3) < FALSE_ALARM


def test_mutant_rounded_floating_point_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: rounded continuous Laplace noise is not the discrete Laplace."""

    def rounded(mechanism: Mechanism, scale: float) -> Any:
        generator = np.random.default_rng(1)
        return lambda exact: [value + round(generator.laplace(0, scale)) for value in exact]

    monkeypatch.setattr(noise, "_measurement", rounded)
    assert goodness(noise.draw(LAPLACE, 1.0, np.zeros(20_000, dtype=np.int64)), LAPLACE, 1.0) < FALSE_ALARM


@pytest.mark.parametrize("mechanism", Mechanism)
def test_cells_and_draws_are_independent(mechanism: Mechanism) -> None:
    """Noise of neighbouring cells, and of two draws of one vector, is uncorrelated (six standard errors)."""
    zeros = np.zeros(5_000, dtype=np.int64)
    first, second = noise.draw(mechanism, 3.0, zeros), noise.draw(mechanism, 3.0, zeros)
    limit = 6 / math.sqrt(len(zeros))
    assert abs(np.corrcoef(first, second)[0, 1]) < limit
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < limit


@pytest.mark.parametrize("mechanism", Mechanism)
def test_large_values_pass_through_exactly(mechanism: Mechanism) -> None:
    """Integers beyond 2**53 keep their last digit: the noise is added to integers, not to doubles."""
    exact = np.array([2**62 - 1, -(2**62) + 1, 2**53 + 1], dtype=np.int64)
    drawn = noise.draw(mechanism, 0.01, exact)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == exact.tolist()


# Thresholds


def above(mechanism: Mechanism, scale: float, threshold: int, cells: int) -> float:
    """The exact probability that of so many keys with one unit each, some noisy 1 lies above the threshold."""
    if mechanism is LAPLACE:
        one = math.exp(-threshold / scale) / (1 + math.exp(-1 / scale))
    else:
        k = np.arange(threshold, threshold + math.ceil(40 * scale) + 40, dtype=np.float64)
        whole = np.arange(-math.ceil(40 * scale), math.ceil(40 * scale) + 1, dtype=np.float64)
        one = float(np.exp(-(k**2) / (2 * scale**2)).sum() / np.exp(-(whole**2) / (2 * scale**2)).sum())
    return -math.expm1(cells * math.log1p(-one))


def test_the_exact_tails_are_those_of_what_is_drawn() -> None:
    """The series above agree with the distribution that draws are tested against, and with scipy's discrete Laplace."""
    for mechanism, scale in CASES:
        for threshold in (1, 2, 5):
            assert above(mechanism, scale, threshold, 1) == pytest.approx(
                float(pmf(mechanism, scale, np.arange(threshold, 1001)).sum()), rel=1e-9
            )
            if mechanism is LAPLACE:
                assert above(LAPLACE, scale, threshold, 1) == pytest.approx(
                    float(stats.dlaplace.sf(threshold - 1, 1 / scale)), rel=1e-9
                )


@pytest.mark.parametrize("mechanism", Mechanism)
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.3, 30.0])
@pytest.mark.parametrize("cells", [1, 3, 100])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-9])
def test_a_threshold_is_right_and_minimal(mechanism: Mechanism, scale: float, cells: int, delta: float) -> None:
    """P(some noisy 1 > T) <= the map's delta <= what was asked; one lower, and the map says more than was asked.

    The map of Laplace noise is exact; that of Gaussian noise is the continuous tail's, and costs one step at most.
    """
    threshold, lost = noise.threshold_of(mechanism, scale=scale, cells=cells, delta=delta)
    assert above(mechanism, scale, threshold, cells) <= lost * (1 + 1e-7) <= delta * (1 + 1e-7)
    assert lost <= delta
    assert lost == noise.delta_of(mechanism, scale=scale, cells=cells, threshold=threshold)
    assert noise.delta_of(mechanism, scale=scale, cells=cells, threshold=threshold - 1) > delta
    slack = 1 if mechanism is LAPLACE else 2
    assert above(mechanism, scale, threshold - slack, cells) > delta


@pytest.mark.parametrize("mechanism", Mechanism)
def test_mutant_thresholds_are_caught(mechanism: Mechanism) -> None:
    """Mutants: `>=` in place of `>`; a threshold for one key where a unit may have a hundred.

    `>=` at T is `>` at T - 1.
    """
    told = noise.threshold_of(mechanism, scale=30.0, cells=1, delta=1e-3)[0]
    assert above(mechanism, 30.0, told, 1) <= 1e-3 < above(mechanism, 30.0, told - 1, 1)
    alone = noise.threshold_of(mechanism, scale=4.3, cells=1, delta=1e-6)[0]
    assert above(mechanism, 4.3, alone, 100) > 1e-6


@settings(max_examples=30)
@given(
    mechanism=st.sampled_from(Mechanism),
    scale=st.floats(0.2, 1e6),
    cells=st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    thresholds=st.tuples(st.integers(1, 10**7), st.integers(1, 10**7)),
)
def test_delta_falls_with_the_threshold_and_grows_with_the_keys(
    mechanism: Mechanism, scale: float, cells: tuple[int, int], thresholds: tuple[int, int]
) -> None:
    """What the search for a threshold rests on."""
    (few, many), (low, high) = sorted(cells), sorted(thresholds)

    def delta(cells: int, threshold: int) -> float:
        return noise.delta_of(mechanism, scale=scale, cells=cells, threshold=threshold)

    assert delta(many, high) <= delta(many, low)
    assert delta(few, low) <= delta(many, low)


@pytest.mark.parametrize("mechanism", Mechanism)
def test_an_impossible_delta_is_refused(mechanism: Mechanism) -> None:
    """Below what the map can tell from 0, no threshold is high enough."""
    with pytest.raises(ValueError, match="no threshold"):
        noise.threshold_of(mechanism, scale=1.0, cells=1, delta=1e-30)


# Draws of any shape, in threads


@pytest.mark.parametrize("mechanism", Mechanism)
@pytest.mark.parametrize("shape", [(0,), (1,), (0, 5), (3, 4), (2, 3, 4), (noise._CHUNK + 1,), (3, noise._CHUNK)])
def test_a_draw_keeps_the_shape_and_every_cell(mechanism: Mechanism, shape: tuple[int, ...]) -> None:
    """Cells come back where they were, as int64, also where they are drawn in many chunks."""
    exact = (np.arange(math.prod(shape), dtype=np.int64) * 10**6).reshape(shape)
    drawn = noise.draw(mechanism, 3.0, exact)
    assert drawn.shape == shape
    assert drawn.dtype == np.int64
    assert np.array_equal(np.rint(drawn / 10**6), np.arange(exact.size).reshape(shape))


@pytest.mark.parametrize("mechanism", Mechanism)
def test_a_transposed_vector_is_drawn_cell_by_cell(mechanism: Mechanism) -> None:
    """Also an array that does not lie in one piece."""
    exact = (np.arange(12, dtype=np.int64) * 10**6).reshape(3, 4).T
    assert np.array_equal(np.rint(noise.draw(mechanism, 1.0, exact) / 10**6), exact / 10**6)


def chunks_are_independent(mechanism: Mechanism) -> bool:
    """Whether chunks of one draw, and the same chunk of two draws, are uncorrelated (six standard errors)."""
    zeros = np.zeros(4 * noise._CHUNK, dtype=np.int64)
    first, second = (noise.draw(mechanism, 3.0, zeros).reshape(4, -1) for _ in range(2))
    found = np.corrcoef(np.concatenate([first, second]))
    return bool((np.abs(found[~np.eye(8, dtype=np.bool_)]) < 6 / math.sqrt(noise._CHUNK)).all())


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", Mechanism)
def test_chunks_are_drawn_independently(mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two chunks share their noise. Mutant: each thread draws from a generator that was copied."""
    assert chunks_are_independent(mechanism)
    with monkeypatch.context() as mutant:
        mutant.setattr(noise, "_drawn", lambda *args: np.random.default_rng(7).integers(-9, 10, len(args[2])))
        assert not chunks_are_independent(mechanism)


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "scale"), [(GAUSSIAN, 4.3), (LAPLACE, 4.3)])
def test_draws_in_threads_have_the_exact_discrete_distribution(mechanism: Mechanism, scale: float) -> None:
    """Each of eight chunks by itself; a true sampler fails one run in a million."""
    drawn = noise.draw(mechanism, scale, np.zeros((8, noise._CHUNK), dtype=np.int64))
    assert all(goodness(chunk, mechanism, scale) > FALSE_ALARM / 8 for chunk in drawn)


@pytest.mark.parametrize("mechanism", list(Mechanism))
@pytest.mark.parametrize("factor", [1.0, 1.5, 1e-3])
def test_the_scale_is_where_the_map_says_not_where_a_formula_does(
    mechanism: Mechanism, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: the loss at the scale is within the budget, whatever the map is; a hair less would not be."""
    exact = noise.loss_of
    monkeypatch.setattr(noise, "loss_of", lambda *args, **named: factor * exact(*args, **named))
    scale = noise.calibrate(mechanism, sensitivity=8.0, loss=0.25)
    assert noise.loss_of(mechanism, scale=scale, sensitivity=8.0) <= 0.25
    assert noise.loss_of(mechanism, scale=scale * (1 - 1e-9), sensitivity=8.0) > 0.25


def test_a_scale_by_formula_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: what the search finds near the formula is taken, whatever the map says there."""
    monkeypatch.setattr("opendp.mod.binary_search", lambda is_enough, bounds: 32.0)
    with pytest.raises(AssertionError):
        test_the_scale_is_where_the_map_says_not_where_a_formula_does(Mechanism.LAPLACE, 1.5, monkeypatch)


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_where_a_search_begins_does_not_show_in_where_it_ends(
    mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: near its formula or over all scales, the search finds the same double."""
    near = [noise.calibrate(mechanism, sensitivity=s, loss=0.3) for s in (1.0, 8.0, 320000.0)]
    monkeypatch.setattr(noise, "_NEAR", ())
    assert near == [noise.calibrate(mechanism, sensitivity=s, loss=0.3) for s in (1.0, 8.0, 320000.0)]
