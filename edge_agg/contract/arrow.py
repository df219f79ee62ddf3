"""The payload: released values as canonical bytes, and the guarded way back.

Place: the agent encodes once, when it seals; the collector decodes once, at admission.
Layout: one zstd frame (with its content size) around one Arrow IPC stream: a schema, one record batch, the end mark.
The columns are int64; where a plan discovers keys, a string column stands before them, with each released key once for
every public cell, ascending.
Invariants: fresh columns, non-nullable, no metadata, no dictionary, no body compression, so the bytes hold the
released values and nothing else; nothing of a decoded message is trusted before it has been checked, in the order of
:func:`decode`; and the work is bounded by the plan, not by the bytes.
"""

from __future__ import annotations

import itertools
import struct
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import zstandard

from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.flat import CONTINUATION, Message, Table, message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

ZSTD_LEVEL = 9
_END = struct.pack("<II", CONTINUATION, 0)
_SCHEMA, _RECORD_BATCH = 1, 3


class _Inflater(threading.local):
    """A decompressor for each thread: making one costs as much as using it, and it keeps nothing of what it saw."""

    def __init__(self) -> None:
        self.zstd = zstandard.ZstdDecompressor()


_INFLATER = _Inflater()


class Keys(NamedTuple):
    """The discovered keys of a payload."""

    partition: str
    """Their column's name."""
    texts: Sequence[str]
    """Distinct, ascending by code point."""


def schema(names: Sequence[str], *, key: str | None = None) -> pa.Schema:
    """The payload's schema: a non-nullable int64 column a name, in the plan's order; the key's stands first."""
    return _schema(tuple(names), key)


@lru_cache(maxsize=256)
def _schema(names: tuple[str, ...], key: str | None) -> pa.Schema:
    keys = [] if key is None else [pa.field(key, pa.string(), nullable=False)]
    return pa.schema([*keys, *(pa.field(name, pa.int64(), nullable=False) for name in names)])


def encode(columns: Mapping[str, npt.NDArray[np.int64]], keys: Keys | None = None) -> bytes:
    """Encode released columns, in their order.

    Args:
        columns: int64[n_rows] each.
        keys: where keys were discovered, those that were released; n_rows is a multiple of their number.

    Guarantee: the bytes are a function of names, keys and values alone (promise A5).
    """
    wanted = schema(list(columns), key=None if keys is None else keys.partition)
    arrays = [pa.array(column.tolist(), type=pa.int64()) for column in columns.values()]
    if keys is not None:
        cells = len(arrays[0]) // max(1, len(keys.texts))
        arrays = [pa.array([text for text in keys.texts for _ in range(cells)], type=pa.string()), *arrays]
    stream = _stream(pa.record_batch(arrays, schema=wanted))
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False).compress(stream)


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=None)) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def max_stream_bytes(n_vectors: int, rows: int) -> int:
    """The largest IPC stream that a payload of this shape can be."""
    return n_vectors * (8 * rows + 64 + 512) + 4096


def decode(payload: bytes, names: Sequence[str], rows: int) -> dict[str, npt.NDArray[np.int64]]:
    """Decode a payload of unknown origin into int64[rows] vectors, by the order of promise B4.

    The caller has checked the size of the message and the payload's sha256. Checked here: declared size, framing,
    schema, row count, absence of body compression, buffer bounds, and only then decode and validate. What is laid out
    as we write it passes from framing to validation by one comparison: see :class:`_Layout`.

    Raises:
        MalformedRelease: at the first thing that is not as the plan says; the bytes are not worth a second try.
    """
    stream = _inflate(payload, max_stream_bytes(len(names), rows))
    layout = _layout(tuple(names), rows)
    if layout.fits(stream):
        return {name: np.frombuffer(stream, "<i8", rows, at) for name, at in zip(names, layout.columns, strict=True)}
    decoded = _decoded(stream, schema(names), rows)
    return {name: column.to_numpy(zero_copy_only=True) for name, column in zip(names, decoded.columns, strict=True)}


