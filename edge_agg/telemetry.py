"""What the agent says about itself: events out of one catalogue, as JSON lines on standard error.

Invariants: an event is a noun and a past participle, emitted once a window or batch, never once a row; no field
depends on the data except through a mechanism (promise A4): no row counts, no keys, no values, no exception texts.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("edge_agg")


class Event(StrEnum):
    """Everything the agent ever says."""

    AGENT_STARTED = "agent_started"
    """agent, plans: the parts are built and the journal is open."""
    PART_READ = "part_read"
    """source, parts: one more whole file was read to its end, of so many since the start; never of one that grows."""
    SOURCE_TROUBLED = "source_troubled"
    """trouble: a source passed something over (a damaged file, one that went away) and goes on."""
    SOURCE_STALLED = "source_stalled"
    """source, cause: it has been behind for `[agent].hold`, and windows close without it; why, as far as it can say."""
    SOURCE_RECOVERED = "source_recovered"
    """source: one that had stalled has handed over all there was."""
    CLOCK_DOUBTED = "clock_doubted"
    """doubt: the clock is not believed; no window closes, nothing is taken in or deleted until it is."""
    CLOCK_BELIEVED = "clock_believed"
    """The clock is believed again."""
    DISK_FULL = "disk_full"
    """The disk, or its limit, is full: nothing is taken in or drawn until there is room."""
    DISK_RECOVERED = "disk_recovered"
    """There is room again."""
    SPOOL_FULL = "spool_full"
    """The raw events' part of the disk is used up: what is handed over once is refused until a window is sealed."""
    SPOOL_RECOVERED = "spool_recovered"
    """There is room for raw events again."""
    CONFIG_RELOADED = "config_reloaded"
    """The tuning of the config was taken over."""
    CONFIG_REFUSED = "config_refused"
    """reason: the config, or what it names, was not taken over: what differs takes a restart, or cannot be read."""
    WINDOWS_DUE = "windows_due"
    """windows: how many are to be closed now, over all plans."""
    WINDOW_SEALED = "window_sealed"
    """plan, window, status: a release was made and stored; it waits to be sent."""
    RELEASES_ACKED = "releases_acked"
    """releases, payload_bytes: the collector has them on disk."""
    RELEASE_PARKED = "release_parked"
    """seq, refusal: refused for good; a person must look."""
    RELEASE_HELD = "release_held"
    """seq, refusal: refused for now; it is kept and tried again much later."""
    SEND_FAILED = "send_failed"
    """status, retry_s: the collector could not be asked; the same bytes go again."""
    HEAD_HEARD = "head_heard"
    """The collector knows how far the journal is: windows from before this start may be drawn."""
    HEAD_UNHEARD = "head_unheard"
    """status: the collector could not be told how far the journal is; it is told again."""
    AGENT_FENCED = "agent_fenced"
    """The collector has shut this agent out: nothing is drawn until a person lets it in."""
    CERTIFICATE_AGED = "certificate_aged"
    """agent, days_left: two thirds of its life are over; it is renewed now, or a person must look."""
    CERTIFICATE_RENEWED = "certificate_renewed"
    """agent, ends: the next certificate is on the disk, over a new key."""
    RENEWAL_FAILED = "renewal_failed"
    """cause: the collector gave no certificate; it is asked again within the hour."""
    CREDENTIALS_UNUSABLE = "credentials_unusable"
    """problem: certificate, key or CA changed and do not fit; those from before stay in use."""
    AGENT_STOPPED = "agent_stopped"
    """agent, unacked: the journal is closed."""


_watchers: list[Callable[[Event, dict[str, str | int | float]], None]] = []


def emit(event: Event, **fields: str | float) -> None:
    """Say that something happened."""
    _log.info(event.value, extra={"fields": fields})
    for watcher in _watchers:
        watcher(event, fields)


def watch(watcher: Callable[[Event, dict[str, str | int | float]], None]) -> None:
    """Let the command line follow along, for a progress bar."""
    _watchers.append(watcher)


def configure(*, quiet: bool = False) -> None:
    """Write events to standard error, one JSON object a line; `quiet` drops them."""
    handler: logging.Handler = logging.NullHandler() if quiet else logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    _log.handlers[:] = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"at": moment, "event": record.getMessage(), **getattr(record, "fields", {})})
