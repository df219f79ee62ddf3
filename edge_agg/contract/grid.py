"""The grid of windows: where tumbling windows begin, for every plan and both ends.

Invariant: a window's bounds follow from its length alone. Windows are counted from Monday 1970-01-05 00:00 UTC, so a
window of seven days is an ISO week, and one that divides a day begins at midnight.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

ORIGIN = datetime(1970, 1, 5, tzinfo=UTC)


def window_of(moment: datetime, every: timedelta) -> datetime:
    """The start of the window that holds the moment."""
    return moment - (moment - ORIGIN) % every


def windows_between(start: datetime, end: datetime, every: timedelta) -> Iterator[datetime]:
    """The starts of all windows that overlap `[start, end)`, in order."""
    window = window_of(start, every)
    while window < end:
        yield window
        window += every
