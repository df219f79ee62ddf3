"""The next certificate, before this one ends: at two thirds of its life, over a new key.

Place: the uplink runs it beside its calls, in a drain as well as in an agent that lives for years.
Invariants: a renewal that fails changes nothing and is tried again until the certificate ends, and after; the new pair
is on the disk before it is used; the uplink notices by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from edge_agg.clock import wait_first
from edge_agg.contract.v1 import enrollment_pb2 as pb
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceStub
from edge_agg.errors import ConfigInvalid, EnrollmentFailed
from edge_agg.identity import files as disk
from edge_agg.identity.credentials import Lifetime
from edge_agg.identity.request import Request
from edge_agg.telemetry import Event, emit

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from datetime import datetime

    from edge_agg.clock import Clock
    from edge_agg.identity.credentials import Credentials, Held

LOOK_S = 3600.0
"""How often the certificate's age is looked at; also the longest wait between two tries, seconds."""
DEADLINE_S = 20.0


@dataclass(slots=True, kw_only=True)
class Renewal:
    """Keeps an agent's certificate young."""

    address: str
    """The collector's `host:port`."""
    credentials: Credentials
    clock: Clock
    jitter: Callable[[], float]
    """Uniform in [0, 1), so that a fleet that enrolled at once does not renew at once."""

    async def run(self, stop: asyncio.Event) -> None:
        """Look at the certificate's age, at once and from time to time, until `stop` is set."""
        while not stop.is_set():
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001  # nobody watches this task; what ended it today may pass
                emit(Event.RENEWAL_FAILED, cause=type(error).__name__)
            await wait_first(stop.wait(), self.clock.wait(LOOK_S * (0.5 + 0.5 * self.jitter())))

    async def look(self) -> bool:
        """Renew the certificate if it is due; whether it was renewed."""
        held, now = self.credentials.held(), self.clock.now()
        if now < due(held):
            return False
        emit(Event.CERTIFICATE_AGED, agent=str(held.id), days_left=round((held.ends - now) / timedelta(days=1), 1))
        try:
            await self._renew(held)
        except grpc.aio.AioRpcError as error:
            emit(Event.RENEWAL_FAILED, cause=error.code().name)
            return False
        except (EnrollmentFailed, ConfigInvalid) as error:
            emit(Event.RENEWAL_FAILED, cause=type(error).__name__)
            return False
        ends = self.credentials.held().ends
        emit(Event.CERTIFICATE_RENEWED, agent=str(held.id), ends=ends.isoformat())
        return True

    async def _renew(self, held: Held) -> None:
        request = Request()
        options = [("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
        async with grpc.aio.secure_channel(self.address, held.channel, options=options) as channel:
            stub = EnrollmentServiceStub(channel)
            given = await stub.Renew(pb.RenewRequest(csr=request.csr), timeout=DEADLINE_S)
        if request.check(given.chain, given.anchors) != str(held.id):
            raise EnrollmentFailed("what came back is another agent's")
        disk.replace(self.credentials.files, ca=given.anchors, chain=given.chain, key=request.key)


def due(held: Held) -> datetime:
    """When a certificate is to be renewed."""
    return Lifetime(begins=held.begins, ends=held.ends).due
