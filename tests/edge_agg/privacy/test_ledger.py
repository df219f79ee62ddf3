"""The ledger: exact sums over every span of the horizon, and a refusal that leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted
from edge_agg.privacy import ledger
from edge_agg.privacy.ledger import Budget, Entry, check_room, heaviest, total

if TYPE_CHECKING:
    from collections.abc import Sequence

START = datetime(2013, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def entry(day: int, rho: Fraction | int, delta: Fraction | int = 0, *, through: int | None = None) -> Entry:
    """A charge for the window that starts on that day, or for all up to another."""
    return Entry(
        window_start=START + day * DAY,
        charge=Charge(rho=Fraction(rho), delta=Fraction(delta)),
        through=None if through is None else START + through * DAY,
    )


def budget(rho: Fraction | int, delta: Fraction | int = 0, days: int = 10) -> Budget:
    """A budget over a horizon of days."""
    return Budget(rho=Fraction(rho), delta=Fraction(delta), horizon=days * DAY)


def has_room(limit: Budget, entries: Sequence[Entry], new: Entry) -> bool:
    """Whether the ledger takes a charge."""
    try:
        check_room(limit, entries, new)
    except BudgetExhausted:
        return False
    return True


def within_everywhere(limit: Budget, entries: Sequence[Entry]) -> bool:
    """Brute force: whether every span `[t, t + horizon)` that begins on a day costs at most the budget.

    A charge weighs on a span in which any day that it covers lies.
    """
    days = [(e.window_start - START) // DAY for e in entries] + [(e.last - START) // DAY for e in entries]
    horizon = limit.horizon // DAY
    for begin in range(min(days, default=0) - horizon, max(days, default=0) + 1):
        span = [
            e.charge
            for e in entries
            if any(
                begin <= day < begin + horizon
                for day in range((e.window_start - START) // DAY, (e.last - START) // DAY + 1)
            )
        ]
        if sum(c.rho for c in span) > limit.rho or sum(c.delta for c in span) > limit.delta:
            return False
    return True


losses = st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(1, 2), Fraction(1), Fraction(7, 5)])
deltas = st.sampled_from([Fraction(0), Fraction(1, 2**80), Fraction(1, 7)])
entries_ = st.builds(entry, st.integers(-15, 15), losses, deltas)
covering = st.builds(
    lambda day, length, rho, delta: entry(day, rho, delta, through=day + length),
    st.integers(-15, 15),
    st.integers(0, 14),
    losses,
    deltas,
)
limits = st.builds(
    budget, losses.map(lambda loss: 3 * loss), st.sampled_from([Fraction(0), Fraction(1, 7), 1]), st.integers(1, 12)
)


def disagreements(limit: Budget, arriving: Sequence[Entry]) -> int:
    """How often the ledger and brute force say something else, over charges that arrive in any order."""
    taken: list[Entry] = []
    wrong = 0
    for new in arriving:
        says = has_room(limit, taken, new)
        wrong += says != within_everywhere(limit, [*taken, new])
        if says:
            taken.append(new)
    return wrong


@settings(max_examples=150)
@given(limit=limits, arriving=st.lists(entries_, max_size=12))
def test_every_span_of_the_horizon_stays_within_the_budget(limit: Budget, arriving: list[Entry]) -> None:
    """The ledger takes a charge exactly when no span of the horizon overruns, also for windows out of order."""
    assert disagreements(limit, arriving) == 0


@settings(max_examples=150)
@given(limit=limits, arriving=st.lists(entries_ | covering, max_size=10))
def test_a_charge_weighs_on_every_span_that_a_window_of_it_lies_in(limit: Budget, arriving: list[Entry]) -> None:
    """The same for charges that cover a whole period, shorter or longer than the horizon."""
    assert disagreements(limit, arriving) == 0


COVERING = [
    *[entry(0, 1, through=6), entry(14, 1), entry(7, 1, through=13), entry(-5, 1), entry(15, 1), entry(4, 0)],
    *[entry(52, 2), entry(40, 1, through=46)],
]


def _by_the_first_window(horizon: timedelta, entries: Sequence[Entry], **around: object) -> Charge:
    """A mutant's reading: a charge weighs where its first window is."""
    bare = [replace(e, through=None) for e in entries]
    return heaviest(horizon, bare, around=around["around"])  # type: ignore[arg-type]  # as the caller gave it


def _around_the_first_window(horizon: timedelta, entries: Sequence[Entry], **around: object) -> Charge:
    """A mutant's reading: only the spans that hold the new charge's first window are looked at."""
    return heaviest(horizon, entries, around=around["around"])  # type: ignore[arg-type]  # as the caller gave it


@pytest.mark.parametrize("mutant", [_by_the_first_window, _around_the_first_window])
def test_mutant_covers_are_caught(monkeypatch: pytest.MonkeyPatch, mutant: object) -> None:
    """Mutants: a period's charge that weighs on its first window alone, or that is weighed there alone."""
    assert disagreements(budget(2), COVERING) == 0
    monkeypatch.setattr(ledger, "heaviest", mutant)
    assert disagreements(budget(2), COVERING) > 0


