"""Asks a running agent how it is, over the Unix socket in its state folder.

Place: for `edge-agg status` and `doctor`; `control.py` answers. The socket is its owner's alone, as all of the folder.
Invariants: one second at most, one mebibyte at most; whatever goes wrong (nobody listens, the answer is of another
version, half of it came) counts as no answer, and the journal is asked instead.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import datetime  # noqa: TC003  # msgspec reads the annotations
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

SOCKET = "agent.sock"
DEADLINE_S = 1.0
_MOST_BYTES = 1 << 20


class LiveSource(msgspec.Struct, frozen=True, kw_only=True):
    """One source."""

    name: str
    current: bool = False
    """Whether all events up to now were handed over."""
    since: datetime | None = None
    """Since when it has been so."""
    cause: str | None = None
    """Why it is behind."""


class LivePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One plan."""

    name: str
    open: list[datetime] = []
    """The starts of the windows that are open."""
    held_rows: int = 0
    """Rows that they hold: known to this device only."""


class LiveClock(msgspec.Struct, frozen=True, kw_only=True):
    """The clock."""

    state: str = "steady"
    reason: str | None = None
    """Why it is not believed."""


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What a running agent says; a field that it does not know yet has its default."""

    pid: int
    uptime_s: float = 0.0
    rows: int = 0
    """Rows that were taken since it started: known to this device only."""
    waiting_bytes: int = 0
    """Of events that wait to be taken in."""
    holding: str | None = None
    """What there is no room in, or what is waited for: nothing is taken in, or no window closes, meanwhile."""
    memory_bytes: int = 0
    memory_limit: int = 0
    spool_bytes: int = 0
    spool_quota: int = 0
    sources: list[LiveSource] = []
    plans: list[LivePlan] = []
    clock: LiveClock = LiveClock()


def ask(folder: Path) -> Live | None:
    """Ask the agent that runs on a state folder; None if none answers."""
    try:
        return msgspec.json.decode(_answer(folder), type=Live)
    except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
        return None


def _answer(folder: Path) -> bytes:
    """The bytes of one answer.

    Raises:
        OSError: nobody listens, or not all of it came in time.
    """
    until = time.monotonic() + DEADLINE_S
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.settimeout(DEADLINE_S)
            # A socket's name has 107 bytes at most, and a state folder's path may have more.
            door.connect(f"/proc/self/fd/{place}/{SOCKET}")
            door.sendall(b"status\n")
            answer = bytearray()
            while len(answer) <= _MOST_BYTES:
                door.settimeout(max(0.001, until - time.monotonic()))
                piece = door.recv(1 << 16)
                if not piece:
                    return bytes(answer)
                answer += piece
                if time.monotonic() > until:
                    break
    finally:
        os.close(place)
    raise TimeoutError
