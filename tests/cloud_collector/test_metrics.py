"""The figures, the page for those who watch, and the log: what they tell, and what they never do."""

from __future__ import annotations

import asyncio
import io
import json
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloud_collector import client, metrics, telemetry, tracing
from cloud_collector.errors import ConfigInvalid
from cloud_collector.monitor import Monitor
from cloud_collector.server import serve
from cloud_collector.telemetry import Event, Throttle, emit
from edge_agg.contract.refusal import Refusal
from tests.cloud_collector.front import push, release
from tests.cloud_collector.test_server import settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CANARY = "canary-4711"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    tracing.start(None)


def figures() -> dict[str, float]:
    """Every sample of the page by its name and labels."""
    lines = metrics.page().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


async def watched(folder: Path) -> dict[str, tuple[int, str]]:
    """Run a collector with a monitor, push to it, and read its pages."""
    addresses: list[str] = []
    stop, up = asyncio.Event(), asyncio.Event()
    config = settings(folder, "jfk", CANARY, monitor="127.0.0.1:0")

    async def use() -> dict[str, tuple[int, str]]:
        try:
            await up.wait()
            monitored, address = addresses
            await asyncio.to_thread(_use, address)
            paths = ("/metrics", "/ready", "/live", "/else")
            return {path: await asyncio.to_thread(get, monitored, path) for path in paths}
        finally:
            stop.set()

    using = asyncio.create_task(use())

    def ready(address: str) -> None:
        addresses.append(address)
        up.set()

    await serve(config, ready=ready, monitored=addresses.append, stop=stop)
    return await using


def _use(address: str) -> None:
    push(address, release("jfk", 0), release("jfk", 0), release(CANARY, 0))
    push(address, release("jfk", 0, 5))
    with client.connect(address) as c:
        c.estimate("flights", "departures", by=["carrier"])


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def leaks(page: str) -> list[str]:
    """Label values that are not out of this code: an agent's, a tenant's, a plan's, a key's."""
    ours = {*metrics._METHODS, *Refusal, "other", "accepted", "duplicate", "refused", "server", "ca", "issuer"}
    return [
        value
        for name, value in re.findall(r'(\w+)="([^"]*)"', page)
        if value not in ours and not (name == "le" and re.fullmatch(r"[0-9.]+|\+Inf", value))
    ]


def test_the_figures_count_and_name_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was pushed, refused and asked is counted once; no label is a name that came from outside."""
    before = figures()
    pages = asyncio.run(watched(tmp_path))
    after = figures()

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown('collector_releases_total{outcome="accepted"}') == 2
    assert grown('collector_releases_total{outcome="duplicate"}') == 1
    assert grown('collector_releases_total{outcome="refused"}') == 1
    assert grown('collector_releases_refused_total{refusal="conflict"}') == 1
    assert grown("collector_agent_fenced_total") == 1
    assert grown("collector_releases_sealed_total") == 2
    assert grown('collector_call_seconds_count{method="PushReleases"}') == 2
    assert grown('collector_call_seconds_count{method="Estimate"}') == 1
    assert after["collector_releases_waiting"] == after["collector_calls_open"] == 0
    assert pages["/ready"] == (200, "ready\n")
    assert pages["/live"] == (200, "live\n")
    assert pages["/else"][0] == 404
    assert pages["/metrics"][0] == 200
    assert CANARY not in pages["/metrics"][1]
    assert leaks(pages["/metrics"][1]) == []
    monkeypatch.setattr(metrics, "_method", lambda name: name)  # mutant: whatever was asked for is a label
    asyncio.run(_called(CANARY))
    assert set(leaks(metrics.page().decode())) == {CANARY}
    for metric in (metrics._IN_WORK, metrics._CALL_SECONDS):
        metric.remove(CANARY)


async def _called(method: str) -> None:
    with metrics.timed_call(method):
        pass


def test_depths_are_written_now_and_then_and_are_never_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand changes are a few writes; what a depth was last is written by itself, in each loop that changes it.

    Mutants: a write at each change; a write that is not asked for again after the first; or not in a second loop.
    """
    written: list[float] = []
    monkeypatch.setattr(metrics, "DEPTHS_S", 0.01)
    monkeypatch.setattr(metrics._RECEIVING, "set", written.append)

    async def change(by: int) -> None:
        for _ in range(1000):
            metrics.opened(by)
        for deadline in range(500):
            if written and written[-1] == metrics._DEPTHS._now[metrics._RECEIVING]:
                break
            assert deadline < 499, "the last change was never written"
            await asyncio.sleep(0.01)

    for by in (1, -1):
        asyncio.run(change(by))
    assert 0 < len(written) < 200


