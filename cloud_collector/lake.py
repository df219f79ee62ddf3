"""The lake: landed releases as tables that queries, and other engines, can read.

Place: after the landing; the last stop of a release.
On disk: one Delta table a plan hash, `<plan>/v<version>-<12 digits of the hash>/`, with a row per release and cell, or
per release, discovered key and public cell. A release without values, or without a key, is one row whose keys and
vectors are null.
Invariants:
- A release is in the lake once: the commit that brings it in also notes the highest landing id, and a release at or
  below that mark is looked for before it is written again.
- A release leaves the landing only after the files that hold it in the lake have been fsynced (the library does not).
- Ids reach a table in ascending order, so the mark never passes a release that was left behind.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import TableNotFoundError

from cloud_collector.errors import StoreFailed
from edge_agg.contract.cells import keys, n_cells
from edge_agg.contract.vectors import plan_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from cloud_collector.payload import Values
    from edge_agg.contract.plan import Plan, PlanHash
    from edge_agg.contract.release import Release

    Row = tuple[int, Release, Values]

_MOMENT = pa.timestamp("us", tz="UTC")
_KEY = ["landing_id", "tenant", "node", "window_start"]


def table_schema(plan: Plan) -> pa.Schema:
    """The table's columns: who and when, one string a partition, then each vector's columns and its noise's scale."""
    fields = [
        ("tenant", pa.string()),
        ("node", pa.string()),
        ("window_start", _MOMENT),
        ("window_end", _MOMENT),
        ("status", pa.string()),
        ("landing_id", pa.int64()),
        *((partition.label, pa.string()) for partition in plan.partition),
    ]
    for vector in plan_vectors(plan):
        fields += [*((column, pa.int64()) for column in vector.columns), (f"{vector.name}__scale", pa.float64())]
    return pa.schema([pa.field(name, kind) for name, kind in fields])


