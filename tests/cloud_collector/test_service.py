"""What the gRPC door lets in and what it lets out, over a real socket with fakes behind it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import threading
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest

from cloud_collector import gate
from cloud_collector import service as room
from cloud_collector.caller import LOCAL, Caller, Kind
from cloud_collector.errors import Overloaded, PlanUnknown, QuestionInvalid, StoreFailed
from cloud_collector.gate import PUSHBACK_MS, Gate, local
from cloud_collector.landing import Verdict
from cloud_collector.service import CHUNK_BYTES, CollectorService, Door, QueryService
from edge_agg.contract.plan import plan_hash
from edge_agg.contract.refusal import PUSHBACK_KEY, REFUSAL_KEY, RULES, Refusal
from edge_agg.contract.v1 import collector_pb2, query_pb2
from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceStub, add_CollectorServiceServicer_to_server
from edge_agg.contract.v1.query_pb2_grpc import QueryServiceStub, add_QueryServiceServicer_to_server
from tests.cloud_collector.front import PLAN, FakeRegistry, registered, release, request, week

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from datetime import datetime

    from edge_agg.contract.plan import Plan
    from edge_agg.contract.release import Release, Sealed
    from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceAsyncStub
    from edge_agg.contract.v1.query_pb2_grpc import QueryServiceAsyncStub

CANARY = "canary-4711"
LATER = week(50)
ACCEPTED, DUPLICATE, REFUSED = (
    (collector_pb2.OUTCOME_ACCEPTED, ""),
    (collector_pb2.OUTCOME_DUPLICATE, ""),
    collector_pb2.OUTCOME_REFUSED,
)


@dataclass
class FakeLanding:
    """Hands out the verdicts it was given, or raises."""

    verdicts: list[Verdict] = field(default_factory=list)
    error: Exception | None = None
    landed: list[Release] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def land(self, releases: Sequence[tuple[Release, Sealed]]) -> list[Verdict]:
        """Once let go, answer or raise."""
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        self.landed += [one for one, _ in releases]
        return [self.verdicts.pop(0) if self.verdicts else Verdict.ACCEPTED for _ in releases]


@dataclass
class Doors:
    """A service on a port, and what stands behind it."""

    landing: FakeLanding
    push: CollectorServiceAsyncStub
    query: QueryServiceAsyncStub
    failures: list[str]


@dataclass
class FakeAnswers:
    """Answers every question alike."""

    said: Callable[[Any, Caller], bytes]

    def answer(self, request: query_pb2.EstimateRequest, asker: Caller) -> bytes:
        """As it was told."""
        return self.said(request, asker)

    def answer_coverage(self, request: query_pb2.CoverageRequest, asker: Caller) -> bytes:
        """The same."""
        return self.said(request, asker)


def lookup(wanted: bytes, *, tenant: str | None = None) -> Plan | None:
    return PLAN if wanted == plan_hash(PLAN) else None


@contextlib.asynccontextmanager
async def opened(
    landing: FakeLanding | None = None,
    answer: Callable[[query_pb2.EstimateRequest, Caller], bytes] = lambda *_: b"",
    *,
    max_batch: int = 4,
    max_calls: int = 8,
    now: datetime = LATER,
) -> AsyncIterator[Doors]:
    landing = FakeLanding() if landing is None else landing
    failures: list[str] = []
    door = Door(max_calls=max_calls, threads=2, store_failed=lambda: failures.append("store"))
    server = grpc.aio.server(interceptors=[Gate(local)])
    collector = CollectorService(landing, lookup, door=door, max_batch=max_batch, now=lambda: now)  # type: ignore[arg-type]  # a fake
    query = QueryService(FakeRegistry(registered("a", "b")), FakeAnswers(answer), door=door)  # type: ignore[arg-type]  # a fake
    add_CollectorServiceServicer_to_server(collector, server)
    add_QueryServiceServicer_to_server(query, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Doors(landing, CollectorServiceStub(channel), QueryServiceStub(channel), failures)
    finally:
        await server.stop(1)
        door.close()


async def refused(call: Awaitable[Any]) -> tuple[str, str, dict[str, str]]:
    """The status, text and trailing metadata of a call that was refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    trailing = {key: str(value) for key, value in raised.value.trailing_metadata() or ()}
    return raised.value.code().name, raised.value.details() or "", trailing


async def ask(doors: Doors) -> bytes:
    return b"".join([part.arrow async for part in doors.query.Estimate(query_pb2.EstimateRequest())])


