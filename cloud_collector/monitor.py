"""A small HTTP page for machines that watch: figures for Prometheus, and whether the collector lives and is ready.

Place: beside the event's path, on an address of its own, so that it answers when the calls' port is full.
Invariants: read only, and nothing of a request is used but its path, which is compared; a request is bounded in bytes
and in time, and so is the number of connections.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cloud_collector import metrics
from cloud_collector.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MAX_CONNECTIONS, MAX_REQUEST_BYTES, REQUEST_S = 16, 8192, 5.0
_PLAIN = "text/plain; charset=utf-8"


class Monitor:
    """Answers `/metrics`, `/live` and `/ready`.

    Args:
        ready: whether calls are taken now; asked once a request.
    """

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._open = 0

    @asynccontextmanager
    async def listening(self, address: str | None) -> AsyncIterator[str | None]:
        """Answer while the body runs; yields `host:port` as it was bound, or None where nothing is asked for.

        Raises:
            ConfigInvalid: the address cannot be listened on.
        """
        if address is None:
            yield None
            return
        host, _, port = address.rpartition(":")
        try:
            server = await asyncio.start_server(self._serve, host.strip("[]"), int(port), limit=MAX_REQUEST_BYTES)
        except OSError:
            raise ConfigInvalid("$.monitor.listen: the address is taken or is not this machine's") from None
        try:
            yield f"{host}:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever sends no request in time, or no end of one, gets no answer
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        if method != b"GET":
            return _response("405 Method Not Allowed", _PLAIN, b"")
        match rest.partition(b" ")[0].partition(b"?")[0]:
            case b"/metrics":
                return _response("200 OK", metrics.CONTENT_TYPE, metrics.page())
            case b"/live":
                return _response("200 OK", _PLAIN, b"live\n")
            case b"/ready" if self._ready():
                return _response("200 OK", _PLAIN, b"ready\n")
            case b"/ready":
                return _response("503 Service Unavailable", _PLAIN, b"not ready\n")
        return _response("404 Not Found", _PLAIN, b"")


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
