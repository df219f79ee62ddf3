"""The lake: landed releases as tables that queries, and other engines, can read.

Place: after the landing; the last stop of a release.
In a folder or a bucket: one Delta table a plan hash, `<plan>/v<version>-<12 digits of the hash>/`, with a row per
release and cell, or per release, discovered key and public cell. A release without values, or without a key, is one row
whose keys and vectors are null.
Invariants:
- A release is in the lake once: the commit that brings it in also notes the highest landing id, and a release at or
  below that mark is looked for before it is written again; of a restored landing every release is.
- What `append` returned from is durable, names and log included, and a power cut before leaves the table as it was.
- Ids reach a table in ascending order, so the mark never passes a release that was left behind.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cloud_collector.deltalog import DeltaLog, Outrun, Snapshot
from cloud_collector.errors import StoreFailed, StoreUnavailable
from cloud_collector.folderstore import FolderStore
from cloud_collector.lake_rows import releases_in, table_of, table_schema
from cloud_collector.objectstore import Missing, SyncFailed, Taken
from edge_agg.contract.codec import to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    import duckdb

    from cloud_collector.config import Config
    from cloud_collector.lake_rows import Row, Stored
    from cloud_collector.objectstore import ObjectStore
    from edge_agg.contract.plan import Plan, PlanHash
    from edge_agg.contract.release import Release

    _Key = tuple[str, str, datetime]

T = TypeVar("T")

OWNER = "landing.id"
"""The object that holds the id of the landing which is sealed into this lake."""
RETIRED = "retired"
"""The log's transaction that notes the moment, in microseconds since 1970, before which data was removed on purpose."""
_TRIES = 5


class Lake:
    """The sealed tables of one place. Reading is safe from any thread; writers take turns by the log.

    Args:
        place: a folder of this machine, made when it is missing, or another store.
    """

    def __init__(self, place: Path | ObjectStore) -> None:
        if isinstance(place, Path):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            place = FolderStore(place)
        self._store = place
        self._logs: dict[str, DeltaLog] = {}
        self._settled: set[str] = set()
        self._failed = False

    @classmethod
    def of(cls, config: Config, *, writes: bool) -> Lake:
        """The lake that a config names.

        Args:
            config: the collector's.
            writes: whether to find out first that a bucket keeps two writers apart.

        Raises:
            ConfigInvalid: the bucket does not, or what reads buckets is not installed.
            StoreUnavailable: the bucket cannot be reached, or does not let us in.
        """
        if config.bucket is None:
            return cls(config.lake_path)
        from cloud_collector.s3store import S3Store  # noqa: PLC0415  # of an extra

        store = S3Store(config.bucket)
        if writes:
            store.check()
        return cls(store)

    @property
    def failed(self) -> bool:
        """Whether a sync failed: it is never tried again, and only a new process may write."""
        return self._failed

    def owner(self) -> str | None:
        """The id of the landing that this lake belongs to, None before it is anybody's; raises StoreFailed."""
        try:
            return self._store.get(OWNER).decode().strip()
        except Missing:
            return None
        except Exception as error:  # noqa: BLE001  # the stores raise errors of their own
            raise self._unusable(f"the lake cannot be read ({type(error).__name__})") from None

    def claim(self, landing_id: str) -> str:
        """Note that this lake belongs to a landing, unless it does to one; whose it is then; raises StoreFailed."""
        try:
            with suppress(Taken):
                if self.owner() is None:
                    self._store.put_new(OWNER, f"{landing_id}\n".encode())
            found = self.owner()
        except StoreFailed:
            raise
        except Exception as error:  # noqa: BLE001  # as above
            raise self._unusable(f"the lake cannot be written ({type(error).__name__})") from None
        assert found is not None
        return found

    @property
    def _unusable(self) -> type[StoreFailed]:
        """What it means that nothing was read or written: a bucket may answer by and by, a disk will not."""
        return StoreFailed if isinstance(self._store, FolderStore) else StoreUnavailable

    def sealed_by(self, plan: Plan, plan_hash: PlanHash) -> set[str]:
        """The ids of the landings that a table was sealed from; raises StoreFailed."""
        return set(self.snapshot(plan, plan_hash).transactions) - {RETIRED}

    def append(
        self, plan: Plan, plan_hash: PlanHash, releases: Sequence[Row], *, app_id: str, restored: bool = False
    ) -> None:
        """Bring releases into a plan's table, once; on return they are on the disk.

        Args:
            plan: whose cells the values follow.
            plan_hash: whose table it is.
            releases: landing id (ascending), header, values.
            app_id: the landing's id; ids are compared within one landing.
            restored: whether the landing may have forgotten releases that are in the table, whatever their ids.

        Raises:
            StoreFailed: the disk or the table refused; the same releases may be appended again.
        """
        if releases:
            work = partial(_append, plan=plan, releases=releases, app_id=app_id, restored=restored)
            self.write(plan, plan_hash, work)

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
        """Absolute paths, or URLs, of the parquet files that make up a plan's table; none before the first release.

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
        place = self.location(plan, plan_hash)
        return [f"{place}/{name}" for name, one in now.files.items() if one.may_hold(start_us, end_us, tenant)]

    def attach(self, duck: duckdb.DuckDBPyConnection) -> None:
        """Let a connection read what `files` names."""
        self._store.attach(duck)

    def stored(self, plan: Plan, plan_hash: PlanHash, at: Snapshot | None = None) -> Iterator[Stored]:
        """Every release of a plan's table, now or at a version, read back file by file; raises StoreFailed."""
        log = self.log(plan, plan_hash)
        for name in (self.snapshot(plan, plan_hash) if at is None else at).files:
            try:
                rows = log.rows(name).cast(table_schema(plan))
            except Exception as error:  # noqa: BLE001  # as above
                raise self._unusable(f"a file of the lake cannot be read ({type(error).__name__})") from None
            yield from releases_in(plan, rows)

    def snapshot(self, plan: Plan, plan_hash: PlanHash) -> Snapshot:
        """The table as it is now; raises StoreFailed."""
        try:
            return self.log(plan, plan_hash).read()
        except Exception as error:  # noqa: BLE001  # of JSON, of Parquet, of the disk, with values in their text
            raise self._unusable(f"a table of the lake cannot be read ({type(error).__name__})") from None

    def retired_us(self, plan: Plan, plan_hash: PlanHash) -> int | None:
        """Before which moment data was removed on purpose; None if none was."""
        return self.snapshot(plan, plan_hash).transactions.get(RETIRED)

    def location(self, plan: Plan, plan_hash: PlanHash) -> str:
        """Where a plan's table lies, for this and other engines: an absolute path, or a URL."""
        return f"{self._store.location}/{_table(plan, plan_hash)}"

    def log(self, plan: Plan, plan_hash: PlanHash) -> DeltaLog:
        """The log of a plan's table."""
        table = _table(plan, plan_hash)
        return self._logs.setdefault(table, DeltaLog(self._store, table))

    def write(self, plan: Plan, plan_hash: PlanHash, work: Callable[[DeltaLog, Snapshot], T]) -> T:
        """Do something to a table, again if another writer was first.

        Raises:
            StoreFailed: the disk or the table refused.
        """
        if self._failed:
            raise StoreFailed("the lake met an I/O error: look at the disk, start again")
        log = self.log(plan, plan_hash)
        try:
            if log.table not in self._settled:  # a process that was killed may have left a commit that nobody synced
                log.settle()
                self._settled.add(log.table)
            for _ in range(_TRIES - 1):
                with suppress(Outrun):
                    return work(log, log.read())
            return work(log, log.read())
        except Exception as error:  # noqa: BLE001  # the libraries raise bare Exceptions, with values in their text
            self._failed |= isinstance(error, SyncFailed)
            where = "disk" if isinstance(self._store, FolderStore) else "bucket"
            name = type(error).__name__
            raise self._unusable(f"the lake did not take a commit ({name}): look at the {where}") from None


