"""The statement: what is promised, composed, in numbers that can be had another way."""

from __future__ import annotations

import math
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opendp.mod import OpenDPException

from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.release import Charge
from edge_agg.privacy import noise
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import (
    account_in_words,
    budget_of,
    charges_within,
    days,
    delta_up,
    in_words,
    loss,
    loss_within,
    period,
    plural,
    promises,
    rounded_up,
    state,
)
from tests.fakes import COUNT, MEAN, small_plan_text

if TYPE_CHECKING:
    from collections.abc import Callable

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


@pytest.mark.slow
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


def test_periods_in_words() -> None:
    """As people say them."""
    lengths = [timedelta(hours=1), timedelta(days=1), timedelta(days=7), timedelta(minutes=90)]
    assert [period(length) for length in lengths] == ["hourly", "daily", "weekly", "1.5-hour"]


@given(st.floats(0, 1e4))
@example(2.0)
@example(2.0000000005)
@example(0.0004)
@example(math.nextafter(1.001, 2))
@example(1e4)
def test_no_epsilon_is_shown_smaller_than_it_is(epsilon: float) -> None:
    """Guarantee: three decimals that, read again, are no less than the number, and more by less than 0.001."""
    shown = rounded_up(epsilon)
    assert epsilon <= float(shown)
    assert Fraction(repr(epsilon)) <= Fraction(shown) < Fraction(repr(epsilon)) + Fraction(1, 1000)
    assert shown[-4] == "."


@pytest.mark.parametrize("text", ["0.100", "0.001", "1.100", "2.000", "80.192", "20.000"])
def test_an_epsilon_of_three_decimals_is_shown_as_it_is_written(text: str) -> None:
    """Guarantee: what a plan asks for in few decimals does not look like more. Mutant: the ceiling of the binary."""
    assert rounded_up(float(text)) == text
    assert math.ceil(Fraction(0.1) * 1000) == 101


@pytest.mark.parametrize(
    ("mutant", "epsilon"),
    [
        (lambda epsilon: f"{epsilon:.3f}", 2.0004),
        (lambda epsilon: f"{math.ceil(epsilon * 1000 - 5e-4) / 1000:.3f}", 2.0000004),
        (lambda epsilon: f"{math.ceil(epsilon * 1000) / 1000:.3f}", 80.19200000000001),
    ],
    ids=["to the nearest", "within a millionth", "after a product that was rounded"],
)
def test_an_epsilon_that_is_rounded_down_would_be_caught(mutant: Callable[[float], str], epsilon: float) -> None:
    """Mutants: each shows some epsilon smaller than it is."""
    assert float(mutant(epsilon)) < epsilon <= float(rounded_up(epsilon))


@pytest.mark.parametrize("taken", [Fraction(1, 10**6), Fraction(1e-6), Fraction(1e-6) * (1 - Fraction(1, 2**60))])
def test_a_delta_that_discovery_has_taken_expresses_no_loss(taken: Fraction) -> None:
    """Guarantee: nothing of a delta left, by the number or by what it rounds to, is said and not computed.

    Mutant: the loss itself, which OpenDP does not map, or maps to no end.
    """
    assert loss_within(Charge(rho=Fraction(1), delta=2 * taken), 1e-6) is None
    assert loss_within(Charge(rho=Fraction(1), delta=taken), 1e-6) is None
    assert loss_within(Charge(rho=Fraction(1), delta=taken / 2), 1e-6) == loss(
        Charge(rho=Fraction(1), delta=taken / 2), 1e-6
    )
    with pytest.raises((ValueError, OpenDPException)):
        rounded_up(loss(Charge(rho=Fraction(1), delta=taken), 1e-6).epsilon)


def test_a_loss_is_spelled_out() -> None:
    """Guarantee: of two true statements the stronger one: the pure epsilon at delta 0, or zCDP's at its delta."""
    assert str(loss(Charge(rho=Fraction(1, 8)), 1e-5, pure=0.5)) == "epsilon 0.500 (pure: at delta 0)"
    assert str(loss(Charge(rho=Fraction(1, 8)), 1e-5)).endswith(" at delta 1e-05")
    weak = loss(Charge(rho=Fraction(1, 8)), 1e-5, pure=300.0)
    assert weak.shown == (rounded_up(weak.epsilon), "1e-05")
    assert weak.guess == loss(Charge(rho=Fraction(1, 8)), 1e-5).guess


