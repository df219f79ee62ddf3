"""The collector's figures, for Prometheus: counts, latencies and depths.

Place: beside the event's path. Most counts are read off the events of the catalogue, so that no room counts twice; the
doors add durations and depths.
Invariants: a label's values come from this code (methods, outcomes, refusals, codes), never from a caller, an agent or
a payload, so their number is bounded and nothing is told of a person or a key. With several processes each writes its
own files below PROMETHEUS_MULTIPROC_DIR, which must be set before this module is imported; a page adds them up. Depths
are kept here and written there a few times a second, however often they change: each write costs microseconds a call.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from cloud_collector.figures import FOLDER_VARIABLE
from cloud_collector.telemetry import Event, listen

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REGISTRY = CollectorRegistry()
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_RELEASES = Counter("collector_releases", "Releases by outcome", ["outcome"], registry=_REGISTRY)
_REFUSED = Counter("collector_releases_refused", "Refused releases by reason", ["refusal"], registry=_REGISTRY)
_CALLS_REFUSED = Counter(
    "collector_calls_refused", "Calls refused whole, by reason", ["method", "refusal"], registry=_REGISTRY
)
_CALLS_FAILED = Counter("collector_calls_failed", "Calls that met something unforeseen", registry=_REGISTRY)
_CALL_SECONDS = Histogram(
    "collector_call_seconds", "A call, from its message to its answer", ["method"], buckets=_SECONDS, registry=_REGISTRY
)
_RECEIVING = Gauge(
    "collector_calls_open", "Calls being received or in work", registry=_REGISTRY, multiprocess_mode="livesum"
)
_IN_WORK = Gauge(
    "collector_calls_in_work", "Calls in work, by method", ["method"], registry=_REGISTRY, multiprocess_mode="livesum"
)
_WAITING = Gauge(
    "collector_releases_waiting", "Releases waiting for a commit", registry=_REGISTRY, multiprocess_mode="livesum"
)
_SEALED = Counter("collector_releases_sealed", "Releases moved to the lake", registry=_REGISTRY)
_SEAL_SECONDS = Histogram(
    "collector_seal_seconds", "A pass of the sealer", buckets=(*_SECONDS, 30.0, 60.0), registry=_REGISTRY
)
_SEALED_AT = Gauge(
    "collector_last_seal_timestamp_seconds",
    "When the last pass of the sealer ended without a failure",
    registry=_REGISTRY,
    multiprocess_mode="max",
)
_CERTIFICATE_ENDS = Gauge(
    "collector_certificate_ends_timestamp_seconds",
    "When a certificate ends that is renewed by hand",
    ["certificate"],
    registry=_REGISTRY,
    multiprocess_mode="mostrecent",
)
_EVENTS = {
    event: Counter(f"collector_{event.value}", text, registry=_REGISTRY)
    for event, text in {
        Event.AGENT_FENCED: "Agents that sent two different releases for one window",
        Event.LANDING_FAILED: "Commits that the disk refused",
        Event.SEAL_FAILED: "Passes of the sealer that failed",
        Event.AGENT_REINSTALLED: "Agents that came with a new journal",
        Event.AGENT_BEHIND: "Agents that had sent more than a restored backup knew",
        Event.UPKEEP_FAILED: "Rounds of retention and compaction that failed",
        Event.PLANS_UNREAD: "Looks for plans of other machines that failed",
        Event.DENY_LIST_UNUSABLE: "Times that the deny list could not be read",
        Event.TLS_FILES_UNUSABLE: "Times that certificate, key and CA changed and did not fit",
        Event.AUTHORITY_UNUSABLE: "Certificates that should have been issued and could not be",
    }.items()
}
_WORKERS_DIED = Counter("collector_workers_died", "Processes that ended without being told to", registry=_REGISTRY)
DEPTHS_S = 0.25
"""A depth is written no later than this after it changed."""
_METHODS = frozenset({"PushReleases", "SayHead", "ListPlans", "Estimate", "Coverage", "GetTrust", "Enroll", "Renew"})


class _Depths:
    """Gauges that change with every call; of one event loop at a time."""

    def __init__(self) -> None:
        self._now: dict[Gauge, float] = {}
        self._changed: set[Gauge] = set()
        self._writes: asyncio.AbstractEventLoop | None = None
        """The loop that will write what has changed."""

    def add(self, gauge: Gauge, by: float) -> None:
        """Change a depth."""
        self._now[gauge] = self._now.get(gauge, 0.0) + by
        self._changed.add(gauge)
        loop = asyncio.get_running_loop()
        if self._writes is not loop:
            self._writes = loop
            loop.call_later(DEPTHS_S, self.write)

    def write(self) -> None:
        """Write what has changed."""
        changed, self._changed, self._writes = self._changed, set(), None
        for gauge in changed:
            gauge.set(self._now[gauge])


_DEPTHS = _Depths()


def start() -> None:
    """Count from now on what the events say; doing it again changes nothing."""
    listen(_count)


def page() -> bytes:
    """All figures as Prometheus reads them, of every process if there are several; this one's depths are of now."""
    _DEPTHS.write()
    if FOLDER_VARIABLE not in os.environ:
        return generate_latest(_REGISTRY)
    together = CollectorRegistry()
    MultiProcessCollector(together)  # type: ignore[no-untyped-call]  # the library leaves these two bare
    return generate_latest(together)


