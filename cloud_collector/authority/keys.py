"""The keys of an authority on the disk, encrypted where a passphrase is kept elsewhere.

Place: below the authority's folder.
On disk: `issuer.key` and `root.key`, PKCS #8 in PEM, mode 0600; encrypted, if there is a passphrase, as `openssl pkcs8`
does it (PBES2: PBKDF2 with 2,048 rounds, AES-256-CBC).
Invariants: a key that is encrypted is never replaced by one that is not, unless that was asked for by name; nothing of
a key or a passphrase is in a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cloud_collector.authority import certificate as make
from cloud_collector.errors import ConfigInvalid
from cloud_collector.files import write

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

Which = Literal["issuer", "root"]
MIN_PASSPHRASE = 16
"""Characters. So few rounds protect nothing that a person made up: `openssl rand -base64 32` writes a good one."""
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passphrases:
    """What opens the keys; None for one that is not encrypted."""

    issuer: bytes | None = None
    root: bytes | None = None

    @classmethod
    def read(cls, *, issuer: Path | None = None, root: Path | None = None) -> Self:
        """Take them from files: the first line of each. Raises ConfigInvalid."""
        return cls(issuer=_first_line(issuer), root=_first_line(root))

    def of(self, which: Which) -> bytes | None:
        """That of one key."""
        return self.issuer if which == "issuer" else self.root


def load(folder: Path, which: Which, unlock: Passphrases, now: datetime) -> make.Issuer:
    """A certificate that may sign now, and its key; raises ConfigInvalid."""
    certificate = certificate_of(folder, which)
    if certificate.not_valid_after_utc <= now:
        ended = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigInvalid(
            f"{which}.pem: ended on {ended}; make another with `cloud-collector ca renew FOLDER --{which}`"
        )
    key = _key(folder, which, unlock.of(which))
    if make.public_der(key.public_key()) != make.public_der(certificate.public_key()):
        raise ConfigInvalid(f"{which}.key: is not the key of {which}.pem")
    return make.Issuer(certificate=certificate, key=key)


def store(folder: Path, which: Which, issuer: make.Issuer, unlock: Passphrases) -> None:
    """Write a key; its certificate is for the caller to add to."""
    write(folder / f"{which}.key", make.key_pem(issuer.key, unlock.of(which)), mode=0o600)


def protect(folder: Path, which: Which, unlock: Passphrases, new: bytes | None) -> None:
    """Write a key anew under another passphrase, or under none; raises ConfigInvalid."""
    write(folder / f"{which}.key", make.key_pem(_key(folder, which, unlock.of(which)), new), mode=0o600)


def check_replaceable(folder: Path, which: Which, unlock: Passphrases) -> None:
    """Raise ConfigInvalid if a new key would lie open, or under another passphrase, where this one does not."""
    try:
        held = (folder / f"{which}.key").read_bytes()
    except OSError:
        return  # lost, or elsewhere
    if held.startswith(_ENCRYPTED) or unlock.of(which) is not None:
        _key(folder, which, unlock.of(which))


def certificate_of(folder: Path, which: Which) -> x509.Certificate:
    """The newest certificate; raises ConfigInvalid."""
    try:
        return x509.load_pem_x509_certificate((folder / f"{which}.pem").read_bytes())
    except (OSError, ValueError):
        raise ConfigInvalid(f"{which}.pem: cannot be read, or is no certificate in PEM") from None


def _key(folder: Path, which: Which, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    name = f"{which}.key"
    try:
        text = (folder / name).read_bytes()
    except OSError:
        raise ConfigInvalid(f"{name}: cannot be read; bring it back to this folder first") from None
    encrypted = text.startswith(_ENCRYPTED)
    if encrypted and passphrase is None:
        raise ConfigInvalid(f"{name}: is encrypted; name the file of its passphrase")
    if passphrase is not None and not encrypted:
        raise ConfigInvalid(f"{name}: is not encrypted; `cloud-collector ca protect` does it")
    try:
        key = serialization.load_pem_private_key(text, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = "the passphrase does not open it" if encrypted else "is no key in PEM"
        raise ConfigInvalid(f"{name}: {problem}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigInvalid(f"{name}: is no ECDSA key")
    return key


def _first_line(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        readable_by_all = path.stat().st_mode & 0o007
        line = path.read_bytes().partition(b"\n")[0].strip()
    except OSError:
        raise ConfigInvalid(f"{path.name}: the passphrase cannot be read") from None
    if readable_by_all:
        raise ConfigInvalid(f"{path.name}: everybody may read the passphrase; `chmod o=` it")
    if len(line) < MIN_PASSPHRASE:
        raise ConfigInvalid(f"{path.name}: a passphrase has {MIN_PASSPHRASE} characters or more, on the first line")
    return line