async def check_receipts() -> None:
    sent = [release("a", n) for n in range(4)]
    broken = sent[1].__class__(header=b"\xff" + sent[1].header, payload=b"", hash=b"")
    landing = FakeLanding([Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.FENCED])
    async with opened(landing) as doors:
        answer = await doors.push.PushReleases(request(sent[0], broken, sent[2], sent[3]))
    assert [(one.outcome, one.refusal) for one in answer.receipts] == [
        DUPLICATE,
        (REFUSED, "malformed"),
        (REFUSED, "conflict"),
        (REFUSED, "fenced"),
    ]
    headers = [sent[0].header, broken.header, sent[2].header, sent[3].header]
    assert [one.release_hash for one in answer.receipts] == [hashlib.sha256(header).digest() for header in headers]
    assert len(landing.landed) == 3


def test_each_release_has_its_receipt_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """One malformed release costs its neighbours nothing, and verdicts go to the releases they were given for."""
    asyncio.run(check_receipts())
    real = CollectorService._admit_now

    def last_first(self: Any, batch: Any, sender: Any) -> Any:
        return real(self, batch, sender)[::-1]

    with monkeypatch.context() as mutant:
        mutant.setattr(CollectorService, "_admit_now", last_first)
        with pytest.raises(AssertionError):
            asyncio.run(check_receipts())


def test_a_large_batch_is_admitted_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop does not decode what is large; the receipts are the same."""
    names: list[str] = []
    real = CollectorService._admit_now

    def note(self: Any, batch: Any, sender: Any) -> Any:
        names.append(threading.current_thread().name)
        return real(self, batch, sender)

    monkeypatch.setattr(CollectorService, "_admit_now", note)

    async def run() -> None:
        async with opened() as doors:
            for limit in (2**20, 0):
                monkeypatch.setattr(room, "_INLINE_BYTES", limit)
                answer = await doors.push.PushReleases(request(release("a", 0)))
                assert [(one.outcome, one.refusal) for one in answer.receipts] == [ACCEPTED]

    asyncio.run(run())
    assert names[0] == threading.current_thread().name
    assert names[1].startswith("door")


def test_an_unknown_plan_is_refused_and_never_landed() -> None:
    """The agent is told which code of the table it is; the landing is not troubled."""
    other = release("a", 0, plan=_raised(PLAN))

    async def run() -> None:
        async with opened(FakeLanding(error=AssertionError())) as doors:
            answer = await doors.push.PushReleases(request(other))
            assert [(one.outcome, one.refusal) for one in answer.receipts] == [(REFUSED, "plan_unknown")]

    asyncio.run(run())


def test_a_window_that_is_not_yet_is_refused_and_never_landed() -> None:
    """By the collector's clock; its neighbour is taken. Mutant: a clock to which all is past."""

    async def outcomes(now: datetime) -> list[tuple[int, str]]:
        async with opened(now=now) as doors:
            answer = await doors.push.PushReleases(request(release("a", 2), release("a", 4)))
            assert len(doors.landing.landed) == sum(one.outcome != REFUSED for one in answer.receipts)
            return [(one.outcome, one.refusal) for one in answer.receipts]

    assert asyncio.run(outcomes(week(2))) == [ACCEPTED, (REFUSED, "window_ahead")]
    assert asyncio.run(outcomes(LATER)) == [ACCEPTED, ACCEPTED]


def _raised(plan: Plan) -> Plan:
    import msgspec

    identity = msgspec.structs.replace(plan.plan, version=2)
    return msgspec.structs.replace(plan, plan=identity)


def test_too_large_a_batch_is_refused_whole() -> None:
    """By the table's status and text, with the code beside it and no pushback, since sending it again cannot help."""

    async def run() -> None:
        landing = FakeLanding()
        async with opened(landing, max_batch=2) as doors:
            batch = request(*(release("a", n) for n in range(3)))
            code, text, trailing = await refused(doors.push.PushReleases(batch))
            assert (code, text) == ("RESOURCE_EXHAUSTED", RULES[Refusal.TOO_LARGE].text)
            assert trailing[REFUSAL_KEY] == "too_large"
            assert PUSHBACK_KEY not in trailing
            assert landing.landed == []

    asyncio.run(run())


async def check_overload() -> None:
    async with opened(FakeLanding(error=Overloaded())) as doors:
        code, text, trailing = await refused(doors.push.PushReleases(request(release("a", 0))))
        assert (code, text) == ("RESOURCE_EXHAUSTED", RULES[Refusal.OVERLOADED].text)
        assert trailing[REFUSAL_KEY] == "overloaded"
        assert PUSHBACK_MS[0] <= int(trailing.get(PUSHBACK_KEY, -1)) <= PUSHBACK_MS[1]
        assert doors.failures == []


