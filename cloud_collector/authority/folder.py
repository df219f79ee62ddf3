"""The authority's folder: makes it, issues from it, renews, revokes.

Place: the command line works on it; a collector that enrolls devices has it beside itself, without the root's key.
Invariants: a key's file is 0600 from its first byte; what is issued is on record before it is handed out; a certificate
that was revoked is in `denied.txt` before the command returns, and cannot be renewed, whichever came first; what a
caller renews is bounded in number, so that a stolen key fills neither the index nor that list.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cloud_collector.authority import certificate as make
from cloud_collector.authority import denylist, keys
from cloud_collector.authority.index import Index, Issued
from cloud_collector.authority.keys import Passphrases
from cloud_collector.errors import ConfigInvalid, RequestInvalid
from cloud_collector.files import make_folder, write
from edge_agg.contract.errors import IdentityInvalid
from edge_agg.contract.spiffe import SpiffeId, is_domain

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

_OPEN = Passphrases()
_BOTH: tuple[keys.Which, ...] = ("root", "issuer")
MOST_A_DAY = 8
"""Certificates that one identity may have got within a day if it is to renew by itself; an agent of ours asks once in
20 days, and again within the hour while it cannot keep what came."""


class Authority:
    """One authority; open it with :meth:`opened`.

    Args:
        folder: as :meth:`init` made it.
        unlock: what opens its keys.
        now: the time in UTC.
    """

    def __init__(
        self,
        folder: Path,
        index: Index,
        *,
        unlock: Passphrases = _OPEN,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder = folder
        self._unlock = unlock
        self._index = index
        self._now = now

    @classmethod
    def init(cls, folder: Path, domain: str, *, now: datetime, unlock: Passphrases = _OPEN) -> None:
        """Make an authority for a trust domain; raises ConfigInvalid if one is there already."""
        if not is_domain(domain):
            raise ConfigInvalid("a trust domain is lower case letters, digits and ._-")
        if (folder / "root.pem").exists():
            raise ConfigInvalid(f"{folder.name}: holds an authority already")
        root = make.make_root(domain, now)
        issuer = make.make_issuer(domain, root, now)
        make_folder(folder)
        with contextlib.closing(Index(folder / "index.sqlite")) as index, index.changing():
            for kind, one in (("root", root), ("issuer", issuer)):
                index.note(Issued.of(one.certificate, kind, domain, now))
        denylist.begin(folder)
        keys.store(folder, "issuer", issuer, unlock)
        write(folder / "issuer.pem", make.pem(issuer.certificate))
        keys.store(folder, "root", root, unlock)
        write(folder / "root.pem", make.pem(root.certificate))

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        folder: Path,
        *,
        unlock: Passphrases = _OPEN,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Iterator[Authority]:
        """Open an authority in this thread; raises ConfigInvalid if none is there."""
        if not (folder / "issuer.pem").exists():
            raise ConfigInvalid(f"{folder.name}: holds no authority; make one with `cloud-collector ca init`")
        with contextlib.closing(Index(folder / "index.sqlite")) as index:
            yield cls(folder, index, unlock=unlock, now=now)

    @property
    def domain(self) -> str:
        """The trust domain that the issuer is bound to."""
        extensions = keys.certificate_of(self._folder, "issuer").extensions
        try:
            within = extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
            return str(within[0].value)
        except (x509.ExtensionNotFound, IndexError):
            raise ConfigInvalid("issuer.pem: names no trust domain, so it is not of our making") from None

    @property
    def anchors(self) -> bytes:
        """The roots to trust, in PEM, the newest first."""
        keys.certificate_of(self._folder, "root")  # or what is handed out would be no anchor
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
            self._index.note(Issued.of(made, "server", " ".join(hosts), now, life=life))
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

    def renew(self, serial: int, csr: bytes, fingerprints: Collection[str]) -> bytes:
        """The next certificate of the same identity over another key.

        Args:
            serial: of the present certificate.
            csr: the request over the next key.
            fingerprints: sha256 of the present certificate in hex, in every form: a serial is one issuer's word, and
                others that the collector trusts may have used it for somebody else.

        Raises:
            RequestInvalid: nothing to renew; not half of its life is over; or MOST_A_DAY were given out in a day.
        """
        key = make.key_of_request(csr)
        with self._index.changing():
            held = self._renewable(serial)
            if held.fingerprint not in fingerprints:
                raise RequestInvalid("this authority did not issue that certificate")
            if held.kind == "server":
                raise RequestInvalid("a server's certificate is renewed by `cloud-collector ca renew`")
            self._check_due(held)
            return self._client(SpiffeId.parse(held.subject), key, self._life(held))

    def hand_out(self, folder: Path, key: ec.EllipticCurvePrivateKey, chain: bytes) -> None:
        """Write a key, its certificate and the roots as cert.pem, key.pem and ca.pem."""
        anchors = self.anchors
        make_folder(folder)
        write(folder / "ca.pem", anchors)
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
            life = self._life(record)
            if record.kind == "server":
                made = make.make_server(record.subject.split(), key.public_key(), issuer, now, life)
                self._index.note(Issued.of(made, "server", record.subject, now, life=life))
                chain = make.pem(made) + make.pem(issuer.certificate)
            else:
                chain = self._client(SpiffeId.parse(record.subject), key.public_key(), life)
        self.hand_out(folder, key, chain)

    def renew_issuer(self) -> None:
        """Another issuer below the same root; what the old one signed stays valid. Needs the root's key."""
        self._put_issuer(make.make_issuer(self.domain, self._signer("root"), self._now()))

    def check(self) -> None:
        """Raise ConfigInvalid if nothing could be issued now."""
        self._issuer()

    def protect(self, which: keys.Which, new: bytes | None) -> None:
        """Keep a key under another passphrase, or none."""
        keys.protect(self._folder, which, self._unlock, new)

    def renew_root(self) -> None:
        """Another root with another issuer; the roots before it stay anchors until somebody takes them out."""
        for which in _BOTH:
            keys.check_replaceable(self._folder, which, self._unlock)
        now = self._now()
        root, domain = make.make_root(self.domain, now), self.domain
        with self._index.changing():
            self._index.note(Issued.of(root.certificate, "root", domain, now))
        keys.store(self._folder, "root", root, self._unlock)
        write(self._folder / "root.pem", make.pem(root.certificate) + self.anchors)
        self._put_issuer(make.make_issuer(domain, root, now))

    def revoke(self, *, serial: int | None = None, subject: str | None = None) -> list[Issued]:
        """Deny certificates that are still valid, for good: one, or all of a subject; what was denied.

        With a subject, its one-time tokens that are still out are used up, and if more of its certificates are valid
        than the list takes one by one, the subject itself is denied.

        Raises:
            RequestInvalid: nothing was ever given out to it here; or it is a root, which only `ca_file` can leave out.
        """
        now = self._now()
        with self._index.changing():
            known = self._index.find(serial=serial, subject=subject)
            voided = 0 if subject is None else self._index.void_tokens(subject, now)
            if not known and not voided:
                raise RequestInvalid("this authority gave nothing out to it; is the serial or the id right?")
            if any(one.kind == "root" for one in known):
                raise RequestInvalid("a root is not revoked: take it out of the collector's ca_file")
            chosen = [one for one in known if one.revoked is None and one.ends > now]
            for one in chosen:
                self._index.revoke(one.serial, now)
            denylist.append(self._folder, chosen)
        return chosen

    def _renewable(self, serial: int) -> Issued:
        held = [one for one in self._index.find(serial=serial) if one.revoked is None]
        if not held or held[0].kind not in {"agent", "analyst", "server"}:
            raise RequestInvalid("this authority has no such certificate to renew, or it was revoked")
        return held[0]

    def _check_due(self, held: Issued) -> None:
        now, begun = self._now(), held.issued - make.BACKDATED  # counted as the agent does, by what is written in it
        if now < begun + (held.ends - begun) / 2:
            raise RequestInvalid("a certificate is renewed in the second half of its life")
        lately = [one for one in self._index.find(subject=held.subject) if one.issued > now - timedelta(days=1)]
        if len(lately) >= MOST_A_DAY:
            raise RequestInvalid("it got too many certificates within a day; try again tomorrow")

    def _put_issuer(self, issuer: make.Issuer) -> None:
        keys.check_replaceable(self._folder, "issuer", self._unlock)
        with self._index.changing():
            self._index.note(Issued.of(issuer.certificate, "issuer", self.domain, self._now()))
        keys.store(self._folder, "issuer", issuer, self._unlock)
        write(self._folder / "issuer.pem", make.pem(issuer.certificate))

    def _client(self, spiffe_id: SpiffeId, key: ec.EllipticCurvePublicKey, life: timedelta) -> bytes:
        issuer, now = self._issuer(), self._now()
        made = make.make_client(spiffe_id, key, issuer, now, life)
        kind = "analyst" if spiffe_id.analyst else "agent"
        self._index.note(Issued.of(made, kind, str(spiffe_id), now, life=life))
        return make.pem(made) + make.pem(issuer.certificate)

    def _issuer(self) -> make.Issuer:
        return self._signer("issuer")

    def _signer(self, which: keys.Which) -> make.Issuer:
        return keys.load(self._folder, which, self._unlock, self._now())

    def _life(self, held: Issued) -> timedelta:
        """How long the next certificate is for: what was asked for, not what an issuer's end left of it.

        Of what an older version issued only the outcome is on record: where an issuer's end cut it short, it is at
        least what the kind has by default.
        """
        if held.life is not None:
            return held.life
        lived = held.ends - held.issued
        cut = any(one.ends == held.ends for one in self._index.find() if one.kind not in {"agent", "analyst", "server"})
        usual = make.CLIENT_LIFE if held.kind == "agent" else make.SERVER_LIFE
        return max(lived, usual) if cut else lived
