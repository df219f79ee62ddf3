"""The landing: where a release becomes durable, exactly once, before it is acked.

Place: after admission and before the ack; the sealer then moves what lies here to the lake. `chain.py` decides what
becomes of a release, `fence.py` shuts agents out, a store has the tables: `landing_file.py` those of one machine,
`landing_server.py` those that collectors on several share. Here is the one writer of a process.
Invariants:
- A verdict is handed out only after the commit that holds its release has been fsynced (promise B1).
- A release that its key or its chain forbids is not stored, and its agent is fenced in the same commit (B2, B6).
- After an I/O error of a file nothing more is taken: a failed fsync is never tried again, because the kernel may have
  dropped the pages and the second try would lie. (A server sees to its own disk; it is asked again.)
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cloud_collector import chain, fence, heads, landing_rows, register, roll_call
from cloud_collector.errors import Overloaded, StoreFailed, StoreUnavailable
from cloud_collector.failpoint import failpoint
from cloud_collector.handover import handed_over
from cloud_collector.landed import Action, AgentSeen, LandedRelease, Reason, Verdict
from cloud_collector.landing_file import LandingFile
from cloud_collector.landing_store import LAST_ID, Broken
from cloud_collector.telemetry import Event, emit
from cloud_collector.whereabouts import Whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from cloud_collector.config import Database
    from cloud_collector.landed import Noted
    from cloud_collector.landing_store import Owned, Store
    from cloud_collector.register import Contact, Expectation
    from cloud_collector.roll_call import Ask, Called
    from edge_agg.contract.head import Head
    from edge_agg.contract.release import Release, Sealed

__all__ = ["AgentSeen", "LandedRelease", "Landing", "Verdict", "store_of"]

_T = TypeVar("_T")

MAX_QUEUED_BYTES = 256 * 2**20
"""Bytes that may wait for a commit, however few the releases are."""


class _Waiting:
    """One call of `land`, until its commit."""

    def __init__(self, releases: Sequence[tuple[Release, Sealed]], loop: asyncio.AbstractEventLoop) -> None:
        self.releases = releases
        self.loop = loop
        self.bytes = sum(len(sealed.header) + len(sealed.payload) for _, sealed in releases)
        self.future: Future[list[Verdict]] = Future()


def store_of(where: Path | Database, *, make: bool = True) -> Store:
    """Open a landing's database: a file, or one on a server.

    Args:
        where: it is.
        make: whether it is made, for its owner alone, when it is missing.

    Raises:
        ConfigInvalid: it is missing and should not be made, or lacks the library that it needs.
        StoreFailed: it cannot be opened, or was written by another version of the collector.
    """
    if isinstance(where, Path):
        return LandingFile(where, make=make)
    from cloud_collector.landing_server import LandingServer  # noqa: PLC0415  # needs the extra `postgres`

    return LandingServer(where, make=make)


class Landing:
    """The store of landed releases: one connection, used by one writer thread.

    Args:
        where: the file or the server's database; made when it is missing.
        max_queued: releases that may wait for a commit.
        new_incarnation: what is done with an agent that comes with another journal than before.

        make: whether it is made when it is missing.

    Raises:
        ConfigInvalid: as :func:`store_of`.
        StoreFailed: as `store_of`.
    """

    def __init__(
        self,
        where: Path | Database,
        *,
        max_queued: int = 4096,
        new_incarnation: chain.NewIncarnation = "accept",
        make: bool = True,
    ) -> None:
        self._max_queued = max_queued
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._queued = self._queued_bytes = 0
        self._closed = self._failed = False
        self._new_incarnation = new_incarnation
        self._store = store_of(where, make=make)
        self._db = self._store.db
        try:
            found: Any = self._store.run(lambda: self._db.execute("SELECT id, restored_us FROM meta").fetchone())
        except Broken as error:
            kind = StoreFailed if error.fatal and isinstance(where, Path) else StoreUnavailable
            raise kind("the landing cannot be opened: look at the disk and the file's owner, or the server") from None
        self._settled = 0
        self._id, self._restored = str(found[0]), found[1] is not None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="landing")

    @property
    def id(self) -> str:
        """A random name made with the file: who the lake knows this landing as."""
        return self._id

    @property
    def restored(self) -> bool:
        """Whether it came out of a backup, and may have forgotten releases that the lake holds."""
        return self._restored

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
        return await asyncio.wrap_future(self._enqueue(_Waiting(releases, asyncio.get_running_loop())))

    def hear(self, head: Head) -> heads.Heard:
        """Hold what an agent says of its journal against what is here; see :func:`cloud_collector.heads.hear`."""
        tries: list[heads.Heard] = []

        def hear() -> None:
            tries.append(heads.hear(self._db, head, new_incarnation=self._new_incarnation))

        self._call(lambda: self._transact(hear, agents=[(head.tenant, head.agent)]))
        alarm = next((one.alarm for one in tries if one.alarm is not None), None)
        if alarm is not None:
            emit(Event.AGENT_FENCED, tenant=head.tenant, agent=head.agent, reason=alarm)
        return tries[-1]

    def unsealed(self, limit: int, *, after: int = 0) -> list[LandedRelease]:
        """The oldest releases that are not in the lake, of ids above `after`."""
        return self._call(lambda: self._unsealed(limit, after))

    def newest(self) -> int:
        """The highest id of what is not in the lake; 0 if all is."""
        return int(self._call(lambda: self._db.execute("SELECT coalesce(max(id), 0) FROM waiting").get))

    def waiting_of(self, plan_hash: bytes) -> dict[tuple[str, str], tuple[int, int]]:
        """Of a plan, what is not in the lake: by tenant and agent, the starts of its first and its last window."""
        query = (
            "SELECT tenant, agents.agent, min(window_start_us), max(window_start_us) "
            "FROM waiting CROSS JOIN releases JOIN agents ON agents.no = releases.agent WHERE releases.id = waiting.id "
            "AND plan = (SELECT no FROM plans WHERE hash = ?) GROUP BY agents.no"
        )
        rows: list[Any] = self._call(lambda: self._db.execute(query, (bytes(plan_hash),)).fetchall())
        return {(tenant, agent): (first_us, last_us) for tenant, agent, first_us, last_us in rows}

    def mark_sealed(self, digests: Mapping[int, bytes]) -> None:
        """Drop the bytes of releases that are in the lake for good; their keys stay, and a digest of what was written.

        Args:
            digests: by id, what :func:`cloud_collector.lake.digest` says of the rows.
        """
        self._call(lambda: self._transact(lambda: landing_rows.mark_sealed(self._db, digests), "mark"))

    def agents(self, tenant: str | None = None, agent: str | None = None, *, limit: int = LAST_ID) -> list[AgentSeen]:
        """Agents that a release was accepted from, or that are fenced, by tenant and name; so many at most."""
        return self._call(lambda: landing_rows.seen(self._db, tenant, agent, limit))

    def fence(self, tenant: str, agent: str, *, who: str, note: str) -> bool:
        """Refuse an agent's new releases from now on; whether it was not fenced already."""
        raised = self._call(
            lambda: self._transact(
                lambda: fence.raise_fence(self._db, tenant, agent, Reason.PERSON, who=who, text=note),
                agents=[(tenant, agent)],
            )
        )
        if raised:
            emit(Event.AGENT_FENCED, tenant=tenant, agent=agent, reason=Reason.PERSON)
        return raised

    def unfence(self, tenant: str, agent: str, *, who: str, note: str) -> bool:
        """Take an agent's new releases again; whether it was fenced."""
        lifted = self._call(
            lambda: self._transact(
                lambda: fence.lift(self._db, tenant, agent, who=who, text=note), agents=[(tenant, agent)]
            )
        )
        if lifted:
            emit(Event.AGENT_UNFENCED, tenant=tenant, agent=agent)
        return lifted

    def audit(self, tenant: str | None = None, agent: str | None = None) -> list[Noted]:
        """What was done about agents, by whom and why, oldest first."""
        return self._call(lambda: fence.noted(self._db, tenant, agent))

    def bind(self, lake: Owned) -> None:
        """Make sure that a lake is the one this landing is sealed into; see :meth:`Store.bind`."""
        self._call(lambda: self._store.bind(lake))

    def turn(self) -> AbstractContextManager[None]:
        """Wait until no collector on another machine seals; see :meth:`Store.turn`."""
        return self._store.turn()

    def close(self) -> None:
        """Commit what waits, then close the store; doing it again changes nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._writer.submit(self._store.close)
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
        tries: list[list[list[chain.Judged]]] = []

        def decide() -> None:
            tries.append(self._decide_group(group))

        try:
            senders = {(release.tenant, release.agent) for one in group for release, _ in one.releases}
            self._guarded(lambda: self._transact(decide, agents=senders))
            verdicts = tries[0] if len(tries) == 1 else _together(tries)
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

    def _decide_group(self, group: Sequence[_Waiting]) -> list[list[chain.Judged]]:
        if self._store.waits:
            return [self._decide_all(one) for one in group]
        return handed_over(group[0].loop, lambda: [self._decide_all(one) for one in group])

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
        """Map what the store raises; an error that leaves its state unknown ends this landing."""
        if self._failed:
            raise StoreFailed("the landing met an I/O error: look at the disk, start again")
        try:
            return self._store.run(work)
        except Broken as error:
            self._failed = error.fatal
            emit(Event.LANDING_FAILED, cause=error.cause, fatal=int(error.fatal))
            kind = StoreFailed if error.fatal else StoreUnavailable
            raise kind("the landing could not commit") from None

    def _transact(
        self, work: Callable[[], _T], point: str = "landing", *, agents: Collection[tuple[str, str]] = ()
    ) -> _T:
        """Run work in one transaction; what it returns is on the disk."""

        def whole() -> _T:
            result = work()
            failpoint(f"{point}_uncommitted")
            return result

        result = self._store.transact(whole, agents)
        failpoint(f"{point}_committed")
        return result

    def note_contacts(self, contacts: Sequence[Contact]) -> None:
        """Remember when agents called, and when their certificates end."""
        self._call(lambda: self._transact(lambda: register.note_contacts(self._db, contacts)))

    def expect(self, ones: Sequence[Expectation], *, who: str) -> None:
        """Expect agents' releases, or no longer; the audit log says who decided."""
        self._call(lambda: self._transact(lambda: register.expect(self._db, ones, who=who)))

    def expected(self, tenant: str | None = None, plan: str | None = None) -> list[Expectation]:
        """Who is expected by name, as far as :meth:`expect` was told."""
        with self._store.reading() as db:
            return register.expected(db, tenant, plan)

    @contextmanager
    def known(self, plan_hash: bytes, name: str, tenant: str | None) -> Iterator[Whereabouts]:
        """What is known of a plan's agents now, whatever lands meanwhile; the writer does not wait for it."""
        with self._store.reading() as db:
            yield Whereabouts(db, plan_hash, name, tenant)

    def roll_call(self, ask: Ask) -> Called:
        """What became of a plan's windows: counts, and the worst few; the writer does not wait for it."""
        with self._store.reading() as db:
            return roll_call.call(db, ask)

    def _unsealed(self, limit: int, after: int) -> list[LandedRelease]:
        """Read up to the last id that nothing can come before any more, which only moves where it must."""
        found = landing_rows.unsealed(self._db, limit, after=after, until=self._settled)
        if len(found) < limit:
            self._settled = self._store.settled()
            found = landing_rows.unsealed(self._db, limit, after=after, until=self._settled)
        return found


def _together(tries: Sequence[list[list[chain.Judged]]]) -> list[list[chain.Judged]]:
    """What is said after several tries of a group."""
    return [[_said(same) for same in zip(*of, strict=True)] for of in zip(*tries, strict=True)]


def _said(tries: Sequence[chain.Judged]) -> chain.Judged:
    """The last try's verdict, and the alarm: an earlier try's, if its commit held and only the answer was lost."""
    last = tries[-1]
    if last.alarm is not None or last.verdict is Verdict.ACCEPTED:
        return last
    return replace(last, alarm=next((one.alarm for one in tries if one.alarm is not None), None))


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
