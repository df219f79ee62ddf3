"""The ledger's arithmetic: is there room for a charge?

Place: asked before noise is drawn; the journal keeps the entries, this module only adds.
Invariants: exact rationals; a charge that does not fit leaves no trace; charges of one account add up whatever plan
they come from and however later plans were chosen (a zCDP filter: Whitehouse, Ramdas, Rogers, Wu 2023).

An account's horizon is a length of *event* time: in every span of that length, all windows that start in it together
cost at most the budget. Event time cannot be turned back by a wrong clock, and an auditor can re-check it from the
charges alone.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What an account may lose in any span of its horizon."""

    rho: Fraction
    delta: Fraction
    """For key discovery."""
    horizon: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One charge, at the start of the window it was for."""

    window_start: datetime
    charge: Charge


def total(entries: Iterable[Entry]) -> Charge:
    """The sum of all charges."""
    return sum((entry.charge for entry in entries), Charge())


def check_room(budget: Budget, entries: Iterable[Entry], new: Entry) -> None:
    """Refuse a charge that would overrun the budget in some span of the horizon.

    Raises:
        BudgetExhausted: nothing changed; wait until old windows leave the horizon.
    """
    worst = heaviest(budget.horizon, [*entries, new], around=new.window_start)
    if worst.rho > budget.rho or worst.delta > budget.delta:
        raise BudgetExhausted("the account has no room for this window")


def heaviest(horizon: timedelta, entries: Iterable[Entry], *, around: datetime) -> Charge:
    """The largest charge (each part for itself) of any span `[t, t + horizon)` that holds the moment `around`."""
    near = [entry for entry in entries if around - horizon < entry.window_start < around + horizon]
    return Charge(
        rho=_heaviest(horizon, [(entry.window_start, entry.charge.rho) for entry in near]),
        delta=_heaviest(horizon, [(entry.window_start, entry.charge.delta) for entry in near]),
    )


def windows_left(
    budget: Budget, entries: Sequence[Entry], *, charge: Charge, start: datetime, every: timedelta
) -> int | None:
    """How many windows in a row, from `start` on, would find room; None if they never run out.

    A row of windows that fits from here to a horizon beyond the last entry, fits for ever: from then on each new window
    takes the place of an equal one that leaves.
    """
    last = max((entry.window_start for entry in entries), default=start)
    enough = (max(last - start, timedelta(0)) + budget.horizon) // every + 1

    def fits(count: int) -> bool:
        ahead = [start + i * every for i in range(count)]
        held = [entry for entry in entries if entry.window_start > start - budget.horizon]
        rho = [(entry.window_start, entry.charge.rho) for entry in held] + [(at, charge.rho) for at in ahead]
        delta = [(entry.window_start, entry.charge.delta) for entry in held] + [(at, charge.delta) for at in ahead]
        return _heaviest(budget.horizon, rho) <= budget.rho and _heaviest(budget.horizon, delta) <= budget.delta

    if fits(enough):
        return None
    return bisect_left(range(enough), True, key=lambda count: not fits(count + 1))  # the value looked for


def _heaviest(horizon: timedelta, charges: Sequence[tuple[datetime, Fraction]]) -> Fraction:
    """The largest sum in any half-open span of the horizon's length; exact, in integers over a common denominator."""
    denominator = math.lcm(*{charge.denominator for _, charge in charges})
    near = sorted((at, charge.numerator * (denominator // charge.denominator)) for at, charge in charges)
    worst = running = first = 0
    for at, charge in near:
        running += charge
        while near[first][0] <= at - horizon:
            running -= near[first][1]
            first += 1
        worst = max(worst, running)
    return Fraction(worst, denominator)
