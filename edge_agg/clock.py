"""The one door to time: everything that asks what time it is, or waits, takes a Clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time and waiting; tests bring their own."""

    def now(self) -> datetime:
        """The time in UTC."""
        ...

    async def wait(self, seconds: float) -> None:
        """Come back after that many seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The time in UTC."""
        return datetime.now(UTC)

    async def wait(self, seconds: float) -> None:
        """Come back after that many seconds."""
        await asyncio.sleep(seconds)