def test_a_period_weighs_as_long_as_its_last_window() -> None:
    """By hand: ten days of horizon, a charge for days 0 .. 6; on day 16 it no longer counts, on day 15 it does."""
    period = entry(0, 2, through=6)
    assert period.last == START + 6 * DAY
    assert not has_room(budget(2), [period], entry(15, 1))
    assert has_room(budget(2), [period], entry(16, 1))
    assert not has_room(budget(2), [entry(15, 1)], period)
    assert has_room(budget(2), [entry(16, 1), entry(-10, 1)], period)


LATE = [entry(0, 1), entry(5, 1), entry(3, 1), entry(-6, 1), entry(9, 1), entry(10, 1), entry(12, 1)]


@pytest.mark.parametrize(
    "mutant",
    [
        lambda horizon, entries, *, around, through: total(
            e for e in entries if around - horizon < e.window_start <= around
        ),
        lambda horizon, entries, *, around, through: total(entries),
        lambda horizon, entries, *, around, through: heaviest(horizon / 2, entries, around=around),
        lambda horizon, entries, *, around, through: total(
            e for e in entries if abs(e.window_start - around) <= horizon
        ),
    ],
    ids=["looks back only", "never forgets", "half the horizon", "both sides at once"],
)
def test_mutant_horizons_are_caught(monkeypatch: pytest.MonkeyPatch, mutant: object) -> None:
    """Mutants: other readings of the horizon; brute force disagrees with each."""
    assert disagreements(budget(2), LATE) == 0
    monkeypatch.setattr(ledger, "heaviest", mutant)
    assert disagreements(budget(2), LATE) > 0


def test_sums_are_exact() -> None:
    """Ten charges of a tenth fill a budget of one, and the smallest step more is refused."""
    tenths = [entry(day, Fraction(1, 10)) for day in range(9)]
    assert has_room(budget(1), tenths, entry(9, Fraction(1, 10)))
    assert not has_room(budget(1), tenths, entry(9, Fraction(1, 10) + Fraction(1, 2**200)))
    assert total([*tenths, entry(9, Fraction(1, 10))]).rho == 1


def test_rho_and_delta_are_limited_each() -> None:
    """Room in one does not make up for the other."""
    assert not has_room(budget(9, Fraction(1, 10)), [entry(0, 1, Fraction(1, 10))], entry(1, 1, Fraction(1, 2**80)))
    assert not has_room(budget(1, 1), [entry(0, 1)], entry(1, Fraction(1, 2**40)))


def test_the_horizon_is_half_open() -> None:
    """A window that starts a whole horizon later no longer counts; one microsecond earlier it does."""
    later = Entry(window_start=START + 10 * DAY, charge=Charge(rho=Fraction(1)))
    sooner = Entry(window_start=later.window_start - timedelta(microseconds=1), charge=later.charge)
    assert has_room(budget(1), [entry(0, 1)], later)
    assert not has_room(budget(1), [entry(0, 1)], sooner)


def test_windows_a_whole_horizon_apart_never_add_up() -> None:
    """Nor do they with a third one in between: no half-open span of the horizon holds both ends."""
    ends = [entry(0, 1), entry(10, 1)]
    assert has_room(budget(2), ends, entry(5, 1))
    assert heaviest(10 * DAY, [*ends, entry(5, 1)], around=START + 5 * DAY).rho == 2
    assert heaviest(10 * DAY, ends, around=START + 10 * DAY).rho == 1
    assert (
        heaviest(10 * DAY, [entry(10, 7)], around=START).rho
        == heaviest(10 * DAY, [entry(-10, 7)], around=START).rho
        == 0
    )


def test_a_late_window_is_weighed_against_those_after_it() -> None:
    """Charging an old window can overrun a span that newer windows have filled."""
    assert not has_room(budget(2), [entry(5, 1), entry(8, 1)], entry(0, 1))
    assert has_room(budget(2), [entry(5, 1), entry(12, 1)], entry(0, 1))


def test_two_charges_of_one_window_both_count() -> None:
    """A second attempt, or another plan over the same people, adds up."""
    assert not has_room(budget(1), [entry(0, Fraction(2, 3))], entry(0, Fraction(2, 3)))


def test_a_refused_charge_leaves_no_trace() -> None:
    """After a refusal the entries are what they were, and a smaller charge finds the same room as before."""
    taken = [entry(0, 1), entry(1, 1)]
    before = list(taken)
    assert not has_room(budget(3), taken, entry(2, 2))
    assert taken == before
    assert has_room(budget(3), taken, entry(2, 1))


def test_the_refusal_holds_no_numbers() -> None:
    """What is left of an account is not said in an error's text."""
    with pytest.raises(BudgetExhausted) as refused:
        check_room(budget(1), [], entry(0, 2))
    assert not any(character.isdigit() for character in str(refused.value))


def test_an_empty_ledger_has_spent_nothing() -> None:
    """The sum of no charges is zero, and nothing weighs on a moment without windows."""
    assert total([]) == Charge()
    assert heaviest(DAY, [], around=START) == Charge()
