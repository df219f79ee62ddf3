"""The first certificate of a device, for a one-time token.

Place: before there is an agent; `edge-agg enroll` on a new device.
Invariants: the token goes only to a collector that a known root vouches for, be it a file or the sha256 of one; the key
never leaves; nothing is written unless everything came back well.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from edge_agg.contract.refusal import REFUSAL_KEY, RULES, Refusal
from edge_agg.contract.v1 import enrollment_pb2 as pb
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceStub
from edge_agg.errors import EnrollmentFailed
from edge_agg.identity import files as disk
from edge_agg.identity.request import Request

if TYPE_CHECKING:
    from edge_agg.identity.files import IdentityFiles

DEADLINE_S = 20.0
_OPTIONS = [("grpc.enable_http_proxy", 0)]


def enroll(url: str, token: str, *, anchors: bytes, into: IdentityFiles) -> str:
    """Get a certificate and write it with its key.

    Args:
        url: `host:port` of the collector's `listen_open`.
        token: the one-time token.
        anchors: who may vouch for the collector, in PEM.
        into: where certificate, key and CA go.

    Returns:
        The SPIFFE id that the device has from now on.

    Raises:
        EnrollmentFailed: the collector cannot be reached or refused; a token that it refused needs a new one.
        ConfigInvalid: the files cannot be written; the token is used, ask for a new one.
    """
    request = Request()
    with grpc.secure_channel(url, grpc.ssl_channel_credentials(anchors), options=_OPTIONS) as channel:
        stub = EnrollmentServiceStub(channel)
        try:
            given = stub.Enroll(pb.EnrollRequest(token=token, csr=request.csr), timeout=DEADLINE_S)
        except grpc.RpcError as error:
            raise EnrollmentFailed(_told(error)) from None
    named = request.check(given.chain, given.anchors)
    disk.replace(into, ca=given.anchors, chain=given.chain, key=request.key)
    return named


def anchors_by_fingerprint(url: str, fingerprint: str) -> bytes:
    """Ask a collector that is not trusted yet for its roots, and keep the one whose sha256 is known.

    Nothing that comes back is believed: what lies in between can only keep us from finding the right root.

    Raises:
        EnrollmentFailed: the collector cannot be reached, or has no such root.
    """
    host, _, port = url.rpartition(":")
    try:
        shown = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=DEADLINE_S)
    except (OSError, ValueError, OverflowError):
        raise EnrollmentFailed("the collector cannot be reached over TLS") from None
    with grpc.secure_channel(url, grpc.ssl_channel_credentials(shown.encode()), options=_OPTIONS) as channel:
        try:
            given = EnrollmentServiceStub(channel).GetTrust(pb.GetTrustRequest(), timeout=DEADLINE_S).anchors
            offered = x509.load_pem_x509_certificates(given)
        except grpc.RpcError as error:
            raise EnrollmentFailed(_told(error)) from None
        except ValueError:
            offered = []
    wanted = fingerprint.lower().replace(":", "")
    for one in offered:
        if one.fingerprint(hashes.SHA256()).hex() == wanted:
            return one.public_bytes(serialization.Encoding.PEM)
    raise EnrollmentFailed("the collector has no root of this fingerprint: another one answers, or it is mistyped")


def _told(error: grpc.RpcError) -> str:
    """The text of the contract's own table for a refusal; the status for all else."""
    codes = [str(one.value) for one in error.trailing_metadata() or () if one.key == REFUSAL_KEY]
    if codes and codes[0] in {str(one) for one in Refusal}:
        return RULES[Refusal(codes[0])].text
    return f"the collector did not answer: {error.code().name}; is this its listen_open, and the right CA?"
