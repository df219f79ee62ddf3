"""Unpacks a compressed body, never past a bound.

Place: before step 1, for bodies that are pushed.
Invariants: no more than the bound (and 8 MiB) is made, whatever the body claims; a zstd frame that asks for a window of
more than 8 MiB (RFC 8878 lets a decoder refuse it) is not unpacked; a body that is cut short or goes on is refused.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import zstandard

from edge_agg.ingest.push import BodyRefused, Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_GZIP = 16 + zlib.MAX_WBITS
_WINDOW = 8 << 20


def inflate(body: bytes, coding: str, *, limit: int) -> bytes:
    """Unpack a body of one of `CODINGS`.

    Raises:
        BodyRefused: it is larger than `limit` bytes once unpacked, or not what it says.
    """
    try:
        data = CODINGS[coding](body, limit)
    except (zlib.error, zstandard.ZstdError, MemoryError):
        pass
    else:
        if len(data) <= limit:
            return data
        raise BodyRefused(Code.TOO_LARGE)
    raise BodyRefused(Code.ENCODING)


def _gzip(body: bytes, limit: int) -> bytes:
    """Unpack members one after another, one byte past the limit at most."""
    data = b""
    for _ in range(_MEMBERS):
        member = zlib.decompressobj(_GZIP)
        data += member.decompress(body, limit + 1 - len(data))
        if len(data) > limit:
            return data
        if not member.eof:
            raise zlib.error
        body = member.unused_data
        if not body:
            return data
    raise zlib.error


def _zstd(body: bytes, limit: int) -> bytes:
    """Unpack frames one after another, 8 MiB past the limit at most: four bytes make a block of 128 KiB at most.

    The library's reader, which stops at any byte, says nothing of a frame that is cut short.
    """
    data = bytearray()
    for _ in range(_MEMBERS):
        member = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
        for at in range(0, len(body), _STEP):
            data += member.decompress(body[at : at + _STEP])
            if len(data) > limit:
                return bytes(data)
            if member.eof:
                body = member.unused_data + body[at + _STEP :]
                break
        else:
            raise zstandard.ZstdError
        if not body:
            return bytes(data)
    raise zstandard.ZstdError


_STEP = 256
_MEMBERS = 64
"""How many compressed streams may stand one after another: each costs a copy of what follows it."""
CODINGS: Mapping[str, Callable[[bytes, int], bytes]] = {"gzip": _gzip, "x-gzip": _gzip, "zstd": _zstd}
"""By the name that `Content-Encoding` has for it."""
