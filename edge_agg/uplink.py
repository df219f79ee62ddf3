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

import grpc
import grpc.aio

from edge_agg.clock import wait_first
from edge_agg.contract.address import is_loopback
from edge_agg.contract.refusal import PUSHBACK_KEY, RULES, Refusal
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.contract.v1 import collector_pb2_grpc, release_pb2
from edge_agg.errors import ConfigInvalid, JournalFull
from edge_agg.failpoint import failpoint
from edge_agg.telemetry import Event, emit

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from edge_agg.clock import Clock
    from edge_agg.contract.release import Sealed
    from edge_agg.identity.credentials import Credentials
    from edge_agg.identity.renewal import Renewal

HOLD_S = 300.0
"""How long a held release waits, seconds; a plan that its collector does not know yet is the usual reason."""


Outcome = Literal["progress", "failed", "idle"]


class CallFailed(Exception):
    """One call brought no receipts: the same bytes go again after `retry_s`, or in smaller batches."""

    def __init__(self, status: str, *, pushback_s: float | None, too_large: bool) -> None:
        super().__init__(status)
        self.status = status
        """The name of the gRPC status."""
        self.pushback_s = pushback_s
        """How long the collector asked to wait."""
        self.too_large = too_large
        """Whether the message, rather than the collector, is the trouble."""


class Waiting(Protocol):
    """A sealed release that has not been acked."""

    @property
    def seq(self) -> int:
        """Its place in the chain."""
        ...

    @property
    def sealed(self) -> Sealed:
        """The bytes that were stored and will be sent."""
        ...


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


class Wire(Protocol):
    """One call to the collector."""

    async def push(self, batch: Sequence[Waiting]) -> list[pb.Receipt]:
        """Send a batch.

        Raises:
            CallFailed: nobody knows what became of the batch; send the same bytes again.
        """
        ...

    async def close(self) -> None:
        """Hang up."""
        ...


class GrpcWire:
    """The collector over gRPC.

    Args:
        address: `host:port`.
        deadline_s: how long one call may take.
        credentials: the agent's identity; the channel is built anew whenever its files have changed.

    Raises:
        ConfigInvalid: the address is not loopback, and there are no credentials.
    """

    def __init__(self, address: str, *, deadline_s: float, credentials: Credentials | None = None) -> None:
        if credentials is None and not is_loopback(address):
            raise ConfigInvalid("$.collector.url: without ca_file, cert_file and key_file only loopback is spoken to")
        self._address = address
        self._deadline_s = deadline_s
        self._credentials = credentials
        self._held = None if credentials is None else credentials.held()
        self._dial()

    def _dial(self) -> None:
        options = [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        if self._held is None:
            self._channel = grpc.aio.insecure_channel(self._address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(self._address, self._held.channel, options=options)
        self._stub = collector_pb2_grpc.CollectorServiceStub(self._channel)

    async def _dial_if_changed(self) -> None:
        held = None if self._credentials is None else self._credentials.held()
        if held is not self._held:
            await self._channel.close()  # between two calls: none is cut off
            self._held = held
            self._dial()

    async def push(self, batch: Sequence[Waiting]) -> list[pb.Receipt]:
        """Send a batch; see :class:`Wire`."""
        await self._dial_if_changed()
        request = pb.PushReleasesRequest(
            releases=[release_pb2.SealedRelease(header=w.sealed.header, payload=w.sealed.payload) for w in batch]
        )
        try:
            response = await self._stub.PushReleases(request, timeout=self._deadline_s)
        except grpc.aio.AioRpcError as error:
            pushback = _pushback(error)
            exhausted = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            raise CallFailed(error.code().name, pushback_s=pushback, too_large=exhausted and pushback is None) from None
        return list(response.receipts)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


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
        """Send until nothing waits, or until nothing was acked for `patience_s` seconds.

        Returns:
            Whether everything was acked or parked.
        """
        self._stop, self._pause_limit_s, last = None, patience_s, self.clock.now()
        while self.journal.unacked():
            outcome = await self.send_once()
            if outcome == "progress":
                last = self.clock.now()
            elif (self.clock.now() - last).total_seconds() >= patience_s:
                return False
            elif outcome == "idle":
                self._held.clear()
                await self.clock.wait(self._backoff())
        return True

    async def send_once(self) -> Outcome:
        """Send one batch, oldest first, and settle what its receipts say.

        Returns:
            `progress` where something was settled, `failed` after a call without receipts (its back-off is over by
            then), `idle` where nothing waits but what is held.
        """
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
        try:
            settled, retry = self._settle(batch, receipts)
        except JournalFull:  # acked, and the disk had no room to say so: the same bytes go again, and are known
            await self._back_off("JOURNAL_FULL", self._backoff())
            return "failed"
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
        """Exponential with full jitter, so that a fleet does not come back all at once."""
        ceiling = min(self.retry_limit_s, self.retry_first_s * 2.0 ** min(self._failures, 30))
        return ceiling * (0.1 + 0.9 * self.jitter())


def _refusal(code: str) -> Refusal:
    """A code that this agent does not know yet is kept and tried again, not thrown away."""
    try:
        return Refusal(code)
    except ValueError:
        return Refusal.INTERNAL


def _pushback(error: grpc.aio.AioRpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY and str(value).isdigit():
            return int(value) / 1000
    return None
