"""From messages to acknowledgements, while one connection lasts.

Place: step 1, between `mqtt_link.py` and the inlet.
Invariants: messages are taken and acknowledged in the order in which they came; those that arrived while the inlet was
busy are one frame; while the inlet is full nothing is acknowledged, and so the broker stops sending.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_agg.clock import wait_first
from edge_agg.ingest.mqtt_link import MAX_MESSAGE_BYTES
from edge_agg.ingest.mqtt_payload import frame_of
from edge_agg.ingest.source import InletFull

if TYPE_CHECKING:
    from edge_agg.ingest.mqtt_link import Link, Message
    from edge_agg.ingest.redelivery import Redelivery
    from edge_agg.ingest.source import Frame, Inlet

PROBE_S = 0.25
"""How long to wait before the broker is asked again whether there is more."""


@dataclass(kw_only=True)
class Session:
    """What one connection brings, and where it goes."""

    link: Link
    inlet: Inlet
    sent_again: Redelivery
    idle: asyncio.Event
    """Set unless messages are on their way to the inlet."""
    _behind: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def run(self, *, drain: bool) -> None:
        """Go on until the link is lost; with `drain`, until the broker has nothing more for us.

        Raises:
            LinkLost: what was not acknowledged comes again.
        """
        taking = asyncio.create_task(self._take_all())
        watching = asyncio.create_task(self._watch(drain=drain))
        try:
            await asyncio.wait({taking, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done() and watching.exception() is None:
                return
            self.inlet.is_current(False)
            await taking  # what the inlet is taking becomes safe, and is then known when it comes again
        finally:
            for task in (taking, watching):
                task.cancel()
            await asyncio.wait({taking, watching})

    async def _watch(self, *, drain: bool) -> None:
        """Say when all events up to now were handed over, and come back then if that is the end."""
        while True:
            while not await self.link.wait_caught_up():  # noqa: ASYNC110 - the broker is asked, nobody sets an event
                await asyncio.sleep(PROBE_S)
            self.inlet.is_current(True)
            if drain:
                return
            await wait_first(self._behind.wait(), self.link.gone.wait())
            self._behind.clear()

    async def _take_all(self) -> None:
        while True:
            messages = await self.link.wait_messages()
            self.idle.clear()
            await self._take(messages)
            self.idle.set()

    async def _take(self, messages: list[Message]) -> None:
        new = [message for message in messages if not self.sent_again.knows(message)]
        if new:
            payloads = [message.payload for message in new]
            frame = await asyncio.to_thread(frame_of, payloads, self.inlet.columns, max_bytes=MAX_MESSAGE_BYTES)
            await self._offer(frame)
            for message in new:
                self.sent_again.add(message)
        self.link.ack(messages)

    async def _offer(self, frame: Frame) -> None:
        """Offer a frame until it is taken."""
        while True:
            try:
                await self.inlet.take(frame)
            except InletFull as full:
                retry_s = full.retry_s
            else:
                return
            self.inlet.is_current(False)
            self._behind.set()
            await asyncio.sleep(retry_s)
            self.link.check()