@given(st.floats(1e-300, 0.99))
@example(5.304e-6)
@example(9.996e-7)
def test_no_delta_is_shown_smaller_than_it_is(delta: float) -> None:
    """Guarantee: three digits, rounded up by less than one in the third. Mutant: to the nearest, 5.304e-6 is 5.3e-6."""
    assert delta <= float(delta_up(delta)) <= delta * 1.0101
    assert float(f"{5.304e-6:.3g}") < 5.304e-6 < float(delta_up(5.304e-6))


def test_counts_and_horizons_in_words() -> None:
    """One is not many, and a horizon's hours are not cut off."""
    assert [plural(n, "window") for n in (0, 1, 1200)] == ["0 windows", "1 window", "1,200 windows"]
    assert [days(timedelta(hours=h)) for h in (24, 36, 24 * 365)] == ["day", "1.5 days", "365 days"]


def test_pure_losses_add_up_over_windows_where_that_is_less() -> None:
    """Guarantee: nine weeks of pure noise are nine times its epsilon; of a year zCDP says less, and is shown."""
    measurement = compile_plan(parse_plan(small_plan_text(COUNT, mechanism="laplace", epsilon=0.5)))
    few = state(measurement, budget_of(epsilon=1e3, delta=1e-5, horizon=timedelta(days=63)), 1e-5)
    many = state(measurement, budget_of(epsilon=1e3, delta=1e-5, horizon=10 * YEAR), 1e-5)
    once = few.window_site.pure
    assert once is not None
    assert (few.horizon_site.pure, many.horizon_site.pure) == (9 * once, 522 * once)
    assert few.horizon_site.shown == (rounded_up(9 * once), "0")
    assert many.horizon_site.shown[1] == "1e-05"
    assert many.horizon_site.epsilon < 522 * once
    assert "One" not in in_words(few, measurement.plan, 2 * timedelta(days=7))
    assert "one window counts in it like epsilon" in in_words(few, measurement.plan, YEAR)


def test_an_account_promises_for_all_its_plans() -> None:
    """Guarantee: the budget itself, at one site as it was written, and composed over `max_nodes` of them.

    Mutant: the epsilon of one site said of three; three times rho converts to more.
    """
    budget = budget_of(epsilon=8.0, delta=1e-5, horizon=YEAR, discovery=5e-6)
    words = account_in_words(budget, unit="u", epsilon=8.0, delta=1e-5, nodes=3)
    assert (
        "about what one u did in any 365 days, all that ever leaves this site tells at most epsilon 8 at delta 1e-05; "
    ) in words
    three = noise.epsilon_of(3 * budget.rho, 5e-6)
    assert words.endswith(
        f"all that leaves 3 sites with such an account, at most epsilon {rounded_up(three)} at delta 2e-05."
    )
    assert three > 8.0 >= noise.epsilon_of(budget.rho, 5e-6)
    assert "sites" not in account_in_words(budget, unit="u", epsilon=8.0, delta=1e-5, nodes=1)
    assert "about one event in" in account_in_words(budget, unit="event", epsilon=8.0, delta=1e-5, nodes=1)


@pytest.mark.parametrize(("length", "times"), [(YEAR, 1), (YEAR + timedelta(days=1), 2), (4 * YEAR, 4)])
def test_an_account_promises_less_about_a_history_that_is_longer_than_its_horizon(
    length: timedelta, times: int
) -> None:
    """Guarantee: the horizon is of event time; a drain of four years may tell four budgets in one day, and it is said.

    Mutant: the horizon's own epsilon, of spans that a longer history holds several of.
    """
    budget = budget_of(epsilon=8.0, delta=1e-5, horizon=YEAR)
    words = account_in_words(budget, unit="u", epsilon=8.0, delta=1e-5, nodes=1, history=length)
    if times == 1:
        assert "history" not in words
    else:
        whole = noise.epsilon_of(times * budget.rho, 1e-5)
        assert whole > 8.5
        assert words.endswith(
            f"; about all {days(length)} of the history, this site at most epsilon {rounded_up(whole)} at delta 1e-05."
        )


DISCOVER = 'column = "k"\ndiscover = { delta = 1e-7 }'


def discovering(*, nodes: int = 3, mechanism: str = "gaussian") -> Plan:
    """The small plan, with keys found in the data."""
    text = small_plan_text(COUNT, mechanism=mechanism, epsilon=1.0)
    text = text.replace('column = "k"\nvalues = ["a", "b"]\nother = true', DISCOVER)
    return parse_plan(text.replace('column = "u"\n', f'column = "u"\nmax_nodes = {nodes}\n'))


