"""The three transactions of a release's life, and what is asked of the file between them.

Place: step 7 of an event's way. One SQLite file, one connection, WAL with `synchronous=FULL`:

    T1  the window's attempt and its charge              before noise is drawn
    T2  the sealed bytes, the chain link, the position   after the draw, before anything is sent
    T3  the ack                                          after the collector has committed

Invariants: no charge row, no draw; a sealed release is never made again; the chain has no gaps. Where there is no room
(JournalFull) a transaction leaves nothing and may be tried again: T1 is not begun without the ballast, T2 and T3 may
use it up, so what was charged can be sealed. On any other error the journal is finished (JournalFailed): the process
ends, and a retried fsync can never pass for a good one.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Self

from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.refusal import Refusal
from edge_agg.contract.release import Charge, Link, Sealed, Status
from edge_agg.errors import JournalFull
from edge_agg.failpoint import failpoint
from edge_agg.journal import schema
from edge_agg.journal.ballast import Ballast
from edge_agg.journal.file import NAME, File
from edge_agg.journal.positions import done_positions, note_positions, tidy_positions
from edge_agg.journal.rim import as_journal_failed, sync_folder
from edge_agg.journal.rows import Counted, Parked, Position, Waiting
from edge_agg.lock import FolderLock
from edge_agg.participation import as_array, record_units, spent_units
from edge_agg.privacy.ledger import Book, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    import pyarrow as pa

    from edge_agg.contract.plan import PlanHash


class Journal:
    """The open journal of one agent."""

    def __init__(self, file: File, agent: str) -> None:
        self._file = file
        incarnation, secret, created_us = file.all("SELECT incarnation, secret, created_us FROM journal")[0]
        self.incarnation: str = incarnation
        """A random name given to this file when it was created."""
        self.secret: bytes = secret
        """The root of the windows' salts; 32 bytes that never leave the device."""
        self.agent = agent
        """The agent's name."""
        self.created = from_us(created_us)
        """When this file was created: no time before it can be right."""
        self.is_fresh = False
        """Whether this file was made when it was opened here: no copy of it can be older."""
        self._lock: FolderLock | None = None
        self._ballast = Ballast(file.folder)
        self._books: dict[str, Book] = {}

    @classmethod
    def open(cls, folder: Path, agent: str, *, now: datetime) -> Self:
        """Open the journal in a folder, or create it (folder 0700, files 0600).

        Raises:
            JournalFull: the disk has no room, or is read-only.
            JournalFailed: the disk refused, or the journal is another agent's or a newer version's.
        """
        try:
            return cls._open(folder, agent, now=now)
        except JournalFull:
            if not Ballast(folder).give_up():
                raise
        return cls._open(folder, agent, now=now)

    @classmethod
    def _open(cls, folder: Path, agent: str, *, now: datetime) -> Self:
        with ExitStack() as undo, as_journal_failed(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = undo.enter_context(FolderLock(folder))
            os.close(os.open(folder / NAME, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            file = File.to_write(folder)
            undo.callback(file.db.close)
            is_fresh = schema.prepare(file, agent, now=now)
            for place in (folder, folder.parent):
                sync_folder(place)
            journal = cls(file, agent)
            journal.is_fresh = is_fresh
            journal.hold(lock)
            journal._ballast.make()
            undo.pop_all()
        return journal

    @classmethod
    def read(cls, folder: Path, agent: str) -> Self:
        """Open an existing journal to look at it, also while the agent runs, and one that an older program wrote.

        Raises:
            JournalFailed: there is none, or it cannot be read.
        """
        with as_journal_failed(folder):
            file = File.to_read(folder)
            schema.check(file, agent)
            return cls(schema.as_of_now(file), agent)

    def hold(self, lock: FolderLock) -> None:
        """Keep a folder's lock as long as the journal is open."""
        self._lock = lock

    def close(self) -> None:
        """Close the file, then let go of the folder."""
        self._file.close()
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

        The caller has checked that the account has room; one process, one thread, so nothing comes between.

        Args:
            account: that pays.
            plan_hash: the plan's.
            name: the plan's.
            text: the plan itself, for an auditor.
            entry: the window and its charge.
            counted: where the plan bounds windows, the units that this one counts.

        Raises:
            JournalFull: nothing was charged, nothing may be drawn; try again when there is room.
            JournalFailed: nothing more may be drawn; the process ends.
        """
        failpoint("before_charge")
        if not self.restore_ballast():
            raise JournalFull("the disk has no room to finish a window: none is begun")
        window_us = to_us(entry.window_start)
        through_us = None if entry.through is None else to_us(entry.through)
        book = self.book(account)
        with self._file.transaction():
            self._file.db.execute("INSERT OR IGNORE INTO plan VALUES (?, ?, ?)", (plan_hash, name, text))
            attempt = self.attempts(plan_hash, entry.window_start) + 1
            self._file.db.execute(
                "INSERT INTO charge (account, plan_hash, window_start_us, attempt, rho, delta, through_us) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (account, plan_hash, window_us, attempt, str(entry.charge.rho), str(entry.charge.delta), through_us),
            )
            if counted is not None:
                period_us = to_us(counted.period)
                record_units(self._file.db, plan_hash, period_us=period_us, window_us=window_us, units=counted.units)
            failpoint("charge_uncommitted")
        book.add(entry)
        failpoint("charge_committed")

    def charged(self) -> set[tuple[str, bytes]]:
        """Every account that was ever charged, with the hash of each plan that it was charged for."""
        return set(self._file.all("SELECT DISTINCT account, plan_hash FROM charge"))

    def is_covered(self, account: str, plan_hash: PlanHash, window_start: datetime) -> bool:
        """Whether the account was charged for an earlier window of the plan in a way that covers this one too."""
        query = "SELECT 1 FROM charge WHERE account=? AND plan_hash=? AND window_start_us<? AND through_us>=? LIMIT 1"
        return bool(self._file.one(query, account, plan_hash, to_us(window_start), to_us(window_start)))

    def spent_units(
        self, plan_hash: PlanHash, *, period: datetime, window_start: datetime, max_windows: int, integers: bool
    ) -> pa.Array:
        """The units that have used up their windows of the period before this one; they stay on the device.

        Returns:
            Their ids, int64 if they are `integers`, large_string if not.
        """
        with self._file.guarded():
            spent = spent_units(
                self._file.db,
                plan_hash,
                period_us=to_us(period),
                window_us=to_us(window_start),
                max_windows=max_windows,
            )
            return as_array(spent, integers=integers)

    def attempts(self, plan_hash: PlanHash, window_start: datetime) -> int:
        """How often noise may have been drawn for a window."""
        return int(
            self._file.one(
                "SELECT count(*) FROM charge WHERE plan_hash=? AND window_start_us=?", plan_hash, to_us(window_start)
            )
        )

    def entries(self, account: str) -> list[Entry]:
        """Every charge of an account, by window. A long list after years: `book` answers without it."""
        query = "SELECT window_start_us, rho, delta, through_us FROM charge WHERE account=? ORDER BY window_start_us"
        return [
            Entry(
                window_start=from_us(us),
                charge=_charge(rho, delta),
                through=None if through_us is None else from_us(through_us),
            )
            for us, rho, delta, through_us in self._file.all(query, account)
        ]

    def book(self, account: str) -> Book:
        """The account's charges, added up; kept in step with every commit."""
        if account not in self._books:
            rows = self._file.all(
                "SELECT rho, delta, count(*) FROM charge WHERE account=? GROUP BY rho, delta", account
            )
            sum_ = sum((_charge(rho, delta) * n for rho, delta, n in rows), Charge())
            self._books[account] = Book(sum_, lambda: self._charges(account))
        return self._books[account]

    def _charges(self, account: str) -> Iterator[tuple[int, int, Charge]]:
        query = "SELECT window_start_us, ifnull(through_us, window_start_us), rho, delta FROM charge WHERE account=?"
        with self._file.guarded():
            for first, last, rho, delta in self._file.db.execute(query, (account,)):
                yield first, last, _charge(rho, delta)

    def window_charge(self, plan_hash: PlanHash, window_start: datetime) -> Charge:
        """What a window was charged, all attempts together."""
        rows = self._file.all(
            "SELECT rho, delta FROM charge WHERE plan_hash=? AND window_start_us=?", plan_hash, to_us(window_start)
        )
        return sum((_charge(rho, delta) for rho, delta in rows), Charge())

    def cumulative(self, account: str) -> Charge:
        """What an account was charged since the journal was created."""
        return self.book(account).total

    # What was released (T2)

    def next_link(self) -> Link:
        """The place in the chain that the next release takes."""
        last = self._file.all("SELECT seq, hash FROM release ORDER BY seq DESC LIMIT 1")
        seq, prev_hash = last[0] if last else (0, b"")
        return Link(incarnation=self.incarnation, seq=seq + 1, prev_hash=prev_hash)

    def places(self, also: int = 0) -> tuple[tuple[int, bytes], ...]:
        """The last place of the chain and the hash that stands there, after another place if one is wanted."""
        query = "SELECT seq, hash FROM release WHERE seq IN (?, (SELECT max(seq) FROM release)) ORDER BY seq"
        return tuple((seq, digest) for seq, digest in self._file.all(query, also))

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

        Raises:
            JournalFull: nothing was sealed, though the ballast was given up. Try again with the same bytes.
            JournalFailed: the process ends.
        """
        start, end = window

        def write() -> None:
            with self._file.transaction():
                self._file.db.execute(
                    "INSERT INTO release VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'sealed', NULL)",
                    (
                        seq,
                        plan_hash,
                        to_us(start),
                        to_us(end),
                        status.value,
                        sealed.header,
                        sealed.payload,
                        sealed.hash,
                    ),
                )
                self._note(positions, local_counts)
                failpoint("seal_uncommitted")

        self._finish(write)
        failpoint("seal_committed")

    def note(self, positions: Sequence[Position], local_counts: Mapping[str, int]) -> None:
        """Keep positions and local counts where no window was due.

        Raises:
            JournalFull: nothing was kept; hold on to them and try again.
            JournalFailed: the process ends.
        """
        with self._file.transaction():
            self._note(positions, local_counts)

    def _note(self, positions: Sequence[Position], local_counts: Mapping[str, int]) -> None:
        note_positions(self._file.db, positions)
        self._file.db.executemany(
            "INSERT INTO local_count VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n",
            [(name, n) for name, n in local_counts.items() if n],
        )

    def closed_before(self, plan_hash: PlanHash) -> datetime | None:
        """The end of the last window that was sealed: the high-water mark. No window before it opens again."""
        # A plan's windows are of one length, so the last to start is the last to end; of starts there is an index.
        query = "SELECT window_end_us FROM release WHERE plan_hash=? ORDER BY window_start_us DESC LIMIT 1"
        us = self._file.one(query, plan_hash)
        return None if us is None else from_us(us)

    def positions_within(self, source: str, closed_before: Sequence[datetime | None]) -> list[Position]:
        """The parts that need not be read again: all their rows are in windows that every plan has closed."""
        if (least := _least(closed_before)) is None:
            return []
        with self._file.guarded():
            return done_positions(self._file.db, source, least)

    def tidy_positions(
        self, source: str, closed_before: Sequence[datetime | None], *, present: Collection[str] | None = None
    ) -> None:
        """Keep the table of parts small: now and then, once windows have closed.

        Args:
            source: whose parts.
            closed_before: by plan, as for `positions_within`.
            present: if given, the paths that are still there: done parts of others are forgotten.
        """
        if (least := _least(closed_before)) is not None:
            with self._file.transaction():
                tidy_positions(self._file.db, source, least, present)

    # The time, and the room on the disk

    @property
    def last_seen(self) -> datetime | None:
        """The wall time that was noted last, or None."""
        us = self._file.one("SELECT wall_us FROM clock")
        return None if us is None else from_us(us)

    def note_clock(self, now: datetime) -> None:
        """Note the wall time; about once a minute is enough.

        Raises:
            JournalFull: it was not noted.
            JournalFailed: the process ends.
        """
        with self._file.transaction():
            self._file.db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?)", (to_us(now),))

    def first_run(self, plan_hash: PlanHash) -> datetime | None:
        """When a plan first ran on live data, or None: it has no windows before."""
        us = self._file.one("SELECT since_us FROM first_run WHERE plan_hash=?", plan_hash)
        return None if us is None else from_us(us)

    def carry_first_runs(self, plan_hashes: Iterable[PlanHash]) -> None:
        """Have plans begin with the journal if an older version wrote it and they had closed no window yet; once.

        Raises:
            JournalFull: it was not noted.
            JournalFailed: the process ends.
        """
        since_us = self._file.one("SELECT since_us FROM first_run WHERE plan_hash = x''")
        if since_us is None:
            return
        with self._file.transaction():
            rows = [(one, since_us) for one in plan_hashes]
            self._file.db.executemany("INSERT OR IGNORE INTO first_run VALUES (?, ?)", rows)
            self._file.db.execute("DELETE FROM first_run WHERE plan_hash = x''")

    def note_first_run(self, plan_hash: PlanHash, since: datetime) -> None:
        """Note when a plan first ran; once more where the clock turned out to have been wrong then.

        Raises:
            JournalFull: it was not noted.
            JournalFailed: the process ends.
        """
        with self._file.transaction():
            self._file.db.execute("INSERT OR REPLACE INTO first_run VALUES (?, ?)", (plan_hash, to_us(since)))

    @property
    def bytes_used(self) -> int:
        """Bytes of the file that hold something; the file itself never shrinks."""
        pages = self._file.one("PRAGMA page_count") - self._file.one("PRAGMA freelist_count")
        return int(pages * self._file.one("PRAGMA page_size"))

    @property
    def has_ballast(self) -> bool:
        """Whether there is room set aside to finish a window: if not, the disk is as good as full."""
        return self._ballast.is_there

    def restore_ballast(self) -> bool:
        """Set the room aside again if there is so much by now; returns whether it is there."""
        with self._file.guarded():
            return self._ballast.make()

    # What was sent (T3)

    def waiting(self, limit: int, *, skip: Collection[int] = (), max_bytes: int = 4 << 20) -> list[Waiting]:
        """The oldest releases that were not acked, as many as fit `limit` and (but for the first) `max_bytes`."""
        query = "SELECT seq, header, payload, hash FROM release WHERE state='sealed' ORDER BY seq LIMIT ?"
        found: list[Waiting] = []
        size = 0
        for seq, header, payload, hash_ in self._file.all(query, limit + len(skip)):
            if seq in skip:
                continue
            size += len(header) + len(payload)
            if len(found) == limit or (found and size > max_bytes):
                break
            found.append(Waiting(seq=seq, sealed=Sealed(header=header, payload=payload, hash=hash_)))
        return found

    def settle(self, *, acked: Sequence[int], parked: Sequence[tuple[int, Refusal]]) -> None:
        """T3: acked releases give up their payload; parked ones keep it and say why.

        Raises:
            JournalFull: nothing was settled, though the ballast was given up. They will be sent again.
            JournalFailed: the process ends.
        """

        def write() -> None:
            with self._file.transaction():
                self._file.db.executemany(
                    "UPDATE release SET state='acked', payload=NULL WHERE seq=?", [(seq,) for seq in acked]
                )
                self._file.db.executemany(
                    "UPDATE release SET state='parked', refusal=? WHERE seq=?",
                    [(refusal.value, seq) for seq, refusal in parked],
                )
                failpoint("ack_uncommitted")

        self._finish(write)
        failpoint("ack_committed")

    # What a person may look at, on the device

    def unacked(self) -> int:
        """Releases that wait."""
        return int(self._file.one("SELECT count(*) FROM release WHERE state='sealed'"))

    def parked(self) -> list[Parked]:
        """Releases that were refused for good, oldest first."""
        rows = self._file.all("SELECT seq, window_start_us, refusal FROM release WHERE state='parked' ORDER BY seq")
        return [Parked(seq=seq, window_start=from_us(us), refusal=Refusal(refusal)) for seq, us, refusal in rows]

    def oldest_waiting(self) -> datetime | None:
        """The end of the oldest window that waits to be acked."""
        us = self._file.one("SELECT min(window_end_us) FROM release WHERE state='sealed'")
        return None if us is None else from_us(us)

    def statuses(self, plan_hash: PlanHash) -> dict[str, int]:
        """How many windows of a plan were sealed with each status."""
        return dict(self._file.all("SELECT status, count(*) FROM release WHERE plan_hash=? GROUP BY status", plan_hash))

    def local_counts(self) -> dict[str, int]:
        """What the agent knows about its own data. For the device's operator alone."""
        return dict(self._file.all("SELECT name, n FROM local_count ORDER BY name"))

    def _finish(self, write: Callable[[], None]) -> None:
        """Do what must go through: where there is no room, in the ballast's."""
        try:
            write()
        except JournalFull:
            if not self._ballast.give_up():
                raise
            write()


def _least(closed_before: Sequence[datetime | None]) -> int | None:
    """Where the slowest plan has closed to, or None if one has closed nothing."""
    known = [to_us(moment) for moment in closed_before if moment is not None]
    return min(known) if known and len(known) == len(closed_before) else None


@lru_cache(maxsize=64)
def _charge(rho: str, delta: str) -> Charge:
    return Charge(rho=Fraction(rho), delta=Fraction(delta))
