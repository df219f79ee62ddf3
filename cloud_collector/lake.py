"""The lake: landed releases as tables that queries, and other engines, can read.

Place: after the landing; the last stop of a release.
On disk: one Delta table a plan hash, `<plan>/v<version>-<12 digits of the hash>/`, with a row per release and cell, or
per release, discovered key and public cell. A release without values, or without a key, is one row whose keys and
vectors are null.
Invariants:
- A release is in the lake once: the commit that brings it in also notes the highest landing id, and a release at or
  below that mark is looked for before it is written again.
- What `append` returned from is on the disk, names and log included, and a power cut before leaves the table as it was.
- Ids reach a table in ascending order, so the mark never passes a release that was left behind.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pyarrow.parquet as pq

from cloud_collector.deltalog import DeltaLog, Outrun, Snapshot, SyncFailed, sync
from cloud_collector.errors import StoreFailed
from cloud_collector.lake_rows import releases_in, table_of, table_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from cloud_collector.lake_rows import Row, Stored
    from edge_agg.contract.plan import Plan, PlanHash
    from edge_agg.contract.release import Release

T = TypeVar("T")

RETIRED = "retired"
"""The log's transaction that notes the moment, in microseconds since 1970, before which data was removed on purpose."""
_TRIES = 5


class Lake:
    """The sealed tables below one folder. Reading is safe from any thread; writers take turns by the log.

    Args:
        root: made when it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._logs: dict[Path, DeltaLog] = {}
        self._synced: set[Path] = set()
        self._failed = False
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def failed(self) -> bool:
        """Whether a sync failed: it is never tried again, and only a new process may write."""
        return self._failed

    def append(self, plan: Plan, plan_hash: PlanHash, releases: Sequence[Row], *, app_id: str) -> None:
        """Bring releases into a plan's table, once; on return they are on the disk.

        Args:
            plan: whose cells the values follow.
            plan_hash: whose table it is.
            releases: landing id (ascending), header, values.
            app_id: the landing's id; ids are compared within one landing.

        Raises:
            StoreFailed: the disk or the table refused; the same releases may be appended again.
        """
        if releases:
            self.write(plan, plan_hash, partial(self._append, plan, plan_hash, releases, app_id))

    def files(
        self,
        plan: Plan,
        plan_hash: PlanHash,
        at: Snapshot | None = None,
        *,
        start_us: int | None = None,
        end_us: int | None = None,
        tenant: str | None = None,
    ) -> list[str]:
        """Absolute paths of the parquet files that make up a plan's table; none before the first release.

        Args:
            plan: whose table it is.
            plan_hash: its hash.
            at: the version; the one of now if None.
            start_us: of windows that start no earlier.
            end_us: and before this.
            tenant: of this tenant; files that hold nothing of what is asked for are left out if the log knows it.

        Raises:
            StoreFailed: the table cannot be read.
        """
        now = self.snapshot(plan, plan_hash) if at is None else at
        folder = self.folder(plan, plan_hash)
        return [str(folder / name) for name, one in now.files.items() if one.may_hold(start_us, end_us, tenant)]

    def stored(self, plan: Plan, plan_hash: PlanHash, at: Snapshot | None = None) -> Iterator[Stored]:
        """Every release of a plan's table, now or at a version, read back file by file; raises StoreFailed."""
        schema, folder = table_schema(plan), self.folder(plan, plan_hash)
        for name in (self.snapshot(plan, plan_hash) if at is None else at).files:
            try:
                rows = pq.read_table(folder / name).cast(schema)
            except Exception as error:  # noqa: BLE001  # as above
                raise StoreFailed(f"a file of the lake cannot be read ({type(error).__name__})") from None
            yield from releases_in(plan, rows)

    def snapshot(self, plan: Plan, plan_hash: PlanHash) -> Snapshot:
        """The table as it is now; raises StoreFailed."""
        try:
            return self._log(self.folder(plan, plan_hash)).read()
        except Exception as error:  # noqa: BLE001  # of JSON, of Parquet, of the disk, with values in their text
            raise StoreFailed(f"a table of the lake cannot be read ({type(error).__name__})") from None

    def retired_us(self, plan: Plan, plan_hash: PlanHash) -> int | None:
        """Before which moment data was removed on purpose; None if none was."""
        return self.snapshot(plan, plan_hash).transactions.get(RETIRED)

    def folder(self, plan: Plan, plan_hash: PlanHash) -> Path:
        """Where a plan's table lies."""
        return self._root / plan.name / f"v{plan.version}-{plan_hash.hex()[:12]}"

    def write(self, plan: Plan, plan_hash: PlanHash, work: Callable[[DeltaLog, Snapshot], T]) -> T:
        """Do something to a table, again if another writer was first.

        Raises:
            StoreFailed: the disk or the table refused.
        """
        if self._failed:
            raise StoreFailed("the lake met an I/O error: look at the disk, start again")
        folder = self.folder(plan, plan_hash)
        log = self._log(folder)
        try:
            if folder not in self._synced:  # a process that was killed may have left a commit that nobody has synced
                sync(self._root.parent)
                log.sync_all()
                self._synced.add(folder)
            for _ in range(_TRIES - 1):
                with suppress(Outrun):
                    return work(log, log.read())
            return work(log, log.read())
        except Exception as error:  # noqa: BLE001  # the libraries raise bare Exceptions, with values in their text
            self._failed |= isinstance(error, SyncFailed)
            raise StoreFailed(f"the lake did not take a commit ({type(error).__name__}): look at the disk") from None

    def _log(self, folder: Path) -> DeltaLog:
        return self._logs.setdefault(folder, DeltaLog(folder))

    def _append(  # noqa: PLR0917  # the first four are bound at once
        self, plan: Plan, plan_hash: PlanHash, releases: Sequence[Row], app_id: str, log: DeltaLog, now: Snapshot
    ) -> None:
        mark = now.transactions.get(app_id, 0)
        folder = self.folder(plan, plan_hash)
        known = _known([str(folder / name) for name in now.files], releases, mark)
        fresh = [row for row in releases if _key(row[1]) not in known]
        if fresh:
            added = log.write(table_of(plan, fresh))
            marks = {app_id: max(mark, fresh[-1][0])}
            log.commit(now, schema=table_schema(plan), operation="WRITE", add=[added], transactions=marks)


def _key(release: Release) -> tuple[str, str, datetime]:
    return release.tenant, release.agent, release.window_start


def _known(files: Sequence[str], releases: Sequence[Row], mark: int) -> set[tuple[str, str, datetime]]:
    """Keys that the table holds already, of those that the mark makes doubtful.

    Doubt arises after a crash between commit and `mark_sealed`, and after a landing was restored from a copy; in that
    case ids stand for other releases than they did, so the keys themselves are compared. (Above the mark nothing is
    read: there the landing's own keys are what keeps a release single.)
    """
    doubtful = {_key(release) for landing_id, release, _ in releases if landing_id <= mark}
    if not (doubtful and files):
        return set()
    starts = sorted({start for _, _, start in doubtful})
    filters = [("window_start", ">=", starts[0]), ("window_start", "<=", starts[-1])]
    held = pq.read_table(files, columns=["tenant", "node", "window_start"], filters=filters)
    held = held.group_by(held.column_names).aggregate([])
    return doubtful & set(zip(*(held.column(name).to_pylist() for name in held.column_names), strict=True))
