"""Roll-ups: the sums over sites of every window and every day, kept beside the lake so that common questions are cheap.

Place: the sealer adds a release here after the lake has it and before the landing lets go of it; `rolled.py` answers
from here. On disk: one SQLite file (WAL, FULL). All of it can be made again from the lake.
Invariants:
- A release counts once: its record and its sums are one commit, and a release whose record is here is not added again.
- Sums are exact: 128 bits wide, whatever the sites send.
- Of plans that discover keys no sums are kept, only who reported when: which keys a window has depends on its site.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np

from cloud_collector.errors import StoreFailed
from cloud_collector.failpoint import failpoint
from edge_agg.contract.codec import to_us
from edge_agg.contract.grid import ORIGIN
from edge_agg.contract.vectors import payload_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cloud_collector.lake_rows import Row, Stored
    from edge_agg.contract.plan import Plan, PlanHash

_SCHEMA = """
CREATE TABLE IF NOT EXISTS plans (no INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE) STRICT;
CREATE TABLE IF NOT EXISTS nodes (
  no INTEGER PRIMARY KEY, tenant TEXT NOT NULL, node TEXT NOT NULL, UNIQUE (tenant, node)
) STRICT;
CREATE TABLE IF NOT EXISTS seen (
  plan INTEGER NOT NULL, node INTEGER NOT NULL, first_us INTEGER NOT NULL, last_us INTEGER NOT NULL,
  PRIMARY KEY (plan, node)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
  plan INTEGER NOT NULL, start_us INTEGER NOT NULL, node INTEGER NOT NULL, status TEXT NOT NULL,
  PRIMARY KEY (plan, start_us, node)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS days (
  plan INTEGER NOT NULL, start_us INTEGER NOT NULL, node INTEGER NOT NULL, status TEXT NOT NULL,
  windows INTEGER NOT NULL, PRIMARY KEY (plan, start_us, node, status)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sums (
  plan INTEGER NOT NULL, day INTEGER NOT NULL, start_us INTEGER NOT NULL, tenant TEXT NOT NULL, scales BLOB NOT NULL,
  releases INTEGER NOT NULL, sums BLOB NOT NULL,
  PRIMARY KEY (plan, day, start_us, tenant, scales)
) STRICT;
"""
_RECORD = "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?) RETURNING 1"
"""Says whether a release is new here; what it says and what it adds to the sums is one commit."""
_SEEN = (
    "INSERT INTO seen VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
    "first_us = min(first_us, excluded.first_us), last_us = max(last_us, excluded.last_us)"
)
_DAY = "INSERT INTO days VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET windows = windows + excluded.windows"
DAY_US = timedelta(days=1) // timedelta(microseconds=1)
_ORIGIN_US = to_us(ORIGIN)
_LOW = np.int64(2**32 - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Wide:
    """Integers of 128 bits: `high * 2**32 + low`, the low part in [0, 2**32)."""

    high: NDArray[np.int64]
    low: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.int64]) -> Wide:
        """Widen."""
        return cls(values >> 32, values & _LOW)

    def __add__(self, other: Wide) -> Wide:
        low = self.low + other.low
        return Wide(self.high + other.high + (low >> 32), low & _LOW)

    def pack(self) -> bytes:
        """As bytes: 8 a value where all of them fit, else 16."""
        if self.high.size and (self.high.min() < -(2**31) or self.high.max() >= 2**31):
            return np.stack([self.high, self.low]).astype("<i8").tobytes()
        return ((self.high << 32) | self.low).astype("<i8").tobytes()

    @classmethod
    def unpack(cls, data: bytes, size: int) -> Wide:
        """Back from bytes."""
        values = np.frombuffer(data, "<i8").astype(np.int64, copy=False)
        if values.size == size:
            return cls.of(values)
        return cls(values[:size], values[size:])


@dataclass(frozen=True, slots=True, kw_only=True)
class _One:
    """What of a release is rolled up."""

    tenant: str
    node: str
    start_us: int
    status: str
    scales: tuple[float, ...]
    columns: Mapping[str, NDArray[np.int64]]


class Rollups:
    """The roll-ups of all plans; one writer at a time.

    Args:
        path: the file; made when it is missing.

    Raises:
        StoreFailed: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._whole: set[PlanHash] = set()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = apsw.Connection(str(path))
            self._db.set_busy_timeout(5_000)
            self._db.pragma("journal_mode", "wal")
            self._db.pragma("synchronous", "full")
            self._db.execute(_SCHEMA)
        except (apsw.Error, OSError):
            raise StoreFailed("the roll-ups cannot be opened: remove the file, and they are made again") from None

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def covers(self, plan_hash: PlanHash) -> bool:
        """Whether a plan is rolled up, from its first release on."""
        if plan_hash not in self._whole:
            with self._transaction() as db:
                if db.execute("SELECT 1 FROM plans WHERE hash = ?", (bytes(plan_hash),)).get is None:
                    return False
            self._whole.add(plan_hash)
        return True

    def begin(self, plan: Plan, plan_hash: PlanHash, held: Iterable[Stored]) -> None:
        """Roll a plan up from what the lake holds of it, which is nothing before its first release."""
        if self.covers(plan_hash):
            return
        with self._transaction() as db:
            db.execute("INSERT INTO plans (hash) VALUES (?)", (bytes(plan_hash),))
            number = db.last_insert_rowid()
            for one in held:
                same = _One(
                    tenant=one.tenant,
                    node=one.node,
                    start_us=one.window_start_us,
                    status=one.status,
                    scales=one.scales,
                    columns=one.columns,
                )
                self._add(db, plan, number, [same])
        self._whole.add(plan_hash)

    def add(self, plan: Plan, plan_hash: PlanHash, releases: Sequence[Row]) -> None:
        """Add releases, each once; on return they are on the disk.

        Raises:
            StoreFailed: nothing of it was added.
        """
        ones = [
            _One(
                tenant=release.tenant,
                node=release.agent,
                start_us=to_us(release.window_start),
                status=release.status.value,
                scales=tuple(spec.scale for spec in release.vectors),
                columns=values.columns if release.rows else {},
            )
            for _, release, values in releases
        ]
        with self._transaction() as db:
            number: Any = db.execute("SELECT no FROM plans WHERE hash = ?", (bytes(plan_hash),)).get
            assert number is not None, "begin comes first"
            self._add(db, plan, number, ones)

    def retire(self, plan: Plan, plan_hash: PlanHash, *, before_us: int) -> None:
        """Forget what lies before a moment, which is the start of a day or of a longer window."""
        with self._transaction() as db:
            number: Any = db.execute("SELECT no FROM plans WHERE hash = ?", (bytes(plan_hash),)).get
            if number is None:
                return
            gone = 0
            for table in ("sums", "days", "records"):
                db.execute(f"DELETE FROM {table} WHERE plan = ? AND start_us < ?", (number, before_us))  # noqa: S608
                gone += db.changes()
            if gone:
                db.execute("DELETE FROM seen WHERE plan = ?", (number,))
                db.execute(
                    "INSERT INTO seen SELECT plan, node, min(start_us), max(start_us) + ?2 FROM records "
                    "WHERE plan = ?1 GROUP BY node",
                    (number, plan.every // timedelta(microseconds=1)),
                )
        failpoint("rollup_retired")

    def forget(self, plan_hash: PlanHash) -> None:
        """Forget a plan altogether, so that it is rolled up again."""
        self._whole.discard(plan_hash)
        with self._transaction() as db:
            number: Any = db.execute("SELECT no FROM plans WHERE hash = ?", (bytes(plan_hash),)).get
            for table in ("sums", "days", "records", "seen"):
                db.execute(f"DELETE FROM {table} WHERE plan = ?", (number,))  # noqa: S608
            db.execute("DELETE FROM plans WHERE no = ?", (number,))

    def _add(self, db: apsw.Connection, plan: Plan, number: int, ones: Sequence[_One]) -> None:
        length_us = plan.every // timedelta(microseconds=1)
        names, daily = payload_columns(plan), has_days(plan)
        parts: dict[tuple[int, int, str, bytes], list[_One]] = defaultdict(list)
        spans: dict[int, tuple[int, int]] = {}
        windows: Counter[tuple[int, int, str]] = Counter()
        nodes = {who: _node(db, *who) for who in {(one.tenant, one.node): None for one in ones}}
        for one in ones:
            node, start_us = nodes[one.tenant, one.node], one.start_us
            if not db.execute(_RECORD, (number, start_us, node, one.status)).fetchall():
                continue
            first, last = spans.get(node, (start_us, start_us))
            spans[node] = min(first, start_us), max(last, start_us)
            scales = np.array(one.scales, "<f8").tobytes()
            parts[0, start_us, one.tenant, scales].append(one)
            if daily:
                day = day_of(start_us)
                windows[day, node, one.status] += 1
                parts[1, day, one.tenant, scales].append(one)
        db.executemany(_SEEN, [(number, node, first, last + length_us) for node, (first, last) in spans.items()])
        db.executemany(_DAY, [(number, *key, count) for key, count in windows.items()])
        for (by_day, start_us, tenant, scales), part in parts.items():
            valued = [one for one in part if one.columns] if plan.discovered is None else []
            if valued:
                key = (number, by_day, start_us, tenant, scales)
                _accumulate(db, key, len(valued), _summed(valued, names))

    @contextmanager
    def _transaction(self) -> Iterator[apsw.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    failpoint("rollup_uncommitted")
                    self._db.execute("COMMIT")
                    failpoint("rollup_committed")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except apsw.Error as error:
                raise StoreFailed(f"the roll-ups did not take a commit ({type(error).__name__})") from None


def has_days(plan: Plan) -> bool:
    """Whether a plan's windows are shorter than a day and whole days are made of them."""
    return plan.every < timedelta(days=1) and timedelta(days=1) % plan.every == timedelta(0)


def day_of(us: int) -> int:
    """The start of the day that a moment lies in."""
    return us - (us - _ORIGIN_US) % DAY_US


def _node(db: apsw.Connection, tenant: str, node: str) -> int:
    found: Any = db.execute("SELECT no FROM nodes WHERE tenant = ? AND node = ?", (tenant, node)).get
    if found is None:
        db.execute("INSERT INTO nodes (tenant, node) VALUES (?, ?)", (tenant, node))
        found = db.last_insert_rowid()
    return int(found)


def _summed(ones: Sequence[_One], names: Sequence[str]) -> Wide:
    """All columns of all cells, added up over releases; column after column.

    The parts of 32 bits are added apart: less than 2**31 releases cannot overflow either sum.
    """
    values = np.concatenate([one.columns[name] for one in ones for name in names]).reshape(len(ones), -1)
    high, low = (values >> 32).sum(axis=0), (values & _LOW).sum(axis=0)
    return Wide(high + (low >> 32), low & _LOW)


def _accumulate(db: apsw.Connection, key: tuple[int, int, int, str, bytes], releases: int, more: Wide) -> None:
    where = "WHERE plan = ? AND day = ? AND start_us = ? AND tenant = ? AND scales = ?"
    found: Any = db.execute(f"SELECT sums FROM sums {where}", key).get  # noqa: S608
    if found is None:
        db.execute("INSERT INTO sums VALUES (?, ?, ?, ?, ?, ?, ?)", (*key, releases, more.pack()))
        return
    total = Wide.unpack(found, more.high.size) + more
    query = f"UPDATE sums SET releases = releases + ?, sums = ? {where}"  # noqa: S608
    db.execute(query, (releases, total.pack(), *key))
