"""How long an account lasts: what the ledger itself would say, window by window."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted
from edge_agg.privacy import outlook
from edge_agg.privacy.ledger import Budget, Entry, check_room
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.outlook import Demand, advise, cheaper_epsilon, demand_of, lasts_for_ever, look, refused_until
from tests.fakes import small_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

ORIGIN = datetime(1970, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def charge(rho: int, delta: int = 0) -> Charge:
    """In whole numbers, so that sums can be checked by eye."""
    return Charge(rho=Fraction(rho), delta=Fraction(delta, 1000))


def demand(
    name: str, rho: int, *, every: int = 1, start: int = 0, period: int | None = None, windows: int = 1, delta: int = 0
) -> Demand:
    """What a plan charges, times in days."""
    return Demand(
        plan=name,
        charge=charge(rho, delta),
        every=every * DAY,
        start=ORIGIN + start * DAY,
        period=None if period is None else period * DAY,
        windows=windows,
    )


def one_by_one(
    budget: Budget, entries: Sequence[Entry], demands: Sequence[Demand], days: int
) -> tuple[datetime, str] | None:
    """The ledger asked for every window of every plan in turn, as an agent asks it."""
    held = list(entries)
    coming = []
    for i, one in enumerate(demands):
        for entry in one.entries():
            if entry.window_start >= ORIGIN + days * DAY:
                break
            coming.append((entry.window_start, i, entry))
    for start, i, entry in sorted(coming, key=lambda row: row[:2]):
        try:
            check_room(budget, held, entry)
        except BudgetExhausted:
            return start, demands[i].plan
        held.append(entry)
    return None


DEMANDS = st.lists(
    st.builds(
        demand,
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 5),
        every=st.integers(1, 4),
        start=st.integers(0, 3).map(lambda k: 12 * k),
        delta=st.integers(0, 2),
    )
    | st.builds(
        lambda rho, windows, start: demand("p", rho, every=2, start=12 * start, period=6, windows=windows),
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=60)
@given(DEMANDS, st.integers(1, 40), st.integers(0, 20), st.integers(5, 15), st.lists(st.integers(-10, 8), max_size=4))
def test_an_account_ends_where_the_ledger_ends_it(
    demands: list[Demand], rho: int, delta: int, horizon: int, before: list[int]
) -> None:
    """Guarantee: the first window that finds no room, of the plan it belongs to, is the one that the ledger refuses."""
    budget = Budget(rho=Fraction(rho), delta=Fraction(delta, 1000), horizon=horizon * DAY)
    entries = [Entry(window_start=ORIGIN + day * DAY, charge=charge(1)) for day in before]
    said = look(budget, entries, demands)
    assert said.looked_to is None  # steps of a few days come round within the horizons that are looked through
    assert (None if said.ends is None else (said.ends, said.plan)) == one_by_one(budget, entries, demands, 150)


@pytest.mark.parametrize(
    ("rho", "every", "left"),
    [(10, 1, None), (9, 1, 9), (4, 3, None), (3, 3, 3), (1, 10, None), (1, 11, None)],
)
def test_an_end_by_hand(rho: int, every: int, left: int | None) -> None:
    """A horizon of ten days holds ten daily windows, four of every third day, one of every tenth."""
    budget = Budget(rho=Fraction(rho), delta=Fraction(0), horizon=10 * DAY)
    found = look(budget, [], [demand("a", 1, every=every)]).ends
    assert found == (None if left is None else ORIGIN + left * every * DAY)


def test_an_end_is_known_at_once_for_minutes_and_years() -> None:
    """A year of ten minutes is counted without asking the ledger for each, which took hours: `status` must not hang."""
    budget = Budget(rho=Fraction(10), delta=Fraction(0), horizon=365 * DAY)
    often = replace(demand("a", 1), every=timedelta(minutes=10), charge=Charge(rho=Fraction(1, 100)))
    assert look(budget, [], [often]).ends == ORIGIN + 1000 * often.every
    assert look(budget, [], [replace(often, charge=Charge(rho=Fraction(1, 10**6)))]).ends is None


def test_a_charge_beyond_the_horizon_counts_against_for_ever() -> None:
    """Windows that run into another plan's later charges do run out, and not a horizon too early."""
    budget = Budget(rho=Fraction(10), delta=Fraction(0), horizon=10 * DAY)
    later = [Entry(window_start=ORIGIN + 30 * DAY, charge=charge(5))]
    assert look(budget, [], [demand("a", 1)]).ends is None
    assert look(budget, later, [demand("a", 1)]).ends == ORIGIN + 26 * DAY


@settings(max_examples=40)
@given(DEMANDS, st.integers(8, 60), st.integers(5, 15), st.lists(st.integers(-12, 8), max_size=4))
def test_old_charges_are_in_the_way_for_as_long_as_the_ledger_says(
    demands: list[Demand], rho: int, horizon: int, before: list[int]
) -> None:
    """Guarantee: the last window that finds no room, where every other is charged; after it, none."""
    budget = Budget(rho=Fraction(rho), delta=Fraction(1), horizon=horizon * DAY)
    if not lasts_for_ever(budget, demands):
        return
    entries = [Entry(window_start=ORIGIN + day * DAY, charge=charge(6)) for day in before]
    held, refused = list(entries), None
    coming = [(entry.window_start, i, entry) for i, one in enumerate(demands) for entry in islice(one.entries(), 60)]
    for start, _, entry in sorted(coming, key=lambda row: row[:2]):
        try:
            check_room(budget, held, entry)
        except BudgetExhausted:
            refused = start
        else:
            held.append(entry)
    assert refused_until(budget, entries, demands) == refused


