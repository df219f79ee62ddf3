"""Whether the clock on the wall may be believed (promise A9).

Place: between the clock and everything that acts on the time: windows close, rows are judged as late or as ahead, raw
events grow old only while the time is believed.
Invariants: pure; a clock before the journal was created is never believed; one that moved against the time since boot,
or back behind what was seen before, is believed again once it is back, or has run steadily for `settle`: a box that
nobody visits gets out of a hold by itself. High-water marks hold either way: no window is released twice, none reopens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

PLAUSIBLE = datetime(2010, 1, 1, tzinfo=UTC)
"""A box without a battery for its clock boots in 1970; a clock before this was never set."""


class Doubt(StrEnum):
    """Why a clock is not believed."""

    UNSET = "unset"
    """It shows a time before the journal was created, or before `PLAUSIBLE`."""
    BEHIND = "behind"
    """It went back behind a time that was believed before."""
    JUMPED = "jumped"
    """It moved against the time since boot."""


@dataclass(slots=True, kw_only=True)
class Timekeeper:
    """Follows one clock."""

    created: datetime
    """The journal's creation: no time before it can be right."""
    last_seen: datetime | None
    """The latest time that was believed; at first that of an earlier start, or None."""
    max_jump: timedelta
    """How far wall time and time since boot may part between two looks."""
    settle: timedelta
    """How long a clock runs steadily until it is believed again."""
    doubt: Doubt | None = field(default=None, init=False)
    """Why the clock is not believed now."""
    boot: datetime | None = field(default=None, init=False)
    """When this boot was, by the clock that is believed."""
    _steady: tuple[datetime, float] | None = field(default=None, init=False)
    """While in doubt: when this boot was by the clock as it is, and since when."""

    def look(self, wall: datetime, since_boot_s: float) -> Doubt | None:
        """Look at both times; what it returns is also `doubt`."""
        boot = wall - timedelta(seconds=since_boot_s)
        self.doubt = self._judge(wall, boot)
        if self.doubt is not None and self._has_settled(boot, since_boot_s):
            self.doubt = None
        if self.doubt is None:
            self.boot, self._steady, self.last_seen = boot, None, wall
        return self.doubt

    def _judge(self, wall: datetime, boot: datetime) -> Doubt | None:
        if wall < max(self.created, PLAUSIBLE) - self.max_jump:
            return Doubt.UNSET
        if self.boot is not None:
            return Doubt.JUMPED if abs(boot - self.boot) > self.max_jump else None
        if self.last_seen is not None and wall < self.last_seen - self.max_jump:
            return Doubt.BEHIND
        return None

    def _has_settled(self, boot: datetime, since_boot_s: float) -> bool:
        if self.doubt is Doubt.UNSET:
            self._steady = None
            return False
        if self._steady is None or abs(boot - self._steady[0]) > self.max_jump:
            self._steady = boot, since_boot_s
            return False
        return since_boot_s - self._steady[1] >= self.settle.total_seconds()
