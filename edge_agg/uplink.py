"""The way up: sealed releases are sent until they are acked, or refused for good.

Place: step 8 of an event's way. An onion: what waits in the journal > back-off > deadline > one unary call.
Invariants: what is sent is what was sealed, byte for byte; a release is acked only by a receipt that names its hash; a
refusal parks or holds one release and never the others behind it.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from edge_agg.clock import wait_first
from edge_agg.contract.refusal import RULES, Refusal
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.errors import JournalFull
from edge_agg.failpoint import failpoint
from edge_agg.telemetry import Event, emit
from edge_agg.wire import CallFailed, backoff_s

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from edge_agg.clock import Clock
    from edge_agg.departures import Departures
    from edge_agg.identity.renewal import Renewal
    from edge_agg.wire import Waiting, Wire

HOLD_S = 300.0
"""How long a held release waits, seconds; a plan that its collector does not know yet is the usual reason."""


Outcome = Literal["progress", "failed", "idle"]


class Outbox(Protocol):
    """What the uplink needs of the journal."""

    def waiting(self, limit: int, *, skip: Collection[int]) -> Sequence[Waiting]:
        """The oldest releases that wait, but those in `skip`."""
        ...

    def settle(self, *, acked: Sequence[int], parked: Sequence[tuple[int, Refusal]]) -> None:
        """Keep what the receipts said, durably."""
        ...

    def unacked(self) -> int:
        """How many wait."""
        ...


@dataclass(slots=True, kw_only=True)
class Uplink:
    """Sends what the journal holds."""

    journal: Outbox
    wire: Wire
    clock: Clock
    jitter: Callable[[], float]
    """Uniform in [0, 1); `random.random` in production."""
    batch: int
    retry_first_s: float
    retry_limit_s: float
    fenced: Callable[[], None] = lambda: None
    """Told when a receipt says that the agent is shut out."""
    departures: Departures | None = None
    """When what is sealed may leave; at once where there is no schedule."""
    renewal: Renewal | None = None
    """Keeps the wire's certificate young; None where there is none."""
    _held: dict[int, datetime] = field(default_factory=dict)
    _failures: int = 0
    _limit: int | None = None
    _stop: asyncio.Event | None = None
    _pause_limit_s: float = math.inf
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        """Say that something was sealed."""
        self._wake.set()

    @property
    def held(self) -> int:
        """Releases that were refused for now."""
        return len(self._held)

    async def run(self, stop: asyncio.Event) -> None:
        """Send for as long as the agent lives; setting `stop` also ends a back-off."""
        self._stop = stop
        renewing = None if self.renewal is None else asyncio.create_task(self.renewal.run(stop))
        try:
            while not stop.is_set():
                self._wake.clear()
                if await self.send_once() == "idle":
                    await wait_first(self._wake.wait(), stop.wait(), self.clock.wait(HOLD_S))
        finally:
            if renewing is not None:
                if not stop.is_set():  # a journal that failed waits for nobody; else what was begun is finished
                    renewing.cancel()
                await asyncio.wait([renewing])

    async def wait_drained(self, patience_s: float) -> bool:
        """Send until nothing waits, or until nothing was acked for `patience_s` seconds, by the time since boot.

        Returns:
            Whether everything was acked or parked.
        """
        self._stop, self._pause_limit_s, last_s = None, patience_s, self.clock.since_boot_s()
        while self.journal.unacked():
            outcome = await self.send_once()
            if outcome == "progress":
                last_s = self.clock.since_boot_s()
            elif self.clock.since_boot_s() - last_s >= patience_s:
                return False
            elif outcome == "idle":
                self._held.clear()
                await self.clock.wait(self._backoff())
        return True

    async def send_once(self) -> Outcome:
        """Send one batch, oldest first, and settle what its receipts say.

        Returns:
            `progress` where something was settled, `failed` after a call without receipts, or whose receipts the disk
            had no room for (its back-off is over by then), `idle` where nothing waits but what is held.
        """
        try:
            return await self._send_batch()
        except JournalFull:  # told, and the disk had no room to say so: the same bytes go again, and are known
            await self._back_off("JOURNAL_FULL", self._backoff())
            return "failed"

    async def _send_batch(self) -> Outcome:
        if self.departures is not None:
            await self.departures.wait()
        self._release_held()
        batch = self.journal.waiting(self._limit or self.batch, skip=self._held.keys())
        if not batch:
            return "idle"
        failpoint("before_send")
        try:
            receipts = await self.wire.push(batch)
        except CallFailed as failed:
            return await self._after_failure(failed, batch)
        if [receipt.release_hash for receipt in receipts] != [waiting.sealed.hash for waiting in batch]:
            mismatch = CallFailed("RECEIPTS_DO_NOT_MATCH", pushback_s=None, too_large=False)
            return await self._after_failure(mismatch, batch)
        failpoint("receipts_arrived")
        self._limit = None
        settled, retry = self._settle(batch, receipts)
        if retry is None:
            self._failures = 0
            return "progress" if settled else "idle"
        await self._back_off(retry, self._backoff())
        return "progress" if settled else "failed"

    def _settle(self, batch: Sequence[Waiting], receipts: Sequence[pb.Receipt]) -> tuple[bool, Refusal | None]:
        """Keep what the receipts say; whether anything was settled, and a refusal that wants the same bytes again."""
        retry: Refusal | None = None
        acked: list[int] = []
        parked: list[tuple[int, Refusal]] = []
        for waiting, receipt in zip(batch, receipts, strict=True):
            if receipt.outcome in {pb.OUTCOME_ACCEPTED, pb.OUTCOME_DUPLICATE}:
                acked.append(waiting.seq)
                continue
            refusal = _refusal(receipt.refusal)
            if refusal is Refusal.FENCED:
                self.fenced()
            match RULES[refusal].verdict:
                case "park":
                    parked.append((waiting.seq, refusal))
                case "hold":
                    self._hold(waiting.seq, refusal)
                case "retry":
                    retry = refusal
        self.journal.settle(acked=acked, parked=parked)
        if acked:
            size = sum(len(w.sealed.header) + len(w.sealed.payload) for w in batch if w.seq in acked)
            emit(Event.RELEASES_ACKED, releases=len(acked), payload_bytes=size)
        for seq, refusal in parked:
            emit(Event.RELEASE_PARKED, seq=seq, refusal=refusal.value)
        return bool(acked or parked), retry

    def _hold(self, seq: int, refusal: Refusal) -> None:
        self._held[seq] = self.clock.now()
        emit(Event.RELEASE_HELD, seq=seq, refusal=refusal.value)

    def _release_held(self) -> None:
        now = self.clock.now()
        self._held = {seq: since for seq, since in self._held.items() if abs((now - since).total_seconds()) < HOLD_S}

    async def _after_failure(self, failed: CallFailed, batch: Sequence[Waiting]) -> Outcome:
        if failed.too_large and len(batch) > 1:
            self._limit = max(1, len(batch) // 2)
            return "progress"
        if failed.too_large:
            self.journal.settle(acked=[], parked=[(batch[0].seq, Refusal.TOO_LARGE)])
            emit(Event.RELEASE_PARKED, seq=batch[0].seq, refusal=Refusal.TOO_LARGE.value)
            return "progress"
        retry_s = self._backoff() if failed.pushback_s is None else failed.pushback_s * (1 + self.jitter())
        await self._back_off(failed.status, retry_s)
        return "failed"

    async def _back_off(self, status: str, retry_s: float) -> None:
        """Wait, but not beyond the end of the agent or of a drain's patience."""
        self._failures += 1
        retry_s = min(retry_s, self._pause_limit_s)
        emit(Event.SEND_FAILED, status=status, retry_s=round(retry_s, 3))
        if self._stop is None:
            await self.clock.wait(retry_s)
        else:
            await wait_first(self.clock.wait(retry_s), self._stop.wait())

    def _backoff(self) -> float:
        return backoff_s(self._failures, self.retry_first_s, self.retry_limit_s, jitter=self.jitter)


def _refusal(code: str) -> Refusal:
    """A code that this agent does not know yet is kept and tried again, not thrown away."""
    try:
        return Refusal(code)
    except ValueError:
        return Refusal.INTERNAL
