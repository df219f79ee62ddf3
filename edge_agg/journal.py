"""The agent's one durable file: charges, sealed releases and source positions.

Place: step 7 of an event's way. One SQLite file, one connection, WAL with `synchronous=FULL`, three transactions:

    T1  the window's attempt and its charge              before noise is drawn
    T2  the sealed bytes, the chain link, the position   after the draw, before anything is sent
    T3  the ack                                          after the collector has committed

Invariants: no charge row, no draw; a sealed release is never made again; the chain has no gaps. On any SQLite error
the journal is finished (JournalFailed): the process ends, and a retried fsync can never pass for a good one.

| table | one row is |
|---|---|
| journal | this file's incarnation and secret |
| plan | a plan that was ever charged, as written, so that an auditor can recompute |
| charge | one attempt at one window (T1); `through_us` is the last window that it covers, if it covers more |
| participation | where a plan bounds windows: the windows that each unit counted in (T1) |
| release | one sealed release (T2); its payload goes once it is acked (T3) |
| part | one file that was read to its end, and how far its rows can reach |
| local_count | what the agent knows about its own data; it stays on the device |
"""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

import apsw

from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.refusal import Refusal
from edge_agg.contract.release import Charge, Link, Sealed, Status
from edge_agg.errors import JournalFailed
from edge_agg.failpoint import failpoint
from edge_agg.lock import FolderLock
from edge_agg.participation import SCHEMA, record_units, spent_units
from edge_agg.privacy.ledger import Entry, total

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from edge_agg.contract.plan import PlanHash

