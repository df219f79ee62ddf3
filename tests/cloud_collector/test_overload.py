"""Promise B7: overload is refused before it is received, with a pushback; one caller cannot take all the room."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cloud_collector import gate, turnstile
from cloud_collector.caller import Caller, Kind
from cloud_collector.errors import Overloaded, StoreFailed
from cloud_collector.groups import Groups
from cloud_collector.landing import Landing
from cloud_collector.service import CollectorService, Door
from cloud_collector.turnstile import Turnstile
from edge_agg.contract import codec
from edge_agg.contract.refusal import PUSHBACK_KEY, REFUSAL_KEY, Refusal
from tests.cloud_collector.front import release

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from cloud_collector.landing import Verdict
    from edge_agg.contract.release import Release, Sealed

METHOD = "/edge_agg.contract.v1.CollectorService/PushReleases"
ENROLL = "/edge_agg.contract.v1.EnrollmentService/Enroll"
CHECK = "/grpc.health.v1.Health/Check"
STREAM = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Slow(grpc.GenericRpcHandler):
    """One method that answers when it is let go, and knows how many requests were read for it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.read = 0

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Every method is this one."""

        def deserialize(data: bytes) -> bytes:
            self.read += 1
            return data

        async def answer(request: bytes, context: object) -> bytes:
            await self.go.wait()
            return request

        async def echo(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
            async for one in requests:
                yield one

        if details.method == STREAM:
            streams: Any = echo
            return grpc.stream_stream_rpc_method_handler(streams, request_deserializer=deserialize)
        behavior: Any = answer
        return grpc.unary_unary_rpc_method_handler(behavior, request_deserializer=deserialize)


def as_named(context: Any) -> Caller:
    """Whoever the call's metadata says: the turnstile does not care how the gate knows."""
    said = {key: str(value) for key, value in context.invocation_metadata()}
    for key, kind in (("who", Kind.AGENT), ("analyst", Kind.ANALYST)):
        if key in said:
            return Caller(kind=kind, tenant="acme", name=said[key])
    return Caller(kind=Kind.STRANGER)


def as_said(context: Any) -> str:
    """The host that a stranger's metadata says."""
    return str(dict(context.invocation_metadata())["host"])


