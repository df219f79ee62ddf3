"""Keeping the lake small: many small files become few, what a plan need not keep goes, and leftovers are removed.

Place: beside the sealer, which goes on: files are read and written while it seals; it waits for the log entry alone.
Invariants:
- What was written is named only if the files that it was made of are all still there; else it is a leftover.
- What is dropped stays for a grace time, because a reader may have listed it just before; that a file is a leftover,
  and since when, is told by the log. Of a file that the log never named, its own time tells.
- Data goes by whole days that ended before the plan's retention; the landing's keys stay (promise B2). The moment
  before which it is gone never goes back, also when the retention is lengthened: lake and roll-ups have the same one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cloud_collector.compaction import Rewrite, compact
from cloud_collector.errors import StoreFailed
from cloud_collector.failpoint import failpoint
from cloud_collector.lake import RETIRED
from cloud_collector.lake_rows import MOMENT, table_schema
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.codec import to_us
from edge_agg.contract.grid import ORIGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from datetime import datetime

    from cloud_collector.deltalog import DataFile, DeltaLog, Snapshot
    from cloud_collector.lake import Lake
    from cloud_collector.rollup import Rollups
    from edge_agg.contract.plan import Plan, PlanHash

GRACE_S = 3600.0
"""How long a file that was dropped stays on the disk: longer than any answer takes."""
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What is done to all tables, now and then, while others seal and ask."""

    lake: Lake
    rollups: Rollups | None
    alone: Callable[[], AbstractContextManager[None]]
    """Keeps every sealer waiting while the body runs."""
    plans: Callable[[], Sequence[tuple[Plan, PlanHash]]]
    """Whose tables there are."""
    retention: Callable[[PlanHash], timedelta | None]
    """How long the data of a plan's table is kept; for ever if None."""

    def run(self, now: datetime) -> None:
        """Compact, retire and tidy every table, as far as it is time.

        Raises:
            StoreFailed: after all other tables; the failing one is as it was.
        """
        failure: StoreFailed | None = None
        for plan_hash, plan in {plan_hash: plan for plan, plan_hash in self.plans()}.items():
            try:
                self._keep(plan, plan_hash, now)
            except StoreFailed as error:
                failure = error
        if failure is not None:
            raise failure

    def _keep(self, plan: Plan, plan_hash: PlanHash, now: datetime) -> None:
        keep = self.retention(plan_hash)
        if keep is not None:
            self._retire(plan, plan_hash, cutoff_us(plan, keep=keep, now=now))
        joined = compact(self.lake, plan, plan_hash, alone=self.alone)
        with self.alone():
            removed = tidy(self.lake, plan, plan_hash)
        if joined or removed:
            emit(Event.LAKE_TIDIED, plan=plan.name, version=plan.version, joined=joined, removed=removed)

    def _retire(self, plan: Plan, plan_hash: PlanHash, cutoff: int) -> None:
        made = prepare_retirement(self.lake, plan, plan_hash, cutoff)
        with self.alone():  # lake and roll-ups together: nothing is sealed in between
            before_us = retire(self.lake, plan, plan_hash, cutoff, made)
            if self.rollups is not None:
                self.rollups.retire(plan, plan_hash, before_us=before_us)


def prepare_retirement(lake: Lake, plan: Plan, plan_hash: PlanHash, cutoff: int) -> Rewrite:
    """Write what is to stay of the files that hold data from before a moment; nothing is dropped yet.

    Raises:
        StoreFailed: the disk refused; the table is as it was.
    """
    return lake.write(plan, plan_hash, lambda log, now: _rests(plan, log, now, _from(now, cutoff)))


def retire(lake: Lake, plan: Plan, plan_hash: PlanHash, cutoff: int, made: Rewrite | None = None) -> int:
    """Drop the data from before a moment, which is the start of a day or of a longer window.

    Args:
        lake: where the table is.
        plan: whose table it is.
        plan_hash: its hash.
        cutoff: the moment, in microseconds since 1970; a later one if data from before that is gone already.
        made: what was prepared; made anew if that is no longer all.

    Returns:
        The moment before which nothing is kept now, in microseconds since 1970.

    Raises:
        StoreFailed: the disk refused; the table is as it was.
    """

    def work(log: DeltaLog, now: Snapshot) -> int:
        ready, from_us = made, _from(now, cutoff)
        if (
            ready is None
            or log.waited_too_long(ready.add)
            or {one.name for one in ready.remove} != {one.name for one in _old(now, from_us)}
        ):
            ready = _rests(plan, log, now, from_us)
        if ready.remove:
            failpoint("retirement_written")
            log.commit(
                now,
                schema=table_schema(plan),
                operation="DELETE",
                add=ready.add,
                remove=ready.remove,
                transactions={RETIRED: from_us},
            )
            failpoint("retirement_committed")
        return from_us

    return lake.write(plan, plan_hash, work)


def _from(now: Snapshot, cutoff: int) -> int:
    """From when on data is kept: what was retired once is not taken back by a longer retention."""
    return max(cutoff, now.transactions.get(RETIRED, cutoff))


def _old(now: Snapshot, cutoff: int) -> list[DataFile]:
    return [one for one in now.files.values() if one.first_us is None or one.first_us < cutoff]


def _rests(plan: Plan, log: DeltaLog, now: Snapshot, cutoff: int) -> Rewrite:
    schema = table_schema(plan)
    remove, added = [], []
    for one in _old(now, cutoff):
        if one.last_us is None or one.last_us >= cutoff:
            rows = log.rows(one.name).cast(schema)
            moment = pa.scalar(cutoff, pa.int64()).cast(MOMENT)
            rest = rows.filter(pc.greater_equal(rows.column("window_start"), moment))
            if len(rest) == len(rows):
                continue
            if len(rest):
                added.append(log.write(rest))
        remove.append(one)
    return Rewrite(remove=remove, add=added)


def cutoff_us(plan: Plan, *, keep: timedelta, now: datetime) -> int:
    """The start of the day, or of the window if that is longer, that the oldest kept moment lies in."""
    step = max(_DAY, plan.every)
    return to_us(now - keep - (now - keep - ORIGIN) % step)


def tidy(lake: Lake, plan: Plan, plan_hash: PlanHash, *, grace_s: float | None = None) -> int:
    """Remove the files that no version of the last while names, and sum the log up; how many were removed.

    Args:
        lake: where the table is.
        plan: whose table it is.
        plan_hash: its hash.
        grace_s: how long they stay, in seconds; :data:`GRACE_S` if None.

    Raises:
        StoreFailed: the disk refused; what is named is as it was.
    """
    # Taken before the log is read: what is committed later, however long this machine sleeps, is younger.
    until_ms = (time.time() - (GRACE_S if grace_s is None else grace_s)) * 1000
    return lake.write(plan, plan_hash, lambda log, now: _tidy(log, now, until_ms))


def _tidy(log: DeltaLog, now: Snapshot, until_ms: float) -> int:
    if now.version < 0:
        return 0
    log.checkpoint()
    removed = 0
    for found in log.present():
        if found.name not in now.files and now.dropped.get(found.name, found.modified_ms) < until_ms:
            log.discard(found.name)
            removed += 1
            failpoint("leftover_removed")
    return removed
