"""The agent's door for the device's own operator: a Unix socket in the state folder that answers how the agent is.

Place: beside the agent; `edge-agg status` asks.
Invariants: nobody but the owner of the state folder can open it (0600 in a folder of 0700); what it says is for this
device alone and is never sent; a question costs no window and holds no lock.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from edge_agg.ceilings import resident_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from edge_agg.agent import Agent
    from edge_agg.clock import Clock

SOCKET = "agent.sock"
"""Its name in the state folder."""
_PATIENCE_S = 2.0
_REQUEST = b"status\n"


async def serve(path: Path, facts: Callable[[], dict[str, Any]], ended: asyncio.Event) -> None:
    """Answer until `ended`: one line of JSON to the line `status`, nothing to anything else."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                if await reader.readline() == _REQUEST:
                    writer.write(json.dumps(facts()).encode() + b"\n")
                    await writer.drain()
        writer.close()

    try:
        listening = _bound(path)
    except OSError:  # the agent is no worse an agent without its door
        return
    server = await asyncio.start_unix_server(answer, sock=listening, limit=1024)
    try:
        await ended.wait()
    finally:
        server.close()
        _away(path)


def _bound(path: Path) -> socket.socket:
    """A socket at a path of any length, nobody's but the owner's from its first moment."""
    _away(path)  # of an agent that was killed: the journal's lock says that it is gone
    folder = os.open(path.parent, os.O_DIRECTORY)
    bound = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        bound.bind(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        bound.close()
        raise
    finally:
        os.umask(before)
        os.close(folder)
    return bound


def _away(path: Path) -> None:
    path.unlink(missing_ok=True)


def facts_of(agent: Agent, clock: Clock) -> Callable[[], dict[str, Any]]:
    """What there is to say of a running agent."""
    begun_s = clock.since_boot_s()
    begun = clock.now()

    def wall(since_s: float) -> datetime:
        return clock.now() - timedelta(seconds=clock.since_boot_s() - since_s)

    def facts() -> dict[str, Any]:
        intake, doubt = agent.intake, agent.timekeeper.doubt
        spool = intake.spool
        return {
            "pid": os.getpid(),
            "since": begun.isoformat(),
            "uptime_s": round(clock.since_boot_s() - begun_s, 1),
            "holding": holding(agent),
            "memory_bytes": resident_bytes(),
            "memory_limit": agent.ceilings.memory_bytes,
            "spool_bytes": 0 if spool is None else spool.size_bytes,
            "spool_quota": 0 if spool is None else spool.quota_bytes,
            "disk_limit": agent.ceilings.disk_bytes,
            "rows": intake.rows,
            "waiting_bytes": intake.waiting_bytes,
            "sources": [
                {
                    "name": state.name,
                    "current": state.current,
                    "since": wall(state.since_s).isoformat(),
                    "cause": None if state.current else state.cause.value,
                }
                for state in intake.sources.values()
            ],
            "plans": [
                {
                    "name": series.measurement.plan.name,
                    "open": [start.isoformat() for start in series.open_windows],
                    "held_rows": series.held_rows,
                    "closed_before": None if series.closed_before is None else series.closed_before.isoformat(),
                    "veto": None if series.veto is None else series.veto.value,
                }
                for series in agent.series
            ],
            "clock": {"state": "held" if doubt else "steady", "reason": doubt.value if doubt else None},
        }

    return facts


def holding(agent: Agent) -> str | None:
    """What keeps windows from closing, or events out, in one word.

    A fence comes before all but the clock, for nothing on the device helps; a source that is behind comes last, for
    windows do not wait for it for ever.
    """
    herald, intake = agent.herald.holding, agent.intake
    if agent.timekeeper.doubt is not None:
        return "clock"
    if herald == "fenced":
        return herald
    crowd = "crowd" if intake.crowded else None
    spool = "spool" if intake.spool_full else None
    source = None if all(state.current for state in intake.sources.values()) else "source"
    return agent.ceilings.holding() or crowd or spool or herald or source
