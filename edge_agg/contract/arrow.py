"""The payload: released values as canonical bytes, and the guarded way back.

Place: the agent encodes once, when it seals; the collector decodes once, at admission.
Layout: one zstd frame (with its content size) around one Arrow IPC stream: a schema, one record batch, the end mark.
Invariants: fresh int64 columns, non-nullable, no metadata, no dictionary, no body compression, so the bytes hold the
released values and nothing else; nothing of a decoded message is trusted before it has been checked, in the order of
:func:`decode`; and the work is bounded by the plan, not by the bytes.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import zstandard

from edge_agg.contract.errors import MalformedRelease

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

ZSTD_LEVEL = 9
_CONTINUATION = 0xFFFFFFFF
_END = struct.pack("<II", _CONTINUATION, 0)
_SCHEMA, _RECORD_BATCH = 1, 3


def schema(names: Sequence[str]) -> pa.Schema:
    """The payload's schema: one non-nullable int64 column a vector, in the plan's order."""
    return pa.schema([pa.field(name, pa.int64(), nullable=False) for name in names])


def encode(vectors: Mapping[str, npt.NDArray[np.int64]]) -> bytes:
    """Encode released vectors, int64[n_cells] each, in their order.

    Guarantee: the bytes are a function of names and values alone (promise A5).
    """
    wanted = schema(list(vectors))
    arrays = [pa.array(vector.tolist(), type=pa.int64()) for vector in vectors.values()]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, wanted, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=wanted))
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False).compress(sink.getvalue().to_pybytes())


def max_stream_bytes(n_vectors: int, rows: int) -> int:
    """The largest IPC stream that a payload of this shape can be."""
    return n_vectors * (8 * rows + 64 + 512) + 4096


def decode(payload: bytes, names: Sequence[str], rows: int) -> dict[str, npt.NDArray[np.int64]]:
    """Decode a payload of unknown origin into int64[rows] vectors, by the order of promise B4.

    The caller has checked the size of the message and the payload's sha256. Checked here: declared size, framing,
    schema, row count, absence of body compression, buffer bounds, and only then decode and validate.

    Raises:
        MalformedRelease: at the first thing that is not as the plan says; the bytes are not worth a second try.
    """
    stream = _inflate(payload, max_stream_bytes(len(names), rows))
    head, batch = _frame(stream)
    wanted = schema(names)
    try:
        if not pa.ipc.read_schema(pa.py_buffer(head.raw)).equals(wanted, check_metadata=True):
            raise MalformedRelease("the schema is not the plan's")
        _check_batch(batch, len(names), rows)
        with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
            decoded = reader.read_next_batch()
        decoded.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError, OverflowError, ValueError, OSError):
        raise MalformedRelease("the Arrow stream does not decode") from None
    return {name: column.to_numpy(zero_copy_only=True) for name, column in zip(names, decoded.columns, strict=True)}


def _inflate(payload: bytes, limit: int) -> bytes:
    try:
        declared = zstandard.frame_content_size(payload)
        if not 0 <= declared <= limit:
            raise MalformedRelease("the declared size is absent or over the plan's limit")
        inflater = zstandard.ZstdDecompressor(max_window_size=max(1 << 27, limit)).decompressobj()
        stream = inflater.decompress(payload)
    except zstandard.ZstdError:
        raise MalformedRelease("not a zstd frame") from None
    if not inflater.eof or inflater.unused_data or len(stream) != declared:
        raise MalformedRelease("not exactly one zstd frame of its declared size")
    return stream


class _Message(NamedTuple):
    """One encapsulated IPC message, its metadata not yet trusted."""

    kind: int
    raw: bytes
    metadata: bytes
    header: int
    body: int


def _frame(stream: bytes) -> tuple[_Message, _Message]:
    """Split a stream into exactly one schema and one record batch, followed by the end mark and nothing."""
    head, at = _message(stream, 0)
    batch, at = _message(stream, at)
    if (head.kind, head.body, batch.kind) != (_SCHEMA, 0, _RECORD_BATCH) or stream[at:] != _END:
        raise MalformedRelease("not exactly one schema and one record batch")
    return head, batch


def _message(stream: bytes, at: int) -> tuple[_Message, int]:
    try:
        mark, length = struct.unpack_from("<II", stream, at)
        metadata = stream[at + 8 : at + 8 + length]
        if mark != _CONTINUATION or length == 0 or length % 8 or len(metadata) != length:
            raise MalformedRelease("broken message framing")
        table = _Table.root(metadata)
        body = table.scalar(3, "<q")
        end = at + 8 + length + body
        if body < 0 or end > len(stream) or table.has(4):
            raise MalformedRelease("broken message framing")
        return _Message(table.scalar(1, "<B"), stream[at:end], metadata, table.offset(2), body), end
    except struct.error:
        raise MalformedRelease("broken message framing") from None


def _check_batch(batch: _Message, n_vectors: int, rows: int) -> None:
    try:
        table = _Table(batch.metadata, batch.header)
        if table.scalar(0, "<q") != rows:
            raise MalformedRelease("the row count is not the plan's")
        if table.has(3) or table.has(4):
            raise MalformedRelease("compressed or variadic bodies are not taken")
        nodes, buffers = table.pairs(1), table.pairs(2)
    except struct.error:
        raise MalformedRelease("broken record batch") from None
    if nodes != [(rows, 0)] * n_vectors or len(buffers) != 2 * n_vectors:
        raise MalformedRelease("the columns are not the plan's")
    free = 0
    for (_, validity), (start, length) in zip(buffers[::2], buffers[1::2], strict=True):
        if validity != 0 or length != 8 * rows or start < free or start % 8 or start + length > batch.body:
            raise MalformedRelease("a buffer lies outside its bounds")
        free = start + length
    if batch.body - free >= 64:
        raise MalformedRelease("the body is longer than its columns")


class _Table:
    """A bounds-checked view of one flatbuffers table: every read raises `struct.error` when it leaves the bytes."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - self._read("<i", at)
        self._fields = (self._read("<H", self._vtable) - 4) // 2

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _read(self, layout: str, at: int) -> int:
        if at < 0:
            raise struct.error
        return int(struct.unpack_from(layout, self._data, at)[0])

    def _slot(self, index: int) -> int:
        return self._read("<H", self._vtable + 4 + 2 * index) if index < self._fields else 0

    def has(self, index: int) -> bool:
        return self._slot(index) != 0

    def scalar(self, index: int, layout: str) -> int:
        return self._read(layout, self._at + self._slot(index)) if self.has(index) else 0

    def offset(self, index: int) -> int:
        if not self.has(index):
            raise struct.error
        at = self._at + self._slot(index)
        return at + self._read("<I", at)

    def pairs(self, index: int) -> list[tuple[int, int]]:
        """A vector of structs of two int64, at most as long as the metadata is."""
        at = self.offset(index)
        count = self._read("<I", at)
        if count * 16 > len(self._data):
            raise struct.error
        values = struct.unpack_from(f"<{2 * count}q", self._data, at + 4)
        return list(zip(values[::2], values[1::2], strict=True))
