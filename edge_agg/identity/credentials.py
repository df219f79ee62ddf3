"""What the identity's files hold now, as credentials for a channel.

Place: the uplink asks before each call, and dials again when the answer is another.
Invariants: files that change and do not fit change nothing until they do; nothing of a key reaches a log or an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from cryptography import x509

from edge_agg.contract.errors import IdentityInvalid
from edge_agg.contract.spiffe import SpiffeId
from edge_agg.errors import ConfigInvalid
from edge_agg.identity import files as disk
from edge_agg.identity.files import IdentityFiles
from edge_agg.telemetry import Event, emit

if TYPE_CHECKING:
    from datetime import datetime

    from edge_agg.config import CollectorTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """One certificate with its key."""

    channel: grpc.ChannelCredentials
    id: SpiffeId
    begins: datetime
    ends: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """When a certificate is good, and when it is to be renewed."""

    begins: datetime
    ends: datetime

    @property
    def due(self) -> datetime:
        """When the agent renews: at two thirds of the certificate's life, and says `certificate_aged`."""
        return self.begins + (self.ends - self.begins) * 2 / 3


class Credentials:
    """An agent's identity.

    Args:
        files: where it is; read at once.

    Raises:
        ConfigInvalid: the files cannot be read or do not fit: enroll, or correct the paths.
    """

    def __init__(self, files: IdentityFiles) -> None:
        self.files = files
        disk.repair(files)
        self._stamp = files.stamp
        self._tried = self._stamp
        self._held = _read(files)

    def held(self) -> Held:
        """The same object as before unless the files have changed."""
        try:
            stamp = self.files.stamp
            if stamp not in {self._stamp, self._tried}:
                self._tried = stamp
                self._held, self._stamp = _read(self.files), stamp
        except ConfigInvalid as error:
            emit(Event.CREDENTIALS_UNUSABLE, problem=str(error))
        return self._held

    def check(self, *, tenant: str, agent: str) -> None:
        """Refuse to start as an agent that the certificate does not name; raises ConfigInvalid."""
        _check_named(self._held.id, tenant=tenant, agent=agent)


def credentials_of(table: CollectorTable, *, tenant: str, agent: str) -> Credentials | None:
    """The identity that a config names, checked against the agent's name; None without TLS. Raises ConfigInvalid."""
    if table.ca_file is None or table.cert_file is None or table.key_file is None:
        return None
    files = IdentityFiles(ca=Path(table.ca_file), cert=Path(table.cert_file), key=Path(table.key_file))
    credentials = Credentials(files)
    credentials.check(tenant=tenant, agent=agent)
    return credentials


def lifetime_of(table: CollectorTable) -> Lifetime | None:
    """Of the certificate that a config names, for those who only look; None without one, or if it cannot be read."""
    if table.cert_file is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(Path(table.cert_file).read_bytes())
    except (OSError, ValueError):
        return None
    return Lifetime(begins=certificate.not_valid_before_utc, ends=certificate.not_valid_after_utc)


def check_named(files: IdentityFiles, *, tenant: str, agent: str) -> None:
    """The same check for those who only look; raises ConfigInvalid."""
    _check_named(_named(files.cert.read_bytes())[1], tenant=tenant, agent=agent)


def _check_named(held: SpiffeId, *, tenant: str, agent: str) -> None:
    if (held.tenant, held.name, held.analyst) != (tenant, agent, False):
        raise ConfigInvalid("$.collector.cert_file: is of another tenant or agent than [agent] says")


def _named(chain: bytes) -> tuple[x509.Certificate, SpiffeId]:
    try:
        certificate = x509.load_pem_x509_certificate(chain)
        return certificate, identity_of(certificate)
    except (ValueError, IdentityInvalid):
        raise ConfigInvalid("$.collector.cert_file: names no agent; it needs one SPIFFE id") from None


def identity_of(certificate: x509.Certificate) -> SpiffeId:
    """The one id of a certificate; raises IdentityInvalid."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound):
        raise IdentityInvalid("a certificate has exactly one URI among its names") from None
    return SpiffeId.parse(uri)


def _read(files: IdentityFiles) -> Held:
    ca, chain, key = disk.read(files)
    certificate, identity = _named(chain)
    return Held(
        channel=grpc.ssl_channel_credentials(ca, key, chain),
        id=identity,
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
    )
