"""A Delta table's log, written so that a power cut at any instant leaves it whole.

Place: below the lake. Other engines read the same log through their own libraries; this room writes it itself, because
the library it would otherwise use syncs nothing, and a cut between its commit and a later sync would leave a log that
names a torn file, or is torn itself.
Invariants:
- A data file is durable before the log names it, and an entry of the log appears whole, under a name that one writer
  gets: by a link on a disk, by a conditional put in a bucket (`objectstore.py`). So it is there and whole, or not.
- No entry names a file that was made here and has waited so long that somebody may have taken it for a leftover.
- A checkpoint is made in a scratch folder, and named once it is durable, unless another was meanwhile; entries are
  removed only behind one.
- What was read is kept in memory; reading again looks at new entries only.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema

from cloud_collector.failpoint import failpoint
from cloud_collector.objectstore import Missing, Taken
from edge_agg.contract.codec import from_us, to_us

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloud_collector.objectstore import Found, ObjectStore

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
MAX_WAIT_S = 900.0
"""How long a file may wait for its commit: far less than the time after which a file that no log names is removed."""
_LOG = "_delta_log"
_REMEMBERED_MS = 2 * 86_400_000
"""How long it is remembered when a file was dropped: far longer than it stays after that."""


class Outrun(Exception):
    """Another writer committed this version, or a file waited too long: read again, decide again, commit again."""


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
    dropped: Mapping[str, int] = field(default_factory=dict)
    """When files were dropped that are still there for readers, milliseconds since 1970 by name; of the last days."""


class DeltaLog:
    """One table's log; used by one writer at a time, read from any thread.

    Args:
        store: where the table is.
        table: its folder there.
    """

    def __init__(self, store: ObjectStore, table: str) -> None:
        self._store, self.table = store, table
        self._lock = threading.Lock()
        self._known = Snapshot()
        self._since: dict[str, float] = {}

    def read(self) -> Snapshot:
        """The table as it is now."""
        with self._lock:
            known = self._known
            if known.version < 0:
                known = self._summed_up(known)
            while True:
                try:
                    entry = self._store.get(self._entry(known.version + 1))
                except Missing:
                    later = self._summed_up(known)  # entries may have been removed behind a checkpoint
                    if later is known:
                        break
                    known = later
                    continue
                actions = [json.loads(line) for line in entry.splitlines() if line.strip()]
                known = replace(_applied(known, actions), version=known.version + 1)
            self._known = known
            return known

    def rows(self, name: str, **how: Any) -> pa.Table:
        """The rows of a file, with pyarrow's options."""
        return pq.read_table(pa.BufferReader(self.fetch(name)), **how)

    def fetch(self, name: str) -> bytes:
        """The bytes of a file; raises Missing."""
        return self._store.get(f"{self.table}/{name}")

    def present(self) -> Sequence[Found]:
        """The files that are there, whether the log names them or not."""
        return [one for one in self._store.list(self.table) if one.name.endswith(".parquet")]

    def discard(self, name: str) -> None:
        """Remove a file that no log names."""
        self._store.delete(f"{self.table}/{name}")

    def write(self, table: pa.Table) -> DataFile:
        """Write a file of the table, durably; nobody sees it before a commit names it."""
        name = f"part-{uuid.uuid4()}.parquet"
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=GROUP_ROWS, **_FORMAT)
        data = sink.getvalue()
        self._since[name] = _awake_s()
        self.keep(name, data)
        starts = table.column("window_start").combine_chunks().cast("int64").to_numpy()
        first, last = int(starts.min()) // 1000 * 1000, -(-int(starts.max()) // 1000) * 1000
        tenants = pc.min_max(table.column("tenant").unique().cast(pa.string())).as_py()
        return DataFile(
            name=name,
            size=data.size,
            rows=table.num_rows,
            first_us=first,
            last_us=last,
            tenants=(tenants["min"], tenants["max"]),
        )

    def keep(self, name: str, data: Any) -> None:
        """Write a file whose bytes there are already, to a table that nobody tidies: however long it waits there."""
        self._store.put(f"{self.table}/{name}", data)
        failpoint("file_synced")

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
        """Add one entry to the log; on return it is durable.

        Raises:
            Outrun: the table is no longer as it was before.
        """
        now = time.time_ns() // 10**6
        about = {"timestamp": now, "operation": operation, "txnId": str(uuid.uuid4())}  # so no two entries are alike
        actions: list[dict[str, Any]] = [{"commitInfo": about}]
        if before.version < 0:
            actions += [{"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}}, _metadata(schema, now)]
        actions += [{"txn": {"appId": app, "version": at}} for app, at in (transactions or {}).items()]
        gone = {"deletionTimestamp": now, "dataChange": changes_data}
        actions += [{"remove": {"path": one.name, "size": one.size, **gone}} for one in remove]
        actions += [_added(one, now, changes_data=changes_data) for one in add]
        entry = b"".join(json.dumps(action).encode() + b"\n" for action in actions)
        if self.waited_too_long(add):
            raise Outrun
        try:
            self._store.put_new(self._entry(before.version + 1), entry)
        except Taken:
            raise Outrun from None
        for one in add:
            self._since.pop(one.name, None)
        failpoint("log_synced")

    def waited_too_long(self, files: Sequence[DataFile]) -> bool:
        """Whether any of these was written so long ago that somebody may take it for a leftover."""
        waited = [_awake_s() - self._since[one.name] for one in files if one.name in self._since]
        return max(waited, default=0.0) > MAX_WAIT_S

    def settle(self) -> None:
        """Make durable what a killed process may have left."""
        self._store.settle(self.table)

    def checkpoint(self) -> bool:
        """Sum the log up in a checkpoint if it is time, and remove the entries that the one before it covers."""
        now = self.read()
        newest = self._newest_checkpoint()
        if now.version - (-1 if newest is None else newest) < CHECKPOINT_EVERY:
            return False
        name, last = f"{now.version:020}.checkpoint.parquet", "_last_checkpoint"
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder) / _LOG
            scratch.mkdir()
            first = 0 if newest is None else newest
            wanted = [f"{version:020}.json" for version in range(first, now.version + 1)]
            wanted += [] if newest is None else [last, f"{newest:020}.checkpoint.parquet"]
            for one in wanted:  # and no checkpoint that a killed process wrote and did not name
                with suppress(Missing):
                    (scratch / one).write_bytes(self._store.get(self._logged(one)))
            made = DeltaTable(folder)
            made.load_as_version(now.version)
            made.create_checkpoint()
            failpoint("checkpoint_made")
            self._store.put(self._logged(name), (scratch / name).read_bytes())
            failpoint("checkpoint_linked")
            if (
                self._newest_checkpoint() != newest
            ):  # another writer was here, and may have cleared what is behind its own
                return False
            self._store.put(self._logged(last), (scratch / last).read_bytes())
        failpoint("checkpoint_named")
        if newest is not None:
            for found in self._store.list(self._logged("")):
                stem = found.name[:20]
                if stem.isdigit() and int(stem) < newest:
                    self._store.delete(self._logged(found.name))
            failpoint("log_cleared")
        return True

    def _logged(self, name: str) -> str:
        return f"{self.table}/{_LOG}/{name}".rstrip("/")

    def _entry(self, version: int) -> str:
        return self._logged(f"{version:020}.json")

    def _newest_checkpoint(self) -> int | None:
        try:
            return int(json.loads(self._store.get(self._logged("_last_checkpoint")))["version"])
        except Missing:
            return None

    def _summed_up(self, known: Snapshot) -> Snapshot:
        """The newest checkpoint, if it is newer than what is known."""
        gone = None
        while True:
            newest = self._newest_checkpoint()
            if newest is None or newest <= known.version:
                return known
            try:
                data = self._store.get(self._logged(f"{newest:020}.checkpoint.parquet"))
                break
            except Missing:  # removed since it was named, behind two newer ones; else the table is damaged
                if newest == gone:
                    raise
                gone = newest
        rows = pq.read_table(pa.BufferReader(data), columns=["txn", "add", "remove"]).to_pylist()
        actions = [{name: action for name, action in row.items() if action is not None} for row in rows]
        return replace(_applied(Snapshot(), actions), version=newest)


def _awake_s() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _applied(before: Snapshot, actions: Sequence[Mapping[str, Any]]) -> Snapshot:
    files, transactions, dropped = dict(before.files), dict(before.transactions), dict(before.dropped)
    for action in actions:
        if "remove" in action:
            name = _name(action["remove"]["path"])
            files.pop(name, None)
            dropped[name] = int(action["remove"].get("deletionTimestamp") or 0)
    for action in actions:
        if "add" in action:
            one = _data_file(action["add"])
            files[one.name] = one
        if "txn" in action:
            transactions[action["txn"]["appId"]] = int(action["txn"]["version"])
    if len(dropped) > len(before.dropped):
        since = max(dropped.values()) - _REMEMBERED_MS
        dropped = {name: at for name, at in dropped.items() if at >= since and name not in files}
    return Snapshot(version=before.version, files=files, transactions=transactions, dropped=dropped)


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
