"""When each agent was last heard of, and when its certificate ends.

Place: the service notes whoever pushes, whatever becomes of the releases; the landing keeps it.
Invariants: noting costs a call nothing but a dictionary's entry; what is noted is written within seconds, so a crash
makes an agent look silent for that much longer and changes nothing else; who an agent is comes from the gate, or, where
the gate knows only that the caller is on this machine, from releases that were admitted.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Literal, Protocol

from cloud_collector.caller import Kind
from cloud_collector.errors import StoreFailed
from cloud_collector.register import Contact
from edge_agg.contract.codec import to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cloud_collector.caller import Caller

WRITE_S = 2.0
"""Seconds between two writes."""


class Keeps(Protocol):
    """What keeps contacts."""

    def note_contacts(self, contacts: Sequence[Contact]) -> None:
        """Remember them; raises StoreFailed."""
        ...


class Contacts:
    """Who has called since the last write."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: dict[tuple[str, str], Contact] = {}

    def note(self, sender: Caller, claimed: Iterable[tuple[str, str]]) -> None:
        """Somebody pushed.

        Args:
            sender: as the gate found out.
            claimed: tenant and agent of the releases that were admitted.
        """
        agents = [(sender.tenant, sender.name)] if sender.kind is Kind.AGENT else claimed
        now_us = time.time_ns() // 1000
        ends_us = None if sender.ends is None else to_us(sender.ends)
        with self._lock:
            for tenant, agent in agents:
                self._noted[tenant or "", agent] = Contact(
                    tenant=tenant or "", agent=agent, heard_us=now_us, certificate_ends_us=ends_us
                )

    def write(self, landing: Keeps) -> None:
        """Hand over what was noted; what the landing does not take is noted again. Raises StoreFailed."""
        with self._lock:
            taken, self._noted = self._noted, {}
        if not taken:
            return
        try:
            landing.note_contacts(list(taken.values()))
        except StoreFailed:
            with self._lock:
                self._noted = {**taken, **self._noted}
            raise


async def note_until(
    waits: Sequence[asyncio.Task[Literal[True]]], contacts: Contacts, landing: Keeps, store_failed: Callable[[], None]
) -> None:
    """Write at intervals until one of the waits is over."""
    while not any(wait.done() for wait in waits):
        try:
            await asyncio.to_thread(contacts.write, landing)
        except StoreFailed:
            store_failed()
        await asyncio.wait(waits, timeout=WRITE_S, return_when=asyncio.FIRST_COMPLETED)