def test_an_unknown_method_is_one_label() -> None:
    """Callers cannot make series: whatever method they ask for is `other`."""
    metrics.start()
    for n in range(100):
        emit(Event.REQUEST_REFUSED, method=f"/a/{n}", refusal="forbidden")
    names = [name for name in figures() if name.startswith("collector_calls_refused_total")]
    assert [name for name in names if "other" in name] == [
        'collector_calls_refused_total{method="other",refusal="forbidden"}'
    ]


def test_not_ready_is_said() -> None:
    """A load balancer sees 503 before the first call is taken and from the moment of the stop."""

    async def run() -> tuple[int, str]:
        async with Monitor(lambda: False).listening("127.0.0.1:0") as address:
            assert address is not None
            return await asyncio.to_thread(get, address, "/ready")

    assert asyncio.run(run())[0] == 503


def test_a_rude_watcher_is_let_go() -> None:
    """An endless request, another method and one connection too many get nothing, and the next is answered."""

    async def said(address: str, data: bytes) -> bytes:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def run() -> None:
        async with Monitor(lambda: True).listening("127.0.0.1:0") as address:
            assert address is not None
            assert await said(address, b"GET /" + b"x" * 100_000) == b""
            assert (await said(address, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
            assert (await said(address, b"GET /live HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 200")

    asyncio.run(run())


def test_a_taken_monitor_address_is_a_config_error(tmp_path: Path) -> None:
    """Said at start, by its field."""

    async def run() -> None:
        async with Monitor(lambda: True).listening("127.0.0.1:0") as address:
            config = settings(tmp_path, monitor=address)
            with pytest.raises(ConfigInvalid, match=r"\$\.monitor\.listen"):
                await serve(config, stop=asyncio.Event())

    asyncio.run(run())


def test_a_flood_of_refusals_does_not_fill_the_disk() -> None:
    """Of what callers cause at will so many lines a second are written, and how many were not is told."""
    now = [0.5]
    throttle = Throttle(3, monotonic=lambda: now[0])
    assert [throttle.passes(Event.REQUEST_REFUSED) for _ in range(10)] == [0, 0, 0, *[None] * 7]
    assert throttle.passes(Event.RELEASE_REFUSED) == 0
    now[0] = 1.5
    assert [throttle.passes(Event.REQUEST_REFUSED) for _ in range(4)] == [7, 0, 0, None]


def test_lines_of_one_call_share_its_id() -> None:
    """Every event of a call carries the id that its failure is answered with; another call has another."""
    sink = io.StringIO()
    telemetry.configure(sink)

    async def call() -> str:
        found = telemetry.begin_request()
        assert telemetry.begin_request() == found
        emit(Event.QUERY_ANSWERED, bytes=1, duration_s=0.0)
        return found

    async def run() -> list[str]:
        return await asyncio.gather(*(asyncio.create_task(call()) for _ in range(2)))

    try:
        ids = asyncio.run(run())
    finally:
        telemetry._LOGGER.handlers[:] = []
        telemetry._LOGGER.propagate = True
    lines = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [line["request_id"] for line in lines] == ids
    assert len(set(ids)) == 2


def test_spans_are_off_until_asked_for_and_name_nobody() -> None:
    """Without the config no span is made; with it a call is one span, with a method and no more."""
    exporter = InMemorySpanExporter()
    with tracing.span("PushReleases"):
        pass
    tracing.start(None, exporter=exporter)
    with pytest.raises(ValueError, match="canary"), tracing.span("PushReleases"):
        raise ValueError(CANARY)
    (span,) = exporter.get_finished_spans()
    assert (span.name, dict(span.attributes or {})) == ("PushReleases", {"failed": True})
    assert CANARY not in span.to_json()
