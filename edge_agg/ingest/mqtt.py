"""Events that are published to an MQTT broker, 3.1.1 or 5, at least once.

Place: step 1 of an event's way.
Invariants: a message is acknowledged once the inlet has it safe, or because no reading will ever make an event of it,
and not before; the broker keeps the rest, under a client id that stays the same; what arrives while the inlet is busy
is taken together; no message stops the source.

| file | job |
|---|---|
| `mqtt_session.py` | from messages to acknowledgements, while one connection lasts |
| `mqtt_link.py` | one connection |
| `mqtt_payload.py` | payloads in, a frame out |
| `redelivery.py` | which messages the broker sends a second time |
"""

from __future__ import annotations

import asyncio
import random
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_agg.contract.address import is_loopback
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest.mqtt_link import Address, Link, LinkLost
from edge_agg.ingest.mqtt_session import Session
from edge_agg.ingest.redelivery import Redelivery
from edge_agg.ingest.source import Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.config.tables import MqttTable
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Inlet

GRACE_S = 0.4
"""How long a stop waits for what the inlet is taking, so that it can be acknowledged."""
STEADY_S = 10.0
"""A connection that held so long shows that the next one may be tried at once."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass
class MqttSource:
    """Subscribed topics of one broker."""

    table: MqttTable
    retry_first_s: float = 0.5
    retry_limit_s: float = 60.0
    _sent_again: Redelivery = field(default_factory=Redelivery, init=False)

    @property
    def name(self) -> str:
        """The kind, the broker and the client id."""
        return f"mqtt:{self.table.url}:{self.table.client_id}"

    def check(self, columns: Mapping[str, ColumnType]) -> None:  # noqa: ARG002 - whatever the columns, JSON may hold them
        """Look at the address, the topics and the files it needs; the broker may be away.

        Raises:
            SourceUnreadable: one of them is wrong. Fix the config.
        """
        host, _ = self._where()
        exposed = urlsplit(self.table.url).scheme == "mqtt" and not is_loopback(f"{host}:1")
        if exposed and self.table.username is not None:
            raise SourceUnreadable(f"{self.name}: a password goes to another machine over mqtts:// only")
        if not self.table.client_id or len(self.table.client_id.encode()) > 256:
            raise SourceUnreadable("mqtt: the client id must have 1 to 256 bytes")
        if not self.table.topics or not all(map(_is_filter, self.table.topics)):
            raise SourceUnreadable(f"{self.name}: a topic is none that can be subscribed to")
        self._address()

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Hand messages over until `stop`; with `drain`, until the broker has kept none for us.

        A broker that is away, or refuses, is asked again for ever, less and less often; the inlet hears why.
        """
        inlet.is_current(False)
        idle = asyncio.Event()
        running = asyncio.create_task(self._run(inlet, idle, drain=drain))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                with suppress(TimeoutError):
                    await asyncio.wait_for(idle.wait(), GRACE_S)
            else:
                running.result()
        finally:
            stopped.cancel()
            running.cancel()
            await asyncio.wait({running, stopped})

    async def _run(self, inlet: Inlet, idle: asyncio.Event, *, drain: bool) -> None:
        loop, attempts = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            idle.set()
            try:
                await self._session(inlet, idle, drain=drain)
            except LinkLost as lost:
                inlet.is_current(False, lost.cause)
            except SourceUnreadable:  # a file that check() found and is gone now
                inlet.is_current(False, Cause.UNREADABLE)
            else:
                return
            attempts = 0 if loop.time() - began > STEADY_S else attempts + 1
            await asyncio.sleep(self._pause_s(attempts))

    def _pause_s(self, attempts: int) -> float:
        """Exponential with jitter, so that a plant's agents do not come back to its broker all at once."""
        ceiling = min(self.retry_limit_s, self.retry_first_s * 2.0 ** min(attempts, 30))
        return ceiling * random.uniform(0.1, 1.0)  # noqa: S311 - no secret

    async def _session(self, inlet: Inlet, idle: asyncio.Event, *, drain: bool) -> None:
        """Live through one connection; come back only when all is drained."""
        link = Link(await asyncio.to_thread(self._address), self.table.topics)
        try:
            await link.open()
            if not link.resumed:
                self._sent_again.forget()
            await Session(link=link, inlet=inlet, sent_again=self._sent_again, idle=idle).run(drain=drain)
        finally:
            await link.close()

    def _where(self) -> tuple[str, int]:
        with suppress(ValueError):  # also of a port that is none
            parts = urlsplit(self.table.url)
            plain = not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
            if parts.scheme in _PORTS and parts.hostname and plain:
                return parts.hostname, parts.port or _PORTS[parts.scheme]
        raise SourceUnreadable("mqtt: the url must be mqtt://host:port or mqtts://host:port, and nothing else")

    def _address(self) -> Address:
        """Read the files anew each time, so that they can be replaced without a restart."""
        host, port = self._where()
        tls = password = None
        if urlsplit(self.table.url).scheme == "mqtts":
            try:
                tls = ssl.create_default_context(cafile=self.table.ca_file)
            except OSError as error:  # ssl.SSLError is one
                problem = type(error).__name__
            if tls is None:
                raise SourceUnreadable(f"{self.name}: ca_file cannot be read ({problem})")
        if self.table.password_file is not None:
            try:
                password = Path(self.table.password_file).read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, ValueError) as error:
                problem = type(error).__name__
            if password is None:
                raise SourceUnreadable(f"{self.name}: password_file cannot be read ({problem})")
        return Address(
            host=host,
            port=port,
            client_id=self.table.client_id,
            version=self.table.version,
            tls=tls,
            username=self.table.username,
            password=password,
        )


def _is_filter(topic: str) -> bool:
    """Whether it can be subscribed to: `+` stands alone in a level, `#` alone in the last."""
    levels = topic.split("/")
    tame = all(level in {"+", "#"} or not set(level) & {"+", "#", "\0"} for level in levels)
    return bool(topic) and len(topic.encode(errors="replace")) <= 65_535 and tame and "#" not in levels[:-1]
