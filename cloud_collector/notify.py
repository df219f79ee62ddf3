"""Tells systemd how the collector is: ready, alive, stopping; a datagram each, over the socket that it names.

Place: around the composition, by the command line; without a supervisor that listens nothing is sent.
Invariants: no error of it ever stops or delays the collector (the socket never blocks); what is said holds nothing of
callers or releases; processes that are started later do not speak for the collector.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cloud_collector.telemetry import Event, listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifier:
    """A supervisor's ear, or nobody's."""

    address: str | None = None
    """Of a Unix datagram socket; a leading `@` stands for the abstract namespace."""
    watchdog_s: float | None = None
    """The loop must be heard of at least that often, or the collector is started anew; None: never."""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Self:
        """Take what systemd says to this process, out of the environment."""
        found = os.environ if environment is None else environment
        address, limit_us = found.pop("NOTIFY_SOCKET", ""), found.pop("WATCHDOG_USEC", "")
        meant = found.pop("WATCHDOG_PID", "") in {"", str(os.getpid())}
        limited = meant and limit_us.isdecimal() and 0 < int(limit_us) < 2**63
        return cls(
            address=address if address[:1] in {"/", "@"} and len(address) > 1 else None,
            watchdog_s=int(limit_us) / 1e6 if limited else None,
        )

    def ready(self, listen_on: str) -> None:
        """Calls are taken."""
        self._send(f"READY=1\nSTATUS=listening on {listen_on}")

    async def around(self, work: Awaitable[None]) -> None:
        """Say that the loop turns while the work runs, and when it begins to stop."""
        listen(self._hear)
        turning = asyncio.create_task(self._alive())
        try:
            await work
        finally:
            turning.cancel()

    async def _alive(self) -> None:
        while self.watchdog_s is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / 3)

    def _hear(self, event: Event, fields: object) -> None:
        del fields
        if event is Event.COLLECTOR_DRAINING:
            self._send("STOPPING=1\nSTATUS=finishing what is in work")

    def _send(self, text: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.setblocking(False)
            ear.sendto(text.encode(), address)
