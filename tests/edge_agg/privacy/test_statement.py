"""The statement: what is promised, composed, in numbers that can be had another way."""

from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.release import Charge, Mechanism
from edge_agg.privacy import noise, statement
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import TYPICAL_ROWS, budget_of, loss, period, predict, rounded_up, state
from tests.fakes import COUNT, MEAN, SUM, small_plan_text

YEAR = timedelta(days=365)


def plan_of(*metrics: str, nodes: int = 3, every: str = "7d", mechanism: str = "gaussian") -> Plan:
    """A small plan over several sites."""
    text = small_plan_text(*metrics, every=every, mechanism=mechanism, epsilon=2.0)
    return parse_plan(text.replace('column = "u"\n', f'column = "u"\nmax_nodes = {nodes}\n'))


def epsilon_by_formula(rho: float, delta: float) -> float:
    """The best epsilon of rho-zCDP at delta by Canonne, Kamath, Steinke 2020, corollary 13, by a fine search."""
    alphas = 1.0 + np.exp(np.linspace(math.log(1e-4), math.log(1e5), 400_001))
    bound = alphas * rho + (np.log(1 / delta) + (alphas - 1) * np.log1p(-1 / alphas) - np.log(alphas)) / (alphas - 1)
    return float(bound.min())


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.5, 7.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-5])
def test_epsilon_is_that_of_the_literature_and_not_below_it(rho: float, delta: float) -> None:
    """Guarantee: the epsilon of a composed rho is OpenDP's conversion; a formula of our own agrees, from below."""
    said = loss(Charge(rho=Fraction(rho)), delta).epsilon
    ours = epsilon_by_formula(rho, delta)
    assert ours * (1 - 1e-6) <= said <= ours * (1 + 1e-3) + 1e-6


def test_a_statement_is_composed_over_sites_and_windows() -> None:
    """Guarantee: a person is seen at `max_nodes` sites, and in 53 weeks of a year: 3 x 53 charges."""
    measurement = compile_plan(plan_of(COUNT))
    said = state(measurement, budget_of(epsilon=1000.0, delta=1e-5, horizon=YEAR), 1e-5)
    rho = measurement.charge.rho
    assert said.windows == math.ceil(365 / 7) == 53
    assert (said.window_site.rho, said.window_person.rho, said.horizon_person.rho) == (rho, 3 * rho, 159 * rho)
    assert said.horizon_person.epsilon >= epsilon_by_formula(float(159 * rho), 1e-5) * (1 - 1e-6)
    assert (said.window_site.delta, said.window_person.delta, said.horizon_person.delta) == (1e-6, 1e-5, 1e-5)


def test_windows_that_do_not_compose_would_be_caught() -> None:
    """Mutant: 52 windows, the number that fits end to end; a span of 365 days can begin in 53 of them."""
    starts = [timedelta(days=7 * i) for i in range(200)]
    most = max(sum(begin <= start < begin + YEAR for start in starts) for begin in starts[:100])
    assert most == 53 > YEAR // timedelta(days=7)


@pytest.mark.parametrize(("every", "windows"), [("7d", 53), ("1d", 365), ("366d", 1), ("5d", 73)])
def test_as_many_windows_as_can_begin_in_a_horizon(every: str, windows: int) -> None:
    """Guarantee: rounded up, never down."""
    said = state(compile_plan(plan_of(COUNT, every=every)), budget_of(epsilon=1e3, delta=1e-5, horizon=YEAR), 1e-5)
    assert said.windows == windows


def test_no_more_windows_than_the_budget_admits() -> None:
    """Where the account runs out first, its budget bounds the loss at one site."""
    measurement = compile_plan(plan_of(COUNT, nodes=1))
    budget = budget_of(epsilon=5.0, delta=1e-5, horizon=YEAR)
    said = state(measurement, budget, 1e-5)
    assert said.windows == math.floor(budget.rho / measurement.charge.rho) < 53
    assert said.horizon_person.epsilon <= 5.0


@settings(max_examples=8)  # each example searches a budget anew, about 0.1 s
@given(st.floats(0.01, 50.0), st.sampled_from([1e-9, 1e-6, 1e-5]))
def test_a_budget_never_admits_more_than_its_epsilon(epsilon: float, delta: float) -> None:
    """Guarantee: rho is rounded down, so its epsilon is no more than what was written, and all but that."""
    budget = budget_of(epsilon=epsilon, delta=delta, horizon=YEAR)
    assert noise.epsilon_of(budget.rho, delta) <= epsilon
    assert noise.epsilon_of(budget.rho + Fraction(1, 10**6), delta) > epsilon * (1 - 1e-6)
    assert budget.delta == 0


