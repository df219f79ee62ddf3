"""How much does bounding cost over a plain group-by? CPU seconds, each run in a process of its own, as a ratio.

The whole path of the agent, from Parquet to the sealed payload, against Polars' group-by over the same file without any
privacy. `make bench-kernel` runs it; `--events`, `--units` and `--ids` choose one case.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from edge_agg.contract import arrow
from edge_agg.contract.plan import parse_plan
from edge_agg.ingest.file import FileSource
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.rows import read_events
from edge_agg.window import Span, split

CATEGORIES = 1_000
PLAN = """
[plan]
name = "bench"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", unit = "{ids}", category = "integer", amount = "float" }}
[privacy_unit]
column = "unit"
[bounds]
max_partitions = 8
max_rows_per_partition = 4
[window]
every = "1d"
[[partition]]
column = "category"
values = {values}
[[metric]]
{metric}
[budget]
mechanism = "gaussian"
epsilon = 1.0
delta = 1e-6
"""
METRICS = {
    "A count": 'name = "n"\nkind = "count"',
    "B sum": 'name = "s"\nkind = "sum"\ncolumn = "amount"\nlower = 0.0\nupper = 100.0\nresolution = 0.01',
    "D units": 'name = "u"\nkind = "distinct_units"',
}
FLOORS = {
    "A count": pl.len(),
    "B sum": pl.col("amount").clip(0.0, 100.0).sum(),
    "D units": pl.col("unit").n_unique(),
}


def generate(path: Path, *, events: int, units: int, ids: str) -> None:
    """One day of events: Zipf-like activity over units and categories, a fixed seed."""
    rng = np.random.default_rng(7)
    unit = (units * rng.random(events) ** 2).astype(np.int64)
    category = (CATEGORIES * rng.random(events) ** 3).astype(np.int64)
    frame = pl.DataFrame(
        {
            "t": pl.Series(1_357_516_800_000_000 + rng.integers(0, 86_400_000_000, events)).cast(
                pl.Datetime("us", "UTC")
            ),
            "unit": unit,
            "category": category,
            "amount": rng.gamma(2.0, 20.0, events),
        }
    )
    if ids == "string":
        frame = frame.with_columns(pl.format("user-{}", pl.col("unit")).alias("unit"))
    frame.write_parquet(path, compression="zstd")


def ours(path: Path, query: str, ids: str) -> None:
    """The agent's path, from the file to the payload."""
    plan = parse_plan(PLAN.format(ids=ids, values=list(range(CATEGORIES)), metric=METRICS[query]))
    measurement = compile_plan(plan)
    bounding = measurement.bounding(os.urandom(32))
    for frame in FileSource(str(path)).frames(plan.events.columns):
        events = read_events(plan, measurement.vectors, frame.batch)
        parts = split(events.time_us, every=plan.every, closed_before=None, span=Span(start=None, end=None))
        for index in parts.windows.values():
            bounding.add(events.take(index))
    arrow.encode(measurement.draw(measurement.exact(bounding.kept())))


def floor(path: Path, query: str) -> None:
    """The plain group-by."""
    pl.scan_parquet(path).group_by("category").agg(FLOORS[query]).collect()


def measure(path: Path, who: str, query: str, ids: str) -> dict[str, float]:
    """Run one side in a fresh process; its CPU seconds after the imports, and its peak memory in MB."""
    command = [sys.executable, "-m", "benchmarks.kernel", "--one", who, query, ids, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def one(who: str, query: str, ids: str, path: Path) -> None:
    """Inside the fresh process."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    ours(path, query, ids) if who == "ours" else floor(path, query)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"cpu_s": cpu, "peak_mb": after.ru_maxrss / 1024}))


def main() -> None:
    """Print a row a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--units", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ids", nargs="+", choices=["integer", "string"], default=["integer", "string"])
    chosen = parser.parse_args()
    if chosen.one:
        who, query, ids, path = chosen.one
        one(who, query, ids, Path(path))
        return
    print(f"{'query':8} {'units':>9} {'ids':8} {'floor s':>8} {'ours s':>8} {'ratio':>6} {'ours MB':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for units in chosen.units:
            for ids in chosen.ids:
                path = Path(folder) / f"{units}-{ids}.parquet"
                generate(path, events=chosen.events, units=units, ids=ids)
                for query in METRICS:
                    low, high = (measure(path, who, query, ids) for who in ("floor", "ours"))
                    print(
                        f"{query:8} {units:9,} {ids:8} {low['cpu_s']:8.2f} {high['cpu_s']:8.2f} "
                        f"{high['cpu_s'] / low['cpu_s']:6.1f} {high['peak_mb']:8.0f}",
                        flush=True,
                    )
                path.unlink()


if __name__ == "__main__":
    main()
