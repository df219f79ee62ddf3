"""The list of certificates that are taken no more, read again whenever its file changes.

Place: the gate asks it once a call.
On disk: a text file of `serial:HEX`, `id:spiffe://...` and `sha256:HEX` (of a certificate, or of the one that issued
it), one a line, `#` begins a comment. Hex digits may be written as tools print them: large, with colons, with zeros
in front.
Invariants: a change counts from the next call on; one that the file's stamp does not show, after REREAD_S at the
latest; a list that cannot be read takes nothing back that was denied before; a line that could deny nobody is said to
be wrong; a certificate does not leave the list by being written differently.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from cloud_collector.errors import ConfigInvalid
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.errors import IdentityInvalid
from edge_agg.contract.spiffe import SpiffeId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cryptography import x509

REREAD_S = 5.0
"""How often the file is read again although its stamp is the same."""
_SERIAL, _SHA256 = re.compile(r"serial:0*([0-9a-f]{1,40})"), re.compile(r"sha256:[0-9a-f]{64}")
_ORDERS = tuple(curve.group_order for curve in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))


class DenyList:
    """What is denied, as of now.

    Args:
        path: must be there at the start.

    Raises:
        ConfigInvalid: the file is missing or holds a line that is no entry.
    """

    def __init__(self, path: Path, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        self._stamp: tuple[int, ...] | None = None
        self._read_at = monotonic()
        self._trouble = False
        try:
            self._stamp = _stamp(path)
            self._entries, wrong = _read(path)
        except OSError:
            raise ConfigInvalid(f"$.tls.denied_file: {path.name} cannot be read; an empty file denies nobody") from None
        if wrong:
            raise ConfigInvalid(f"$.tls.denied_file: line {wrong[0]}: serial:HEX, id:spiffe://... or sha256:HEX")

    def denies(self, *, serial: int, spiffe_id: str, fingerprints: Iterable[str]) -> bool:
        """Whether a certificate is on the list, by any of its names or by its issuer."""
        self._refresh()
        names = (f"serial:{serial:x}", f"id:{spiffe_id}", *(f"sha256:{one}" for one in fingerprints))
        return not self._entries.isdisjoint(names)

    def _refresh(self) -> None:
        now = self._monotonic()
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp and now - self._read_at < REREAD_S:
                return
            entries, wrong = _read(self._path)
        except OSError:
            self._say("unreadable")
            return
        self._read_at, self._stamp = now, stamp
        if wrong:
            self._say(f"malformed: line {wrong[0]}")
            self._entries |= entries
        else:
            self._entries, self._trouble = entries, False

    def _say(self, problem: str) -> None:
        if not self._trouble:
            emit(Event.DENY_LIST_UNUSABLE, problem=problem)
        self._trouble = True


def fingerprints(certificate: x509.Certificate) -> tuple[str, ...]:
    """The sha256 in hex of every form that a certificate has without its issuer's help.

    A signature (r, s) of ECDSA is as good as (r, n - s), and a fingerprint covers the signature: whoever holds a
    certificate can write it down a second way, which a list of the one fingerprint would let in.
    """
    der = certificate.public_bytes(serialization.Encoding.DER)
    forms = [der]
    try:
        r, s = decode_dss_signature(certificate.signature)
    except ValueError:  # not ECDSA
        r = s = 0
    tail = _bits(certificate.signature)
    signed = _contents(der).removesuffix(tail)
    forms += [_tlv(0x30, signed + _bits(encode_dss_signature(r, n - s))) for n in _ORDERS if 0 < s < n]
    return tuple(hashlib.sha256(form).hexdigest() for form in forms)


def _contents(der: bytes) -> bytes:
    """What is in a sequence."""
    long_form = der[1] & 0x80
    return der[2 + (der[1] & 0x7F if long_form else 0) :]


def _bits(signature: bytes) -> bytes:
    return _tlv(0x03, b"\0" + signature)


def _tlv(tag: int, contents: bytes) -> bytes:
    size = len(contents)
    if size < 0x80:
        return bytes((tag, size)) + contents
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + contents


def _stamp(path: Path) -> tuple[int, ...]:
    stat = os.stat(path)  # noqa: PTH116  # once a call: Path.stat costs twice as much
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(path: Path) -> tuple[frozenset[str], list[int]]:
    """The entries, and the numbers of the lines that are none."""
    entries, wrong = set(), []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        entry = _entry(text) if text else None
        if entry is not None:
            entries.add(entry)
        elif text:
            wrong.append(number)
    return frozenset(entries), wrong


def _entry(text: str) -> str | None:
    """An entry as it is looked up; None if it is none."""
    if text.startswith("id:"):
        try:
            return f"id:{SpiffeId.parse(text.removeprefix('id:'))}"
        except IdentityInvalid:
            return None
    kind, _, digits = text.lower().partition(":")
    plain = f"{kind}:{digits.replace(':', '')}"
    serial = _SERIAL.fullmatch(plain)
    if serial:
        return f"serial:{serial[1]}"
    return plain if _SHA256.fullmatch(plain) else None