def test_a_pure_plan_says_its_pure_epsilon() -> None:
    """Guarantee: under laplace noise the pure epsilon is the sum of the vectors' maps, times the sites."""
    measurement = compile_plan(plan_of(COUNT, MEAN, mechanism="laplace"))
    said = state(measurement, budget_of(epsilon=1e3, delta=1e-5, horizon=YEAR), 1e-5)
    spent = sum(Fraction(spec.loss) for spec in measurement.specs)
    assert said.window_site.pure is not None
    assert said.window_site.pure == pytest.approx(float(spent))
    assert said.window_site.pure <= 2.0
    assert said.window_person.pure == pytest.approx(3 * float(spent))
    assert measurement.charge.rho >= spent**2 / 2
    assert (
        state(compile_plan(plan_of(COUNT)), budget_of(epsilon=1.0, delta=1e-5, horizon=YEAR), 1e-5).window_site.pure
        is None
    )


def test_nothing_spent_is_nothing_lost() -> None:
    """An account without charges has lost nothing."""
    assert loss(Charge(), 1e-5).epsilon == 0.0


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_the_predicted_error_is_what_draws_show(mechanism: str) -> None:
    """Guarantee: 95 % +- 2 points of 10,000 draws lie within it (a false alarm: less than 1 in 10**15)."""
    measurement = compile_plan(plan_of(COUNT, SUM, mechanism=mechanism))
    count, total = predict(measurement, 9)
    for spec, prediction, step in zip(measurement.specs, (count, total), (1.0, 1.0), strict=True):
        drawn = noise.draw(spec.mechanism, spec.scale, np.zeros(10_000, dtype=np.int64)) * step
        inside = float((np.abs(drawn) <= prediction.one_site).mean())
        assert 0.93 < inside < 0.97
        assert prediction.all_sites == pytest.approx(3 * prediction.one_site)


def test_a_means_error_is_predicted_for_its_worst_case() -> None:
    """The mean of a cell at the edge of its range, recomputed from both noises; more sites make it better."""
    measurement = compile_plan(plan_of(MEAN))
    (said,) = predict(measurement, 4)
    sums, counts = measurement.specs
    half_range, resolution = 50.0, 0.5
    chance = np.random.default_rng(7)
    n = TYPICAL_ROWS + chance.normal(0, counts.scale, 200_000)
    centred = half_range * TYPICAL_ROWS + resolution * chance.normal(0, sums.scale, 200_000)
    errors = np.abs(centred / n - half_range)
    assert np.quantile(errors, 0.95) == pytest.approx(said.one_site, rel=0.1)
    assert said.all_sites == pytest.approx(said.one_site / 2)


@pytest.mark.parametrize("scale", [0.3, 1.0, 20.0])
def test_the_deviation_of_discrete_laplace_noise(scale: float) -> None:
    """By its series."""
    k = np.arange(-2000, 2001)
    weights = np.exp(-np.abs(k) / scale)
    expected = math.sqrt(float((weights * k**2).sum() / weights.sum()))
    assert statement._deviation(Mechanism.LAPLACE, scale) == pytest.approx(expected)


def test_periods_in_words() -> None:
    """As people say them."""
    lengths = [timedelta(hours=1), timedelta(days=1), timedelta(days=7), timedelta(minutes=90)]
    assert [period(length) for length in lengths] == ["hourly", "daily", "weekly", "1.5-hour"]


@given(st.floats(0, 1e4))
@example(2.0)
@example(2.0000000005)
@example(0.0004)
def test_no_epsilon_is_shown_smaller_than_it_is(epsilon: float) -> None:
    """Guarantee: three decimals, rounded up (within the millionth that its docstring grants), by less than 0.001."""
    shown = Fraction(rounded_up(epsilon))
    assert (
        Fraction(epsilon) - Fraction(1, 10**6) * (1 + Fraction(1, 10**3))
        <= shown
        < Fraction(epsilon) + Fraction(1, 1000)
    )


def test_rounding_to_the_nearest_would_be_caught() -> None:
    """Mutant: 2.0004 shown as 2.000."""
    assert rounded_up(2.0004) == "2.001" != f"{2.0004:.3f}"


def test_a_loss_is_spelled_out() -> None:
    """Both epsilons of a pure plan are shown, and the delta."""
    words = str(loss(Charge(rho=Fraction(1, 8)), 1e-5, pure=0.5))
    assert words.startswith("epsilon 0.500 (pure); epsilon ")
    assert words.endswith(" at delta 1e-05")
