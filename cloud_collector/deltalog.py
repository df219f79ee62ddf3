"""A Delta table's log, written so that a power cut at any instant leaves it whole.

Place: below the lake. Other engines read the same log through their own libraries; this room writes it itself, because
the library it would otherwise use syncs nothing, and a cut between its commit and a later sync would leave a log that
names a torn file, or is torn itself.
Invariants:
- A data file and its name are on the disk before the log names it; an entry of the log is on the disk before its name
  appears, by a link that fails where another writer was first. So an entry is there and whole, or not there.
- A checkpoint is made beside the table, synced, and only then linked in; entries are removed only behind one.
- What was read is kept in memory; reading again looks at new entries only.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema

from cloud_collector.failpoint import failpoint
from edge_agg.contract.codec import from_us, to_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CHECKPOINT_EVERY = 100
"""Entries between two checkpoints."""
GROUP_ROWS = 128 * 1024
"""Rows that a reader takes or leaves together, by their least and greatest values."""
_FORMAT: dict[str, Any] = {
    "compression": "zstd",
    "store_schema": False,
    "write_batch_size": GROUP_ROWS,  # least and greatest are found once a batch: for keys of 1,000 texts that is dear
    "write_statistics": ["tenant", "node", "window_start", "window_end"],  # what readers leave rows out by
}


class Outrun(Exception):
    """Another writer committed this version: read again, decide again, commit again."""


class SyncFailed(Exception):
    """The disk did not sync. Never tried again: the kernel may have dropped the pages, and a second sync would lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """A file of a table."""

    name: str
    size: int
    rows: int
    first_us: int | None
    """The earliest window's start, to the millisecond before; None if the log does not say."""
    last_us: int | None
    """The latest window's start, to the millisecond after."""
    tenants: tuple[str, str] | None = None
    """No tenant sorts before the first or after the second; None if the log does not say."""

    def may_hold(self, start_us: int | None, end_us: int | None, tenant: str | None) -> bool:
        """Whether it may hold rows of windows that start in a range, of a tenant; where one is None, of any."""
        return not (
            (start_us is not None and self.last_us is not None and self.last_us < start_us)
            or (end_us is not None and self.first_us is not None and self.first_us >= end_us)
            or (tenant is not None and self.tenants is not None and not self.tenants[0] <= tenant <= self.tenants[1])
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A table at one version."""

    version: int = -1
    """-1 before the first commit."""
    files: Mapping[str, DataFile] = field(default_factory=dict)
    """By name."""
    transactions: Mapping[str, int] = field(default_factory=dict)
    """The latest version that each application noted."""


class DeltaLog:
    """One table's log; used by one writer at a time, read from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "_delta_log"
        self._lock = threading.Lock()
        self._known = Snapshot()

    def read(self) -> Snapshot:
        """The table as it is now."""
        with self._lock:
            known = self._known
            if known.version < 0 or not self._entry(known.version + 1).exists():
                newest = self._newest_checkpoint()
                if newest is not None and newest > known.version:
                    known = self._checkpoint(newest)
            while True:
                try:
                    entry = self._entry(known.version + 1).read_bytes()
                except (FileNotFoundError, NotADirectoryError):
                    break
                actions = [json.loads(line) for line in entry.splitlines() if line.strip()]
                known = replace(_applied(known, actions), version=known.version + 1)
            self._known = known
            return known

    def write(self, table: pa.Table) -> DataFile:
        """Write a file of the table to the disk; nobody sees it before a commit names it."""
        if not self._log.is_dir():
            self._make()
        name = f"part-{uuid.uuid4()}.parquet"
        path = self._folder / name
        with path.open("xb") as sink:
            pq.write_table(table, sink, row_group_size=GROUP_ROWS, **_FORMAT)
            sink.flush()
            failpoint("file_written")
            _fsync(sink.fileno())
        sync(self._folder)
        failpoint("file_synced")
        starts = table.column("window_start").combine_chunks().cast("int64").to_numpy()
        first, last = int(starts.min()) // 1000 * 1000, -(-int(starts.max()) // 1000) * 1000
        size, tenants = path.stat().st_size, pc.min_max(table.column("tenant").unique().cast(pa.string())).as_py()
        return DataFile(
            name=name,
            size=size,
            rows=table.num_rows,
            first_us=first,
            last_us=last,
            tenants=(tenants["min"], tenants["max"]),
        )

    def commit(
        self,
        before: Snapshot,
        *,
        schema: pa.Schema,
        operation: str,
        add: Sequence[DataFile] = (),
        remove: Sequence[DataFile] = (),
        transactions: Mapping[str, int] | None = None,
        changes_data: bool = True,
    ) -> None:
        """Add one entry to the log; on return it is on the disk.

        Raises:
            Outrun: the table is no longer as it was before.
        """
        if not self._log.is_dir():
            self._make()
        now = time.time_ns() // 10**6
        actions: list[dict[str, Any]] = [{"commitInfo": {"timestamp": now, "operation": operation}}]
        if before.version < 0:
            actions += [{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, _metadata(schema, now)]
        actions += [{"txn": {"appId": app, "version": at}} for app, at in (transactions or {}).items()]
        gone = {"deletionTimestamp": now, "dataChange": changes_data}
        actions += [{"remove": {"path": one.name, "size": one.size, **gone}} for one in remove]
        actions += [_added(one, now, changes_data=changes_data) for one in add]
        entry = self._entry(before.version + 1)
        draft = self._log / f".{entry.name}.{uuid.uuid4().hex}.tmp"
        try:
            with draft.open("xb") as sink:
                sink.write(b"".join(json.dumps(action).encode() + b"\n" for action in actions))
                sink.flush()
                failpoint("log_written")
                _fsync(sink.fileno())
            try:
                os.link(draft, entry)
            except FileExistsError:
                raise Outrun from None
            failpoint("log_linked")
        finally:
            draft.unlink(missing_ok=True)
        sync(self._log)
        failpoint("log_synced")

    def sync_all(self) -> None:
        """Bring everything a killed process may have left to the disk, names included."""
        if not self._log.is_dir():
            return
        for place in (self._folder, self._log):
            for found in os.scandir(place):
                if found.is_file() and not found.name.endswith(".tmp"):
                    sync(place / found.name)
        for place in (self._log, self._folder, self._folder.parent, self._folder.parent.parent):
            sync(place)

    def checkpoint(self) -> bool:
        """Sum the log up in a checkpoint if it is time, and remove the entries that the one before it covers."""
        now = self.read()
        newest = self._newest_checkpoint()
        if now.version - (-1 if newest is None else newest) < CHECKPOINT_EVERY:
            return False
        work = self._folder / ".checkpoint"
        shutil.rmtree(work, ignore_errors=True)
        scratch = work / "_delta_log"
        scratch.mkdir(parents=True)
        first = 0 if newest is None else newest
        wanted = [f"{version:020}.json" for version in range(first, now.version + 1)]
        wanted += [] if newest is None else ["_last_checkpoint", f"{newest:020}.checkpoint.parquet"]
        for name in wanted:  # and no checkpoint that a killed process linked and did not name
            if (self._log / name).exists():
                shutil.copyfile(self._log / name, scratch / name)
        made = DeltaTable(work)
        made.load_as_version(now.version)
        made.create_checkpoint()
        name = f"{now.version:020}.checkpoint.parquet"
        sync(scratch / name)
        sync(scratch / "_last_checkpoint")
        failpoint("checkpoint_made")
        (scratch / name).replace(self._log / name)
        sync(self._log)
        failpoint("checkpoint_linked")
        (scratch / "_last_checkpoint").replace(self._log / "_last_checkpoint")
        sync(self._log)
        failpoint("checkpoint_named")
        shutil.rmtree(work)
        if newest is not None:
            for found in list(os.scandir(self._log)):
                stem = found.name[:20]
                if stem.isdigit() and int(stem) < newest:
                    os.unlink(found.path)  # noqa: PTH108  # an entry of the folder
            failpoint("log_cleared")
        return True

    def _entry(self, version: int) -> Path:
        return self._log / f"{version:020}.json"

    def _make(self) -> None:
        self._log.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in (self._log, self._folder, self._folder.parent, self._folder.parent.parent):
            sync(place)

    def _newest_checkpoint(self) -> int | None:
        try:
            return int(json.loads((self._log / "_last_checkpoint").read_bytes())["version"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _checkpoint(self, version: int) -> Snapshot:
        rows = pq.read_table(self._log / f"{version:020}.checkpoint.parquet", columns=["txn", "add"]).to_pylist()
        actions = [{name: action for name, action in row.items() if action is not None} for row in rows]
        return replace(_applied(Snapshot(), actions), version=version)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        _fsync(fd)
    finally:
        os.close(fd)


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError:
        raise SyncFailed from None


def _applied(before: Snapshot, actions: Sequence[Mapping[str, Any]]) -> Snapshot:
    files, transactions = dict(before.files), dict(before.transactions)
    for action in actions:
        if "remove" in action:
            files.pop(_name(action["remove"]["path"]), None)
    for action in actions:
        if "add" in action:
            one = _data_file(action["add"])
            files[one.name] = one
        if "txn" in action:
            transactions[action["txn"]["appId"]] = int(action["txn"]["version"])
    return Snapshot(version=before.version, files=files, transactions=transactions)


def _name(path: str) -> str:
    return unquote(path).rpartition("/")[2]  # the table is flat


def _data_file(add: Mapping[str, Any]) -> DataFile:
    stats = json.loads(add.get("stats") or "{}")
    first, last = (stats.get(which, {}).get("window_start") for which in ("minValues", "maxValues"))
    tenants = tuple(stats.get(which, {}).get("tenant") for which in ("minValues", "maxValues"))
    return DataFile(
        name=_name(add["path"]),
        size=int(add["size"]),
        rows=int(stats.get("numRecords", 0)),
        first_us=None if first is None else _us(first),
        last_us=None if last is None else _us(last) + 999,  # written by others, it may have been cut to milliseconds
        tenants=None if None in tenants else tenants,
    )


def _us(text: str) -> int:
    return to_us(datetime.fromisoformat(text))


def _added(one: DataFile, now: int, *, changes_data: bool) -> dict[str, Any]:
    assert one.first_us is not None
    assert one.last_us is not None
    least: dict[str, str] = {"window_start": _text(one.first_us)}
    greatest: dict[str, str] = {"window_start": _text(one.last_us)}
    if one.tenants is not None:
        least["tenant"], greatest["tenant"] = one.tenants
    nulls = dict.fromkeys(least, 0)
    stats = {"numRecords": one.rows, "minValues": least, "maxValues": greatest, "nullCount": nulls}
    about = {"path": one.name, "partitionValues": {}, "size": one.size, "modificationTime": now}
    return {"add": {**about, "dataChange": changes_data, "stats": json.dumps(stats)}}


def _text(us: int) -> str:
    return from_us(us).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _metadata(schema: pa.Schema, now: int) -> dict[str, Any]:
    about = {"id": str(uuid.uuid4()), "format": {"provider": "parquet", "options": {}}, "partitionColumns": []}
    text = Schema.from_arrow(schema).to_json()
    return {"metaData": {**about, "schemaString": text, "configuration": {}, "createdTime": now}}