SCHEMA_VERSION = 2
_SCHEMA = (
    """
CREATE TABLE journal (
  incarnation TEXT NOT NULL, secret BLOB NOT NULL, agent TEXT NOT NULL, created_us INTEGER NOT NULL) STRICT;
CREATE TABLE plan (plan_hash BLOB PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL) STRICT;
CREATE TABLE charge (
  account TEXT NOT NULL, plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL, attempt INTEGER NOT NULL,
  rho TEXT NOT NULL, delta TEXT NOT NULL, through_us INTEGER,
  PRIMARY KEY (plan_hash, window_start_us, attempt)) STRICT;
CREATE TABLE release (
  seq INTEGER PRIMARY KEY, plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL, window_end_us INTEGER NOT NULL,
  status TEXT NOT NULL, header BLOB NOT NULL, payload BLOB, hash BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('sealed', 'acked', 'parked')), refusal TEXT,
  UNIQUE (plan_hash, window_start_us)) STRICT;
CREATE INDEX release_waiting ON release (seq) WHERE state = 'sealed';
CREATE TABLE part (
  source TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  reach_us INTEGER NOT NULL, PRIMARY KEY (source, path)) STRICT;
CREATE TABLE local_count (name TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT;
"""
    + SCHEMA
)
_UPGRADES = {1: "ALTER TABLE charge ADD COLUMN through_us INTEGER;" + SCHEMA}
"""What brings a journal from a version to the next; what was charged and released stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A sealed release that has not been acked."""

    seq: int
    sealed: Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The units that a window counts, where a plan bounds the windows of a period."""

    period: datetime
    """Its start."""
    units: Collection[int | str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A release that was refused for good."""

    seq: int
    window_start: datetime
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A part of a source that was read to its end, and how far in event time its rows can reach."""

    source: str
    path: str
    size: int
    mtime_ns: int
    reach: datetime
    """No row of it at or after this moment was taken: a public bound (the clock's, or the history's end), so that which
    parts are opened again after a restart says nothing about their rows."""


class Journal:
    """The open journal of one agent."""

    def __init__(
        self, connection: apsw.Connection, incarnation: str, secret: bytes, agent: str, created: datetime
    ) -> None:
        self._db = connection
        self.incarnation = incarnation
        """A random name given to this file when it was created."""
        self.secret = secret
        """The root of the windows' salts; 32 bytes that never leave the device."""
        self.agent = agent
        """The agent's name."""
        self.created = created
        """When this file was created: an agent on live data has no windows before it."""
        self._lock: FolderLock | None = None
        self._failed = False

    @classmethod
    def open(cls, folder: Path, agent: str, *, now: datetime) -> Self:
        """Open the journal in a folder, or create it (folder 0700, file 0600).

        Raises:
            JournalFailed: the disk refused, or the journal is another agent's or a newer version's.
        """
        with ExitStack() as undo, _as_journal_failed():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = undo.enter_context(FolderLock(folder))
            os.close(os.open(folder / "journal.sqlite", os.O_CREAT | os.O_RDWR, 0o600))
            db = apsw.Connection(str(folder / "journal.sqlite"))
            db.set_busy_timeout(2000)
            db.execute(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA secure_delete=ON"
            )
            version = db.execute("PRAGMA user_version").get
            if version == 0:
                with db:
                    db.execute(_SCHEMA)
                    db.execute(
                        "INSERT INTO journal VALUES (?, ?, ?, ?)",
                        (secrets.token_hex(16), secrets.token_bytes(32), agent, to_us(now)),
                    )
                    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            elif version in _UPGRADES:
                _check_owner(db, agent)
                with db:
                    db.execute(_UPGRADES[version])
                    db.execute(f"PRAGMA user_version={version + 1}")
            for place in (folder, folder.parent):
                _sync(place)
            journal = cls._checked(db, agent)
            journal.hold(lock)
            undo.pop_all()
        return journal

    @classmethod
    def read(cls, folder: Path, agent: str) -> Self:
        """Open an existing journal to look at it, also while the agent runs.

        Raises:
            JournalFailed: there is none, or it cannot be read.
        """
        with _as_journal_failed():
            db = apsw.Connection(str(folder / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
            db.set_busy_timeout(2000)
        return cls._checked(db, agent)

    @classmethod
    def _checked(cls, db: apsw.Connection, agent: str) -> Self:
        with _as_journal_failed():
            version = db.execute("PRAGMA user_version").get
            if version != SCHEMA_VERSION:
                raise JournalFailed(f"the journal has version {version}, this program writes {SCHEMA_VERSION}")
            _check_owner(db, agent)
            rows = db.execute("SELECT incarnation, secret, created_us FROM journal")
            incarnation, secret, created_us = next(iter(rows))
        return cls(db, incarnation, secret, agent, from_us(created_us))

    def hold(self, lock: FolderLock) -> None:
        """Keep a folder's lock as long as the journal is open."""
        self._lock = lock

    def close(self) -> None:
        """Close the file, then let go of the folder."""
        with _as_journal_failed():
            self._db.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # What was charged (T1)

    def charge(
        self,
        *,
        account: str,
        plan_hash: PlanHash,
        name: str,
        text: str,
        entry: Entry,
        counted: Counted | None = None,
    ) -> None:
        """T1: one more attempt at a window, and its charge, committed before anything is drawn.

        The caller has checked that there is room; one process, one thread, so nothing comes between.

        Args:
            account: that pays.
            plan_hash: the plan's.
            name: the plan's.
            text: the plan itself, for an auditor.
            entry: the window and its charge.
            counted: where the plan bounds windows, the units that this one counts.
        """
        failpoint("before_charge")
        window_us = to_us(entry.window_start)
        through_us = None if entry.through is None else to_us(entry.through)
        with self._guarded(), self._db:
            self._db.execute("INSERT OR IGNORE INTO plan VALUES (?, ?, ?)", (plan_hash, name, text))
            attempt = self.attempts(plan_hash, entry.window_start) + 1
            self._db.execute(
                "INSERT INTO charge (account, plan_hash, window_start_us, attempt, rho, delta, through_us) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (account, plan_hash, window_us, attempt, str(entry.charge.rho), str(entry.charge.delta), through_us),
            )
            if counted is not None:
                period_us = to_us(counted.period)
                record_units(self._db, plan_hash, period_us=period_us, window_us=window_us, units=counted.units)
            failpoint("charge_uncommitted")
        failpoint("charge_committed")

    def is_covered(self, plan_hash: PlanHash, window_start: datetime) -> bool:
        """Whether an earlier charge of the plan covers this window too."""
        query = "SELECT count(*) FROM charge WHERE plan_hash=? AND window_start_us<? AND through_us>=?"
        return bool(self._one(query, plan_hash, to_us(window_start), to_us(window_start)))

    def spent_units(
        self, plan_hash: PlanHash, *, period: datetime, window_start: datetime, max_windows: int
    ) -> list[int | str]:
        """The units that have used up their windows of the period before this one; they stay on the device."""
        with self._guarded():
            return spent_units(
                self._db,
                plan_hash,
                period_us=to_us(period),
                window_us=to_us(window_start),
                max_windows=max_windows,
            )

    def attempts(self, plan_hash: PlanHash, window_start: datetime) -> int:
        """How often noise may have been drawn for a window."""
        return int(
            self._one(
                "SELECT count(*) FROM charge WHERE plan_hash=? AND window_start_us=?", plan_hash, to_us(window_start)
            )
        )

    def entries(self, account: str) -> list[Entry]:
        """Every charge of an account, by window."""
        query = "SELECT window_start_us, rho, delta, through_us FROM charge WHERE account=? ORDER BY window_start_us"
        return [
            Entry(
                window_start=from_us(us),
                charge=_charge(rho, delta),
                through=None if through_us is None else from_us(through_us),
            )
            for us, rho, delta, through_us in self._all(query, account)
        ]

    def window_charge(self, plan_hash: PlanHash, window_start: datetime) -> Charge:
        """What a window was charged, all attempts together."""
        rows = self._all(
            "SELECT rho, delta FROM charge WHERE plan_hash=? AND window_start_us=?", plan_hash, to_us(window_start)
        )
        return sum((_charge(rho, delta) for rho, delta in rows), Charge())

    def cumulative(self, account: str) -> Charge:
        """What an account was charged since the journal was created."""
        return total(self.entries(account))

    # What was released (T2)

    def next_link(self) -> Link:
        """The place in the chain that the next release takes."""
        last = self._all("SELECT seq, hash FROM release ORDER BY seq DESC LIMIT 1")
        seq, prev_hash = last[0] if last else (0, b"")
        return Link(incarnation=self.incarnation, seq=seq + 1, prev_hash=prev_hash)

    def seal(
        self,
        *,
        seq: int,
        plan_hash: PlanHash,
        window: tuple[datetime, datetime],
        status: Status,
        sealed: Sealed,
        positions: Sequence[Position],
        local_counts: Mapping[str, int],
    ) -> None:
        """T2: the sealed bytes, the position of every source that was read to here, and the local counts.

        Args:
            seq: from `next_link`, with nothing sealed since.
            plan_hash: the plan's.
            window: its start and end.
            status: what stands behind the window.
            sealed: what will be sent, byte for byte.
            positions: the parts that were read to their end since the last call.
            local_counts: what to add to the device's own counts.
        """
        with self._guarded(), self._db:
            start, end = window
            self._db.execute(
                "INSERT INTO release VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'sealed', NULL)",
                (seq, plan_hash, to_us(start), to_us(end), status.value, sealed.header, sealed.payload, sealed.hash),
            )
            self._note(positions, local_counts)
            failpoint("seal_uncommitted")
        failpoint("seal_committed")

    def note(self, positions: Sequence[Position], local_counts: Mapping[str, int]) -> None:
        """Keep positions and local counts where no window was due."""
        with self._guarded(), self._db:
            self._note(positions, local_counts)

    def _note(self, positions: Sequence[Position], local_counts: Mapping[str, int]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?)",
            [(p.source, p.path, p.size, p.mtime_ns, to_us(p.reach)) for p in positions],
        )
        self._db.executemany(
            "INSERT INTO local_count VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n",
            [(name, n) for name, n in local_counts.items() if n],
        )

    def closed_before(self, plan_hash: PlanHash) -> datetime | None:
        """The end of the last window that was sealed: the high-water mark. No window before it opens again."""
        us = self._one("SELECT max(window_end_us) FROM release WHERE plan_hash=?", plan_hash)
        return None if us is None else from_us(us)

    def positions_within(self, source: str, closed_before: Sequence[datetime | None]) -> list[Position]:
        """The parts that need not be read again: all their rows are in windows that every plan has closed."""
        if not closed_before or any(moment is None for moment in closed_before):
            return []
        least = min(to_us(moment) for moment in closed_before if moment is not None)
        rows = self._all(
            "SELECT path, size, mtime_ns, reach_us FROM part WHERE source=? AND reach_us<=?", source, least
        )
        return [
            Position(source=source, path=path, size=size, mtime_ns=mtime, reach=from_us(us))
            for path, size, mtime, us in rows
        ]

    # What was sent (T3)

    def waiting(self, limit: int, *, skip: Collection[int] = (), max_bytes: int = 4 << 20) -> list[Waiting]:
        """The oldest releases that were not acked, as many as fit `limit` and (but for the first) `max_bytes`."""
        query = "SELECT seq, header, payload, hash FROM release WHERE state='sealed' ORDER BY seq LIMIT ?"
        found: list[Waiting] = []
        size = 0
        for seq, header, payload, hash_ in self._all(query, limit + len(skip)):
            if seq in skip:
                continue
            size += len(header) + len(payload)
            if len(found) == limit or (found and size > max_bytes):
                break
            found.append(Waiting(seq=seq, sealed=Sealed(header=header, payload=payload, hash=hash_)))
        return found

    def settle(self, *, acked: Sequence[int], parked: Sequence[tuple[int, Refusal]]) -> None:
        """T3: acked releases give up their payload; parked ones keep it and say why."""
        with self._guarded(), self._db:
            self._db.executemany(
                "UPDATE release SET state='acked', payload=NULL WHERE seq=?", [(seq,) for seq in acked]
            )
            self._db.executemany(
                "UPDATE release SET state='parked', refusal=? WHERE seq=?",
                [(refusal.value, seq) for seq, refusal in parked],
            )
            failpoint("ack_uncommitted")
        failpoint("ack_committed")

    # What a person may look at, on the device

    def unacked(self) -> int:
        """Releases that wait."""
        return int(self._one("SELECT count(*) FROM release WHERE state='sealed'"))

    def parked(self) -> list[Parked]:
        """Releases that were refused for good, oldest first."""
        rows = self._all("SELECT seq, window_start_us, refusal FROM release WHERE state='parked' ORDER BY seq")
        return [Parked(seq=seq, window_start=from_us(us), refusal=Refusal(refusal)) for seq, us, refusal in rows]

    def oldest_waiting(self) -> datetime | None:
        """The end of the oldest window that waits to be acked."""
        us = self._one("SELECT min(window_end_us) FROM release WHERE state='sealed'")
        return None if us is None else from_us(us)

    def statuses(self, plan_hash: PlanHash) -> dict[str, int]:
        """How many windows of a plan were sealed with each status."""
        return dict(self._all("SELECT status, count(*) FROM release WHERE plan_hash=? GROUP BY status", plan_hash))

    def local_counts(self) -> dict[str, int]:
        """What the agent knows about its own data. For the device's operator alone."""
        return dict(self._all("SELECT name, n FROM local_count ORDER BY name"))

    def _all(self, query: str, *values: Any) -> list[Any]:
        with self._guarded():
            return list(self._db.execute(query, values))

    def _one(self, query: str, *values: Any) -> Any:
        with self._guarded():
            return self._db.execute(query, values).get

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let one thing be done; after the first error nothing more is, whatever the disk says by then."""
        if self._failed:
            raise JournalFailed("the journal has failed: look at the disk, then start again")
        try:
            with _as_journal_failed():
                yield
        except JournalFailed:
            self._failed = True
            raise


def _check_owner(db: apsw.Connection, agent: str) -> None:
    """Refuse another agent's journal, before anything is written to it."""
    if db.execute("SELECT agent FROM journal").get != agent:
        raise JournalFailed("the journal in this folder belongs to another agent")


def _sync(folder: Path) -> None:
    """Make the names in a folder durable; SQLite syncs what is in its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _charge(rho: str, delta: str) -> Charge:
    return Charge(rho=Fraction(rho), delta=Fraction(delta))


@contextmanager
def _as_journal_failed() -> Iterator[None]:
    try:
        yield
    except (apsw.Error, OSError) as error:
        raise JournalFailed(f"the journal could not be read or written ({type(error).__name__})") from None
