"""The landing: where a release becomes durable, exactly once, before it is acked.

Place: after admission and before the ack; the sealer then moves what lies here to the lake.
On disk: one SQLite file (WAL, FULL). `releases` holds a row per key for ever; its header and payload are dropped once
the lake has them. `agents` holds who was seen, `fences` who is shut out, `meta` the landing's own id.
Invariants:
- A verdict is handed out only after the commit that holds its release has been fsynced (promise B1).
- A key (tenant, agent, plan hash, window start) is taken once, for ever. The sha256 is compared, never part of the key;
  a release that disagrees is not stored, and its agent is fenced in the same commit (promise B2).
- After an I/O error nothing more is taken: a failed fsync is never tried again, because the kernel may have dropped the
  pages and the second try would lie.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from cloud_collector.errors import Overloaded, StoreFailed
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.codec import from_us, to_us

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from edge_agg.contract.release import Release, Sealed

_T = TypeVar("_T")

SCHEMA_VERSION = 1
MAX_QUEUED_BYTES = 256 * 2**20
"""Bytes that may wait for a commit, however few the releases are."""
_SCHEMA = """
CREATE TABLE releases (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL, agent TEXT NOT NULL, plan TEXT NOT NULL,
  plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL,
  hash BLOB NOT NULL, header BLOB, payload BLOB,
  UNIQUE (tenant, agent, plan_hash, window_start_us)
) STRICT;
CREATE INDEX unsealed ON releases (id) WHERE header IS NOT NULL;
CREATE TABLE agents (
  tenant TEXT NOT NULL, agent TEXT NOT NULL, incarnation TEXT NOT NULL,
  last_seq INTEGER NOT NULL, releases INTEGER NOT NULL, last_window_end_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, agent)
) STRICT;
CREATE TABLE fences (
  tenant TEXT NOT NULL, agent TEXT NOT NULL,
  PRIMARY KEY (tenant, agent)
) STRICT;
CREATE TABLE meta (id TEXT NOT NULL) STRICT;
"""
_SEEN = """
INSERT INTO agents VALUES (:tenant, :agent, :incarnation, :seq, 1, :window_end_us)
ON CONFLICT DO UPDATE SET
  last_seq = iif(incarnation = excluded.incarnation, max(last_seq, excluded.last_seq), excluded.last_seq),
  incarnation = excluded.incarnation,
  releases = releases + 1,
  last_window_end_us = max(last_window_end_us, excluded.last_window_end_us)
