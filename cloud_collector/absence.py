"""What became of a window that an agent was to report: exactly one of six answers, and which may follow which. Pure.

Place: the query room asks it for every absence of an answer; `roll_call.py` says the same in SQL, for a whole fleet.

    late ----> released, lost, exhausted, vetoed        from here nothing follows
      ^ |
      | v
    offline -> released, lost, exhausted, vetoed

Invariants: what was received goes before what is concluded; a conclusion of `lost` rests on a chain without
a hole in it, so an honest chain never takes it back; where nothing is known, time alone tells late from offline.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BEGINNING, END = -(2**62), 2**62
"""Before and after every window, in microseconds."""


class Standing(StrEnum):
    """What became of one agent's window of one plan."""

    RELEASED = "released"
    """It is here, with values."""
    LATE = "late"
    """It may still come: it is not overdue yet, or its agent is heard of and has not passed it."""
    LOST = "lost"
    """It will not come: its agent said so, or its chain goes on past it without a hole, or a restore lost it."""
    VETOED = "vetoed"
    """The device's own policy forbids it."""
    OFFLINE = "offline"
    """It is overdue, and its agent has not been heard of since it was due."""
    EXHAUSTED = "exhausted"
    """The agent's account had no room for it."""


TERMINAL = frozenset({Standing.RELEASED, Standing.LOST, Standing.VETOED, Standing.EXHAUSTED})
"""What does not change any more."""
WAITING = frozenset({Standing.LATE, Standing.OFFLINE})
"""What may still become anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of an agent, as far as a plan is concerned; all in microseconds since 1970 UTC."""

    heard_us: int | None = None
    """When it last sent anything; None if it never did."""
    passed_us: int | None = None
    """Windows that start before this and are not here never will be: up to one that starts here the chain is whole."""
    fenced: bool = False
    """Its new releases are refused, so silence says nothing."""
    behind: tuple[int, int] = (0, 0)
    """From when until when a backup lacks what was acked."""
    since_us: int = BEGINNING
    """The start of the first window that it is expected to report."""
    until_us: int = END
    """Windows from here on are not expected of it."""

    @property
    def named(self) -> bool:
        """Whether somebody said that it is expected."""
        return self.since_us > BEGINNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """When windows of a plan are overdue."""

    window_us: int
    """A window's length."""
    allowed_us: int
    """How long after a window's end its release may take: the plan's lateness, and the grace."""
    now_us: int

    def overdue_us(self, start_us: int) -> int:
        """From when on a window is overdue."""
        return start_us + self.window_us + self.allowed_us


def standing(said: Standing | None, start_us: int, known: Known, due: Due) -> Standing:
    """What became of a window.

    Args:
        said: the status of its release, if that is here.
        start_us: its first instant.
        known: of its agent.
        due: when it is overdue.
    """
    if said is not None:
        return said
    return next(what for first, last, what in zones(known, due) if first <= start_us < last)


def zones(known: Known, due: Due) -> Iterator[tuple[int, int, Standing]]:
    """All of time, cut where an absent window's standing changes: a zone's first start, the next one's, what it is."""
    passed = BEGINNING if known.passed_us is None else known.passed_us
    cuts = [(BEGINNING, passed, Standing.LOST)]
    at = passed
    for until, what in _open(known, due):
        if until > at:
            cuts.append((at, until, what))
            at = until
    begin, end = known.behind
    for first, last, what in cuts:
        parts = ((first, min(last, begin), what), (max(first, begin), min(last, end), Standing.LOST))
        for part in (*parts, (max(first, end), last, what)) if begin < end else ((first, last, what),):
            if part[0] < part[1]:
                yield part


def counted(present: Sequence[int], start_us: int, end_us: int, known: Known, due: Due) -> Counter[Standing]:
    """What became of the windows of a range that are not here.

    Args:
        present: the starts of those that are, ascending.
        start_us: the range's first instant, on the plan's windows.
        end_us: the first instant after.
        known: of the agent.
        due: when windows are overdue.
    """
    found: Counter[Standing] = Counter()
    for first, last, what in zones(known, due):
        absent = _windows(first, last, start_us, end_us, due.window_us)
        here = max(0, bisect_left(present, min(last, end_us)) - bisect_left(present, max(first, start_us)))
        if absent > here:
            found[what] += absent - here
    return found


def _open(known: Known, due: Due) -> Iterator[tuple[int, Standing]]:
    """Past the chain: until which start a window is what."""
    if known.fenced:
        yield END, Standing.LATE
        return
    reach = due.window_us + due.allowed_us
    if known.heard_us is not None:
        yield known.heard_us - reach + 1, Standing.LATE  # the agent lives, and has not passed it
    yield due.now_us - reach + 1, Standing.OFFLINE
    yield END, Standing.LATE


def _windows(first: int, last: int, start_us: int, end_us: int, window_us: int) -> int:
    """How many windows of a range start within a zone."""
    before = max(0, -(-(max(first, start_us) - start_us) // window_us))
    until = max(0, -(-(min(last, end_us) - start_us) // window_us))
    return max(0, until - before)
