"""When what was sealed may leave: at moments that do not tell how long the noise took to draw.

Samplers of exact noise are not constant time, and whoever watches the wire sees when a release leaves. So the moment is
set before the first draw: a whole multiple of a public period, at least one period after closing began.

Place: between the agent, which closes windows, and the uplink, which sends.
Invariants: nothing leaves while windows close; what was closed within the period leaves at the moment that was set
before, however long it took. Where it took longer it leaves at the next multiple, and that is counted.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agg.clock import Clock


@dataclass(slots=True, kw_only=True)
class Departures:
    """The schedule of one agent."""

    clock: Clock
    every_s: float
    """The period; 0 lets everything leave when it is ready."""
    _leaves_s: float = 0.0
    _closed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._closed.set()

    def begin(self, begun_s: float) -> None:
        """Windows are about to be closed; by the time since boot, since `begun_s`."""
        if self.every_s:
            self._leaves_s = self._multiple(begun_s) + self.every_s
            self._closed.clear()

    def end(self) -> bool:
        """They are closed; whether that took longer than the schedule has room for."""
        self._closed.set()
        now_s = self.clock.since_boot_s()
        late = bool(self.every_s) and now_s > self._leaves_s
        if late:
            self._leaves_s = self._multiple(now_s)
        return late

    async def wait(self) -> None:
        """Come back when what is sealed may leave."""
        await self._closed.wait()
        while (left_s := self._leaves_s - self.clock.since_boot_s()) > 0:
            await self.clock.wait(left_s)
            await self._closed.wait()

    def _multiple(self, now_s: float) -> float:
        """The next whole multiple of the period after a moment."""
        return (math.floor(now_s / self.every_s) + 1) * self.every_s
