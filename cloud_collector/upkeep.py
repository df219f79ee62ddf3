"""Keeping the lake small: many small files become few, what a plan need not keep goes, and leftovers are removed.

Place: beside the sealer, in its turn; never in an answer's way.
Invariants:
- Compaction changes no row: it is one commit that names the new file and drops the old ones, and says so to readers.
- What is dropped stays for a grace time, because a reader may have listed it just before; that a file is a leftover,
  and since when, is told by the log. Of a file that the log never named, its own time tells.
- Data goes by whole days that ended before the plan's retention; the landing's keys stay (promise B2).
- Work of one call is bounded: one compaction takes at most so many rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cloud_collector.errors import StoreFailed
from cloud_collector.failpoint import failpoint
from cloud_collector.lake import RETIRED
from cloud_collector.lake_rows import MOMENT, table_schema
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.codec import to_us
from edge_agg.contract.grid import ORIGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from cloud_collector.deltalog import DataFile, DeltaLog, Snapshot
    from cloud_collector.lake import Lake
    from cloud_collector.rollup import Rollups
    from cloud_collector.sealer import Sealer
    from edge_agg.contract.plan import Plan, PlanHash

SMALL_ROWS = 250_000
"""A file of fewer rows is small."""
MANY_FILES = 16
"""So many small files are worth a compaction."""
MAX_ROWS = 1_000_000
"""Rows of one compaction: they are in memory together."""
GRACE_S = 3600.0
"""How long a file that was dropped stays on the disk: longer than any answer takes."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What is done to all tables, now and then, while the sealer waits."""

    lake: Lake
    rollups: Rollups
    sealer: Sealer
    plans: Callable[[], Sequence[tuple[Plan, PlanHash]]]
    """Whose tables there are."""
    retention: Mapping[str, timedelta]
    """By plan, how long its data is kept; for ever where it is not named."""

    def run(self, now: datetime) -> None:
        """Compact, retire and tidy every table, as far as it is time.

        Raises:
            StoreFailed: after all other tables; the failing one is as it was.
        """
        failure: StoreFailed | None = None
        for plan_hash, plan in {plan_hash: plan for plan, plan_hash in self.plans()}.items():
            try:
                with self.sealer.paused():  # a plan at a time: answers wait for the sealer
                    self._keep(plan, plan_hash, now)
            except StoreFailed as error:
                failure = error
        if failure is not None:
            raise failure

    def _keep(self, plan: Plan, plan_hash: PlanHash, now: datetime) -> None:
        keep = self.retention.get(plan.name)
        if keep is not None:
            before_us = retire(self.lake, plan, plan_hash, keep=keep, now=now)
            self.rollups.retire(plan, plan_hash, before_us=before_us)
        joined = compact(self.lake, plan, plan_hash)
        removed = tidy(self.lake, plan, plan_hash)
        if joined or removed:
            emit(Event.LAKE_TIDIED, plan=plan.name, version=plan.version, joined=joined, removed=removed)


def compact(lake: Lake, plan: Plan, plan_hash: PlanHash) -> int:
    """Bring small files together, if they are many; how many files became one.

    Raises:
        StoreFailed: the disk refused; the table is as it was.
    """
    return lake.write(plan, plan_hash, lambda log, now: _compact(plan, log, now))


def _compact(plan: Plan, log: DeltaLog, now: Snapshot) -> int:
    small = sorted((one for one in now.files.values() if one.rows < SMALL_ROWS), key=lambda one: one.rows)
    taken: list[DataFile] = []
    for one in small:
        if sum(other.rows for other in taken) + one.rows > MAX_ROWS:
            break
        taken.append(one)
    if len(taken) < MANY_FILES:
        return 0
    schema = table_schema(plan)
    together = pa.concat_tables([log.rows(one.name).cast(schema) for one in taken])
    order = pc.sort_indices(
        together.select(["window_start", "landing_id"]).append_column("row", pa.array(range(len(together)))),
        sort_keys=[("window_start", "ascending"), ("landing_id", "ascending"), ("row", "ascending")],
    )
    added = log.write(together.take(order))
    failpoint("compaction_written")
    log.commit(now, schema=schema, operation="OPTIMIZE", add=[added], remove=taken, changes_data=False)
    failpoint("compaction_committed")
    return len(taken)


def retire(lake: Lake, plan: Plan, plan_hash: PlanHash, *, keep: timedelta, now: datetime) -> int:
    """Drop the data of whole days that ended longer ago than is kept.

    Returns:
        The moment before which nothing is kept now, in microseconds since 1970.

    Raises:
        StoreFailed: the disk refused; the table is as it was.
    """
    cutoff = cutoff_us(plan, keep=keep, now=now)

    def work(log: DeltaLog, snapshot: Snapshot) -> int:
        if snapshot.version >= 0:
            _retire(plan, log, snapshot, cutoff)
        return max(cutoff, snapshot.transactions.get(RETIRED, cutoff))

    return lake.write(plan, plan_hash, work)


def cutoff_us(plan: Plan, *, keep: timedelta, now: datetime) -> int:
    """The start of the day, or of the window if that is longer, that the oldest kept moment lies in."""
    step = max(_DAY, plan.every)
    return to_us(now - keep - (now - keep - ORIGIN) % step)


def _retire(plan: Plan, log: DeltaLog, now: Snapshot, cutoff: int) -> None:
    old = [one for one in now.files.values() if one.first_us is None or one.first_us < cutoff]
    if not old:
        return
    schema = table_schema(plan)
    added: list[DataFile] = []
    for one in old:
        if one.last_us is not None and one.last_us < cutoff:
            continue
        rows = log.rows(one.name).cast(schema)
        rest = rows.filter(pc.greater_equal(rows.column("window_start"), pa.scalar(cutoff, pa.int64()).cast(MOMENT)))
        if len(rest) == len(rows):
            old = [other for other in old if other is not one]
        elif len(rest):
            added.append(log.write(rest))
    if not old:
        return
    failpoint("retirement_written")
    log.commit(now, schema=schema, operation="DELETE", add=added, remove=old, transactions={RETIRED: cutoff})
    failpoint("retirement_committed")


def tidy(lake: Lake, plan: Plan, plan_hash: PlanHash, *, grace_s: float = GRACE_S) -> int:
    """Remove the files that no version of the last while names, and sum the log up; how many were removed."""
    return lake.write(plan, plan_hash, lambda log, now: _tidy(log, now, grace_s))


def _tidy(log: DeltaLog, now: Snapshot, grace_s: float) -> int:
    if now.version < 0:
        return 0
    log.checkpoint()
    removed = 0
    until_ms = (time.time() - grace_s) * 1000
    for found in log.present():
        if found.name not in now.files and now.dropped.get(found.name, found.modified_ms) < until_ms:
            log.discard(found.name)
            removed += 1
            failpoint("leftover_removed")
    return removed
