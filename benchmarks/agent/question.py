"""The plan and the events of the agent's benchmark: 31 stores by two metrics, seeded."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pathlib import Path

PARTITIONS = 31
DAY = datetime(2026, 3, 2, tzinfo=UTC)
_PLAN = f"""
[plan]
name = "bench"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", unit = "string", store = "integer", amount = "float" }}
[privacy_unit]
column = "unit"
[bounds]
max_partitions = 4
max_rows_per_partition = 4
[window]
every = "EVERY"
lateness = "1m"
[[partition]]
column = "store"
range = {{ start = 0, stop = {PARTITIONS} }}
[[metric]]
name = "visits"
kind = "count"
[[metric]]
name = "spent"
kind = "sum"
column = "amount"
lower = 0.0
upper = 100.0
resolution = 0.01
[budget]
mechanism = "gaussian"
epsilon = 0.1
delta = 1e-9
"""


def plan_text(every: str) -> str:
    """The plan, with windows of that length."""
    return _PLAN.replace("EVERY", every)


def events(rows: int, units: int, *, begin: datetime = DAY, seed: int = 1) -> pa.Table:
    """Events of one day (or of the minutes after `begin`): every unit occurs if there are enough rows."""
    rng = np.random.default_rng(seed)
    ids = np.where(np.arange(rows) < units, np.arange(rows), rng.integers(0, units, rows))
    first = int(begin.timestamp() * 1e6)
    span_us = 86_400_000_000 if begin == DAY else 1_000_000
    return pa.table(
        {
            "t": pa.array(first + rng.integers(0, span_us, rows)).cast(pa.timestamp("us", tz="UTC")),
            "unit": pa.array([f"customer-{i:07d}" for i in ids.tolist()]),
            "store": pa.array(rng.integers(0, PARTITIONS, rows)),
            "amount": pa.array(np.round(rng.gamma(2.0, 15.0, rows), 2)),
        }
    )


def as_ndjson(table: pa.Table) -> bytes:
    """The events a line each, as a pusher writes them."""
    lines = [
        f'{{"t":"{t.isoformat()}","unit":"{unit}","store":{store},"amount":{amount}}}'
        for t, unit, store, amount in zip(*(table.column(i).to_pylist() for i in range(4)), strict=True)
    ]
    return ("\n".join(lines) + "\n").encode()


def write_files(folder: Path, rows: int, units: int) -> dict[str, Path]:
    """The same events as Parquet, Arrow and NDJSON (of which a tenth)."""
    table = events(rows, units)
    paths = {name: folder / f"events.{name}" for name in ("parquet", "arrow", "ndjson")}
    pq.write_table(table, paths["parquet"], compression="zstd")
    pa.feather.write_feather(table, paths["arrow"], compression="uncompressed")
    paths["ndjson"].write_bytes(as_ndjson(table.slice(0, rows // 10)))
    return paths
