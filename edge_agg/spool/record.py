"""One record of the spool as bytes, and how whole records are found again in a file.

Place: below `spool.py`, which decides when bytes are durable; here nothing is written.
Invariants: a record is whole or it is not there (CRC-32 over all of it but its tag); a record that is damaged does not
take the ones after it along; nothing inside a record can pass for one, because the tag is random and the file's own.

    tag       16 bytes, those of the file's name
    head      crc, bytes of JSON, bytes of Arrow, number
    body      JSON (source, floors) | Arrow IPC stream of one batch, its buffers in zstd if they are large
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path
    from typing import BinaryIO

TAG_BYTES = 16
_HEAD = struct.Struct("<IQQ")
"""Bytes of JSON, bytes of Arrow, the record's number."""
_CRC = struct.Struct("<I")
_BEFORE = TAG_BYTES + _CRC.size + _HEAD.size
"""Bytes before the body."""
_LARGE = 1 << 15
"""Batches of fewer bytes are stored as they are: the fixed cost of compression is more than what it saves."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A batch of one source that was, or is to be, answered."""

    source: str
    batch: pa.RecordBatch = field(repr=False)
    expiry: datetime
    """When all windows of its rows are closed, lateness included."""
    floors: Mapping[str, int]
    """By plan (its hash in hex), where its windows were closed to at arrival, microseconds since 1970."""


class _Told(msgspec.Struct, frozen=True):
    source: str
    floors: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A whole record in a file."""

    number: int
    json: bytes = field(repr=False)
    arrow: bytes = field(repr=False)
    end: int
    """Where it ends in the file."""
    after_damage: bool
    """Whether bytes that are no record stand before it."""

    def record(self, expiry: datetime) -> Record | None:
        """The record, or None if this program cannot read what another version wrote."""
        try:
            told = msgspec.json.decode(self.json, type=_Told)
            batch = pa.ipc.open_stream(self.arrow).read_next_batch()
        except (msgspec.DecodeError, pa.ArrowException, StopIteration, OSError):
            return None
        return Record(source=told.source, batch=batch, expiry=expiry, floors=told.floors)


def encode(record: Record, number: int) -> bytes:
    """A record's bytes but for its tag."""
    json = msgspec.json.encode(_Told(source=record.source, floors=dict(record.floors)))
    compression = "zstd" if record.batch.get_total_buffer_size() >= _LARGE and record.batch.nbytes >= _LARGE else None
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(sink, record.batch.schema, options=options) as stream:
        stream.write_batch(record.batch)
    arrow = sink.getvalue()
    head = _HEAD.pack(len(json), arrow.size, number)
    crc = zlib.crc32(arrow, zlib.crc32(json, zlib.crc32(head)))
    return b"".join((_CRC.pack(crc), head, json, arrow))


def scan(path: Path, tag: bytes, end: int) -> Iterator[Found]:
    """The whole records in a file up to some byte, one at a time; whatever else is there is passed over."""
    with path.open("rb") as file:
        place, is_damaged = 0, False
        while place < end:
            found = _at(file, place, tag, end, after_damage=is_damaged)
            if found is not None:
                yield found
                place, is_damaged = found.end, False
            else:
                place, is_damaged = _next_tag(file, place + 1, tag, end), True


def _at(file: BinaryIO, place: int, tag: bytes, end: int, *, after_damage: bool) -> Found | None:
    """The record that begins at a byte, or None."""
    file.seek(place)
    before = file.read(_BEFORE)
    if len(before) < _BEFORE or not before.startswith(tag):
        return None
    (crc,) = _CRC.unpack_from(before, TAG_BYTES)
    n_json, n_arrow, number = _HEAD.unpack_from(before, TAG_BYTES + _CRC.size)
    stop = place + _BEFORE + n_json + n_arrow
    if stop > end:
        return None
    json, arrow = file.read(n_json), file.read(n_arrow)
    head = before[TAG_BYTES + _CRC.size :]
    if zlib.crc32(arrow, zlib.crc32(json, zlib.crc32(head))) != crc:
        return None
    return Found(number=number, json=json, arrow=arrow, end=stop, after_damage=after_damage)


def _next_tag(file: BinaryIO, place: int, tag: bytes, end: int) -> int:
    """Where the next tag stands, or the end."""
    while place < end:
        file.seek(place)
        chunk = file.read(min(_CHUNK, end - place))
        if (at := chunk.find(tag)) >= 0:
            return place + at
        if len(chunk) < _CHUNK:
            break
        place += len(chunk) - len(tag) + 1
    return end
