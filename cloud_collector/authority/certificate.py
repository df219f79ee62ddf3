"""Builds certificates: ECDSA P-256, random serials, roles fixed by their extensions.

Place: below the authority's folder, which keeps the keys.
Invariants: no disk and no clock; a client's certificate names one SPIFFE id and cannot serve, a server's names hosts
and cannot call; an issuer signs ids of one trust domain and makes no issuers; nothing of a request but its key is used.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_collector.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from edge_agg.contract.spiffe import SpiffeId

ROOT_LIFE, ISSUER_LIFE = timedelta(days=3650), timedelta(days=730)
CLIENT_LIFE, SERVER_LIFE = timedelta(days=30), timedelta(days=90)
"""An agent renews its own after 20 days; all others are renewed by hand."""
BACKDATED = timedelta(hours=1)
"""A certificate begins this long before it is made, for machines whose clocks are slow."""
MAX_CSR_BYTES = 4096
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def ends(self) -> datetime:
        """What it signs ends no later."""
        return self.certificate.not_valid_after_utc


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key."""
    return ec.generate_private_key(ec.SECP256R1())


def make_root(domain: str, now: datetime) -> Issuer:
    """A root that signs itself; issuers stand below it, and nothing below them."""
    key, name = new_key(), _name(f"{domain} root")
    builder = _begin(name, key.public_key(), now, now + ROOT_LIFE).issuer_name(name)
    return Issuer(certificate=_authority(builder, path_length=1).sign(key, hashes.SHA256()), key=key)


def make_issuer(domain: str, root: Issuer, now: datetime) -> Issuer:
    """An issuer with a key of its own; what it signs has no SPIFFE id outside the trust domain."""
    key = new_key()
    builder = _begin(_name(f"{domain} issuer"), key.public_key(), now, min(now + ISSUER_LIFE, root.ends))
    within = x509.NameConstraints([x509.UniformResourceIdentifier(domain)], None)
    builder = _authority(builder, path_length=0).add_extension(within, critical=True)
    return Issuer(certificate=_sign(builder, root), key=key)


def make_client(
    spiffe_id: SpiffeId, key: ec.EllipticCurvePublicKey, issuer: Issuer, now: datetime, life: timedelta
) -> x509.Certificate:
    """A certificate for one agent or analyst."""
    builder = _begin(_name(spiffe_id.name), key, now, min(now + life, issuer.ends))
    names = [x509.UniformResourceIdentifier(str(spiffe_id))]
    return _sign(_leaf(builder, names, ExtendedKeyUsageOID.CLIENT_AUTH), issuer)


def make_server(
    hosts: Sequence[str], key: ec.EllipticCurvePublicKey, issuer: Issuer, now: datetime, life: timedelta
) -> x509.Certificate:
    """A certificate for a collector that is reached under these names or addresses; raises RequestInvalid."""
    builder = _begin(_name("cloud-collector"), key, now, min(now + life, issuer.ends))
    return _sign(_leaf(builder, [_host(host) for host in hosts], ExtendedKeyUsageOID.SERVER_AUTH), issuer)


def key_of_request(csr: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a PKCS #10 request whose sender holds it; raises RequestInvalid."""
    if len(csr) > MAX_CSR_BYTES:
        raise RequestInvalid("the certificate request is too long")
    try:
        request = x509.load_der_x509_csr(csr)
        key, signed = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        key, signed = None, False
    if not (signed and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise RequestInvalid("the certificate request is not one over an ECDSA P-256 key, signed by it")
    return key


def pem(certificate: x509.Certificate) -> bytes:
    """As files hold it."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """As files hold it; without a passphrase it is the file's mode alone that guards it."""
    guard = serialization.NoEncryption() if passphrase is None else serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, guard)


def public_der(key: object) -> bytes:
    """A public key's own bytes, to compare."""
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(host):
        raise RequestInvalid("a host is a DNS name (in its ASCII form) or an address")
    return x509.DNSName(host)


def _begin(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(ends)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _authority(builder: x509.CertificateBuilder, *, path_length: int) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.add_extension(_usage(signs=True), critical=True)


def _leaf(
    builder: x509.CertificateBuilder, names: Sequence[x509.GeneralName], role: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([role]), critical=False)
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, issuer: Issuer) -> x509.Certificate:
    public = issuer.key.public_key()
    builder = builder.issuer_name(issuer.certificate.subject)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())
