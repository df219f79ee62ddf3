"""How many calls may be under way, and how long one may take to arrive: looked at before a byte of it is read.

Place: step 9 of an event's path, between the gate (who calls?) and the service. gRPC hands a service its request whole;
here it is handed over as a stream of one, so that who calls, and whether there is room, is known before it is received.
Invariants: the calls of a process that are being received or in work are bounded, and those of one caller much more
narrowly, so that nobody takes all the room; those of strangers too, by host and all together, and neither keeps a
balancer from asking whether we are well; a message that does not arrive in time ends its call; one call more is refused
with a pushback (promise B7). Hence the messages in memory are at most MAX_CALLS of `max_message_bytes` each, for a
method that takes a stream is handed its messages one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ipaddress
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import grpc

from cloud_collector import metrics
from cloud_collector.caller import Kind
from cloud_collector.gate import caller, refuse
from edge_agg.contract.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable

    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

MAX_CALLS = 64
"""Calls of all callers that are being received or in work, in one process."""
MAX_CALLS_OF_ONE = 8
"""Of one agent or analyst, or of the strangers at one host; an agent of ours has one."""
MAX_CALLS_OF_STRANGERS = 32
"""Of all who showed neither a certificate nor a token."""
MAX_CHECKS_OF_STRANGERS = 16
"""Their questions whether we are well, which are counted apart, by host and all together: balancers ask them."""
RECEIVE_S = 60.0
"""How long a message may take to arrive once its call has been let in."""
RECEIVE_FROM_STRANGERS_S = 10.0
"""The same for strangers, who have little to say."""
CHECK = "/grpc.health.v1.Health/Check"
_OVER = object()  # what comes after a call's last message


class Turnstile(grpc.aio.ServerInterceptor):
    """Stands behind the gate and before every method of a server."""

    def __init__(
        self,
        *,
        max_calls: int = MAX_CALLS,
        max_of_one: int = MAX_CALLS_OF_ONE,
        max_of_strangers: int = MAX_CALLS_OF_STRANGERS,
        max_checks: int = MAX_CHECKS_OF_STRANGERS,
        receive_s: float = RECEIVE_S,
        receive_from_strangers_s: float = RECEIVE_FROM_STRANGERS_S,
    ) -> None:
        self._max_calls = max_calls
        self._max_of_one = max_of_one
        self._max_of_strangers = max_of_strangers
        self._max_checks = max_checks
        self._receive_s = receive_s
        self._receive_from_strangers_s = receive_from_strangers_s
        self._open: Counter[Hashable] = Counter()
        self._total = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Put the turnstile before a method; what takes a stream gets one, of messages that each arrive in time."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method, streams = handler_call_details.method, handler.request_streaming
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        async def taken(requests: AsyncIterator[Any], context: Context) -> Any:
            if streams:
                return self._messages(method, requests, context)
            return await self._only(method, requests, context)

        async def one(requests: AsyncIterator[Any], context: Context) -> Any:
            async with self._passed(method, context):
                return await inner(await taken(requests, context), context)

        async def many(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async with self._passed(method, context):
                request = await taken(requests, context)
                if not inspect.isasyncgenfunction(inner):
                    await inner(request, context)
                    return
                async with contextlib.aclosing(inner(request, context)) as parts:
                    async for part in parts:
                        yield part

        made, body = (
            (grpc.stream_stream_rpc_method_handler, many)
            if handler.response_streaming
            else (grpc.stream_unary_rpc_method_handler, one)
        )
        behavior: Any = body  # the stubs know only the threaded server's
        turned: Handler = made(
            behavior, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )
        return turned

    @contextlib.asynccontextmanager
    async def _passed(self, method: str, context: Context) -> AsyncIterator[None]:
        """Count a call from before it is received until it is answered."""
        shares = self._shares(method, context)
        crowded = any(self._open[key] >= most for key, most in shares.items())
        if crowded or self._total >= self._max_calls:
            await refuse(method, context, Refusal.OVERLOADED)
        self._count(shares, 1)
        try:
            yield
        finally:
            self._count(shares, -1)

    def _shares(self, method: str, context: Context) -> dict[Hashable, int]:
        """What a call counts towards, and how many calls that may have open."""
        who = caller()
        if who.kind is Kind.LOCAL:
            return {}
        if who.kind is not Kind.STRANGER:
            return {(who.kind, who.tenant, who.name): self._max_of_one}
        checks = method == CHECK
        most = self._max_checks if checks else self._max_of_strangers
        return {(checks, host_of(context)): self._max_of_one, checks: most}

    def _count(self, shares: Iterable[Hashable], by: int) -> None:
        self._total += by
        for key in shares:
            self._open[key] += by
            if not self._open[key]:
                del self._open[key]
        metrics.opened(by)

    async def _messages(self, method: str, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """The messages of a call that sends a stream of them."""
        while (message := await self._next(method, requests, context)) is not _OVER:
            yield message

    async def _only(self, method: str, requests: AsyncIterator[Any], context: Context) -> Any:
        """The one request of a call that has one."""
        request = await self._next(method, requests, context)
        if request is _OVER:
            await refuse(method, context, Refusal.MALFORMED)
        return request

    async def _next(self, method: str, requests: AsyncIterator[Any], context: Context) -> Any:
        """A call's next message, if it arrives in time; one that does not may be honest and its link slow."""
        stranger = caller().kind is Kind.STRANGER
        try:
            async with asyncio.timeout(self._receive_from_strangers_s if stranger else self._receive_s):
                return await anext(aiter(requests), _OVER)
        except TimeoutError:
            await refuse(method, context, Refusal.OVERLOADED)
            raise AssertionError from None  # a refusal raises


def host_of(context: Context) -> str:
    """The machine that a call came from; of IPv6 the 64 bits in front, for the others are its own to choose."""
    text = unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
    return str(getattr(address, "ipv4_mapped", None) or address)
