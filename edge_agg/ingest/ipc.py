"""Arrow IPC: stream and file format (Feather version 2), record batch by record batch.

Place: step 1, under `file.py`.
Invariants: both formats are read from front to back (a file is a stream between two marks), so a compressed file needs
no seeking; a file without its closing mark, or a stream with anything after its end, is damaged; offsets and
dictionary indices are checked before anything follows them. A file of no bytes has no rows. A stream that is cut
between two batches cannot be told from a whole one.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.ingest.stream import Raw, is_empty, open_stream

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from edge_agg.contract.plan import ColumnType

_MARK = b"ARROW1"
_SKIM_BYTES = 1 << 16
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}


@contextmanager
def _opened(path: str, columns: Mapping[str, ColumnType]) -> Iterator[tuple[pa.RecordBatchReader, pa.NativeFile, bool]]:
    """Open past the first mark: the reader of the asked columns, the stream under it, and whether it is a file."""
    with open_stream(path) as stream:
        framed = stream.read(8).startswith(_MARK)
    with open_stream(path) as stream:
        stream.read(8 if framed else 0)
        with pa.ipc.open_stream(stream) as reader:
            wanted = [i for i, name in enumerate(reader.schema.names) if name in columns]
    options = pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)
    with open_stream(path) as stream:
        stream.read(8 if framed else 0)
        with pa.ipc.open_stream(stream, options=options) as reader:
            yield reader, stream, framed


def fields(path: str, columns: Mapping[str, ColumnType]) -> pa.Schema | None:
    """Return the schema of the asked columns, or None if the file is empty."""
    if is_empty(path):
        return None
    with _opened(path, columns) as (reader, _, _):
        return reader.schema


def batches(path: str, columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:  # noqa: ARG001 - one signature for all formats
    """Read the asked columns, batch by batch as written; `rows` is left to the caller."""
    if is_empty(path):
        return
    with _opened(path, columns) as (reader, stream, framed):
        for batch in reader:
            for column in batch.columns:
                check(column)
            yield Raw(batch, 0)
        if _end(stream) != (_MARK if framed else b""):
            raise pa.ArrowInvalid


def check(column: pa.Array) -> None:
    """Raise unless every offset and index stays inside its buffer. UTF-8 is not judged: a bad value costs its row."""
    column.validate()
    if pa.types.is_dictionary(column.type):
        check(column.dictionary)
        reach = pc.min_max(column.indices).as_py()
        if reach["min"] is not None and not 0 <= reach["min"] <= reach["max"] < len(column.dictionary):
            raise pa.ArrowInvalid
    elif column.type in _BYTES:
        column.view(_BYTES[column.type]).validate(full=True)
    else:
        column.validate(full=True)


def _end(stream: pa.NativeFile) -> bytes:
    """Read on to the end of the file, where a damaged compression shows, and return its last few bytes."""
    end = b""
    while more := stream.read(_SKIM_BYTES):
        end = (end + more)[-len(_MARK) :]
    return end