@contextlib.asynccontextmanager
async def channel_to(slow: Slow, **limits: Any) -> AsyncIterator[Any]:
    server = grpc.aio.server(interceptors=[gate.Gate(as_named), Turnstile(**limits)])
    server.add_generic_rpc_handlers((slow,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


@contextlib.asynccontextmanager
async def listening(slow: Slow, **limits: Any) -> AsyncIterator[Any]:
    async with channel_to(slow, **limits) as channel:

        def call(who: str) -> Any:
            return channel.unary_unary(METHOD)(b"x" * 1000, metadata=(("who", who),), timeout=10)

        yield call


async def refusal(call: Any) -> dict[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return {key: str(value) for key, value in raised.value.trailing_metadata() or ()}


async def until_read(slow: Slow, requests: int, within_s: float = 5) -> None:
    for _ in range(round(within_s / 0.01)):
        if slow.read == requests:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{slow.read} requests were read")


async def check_one_caller() -> None:
    slow = Slow()
    async with listening(slow, max_calls=10, max_of_one=2) as call:
        held = [asyncio.ensure_future(call("greedy")) for _ in range(2)]
        await until_read(slow, 2)
        told = await refusal(call("greedy"))
        assert told[REFUSAL_KEY] == Refusal.OVERLOADED
        assert int(told[PUSHBACK_KEY]) > 0
        modest = asyncio.ensure_future(call("modest"))
        await until_read(slow, 3)
        slow.go.set()
        assert await asyncio.gather(*held, modest) == [b"x" * 1000] * 3
        assert await call("greedy") == b"x" * 1000


def test_one_caller_cannot_take_all_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller over its share is told to wait while others are let in; what was answered makes room again."""
    asyncio.run(check_one_caller())
    monkeypatch.setattr(Turnstile, "_count", lambda self, key, by: None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):  # mutant: nobody counts
        asyncio.run(check_one_caller())


async def check_unread() -> None:
    slow = Slow()
    async with listening(slow, max_calls=2, max_of_one=2) as call:
        held = [asyncio.ensure_future(call(f"a{i}")) for i in range(2)]
        await until_read(slow, 2)
        for i in range(20):
            await refusal(call(f"b{i}"))
        assert slow.read == 2
        slow.go.set()
        await asyncio.gather(*held)


def test_a_refused_call_is_not_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the process is full, a call is refused before its message is read: it costs no memory."""
    asyncio.run(check_unread())

    async def read_first(self: Turnstile, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)

        async def one(request: Any, context: Any) -> Any:
            shares = await self._enter(details.method, context)
            try:
                return await handler.unary_unary(request, context)
            finally:
                self._count(shares, -1)

        behavior: Any = one
        return grpc.unary_unary_rpc_method_handler(behavior, request_deserializer=handler.request_deserializer)

    monkeypatch.setattr(Turnstile, "intercept_service", read_first)
    with pytest.raises(AssertionError):  # mutant: the message first, then the question whether there is room
        asyncio.run(check_unread())


async def check_silent(metadata: tuple[str, str], method: str, *, deadline_s: float = 10, **limits: Any) -> None:
    slow = Slow()
    slow.go.set()
    async with channel_to(slow, max_calls=1, **limits) as channel:
        silent = (channel.stream_stream if method == STREAM else channel.stream_unary)(method)
        held = silent(metadata=(metadata,), timeout=deadline_s)
        if method == STREAM:
            await held.write(b"x")
            assert await held.read() == b"x"
            told = await refusal(held.read())
        else:
            told = await refusal(held)
        assert told[REFUSAL_KEY] == Refusal.OVERLOADED
        assert await channel.unary_unary(METHOD)(b"x", metadata=(("who", "next"),), timeout=10) == b"x"


def test_a_message_that_does_not_arrive_makes_room() -> None:
    """Who begins a call and does not send its message is out after the given time, told to send again."""
    asyncio.run(check_silent(("who", "silent"), METHOD, receive_s=0.2))
    assert turnstile.RECEIVE_S > 0


@pytest.mark.slow
def test_a_stranger_has_less_time() -> None:
    """They have little to say. Mutant: as much as all others have, so the call's own deadline ends it."""
    asyncio.run(check_silent(("host", "a"), ENROLL, receive_from_strangers_s=0.2))
    with pytest.raises(AssertionError):
        asyncio.run(check_silent(("host", "a"), ENROLL, receive_s=0.2, deadline_s=0.5))
    assert turnstile.RECEIVE_FROM_STRANGERS_S < turnstile.RECEIVE_S


@pytest.mark.slow
def test_a_stream_passes_like_any_other_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a place, and each of its messages comes in time. Mutant: a stream is let through as it is."""
    asyncio.run(check_silent(("analyst", "silent"), STREAM, receive_s=0.2))
    real = Turnstile.intercept_service

    async def streams_pass(self: Turnstile, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        return handler if handler.request_streaming else await real(self, continuation, details)

    monkeypatch.setattr(Turnstile, "intercept_service", streams_pass)
    with pytest.raises((AssertionError, grpc.aio.AioRpcError)):
        asyncio.run(check_silent(("analyst", "silent"), STREAM, receive_s=0.2, deadline_s=0.5))


async def check_strangers(deadline_s: float = 10) -> None:
    slow = Slow()
    async with channel_to(slow, max_calls=10, max_of_one=2, max_of_strangers=3, max_checks=3) as channel:

        def call(host: str, method: str = ENROLL) -> Any:
            return asyncio.ensure_future(
                channel.unary_unary(method)(b"x", metadata=(("host", host),), timeout=deadline_s)
            )

        async def answered(held: list[asyncio.Future[bytes]]) -> None:
            held += [call("a"), call("a")]
            await until_read(slow, 2, deadline_s)
            await refusal(call("a"))
            held.append(call("b"))
            await until_read(slow, 3, deadline_s)
            await refusal(call("c"))
            held += [call("a", CHECK), call("a", CHECK), call("c", CHECK)]
            await until_read(slow, 6, deadline_s)
            await refusal(call("d", CHECK))
            slow.go.set()
            assert await channel.unary_unary(METHOD)(b"x", metadata=(("who", "jfk"),), timeout=10) == b"x"
            assert await asyncio.gather(*held) == [b"x"] * 6

        held: list[asyncio.Future[bytes]] = []
        try:
            await answered(held)
        finally:
            slow.go.set()
            await asyncio.gather(*held, return_exceptions=True)


@pytest.mark.slow
def test_strangers_at_one_host_shut_out_neither_others_nor_balancers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host has its share and all of them theirs, and health checks are counted apart.

    Mutants: all strangers are one caller; a check is a call like any other.
    """
    monkeypatch.setattr(turnstile, "host_of", as_said)
    asyncio.run(check_strangers())
    for name, value in (("host_of", lambda context: ""), ("CHECK", "")):
        with monkeypatch.context() as mutant:
            mutant.setattr(turnstile, name, value)
            with pytest.raises((AssertionError, pytest.fail.Exception)):
                asyncio.run(check_strangers(deadline_s=0.5))
    most = turnstile.MAX_CALLS_OF_STRANGERS + turnstile.MAX_CHECKS_OF_STRANGERS
    assert most < turnstile.MAX_CALLS


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.7:50000", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "2001:db8:1:2::"),
        ("ipv6:[2001:db8:1:2::9]:50000", "2001:db8:1:2::"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:50000", "192.0.2.7"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "fe80::"),
        ("unix:", ""),
    ],
)
def test_a_host_is_what_one_machine_cannot_change(peer: str, host: str) -> None:
    """Its port is not part of it, nor the half of an IPv6 address that it chooses; IPv4 is IPv4 at either socket."""

    class Called:
        """What knows where a call came from."""

        def peer(self) -> str:
            return peer

    called: Any = Called()
    assert turnstile.host_of(called) == host


class Recorder:
    """A landing that commits when it is let go, and notes the groups."""

    def __init__(self, error: Exception | None = None) -> None:
        self.groups: list[list[Any]] = []
        self.go = asyncio.Event()
        self.error = error

    async def land(self, releases: Sequence[Any]) -> list[Verdict]:
        """A verdict that names the release, so that a mix-up shows."""
        self.groups.append(list(releases))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return [f"verdict of {one}" for one in releases]  # type: ignore[misc]  # anything that can be told apart


async def check_groups() -> None:
    landing = Recorder()
    groups: Any = Groups(landing, max_waiting=10, max_group=5)
    calls = [asyncio.create_task(groups.land(list(range(3 * i, 3 * i + 3)))) for i in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await groups.land(["a"] * 9)
    landing.go.set()
    answers = await asyncio.gather(*calls)
    assert answers == [[f"verdict of {n}" for n in range(3 * i, 3 * i + 3)] for i in range(3)]
    assert max(len(group) for group in landing.groups) <= 5
    assert sum(len(group) for group in landing.groups) == 9


def test_each_call_gets_its_own_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that were committed together are answered apart, in order; groups and the queue are bounded."""
    asyncio.run(check_groups())
    with monkeypatch.context() as mutant:
        mutant.setattr(Groups, "_next", lambda self: [self._waiting.pop()])
        with pytest.raises((Overloaded, TimeoutError)):  # mutant: the depth is never given back
            asyncio.run(asyncio.wait_for(check_groups_twice(), 5))
    asyncio.run(check_groups_twice())


async def check_groups_twice() -> None:
    landing = Recorder()
    landing.go.set()
    groups: Any = Groups(landing, max_waiting=2)
    for n in range(5):
        both = await asyncio.gather(groups.land([n]), groups.land([n]))
        assert list(both) == [[f"verdict of {n}"]] * 2


async def two_calls_beyond_the_limit(folder: Path, groups_of: Callable[[Landing], Groups]) -> list[object]:
    """What two calls come to that together are more than may wait, and the second once the first is through."""
    made = [[codec_pair(agent, n) for n in range(6)] for agent in ("jfk", "lga")]
    with contextlib.closing(Landing(folder / "landing.sqlite", max_queued=10)) as landing:
        groups = groups_of(landing)
        said: list[Any] = await asyncio.gather(*map(groups.land, made), return_exceptions=True)
        with contextlib.suppress(Overloaded):
            said.append(await groups.land(made[1]))
    return [type(one) if isinstance(one, Exception) else [str(verdict) for verdict in one] for one in said]


def codec_pair(agent: str, n: int) -> tuple[Release, Sealed]:
    made = release(agent, n)
    return codec.open_sealed(made.header, made.payload)[0], made


def test_what_may_wait_is_one_limit(tmp_path: Path) -> None:
    """Calls below the limit land, however small it is: a group is no larger than the landing's queue takes.

    A call that finds no room is told so at once, and finds some when it comes again.
    """
    with contextlib.closing(Door(max_calls=2, threads=1, store_failed=lambda: None)) as door:

        def served(landing: Landing) -> Groups:
            service = CollectorService(landing, lambda *_, **__: None, door=door, max_batch=6, max_queued=10)
            return service._groups

        landed = ["accepted"] * 6
        (tmp_path / "mutant").mkdir()
        assert asyncio.run(two_calls_beyond_the_limit(tmp_path, served)) == [landed, Overloaded, landed]
    mutant = asyncio.run(two_calls_beyond_the_limit(tmp_path / "mutant", Groups))
    assert mutant[:2] == [Overloaded, Overloaded], "the mutant: groups of their own size, of which none fits"


async def groups_of_a_busy_time(gather_s: float) -> list[list[Any]]:
    """One call, then three that come one by one right after its commit."""
    landing = Recorder()
    landing.go.set()
    groups: Any = Groups(landing, max_group=3, gather_s=gather_s)
    first = await groups.land(["first"])
    assert first == ["verdict of first"]
    calls = []
    for n in range(3):
        calls.append(asyncio.create_task(groups.land([n])))
        for _ in range(10):
            await asyncio.sleep(0)
    await asyncio.gather(*calls)
    return landing.groups


def test_calls_gather_between_commits_and_a_full_group_does_not_wait() -> None:
    """Who calls right after a commit shares the next one; the first does not wait, nor does a full group."""
    patient = asyncio.wait_for(groups_of_a_busy_time(gather_s=3600.0), 5)
    assert asyncio.run(patient) == [["first"], [0, 1, 2]]
    assert asyncio.run(groups_of_a_busy_time(gather_s=0.0)) != [["first"], [0, 1, 2]]  # mutant: a commit for each


def test_a_failed_commit_is_told_to_the_whole_group_and_the_next_is_tried() -> None:
    """Nobody of the group hears that it was kept; whoever comes after has a commit of their own."""

    async def run() -> None:
        landing = Recorder(StoreFailed("the disk"))
        landing.go.set()
        groups: Any = Groups(landing)
        told = await asyncio.gather(groups.land([1]), groups.land([2]), return_exceptions=True)
        assert [type(one) for one in told] == [StoreFailed, StoreFailed]
        landing.error = None
        assert await groups.land([3]) == ["verdict of 3"]

    asyncio.run(run())


def test_a_caller_that_goes_takes_nobody_with_it() -> None:
    """A call that is cancelled while its group is committed leaves the others' verdicts in their places."""

    async def run() -> None:
        landing = Recorder()
        groups: Any = Groups(landing)
        first, second = (asyncio.create_task(groups.land([n])) for n in (1, 2))
        await asyncio.sleep(0.01)
        first.cancel()
        landing.go.set()
        assert await second == ["verdict of 2"]

    asyncio.run(run())
