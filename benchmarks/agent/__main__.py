"""What an agent costs a box: start, rest, intake, closing. `make bench-agent` prints a line a bar.

CPU seconds are compared, not wall time, except for the closing of a window, which is one thread's own work.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.agent.live import idle_bars
from benchmarks.agent.question import DAY, plan_text, write_files
from benchmarks.bar import Bar
from edge_agg.contract.plan import parse_plan
from edge_agg.ingest.file import FileSource
from edge_agg.journal import Journal
from edge_agg.privacy.ledger import Budget
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import Account, Series
from edge_agg.window import Span

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS, UNITS = 4_000_000, 100_000
WINDOWS = 2_000
"""Charges in the journal before the closing of a window is timed: five years of days."""


def bars() -> Iterator[Bar]:
    """Every bar of the agent."""
    yield Bar(name="help_cpu_s", value=min(_help_cpu_s() for _ in range(5)), limit=0.3)
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_files(Path(folder), ROWS, UNITS).items():
            limit = 250_000 if name == "ndjson" else 1_500_000
            rate = max(_rate(path) for _ in range(3))
            yield Bar(name=f"ingest_{name}_events_per_cpu_s", value=rate, limit=limit, least=True)
    yield Bar(name="close_31_partitions_2_metrics_ms", value=_closing_ms(), limit=50.0)
    yield from idle_bars()


def _help_cpu_s() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "edge_agg", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _series(folder: Path, every: str = "1d") -> Series:
    account = Account(
        name="people", budget=Budget(rho=Fraction(1000), delta=Fraction(1, 10), horizon=timedelta(days=365))
    )
    return Series(
        tenant="bench",
        measurement=compile_plan(parse_plan(plan_text(every))),
        account=account,
        journal=Journal.open(folder, "bench", now=DAY),
        span=Span(start=DAY, end=None),
    )


def _rate(path: Path) -> float:
    """Events a CPU second, from the file to the state of the open window."""
    with tempfile.TemporaryDirectory() as folder:
        series = _series(Path(folder))
        rows, before = 0, time.process_time()
        for frame in FileSource(str(path)).frames(series.measurement.plan.events.columns):
            series.add(frame.batch)
            rows += frame.batch.num_rows
        return rows / (time.process_time() - before)


def _closing_ms() -> float:
    """The median closing, of windows with rows, at the end of a long life."""
    with tempfile.TemporaryDirectory() as folder:
        series = _series(Path(folder), every="1h")
        files = write_files(Path(folder), 100_000, 20_000)
        for i in range(WINDOWS):
            series.close(DAY - timedelta(hours=WINDOWS - i))
        for frame in FileSource(str(files["parquet"])).frames(series.measurement.plan.events.columns):
            series.add(frame.batch)
        took = []
        for hour in range(24):
            before = time.perf_counter()
            series.close(DAY + timedelta(hours=hour))
            took.append(time.perf_counter() - before)
        return sorted(took)[len(took) // 2] * 1000


if __name__ == "__main__":
    missed = 0
    for bar in bars():
        print(bar, flush=True)
        missed += not bar.met
    sys.exit(1 if missed else 0)