def test_an_account_that_counts_one_plan_alone_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: each plan by itself never runs out; together they do."""
    budget = Budget(rho=Fraction(10), delta=Fraction(0), horizon=7 * DAY)
    demands = [demand("a", 1), demand("b", 4, every=7)]
    assert all(look(budget, [], [one]).ends is None for one in demands)
    assert look(budget, [], demands).plan == "a"
    honest = outlook.lasts_for_ever
    monkeypatch.setattr(outlook, "lasts_for_ever", lambda budget, demands: honest(budget, demands[:1]))
    assert look(budget, [], demands).ends is None


@settings(max_examples=40)
@given(DEMANDS, st.integers(1, 60), st.integers(5, 15))
def test_for_ever_is_said_only_where_nothing_ends_it(demands: list[Demand], rho: int, horizon: int) -> None:
    """Guarantee: "never runs out" holds wherever the windows lie."""
    budget = Budget(rho=Fraction(rho), delta=Fraction(1), horizon=horizon * DAY)
    if lasts_for_ever(budget, demands):
        assert one_by_one(budget, [], demands, 150) is None


def test_a_charge_that_was_paid_ahead_is_not_asked_again() -> None:
    """A plan whose period is paid begins with the next."""
    one = replace(demand("p", 3, every=2, period=6, windows=2, start=4), paid_through=ORIGIN + 4 * DAY)
    first, second = (entry for entry, _ in zip(one.entries(), range(2), strict=False))
    assert (first.window_start, first.through) == (ORIGIN + 6 * DAY, ORIGIN + 10 * DAY)
    assert (second.window_start, second.charge) == (ORIGIN + 12 * DAY, charge(6))


def test_windows_that_never_come_round_are_not_called_for_ever() -> None:
    """Guarantee: where nothing ends it and nothing proves it, what was looked at is said."""
    budget = Budget(rho=Fraction(9), delta=Fraction(0), horizon=10 * DAY)
    demands = [demand("a", 4, every=7, start=0), demand("b", 1, every=11, start=0), demand("c", 2, every=13, start=6)]
    said = look(budget, [], demands)
    assert lasts_for_ever(budget, demands) is False
    assert said.ends is not None or said.looked_to is not None
    assert (None if said.ends is None else (said.ends, said.plan)) == one_by_one(budget, [], demands, 60)


@pytest.mark.parametrize("period", [None, 2])
def test_the_advice_makes_it_last(period: int | None) -> None:
    """Guarantee: following either way of the advice, the account lasts for ever; one step less, and it does not."""
    budget = Budget(rho=Fraction(30), delta=Fraction(1), horizon=30 * DAY)
    heavy, light = demand("heavy", 3, period=period), demand("light", 1, every=7)
    advice = advise(budget, [light, heavy])
    assert advice.plan == "heavy"
    assert advice.share > 1
    assert advice.step is not None
    assert advice.rho_share is not None

    def slowed(step: timedelta) -> Demand:
        return replace(heavy, every=step) if period is None else replace(heavy, period=step)

    assert lasts_for_ever(budget, [light, slowed(advice.step)])
    assert not lasts_for_ever(budget, [light, slowed(advice.step - heavy.step)])
    rho = heavy.charge.rho * Fraction(advice.rho_share)
    assert lasts_for_ever(budget, [light, replace(heavy, charge=Charge(rho=rho * Fraction(999_999, 1_000_000)))])


def test_no_advice_where_the_others_alone_ask_for_too_much() -> None:
    """Slowing one plan down does not help."""
    budget = Budget(rho=Fraction(1), delta=Fraction(0), horizon=30 * DAY)
    advice = advise(budget, [demand("a", 3), demand("b", 2)])
    assert (advice.plan, advice.step, advice.rho_share) == ("a", None, None)


@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_a_cheaper_epsilon_costs_that_share(mechanism: str) -> None:
    """Guarantee: compiled at the epsilon that is advised, a plan costs the share of rho, within a part in a hundred."""
    measurement = compile_plan(small_plan(epsilon=2.0, mechanism=mechanism))
    epsilon = cheaper_epsilon(measurement, 0.25)
    again = compile_plan(small_plan(epsilon=epsilon, mechanism=mechanism))
    assert float(again.charge.rho / measurement.charge.rho) == pytest.approx(0.25, rel=0.01)


def test_a_plans_demand() -> None:
    """The first window holds the moment that is given."""
    measurement = compile_plan(small_plan())
    one = demand_of(measurement, ORIGIN + 10 * DAY)
    assert (one.start, one.step, one.amount) == (ORIGIN + 7 * DAY, 7 * DAY, measurement.charge)
