"""The landing: where a release becomes durable, exactly once, before it is acked.

Place: after admission and before the ack; the sealer then moves what lies here to the lake. `chain.py` decides what
becomes of a release, `fence.py` shuts agents out, `landing_file.py` has the tables; here is the one writer.
Invariants:
- A verdict is handed out only after the commit that holds its release has been fsynced (promise B1).
- A release that its key or its chain forbids is not stored, and its agent is fenced in the same commit (B2, B6).
- After an I/O error nothing more is taken: a failed fsync is never tried again, because the kernel may have dropped the
  pages and the second try would lie.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from cloud_collector import chain, fence, landing_file, register, roll_call
from cloud_collector.errors import Overloaded, StoreFailed
from cloud_collector.failpoint import failpoint
from cloud_collector.landed import Action, AgentSeen, LandedRelease, Reason, Verdict
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.codec import from_us

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from cloud_collector.absence import Known
    from cloud_collector.landed import Noted
    from cloud_collector.register import Contact, Expectation
    from cloud_collector.roll_call import Ask, Called
    from edge_agg.contract.release import Release, Sealed

__all__ = ["AgentSeen", "LandedRelease", "Landing", "Verdict"]

_T = TypeVar("_T")

MAX_QUEUED_BYTES = 256 * 2**20
"""Bytes that may wait for a commit, however few the releases are."""


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
        new_incarnation: what is done with an agent that comes with another journal than before.

    Raises:
        StoreFailed: the file cannot be opened, or was written by a newer collector.
    """

    def __init__(self, path: Path, *, max_queued: int = 4096, new_incarnation: chain.NewIncarnation = "accept") -> None:
        self._max_queued = max_queued
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._queued = self._queued_bytes = 0
        self._closed = self._failed = False
        self._new_incarnation = new_incarnation
        self._path = path
        self._db = landing_file.opened(path)
        try:
            found: Any = self._db.execute("SELECT id, restored_us FROM meta").fetchone()
        except apsw.Error:
            raise StoreFailed("the landing cannot be opened: look at the disk and the file's owner") from None
        self._id, self._restored = str(found[0]), found[1] is not None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="landing")

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
        query = "SELECT id, header, payload FROM waiting WHERE id > ? ORDER BY id LIMIT ?"
        rows: list[Any] = self._call(lambda: self._db.execute(query, (after, limit)).fetchall())
        return [LandedRelease(id=row[0], header=row[1], payload=row[2]) for row in rows]

    def mark_sealed(self, digests: Mapping[int, bytes]) -> None:
        """Drop the bytes of releases that are in the lake for good; their keys stay, and a digest of what was written.

        Args:
            digests: by id, what :func:`cloud_collector.lake.digest` says of the rows.
        """
        rows = [(digest, landing_id) for landing_id, digest in digests.items()]

        def work() -> None:
            self._db.executemany("UPDATE releases SET digest = ? WHERE id = ?", rows)
            self._db.executemany("DELETE FROM waiting WHERE id = ?", ((landing_id,) for landing_id in digests))

        self._call(lambda: self._transact(work, "mark"))

    def agents(self, tenant: str | None = None, agent: str | None = None, *, limit: int = -1) -> list[AgentSeen]:
        """Agents that a release was accepted from, or that are fenced, by tenant and name; so many at most."""
        return self._call(lambda: _seen(self._db, tenant, agent, limit))

    def fence(self, tenant: str, agent: str, *, who: str, note: str) -> bool:
        """Refuse an agent's new releases from now on; whether it was not fenced already."""
        raised = self._call(
            lambda: self._transact(
                lambda: fence.raise_fence(self._db, tenant, agent, Reason.PERSON, who=who, text=note)
            )
        )
        if raised:
            emit(Event.AGENT_FENCED, tenant=tenant, agent=agent, reason=Reason.PERSON)
        return raised

    def unfence(self, tenant: str, agent: str, *, who: str, note: str) -> bool:
        """Take an agent's new releases again; whether it was fenced."""
        lifted = self._call(lambda: self._transact(lambda: fence.lift(self._db, tenant, agent, who=who, text=note)))
        if lifted:
            emit(Event.AGENT_UNFENCED, tenant=tenant, agent=agent)
        return lifted

    def audit(self, tenant: str | None = None, agent: str | None = None) -> list[Noted]:
        """What was done about agents, by whom and why, oldest first."""
        return self._call(lambda: fence.noted(self._db, tenant, agent))

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
        verdicts: list[list[chain.Judged]] | Exception
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
            waiting.future.set_result([one.verdict for one in answer])
            _report(waiting, answer)

    def _decide_all(self, waiting: _Waiting) -> list[chain.Judged]:
        return [
            chain.decide(self._db, release, sealed, new_incarnation=self._new_incarnation, restored=self._restored)
            for release, sealed in waiting.releases
        ]

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

    def _transact(self, work: Callable[[], _T], point: str = "landing") -> _T:
        """Run work in one transaction; what it returns is on the disk."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            failpoint(f"{point}_uncommitted")
            self._db.execute("COMMIT")
            failpoint(f"{point}_committed")
        except BaseException:
            with suppress(apsw.Error):  # SQLite may have rolled back by itself; the first error is the one to tell
                self._db.execute("ROLLBACK")
            raise
        return result

    def note_contacts(self, contacts: Sequence[Contact]) -> None:
        """Remember when agents called, and when their certificates end."""
        self._call(lambda: self._transact(lambda: register.note_contacts(self._db, contacts)))

    def expect(self, ones: Sequence[Expectation], *, who: str) -> None:
        """Expect agents' releases, or no longer; the audit log says who decided."""
        self._call(lambda: self._transact(lambda: register.expect(self._db, ones, who=who)))

    def expected(self, tenant: str | None = None, plan: str | None = None) -> list[Expectation]:
        """Who is expected by name, as far as :meth:`expect` was told."""
        return self._read(lambda db: register.expected(db, tenant, plan))

    def known(self, plan_hash: bytes, name: str, tenant: str | None) -> dict[tuple[str, str], Known]:
        """By tenant and agent, what is known of each as far as a plan is concerned; the writer does not wait for it."""
        return self._read(lambda db: roll_call.known(db, plan_hash, name, tenant))

    def roll_call(self, ask: Ask) -> Called:
        """What became of a plan's windows: counts, and the worst few; the writer does not wait for it."""
        return self._read(lambda db: roll_call.call(db, ask))

    def _read(self, work: Callable[[apsw.Connection], _T]) -> _T:
        """Run work over one snapshot, on a connection of its own."""
        try:
            with closing(apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
                db.set_busy_timeout(5_000)
                db.execute("PRAGMA temp_store = FILE; BEGIN")
                return work(db)
        except apsw.Error:
            raise StoreFailed("the landing cannot be read: look at the disk") from None


def _report(waiting: _Waiting, judged: list[chain.Judged]) -> None:
    """Log what was committed: counts, and an alarm for each agent that a person should look at."""
    counts = Counter(one.verdict for one in judged)
    emit(Event.RELEASE_ACCEPTED, accepted=counts[Verdict.ACCEPTED], duplicates=counts[Verdict.DUPLICATE])
    for (release, _), one in zip(waiting.releases, judged, strict=True):
        about = {"tenant": release.tenant, "agent": release.agent, "plan": release.plan}
        if isinstance(one.alarm, Reason):
            emit(Event.AGENT_FENCED, **about, reason=one.alarm)
        elif one.alarm is Action.REINSTALLED:
            emit(Event.AGENT_REINSTALLED, **about)
        elif one.alarm is Action.BEHIND:
            emit(Event.AGENT_BEHIND, **about)


def _seen(db: apsw.Connection, tenant: str | None, agent: str | None, limit: int) -> list[AgentSeen]:
    query = (
        "SELECT tenant, agents.agent, coalesce(journals.incarnation, x''), coalesce(head_seq, 0), agents.releases, "
        "coalesce(head_seq - journals.releases, 0), agents.journals, last_window_end_us, reason, "
        "EXISTS (SELECT 1 FROM behind WHERE behind.agent = no AND until_us > from_us) "
        "FROM agents LEFT JOIN journals ON journals.agent = no AND journals.journal = agents.journal "
        "LEFT JOIN fences ON fences.agent = no "
        "WHERE (agents.releases > 0 OR reason NOT NULL) AND (?1 IS NULL OR tenant = ?1) "
        "AND (?2 IS NULL OR agents.agent = ?2) ORDER BY tenant, agents.agent LIMIT ?3"
    )
    about = (tenant, agent, limit)
    return [
        AgentSeen(
            tenant=of,
            agent=name,
            incarnation=incarnation.hex(),
            last_seq=seq,
            releases=releases,
            missing=missing,
            journals=journals,
            behind=bool(behind),
            last_window_end=from_us(end_us),
            fence=None if reason is None else Reason(reason),
        )
        for of, name, incarnation, seq, releases, missing, journals, end_us, reason, behind in db.execute(query, about)
    ]
