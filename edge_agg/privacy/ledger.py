"""The ledger's arithmetic: is there room for a charge?

Place: asked before noise is drawn; the journal keeps the entries, this module only adds.
Invariants: exact rationals; a charge that does not fit leaves no trace; charges of one account add up whatever plan
they come from and however later plans were chosen (a zCDP filter: Whitehouse, Ramdas, Rogers, Wu 2023).

An account's horizon is a length of *event* time: in every span of that length, all windows that start in it together
cost at most the budget. Event time cannot be turned back by a wrong clock, and an auditor can re-check it from the
charges alone. A charge that covers several windows (a period's) weighs on every span that one of them starts in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted
from edge_agg.privacy.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
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
    through: datetime | None = None
    """The start of the last window that it covers, where it covers more than one."""

    @property
    def last(self) -> datetime:
        """The start of the last window that it covers."""
        return self.window_start if self.through is None else self.through


def total(entries: Iterable[Entry]) -> Charge:
    """The sum of all charges."""
    return sum((entry.charge for entry in entries), Charge())


class Book:
    """One account's charges, added up once and then as they come: what it answers costs the same after years."""

    def __init__(self, total: Charge, load: Callable[[], Iterable[tuple[int, int, Charge]]]) -> None:
        """Begin a book.

        Args:
            total: of all charges so far.
            load: gives each, after the starts of its first and last window (microseconds since 1970); called when a
                horizon is asked for the first time.
        """
        self.total = total
        """The sum of all charges."""
        self._load = load
        self._spans: dict[timedelta, tuple[Spans, Spans]] = {}

    def add(self, entry: Entry) -> None:
        """One more charge; `load` gives it too from now on."""
        self.total += entry.charge
        first, last = to_us(entry.window_start), to_us(entry.last)
        for rho, delta in self._spans.values():
            rho.add(first, last, entry.charge.rho)
            delta.add(first, last, entry.charge.delta)

    def heaviest_with(self, horizon: timedelta, new: Entry) -> Charge:
        """As `heaviest` around a new entry's windows, were it one of the charges."""
        rho, delta = (spans.heaviest(to_us(new.window_start), to_us(new.last)) for spans in self._over(horizon))
        return Charge(rho=rho, delta=delta) + new.charge

    def heaviest(self, horizon: timedelta) -> Charge:
        """The largest charge (each part for itself) of any span of the horizon's length."""
        rho, delta = (spans.most() for spans in self._over(horizon))
        return Charge(rho=rho, delta=delta)

    def _over(self, horizon: timedelta) -> tuple[Spans, Spans]:
        """The sums of rho and of delta over the spans of a length."""
        if horizon not in self._spans:
            length = horizon // timedelta(microseconds=1)
            self._spans[horizon] = (
                Spans(length, ((first, last, charge.rho) for first, last, charge in self._load())),
                Spans(length, ((first, last, charge.delta) for first, last, charge in self._load())),
            )
        return self._spans[horizon]


def check_room(budget: Budget, entries: Iterable[Entry] | Book, new: Entry) -> None:
    """Refuse a charge that would overrun the budget in some span of the horizon.

    Raises:
        BudgetExhausted: nothing changed; wait until old windows leave the horizon.
    """
    if isinstance(entries, Book):
        worst = entries.heaviest_with(budget.horizon, new)
    else:
        worst = heaviest(budget.horizon, [*entries, new], around=new.window_start, through=new.last)
    if worst.rho > budget.rho or worst.delta > budget.delta:
        raise BudgetExhausted("the account has no room for this window")


def heaviest(
    horizon: timedelta, entries: Iterable[Entry], *, around: datetime, through: datetime | None = None
) -> Charge:
    """The largest charge (each part for itself) of any span `[t, t + horizon)` that holds a moment of some interest.

    Args:
        horizon: the length of a span.
        entries: every charge.
        around: the moment.
        through: if given, the span may hold any moment from `around` to it.
    """
    end = around if through is None else through
    near = [entry for entry in entries if max(entry.window_start, around) - horizon < min(entry.last, end)]
    spans = [(max(entry.window_start, around), min(entry.last, end)) for entry in near]
    return Charge(
        rho=_heaviest(horizon, [(*span, entry.charge.rho) for span, entry in zip(spans, near, strict=True)]),
        delta=_heaviest(horizon, [(*span, entry.charge.delta) for span, entry in zip(spans, near, strict=True)]),
    )


def _heaviest(horizon: timedelta, charges: Sequence[tuple[datetime, datetime, Fraction]]) -> Fraction:
    """The largest sum over the half-open spans of the horizon's length; exact, in integers over a common denominator.

    A span `[t, t + horizon)` holds a charge if t lies in `(first - horizon, last]`, so some largest span begins at a
    last.
    """
    denominator = math.lcm(*{charge.denominator for _, _, charge in charges})
    whole = [(first, last, charge.numerator * (denominator // charge.denominator)) for first, last, charge in charges]
    by_first, by_last = sorted(whole), sorted(whole, key=lambda one: one[1])
    worst = running = come = gone = 0
    for _, begin, _ in by_last:
        while come < len(by_first) and by_first[come][0] - horizon < begin:
            running += by_first[come][2]
            come += 1
        while by_last[gone][1] < begin:
            running -= by_last[gone][2]
            gone += 1
        worst = max(worst, running)
    return Fraction(worst, denominator)
