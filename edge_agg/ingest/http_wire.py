"""One connection's bytes: requests in, answers out, over h11.

Place: under `http.py`; what a request means is `http_events.py`'s.
Invariants: the head has 20 KiB at most, the body what was reserved for it; every wait has a limit; whatever the peer
sends ends this connection at worst; a body is read only once the head was found good, so `100 Continue` means what it
says; nothing of a request is in an answer.

h11 parses and frames (RFC 9112) and does no I/O. It is a tenth of a web framework to import and to hold, and a request
here is a batch of thousands of rows, so its own speed is not what counts.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11

from edge_agg.ingest.http_events import CROWDED, SLOW, TOO_LARGE, Head, Reply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

HEAD_BYTES = 16 << 10
IDLE_S = 60.0
"""How long a connection may wait for its next request."""
HEAD_S = 10.0
"""How long a head may take."""
BODY_S = 60.0
"""How long a body may take."""
REPLY_S = 5.0
"""How long an answer may take, and how long the rest of a refused body is read away."""
_BLOCK = 256 << 10
_HEAD_BLOCK = 4 << 10
"""h11 minds its bound only while a head is not whole yet, so heads are fed to it in small pieces."""


@dataclass(slots=True)
class Room:
    """Bytes of bodies that may be in memory at once."""

    free: int

    def reserve(self, size: int) -> bool:
        """Take some, if there are."""
        if size > self.free:
            return False
        self.free -= size
        return True


@dataclass(slots=True, kw_only=True)
class Wire:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    judge: Callable[[Head], Reply | None]
    accept: Callable[[Head, bytes], Awaitable[Reply]]
    room: Room
    max_body_bytes: int
    stopping: Callable[[], bool]
    busy: bool = False
    """Whether a request is being read or answered."""
    _h11: h11.Connection = field(
        default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    )

    async def serve(self) -> None:
        """Answer requests until the peer hangs up, misbehaves, or the agent stops."""
        try:
            while await self._exchange() and not self.stopping():
                self._h11.start_next_cycle()
        except (OSError, TimeoutError, h11.ProtocolError):
            pass
        finally:
            self.writer.close()

    async def refuse(self, reply: Reply) -> None:
        """Answer whatever would be asked, without reading it, and hang up."""
        try:
            await self._write(*self._encode(reply, stays=False))
        except (OSError, TimeoutError):
            pass
        finally:
            self.writer.close()

    async def _exchange(self) -> bool:
        """One request and its answer; whether the connection stays open."""
        self.busy = False
        if not self._h11.trailing_data[0]:
            async with asyncio.timeout(IDLE_S):
                await self._read(_HEAD_BLOCK)
        self.busy = True
        try:
            reply = await self._request()
        except TimeoutError:
            reply = SLOW
        except h11.RemoteProtocolError as error:
            reply = Reply(status=error.error_status_hint, code="malformed_request")
        if reply is None:
            return False
        await self._reply(reply)
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    async def _request(self) -> Reply | None:
        async with asyncio.timeout(HEAD_S):
            event = await self._next_event(_HEAD_BLOCK)
        if not isinstance(event, h11.Request):
            return None
        head = Head(method=event.method, target=event.target, headers=dict(event.headers), version=event.http_version)
        reply = self.judge(head)
        if reply is not None:
            if head.length in {0, None} and b"transfer-encoding" not in head.headers:
                await self._next_event()  # the end of no body: the connection can stay
            return reply
        size = self.max_body_bytes if head.length is None else head.length
        if not self.room.reserve(size):
            return CROWDED
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._body()
            return TOO_LARGE if body is None else await self.accept(head, body)
        finally:
            self.room.free += size

    async def _body(self) -> bytes | None:
        """The whole body; None if it is longer than it may be."""
        if self._h11.they_are_waiting_for_100_continue:
            await self._write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))
        body = bytearray()
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            if len(body) > self.max_body_bytes:
                return None
        return bytes(body)

    async def _next_event(self, block: int = _BLOCK) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            await self._read(block)
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError
        return event

    async def _read(self, block: int) -> None:
        self._h11.receive_data(await self.reader.read(block))

    async def _reply(self, reply: Reply) -> None:
        """Answer, and hang up where the rest of the request is not wanted."""
        stays = self._h11.their_state is h11.DONE and not self.stopping()
        await self._write(*self._encode(reply, stays=stays))
        if not stays:
            await self._linger()

    def _encode(self, reply: Reply, *, stays: bool) -> Iterator[bytes | None]:
        body = reply.body()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        if not stays:
            headers["Connection"] = "close"
        yield self._h11.send(h11.Response(status_code=reply.status, headers=list(headers.items())))
        yield self._h11.send(h11.Data(data=body))
        yield self._h11.send(h11.EndOfMessage())

    async def _linger(self) -> None:
        """Read away what still comes, for a moment: a connection closed on unread bytes takes the answer with it."""
        if self.writer.can_write_eof():
            self.writer.write_eof()
        async with asyncio.timeout(REPLY_S):
            left = 4 * self.max_body_bytes
            while left > 0 and not self.stopping() and (block := await self.reader.read(_BLOCK)):
                left -= len(block)

    async def _write(self, *data: bytes | None) -> None:
        async with asyncio.timeout(REPLY_S):
            self.writer.write(b"".join(part for part in data if part))
            await self.writer.drain()
