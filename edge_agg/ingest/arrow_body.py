"""A pushed Arrow IPC stream, guarded: bytes of unknown make in, one frame out.

Place: steps 1 and 2, under `http.py`.
Invariants: nothing is decoded before its size is known. In this order: framing, metadata and rows, counted before
Arrow's reader sees the stream; no compressed bodies, whose size only the decompressor finds out; the schema has each
asked column once, as something that can be read; offsets, indices and views checked; the text behind dictionaries and
views, where a few bytes can stand for any number, added up. Only then is anything made of it. Never Polars' own reader,
which hostile bytes can crash.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.flat import Table, message
from edge_agg.ingest import push
from edge_agg.ingest.decode import can_read
from edge_agg.ingest.ipc import check
from edge_agg.ingest.push import BodyRefused, Code

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame

MAX_ROWS = 1 << 20
"""Rows of one body: columns of nulls take no bytes at all."""
MAX_MESSAGES = 4096
"""Messages of one body: an empty batch takes a hundred bytes and as much work as a thousand rows."""
MAX_METADATA = 1 << 20
"""Bytes of one message's metadata."""
_END = struct.pack("<II", 0xFFFFFFFF, 0)
_SCHEMA, _DICTIONARY, _RECORD_BATCH = 1, 2, 3
_VIEWS = {pa.string_view(), pa.binary_view()}
_TEXTS = {pa.string(), pa.large_string(), pa.binary(), pa.large_binary()}


def frame_of_ipc(data: bytes, columns: Mapping[str, ColumnType], *, limit: int) -> Frame:
    """Make a frame of an IPC stream.

    Args:
        data: the stream; whatever else it is, it is refused.
        columns: those asked for; the stream may have others.
        limit: the most bytes of text that dictionaries and views may stand for.

    Raises:
        BodyRefused: nothing of it was taken.
    """
    return push.guarded(lambda: _frame(data, columns, limit))


def _frame(data: bytes, columns: Mapping[str, ColumnType], limit: int) -> Frame:
    _count(data)
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        schema = reader.schema
    places = {name: schema.get_field_index(name) for name in columns}  # -1: not there, or there twice
    if any(at < 0 or not can_read(schema.types[at], columns[name]) for name, at in places.items()):
        raise BodyRefused(Code.WRONG_SCHEMA)
    options = pa.ipc.IpcReadOptions(included_fields=sorted(places.values()), use_threads=False)
    with pa.ipc.open_stream(pa.py_buffer(data), options=options) as reader:
        batches = list(reader)
    held = [column for batch in batches for column in batch.columns]
    if (
        sum(column.dictionary.get_total_buffer_size() for column in held if pa.types.is_dictionary(column.type))
        > 16 * limit
    ):
        raise BodyRefused(Code.TOO_LARGE)  # each batch has the dictionary looked at again
    for column in held:
        check(column)
    if sum(map(_text, held)) > limit:
        raise BodyRefused(Code.TOO_LARGE)
    return push.frame_of_batches(batches, columns)


def _count(data: bytes) -> None:
    """Walk the framing: one schema first, then batches, to the end mark or the end."""
    at = rows = count = 0
    try:
        while at < len(data) and (at + len(_END) < len(data) or data[at:] != _END):
            found, at = message(data, at)
            if len(found.metadata) > MAX_METADATA or (found.kind == _SCHEMA) != (count == 0):
                raise BodyRefused(Code.MALFORMED)
            if found.kind in {_DICTIONARY, _RECORD_BATCH}:
                rows += _rows(found.kind, Table(found.metadata, found.header))
            count += 1
            if rows > MAX_ROWS or count > MAX_MESSAGES:
                raise BodyRefused(Code.TOO_LARGE)
    except (MalformedRelease, struct.error):
        count = 0
    if count == 0:
        raise BodyRefused(Code.MALFORMED)


def _rows(kind: int, header: Table) -> int:
    """The rows that a batch, or the batch inside a dictionary's message, claims."""
    batch = header if kind == _RECORD_BATCH else header.table(1)
    rows = batch.scalar(0, "<q")
    if rows < 0 or batch.has(3):
        raise BodyRefused(Code.MALFORMED)
    return rows


def _text(column: pa.Array) -> int:
    """Bytes of text that a column stands for, where they are not bytes of the body each."""
    if pa.types.is_dictionary(column.type):
        values = column.dictionary
        lengths = _lengths(values)
        return 0 if lengths is None else int(pc.sum(lengths.take(column.indices)).as_py() or 0)
    lengths = _lengths(column) if column.type in _VIEWS else None
    return 0 if lengths is None else int(pc.sum(lengths).as_py() or 0)


def _lengths(values: pa.Array) -> pa.Array | None:
    """The bytes of each text, in int64; None if these are no texts."""
    if values.type in _VIEWS:
        views = np.frombuffer(values.buffers()[1], np.int32).reshape(-1, 4)[values.offset : values.offset + len(values)]
        return pa.array(np.where(values.is_valid(), views[:, 0].astype(np.int64), 0))
    if values.type in _TEXTS:
        return pc.binary_length(values).cast(pa.int64())
    return None