def forget(pid: int) -> None:
    """Leave a process that ended out of the depths; what it counted stays counted."""
    if FOLDER_VARIABLE in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]  # as above


@contextmanager
def timed_call(method: str) -> Iterator[None]:
    """Count a call as in work while the body runs, and time it."""
    depth, seconds = _of_method(_method(method))
    began = time.perf_counter()
    _DEPTHS.add(depth, 1)
    try:
        yield
    finally:
        _DEPTHS.add(depth, -1)
        seconds.observe(time.perf_counter() - began)


@contextmanager
def timed_seal() -> Iterator[None]:
    """Time a pass of the sealer; one that fails is timed, and is not the last good one."""
    began = time.perf_counter()
    try:
        yield
        _SEALED_AT.set_to_current_time()
    finally:
        _SEAL_SECONDS.observe(time.perf_counter() - began)


@contextmanager
def waiting(releases: int) -> Iterator[None]:
    """Count releases as waiting for their commit while the body runs."""
    _DEPTHS.add(_WAITING, releases)
    try:
        yield
    finally:
        _DEPTHS.add(_WAITING, -releases)


def opened(by: int) -> None:
    """Say that so many calls more, or fewer, are being received or in work in this process."""
    _DEPTHS.add(_RECEIVING, by)


def certificate_ends(kind: str, moment_s: float) -> None:
    """Say when a certificate ends, in seconds since 1970."""
    _CERTIFICATE_ENDS.labels(kind).set(moment_s)


@cache
def _of_method(label: str) -> tuple[Gauge, Histogram]:
    """Looked up once: there are as many as methods of ours, and one."""
    return _IN_WORK.labels(label), _CALL_SECONDS.labels(label)


def _method(name: str) -> str:
    """A method's short name if it is one of ours: a caller may ask for any."""
    short = name.rpartition("/")[2]
    return short if short in _METHODS else "other"


def _count(event: Event, fields: dict[str, str | float]) -> None:
    match event:
        case Event.RELEASE_ACCEPTED:
            _RELEASES.labels("accepted").inc(float(fields.get("accepted", 0)))
            _RELEASES.labels("duplicate").inc(float(fields.get("duplicates", 0)))
        case Event.RELEASE_REFUSED:
            _RELEASES.labels("refused").inc()
            _REFUSED.labels(fields["refusal"]).inc()
        case Event.REQUEST_REFUSED:
            _CALLS_REFUSED.labels(_method(str(fields["method"])), fields["refusal"]).inc()
        case Event.REQUEST_FAILED:
            _CALLS_FAILED.inc()
        case Event.RELEASES_SEALED:
            _SEALED.inc(float(fields["releases"]))
        case Event.WORKER_DIED:
            _WORKERS_DIED.inc()
        case _:
            if event in _EVENTS:
                _EVENTS[event].inc()
