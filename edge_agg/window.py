"""Tumbling windows in event time: which window a row belongs to, and when a window closes.

Place: step 3 of an event's way, between decoding and bounding.
Invariants: pure; a closed window never opens again; every window between the first and the watermark closes, also an
empty one. The watermark is the clock's (or the end of a drain), never the latest event's: if one row could move it,
one person could close a window on everybody else, and bounding could not make up for that. Where late rows are
assigned, a row lands in one window: by its own time, and by which windows had closed when it arrived, which is the
clock's too. So what a unit adds to a window is bounded in the window where its rows land, as if their time lay in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from edge_agg.contract.grid import ORIGIN, window_of, windows_between

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ROWS = np.arange(1 << 16)
_ROWS.flags.writeable = False
"""The indices of the rows of most batches, which share them."""
_LEAST, _MOST = -(2**63), 2**63 - 1
"""Moments that nothing lies before, or behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What became of the rows of a batch. Indices point into the batch."""

    windows: dict[datetime, npt.NDArray[np.intp]]
    """For each open window, its rows."""
    late: int
    """Rows of windows that had closed: dropped."""
    outside: int
    """Rows outside the agent's public span of time: dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The public span of event time, `[start, end)`; None means no bound on that side."""

    start: datetime | None
    end: datetime | None


def split(
    times_us: npt.NDArray[np.int64],
    *,
    every: timedelta,
    closed_before: datetime | None,
    span: Span,
    assign: bool = False,
    floor: datetime | None = None,
) -> Split:
    """Send each row to its window.

    Args:
        times_us: event times in microseconds since 1970 UTC, int64[n_rows].
        every: the window's length.
        closed_before: windows that start before it have closed.
        span: rows outside are dropped, and no window opens behind its end; what happens to a row depends on its own
            time alone.
        assign: a row that was late when it arrived counts in the window that was the oldest open one then.
        floor: that window's start, the `closed_before` of when the rows arrived, where they are read again; None: they
            arrive now. A row goes to the same window each time it is read, and if that has closed it is dropped: it
            was counted there, or was late there too.
    """
    if not assign:
        floor = None
    elif floor is None:
        floor = closed_before
    at = _windows(every=every, closed_before=closed_before, span=span, floor=floor)
    if len(times_us):
        alone = at.alone(int(times_us.min()), int(times_us.max()))
        if alone is not None:
            return Split(windows={_moment(alone): _all(len(times_us))}, late=0, outside=0)
    inside = (times_us >= at.begin_us) & (times_us < at.end_us)
    starts = np.maximum((times_us - _ORIGIN_US) // at.step * at.step + _ORIGIN_US, at.floor_us)
    open_ = inside & (starts >= at.first_us) & (starts < at.end_us)
    windows = {_moment(int(start)): np.flatnonzero(open_ & (starts == start)) for start in np.unique(starts[open_])}
    return Split(windows=windows, late=int(inside.sum() - open_.sum()), outside=int((~inside).sum()))


def _all(n_rows: int) -> npt.NDArray[np.intp]:
    """The index of every row."""
    return _ROWS[:n_rows] if n_rows <= len(_ROWS) else np.arange(n_rows)


def alone_in(
    first_us: int, last_us: int, *, every: timedelta, closed_before: datetime | None, span: Span
) -> datetime | None:
    """The start of the open window in which all rows between two moments lie, if there is one, as mostly."""
    at = _windows(every=every, closed_before=closed_before, span=span, floor=None)
    start = at.alone(first_us, last_us)
    return None if start is None else _moment(start)


def closing(
    *,
    first: datetime | None,
    closed_before: datetime | None,
    watermark: datetime,
    every: timedelta,
    lateness: timedelta,
) -> Iterator[datetime]:
    """The windows that close at this watermark, oldest first.

    Args:
        first: a moment in the first window there is, where none has closed yet.
        closed_before: the end of the last window that closed.
        watermark: a window closes once its end, and the lateness after it, are no later than this.
        every: the window's length.
        lateness: how long after its end a window stays open.
    """
    begin = closed_before if closed_before is not None else first
    if begin is None:
        return
    for start in windows_between(window_of(begin, every), watermark, every):
        if start + every + lateness <= watermark:
            yield start


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """The rules of one split, in microseconds."""

    step: int
    """A window's length."""
    first_us: int
    """Where the first window that is still open starts."""
    floor_us: int
    """No row goes to a window that starts before."""
    begin_us: int
    end_us: int

    def alone(self, least_us: int, most_us: int) -> int | None:
        """The start of the open window to which all rows between two moments go, if there is one, as mostly."""
        start = max((least_us - _ORIGIN_US) // self.step * self.step + _ORIGIN_US, self.floor_us)
        inside = least_us >= self.begin_us and most_us < self.end_us
        return start if inside and most_us < start + self.step and self.first_us <= start < self.end_us else None


def _windows(*, every: timedelta, closed_before: datetime | None, span: Span, floor: datetime | None) -> _Windows:
    return _Windows(
        step=every // _MICROSECOND,
        first_us=_LEAST if closed_before is None else _us(closed_before),
        floor_us=_us(floor) if floor is not None else _LEAST,
        begin_us=_LEAST if span.start is None else _us(span.start),
        end_us=_MOST if span.end is None else _us(span.end),
    )


def _moment(us: int) -> datetime:
    return _EPOCH + us * _MICROSECOND


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


_ORIGIN_US = _us(ORIGIN)
