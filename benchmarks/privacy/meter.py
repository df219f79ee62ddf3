"""The meter and the protocol of a run: one system answers one query in a process of its own.

Place: around every system, inside its process and its environment, so the standard library only.
Invariants: the clock starts after the imports and after any engine is up; CPU time and memory include children that are
alive (a JVM is one); peak memory is the kernel's high-water mark of each process, so it covers imports and engine too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.privacy.question import Query

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a system said: parallel columns, `key` and one for each figure of the query (n, s, mean, u, p50, p95)."""

    columns: dict[str, list[float]]
    exact: dict[str, list[float]] = field(default_factory=dict)
    """The same before noise, where the system can be asked for it; aligned with `columns`."""
    notes: dict[str, float] = field(default_factory=dict)
    """Other figures of the run, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a run cost."""

    cpu_s: float
    """User and system seconds, all threads and all children."""
    wall_s: float
    peak_mb: float


def serve(answer: Callable[[Query, str], Answer | Callable[[], Answer]]) -> None:
    """Answer the query that the command line names, and write reading and answer to the file that it names.

    The command line: query, pattern of the event files, path of the output.

    Args:
        answer: does the whole work; what it may return in place of an answer reads one out of the finished work, off
        the clock.
    """
    query, pattern, output = sys.argv[1:4]
    cpu, wall = _cpu_s(), time.perf_counter()
    done = answer(cast("Query", query), pattern)
    reading = Reading(cpu_s=_cpu_s() - cpu, wall_s=time.perf_counter() - wall, peak_mb=_peak_mb())
    said = done if isinstance(done, Answer) else done()
    Path(output).write_text(json.dumps({"reading": asdict(reading), "answer": asdict(said)}), encoding="utf-8")


def _family() -> list[int]:
    """This process and its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    family = [os.getpid()]
    for pid in family:
        family += children.get(pid, [])
    return family


def _stat(pid: int) -> list[str]:
    """The fields of a process after its name: state, parent, and so on; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_s() -> float:
    """Utime, stime, and those of reaped children, over the family, seconds; this process's own to the microsecond."""
    own = os.times()
    mine = time.process_time() + own.children_user + own.children_system
    others = sum(sum(int(part) for part in fields[11:15]) for pid in _family()[1:] if (fields := _stat(pid)))
    return mine + others / _TICKS


def _peak_mb() -> float:
    peak_kb = 0
    for pid in _family():
        try:
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        peak_kb += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return peak_kb / 1024
