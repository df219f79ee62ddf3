"""HTTP: `POST /v1/events` on loopback or a Unix socket.

Place: step 1 of an event's way, for events that a process of this machine pushes.
Invariants: nobody but this machine can connect, to a Unix socket only its owner and its group; connections, and bytes
of bodies on their way, are bounded; a request that is over the bounds is refused, with when to come again; no request
ends the source. A caller that heard no answer does not know, and sends again: rows it had sent then count twice.

| file | job |
|---|---|
| `http.py` | listens, bounds, stops |
| `http_wire.py` | one connection's bytes: h11 and its limits of time |
| `http_events.py` | what a request means, and its answer |
| `inflate.py`, `arrow_body.py`, `push.py` | a body in, one frame out |
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agg.config.values import UNIX, bytes_of, is_local
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest.http_events import BUSY, FAILED, Desk, Head, Reply
from edge_agg.ingest.http_wire import Room, Wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.config.tables import HttpTable
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Inlet

CONNECTIONS = 64
BODIES = 4
"""Bodies of the largest size that may be on their way at once; more if they are smaller."""
STOP_S = 0.5
"""How long a stop waits for answers that are due."""
TOKEN_BYTES = 16
"""A shorter token could be tried out."""


@dataclass(frozen=True, slots=True)
class HttpSource:
    """An HTTP server, as a `Source`."""

    table: HttpTable

    @property
    def name(self) -> str:
        """`http:` and where it listens."""
        return f"http:{self.table.listen}"

    def check(self, columns: Mapping[str, ColumnType]) -> None:  # noqa: ARG002 - one signature for all sources
        """Look at the address and the token; the protocol says what is raised."""
        if not is_local(self.table.listen):
            raise SourceUnreadable(f"{self.name}: listens on loopback or a Unix socket only")
        self._token()

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Listen until the stop. A drain has nothing to read here: nobody is asked to push."""
        self.check(inlet.columns)
        if drain:
            inlet.is_current(True)
            return
        local = self.table.listen.startswith(UNIX)
        limit = bytes_of(self.table.max_body)
        desk = Desk(inlet=inlet, token=self._token(), max_body_bytes=limit, local_names_only=not local)
        server = _Server(desk, stop)
        listening = await self._listen(server)
        try:
            inlet.is_current(True)
            await server.wait_stopped()
        finally:
            listening.close()
            desk.close()
            await server.close()
            inlet.is_current(False)
            if local:
                _unlink(self.table.listen)

    def _token(self) -> bytes | None:
        if self.table.token_file is None:
            return None
        try:
            token = Path(self.table.token_file).read_bytes().strip()
        except OSError as error:
            reason = error.strerror
        else:
            if len(token) >= TOKEN_BYTES and token.isascii() and token.decode().isprintable() and b" " not in token:
                return token
            reason = f"a token has {TOKEN_BYTES} ASCII characters or more, and no space"
        raise SourceUnreadable(f"{self.name}: token_file: {reason}")

    async def _listen(self, server: _Server) -> asyncio.Server:
        try:
            if self.table.listen.startswith(UNIX):
                opened = _unix_socket(Path(self.table.listen.removeprefix(UNIX)))
                return await asyncio.start_unix_server(server.connected, sock=opened)
            host, _, port = self.table.listen.rpartition(":")
            return await asyncio.start_server(server.connected, host.strip("[]"), int(port))
        except OSError as error:
            reason = error.strerror
        raise SourceUnreadable(f"{self.name}: cannot listen ({reason})")


@dataclass(slots=True)
class _Server:
    """The connections there are."""

    desk: Desk
    stop: asyncio.Event
    room: Room = field(init=False)
    _wires: dict[asyncio.Task[None], Wire] = field(default_factory=dict)
    _failed: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        self.room = Room(BODIES * self.desk.max_body_bytes)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, or say that there are too many."""
        task = asyncio.current_task()
        assert task is not None
        wire = Wire(
            reader=reader,
            writer=writer,
            judge=self.desk.judge,
            accept=self._accept,
            room=self.room,
            max_body_bytes=self.desk.max_body_bytes,
            stopping=self.stop.is_set,
        )
        crowded = len(self._wires) >= CONNECTIONS
        self._wires[task] = wire
        try:
            await (wire.refuse(BUSY) if crowded else wire.serve())
        except asyncio.CancelledError:  # by `close`; nobody awaits this task for what it says
            writer.transport.abort()
        finally:
            del self._wires[task]

    async def _accept(self, head: Head, body: bytes) -> Reply:
        """Hand the body in. What the inlet raises beyond being full ends the source, not this connection alone."""
        try:
            return await self.desk.accept(head, body)
        except Exception as error:  # noqa: BLE001 - passed on, by `wait_stopped`
            if not self._failed.done():
                self._failed.set_exception(error)
            return FAILED

    async def wait_stopped(self) -> None:
        """Come back at the stop, or raise what the inlet raised."""
        stopped = asyncio.ensure_future(self.stop.wait())
        waits: list[asyncio.Future[Any]] = [stopped, self._failed]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if self._failed.done():
            await self._failed

    async def close(self) -> None:
        """Let answers that are due go out, for a moment; then hang up."""
        for task, wire in list(self._wires.items()):
            if not wire.busy:
                task.cancel()
        if self._wires:
            await asyncio.wait(list(self._wires), timeout=STOP_S)
        left = list(self._wires)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        self._failed.cancel()


def _unlink(listen: str) -> None:
    Path(listen.removeprefix(UNIX)).unlink(missing_ok=True)


def _unix_socket(path: Path) -> socket.socket:
    """Bind a socket of mode 0660 in the place of one that nobody listens on any more."""
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
                path.unlink()
        opened.bind(str(path))
        os.chmod(path, 0o660)  # noqa: PTH101 - nobody can connect before `listen`, which comes after
    except OSError:
        opened.close()
        raise
    return opened


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(1.0)
        try:
            asked.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
