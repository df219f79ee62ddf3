"""How many calls may be under way, and how long one may take to arrive: looked at before a byte of it is read.

Place: step 9 of an event's path, between the gate (who calls?) and the service. gRPC hands a service its request whole;
here it is handed over as a stream of one, so that who calls, and whether there is room, is known before it is received.
Invariants: the calls of a process that are being received or in work are bounded, and those of one caller much more
narrowly, so that nobody takes all the room; a call that does not arrive in time leaves; one more is refused with a
pushback (promise B7). Hence the messages in memory are at most MAX_CALLS of `max_message_bytes` each.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc

from cloud_collector import metrics
from cloud_collector.caller import Kind
from cloud_collector.gate import caller, refuse
from edge_agg.contract.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

MAX_CALLS = 64
"""Calls of all callers that are being received or in work, in one process."""
MAX_CALLS_OF_ONE = 8
"""Of one agent or analyst; an agent of ours has one. All strangers together count as one caller."""
RECEIVE_S = 60.0
"""How long a request may take to arrive once it has been let in."""


class Turnstile(grpc.aio.ServerInterceptor):
    """Stands behind the gate and before every method of a server."""

    def __init__(
        self, *, max_calls: int = MAX_CALLS, max_of_one: int = MAX_CALLS_OF_ONE, receive_s: float = RECEIVE_S
    ) -> None:
        self._max_calls = max_calls
        self._max_of_one = max_of_one
        self._receive_s = receive_s
        self._open: Counter[Hashable] = Counter()
        self._total = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Put the turnstile before a method that takes one request; what takes a stream is left as it is."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        method = handler_call_details.method
        inner: Any = handler.unary_unary or handler.unary_stream

        async def one(requests: AsyncIterator[Any], context: Context) -> Any:
            async with self._passed(method, context):
                return await inner(await self._received(method, requests, context), context)

        async def many(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async with self._passed(method, context):
                request = await self._received(method, requests, context)
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
        who = caller()
        key = (who.kind, who.tenant, who.name)
        crowded = who.kind is not Kind.LOCAL and self._open[key] >= self._max_of_one
        if crowded or self._total >= self._max_calls:
            await refuse(method, context, Refusal.OVERLOADED)
        self._count(key, 1)
        try:
            yield
        finally:
            self._count(key, -1)

    def _count(self, key: Hashable, by: int) -> None:
        self._total += by
        self._open[key] += by
        if not self._open[key]:
            del self._open[key]
        metrics.opened(by)

    async def _received(self, method: str, requests: AsyncIterator[Any], context: Context) -> Any:
        """The one request of a call, if it arrives in time; one that does not may be honest and its link slow."""
        why = Refusal.MALFORMED
        try:
            async with asyncio.timeout(self._receive_s):
                async for request in requests:
                    return request
        except TimeoutError:
            why = Refusal.OVERLOADED
        await refuse(method, context, why)
        raise AssertionError  # a refusal raises
