"""The server's side of TLS: certificate, key and CA from files, read again whenever they change.

Place: the server takes its two kinds of credentials from here: for callers with a certificate, and for those without.
Invariants: a new connection gets what the files held when it began; files that do not fit together (a key that was
replaced before its certificate, say) change nothing until they do; nothing of a key reaches a log.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from cloud_collector.errors import ConfigInvalid
from cloud_collector.telemetry import Event, emit

if TYPE_CHECKING:
    from pathlib import Path


class ServerFiles:
    """A certificate, its key and the CA of the callers.

    Raises:
        ConfigInvalid: they cannot be read, or do not fit together.
    """

    def __init__(self, *, cert_file: Path, key_file: Path, ca_file: Path) -> None:
        self._paths = (cert_file, key_file, ca_file)
        self._lock = threading.Lock()
        self._tried: object = None
        self._trouble = False
        self._stamp = self._stamped()
        self._current = self._read()

    def credentials(self, *, certificates: bool) -> grpc.ServerCredentials:
        """For a port whose callers must show a certificate of the CA, or for one whose callers show none."""
        seen: list[object] = [self._current]

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            current = self._refreshed()
            if current is seen[0]:
                return None
            seen[0] = current
            return current

        changed: Any = fetch  # its stub forgets that None, for no change, is an answer
        return grpc.dynamic_ssl_server_credentials(self._current, changed, require_client_authentication=certificates)

    def _refreshed(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold now; called once a connection, by a thread of gRPC's."""
        with self._lock:
            try:
                stamp = self._stamped()
                if stamp not in (self._stamp, self._tried):
                    self._tried = stamp
                    self._current, self._stamp = self._read(), stamp
                    self._trouble = False
                    emit(Event.TLS_FILES_LOADED)
            except ConfigInvalid as error:
                if not self._trouble:  # once, not once a connection
                    emit(Event.TLS_FILES_UNUSABLE, problem=str(error))
                self._trouble = True
            return self._current

    def _stamped(self) -> tuple[tuple[int, int, int], ...]:
        try:
            stats = [os.stat(path) for path in self._paths]  # noqa: PTH116  # once a connection
        except OSError:
            raise ConfigInvalid("$.tls: a file cannot be read") from None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        try:
            chain, key, anchors = (path.read_bytes() for path in self._paths)
        except OSError:
            raise ConfigInvalid("$.tls: a file cannot be read") from None
        _check(chain, key, anchors)
        return grpc.ssl_server_certificate_configuration([(key, chain)], anchors)


def _check(chain: bytes, key: bytes, anchors: bytes) -> None:
    spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    try:
        x509.load_pem_x509_certificates(anchors)
    except ValueError:
        raise ConfigInvalid("$.tls.ca_file: holds no certificate in PEM") from None
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        raise ConfigInvalid("$.tls.cert_file: holds no certificate in PEM") from None
    try:
        public = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigInvalid("$.tls.key_file: holds no key in PEM that needs no password") from None
    if public.public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
        raise ConfigInvalid("$.tls.key_file: is not the key of the certificate in cert_file")
