"""Tumbling windows in event time: which window a row belongs to, and when a window closes.

Place: step 3 of an event's way, between decoding and bounding.
Invariants: pure; a closed window never opens again; every window between the first and the watermark closes, also an
empty one. The watermark is the clock's (or the end of a drain), never the latest event's: if one row could move it,
one person could close a window on everybody else, and bounding could not make up for that.
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


def split(times_us: npt.NDArray[np.int64], *, every: timedelta, closed_before: datetime | None, span: Span) -> Split:
    """Send each row to its window.

    Args:
        times_us: event times in microseconds since 1970 UTC, int64[n_rows].
        every: the window's length.
        closed_before: windows that start before it have closed.
        span: rows outside are dropped; what happens to a row depends on its own time alone.
    """
    if len(times_us):
        alone = alone_in(int(times_us.min()), int(times_us.max()), every=every, closed_before=closed_before, span=span)
        if alone is not None:
            return Split(windows={alone: np.arange(len(times_us))}, late=0, outside=0)
    inside = np.ones(len(times_us), dtype=np.bool_)
    if span.start is not None:
        inside &= times_us >= _us(span.start)
    if span.end is not None:
        inside &= times_us < _us(span.end)
    step, origin = every // _MICROSECOND, _us(ORIGIN)
    starts = (times_us - origin) // step * step + origin
    open_ = inside if closed_before is None else inside & (starts >= _us(closed_before))
    windows = {
        _EPOCH + int(start) * _MICROSECOND: np.flatnonzero(open_ & (starts == start))
        for start in np.unique(starts[open_])
    }
    return Split(windows=windows, late=int(inside.sum() - open_.sum()), outside=int((~inside).sum()))


def alone_in(
    first_us: int, last_us: int, *, every: timedelta, closed_before: datetime | None, span: Span
) -> datetime | None:
    """The start of the open window in which all rows between two moments lie, if there is one, as mostly."""
    if (span.start is not None and first_us < _us(span.start)) or (span.end is not None and last_us >= _us(span.end)):
        return None
    step, origin = every // _MICROSECOND, _us(ORIGIN)
    start = (first_us - origin) // step * step + origin
    if last_us >= start + step or (closed_before is not None and start < _us(closed_before)):
        return None
    return _EPOCH + start * _MICROSECOND


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


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
