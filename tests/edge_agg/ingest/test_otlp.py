"""OTLP beyond the suite of all sources: the real SDK as client, what columns mean, and the bounds."""

from __future__ import annotations

import asyncio
import logging
import stat
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from edge_agg.config.tables import OtlpTable
from edge_agg.errors import JournalFailed, SourceUnreadable
from edge_agg.ingest import otlp_service
from edge_agg.ingest.otlp import OtlpSource
from edge_agg.ingest.otlp_columns import MAX_NAMES, Columns
from edge_agg.ingest.otlp_service import MAX_MESSAGE_BYTES, METHODS
from tests.conformance.broker import free_port
from tests.conformance.harness import make_rows
from tests.conformance.harness_otlp import OtlpHarness, any_value, request_of
from tests.conformance.inlet import FakeInlet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame

LOGS = f"/{METHODS['logs'][0]}/Export"
NS = 1_357_000_000_000_000_000


@contextmanager
def _receiving(inlet: FakeInlet) -> Iterator[str]:
    """A receiver in a thread of its own, as a blocking SDK needs; gives its address."""
    listen = f"127.0.0.1:{free_port()}"
    ready = threading.Event()
    ends: list[Callable[[], object]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(OtlpSource(OtlpTable(listen=listen)).deliver(inlet, stop, drain=False))
        await inlet.wait_until(lambda: bool(inlet.current))
        ready.set()
        await task

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(20)
    try:
        yield listen
    finally:
        ends[0]()
        thread.join()


SPAN: Mapping[str, ColumnType] = {
    "time": "timestamp",
    "start_time": "timestamp",
    "name": "string",
    "kind": "string",
    "duration_ms": "float",
    "status_code": "string",
    "trace_id": "string",
    "parent_span_id": "string",
    "http_route": "string",
    "http_response_status_code": "integer",
    "service_name": "string",
    "cached": "boolean",
}


@pytest.mark.slow
def test_spans_of_the_sdk_become_rows() -> None:
    """What an application says to OpenTelemetry's own SDK arrives, as the table of fields has it."""
    inlet = FakeInlet(columns=SPAN)
    with _receiving(inlet) as listen:
        exporter = OTLPSpanExporter(endpoint=f"http://{listen}", insecure=True, compression=grpc.Compression.Gzip)
        provider = TracerProvider(resource=Resource.create({"service.name": "shop", "cached": False}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("parent", kind=SpanKind.SERVER, start_time=NS) as parent:
            parent.set_attributes({"http.route": "/cart/{id}", "http.response.status_code": 503, "cached": True})
            parent.set_status(StatusCode.ERROR)
            tracer.start_span("child", start_time=NS).end(NS + 2_500_000)
        provider.shutdown()
    child, parent_row = inlet.rows
    assert child["name"] == "child"
    assert child["duration_ms"] == 2.5
    assert child["kind"] == "internal"
    assert child["status_code"] == "unset"
    assert child["service_name"] == "shop"
    assert child["cached"] is False
    assert child["http_route"] is None
    assert child["start_time"] == datetime.fromtimestamp(NS / 1e9, UTC)
    assert (child["time"] - child["start_time"]).total_seconds() == 0.0025
    assert child["trace_id"] == parent_row["trace_id"] == f"{parent.get_span_context().trace_id:032x}"
    assert child["parent_span_id"] == f"{parent.get_span_context().span_id:016x}"
    assert parent_row["kind"] == "server"
    assert parent_row["status_code"] == "error"
    assert parent_row["http_route"] == "/cart/{id}"
    assert parent_row["http_response_status_code"] == 503
    assert parent_row["cached"] is True


@pytest.mark.slow
def test_the_sdk_waits_for_a_full_agent() -> None:
    """The SDK's own exporter takes the answer of a full agent for what it is, and loses nothing."""
    inlet = FakeInlet(columns={"name": "string"}, retry_s=0.2)
    inlet.fill()
    with _receiving(inlet) as listen:
        provider = TracerProvider()
        exporter = OTLPSpanExporter(endpoint=f"http://{listen}", insecure=True)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        ending = threading.Thread(target=provider.get_tracer("test").start_span("late").end)
        ending.start()
        while not inlet.refused:
            assert ending.is_alive()
        inlet._full = False
        ending.join()
        provider.shutdown()
    assert [row["name"] for row in inlet.rows] == ["late"]


@pytest.mark.slow
def test_logs_of_the_sdk_become_rows() -> None:
    """The same for log records: body, severity, attributes."""
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor

    columns: Mapping[str, ColumnType] = {
        "time": "timestamp",
        "severity_text": "string",
        "severity_number": "integer",
        "body": "string",
        "user": "string",
        "service_name": "string",
    }
    inlet = FakeInlet(columns=columns)
    with _receiving(inlet) as listen:
        provider = LoggerProvider(resource=Resource.create({"service.name": "shop"}))
        exporter = OTLPLogExporter(endpoint=f"http://{listen}", insecure=True)
        provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
        logger = provider.get_logger("test")
        logger.emit(timestamp=NS, severity_text="WARN", body="out of stock", attributes={"user": "u1"})
        logger.emit(observed_timestamp=NS, attributes={"user": "u2", "unasked": "x"})
        provider.shutdown()
    at = datetime.fromtimestamp(NS / 1e9, UTC)
    assert [row["user"] for row in inlet.rows] == ["u1", "u2"]
    assert [row["time"] for row in inlet.rows] == [at, at]
    assert inlet.rows[0]["severity_text"] == "WARN"
    assert [row["body"] for row in inlet.rows] == ["out of stock", None]
    assert [row["service_name"] for row in inlet.rows] == ["shop", "shop"]


def _log_frame(columns: Mapping[str, ColumnType], *records: dict[str, Any], **around: Any) -> Frame:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    scope = resource.scope_logs.add()
    for holder, place in ((resource.resource, "resource"), (scope.scope, "scope")):
        for key, value in around.get(place, {}).items():
            holder.attributes.add(key=key, value=any_value(value))
    for record in records:
        log = scope.log_records.add(**{k: v for k, v in record.items() if k != "attributes"})
        for key, value in record.get("attributes", {}).items():
            log.attributes.add(key=key, value=any_value(value))
    return Columns("logs", columns).frame_of(request)


def test_the_nearest_attribute_counts() -> None:
    """A record's own attribute hides its scope's, and that hides the resource's; an empty one is still a value."""
    around = {"resource": {"a": "r", "b": "r", "c.d": "r"}, "scope": {"a": "s", "b": "s"}}
    frame = _log_frame({"a": "string", "b": "string", "c_d": "string"}, {"attributes": {"a": ""}}, {}, **around)
    assert frame.batch.to_pylist() == [{"a": "", "b": "s", "c_d": "r"}, {"a": "s", "b": "s", "c_d": "r"}]


@pytest.mark.parametrize(
    ("wanted", "value", "typed"),
    [
        ("string", "x", "x"),
        ("string", 1, None),
        ("string", "x" * 5000, None),
        ("float", 1, 1.0),
        ("float", 1.5, 1.5),
        ("float", "1.5", 1.5),
        ("float", True, None),
        ("integer", 2**62 + 1, 2**62 + 1),
        ("integer", 2.0, 2),
        ("integer", 2.5, None),
        ("integer", "x", None),
        ("boolean", True, True),
        ("boolean", "false", False),
        ("boolean", 1, None),
        ("timestamp", "2013-01-01T00:00:00Z", datetime(2013, 1, 1, tzinfo=UTC)),
        ("timestamp", 5, None),
    ],
)
def test_a_value_of_the_wrong_type_costs_its_record_alone(wanted: ColumnType, value: Any, typed: Any) -> None:
    """As in every other source: kept as the type asked for, or its row is rejected and counted; never made null."""
    beside: list[list[dict[str, Any]]] = [[], [{"attributes": {}}], [{"attributes": {"a": value}}]]
    for neighbours in beside:
        frame = _log_frame({"a": wanted}, *neighbours, {"attributes": {"a": value}})
        kept = [typed for row in neighbours if row["attributes"]] + [typed] if typed is not None else []
        assert [row["a"] for row in frame.batch.to_pylist() if row["a"] is not None] == kept
        assert frame.batch.num_rows + frame.rejected == len(neighbours) + 1


def test_numbers_of_both_kinds_stand_in_one_column() -> None:
    """Whole and broken numbers, and text, in one column of one request."""
    rows = [{"attributes": {"a": value}} for value in (1, 2.5, "3.5", None)]
    assert _log_frame({"a": "float"}, *rows[:2]).batch.column(0).to_pylist() == [1.0, 2.5]
    assert _log_frame({"a": "float"}, *rows).batch.column(0).to_pylist() == [1.0, 2.5, 3.5, None]


def test_times_that_are_none_are_null_or_rejected() -> None:
    """0 is no time; what lies after 2262 or out of the years that decode takes is rejected; nothing wraps."""
    times = [0, NS, 2**63, 2**64 - 1, 1]
    frame = _log_frame({"observed_time": "timestamp"}, *[{"observed_time_unix_nano": at} for at in times])
    at = datetime.fromtimestamp(NS / 1e9, UTC)
    assert frame.batch.column(0).to_pylist() == [None, at, datetime(1970, 1, 1, tzinfo=UTC)]
    assert frame.rejected == 2


def test_a_kind_beyond_the_list_is_rejected() -> None:
    """Enums are open on the wire; a number without a name is no text."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for kind in (0, 5, 6, -1):
        scope.spans.add(kind=kind)
    frame = Columns("traces", {"kind": "string"}).frame_of(request)
    assert frame.batch.column(0).to_pylist() == ["unspecified", "consumer"]
    assert frame.rejected == 2
    assert Columns("traces", {"kind": "integer"}).frame_of(request).batch.column(0).to_pylist() == [0, 5, 6, -1]


def test_names_of_attributes_do_not_fill_the_memory() -> None:
    """However many names there are, few are remembered, and those beyond are still found."""
    columns = Columns("logs", {"wanted_1": "string"})
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    for k in range(MAX_NAMES + 10):
        record.attributes.add(key=f"noise.{k}", value=any_value("x"))
    record.attributes.add(key="wanted.1", value=any_value("here"))
    assert columns.frame_of(request).batch.to_pylist() == [{"wanted_1": "here"}]
    assert len(columns._known) == MAX_NAMES


@pytest.mark.parametrize(
    ("listen", "columns"),
    [
        ("0.0.0.0:4317", {}),
        ("example.org:4317", {}),
        ("127.0.0.1:4317", {"time": "string"}),
        ("127.0.0.1:4317", {"kind": "float"}),
    ],
)
def test_a_config_that_cannot_work_is_refused_at_start(listen: str, columns: Mapping[str, ColumnType]) -> None:
    """Other machines cannot connect, and a field is asked for as what it is."""
    OtlpSource(OtlpTable(listen="127.0.0.1:4317")).check({"time": "timestamp", "kind": "integer", "x": "float"})
    with pytest.raises(SourceUnreadable):
        OtlpSource(OtlpTable(listen=listen)).check(columns)


def _with_receiver(tmp_path: Path, inlet: FakeInlet, scene: Callable[[OtlpHarness, grpc.aio.Channel], Any]) -> None:
    async def whole() -> None:
        harness = OtlpHarness(tmp_path)
        await harness.start()
        stop = asyncio.Event()
        task = asyncio.create_task(harness.source().deliver(inlet, stop, drain=False))
        await inlet.wait_until(lambda: bool(inlet.current))
        try:
            async with grpc.aio.insecure_channel(harness.listen) as channel:
                await scene(harness, channel)
        finally:
            stop.set()
            await harness.close()
            await asyncio.wait([task])

    asyncio.run(whole())


def test_a_bomb_is_refused_and_the_next_is_taken(tmp_path: Path) -> None:
    """A request that decompresses beyond the limit is refused by gRPC before it is unpacked whole."""
    inlet = FakeInlet()

    async def scene(harness: OtlpHarness, channel: grpc.aio.Channel) -> None:
        export: Any = channel.unary_unary(LOGS)
        for packed in (grpc.Compression.Gzip, grpc.Compression.NoCompression):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await export(b"\0" * (MAX_MESSAGE_BYTES + 1), compression=packed)
            assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        answer = await export(request_of("logs", make_rows(3)), compression=grpc.Compression.Gzip)
        assert answer == b""
        assert len(inlet.rows) == 3

    _with_receiver(tmp_path, inlet, scene)


def test_rejected_records_are_told_in_numbers_alone(tmp_path: Path) -> None:
    """partial_success says how many, and a code."""
    rows = make_rows(3)
    rows[1]["n"] = "Karina-Canary"

    async def scene(harness: OtlpHarness, channel: grpc.aio.Channel) -> None:
        export: Any = channel.unary_unary(LOGS, response_deserializer=ExportLogsServiceResponse.FromString)
        answer = await export(request_of("logs", rows))
        assert answer.partial_success.rejected_log_records == 1
        assert answer.partial_success.error_message == "wrong_type"

    _with_receiver(tmp_path, FakeInlet(), scene)


def test_no_more_is_read_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls beyond the bound wait unread, and are answered once there is room. Mutant: a bound of a hundred."""
    monkeypatch.setattr(otlp_service, "CALLS", 2)

    def scene_of(inlet: FakeInlet, held: int) -> Callable[[OtlpHarness, grpc.aio.Channel], Any]:
        async def scene(harness: OtlpHarness, channel: grpc.aio.Channel) -> None:
            inlet.hold()
            export: Any = channel.unary_unary(LOGS)
            calls = [asyncio.ensure_future(export(request_of("logs", make_rows(1, first=n)))) for n in range(8)]
            await inlet.wait_until(lambda: inlet.held >= held)
            await asyncio.sleep(0.1)
            assert inlet.held == held
            inlet.resume()
            await asyncio.gather(*calls)
            assert sorted(row["n"] for row in inlet.rows) == list(range(8))

        return scene

    inlet = FakeInlet()
    _with_receiver(tmp_path, inlet, scene_of(inlet, 2))
    monkeypatch.setattr(otlp_service, "CALLS", 100)
    inlet = FakeInlet()
    _with_receiver(tmp_path, inlet, scene_of(inlet, 8))


def test_what_only_the_agent_can_mend_ends_the_source(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A journal that fails is no business of the exporter: it is told to come again, and the agent hears of it."""
    caplog.set_level(logging.DEBUG)

    class Broken(FakeInlet):
        async def take(self, frame: Frame) -> None:
            raise JournalFailed("Karina-Canary")

    async def whole() -> None:
        harness = OtlpHarness(tmp_path)
        await harness.start()
        task = asyncio.create_task(harness.source().deliver(Broken(), asyncio.Event(), drain=False))
        answer = await harness.feed(make_rows(1))
        assert answer.kind == "wait"
        assert "Canary" not in answer.text
        with pytest.raises(JournalFailed):
            await task
        await harness.close()

    asyncio.run(whole())
    assert "Canary" not in caplog.text


def test_a_socket_is_for_its_owner_and_group_and_goes_with_the_source(tmp_path: Path) -> None:
    """Mode 0660 from the start; a socket that a killed agent left behind is in nobody's way."""
    path = tmp_path / "otlp.sock"

    async def whole() -> None:
        for _ in range(2):
            inlet, stop = FakeInlet(), asyncio.Event()
            source = OtlpSource(OtlpTable(listen=f"unix:{path}"))
            task = asyncio.create_task(source.deliver(inlet, stop, drain=False))
            await inlet.wait_until(lambda inlet=inlet: bool(inlet.current))
            assert stat.S_IMODE(Path(path).stat().st_mode) == 0o660  # noqa: ASYNC240 - a test
            stop.set()
            await task
            assert not Path(path).exists()  # noqa: ASYNC240 - a test

    asyncio.run(whole())
