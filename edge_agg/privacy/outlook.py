"""How long an account lasts when all its plans go on as they are, and what would make it last.

Place: asked by `edge-agg check` and `status`, and before an epsilon is recommended; nothing here spends any.
Invariants: exact, by the ledger's own arithmetic, with the charges that `series.py` would make: windows of all plans in
the order of their start; "never" is said only where it is proved.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.contract.codec import to_us
from edge_agg.contract.grid import window_of
from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted
from edge_agg.privacy import noise
from edge_agg.privacy.ledger import Book, Budget, Entry, check_room, heaviest, total

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from edge_agg.privacy.measurement import Measurement

_MICROSECOND = timedelta(microseconds=1)
_MOST_HORIZONS = 4
"""Horizons beyond the first that are looked through where windows of unlike lengths take very long to come round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one plan will charge from now on."""

    plan: str
    charge: Charge
    """One window's."""
    every: timedelta
    start: datetime
    """The next window that it will charge for."""
    period: timedelta | None = None
    """Where the plan bounds the windows that a unit counts in: it pays once a period."""
    windows: int = 1
    """For so many windows."""
    paid_through: datetime | None = None
    """The start of the last window that a charge of the plan covers already."""

    @property
    def step(self) -> timedelta:
        """The time from one charge to the next."""
        return self.period or self.every

    @property
    def amount(self) -> Charge:
        """What is charged at each step."""
        return self.charge * self.windows

    def entries(self) -> Iterator[Entry]:
        """Every charge to come, in order, without end."""
        start = self.start
        if self.paid_through is not None:
            start = max(start, self.paid_through + self.every)
        while True:
            after = start + self.every if self.period is None else window_of(start, self.period) + self.period
            through = None if self.period is None else after - self.every
            yield Entry(window_start=start, charge=self.amount, through=through)
            start = after

    def most(self, horizon: timedelta) -> Charge:
        """The most that one span of the horizon can hold of it, however it lies."""
        return self.amount * -(-(horizon + self.step - self.every) // self.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """How long an account lasts."""

    ends: datetime | None
    """The start of the first window that finds no room; None if there is none."""
    plan: str | None
    """Whose window that is."""
    looked_to: datetime | None
    """Where no end was found and none was ruled out: how far was looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What would make an account last for ever: any one of these, each alone."""

    plan: str
    """The plan that takes most of the account."""
    share: float
    """How much of the budget it asks for in a horizon, 1 for all of it."""
    step: timedelta | None
    """Its slower window or period; None if no slower one is slow enough."""
    rho_share: float | None
    """The part of its rho that would fit beside the other plans; None if nothing is left for it."""


def demand_of(measurement: Measurement, start: datetime, paid_through: datetime | None = None) -> Demand:
    """What a plan will charge from a window on."""
    plan = measurement.plan
    return Demand(
        plan=plan.name,
        charge=measurement.charge,
        every=plan.every,
        start=window_of(start, plan.every),
        period=plan.period,
        windows=plan.bounds.max_windows or 1,
        paid_through=paid_through,
    )


def lasts_for_ever(budget: Budget, demands: Sequence[Demand]) -> bool:
    """Whether all plans together fit every span of the horizon, however their windows lie in it."""
    most = sum((demand.most(budget.horizon) for demand in demands), Charge())
    return _within(most, budget)


def look(budget: Budget, entries: Sequence[Entry], demands: Sequence[Demand]) -> Outlook:
    """Find the first window that finds no room, if all plans go on as they are.

    Args:
        budget: the account's.
        entries: every charge so far.
        demands: what the account's plans will charge; at least one.

    All charges up to a moment fit, or none after it matter: so the first that does not is found by bisection, with the
    ledger's own sum over all of them. Once the old charges have left the horizon, what comes repeats with the least
    common multiple of the steps; a round without an end has none.
    """
    begin = min(demand.start for demand in demands)
    held = [entry for entry in entries if entry.last > begin - budget.horizon]
    settled = _settled(budget, held, demands)
    proved = lasts_for_ever(budget, demands)
    if proved and not held:
        return Outlook(ends=None, plan=None, looked_to=None)
    cycle = math.lcm(*(demand.step // _MICROSECOND for demand in demands)) * _MICROSECOND
    rounds = timedelta(0) if proved else min(cycle, budget.horizon * _MOST_HORIZONS) + max(d.step for d in demands)
    end = settled + rounds
    coming = _coming(demands, end)
    ahead: list[tuple[int, Entry]] = []

    def overruns(count: int) -> bool:
        return not _fits(budget, held, [entry for _, entry in ahead[:count]])

    known = 0  # the first `known` fit
    while chunk := list(itertools.islice(coming, max(64, len(ahead)))):
        ahead += chunk
        if overruns(len(ahead)):
            first = bisect_left(range(known + 1, len(ahead) + 1), True, key=overruns)  # the value looked for
            i, entry = ahead[known + first]
            return Outlook(ends=entry.window_start, plan=demands[i].plan, looked_to=None)
        known = len(ahead)
    certain = proved or cycle <= budget.horizon * _MOST_HORIZONS
    return Outlook(ends=None, plan=None, looked_to=None if certain else end)


def refused_until(
    budget: Budget, entries: Sequence[Entry], demands: Sequence[Demand], end: datetime | None = None
) -> datetime | None:
    """Where old charges fill an account whose plans alone fit it: the start of the last window that finds no room.

    Every window that finds room is charged meanwhile, as the agent does. None if all find room. No window comes after
    `end`, if there is one.
    """
    settled = _settled(budget, entries, demands)
    book = Book(total(entries), lambda: ((to_us(one.window_start), to_us(one.last), one.charge) for one in entries))
    last = None
    for _, entry in _coming(demands, settled if end is None else min(end, settled)):
        try:
            check_room(budget, book, entry)
        except BudgetExhausted:
            last = entry.window_start
        else:
            book.add(entry)
    return last


def advise(budget: Budget, demands: Sequence[Demand]) -> Advice:
    """Say what would make an account last: which plan to slow down, or how much less each of its releases may cost.

    Ask where the plans alone are too much for it: where they fit, old charges are what fills it.
    """
    heavy = max(demands, key=lambda demand: _share(demand.most(budget.horizon), budget))
    others = [demand for demand in demands if demand is not heavy]
    slower = range(2, budget.horizon // heavy.step + 2)
    enough = bisect_left(slower, True, key=lambda k: lasts_for_ever(budget, [*others, _slowed(heavy, k)]))
    rest = budget.rho - sum(demand.most(budget.horizon).rho for demand in others)
    left = float(rest / heavy.most(budget.horizon).rho)
    return Advice(
        plan=heavy.plan,
        share=_share(heavy.most(budget.horizon), budget),
        step=heavy.step * slower[enough] if enough < len(slower) else None,
        rho_share=left if left > 0 else None,
    )


def cheaper_epsilon(measurement: Measurement, rho_share: float) -> float:
    """The epsilon at which a release of the plan costs that part of its rho, by the conversion."""
    rho = measurement.charge.rho * Fraction(math.floor(rho_share * 2**20), 2**20)
    if measurement.plan.budget.mechanism == "laplace":
        return math.sqrt(2 * float(rho))
    return noise.epsilon_of(rho, measurement.plan.budget.delta - float(measurement.charge.delta))


def _settled(budget: Budget, entries: Sequence[Entry], demands: Sequence[Demand]) -> datetime:
    """When every charge so far has left the horizon of what comes."""
    return max([*(demand.start for demand in demands), *(entry.last for entry in entries)]) + budget.horizon


def _coming(demands: Sequence[Demand], end: datetime) -> Iterator[tuple[int, Entry]]:
    """What all plans will charge before a moment, by the start of its window, each with the number of its plan."""
    series = [zip(itertools.repeat(i), demand.entries(), strict=False) for i, demand in enumerate(demands)]
    merged = heapq.merge(*series, key=lambda one: (one[1].window_start, one[0]))
    return itertools.takewhile(lambda one: one[1].window_start < end, merged)


def _slowed(demand: Demand, times: int) -> Demand:
    if demand.period is None:
        return replace(demand, every=demand.every * times)
    return replace(demand, period=demand.period * times)


def _share(charge: Charge, budget: Budget) -> float:
    of_delta = float(charge.delta / budget.delta) if budget.delta else 0.0
    return max(float(charge.rho / budget.rho), of_delta)


def _within(charge: Charge, budget: Budget) -> bool:
    return charge.rho <= budget.rho and charge.delta <= budget.delta


def _fits(budget: Budget, held: Sequence[Entry], ahead: Sequence[Entry]) -> bool:
    first, last = min(entry.window_start for entry in ahead), max(entry.last for entry in ahead)
    return _within(heaviest(budget.horizon, [*held, *ahead], around=first, through=last), budget)
