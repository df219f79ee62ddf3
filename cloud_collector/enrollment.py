"""The enrollment door: a device's first certificate for a one-time token, later ones for the one that it has.

Place: beside the doors for releases and questions; the gate has said who calls, the authority keeps the keys.
Invariants: whose certificate it will be stands in the token's row or on record for the present certificate, by its
fingerprint (another authority may have used its serial too), never in the request; every failure of a token looks the
same; what is issued is on record before it leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cryptography import x509

from cloud_collector.admission import Refused
from cloud_collector.authority.folder import Authority
from cloud_collector.authority.keys import Passphrases
from cloud_collector.errors import ConfigInvalid, RequestInvalid, StoreFailed
from cloud_collector.gate import caller
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.refusal import Refusal
from edge_agg.contract.v1 import enrollment_pb2 as pb
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceServicer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    import grpc

    from cloud_collector.service import Door

    Context = grpc.aio.ServicerContext[Any, Any]

T = TypeVar("T")


class EnrollmentService(EnrollmentServiceServicer):
    """Gives out certificates.

    Args:
        folder: the authority's; without one, nothing is given out.
        anchors: the file of the CA that callers of this collector should trust.
        passphrase: the file of what opens the issuer's key; looked at whenever the key is.
        door: what bounds the calls in work.

    Raises:
        ConfigInvalid: the authority could give nothing out.
    """

    def __init__(
        self, folder: Path | None, anchors: Path | None, *, passphrase: Path | None = None, door: Door
    ) -> None:
        self._folder = folder
        self._anchors = anchors
        self._passphrase = passphrase
        self._door = door
        if folder is not None:
            with self._opened(folder) as authority:
                authority.check()

    async def GetTrust(self, request: pb.GetTrustRequest, context: Context) -> pb.GetTrustResponse:  # noqa: N802  # the contract's name
        """Say which roots to trust; the caller compares a fingerprint."""
        del request
        async with self._door.opened("GetTrust", context):
            return pb.GetTrustResponse(anchors=await self._door.work(self._trust))
        raise AssertionError  # the door raises what it does not let through

    async def Enroll(self, request: pb.EnrollRequest, context: Context) -> pb.EnrollResponse:  # noqa: N802  # as above
        """Use a token up for a certificate."""
        async with self._door.opened("Enroll", context):
            chain = await self._door.work(self._issue, "enroll", lambda one: one.enroll(request.token, request.csr))
            return pb.EnrollResponse(chain=chain, anchors=await self._door.work(self._trust))
        raise AssertionError  # as above

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.RenewResponse:  # noqa: N802  # as above
        """Issue the next certificate of the caller's identity."""
        async with self._door.opened("Renew", context):
            serial, prints = caller().serial, caller().fingerprints
            if serial is None:  # a local caller has no certificate to renew
                raise Refused(Refusal.ENROLLMENT_REFUSED)
            chain = await self._door.work(self._issue, "renew", lambda one: one.renew(serial, request.csr, prints))
            return pb.RenewResponse(chain=chain, anchors=await self._door.work(self._trust))
        raise AssertionError  # as above

    def _trust(self) -> bytes:
        if self._anchors is None:
            raise Refused(Refusal.ENROLLMENT_REFUSED)
        return self._anchors.read_bytes()

    def _issue(self, how: str, issue: Callable[[Authority], bytes]) -> bytes:
        if self._folder is None:
            raise Refused(Refusal.ENROLLMENT_REFUSED)
        try:
            with self._opened(self._folder) as authority:
                chain = issue(authority)
        except RequestInvalid:
            raise Refused(Refusal.ENROLLMENT_REFUSED) from None
        except (ConfigInvalid, StoreFailed) as error:  # ours, not the device's: it keeps its token and asks again
            emit(Event.AUTHORITY_UNUSABLE, how=how, problem=str(error))
            raise
        made = x509.load_pem_x509_certificate(chain)
        names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        agent = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
        emit(Event.CERTIFICATE_ISSUED, how=how, agent=agent, serial=f"{made.serial_number:x}")
        return chain

    def _opened(self, folder: Path) -> AbstractContextManager[Authority]:
        return Authority.opened(folder, unlock=Passphrases.read(issuer=self._passphrase))
