"""Certificate, key and CA on the disk.

Invariants: a key is 0600 from its first byte and is written nowhere but here; key and certificate are replaced so that
a crash at any instant leaves a pair that fits, at the latest after :func:`repair`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from edge_agg.errors import ConfigInvalid

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFiles:
    """Where they are."""

    ca: Path
    """Who may vouch for the collector, in PEM."""
    cert: Path
    """The agent's certificate and its issuers', in PEM."""
    key: Path
    """The certificate's key, in PEM."""

    @classmethod
    def within(cls, folder: Path) -> IdentityFiles:
        """The names that `enroll` gives them."""
        return cls(ca=folder / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")

    @property
    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes when a file does; raises ConfigInvalid."""
        try:
            stats = [path.stat() for path in (self.ca, self.cert, self.key)]
        except OSError:
            raise ConfigInvalid("$.collector: ca_file, cert_file or key_file cannot be read") from None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def read(files: IdentityFiles) -> tuple[bytes, bytes, bytes]:
    """CA, certificate chain and key, which fit together; raises ConfigInvalid."""
    try:
        ca, chain, key = files.ca.read_bytes(), files.cert.read_bytes(), files.key.read_bytes()
    except OSError:
        raise ConfigInvalid("$.collector: ca_file, cert_file or key_file cannot be read") from None
    if not fits(chain, key):
        raise ConfigInvalid("$.collector.key_file: is not the key of the certificate in cert_file")
    return ca, chain, key


def replace(files: IdentityFiles, *, ca: bytes, chain: bytes, key: bytes) -> None:
    """Exchange all three; raises ConfigInvalid if the disk does not keep them."""
    try:
        for path in (files.ca, files.cert, files.key):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(_next(files.key), key, 0o600)
        _write(_next(files.cert), chain, 0o644)
        _write(_next(files.ca), ca, 0o644)
        for path in (files.ca, files.key, files.cert):  # after the key, repair() knows what to do
            _next(path).replace(path)
            _sync(path.parent)
    except OSError as error:
        raise ConfigInvalid(f"{files.cert.parent}: cannot be written ({error.strerror})") from None


def repair(files: IdentityFiles) -> None:
    """Finish a replacement that a crash cut off between key and certificate."""
    try:
        key, waiting = files.key.read_bytes(), _next(files.cert).read_bytes()
        held = files.cert.read_bytes() if files.cert.exists() else b""
        if fits(waiting, key) and not fits(held, key):
            _next(files.cert).replace(files.cert)
            _sync(files.cert.parent)
    except OSError:
        return  # nothing was cut off


def fits(chain: bytes, key: bytes) -> bool:
    """Whether a key in PEM is that of the first certificate."""
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    try:
        certified = x509.load_pem_x509_certificate(chain).public_key()
        held = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return certified.public_bytes(*form) == held.public_bytes(*form)


def _next(path: Path) -> Path:
    return path.with_name(path.name + ".next")


def _write(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)  # an old one might have another mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
