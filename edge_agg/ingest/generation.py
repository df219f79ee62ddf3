"""One generation of a file that grows: what was written to it from its first byte until it was cut or given up.

Place: step 1, under `rotation.py` and `tail.py`.
Invariants: a generation is known by its bytes, not by its name: the first ones, and those before the position. A
position lies behind a line break, and behind nothing that was not handed over.

Its identity, the path of its parts, is made of the device, the inode, and a hash of the first bytes that the part's end
leaves, `HEAD_BYTES` at most: an inode is used again, and a log that was cut begins with other bytes. So a part that is
done stands for these very bytes, and skips no others.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from edge_agg.ingest.source import Part

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD_BYTES = 4096
MARK_BYTES = 64


class Key(NamedTuple):
    """Which file on this machine; a name may come to mean another file, and an inode too, once it is free."""

    device: int
    inode: int


@dataclass(slots=True, eq=False)
class Generation:
    """How far one generation was read, and out of which file."""

    key: Key
    folder: str
    descriptor: int | None
    """Kept open, so that a file that is renamed or removed is still read to its end; None if it is not followed now."""
    head: bytes = b""
    """Its first bytes, as far as they are known, `HEAD_BYTES` at most."""
    position: int = 0
    """The bytes before it were handed over."""
    mark: bytes = b""
    """The last bytes before the position, as they were when they were read."""
    size: int = 0
    """Its size at the last look."""
    searched: int = 0
    """No line ends between the position and here."""
    copies: set[Key] = field(default_factory=set)
    """Files that hold the same bytes as far as they go: a rotation by copying makes one."""

    def look(self) -> bool:
        """See whether the file still holds this generation, and how much of it."""
        assert self.descriptor is not None
        self.size = os.fstat(self.descriptor).st_size
        if not self.is_in(self.descriptor):
            return False
        if len(self.head) < HEAD_BYTES:
            self.head = os.pread(self.descriptor, HEAD_BYTES, 0)
        return True

    def is_in(self, descriptor: int) -> bool:
        """Whether a file holds this generation, at least as far as it was read."""
        start = self.position - len(self.mark)
        return (
            os.fstat(descriptor).st_size >= self.position
            and os.pread(descriptor, len(self.head), 0) == self.head
            and os.pread(descriptor, len(self.mark), start) == self.mark
        )

    def begins(self, descriptor: int, head: bytes) -> bool:
        """Whether a file that begins with `head` holds a beginning of this generation, as far as can be told."""
        if not head or not self.head or self.head[: len(head)] != head[: len(self.head)]:
            return False
        size = os.fstat(descriptor).st_size
        if self.descriptor is not None:  # the end of the shorter is in the longer
            end = min(size, self.size)
            start = max(end - MARK_BYTES, 0)
            return os.pread(descriptor, end - start, start) == os.pread(self.descriptor, end - start, start)
        return size < self.position or self.is_in(descriptor)

    def part(self, end: int) -> Part:
        """The stretch from the position to `end`."""
        return Part(
            path=f"{_prefix(self.key)}{_fingerprint(self.head[:end])}", begin=self.position, size=end, mtime_ns=0
        )

    def advance(self, end: int, data: bytes) -> None:
        """Note that what lies before `end`, of which `data` are the last bytes, was handed over."""
        self.position, self.mark, self.searched = end, data[-MARK_BYTES:], end

    def close(self) -> None:
        """Follow it no more."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Past:
    """The parts that need not be read again, by file."""

    def __init__(self, done: Iterable[Part]) -> None:
        self._parts: dict[str, list[Part]] = {}
        for part in done:
            prefix = part.path[: part.path.find(":") + 1]
            self._parts.setdefault(prefix, []).append(part)

    def position(self, key: Key, head: bytes) -> int:
        """Where to resume a file that begins with `head`: the end of the longest beginning of which all is done."""
        reach = 0
        for part in sorted(self._parts.get(_prefix(key), ()), key=lambda part: part.begin):
            if part.path != f"{_prefix(key)}{_fingerprint(head[: _length(part.path)])}":
                continue
            if part.begin > reach:
                break
            reach = max(reach, part.size)
        return reach


def _prefix(key: Key) -> str:
    return f"{key.device:x}.{key.inode:x}:"


def _fingerprint(head: bytes) -> str:
    return f"{len(head)}.{hashlib.blake2b(head, digest_size=8).hexdigest()}"


def _length(path: str) -> int:
    digits = path[path.find(":") + 1 :].partition(".")[0]
    return int(digits) if digits.isdecimal() else 0