"""


class Verdict(StrEnum):
    """What became of a release."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The same bytes are here already: ack them again."""
    CONFLICT = "conflict"
    """Other bytes are here for this key: nothing was stored, the agent is fenced."""
    FENCED = "fenced"
    """The agent is fenced, and this release is new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandedRelease:
    """A release that waits to be sealed, as the bytes that were sent."""

    id: int
    """Ascending in the order of commits, never used twice."""
    header: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeen:
    """What is known of an agent from the releases it sent."""

    tenant: str
    agent: str
    incarnation: str
    """Of the journal that the last accepted release came from."""
    last_seq: int
    """The highest of this incarnation."""
    releases: int
    """Accepted, of all incarnations."""
    last_window_end: datetime
    fenced: bool


class _Waiting:
    """One call of `land`, until its commit."""

    def __init__(self, releases: Sequence[tuple[Release, Sealed]]) -> None:
        self.releases = releases
        self.bytes = sum(len(sealed.header) + len(sealed.payload) for _, sealed in releases)
        self.future: Future[list[Verdict]] = Future()


class Landing:
    """The store of landed releases: one connection, used by one writer thread.

    Args:
        path: the file; it and its folder are made, for their owner alone, when they are missing.
        max_queued: releases that may wait for a commit.

    Raises:
        StoreFailed: the file cannot be opened, or was written by a newer collector.
    """

    def __init__(self, path: Path, *, max_queued: int = 4096) -> None:
        self._max_queued = max_queued
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._queued = self._queued_bytes = 0
        self._closed = self._failed = False
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="landing")
        try:
            _create(path)
            self._db = apsw.Connection(str(path))
            _prepare(self._db)
            _sync_folder(path.parent)
            self._id = str(self._db.execute("SELECT id FROM meta").get)
        except (apsw.Error, OSError):
            raise StoreFailed("the landing cannot be opened: look at the disk and the file's owner") from None

    @property
    def id(self) -> str:
        """A random name made with the file: who the lake knows this landing as."""
        return self._id

    @property
    def failed(self) -> bool:
        """Whether an I/O error has ended this landing; only a new process may open it again."""
        return self._failed

    async def land(self, releases: Sequence[tuple[Release, Sealed]]) -> list[Verdict]:
        """Commit releases, together with whatever else waits at that moment.

        Returns:
            A verdict for each, in order, once all of them are on the disk.

        Raises:
            Overloaded: too much waits already; nothing of this call was queued.
            StoreFailed: nothing of this call was promised; look at the disk.
        """
        return await asyncio.wrap_future(self._enqueue(_Waiting(releases)))

    def unsealed(self, limit: int, *, after: int = 0) -> list[LandedRelease]:
        """The oldest releases that are not in the lake, of ids above `after`."""
        query = (
            "SELECT id, header, payload FROM releases INDEXED BY unsealed "
            "WHERE header IS NOT NULL AND id > ? ORDER BY id LIMIT ?"
        )
        rows: list[Any] = self._call(lambda: self._db.execute(query, (after, limit)).fetchall())
        return [LandedRelease(id=row[0], header=row[1], payload=row[2]) for row in rows]

    def mark_sealed(self, ids: Sequence[int]) -> None:
        """Drop the bytes of releases that are in the lake for good; their keys stay."""
        query = "UPDATE releases SET header = NULL, payload = NULL WHERE id = ?"
        self._call(lambda: self._transact(lambda: self._db.executemany(query, ((one,) for one in ids))))

    def agents(self) -> list[AgentSeen]:
        """Every agent that a release was accepted from, by tenant and name."""
        query = (
            "SELECT agents.*, fences.agent IS NOT NULL FROM agents LEFT JOIN fences USING (tenant, agent) "
            "ORDER BY tenant, agent"
        )
        rows: list[Any] = self._call(lambda: self._db.execute(query).fetchall())
        return [
            AgentSeen(
                tenant=tenant,
                agent=agent,
                incarnation=incarnation,
                last_seq=seq,
                releases=releases,
                last_window_end=from_us(end_us),
                fenced=bool(fenced),
            )
            for tenant, agent, incarnation, seq, releases, end_us, fenced in rows
        ]

    def unfence(self, tenant: str, agent: str) -> bool:
        """Take an agent's new releases again; whether it was fenced."""
        query = "DELETE FROM fences WHERE tenant = ? AND agent = ? RETURNING 1"
        lifted = self._call(lambda: self._transact(lambda: bool(self._db.execute(query, (tenant, agent)).fetchall())))
        if lifted:
            emit(Event.AGENT_UNFENCED, tenant=tenant, agent=agent)
        return lifted

    def close(self) -> None:
        """Commit what waits, then close the file; doing it again changes nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._writer.submit(self._db.close)
        self._writer.shutdown()

    def _enqueue(self, waiting: _Waiting) -> Future[list[Verdict]]:
        with self._lock:
            self._check_open()
            over = self._queued + len(waiting.releases) > self._max_queued
            if over or self._queued_bytes + waiting.bytes > MAX_QUEUED_BYTES:
                raise Overloaded("too many releases wait for a commit")
            self._queued += len(waiting.releases)
            self._queued_bytes += waiting.bytes
            self._waiting.append(waiting)
            if len(self._waiting) == 1:  # whoever comes before the writer wakes joins this group
                self._writer.submit(self._commit_waiting)
        return waiting.future

    def _commit_waiting(self) -> None:
        with self._lock:
            taken, self._waiting = self._waiting, []
        group = [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]
        verdicts: list[list[Verdict]] | Exception
        try:
            verdicts = self._guarded(lambda: self._transact(lambda: [self._decide_all(one) for one in group]))
        except Exception as error:  # noqa: BLE001  # handed to every caller that waits; the writer must live on
            verdicts = error
        with self._lock:  # before anyone is answered: who comes back at once finds the room that it left
            self._queued -= sum(len(waiting.releases) for waiting in taken)
            self._queued_bytes -= sum(waiting.bytes for waiting in taken)
        if isinstance(verdicts, Exception):
            for waiting in group:
                waiting.future.set_exception(verdicts)
            return
        for waiting, answer in zip(group, verdicts, strict=True):
            waiting.future.set_result(answer)
            _report(waiting, answer)

    def _decide_all(self, waiting: _Waiting) -> list[Verdict]:
        return [self._decide(release, sealed) for release, sealed in waiting.releases]

    def _decide(self, release: Release, sealed: Sealed) -> Verdict:
        agent = (release.tenant, release.agent)
        key = (*agent, release.plan_hash, to_us(release.window_start))
        known = self._db.execute(
            "SELECT hash FROM releases WHERE tenant = ? AND agent = ? AND plan_hash = ? AND window_start_us = ?", key
        ).get
        if known == sealed.hash:
            return Verdict.DUPLICATE
        if known is not None:
            self._db.execute("INSERT OR IGNORE INTO fences VALUES (?, ?)", agent)
            return Verdict.CONFLICT
        if self._db.execute("SELECT 1 FROM fences WHERE tenant = ? AND agent = ?", agent).get:
            return Verdict.FENCED
        self._insert(release, sealed)
        return Verdict.ACCEPTED

    def _insert(self, release: Release, sealed: Sealed) -> None:
        row = {
            "tenant": release.tenant,
            "agent": release.agent,
            "plan": release.plan,
            "plan_hash": bytes(release.plan_hash),
            "window_start_us": to_us(release.window_start),
            "hash": sealed.hash,
            "header": sealed.header,
            "payload": sealed.payload,
            "incarnation": release.link.incarnation,
            "seq": min(release.link.seq, 2**63 - 1),  # the wire has 64 bits, SQLite 63: a liar must not stop the group
            "window_end_us": to_us(release.window_end),
        }
        self._db.execute(
            "INSERT INTO releases (tenant, agent, plan, plan_hash, window_start_us, hash, header, payload) "
            "VALUES (:tenant, :agent, :plan, :plan_hash, :window_start_us, :hash, :header, :payload)",
            row,
        )
        self._db.execute(_SEEN, row)

    def _call(self, work: Callable[[], _T]) -> _T:
        """Run work on the writer thread and wait for it."""
        with self._lock:
            self._check_open()
            future = self._writer.submit(self._guarded, work)
        return future.result()

    def _check_open(self) -> None:
        if self._closed or self._failed:
            raise StoreFailed("the landing is closed, by a shutdown or an I/O error: look at the disk, start again")

    def _guarded(self, work: Callable[[], _T]) -> _T:
        """Map what the disk raises; an error that leaves the file's state unknown ends this landing."""
        try:
            if self._failed:
                raise StoreFailed("the landing met an I/O error: look at the disk, start again")
            return work()
        except (apsw.Error, OSError) as error:
            # What else SQLite may raise (a full disk, a lock) leaves nothing behind: it rolled back and can go on.
            self._failed = isinstance(error, apsw.IOError | apsw.CorruptError | apsw.NotADBError | OSError)
            emit(Event.LANDING_FAILED, cause=type(error).__name__, fatal=int(self._failed))
            raise StoreFailed("the landing could not commit") from None

    def _transact(self, work: Callable[[], _T]) -> _T:
        """Run work in one transaction; what it returns is on the disk."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(apsw.Error):  # SQLite may have rolled back by itself; the first error is the one to tell
                self._db.execute("ROLLBACK")
            raise
        return result


def _report(waiting: _Waiting, verdicts: list[Verdict]) -> None:
    """Log what was committed: counts, and an alarm for each agent that was fenced."""
    counts = Counter(verdicts)
    emit(Event.RELEASE_ACCEPTED, accepted=counts[Verdict.ACCEPTED], duplicates=counts[Verdict.DUPLICATE])
    for (release, _), verdict in zip(waiting.releases, verdicts, strict=True):
        if verdict is Verdict.CONFLICT:
            emit(Event.AGENT_FENCED, tenant=release.tenant, agent=release.agent, plan=release.plan)


def _create(path: Path) -> None:
    """Make the file for its owner alone; SQLite gives the WAL the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    _sync_folder(path.parent.parent)


def _sync_folder(folder: Path) -> None:
    """Make names durable: SQLite syncs what is in its files, and at FULL not that a journal was deleted."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _prepare(db: apsw.Connection) -> None:
    db.set_busy_timeout(5_000)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "full")
    version = db.pragma("user_version")
    if version == 0:
        with db:
            db.execute(_SCHEMA)
            db.execute("INSERT INTO meta VALUES (?)", (secrets.token_hex(16),))
            db.pragma("user_version", SCHEMA_VERSION)
    elif version != SCHEMA_VERSION:
        raise StoreFailed("the landing was written by another version of the collector: run that version")
