"""OTLP over gRPC, on TCP and on a Unix socket, logs and traces; rows are exported as attributes, as an SDK does."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from edge_agg.config.tables import OtlpTable
from edge_agg.ingest.otlp import OtlpSource
from edge_agg.ingest.otlp_service import METHODS
from tests.conformance.broker import free_port
from tests.conformance.harness import CANARY, SILENT, Answer, Rows

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.ingest.otlp_fields import Signal


def any_value(value: Any) -> AnyValue:
    """A plain value as OTLP writes it."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, datetime):
        return AnyValue(string_value=value.isoformat())
    return AnyValue() if value is None else AnyValue(string_value=value)


def attributes(row: dict[str, Any]) -> list[KeyValue]:
    """A row as attributes."""
    return [KeyValue(key=name, value=any_value(value)) for name, value in row.items()]


def request_of(signal: Signal, rows: Rows) -> bytes:
    """A request with a record for each row."""
    if signal == "logs":
        logs = ExportLogsServiceRequest()
        records: Any = logs.resource_logs.add().scope_logs.add().log_records
        request: Any = logs
    else:
        request = ExportTraceServiceRequest()
        records = request.resource_spans.add().scope_spans.add().spans
    for row in rows:
        records.add(attributes=attributes(row))
    return bytes(request.SerializeToString())


class OtlpHarness:
    """An exporter without an SDK; see `Harness`."""

    tells: ClassVar[bool] = True
    keeps: ClassVar[bool] = False
    finite: ClassVar[bool] = False
    slow: ClassVar[bool] = False
    signal: ClassVar[Signal] = "logs"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._channel: grpc.aio.Channel | None = None
        self.listen = self._address()

    def _address(self) -> str:
        return f"127.0.0.1:{free_port()}"

    async def start(self) -> None:
        """Open a channel; it connects once somebody listens."""
        wait = [(f"grpc.{name}_reconnect_backoff_ms", 50) for name in ("min", "initial", "max")]
        self._channel = grpc.aio.insecure_channel(self.listen, options=wait)

    async def close(self) -> None:
        """Close it."""
        assert self._channel is not None
        await self._channel.close()

    def source(self) -> OtlpSource:
        """A receiver on the same address each time."""
        return OtlpSource(OtlpTable(listen=self.listen))

    async def feed(self, rows: Rows) -> Answer:
        """Export all rows in one call."""
        return await self.feed_raw(request_of(self.signal, rows))

    async def feed_raw(self, data: bytes) -> Answer:
        """Export bytes; a call that found nobody was not answered."""
        assert self._channel is not None
        service, method, _, _ = METHODS[self.signal]
        export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{service}/{method}")
        try:
            answer = await export(data, wait_for_ready=True, timeout=20)
        except asyncio.CancelledError:
            return SILENT
        except grpc.aio.AioRpcError as error:
            text = repr((error.details(), error.initial_metadata(), error.trailing_metadata()))
            told = dict(error.trailing_metadata() or ())
            if error.code() is grpc.StatusCode.UNAVAILABLE and "grpc-status-details-bin" in told:
                info = RetryInfo()
                assert Status.FromString(told["grpc-status-details-bin"]).details[0].Unpack(info)
                assert info.retry_delay.ToNanoseconds() > 0
                return Answer(kind="wait", text=text)
            refused = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
            return Answer(kind="refused", text=text) if error.code() in refused else SILENT
        return Answer(kind="ok", text=repr(answer))

    async def end(self) -> None:
        """Nothing ends a receiver."""

    def spoiled(self) -> list[OtlpSource]:
        """An address that others can reach; nothing was exported yet."""
        return [OtlpSource(OtlpTable(listen="192.0.2.1:4317"))]

    def hostile(self) -> list[bytes]:
        """Requests that are none, and records that no exporter would write."""
        canary = CANARY
        whole = request_of(self.signal, [{"who": canary, "n": 1}])
        rows: Rows = [{"n": canary, "t": canary, "x": canary, "ok": canary}, {"who": canary * 1000}, {"n": 2.5}]
        deep = b""
        for _ in range(500):
            deep = _field(5, _field(1, deep))  # an array value in an array value
        deepest = _field(1, _field(2, _field(2, _field(6, _field(1, canary.encode()) + _field(2, deep)))))
        return [
            whole[:-3],
            whole + whole[:5],
            whole.replace(canary.encode(), b"\xff" * len(canary)),
            request_of(self.signal, rows),
            request_of(self.signal, [{"n": 10**18, "t": "9999-01-01", canary: canary}]),
            _field(1, _field(2, _field(2, b"") * 100_000)),
            deepest,
            canary.encode() * 400_000,  # longer than the limit
            b"\x0a\xff\xff\xff\xff\x7f" + canary.encode(),
        ]


def _field(number: int, data: bytes) -> bytes:
    """One length-delimited field of protobuf."""
    size, left = b"", len(data)
    while left > 127:
        size += bytes([left & 127 | 128])
        left >>= 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + data


class OtlpTracesHarness(OtlpHarness):
    """The same with spans."""

    signal: ClassVar[Signal] = "traces"


class OtlpUnixHarness(OtlpHarness):
    """Logs over a Unix socket."""

    def _address(self) -> str:
        return f"unix:{self._folder}/otlp.sock"


HARNESSES: dict[str, type] = {
    "otlp-logs": OtlpHarness,
    "otlp-traces": OtlpTracesHarness,
    "otlp-unix": OtlpUnixHarness,
}
