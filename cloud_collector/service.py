"""The gRPC door: agents push releases through it, analysts ask.

Place: step 9 of an event's path; before it the gate (who calls, and may they?), behind it admission (is it a release of
a known plan?) and the landing (is it kept?).

Invariants:
- A release is taken of the agent that it claims to be of, and of nobody else; an analyst sees one tenant's plans.
- A receipt says accepted or duplicate only after the landing's commit.
- What is refused is refused by the contract's table: a code, a constant text, a status; never words of the caller's.
- An exception that nobody foresaw leaves as INTERNAL and a random id; its text stays inside (promise A6).
- The calls in work are bounded, those of one caller more narrowly; one more is refused with a pushback (promise B7).
- What waits for a thread is a call that somebody still waits for: the bytes of one that was cancelled are let go.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple

import grpc

from cloud_collector import metrics, tracing
from cloud_collector.admission import Refused, admit
from cloud_collector.contacts import Contacts
from cloud_collector.errors import Overloaded, PlanUnknown, QuestionInvalid, StoreFailed
from cloud_collector.gate import caller, fail, refuse
from cloud_collector.groups import MAX_WAITING, Groups, Lands
from cloud_collector.heads import Standing
from cloud_collector.landing import Verdict
from cloud_collector.telemetry import Event, begin_request, emit
from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.head import Head
from edge_agg.contract.refusal import Refusal
from edge_agg.contract.v1 import collector_pb2, query_pb2
from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceServicer
from edge_agg.contract.v1.query_pb2_grpc import QueryServiceServicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator, Sequence
    from typing import Any

    from cloud_collector.admission import Admitted
    from cloud_collector.caller import Caller
    from cloud_collector.heads import Heard
    from cloud_collector.plans import PlanRegistry, RegisteredPlan
    from edge_agg.contract.plan import Plan, PlanHash
    from edge_agg.contract.v1.release_pb2 import SealedRelease

    Context = grpc.aio.ServicerContext[Any, Any]


class Lookup(Protocol):
    """Finds the plan of a hash that a tenant registered, or anybody if that is None."""

    def __call__(self, plan_hash: PlanHash, *, tenant: str | None = None) -> Plan | None:
        """The plan, or None."""
        ...


class Answers(Protocol):
    """Answers analysts' questions, each as one Arrow IPC stream."""

    def answer(self, request: query_pb2.EstimateRequest, asker: Caller) -> bytes:
        """Estimates."""
        ...

    def answer_coverage(self, request: query_pb2.CoverageRequest, asker: Caller) -> bytes:
        """Who reported."""
        ...


class Keeps(Lands, Protocol):
    """What keeps releases, and knows how far each agent is."""

    def hear(self, head: Head) -> Heard:
        """Hold what an agent says of its journal against what is here; blocks."""
        ...


T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CHUNK_BYTES = 256 * 1024
"""An answer is cut into pieces of this size."""
_INLINE_BYTES = 256 * 1024  # a few milliseconds of work; below it, a thread costs more than it frees

_REFUSED = collector_pb2.OUTCOME_REFUSED
_RECEIPTS = {
    Verdict.ACCEPTED: (collector_pb2.OUTCOME_ACCEPTED, ""),
    Verdict.DUPLICATE: (collector_pb2.OUTCOME_DUPLICATE, ""),
    Verdict.CONFLICT: (_REFUSED, str(Refusal.CONFLICT)),
    Verdict.FENCED: (_REFUSED, str(Refusal.FENCED)),
}
_STANDINGS = {
    Standing.KNOWN: collector_pb2.STANDING_KNOWN,
    Standing.UNKNOWN: collector_pb2.STANDING_UNKNOWN,
    Standing.BEHIND: collector_pb2.STANDING_BEHIND,
    Standing.AHEAD: collector_pb2.STANDING_AHEAD,
    Standing.FENCED: collector_pb2.STANDING_FENCED,
}


