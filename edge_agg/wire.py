"""The calls to the collector: what can be said to it, and over gRPC how.

Place: below the uplink and the herald, which share one wire.
Invariants: no call is made twice by itself; calls take turns, so that a change of certificates cuts none off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import grpc
import grpc.aio

from edge_agg.contract.address import is_loopback
from edge_agg.contract.refusal import PUSHBACK_KEY
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.contract.v1 import collector_pb2_grpc, release_pb2
from edge_agg.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_agg.contract.head import Head
    from edge_agg.contract.release import Sealed
    from edge_agg.identity.credentials import Credentials


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


class Wire(Protocol):
    """One call to the collector."""

    async def push(self, batch: Sequence[Waiting]) -> list[pb.Receipt]:
        """Send a batch.

        Raises:
            CallFailed: nobody knows what became of the batch; send the same bytes again.
        """
        ...

    async def say_head(self, head: Head) -> pb.SayHeadResponse | None:
        """Say how far the journal is.

        Returns:
            The collector's word; None where it is of a version that does not ask.

        Raises:
            CallFailed: it has not answered; say it again.
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
        self._turn = asyncio.Lock()
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
        request = pb.PushReleasesRequest(
            releases=[release_pb2.SealedRelease(header=w.sealed.header, payload=w.sealed.payload) for w in batch]
        )
        async with self._turn:
            await self._dial_if_changed()
            try:
                response = await self._stub.PushReleases(request, timeout=self._deadline_s)
            except grpc.aio.AioRpcError as error:
                raise _failed(error) from None
        return list(response.receipts)

    async def say_head(self, head: Head) -> pb.SayHeadResponse | None:
        """Say how far the journal is; see :class:`Wire`."""
        async with self._turn:
            await self._dial_if_changed()
            try:
                return await self._stub.SayHead(head.message(), timeout=self._deadline_s)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return None
                raise _failed(error) from None

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


def backoff_s(failures: int, first_s: float, limit_s: float, *, jitter: Callable[[], float]) -> float:
    """How long to wait after so many failures: exponential with jitter, so that a fleet does not come back at once."""
    return min(limit_s, first_s * 2.0 ** min(failures, 30)) * (0.1 + 0.9 * jitter())


def _failed(error: grpc.aio.AioRpcError) -> CallFailed:
    pushback = _pushback(error)
    exhausted = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    return CallFailed(error.code().name, pushback_s=pushback, too_large=exhausted and pushback is None)


def _pushback(error: grpc.aio.AioRpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY and str(value).isdigit():
            return int(value) / 1000
    return None
