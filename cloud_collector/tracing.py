"""Spans of calls for OpenTelemetry, if the extra `tracing` is installed and the config asks for them.

Place: beside the event's path; a door opens a span for each call.
Invariants: off by default, and then free but for one comparison; a span has a method's name, its duration and whether
it failed: never who called, nor anything of a request or an error's text.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloud_collector.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

_tracer: Tracer | None = None


def start(endpoint: str | None, *, exporter: SpanExporter | None = None) -> None:
    """Send spans to an OTLP collector from now on, or nowhere if there is no address.

    Raises:
        ConfigInvalid: the extra is not installed.
    """
    global _tracer  # noqa: PLW0603  # one tracer to a process, as the library has it
    if endpoint is None and exporter is None:
        _tracer = None
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor  # noqa: PLC0415
    except ImportError:
        raise ConfigInvalid("$.monitor.traces: needs the extra `tracing` of this package") from None
    provider = TracerProvider(resource=Resource.create({"service.name": "cloud-collector"}))
    if exporter is None:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    else:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    _tracer = provider.get_tracer("cloud_collector")


@contextmanager
def span(name: str) -> Iterator[None]:
    """Time the body as a span of this name, where spans are asked for."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as current:
        try:
            yield
        except BaseException:
            current.set_attribute("failed", value=True)
            raise
