"""Logs and traces of OpenTelemetry, over gRPC on loopback or a Unix socket.

Place: step 1 of an event's way, for events that a process of this machine exports.
Invariants: nobody but this machine can connect, to a Unix socket only its owner and its group; no request ends the
source. An exporter that heard no answer sends again: records that were safe by then count twice.

| file | job |
|---|---|
| `otlp.py` | listens, stops |
| `otlp_service.py` | one export: bounds, answers |
| `otlp_columns.py`, `otlp_fields.py` | a request in, one frame out; what the columns are |
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from edge_agg.config.values import UNIX, is_local
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest.otlp_fields import FIELDS
from edge_agg.ingest.otlp_service import MAX_MESSAGE_BYTES, Exports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.config.tables import OtlpTable
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Inlet

STOP_S = 0.5
"""How long a stop waits for answers that are due."""
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),  # of a compressed one, both lengths
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.so_reuseport", 0),  # a second listener is an error, not a share of the exports
)


@dataclass(frozen=True, slots=True)
class OtlpSource:
    """An OTLP receiver, as a `Source`."""

    table: OtlpTable

    @property
    def name(self) -> str:
        """`otlp:` and where it listens."""
        return f"otlp:{self.table.listen}"

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """Look at the address, and whether each field is asked for as what it is; the protocol says what is raised."""
        if not is_local(self.table.listen):
            raise SourceUnreadable(f"{self.name}: listens on loopback or a Unix socket only")
        for signal in self.table.signals:
            for name, (fits, _) in FIELDS[signal].items():
                if name in columns and columns[name] not in fits:
                    raise SourceUnreadable(f"{self.name}: {name} of {signal} is no {columns[name]}")

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Listen until the stop. A drain has nothing to read here: nobody is asked to export."""
        self.check(inlet.columns)
        if drain:
            inlet.is_current(True)
            return
        exports = Exports(inlet)
        server = grpc.aio.server(handlers=[exports.handler(signal) for signal in self.table.signals], options=OPTIONS)
        self._listen(server)
        await server.start()
        stopped = asyncio.create_task(stop.wait())
        try:
            inlet.is_current(True)
            ends: list[asyncio.Future[Any]] = [stopped, exports.failed]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if exports.failed.done():
                await exports.failed
        finally:
            stopped.cancel()
            exports.stopping = True
            inlet.is_current(False)
            await server.stop(STOP_S)
            exports.failed.cancel()
            self._unlink()

    def _unlink(self) -> None:
        if self.table.listen.startswith(UNIX):
            Path(self.table.listen.removeprefix(UNIX)).unlink(missing_ok=True)

    def _listen(self, server: grpc.aio.Server) -> None:
        before = os.umask(0o117)  # a Unix socket is born with mode 0660
        try:
            server.add_insecure_port(self.table.listen)
        except RuntimeError:
            failed = True
        else:
            failed = False
        finally:
            os.umask(before)
        if failed:
            raise SourceUnreadable(f"{self.name}: cannot listen (is the address taken?)")
