"""Run one system on one query and one case, each repetition in a fresh process, and compare its answer with the truth.

Place: between the command lines and the systems.
Invariant: one run at a time; a run over the limit is ended with all that it started, and recorded as capped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.privacy.events import event_files
from benchmarks.privacy.meter import Answer, Reading  # noqa: TC001  # msgspec reads the annotations
from benchmarks.privacy.question import categories
from benchmarks.privacy.result import Result, store
from benchmarks.privacy.surroundings import surroundings
from benchmarks.privacy.truth import errors, truth

if TYPE_CHECKING:
    import polars as pl

    from benchmarks.privacy.question import Case, Query
    from benchmarks.privacy.registry import Sample, System

LIMIT_S = 600.0


class _Said(msgspec.Struct):
    reading: Reading
    answer: Answer


def run(system: System, query: Query, case: Case, *, repeat: int = 1, compare: bool = True) -> Result:
    """Run, compare, store, and print a line.

    Args:
        system: who is asked.
        query: what.
        case: of which events.
        repeat: how often; stops at the first run that is capped or fails.
        compare: whether to compare with the truth, which costs more than most runs.
    """
    pattern, found = event_files(case, categories(query)), surroundings()
    said: list[_Said] = []
    status: str | None = None
    while len(said) < repeat and status is None:
        one = _once(system, query, pattern)
        if isinstance(one, str):
            status = one
        else:
            said.append(one)
    result = Result(system=system.name, query=query, case=case, readings=[one.reading for one in said], **found)
    compared = _compared(said[-1].answer, system, query, pattern) if said and compare else {}
    result = msgspec.structs.replace(result, status=status or "done", **compared)
    store(result)
    print(
        f"{system.name:15} {query} {case.name:20} {result.status:6} cpu {result.cpu_s:7.2f} s"
        f"  wall {result.wall_s:7.2f} s  peak {result.peak_mb:5.0f} MB  released {result.released}",
        flush=True,
    )
    return result


def _compared(answer: Answer, system: System, query: Query, pattern: str) -> dict[str, Any]:
    return {
        "released": len(answer.columns["key"]),
        "bounded": errors(answer.columns, _truth(pattern, query, system.sample), query),
        "true": errors(answer.columns, _truth(pattern, query, "none"), query),
        "noise": _noise(answer),
        "notes": answer.notes,
    }


def _once(system: System, query: Query, pattern: str) -> _Said | str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "said.json"
        environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
        process = subprocess.Popen(
            [*system.command, query, pattern, str(output)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        try:
            _, complaint = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return "capped"
        if process.returncode != 0:
            print(complaint.decode(errors="replace")[-2000:])
            return "failed"
        return msgspec.json.decode(output.read_bytes(), type=_Said)


@lru_cache(maxsize=16)
def _truth(pattern: str, query: Query, sample: Sample) -> pl.DataFrame:
    return truth(pattern, query, sample)


def _noise(answer: Answer) -> dict[str, float]:
    """The error against what the system itself had before noise."""
    return {
        name: sum(abs(a - b) for a, b in zip(values, answer.columns[name], strict=True)) / max(len(values), 1)
        for name, values in answer.exact.items()
    }