class Lake:
    """The sealed tables below one folder. Reading is safe from any thread; only one sealer appends.

    Args:
        root: made when it is missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._synced: set[Path] = set()
        self._failed = False
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def failed(self) -> bool:
        """Whether a sync failed: it is never tried again, and only a new process may append."""
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
        if not releases:
            return
        if self._failed:
            raise StoreFailed("the lake met an I/O error: look at the disk, start again")
        folder = self._folder(plan, plan_hash)
        try:
            mark = _mark(folder, app_id)
            known = _known(self.files(plan, plan_hash), releases, mark)
            fresh = [row for row in releases if _key(row[1]) not in known]
            if fresh:
                _commit(folder, _table(plan, fresh), Transaction(app_id=app_id, version=max(mark, fresh[-1][0])))
            self._sync(folder)
        except Exception as error:  # noqa: BLE001  # the library raises bare Exceptions, with values in their text
            raise StoreFailed(f"the lake did not take a commit ({type(error).__name__}): look at the disk") from None

    def files(self, plan: Plan, plan_hash: PlanHash) -> list[str]:
        """Absolute paths of the parquet files that make up the plan's table now; none before the first release.

        Raises:
            StoreFailed: the table cannot be read.
        """
        folder = self._folder(plan, plan_hash)
        try:
            table = _open(folder)
            uris = table.file_uris() if table is not None else []
        except Exception as error:  # noqa: BLE001  # as above
            raise StoreFailed(f"a table of the lake cannot be read ({type(error).__name__})") from None
        return [str(folder / PurePosixPath(uri).name) for uri in uris]  # uris are escaped; the table is flat

    def _folder(self, plan: Plan, plan_hash: PlanHash) -> Path:
        return self._root / plan.name / f"v{plan.version}-{plan_hash.hex()[:12]}"

    def _sync(self, folder: Path) -> None:
        try:
            self._sync_files(folder)
        except OSError:
            self._failed = True  # the kernel may have dropped the pages: a second fsync would lie
            raise

    def _sync_files(self, folder: Path) -> None:
        """Bring a table's files and their names to the disk: all of them once a process, then what is new.

        A process that was killed may have left a commit that nobody has fsynced; one call here makes it durable too.
        """
        log = folder / "_delta_log"
        files = [Path(entry.path) for place in (folder, log) for entry in os.scandir(place) if entry.is_file()]
        for file in files:
            if file not in self._synced or file.name == "_last_checkpoint":  # the one file that is written over
                _fsync(file)
        for place in (log, folder, folder.parent, self._root, self._root.parent):
            _fsync(place)
        self._synced.update(files)


def _open(folder: Path) -> DeltaTable | None:
    """The table as it is now; None before its first commit."""
    try:
        return DeltaTable(folder) if folder.is_dir() else None
    except TableNotFoundError:
        return None


def _mark(folder: Path, app_id: str) -> int:
    """The highest landing id that the table has noted for a landing; 0 if none."""
    table = _open(folder)
    return (table.transaction_version(app_id) or 0) if table is not None else 0


def _key(release: Release) -> tuple[str, str, datetime]:
    return release.tenant, release.agent, release.window_start


def _known(files: Sequence[str], releases: Sequence[Row], mark: int) -> set[tuple[str, str, datetime]]:
    """Keys that the table holds already, of those that the mark makes doubtful.

    Doubt arises after a crash between commit and `mark_sealed`, and after a landing was restored from a copy; in that
    case ids stand for other releases than they did, so the keys themselves are compared. (Above the mark nothing is
    read: there the landing's own keys are what keeps a release single.)
    """
    doubtful = {_key(release) for landing_id, release, _ in releases if landing_id <= mark}
    if not doubtful:
        return set()
    starts = sorted({start for _, _, start in doubtful})
    filters = [("window_start", ">=", starts[0]), ("window_start", "<=", starts[-1])]
    held = pq.read_table(files, columns=["tenant", "node", "window_start"], filters=filters)
    held = held.group_by(held.column_names).aggregate([])
    return doubtful & set(zip(*(held.column(name).to_pylist() for name in held.column_names), strict=True))


def _commit(folder: Path, table: pa.Table, transaction: Transaction) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_deltalake(folder, table, mode="append", commit_properties=CommitProperties(app_transactions=[transaction]))


def _table(plan: Plan, releases: Sequence[Row]) -> pa.Table:
    schema = table_schema(plan)
    columns = list(zip(*keys(plan), strict=True))
    texts = {
        partition.label: pa.array(column, pa.string()) for partition, column in zip(plan.public, columns, strict=False)
    }
    return pa.concat_tables([_rows(plan, schema, texts, row) for row in releases])


def _rows(plan: Plan, schema: pa.Schema, texts: Mapping[str, pa.Array], row: Row) -> pa.Table:
    landing_id, release, values = row
    valued = release.rows > 0
    same: dict[str, object] = {
        "tenant": release.tenant,
        "node": release.agent,
        "window_start": release.window_start,
        "window_end": release.window_end,
        "status": release.status.value,
        "landing_id": landing_id,
        **{f"{spec.name}__scale": spec.scale for spec in release.vectors},
    }
    varying = _key_columns(plan, texts, values.keys) if valued else {}
    varying |= {name: pa.array(column) for name, column in values.columns.items()} if valued else {}
    columns = [
        varying[field.name]
        if field.name in varying
        else pa.repeat(pa.scalar(same.get(field.name), field.type), max(1, release.rows))
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _key_columns(plan: Plan, texts: Mapping[str, pa.Array], found: Sequence[str] | None) -> dict[str, pa.Array]:
    """The keys of each row: the public cells, over again for every discovered key."""
    if plan.discovered is None or found is None:
        return dict(texts)
    cells = n_cells(plan)
    columns = {name: pa.concat_arrays([column] * len(found)) for name, column in texts.items()}
    each = pa.array([text for text in found for _ in range(cells)], pa.string())
    return {**columns, plan.discovered.label: each}


def _fsync(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # the library may have removed an old log entry meanwhile
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