class Door:
    """What calls of one kind share: how many may be in work, their threads, and what leaves when one fails.

    One agent or analyst may have a quarter of the calls in work; of strangers, the turnstile says how many.
    """

    def __init__(self, *, max_calls: int, threads: int, store_failed: Callable[[], None]) -> None:
        self._max_calls = max_calls
        self._max_of_one = max(1, max_calls // 4)
        self._in_work = 0
        self._of_one: Counter[Hashable] = Counter()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="door")
        self._free = asyncio.Semaphore(threads)
        self._store_failed = store_failed

    async def work(self, job: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run a job in one of the door's threads, once one is free: a pool's own queue forgets nobody who left."""
        run, loop = copy_context().run, asyncio.get_running_loop()  # what the job says belongs to the call
        await self._free.acquire()
        done = self._pool.submit(lambda: run(job, *args))
        done.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))  # not before: it may outlive us
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Wait for the jobs that run and drop those that wait."""
        self._pool.shutdown(cancel_futures=True)

    @asynccontextmanager
    async def opened(self, method: str, context: Context) -> AsyncIterator[None]:
        """Let one call in and map whatever it raises; the body must not abort the context itself."""
        begin_request()
        who = caller()
        key = (who.kind, who.tenant, who.name)
        crowded = who.tenant is not None and self._of_one[key] >= self._max_of_one
        if crowded or self._in_work >= self._max_calls:
            await refuse(method, context, Refusal.OVERLOADED)
        self._count(key, 1)
        try:
            with metrics.timed_call(method), tracing.span(method):
                yield
        except QuestionInvalid as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except PlanUnknown as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except Refused as error:
            await refuse(method, context, error.refusal)
        except Overloaded:
            await refuse(method, context, Refusal.OVERLOADED)
        except StoreFailed:
            self._store_failed()
            await refuse(method, context, Refusal.STORE_FAILED)
        except Exception as error:  # noqa: BLE001  # the last line of promise A6: nothing unforeseen may leave
            await fail(method, context, type(error).__name__)
        finally:
            self._count(key, -1)

    def _count(self, key: Hashable, by: int) -> None:
        self._in_work += by
        self._of_one[key] += by
        if not self._of_one[key]:
            del self._of_one[key]


class CollectorService(CollectorServiceServicer):
    """Takes batches of releases, and hears how far agents are."""

    def __init__(
        self,
        landing: Keeps,
        lookup: Lookup,
        *,
        door: Door,
        max_batch: int,
        max_queued: int = MAX_WAITING,
        contacts: Contacts | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._landing = landing
        self._contacts = Contacts() if contacts is None else contacts
        self._groups = Groups(landing, max_waiting=max_queued)
        self._lookup = lookup
        self._door = door
        self._max_batch = max_batch
        self._now = now

    async def PushReleases(  # noqa: N802  # the contract's name
        self, request: collector_pb2.PushReleasesRequest, context: Context
    ) -> collector_pb2.PushReleasesResponse:
        """Admit each release, land those that were admitted in one commit, and say what became of each, in order."""
        async with self._door.opened("PushReleases", context):
            if len(request.releases) > self._max_batch:
                raise Refused(Refusal.TOO_LARGE)
            judged = await self._admit(request.releases, caller())
            return await self._land(request.releases, judged)
        raise AssertionError  # the door raises what it does not let through

    async def SayHead(  # noqa: N802  # the contract's name
        self, request: collector_pb2.SayHeadRequest, context: Context
    ) -> collector_pb2.SayHeadResponse:
        """Hold what an agent says of its journal against what is here, before it draws."""
        async with self._door.opened("SayHead", context):
            try:
                head = Head.read(request)
            except MalformedRelease:
                raise Refused(Refusal.MALFORMED) from None
            if not caller().sends_for(head.tenant, head.agent):
                raise Refused(Refusal.IDENTITY_MISMATCH)
            heard = await self._door.work(self._landing.hear, head)
            return collector_pb2.SayHeadResponse(standing=_STANDINGS[heard.standing], last_seq=heard.last_seq)
        raise AssertionError  # the door raises what it does not let through

    async def _admit(self, batch: Sequence[SealedRelease], sender: Caller) -> list[Admitted | Refusal]:
        if sum(len(one.payload) for one in batch) <= _INLINE_BYTES:
            return self._admit_now(batch, sender)
        return await self._door.work(self._admit_now, batch, sender)

    def _admit_now(self, batch: Sequence[SealedRelease], sender: Caller) -> list[Admitted | Refusal]:
        judged: list[Admitted | Refusal] = []
        lookup, now = (
            cache(partial(self._lookup, tenant=sender.tenant)),
            self._now(),
        )  # a batch is mostly of one plan: look once
        for one in batch:
            try:
                judged.append(admit(one.header, one.payload, lookup, sender.sends_for, now))
            except Refused as error:
                judged.append(error.refusal)
        return judged

    async def _land(
        self, batch: Sequence[SealedRelease], judged: list[Admitted | Refusal]
    ) -> collector_pb2.PushReleasesResponse:
        admitted = [one for one in judged if not isinstance(one, Refusal)]
        self._contacts.note(caller(), {(one.release.tenant, one.release.agent) for one in admitted})
        landed = [(one.release, one.sealed) for one in admitted]
        with metrics.waiting(len(landed)):
            verdicts = iter(await self._groups.land(landed) if landed else [])
        receipts = []
        for sent, one in zip(batch, judged, strict=True):
            if isinstance(one, Refusal):
                outcome, code, about = _REFUSED, str(one), {}
            else:
                outcome, code = _RECEIPTS[next(verdicts)]
                about = {"agent": one.release.agent}
            if code:
                emit(Event.RELEASE_REFUSED, refusal=code, **about)
            digest = hashlib.sha256(sent.header).digest() if isinstance(one, Refusal) else one.sealed.hash
            receipts.append(collector_pb2.Receipt(release_hash=digest, outcome=outcome, refusal=code))
        return collector_pb2.PushReleasesResponse(receipts=receipts)


class QueryService(QueryServiceServicer):
    """Answers analysts."""

    def __init__(self, registry: PlanRegistry, query: Answers, *, door: Door) -> None:
        self._registry = registry
        self._query = query
        self._door = door

    async def ListPlans(  # noqa: N802  # the contract's name
        self, request: query_pb2.ListPlansRequest, context: Context
    ) -> query_pb2.ListPlansResponse:
        """List the plans that the caller may ask about, by name, then version."""
        del request
        async with self._door.opened("ListPlans", context):
            return query_pb2.ListPlansResponse(plans=_listed(await self._door.work(self._registry.list), caller()))
        raise AssertionError  # the door raises what it does not let through

    async def Estimate(  # noqa: N802  # the contract's name
        self, request: query_pb2.EstimateRequest, context: Context
    ) -> AsyncIterator[query_pb2.EstimateResponse]:
        """Answer one question as one Arrow IPC stream, in pieces."""
        async with self._door.opened("Estimate", context):
            answer = await self._door.work(self._query.answer, request, caller())
            for part in _chunks(
                answer
            ):  # inside the door: a slow reader's answer counts as in work, for as long as the gate gives it
                yield query_pb2.EstimateResponse(arrow=part)

    async def Coverage(  # noqa: N802  # the contract's name
        self, request: query_pb2.CoverageRequest, context: Context
    ) -> AsyncIterator[query_pb2.CoverageResponse]:
        """Say who reported, as one Arrow IPC stream, in pieces."""
        async with self._door.opened("Coverage", context):
            answer = await self._door.work(self._query.answer_coverage, request, caller())
            for part in _chunks(answer):
                yield query_pb2.CoverageResponse(arrow=part)


def _chunks(answer: bytes) -> Iterator[bytes]:
    return (answer[at : at + CHUNK_BYTES] for at in range(0, len(answer), CHUNK_BYTES))


def _listed(plans: Iterable[RegisteredPlan], asker: Caller) -> list[query_pb2.RegisteredPlan]:
    seen = (one for one in plans if asker.may_ask(one.tenant, one.plan.name))
    ordered = sorted(seen, key=lambda one: (one.plan.name, one.plan.version))
    return [query_pb2.RegisteredPlan(plan_hash=one.hash, text=one.text, nodes=one.nodes) for one in ordered]