def _append(log: DeltaLog, now: Snapshot, *, plan: Plan, releases: Sequence[Row], app_id: str, restored: bool) -> None:
    mark = now.transactions.get(app_id, 0)
    known = _known(log, now, {_key(release) for number, release, _ in releases if restored or number <= mark})
    fresh = [row for row in releases if _key(row[1]) not in known]
    if fresh:
        added = log.write(table_of(plan, fresh))
        marks = {app_id: max(mark, fresh[-1][0])}
        log.commit(now, schema=table_schema(plan), operation="WRITE", add=[added], transactions=marks)
    else:  # another process may have committed them, and died before it synced the name of the log's entry
        log.settle()


def _key(release: Release) -> _Key:
    return release.tenant, release.agent, release.window_start


def _known(log: DeltaLog, now: Snapshot, doubtful: set[_Key]) -> set[_Key]:
    """Of doubtful keys, those that the table holds already.

    Doubt arises after a crash between commit and `mark_sealed`, of ids up to the mark; above it the landing's own keys
    are what keeps a release single, and nothing is read. A landing that was restored from a copy has forgotten keys,
    and its ids stand for other releases than they did, below the mark and above it: there all are doubtful. So the keys
    themselves are compared.
    """
    if not doubtful:
        return set()
    starts = sorted({start for _, _, start in doubtful})  # these windows, not all between
    filters = [("window_start", "in", starts)]
    found: set[_Key] = set()
    for one in now.files.values():
        if any(one.may_hold(to_us(start), to_us(start) + 1, None) for start in starts):
            held = log.rows(one.name, columns=["tenant", "node", "window_start"], filters=filters)
            held = held.group_by(held.column_names).aggregate([])
            found.update(zip(*(held.column(name).to_pylist() for name in held.column_names), strict=True))
    return doubtful & found


def _table(plan: Plan, plan_hash: PlanHash) -> str:
    return f"{plan.name}/v{plan.version}-{plan_hash.hex()[:12]}"
