"""Compaction: many small files of a table become few.

Place: below upkeep, beside the sealer.
Invariants:
- Rows of one tenant stand together, in the order of their windows, so that a reader leaves the others' alone.
- It changes no row: it is one commit that names the new files and drops the old ones, and says so to readers.
- Files are read and written while others seal; what was written is named only if the files that it was made of are all
  still there, and if it has not waited so long that it may be taken for a leftover; else it is one. What is dropped
  stays until upkeep removes it.
- Work of one call is bounded: one compaction takes at most so many rows.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cloud_collector.failpoint import failpoint
from cloud_collector.lake_rows import table_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from cloud_collector.deltalog import DataFile, DeltaLog, Snapshot
    from cloud_collector.lake import Lake
    from edge_agg.contract.plan import Plan, PlanHash

SMALL_ROWS = 250_000
"""A file of fewer rows is small."""
MANY_FILES = 16
"""So many small files are worth a compaction; so are fewer that have the rows of one."""
MAX_ROWS = 1_000_000
"""Rows of one compaction: they are in memory together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """Files that were written and that no version names yet, and those that they stand for."""

    remove: Sequence[DataFile]
    add: Sequence[DataFile]

    def fits(self, now: Snapshot) -> bool:
        """Whether everything that it was made of is still there."""
        return all(one.name in now.files for one in self.remove)


def compact(
    lake: Lake, plan: Plan, plan_hash: PlanHash, *, alone: Callable[[], AbstractContextManager[None]] = nullcontext
) -> int:
    """Bring small files together, if they are many.

    Returns:
        How many files were replaced; none if another writer took one of them away meanwhile, and the next call tries
        again.

    Raises:
        StoreFailed: the disk refused; the table is as it was.
    """
    made = lake.write(plan, plan_hash, lambda log, now: _joined(plan, log, now))
    if made is None:
        return 0
    failpoint("compaction_written")

    def swap(log: DeltaLog, now: Snapshot) -> int:
        if not made.fits(now) or log.waited_too_long(made.add):
            return 0
        schema = table_schema(plan)
        log.commit(now, schema=schema, operation="OPTIMIZE", add=made.add, remove=made.remove, changes_data=False)
        failpoint("compaction_committed")
        return len(made.remove)

    with alone():
        return lake.write(plan, plan_hash, swap)


def _joined(plan: Plan, log: DeltaLog, now: Snapshot) -> Rewrite | None:
    small = sorted((one for one in now.files.values() if one.rows < SMALL_ROWS), key=lambda one: one.rows)
    taken: list[DataFile] = []
    for one in small:
        if sum(other.rows for other in taken) + one.rows > MAX_ROWS:
            break
        taken.append(one)
    full = len(taken) < len(small)  # of four files or more, for each is less than a quarter of what is taken
    if len(taken) < MANY_FILES and not full:
        return None
    schema = table_schema(plan)
    together = pa.concat_tables([log.rows(one.name).cast(schema) for one in taken])
    keys = ["tenant", "window_start", "landing_id"]
    order = pc.sort_indices(
        together.select(keys).append_column("row", pa.array(range(len(together)))),
        sort_keys=[(name, "ascending") for name in (*keys, "row")],
    )
    return Rewrite(remove=taken, add=[log.write(part) for part in _apart(together.take(order))])


def _apart(together: pa.Table) -> Iterator[pa.Table]:
    """Cut rows in the order of tenants: who fills a file has one alone, so that nobody else reads it."""
    counts = pc.value_counts(together.column("tenant"))
    large = [one["values"] for one in counts.to_pylist() if one["counts"] >= SMALL_ROWS]
    for tenant in large:
        yield together.filter(pc.equal(together.column("tenant"), tenant))
    rest = together.filter(pc.invert(pc.is_in(together.column("tenant"), pa.array(large, pa.string()))))
    if len(rest):
        yield rest