def test_overload_is_refused_with_a_pushback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is said so with a time to wait (promise B7)."""
    asyncio.run(check_overload())
    with monkeypatch.context() as mutant:
        mutant.setattr(gate, "PUSHBACK_KEY", "x-wait")
        with pytest.raises(AssertionError):
            asyncio.run(check_overload())


async def check_bound() -> None:
    landing = FakeLanding(hold=asyncio.Event())
    assert landing.hold is not None
    async with opened(landing, max_calls=2) as doors:
        waiting = [asyncio.ensure_future(doors.push.PushReleases(request(release("a", n)))) for n in range(2)]
        third = asyncio.ensure_future(doors.push.PushReleases(request(release("a", 2))))
        done, _ = await asyncio.wait([*waiting, third], timeout=5, return_when=asyncio.FIRST_COMPLETED)
        landing.hold.set()
        assert len(done) == 1
        _, _, trailing = await refused(done.pop())
        assert trailing[REFUSAL_KEY] == "overloaded"
        results = await asyncio.gather(*waiting, third, return_exceptions=True)
        assert sum(isinstance(one, collector_pb2.PushReleasesResponse) for one in results) == 2
        await doors.push.PushReleases(request(release("a", 3)))  # those that were refused hold no place


def test_calls_in_work_are_bounded() -> None:
    """One call more than the bound is refused while the others are in work, and taken after them."""
    asyncio.run(check_bound())


async def check_slow_reader() -> None:
    asked = threading.Event()

    def answer(request: query_pb2.EstimateRequest, _: Caller) -> bytes:
        if request.plan != "large":
            return b"short"
        asked.set()
        return bytes(2**24)

    async with opened(answer=answer, max_calls=1) as doors:
        slow = doors.query.Estimate(query_pb2.EstimateRequest(plan="large"), timeout=20)
        assert await asyncio.to_thread(asked.wait, 10)
        for _ in range(40):
            await asyncio.sleep(0.05)
            try:
                assert await ask(doors) == b"short"
                break
            except grpc.aio.AioRpcError:
                continue
        else:
            raise AssertionError("its place was never given back")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            [part async for part in slow]
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.slow
def test_an_answer_that_nobody_reads_gives_its_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next question is answered; whoever reads on after all hears why there is no more. Mutant: no time limit."""
    monkeypatch.setattr(gate, "HAND_OUT_S", 0.1)
    asyncio.run(check_slow_reader())
    monkeypatch.setattr(gate, "HAND_OUT_S", 3600.0)
    with pytest.raises(AssertionError):
        asyncio.run(check_slow_reader())


class Told(Exception):
    """A call was refused."""


class Ended:
    """A call's context that can only be refused."""

    def peer(self) -> str:
        """Nobody in particular."""
        return ""

    async def abort(self, *_: object) -> None:
        """As gRPC does."""
        raise Told


async def check_share(who: list[Caller]) -> None:
    door, ended = Door(max_calls=8, threads=1, store_failed=lambda: None), cast("Any", Ended())
    ann, bob = (Caller(kind=Kind.ANALYST, tenant="acme", name=name) for name in ("ann", "bob"))
    async with contextlib.AsyncExitStack() as stack:
        for one in (ann, ann, bob, bob, LOCAL, LOCAL, LOCAL):
            who[:] = [one]
            await stack.enter_async_context(door.opened("Estimate", ended))
        for one in (ann, bob):
            who[:] = [one]
            with pytest.raises(Told):
                await stack.enter_async_context(door.opened("Estimate", ended))
    who[:] = [ann]
    async with door.opened("Estimate", ended):
        assert door._in_work == 1
    door.close()


def test_one_caller_has_a_quarter_of_a_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two analysts do not hold all the places of a door; what was answered makes room. Mutant: no share."""
    who: list[Caller] = []
    monkeypatch.setattr(room, "caller", lambda: who[0])
    asyncio.run(check_share(who))
    real = Door.__init__

    def unshared(self: Door, **more: Any) -> None:
        real(self, **more)
        self._max_of_one = self._max_calls

    monkeypatch.setattr(Door, "__init__", unshared)
    with pytest.raises(pytest.fail.Exception):
        asyncio.run(check_share(who))


class Held:
    """A request's bytes."""


