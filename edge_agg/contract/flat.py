"""The framing of an Arrow IPC stream, read without trust: messages, and their metadata's flatbuffers.

Place: under `arrow.py` and whatever else looks at bytes of unknown make before Arrow does.
Invariants: bounds-checked; nothing is copied but metadata, nothing is decoded; the work is bounded by the bytes given.
Source: Arrow columnar format, "encapsulated message format"; FlatBuffers internals.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from edge_agg.contract.errors import MalformedRelease

CONTINUATION = 0xFFFFFFFF
"""Before every message."""


class Message(NamedTuple):
    """One encapsulated IPC message, its metadata not yet trusted."""

    kind: int
    """1 is a schema, 2 a dictionary batch, 3 a record batch."""
    raw: bytes
    metadata: bytes
    header: int
    """Where the header's table lies in the metadata."""
    body: int
    """Bytes of the body."""


def message(stream: bytes, at: int) -> tuple[Message, int]:
    """Read the message that begins somewhere.

    Returns:
        It, and where the next begins.

    Raises:
        MalformedRelease: it is no message, or ends beyond the stream.
    """
    try:
        mark, length = struct.unpack_from("<II", stream, at)
        metadata = stream[at + 8 : at + 8 + length]
        if mark != CONTINUATION or length == 0 or length % 8 or len(metadata) != length:
            raise MalformedRelease("broken message framing")
        table = Table.root(metadata)
        body = table.scalar(3, "<q")
        end = at + 8 + length + body
        if body < 0 or end > len(stream) or table.has(4):
            raise MalformedRelease("broken message framing")
        return Message(table.scalar(1, "<B"), stream[at:end], metadata, table.offset(2), body), end
    except struct.error:
        raise MalformedRelease("broken message framing") from None


class Table:
    """A bounds-checked view of one flatbuffers table: every read raises `struct.error` when it leaves the bytes."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - self._read("<i", at)
        self._fields = (self._read("<H", self._vtable) - 4) // 2

    @classmethod
    def root(cls, data: bytes) -> Table:
        """The table that a buffer begins with."""
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _read(self, layout: str, at: int) -> int:
        if at < 0:
            raise struct.error
        return int(struct.unpack_from(layout, self._data, at)[0])

    def _slot(self, index: int) -> int:
        return self._read("<H", self._vtable + 4 + 2 * index) if index < self._fields else 0

    def has(self, index: int) -> bool:
        """Whether a field is there."""
        return self._slot(index) != 0

    def scalar(self, index: int, layout: str) -> int:
        """An integer field, as `struct` lays it out; 0 if it is not there."""
        return self._read(layout, self._at + self._slot(index)) if self.has(index) else 0

    def offset(self, index: int) -> int:
        """Where the table or vector of a field lies."""
        if not self.has(index):
            raise struct.error
        at = self._at + self._slot(index)
        return at + self._read("<I", at)

    def table(self, index: int) -> Table:
        """The table of a field."""
        return Table(self._data, self.offset(index))

    def pairs(self, index: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64, at most as long as the metadata is."""
        at = self.offset(index)
        count = self._read("<I", at)
        if count * 16 > len(self._data):
            raise struct.error
        values = struct.unpack_from(f"<{2 * count}q", self._data, at + 4)
        return list(zip(values[::2], values[1::2], strict=True))
