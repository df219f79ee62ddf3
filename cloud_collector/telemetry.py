"""What the collector says about itself: events as JSON lines, for the people who run it.

Place: beside the event's path; every room that acts may emit, the pure rooms do not.
Invariants: every event is declared in :class:`Event`; a line is written per batch or decision, never per raw event; and
no field carries anything out of a payload (names of tenants, agents and plans, counts, codes and durations only). What
a caller can cause at will is written so many times a second and no more, and how often it was not is counted; it names
the caller by the id of their certificate or token, or by their address if they showed neither.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    Listener = Callable[["Event", dict[str, str | float]], None]


class Event(StrEnum):
    """Every event there is, named `noun_past_verb`; the comment lists its fields."""

    COLLECTOR_STARTED = "collector_started"
    """The server takes calls. Fields: listen, plans."""
    DOOR_OPENED = "door_opened"
    """Callers without a certificate are listened to as well. Fields: listen."""
    COLLECTOR_STOPPED = "collector_stopped"
    """The server has answered its last call and closed its stores."""
    PLAN_REGISTERED = "plan_registered"
    """A plan may receive releases from now on. Fields: plan, version, plan_hash, nodes."""
    RELEASE_ACCEPTED = "release_accepted"
    """Releases were committed and may be acked. Fields: accepted, duplicates, plus agent where one call is meant."""
    RELEASE_REFUSED = "release_refused"
    """A release was not taken. Fields: refusal (a code of the contract's table), caller, agent if it was read."""
    AGENT_FENCED = "agent_fenced"
    """An alarm: what an agent sent cannot come from one device that keeps its journal, or a person decided so.
    Fields: tenant, agent, reason (a code), plan where a release is meant."""
    AGENT_UNFENCED = "agent_unfenced"
    """A person lifted a fence. Fields: tenant, agent."""
    AGENT_REINSTALLED = "agent_reinstalled"
    """An alarm: an agent came with a new journal, whose charges start from nothing. Fields: tenant, agent, plan."""
    AGENT_BEHIND = "agent_behind"
    """An alarm: the backup this collector was restored from lacks what the agent's chain goes on from; the windows
    between are lost. Fields: tenant, agent, plan."""
    LANDING_FAILED = "landing_failed"
    """An alarm: the disk refused a commit. Fields: cause (a class name), fatal (1: the landing takes nothing more)."""
    RELEASES_SEALED = "releases_sealed"
    """Releases moved from the landing to the lake. Fields: releases, plan, version."""
    LAKE_TIDIED = "lake_tidied"
    """Files of a table were joined, or leftovers removed. Fields: plan, version, joined, removed (counts of files)."""
    PLAN_LARGE = "plan_large"
    """A release of a plan may be larger than `max_message_bytes` takes; its agent would put it aside. Fields: plan,
    version, bytes (of its values before they are compressed)."""
    PLANS_UNREAD = "plans_unread"
    """Plans that other machines registered cannot be read; those that are known go on. Fields: cause (a class name)."""
    UPKEEP_FAILED = "upkeep_failed"
    """Retention or compaction failed and will be tried again; tables are as they were. Fields: cause."""
    SEAL_FAILED = "seal_failed"
    """Sealing failed and will be tried again; the releases stay in the landing. Fields: cause, plan if one plan's table
    did; of a landed release that is damaged, release (its id in the landing), once a process."""
    QUERY_ANSWERED = "query_answered"
    """An analyst got an answer. Fields: plan, rows, duration_s."""
    REQUEST_REFUSED = "request_refused"
    """A whole call was refused. Fields: method, refusal, caller."""
    CERTIFICATE_ISSUED = "certificate_issued"
    """A device got a certificate. Fields: how (enroll, renew), agent (its SPIFFE id), serial."""
    AUTHORITY_UNUSABLE = "authority_unusable"
    """An alarm: a device should get a certificate and could not be given one. Fields: how, problem, caller."""
    DENY_LIST_UNUSABLE = "deny_list_unusable"
    """An alarm: the list cannot be read, or a line of it; who was denied stays denied. Fields: problem."""
    TLS_FILES_LOADED = "tls_files_loaded"
    """New connections get another certificate, key or CA from now on."""
    TLS_FILES_UNUSABLE = "tls_files_unusable"
    """An alarm: the files changed and do not fit; those from before stay in use. Fields: problem."""
    CERTIFICATE_AGED = "certificate_aged"
    """An alarm: a certificate that is renewed by hand ends soon. Fields: certificate (server, ca, issuer), ends."""
    REQUEST_FAILED = "request_failed"
    """A call ended in an error nobody foresaw. Fields: method, request_id, cause, caller."""
    WORKER_STARTED = "worker_started"
    """A process was started. Fields: worker (its number, or `sealer`), pid."""
    WORKER_DIED = "worker_died"
    """An alarm: a process ended that was not told to; another takes its place.

    Fields: worker, exit_code, wait_s, and problem if what the config names keeps it from starting.
    """
    COLLECTOR_DRAINING = "collector_draining"
    """No new calls are taken; those in work are finished."""


_ALARMS = frozenset(
    {
        *(Event.AGENT_REINSTALLED, Event.AGENT_BEHIND, Event.UPKEEP_FAILED, Event.PLANS_UNREAD),
        *(Event.AGENT_FENCED, Event.LANDING_FAILED, Event.SEAL_FAILED, Event.REQUEST_FAILED),
        *(
            Event.CERTIFICATE_AGED,
            Event.AUTHORITY_UNUSABLE,
            Event.DENY_LIST_UNUSABLE,
            Event.TLS_FILES_UNUSABLE,
            Event.WORKER_DIED,
        ),
    }
)
_AT_WILL = frozenset({Event.RELEASE_REFUSED, Event.REQUEST_REFUSED, Event.REQUEST_FAILED, Event.AUTHORITY_UNUSABLE})
LINES_A_SECOND = 50
"""Of each event that callers can cause at will; the next line that is written says how many were not."""
_LOGGER = logging.getLogger("cloud_collector")
_LOGGER.addHandler(logging.NullHandler())


_request: ContextVar[str] = ContextVar("request")
_from: ContextVar[str] = ContextVar("from")
_listeners: list[Listener] = []


def begin_request() -> str:
    """Give the call that this task serves an id, unless it has one; every event of the task carries it from now on."""
    found = _request.get("")
    if not found:
        found = secrets.token_hex(8)
        _request.set(found)
    return found


def name_caller(name: str) -> None:
    """Say who makes the call that this task serves: what callers can cause at will names them from now on."""
    _from.set(name)


def caller_named() -> bool:
    """Whether the caller was named."""
    return bool(_from.get(""))


def listen(listener: Listener) -> None:
    """Have every event told to a listener too, written or not; being told twice of one listener changes nothing."""
    if listener not in _listeners:
        _listeners.append(listener)


def emit(event: Event, **fields: str | float) -> None:
    """Write one event with its fields."""
    for listener in _listeners:
        listener(event, fields)
    if event in _AT_WILL:
        named = _from.get("")
        if named:
            fields["caller"] = named
        unwritten = _THROTTLE.passes(event)
        if unwritten is None:
            return
        if unwritten:
            fields["unwritten"] = unwritten
    request_id = _request.get("")
    if request_id:
        fields.setdefault("request_id", request_id)
    level = logging.ERROR if event in _ALARMS else logging.INFO
    _LOGGER.log(level, event.value, extra={"fields": fields})


class Throttle:
    """Lets so many events of a kind through in each second."""

    def __init__(self, most: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._second = 0
        self._seen: dict[Event, int] = {}
        self._unwritten: dict[Event, int] = {}

    def passes(self, event: Event) -> int | None:
        """How many did not pass since the last that did; None if this one does not either."""
        with self._lock:
            second = int(self._monotonic())
            if second != self._second:
                self._second = second
                self._seen.clear()
            self._seen[event] = self._seen.get(event, 0) + 1
            if self._seen[event] > self._most:
                self._unwritten[event] = self._unwritten.get(event, 0) + 1
                return None
            return self._unwritten.pop(event, 0)


_THROTTLE = Throttle(LINES_A_SECOND)


def configure(stream: TextIO | None = None) -> None:
    """Send events to a stream, standard error by default, one JSON object a line; calling again moves them."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(_JsonLines())
    _LOGGER.handlers[:] = [handler]
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


class _JsonLines(logging.Formatter):
    """Renders time, level, event and fields; a traceback or a message's arguments are never rendered."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, str | float] = getattr(record, "fields", {})
        about = {"at": moment, "level": record.levelname.lower(), "pid": record.process, "event": record.msg}
        return json.dumps({**about, **fields})
