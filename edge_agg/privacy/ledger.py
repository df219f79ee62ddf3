"""The ledger's arithmetic: is there room for a charge?

Place: asked before noise is drawn; the journal keeps the entries, this module only adds.
Invariants: exact rationals; a charge that does not fit leaves no trace; charges of one account add up whatever plan
they come from and however later plans were chosen (a zCDP filter: Whitehouse, Ramdas, Rogers, Wu 2023).

An account's horizon is a length of *event* time: in every span of that length, all windows that start in it together
cost at most the budget. Event time cannot be turned back by a wrong clock, and an auditor can re-check it from the
charges alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime, timedelta
    from fractions import Fraction


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
    near = sorted(
        (entry for entry in entries if around - horizon < entry.window_start < around + horizon),
        key=lambda entry: entry.window_start,
    )
    worst = running = Charge()
    first = 0
    for entry in near:
        running += entry.charge
        while near[first].window_start <= entry.window_start - horizon:
            running = Charge(rho=running.rho - near[first].charge.rho, delta=running.delta - near[first].charge.delta)
            first += 1
        worst = Charge(rho=max(worst.rho, running.rho), delta=max(worst.delta, running.delta))
    return worst


def windows_left(
    budget: Budget, entries: Sequence[Entry], *, charge: Charge, start: datetime, every: timedelta
) -> int | None:
    """How many windows in a row, from `start` on, would find room; None if they never run out.

    A row of windows as long as the horizon that fits, fits for ever: from then on each new window takes the place of
    an equal one that leaves.
    """
    enough = budget.horizon // every + 1
    ahead = list(entries)
    for count in range(enough):
        new = Entry(window_start=start + count * every, charge=charge)
        try:
            check_room(budget, ahead, new)
        except BudgetExhausted:
            return count
        ahead.append(new)
    return None
