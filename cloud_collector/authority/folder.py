"""The authority's folder: makes it, issues from it, renews, revokes.

Place: the command line works on it; a collector that enrolls devices has it beside itself, without the root's key.
Invariants: a key's file is 0600 from its first byte; what is issued is on record before it is handed out; a certificate
that was revoked is in `denied.txt` before the command returns, and cannot be renewed, whichever came first.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_collector.authority import certificate as make
from cloud_collector.authority.index import Index, Issued
from cloud_collector.errors import ConfigInvalid, RequestInvalid, StoreFailed
from cloud_collector.files import write
from edge_agg.contract.errors import IdentityInvalid
from edge_agg.contract.spiffe import SpiffeId, is_domain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

DENIED = "denied.txt"
_DENIED_HEAD = (
    "# serial:HEX, id:spiffe://..., sha256:HEX of a certificate or its issuer; one a line; read while running\n"
)


class Authority:
    """One authority; open it with :meth:`opened`.

    Args:
        folder: as :meth:`init` made it.
        now: the time in UTC.
    """

    def __init__(self, folder: Path, index: Index, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._folder = folder
        self._index = index
        self._now = now

    @classmethod
    def init(cls, folder: Path, domain: str, *, now: datetime) -> None:
        """Make an authority for a trust domain; raises ConfigInvalid if one is there already."""
        if not is_domain(domain):
            raise ConfigInvalid("a trust domain is lower case letters, digits and ._-")
        if (folder / "root.pem").exists():
            raise ConfigInvalid(f"{folder.name}: holds an authority already")
        root = make.make_root(domain, now)
        issuer = make.make_issuer(domain, root, now)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.closing(Index(folder / "index.sqlite")) as index, index.changing():
            for kind, one in (("root", root), ("issuer", issuer)):
                index.note(_record(one.certificate, kind, domain, now))
        write(folder / DENIED, _DENIED_HEAD.encode())
        for name, one in (("issuer", issuer), ("root", root)):
            write(folder / f"{name}.key", make.key_pem(one.key), mode=0o600)
            write(folder / f"{name}.pem", make.pem(one.certificate))

    @classmethod
    @contextlib.contextmanager
    def opened(cls, folder: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Iterator[Authority]:
        """Open an authority in this thread; raises ConfigInvalid if none is there."""
        if not (folder / "issuer.pem").exists():
            raise ConfigInvalid(f"{folder.name}: holds no authority; make one with `cloud-collector ca init`")
        with contextlib.closing(Index(folder / "index.sqlite")) as index:
            yield cls(folder, index, now=now)

    @property
    def domain(self) -> str:
        """The trust domain that the issuer is bound to."""
        within = self._issuer().certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        return str((within.permitted_subtrees or [])[0].value)

    @property
    def anchors(self) -> bytes:
        """The roots to trust, in PEM, the newest first."""
        return (self._folder / "root.pem").read_bytes()

    @property
    def fingerprint(self) -> str:
        """sha256 of the newest root in hex, for devices that have nothing else yet."""
        return x509.load_pem_x509_certificate(self.anchors).fingerprint(hashes.SHA256()).hex()

    def certificates(self) -> list[Issued]:
        """Everything that was issued."""
        return self._index.find()

    def issue_client(self, spiffe_id: SpiffeId, key: ec.EllipticCurvePublicKey, life: timedelta) -> bytes:
        """Issue to an agent or an analyst; the chain in PEM."""
        with self._index.changing():
            return self._client(spiffe_id, key, life)

    def issue_server(self, hosts: Sequence[str], key: ec.EllipticCurvePublicKey, life: timedelta) -> bytes:
        """Issue to a collector that is reached as one of the hosts; the chain in PEM."""
        if not hosts:
            raise RequestInvalid("a server's certificate names at least one host")
        issuer, now = self._issuer(), self._now()
        made = make.make_server(hosts, key, issuer, now, life)
        with self._index.changing():
            self._index.note(_record(made, "server", " ".join(hosts), now))
        return make.pem(made) + make.pem(issuer.certificate)

    def make_token(self, tenant: str, agent: str, life: timedelta) -> str:
        """A one-time token for one agent; shown once."""
        spiffe_id, now = self.id_of(tenant, agent), self._now()
        with self._index.changing():
            return self._index.add_token(str(spiffe_id), now=now, ends=now + life)

    def id_of(self, tenant: str, name: str, *, analyst: bool = False) -> SpiffeId:
        """An id of this authority's domain; raises RequestInvalid."""
        try:
            return SpiffeId(domain=self.domain, tenant=tenant, name=name, analyst=analyst)
        except IdentityInvalid as error:
            raise RequestInvalid(str(error)) from None

    def enroll(self, token: str, csr: bytes) -> bytes:
        """Use a token up for a certificate over the request's key; raises RequestInvalid and spends nothing."""
        key = make.key_of_request(csr)
        with self._index.changing():
            return self._client(SpiffeId.parse(self._index.use_token(token, self._now())), key, make.CLIENT_LIFE)

    def renew(self, serial: int, csr: bytes) -> bytes:
        """The next certificate of the same identity over another key; raises RequestInvalid."""
        key = make.key_of_request(csr)
        with self._index.changing():
            held = self._renewable(serial)
            if held.kind == "server":
                raise RequestInvalid("a server's certificate is renewed by `cloud-collector ca renew`")
            return self._client(SpiffeId.parse(held.subject), key, held.ends - held.issued)

    def hand_out(self, folder: Path, key: ec.EllipticCurvePrivateKey, chain: bytes) -> None:
        """Write a key, its certificate and the roots as cert.pem, key.pem and ca.pem."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write(folder / "ca.pem", self.anchors)
        write(folder / "key.pem", make.key_pem(key), mode=0o600)
        write(folder / "cert.pem", chain)

    def renew_in(self, folder: Path) -> None:
        """Renew what :meth:`hand_out` wrote, for the same names and as long, with a new key; raises RequestInvalid."""
        try:
            held = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
        except (OSError, ValueError):
            raise RequestInvalid("cert.pem cannot be read") from None
        key, now, issuer = make.new_key(), self._now(), self._issuer()
        with self._index.changing():
            record = self._renewable(held.serial_number)
            life = record.ends - record.issued
            if record.kind == "server":
                made = make.make_server(record.subject.split(), key.public_key(), issuer, now, life)
                self._index.note(_record(made, "server", record.subject, now))
                chain = make.pem(made) + make.pem(issuer.certificate)
            else:
                chain = self._client(SpiffeId.parse(record.subject), key.public_key(), life)
        self.hand_out(folder, key, chain)

    def renew_issuer(self) -> None:
        """Another issuer below the same root; what the old one signed stays valid. Needs the root's key."""
        self._put_issuer(make.make_issuer(self.domain, self._signer("root"), self._now()))

    def renew_root(self) -> None:
        """Another root with another issuer; the roots before it stay anchors until somebody takes them out."""
        now = self._now()
        root, domain = make.make_root(self.domain, now), self.domain
        with self._index.changing():
            self._index.note(_record(root.certificate, "root", domain, now))
        write(self._folder / "root.key", make.key_pem(root.key), mode=0o600)
        write(self._folder / "root.pem", make.pem(root.certificate) + self.anchors)
        self._put_issuer(make.make_issuer(domain, root, now))

    def revoke(self, *, serial: int | None = None, subject: str | None = None) -> list[Issued]:
        """Deny certificates that are still valid, for good: one, or all of a subject; what was denied."""
        now = self._now()
        with self._index.changing():
            chosen = [
                one
                for one in self._index.find(serial=serial, subject=subject)
                if one.revoked is None and one.ends > now and one.kind != "root"
            ]
            for one in chosen:
                self._index.revoke(one.serial, now)
            lines = "".join(f"{_entry(one)}  # {one.subject}\n" for one in chosen)
            write(self._folder / DENIED, self._denied() + lines.encode())
        return chosen

    def _denied(self) -> bytes:
        """The list so far, whose last line is over, whoever wrote it."""
        try:
            so_far = (self._folder / DENIED).read_bytes()
        except FileNotFoundError:
            return _DENIED_HEAD.encode()
        except OSError:
            raise StoreFailed(f"{DENIED}: cannot be read") from None
        return so_far if so_far.endswith(b"\n") else so_far + b"\n"

    def _renewable(self, serial: int) -> Issued:
        held = [one for one in self._index.find(serial=serial) if one.revoked is None]
        if not held or held[0].kind not in {"agent", "analyst", "server"}:
            raise RequestInvalid("this authority has no such certificate to renew, or it was revoked")
        return held[0]

    def _put_issuer(self, issuer: make.Issuer) -> None:
        with self._index.changing():
            self._index.note(_record(issuer.certificate, "issuer", self.domain, self._now()))
        write(self._folder / "issuer.key", make.key_pem(issuer.key), mode=0o600)
        write(self._folder / "issuer.pem", make.pem(issuer.certificate))

    def _client(self, spiffe_id: SpiffeId, key: ec.EllipticCurvePublicKey, life: timedelta) -> bytes:
        issuer, now = self._issuer(), self._now()
        made = make.make_client(spiffe_id, key, issuer, now, life)
        self._index.note(_record(made, "analyst" if spiffe_id.analyst else "agent", str(spiffe_id), now))
        return make.pem(made) + make.pem(issuer.certificate)

    def _issuer(self) -> make.Issuer:
        return self._signer("issuer")

    def _signer(self, name: str) -> make.Issuer:
        try:
            certificate = x509.load_pem_x509_certificate((self._folder / f"{name}.pem").read_bytes())
            key = serialization.load_pem_private_key((self._folder / f"{name}.key").read_bytes(), None)
        except (OSError, ValueError, TypeError):
            raise ConfigInvalid(f"{name}.key: cannot be read; bring it back to this folder first") from None
        if make.public_der(key.public_key()) != make.public_der(certificate.public_key()):
            raise ConfigInvalid(f"{name}.key: is not the key of {name}.pem")
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return make.Issuer(certificate=certificate, key=key)


def _entry(issued: Issued) -> str:
    """The line that denies a certificate: an issuer by its fingerprint, for it stands in others' chains."""
    return f"sha256:{issued.fingerprint}" if issued.kind == "issuer" else f"serial:{issued.serial:x}"


def _record(made: x509.Certificate, kind: str, subject: str, now: datetime) -> Issued:
    return Issued(
        serial=made.serial_number,
        subject=subject,
        kind=kind,
        fingerprint=made.fingerprint(hashes.SHA256()).hex(),
        issued=now,
        ends=made.not_valid_after_utc,
    )