def decode_keyed(
    payload: bytes, key: str, names: Sequence[str], rows: int, *, cells: int, max_bytes: int
) -> tuple[Keys, dict[str, npt.NDArray[np.int64]]]:
    """Decode a payload of discovered keys, as :func:`decode` does.

    Args:
        payload: of unknown origin.
        key: the name of the keys' column.
        names: the int64 columns.
        rows: what the header says; the caller has checked it against the plan's limit.
        cells: the plan's public cells: rows of each key.
        max_bytes: the longest key, in UTF-8.

    Returns:
        The keys, and int64[rows] for each name: row `i * cells + c` is cell c of key i.

    Raises:
        MalformedRelease: as `decode`; also if keys do not ascend, are too long, or do not have all cells.
    """
    stream = _inflate(payload, max_stream_bytes(len(names), rows) + rows * (max_bytes + 4) + 1024)
    decoded = _decoded(stream, schema(names, key=key), rows)
    column = decoded.column(0).to_pylist()
    texts = column[::cells]
    if rows % cells or any(text != texts[i // cells] for i, text in enumerate(column)):
        raise MalformedRelease("a key does not have each of the plan's cells")
    if any(low >= high for low, high in itertools.pairwise(texts)):
        raise MalformedRelease("the keys do not ascend")
    lengths = [len(text.encode()) for text in texts]
    if any(length > max_bytes for length in lengths):
        raise MalformedRelease("a key is too long")
    text = decoded.column(0).buffers()[2]
    if cells * sum(lengths) != (0 if text is None else text.size):
        raise MalformedRelease("the text is longer than its keys")
    values = {
        name: column.to_numpy(zero_copy_only=True) for name, column in zip(names, decoded.columns[1:], strict=True)
    }
    return Keys(key, texts), values


class _Layout(NamedTuple):
    """A stream as this version of the library writes it for given columns and rows, but for the values.

    It was decoded and validated once. A stream that differs from it in nothing but values would pass the same checks
    with the same findings, since none of them looks at an int64 that cannot be null; it need not be read again.
    """

    head: bytes
    """The schema's message, the batch's metadata."""
    columns: tuple[int, ...]
    """Where each column's values begin."""
    size: int

    def fits(self, stream: bytes) -> bool:
        """Whether a stream is laid out like this."""
        return len(stream) == self.size and stream.startswith(self.head) and stream.endswith(_END)


@lru_cache(maxsize=256)
def _layout(names: tuple[str, ...], rows: int) -> _Layout:
    wanted, zeros = schema(names), pa.array(np.zeros(rows, "<i8"))
    stream = _stream(pa.record_batch([zeros] * len(names), schema=wanted))
    _decoded(stream, wanted, rows)
    _, batch = _frame(stream)
    body = len(stream) - len(_END) - batch.body
    starts = Table(batch.metadata, batch.header).pairs(2)[1::2]  # those of values; each follows one of validity
    return _Layout(head=stream[:body], columns=tuple(body + start for start, _ in starts), size=len(stream))


def _decoded(stream: bytes, wanted: pa.Schema, rows: int) -> pa.RecordBatch:
    """The one batch of a stream, once its framing, schema and buffers are what they must be."""
    head, batch = _frame(stream)
    try:
        if head.raw != _written(wanted) and not _read(head.raw).equals(wanted, check_metadata=True):
            raise MalformedRelease("the schema is not the plan's")
        _check_batch(batch, wanted, rows)
        decoded = pa.ipc.read_record_batch(pa.py_buffer(batch.raw), wanted)
        decoded.validate(full=True)
    except (pa.ArrowException, UnicodeDecodeError, OverflowError, ValueError, OSError):
        raise MalformedRelease("the Arrow stream does not decode") from None
    return decoded


@lru_cache(maxsize=256)
def _written(wanted: pa.Schema) -> bytes:
    """The message that this version of the library writes for a schema: bytes that equal it need no reading."""
    message: bytes = wanted.serialize().to_pybytes()
    return message


def _read(message: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(message))


def _inflate(payload: bytes, limit: int) -> bytes:
    try:
        declared = zstandard.frame_content_size(payload)
        if not 0 <= declared <= limit:
            raise MalformedRelease("the declared size is absent or over the plan's limit")
        # In one go, into a buffer of the declared size: a frame that holds more fails where the buffer ends.
        stream: bytes = _INFLATER.zstd.decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError:
        raise MalformedRelease("not exactly one zstd frame") from None
    if len(stream) != declared:
        raise MalformedRelease("not as long as it was declared")
    return stream


def _frame(stream: bytes) -> tuple[Message, Message]:
    """Split a stream into exactly one schema and one record batch, followed by the end mark and nothing."""
    head, at = message(stream, 0)
    batch, at = message(stream, at)
    if (head.kind, head.body, batch.kind) != (_SCHEMA, 0, _RECORD_BATCH) or stream[at:] != _END:
        raise MalformedRelease("not exactly one schema and one record batch")
    return head, batch


def _check_batch(batch: Message, wanted: pa.Schema, rows: int) -> None:
    try:
        table = Table(batch.metadata, batch.header)
        if table.scalar(0, "<q") != rows:
            raise MalformedRelease("the row count is not the plan's")
        if table.has(3) or table.has(4):
            raise MalformedRelease("compressed or variadic bodies are not taken")
        nodes, buffers = table.pairs(1), table.pairs(2)
    except struct.error:
        raise MalformedRelease("broken record batch") from None
    lengths = _lengths(wanted, rows)
    if nodes != [(rows, 0)] * len(wanted) or len(buffers) != len(lengths):
        raise MalformedRelease("the columns are not the plan's")
    free = 0
    for (start, length), allowed in zip(buffers, lengths, strict=True):
        if allowed == 0 and length == 0:  # validity: nothing is null; where it would begin says nothing
            continue
        fits = length == allowed if allowed is not None else length >= 0
        if not fits or start < free or start % 8 or start + length > batch.body:
            raise MalformedRelease("a buffer lies outside its bounds")
        free = start + length
    if batch.body - free >= 64:
        raise MalformedRelease("the body is longer than its columns")


def _lengths(wanted: pa.Schema, rows: int) -> list[int | None]:
    """How many bytes each buffer has; None where only the decoder can tell (the text of the keys)."""
    lengths: list[int | None] = []
    for field in wanted:
        lengths += [0, 4 * (rows + 1), None] if pa.types.is_string(field.type) else [0, 8 * rows]
    return lengths