async def check_let_go() -> None:
    door, free = Door(max_calls=8, threads=2, store_failed=lambda: None), threading.Event()
    try:
        held = [Held() for _ in range(50)]
        kept = [weakref.ref(one) for one in held]
        calls = [asyncio.create_task(door.work(lambda _: free.wait(10), one)) for one in held]
        await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        calls.clear()
        held.clear()
        await asyncio.sleep(0)  # the loop itself holds what it has just told us
        gc.collect()
        assert sum(one() is not None for one in kept) <= 4  # the threads' own, and what names the last of the loop
        free.set()
        assert await asyncio.wait_for(asyncio.gather(*(door.work(int) for _ in range(8))), 10) == [0] * 8
    finally:
        free.set()
        door.close()


def test_what_was_cancelled_is_not_kept_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller who sends and cancels fills no queue, and the threads are free after it.

    Mutant: the pool's own queue, which keeps a request until its turn comes.
    """
    asyncio.run(check_let_go())

    async def queued(self: Door, job: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, job, *args)

    monkeypatch.setattr(Door, "work", queued)
    with pytest.raises(AssertionError):
        asyncio.run(check_let_go())


def test_a_failed_disk_is_refused_and_told_to_the_server() -> None:
    """UNAVAILABLE, so the agent sends the same bytes again; whoever runs the process hears of it."""

    async def run() -> None:
        async with opened(FakeLanding(error=StoreFailed(CANARY))) as doors:
            code, text, trailing = await refused(doors.push.PushReleases(request(release("a", 0))))
            assert (code, text) == ("UNAVAILABLE", RULES[Refusal.STORE_FAILED].text)
            assert trailing[REFUSAL_KEY] == "store_failed"
            assert doors.failures == ["store"]

    asyncio.run(run())


def raise_canary(*_: object) -> bytes:
    raise RuntimeError(CANARY)


async def check_canary() -> None:
    async with opened(FakeLanding(error=RuntimeError(CANARY)), raise_canary) as doors:
        for call in (lambda: doors.push.PushReleases(request(release("a", 0))), lambda: ask(doors)):
            code, text, trailing = await refused(call())
            assert CANARY not in f"{text} {trailing}"
            assert code == "INTERNAL"
            assert trailing[REFUSAL_KEY] == "internal"
            assert text.startswith(RULES[Refusal.INTERNAL].text)


def test_an_unforeseen_exception_leaves_as_a_random_id(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the caller nor the log sees its text (promise A6); the id is the same in both."""
    caplog.set_level("INFO")
    asyncio.run(check_canary())
    fields = [getattr(record, "fields", {}) for record in caplog.records]
    assert {one["cause"] for one in fields if "request_id" in one} == {"RuntimeError"}
    assert CANARY not in str([record.__dict__ for record in caplog.records])

    @contextlib.asynccontextmanager
    async def ajar(self: Door, method: str, context: Any) -> AsyncIterator[None]:
        yield

    with monkeypatch.context() as mutant:
        mutant.setattr(Door, "opened", ajar)
        with pytest.raises(AssertionError):
            asyncio.run(check_canary())


@pytest.mark.parametrize(
    ("error", "status"), [(QuestionInvalid("by: x"), "INVALID_ARGUMENT"), (PlanUnknown("no plan"), "NOT_FOUND")]
)
def test_a_question_that_cannot_be_answered_says_why(error: Exception, status: str) -> None:
    """The analyst reads the text of the error."""

    def fail(*_: object) -> bytes:
        raise error

    async def run() -> None:
        async with opened(answer=fail) as doors:
            code, text, _ = await refused(ask(doors))
            assert (code, text) == (status, str(error))

    asyncio.run(run())


def test_an_answer_travels_in_pieces() -> None:
    """However long, no message is longer than a chunk, and the pieces make the answer."""
    answer = bytes(range(256)) * 2500  # 640,000 bytes

    async def run() -> None:
        async with opened(answer=lambda *_: answer) as doors:
            parts = [part.arrow async for part in doors.query.Estimate(query_pb2.EstimateRequest())]
            assert b"".join(parts) == answer
            assert [len(part) for part in parts] == [CHUNK_BYTES, CHUNK_BYTES, len(answer) - 2 * CHUNK_BYTES]

    asyncio.run(run())


def test_plans_are_listed_as_they_were_written() -> None:
    """Text, hash and nodes: a client needs nothing else to say what can be asked."""

    async def run() -> None:
        async with opened() as doors:
            answer = await doors.query.ListPlans(query_pb2.ListPlansRequest())
            assert [(one.plan_hash, list(one.nodes)) for one in answer.plans] == [(plan_hash(PLAN), ["a", "b"])]
            assert "flights" in answer.plans[0].text

    asyncio.run(run())
