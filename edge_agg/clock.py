"""The one door to time: everything that asks what time it is, or waits, takes a Clock."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Clock(Protocol):
    """Wall time and waiting; tests bring their own."""

    def now(self) -> datetime:
        """The time in UTC."""
        ...

    def since_boot_s(self) -> float:
        """Seconds since some moment of this boot: it goes on through suspends, and nobody can set it."""
        ...

    async def wait(self, seconds: float) -> None:
        """Come back after that many seconds."""
        ...


async def wait_first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Come back when the first is over; the others are called off. What one of them raised is raised here."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        raised = [task.exception() for task in tasks if task in done and not task.cancelled()]
        for error in raised:
            if error is not None:
                raise error
    finally:
        for task in tasks:
            task.cancel()


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time in UTC."""
        return datetime.now(UTC)

    def since_boot_s(self) -> float:
        """CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def wait(self, seconds: float) -> None:
        """Come back after that many seconds."""
        await asyncio.sleep(seconds)
