"""HTTP, on TCP and on a Unix socket, with a client that does what a careful pusher does."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa

from edge_agg.config.tables import HttpTable
from edge_agg.config.values import UNIX
from edge_agg.ingest.http import HttpSource
from tests.conformance.harness import CANARY, Answer, Rows, ndjson
from tests.conformance.inlet import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NDJSON, ARROW = "application/x-ndjson", "application/vnd.apache.arrow.stream"


class HttpHarness:
    """A source on TCP, and who pushes to it; see `Harness`."""

    tells: ClassVar[bool] = True
    keeps: ClassVar[bool] = False
    finite: ClassVar[bool] = False
    slow: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listen = self.address()

    def address(self) -> str:
        """A port that is free now."""
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{asked.getsockname()[1]}"

    async def start(self) -> None:
        """Nothing: the source is the server."""

    async def close(self) -> None:
        """Nothing."""

    async def end(self) -> None:
        """Nothing: a server does not learn that nobody will call."""

    def source(self) -> HttpSource:
        """A source at the same address."""
        return HttpSource(HttpTable(listen=self.listen))

    async def feed(self, rows: Rows) -> Answer:
        """Post lines of JSON."""
        return await self.post(ndjson(rows))

    async def feed_raw(self, data: bytes) -> Answer:
        """Post bytes as lines of JSON."""
        return await self.post(data)

    def spoiled(self) -> list[HttpSource]:
        """A token that is too short to be one."""
        (self.folder / "token").write_text(CANARY)
        return [HttpSource(HttpTable(listen=self.listen, token_file=str(self.folder / "token")))]

    def hostile(self) -> list[bytes]:
        """Nothing of its own that is a body of JSON; see test_http.py."""
        return []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, once the source listens."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    if self.listen.startswith(UNIX):
                        return await asyncio.open_unix_connection(self.listen.removeprefix(UNIX))
                    host, _, port = self.listen.rpartition(":")
                    return await asyncio.open_connection(host, int(port))
                except OSError:
                    await asyncio.sleep(0.01)

    async def post(self, body: bytes, kind: str = NDJSON, headers: Mapping[str, str] | None = None) -> Answer:
        """Post a body, once."""
        lines = {"Host": "localhost", "Content-Type": kind, "Content-Length": str(len(body)), "Connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in (lines | dict(headers or {})).items())
        return understood(await self.talk(b"POST /v1/events HTTP/1.1\r\n" + head.encode() + b"\r\n" + body))

    async def talk(self, data: bytes) -> bytes:
        """Send bytes and return all that is answered."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            async with asyncio.timeout(PATIENCE_S):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


def understood(said: bytes) -> Answer:
    """What an answer says to a client."""
    if not said:
        return Answer(kind="silent")
    head, _, body = said.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    json.loads(body)
    if status in {429, 503}:
        assert b"\r\nRetry-After: " in head + b"\r\n", "who must wait is told for how long"
        return Answer(kind="wait", text=said.decode())
    return Answer(kind="ok" if status == 200 else "refused", text=said.decode())


class UnixHarness(HttpHarness):
    """The same on a Unix socket."""

    def address(self) -> str:
        """A socket in the folder."""
        return f"{UNIX}{self.folder}/events.sock"


class ArrowHarness(UnixHarness):
    """The same with Arrow IPC streams."""

    async def feed(self, rows: Rows) -> Answer:
        """Post a stream; a value that does not fit makes its column text, as it would in a data frame."""
        columns = {}
        for name in rows[0]:
            held = [row[name] for row in rows]
            mixed = len({type(value) for value in held if value is not None}) > 1
            columns[name] = pa.array([str(v) if mixed and v is not None else v for v in held])
        return await self.post(stream(pa.record_batch(columns)), ARROW)

    async def feed_raw(self, data: bytes) -> Answer:
        """Post bytes as a stream."""
        return await self.post(data, ARROW)

    def hostile(self) -> list[bytes]:
        """A stream cut short, one with bytes flipped, and one of another schema."""
        canary = pa.record_batch({"who": [CANARY] * 100, "n": list(range(100))})
        whole = stream(canary)
        flipped = [bytes(b ^ 0xFF if i % 97 == k else b for i, b in enumerate(whole)) for k in range(0, 97, 7)]
        return [whole, whole[: len(whole) // 2], whole + CANARY.encode(), *flipped]


def stream(*batches: pa.RecordBatch) -> bytes:
    """Batches as an Arrow IPC stream."""
    out = io.BytesIO()
    with pa.ipc.new_stream(out, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return out.getvalue()


HARNESSES: dict[str, type] = {"http-tcp": HttpHarness, "http-unix": UnixHarness, "http-arrow": ArrowHarness}
