"""OpenTelemetry's export calls: what is refused, what is taken, and what the exporter is told.

Place: step 1, under `otlp.py`.
Invariants: an export succeeds only once the inlet has its records safe; an exporter is told to come again exactly where
that can help; no answer holds more than a code and a count; requests are decoded one at a time, and no more are read
than `CALLS`, so that memory is bounded whatever is sent.

| what happens | the exporter is told | and by the protocol |
|---|---|---|
| safe | OK; how many records were rejected, if any were | goes on |
| the agent is full or stops | UNAVAILABLE with RetryInfo | sends the same again |
| it is none of the protocol's messages | INVALID_ARGUMENT | drops it |
| more than `MAX_MESSAGE_BYTES`, decompressed | RESOURCE_EXHAUSTED (by gRPC) | drops it |

The count of rejected records goes to a process of this machine that knows its own records; it never leaves the device.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.code_pb2 import UNAVAILABLE  # type: ignore[import-untyped]
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

from edge_agg.ingest.otlp_columns import Columns
from edge_agg.ingest.push import BodyRefused
from edge_agg.ingest.source import InletFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agg.ingest.otlp_fields import Signal
    from edge_agg.ingest.source import Frame, Inlet

    Context = grpc.aio.ServicerContext[bytes, bytes]

MAX_MESSAGE_BYTES = 4 << 20
"""The largest request, decompressed; gRPC's own limit, and what exporters keep to."""
CALLS = 16
"""Requests that are read and not answered yet."""
READ_S = 10.0
"""How long an exporter may take to send what it began."""
STOPPING_RETRY_S = 1.0
DETAILS = "grpc-status-details-bin"

METHODS: dict[Signal, tuple[str, str, Any, Callable[[int], Any]]] = {
    "logs": (
        "opentelemetry.proto.collector.logs.v1.LogsService",
        "Export",
        logs.ExportLogsServiceRequest,
        lambda rejected: logs.ExportLogsServiceResponse(
            partial_success=logs.ExportLogsPartialSuccess(rejected_log_records=rejected, error_message="wrong_type")
        ),
    ),
    "traces": (
        "opentelemetry.proto.collector.trace.v1.TraceService",
        "Export",
        traces.ExportTraceServiceRequest,
        lambda rejected: traces.ExportTraceServiceResponse(
            partial_success=traces.ExportTracePartialSuccess(rejected_spans=rejected, error_message="wrong_type")
        ),
    ),
}


class Exports:
    """The calls of every signal, over one inlet."""

    def __init__(self, inlet: Inlet) -> None:
        self.failed: asyncio.Future[NoReturn] = asyncio.get_running_loop().create_future()
        """What the inlet raised and no exporter can help: the source ends with it."""
        self.stopping = False
        self._inlet = inlet
        self._room = asyncio.Semaphore(CALLS)
        self._decoding = asyncio.Lock()

    def handler(self, signal: Signal) -> grpc.GenericRpcHandler:
        """The service of one signal.

        To gRPC it is one that is sent a stream, so that a request is read when there is room and not before it.
        """
        service, method, message, answer = METHODS[signal]
        columns = Columns(signal, self._inlet.columns)

        async def export(_: object, context: Context) -> bytes:
            async with self._room:
                data = await _read(context)
                frame = await self._decode(data, message, columns, context)
                if frame.batch.num_rows or frame.rejected:
                    await self._take(frame, context)
            return bytes(answer(frame.rejected).SerializeToString()) if frame.rejected else b""

        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {method: grpc.stream_unary_rpc_method_handler(export)}
        return grpc.method_handlers_generic_handler(service, methods)

    async def _decode(self, data: bytes, message: Any, columns: Columns, context: Context) -> Frame:
        def decode() -> Frame | str:
            try:
                return columns.frame_of(message.FromString(data))
            except DecodeError:
                return "malformed"
            except BodyRefused as refused:
                return refused.code.value

        async with self._decoding:
            frame = await asyncio.to_thread(decode)
        if isinstance(frame, str):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, frame)
        return frame

    async def _take(self, frame: Frame, context: Context) -> None:
        retry_s = STOPPING_RETRY_S
        if not self.stopping:
            try:
                await self._inlet.take(frame)
            except InletFull as full:
                retry_s = full.retry_s
            except Exception as error:  # noqa: BLE001 - passed on; the exporter only hears that it should come again
                if not self.failed.done():
                    self.failed.set_exception(error)
            else:
                return
        await context.abort(grpc.StatusCode.UNAVAILABLE, "full", ((DETAILS, _retry_after(retry_s)),))


async def _read(context: Context) -> bytes:
    """Read the one message of a call."""
    data: object = None
    try:
        async with asyncio.timeout(READ_S):
            data = await context.read()
    except TimeoutError:
        pass
    if not isinstance(data, bytes):
        await context.abort(grpc.StatusCode.CANCELLED, "nothing_sent")
    return data


def _retry_after(seconds: float) -> bytes:
    """What OTLP wants beside UNAVAILABLE: google.rpc.Status, and in it how long to wait, which must not be nothing."""
    info, delay = RetryInfo(), Duration()
    delay.FromNanoseconds(max(1, int(seconds * 1e9)))
    info.retry_delay.CopyFrom(delay)
    status = Status(code=UNAVAILABLE, message="full")
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())