def test_what_discovered_keys_cost_is_a_part_of_the_delta() -> None:
    """Guarantee: the deltas of the windows and sites add up beside what the conversion takes, and are shown with it.

    Mutant: the conversion at the whole delta, with discovery's left out, shows a smaller epsilon than is true.
    """
    measurement = compile_plan(discovering())
    lost = float(measurement.charge.delta)
    assert 0 < lost <= 1e-7
    budget = budget_of(epsilon=1000.0, delta=1e-4, horizon=YEAR, discovery=5e-5)
    said = state(measurement, budget, 1e-4)
    assert said.window_site.delta == 1e-6
    assert said.window_site.epsilon == noise.epsilon_of(measurement.charge.rho, 1e-6 - lost)
    assert said.window_person.delta == pytest.approx(5e-5 + 3 * lost)
    assert said.horizon_person.delta == pytest.approx(5e-5 + 159 * lost)
    assert said.horizon_site.epsilon == noise.epsilon_of(
        53 * measurement.charge.rho, said.horizon_site.delta - 53 * lost
    )
    assert noise.epsilon_of(measurement.charge.rho, 1e-6) < said.window_site.epsilon


def test_a_budget_of_deltas_bounds_the_windows() -> None:
    """Where the account's part for discovery runs out first, no more windows than that are composed."""
    measurement = compile_plan(discovering(nodes=1))
    budget = budget_of(epsilon=1000.0, delta=1e-5, horizon=YEAR, discovery=1e-6)
    said = state(measurement, budget, 1e-5)
    assert said.windows == math.floor(budget.delta / measurement.charge.delta) < 53
    assert said.horizon_site.delta <= 1e-5 * (1 + 1e-9)


def test_a_plan_that_selects_keys_is_not_called_pure() -> None:
    """Laplace noise is pure, a selection of keys is not: it has a delta."""
    measurement = compile_plan(discovering(mechanism="laplace"))
    assert measurement.selection is not None
    said = state(measurement, budget_of(epsilon=1000.0, delta=1e-5, horizon=YEAR, discovery=1e-6), 1e-5)
    assert said.window_site.pure is None


def periodic(max_windows: int, span: str, every: str = "1d") -> Plan:
    """A plan whose units count in few windows of a period."""
    bounds = f'max_rows_per_partition = 2\nmax_windows = {max_windows}\nperiod = "{span}"'
    return parse_plan(small_plan_text(COUNT, every=every).replace("max_rows_per_partition = 2", bounds))


@pytest.mark.parametrize(("every", "span", "horizon"), [(1, 7, 30), (1, 7, 28), (2, 6, 365), (7, 28, 365), (1, 1, 10)])
def test_a_period_pays_once(every: int, span: int, horizon: int) -> None:
    """Guarantee: as many charges as spans of the horizon can meet, by brute force over every start."""
    measurement = compile_plan(periodic(1, f"{span}d", every=f"{every}d"))
    periods = [(k * span, k * span + span - every) for k in range(200)]
    starts = range(4 * span, 8 * span)
    most = max(sum(first < at + horizon and last >= at for first, last in periods) for at in starts)
    assert charges_within(measurement, timedelta(days=horizon)) == most


def test_a_period_that_is_not_composed_would_be_caught() -> None:
    """Mutant: periods that fit end to end; a span of 30 days meets six weeks of seven days."""
    measurement = compile_plan(periodic(1, "7d"))
    assert charges_within(measurement, timedelta(days=30)) == 6 > -(-30 // 7)


def test_a_plan_that_bounds_windows_is_composed_by_the_period() -> None:
    """Guarantee: in a period a person loses `max_windows` windows' loss at each site, and no more."""
    plan = periodic(2, "28d", every="7d")
    measurement = compile_plan(plan)
    said = state(measurement, budget_of(epsilon=1000.0, delta=1e-5, horizon=YEAR), 1e-5)
    assert said.period_person is not None
    assert said.period_person.rho == 2 * measurement.charge.rho
    assert said.windows == 2 * 14  # a year meets 14 periods of 28 days
    assert said.horizon_site.rho == 28 * measurement.charge.rho
    lines = promises(said, plan, YEAR)
    assert ("28d (counts in 2), this site", said.period_person) in lines
    # Its windows are all of them, though it counts in two of a period: no number of windows is named.
    assert ("365 days (14 periods of 28d), this site", said.horizon_site) in lines
    words = in_words(said, plan, YEAR)
    assert f"counts in at most 2 windows of 28d at a site, and loses at most {said.period_person} in all of" in words
    assert "in all of them, there." in words


def counted(seen: list[set[int]], most: int) -> int:
    """In how many windows somebody counts, at all sites together, who is seen at some in each."""
    at = [site for sites in seen for site in sorted(sites)]
    return sum(min(at.count(site), most) for site in set(at))


def test_a_person_who_moves_is_not_promised_a_loss_of_the_same_sites() -> None:
    """Guarantee: each site counts for itself, so the figures say whom they are of: the same sites all along.

    Mutant: "up to 2 sites", said of who is at one site now and at another then, and counts in more windows than that.
    """
    nodes, most = 2, 1
    stays, moves = [{0, 1}] * 4, [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert max(len(sites) for sites in stays + moves) <= nodes
    assert counted(stays, most) == nodes * most < counted(moves, most)
    text = small_plan_text(COUNT).replace(
        "max_rows_per_partition = 2", 'max_rows_per_partition = 2\nmax_windows = 1\nperiod = "28d"'
    )
    plan = parse_plan(text.replace('column = "u"\n', 'column = "u"\nmax_nodes = 2\n'))
    said = state(compile_plan(plan), budget_of(epsilon=1000.0, delta=1e-5, horizon=YEAR), 1e-5)
    assert said.same_sites
    words = in_words(said, plan, YEAR)
    assert "seen at the same 2 sites all along." in words
    assert "; those of the same 2 sites together, at most" in words
    assert words.endswith("who is seen at others in other windows loses more in all.")
    assert [seen for seen, _ in promises(said, plan, YEAR) if "2 sites" in seen] == [
        "one window, up to 2 sites",
        "28d (counts in 1), the same 2 sites",
        "365 days (14 periods of 28d), the same 2 sites",
    ]


def test_a_budget_that_ends_before_the_windows_is_each_sites_own() -> None:
    """Guarantee: where a site's budget admits fewer windows than there are, another's may admit others."""
    measurement = compile_plan(plan_of(COUNT))
    assert state(measurement, budget_of(epsilon=5.0, delta=1e-5, horizon=YEAR), 1e-5).same_sites
    assert not state(measurement, budget_of(epsilon=1000.0, delta=1e-5, horizon=YEAR), 1e-5).same_sites


def test_the_promise_in_words() -> None:
    """Guarantee: who, what, how much, about whom."""
    plan = plan_of(COUNT)
    said = state(compile_plan(plan), budget_of(epsilon=1000.0, delta=1e-5, horizon=YEAR), 1e-5)
    words = in_words(said, plan, YEAR)
    window, person, horizon = words.rstrip(".").split(". ")
    assert window == (
        f"Whoever sees everything that leaves this site in one window learns at most {said.window_site} about one u"
    )
    assert person == f"Seen at up to 3 sites, one u loses at most {said.window_person} in a window"
    assert horizon.startswith(
        f"About what one u did in any 365 days this plan's releases (53 windows) tell at most {said.horizon_site}; "
    )
    assert horizon.endswith(f"; those of 3 sites together, at most {said.horizon_person}")
    assert [seen for seen, _ in promises(said, plan, YEAR)] == [
        "one window, this site",
        "one window, up to 3 sites",
        "365 days (53 windows), this site",
        "365 days (53 windows), up to 3 sites",
    ]


def test_an_event_is_named_as_the_weaker_promise_it_is() -> None:
    """Guarantee: nobody reads a promise about an event as one about a person."""
    text = small_plan_text(COUNT, max_rows=1).replace('column = "u"\n', "event = true\n", 1)
    plan = parse_plan(text)
    words = in_words(state(compile_plan(plan), budget_of(epsilon=1e3, delta=1e-5, horizon=YEAR), 1e-5), plan, YEAR)
    assert "about one event." in words
    assert "About one event in any 365 days" in words
    assert "not whose it was: a weaker promise" in words
    assert "discovered key" in in_words(
        state(compile_plan(discovering()), budget_of(epsilon=1e3, delta=1e-5, horizon=YEAR), 1e-5), discovering(), YEAR
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_an_even_guess(epsilon: float) -> None:
    """Guarantee: never below what randomized response lets a guesser reach, which is the worst that epsilon allows."""
    said = loss(Charge(rho=Fraction(epsilon**2 / 2)), 1e-6, pure=epsilon)
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert right <= said.guess <= right + 1e-6
    assert loss(Charge(), 1e-6).guess == pytest.approx(0.5, abs=1e-6)
