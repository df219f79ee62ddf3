"""What any bytes must do to the readers and the decoder: laws that a fuzzer looks for breaches of.

A law holds of an input if its target comes back. Each target reads a file as a source does, `SourceUnreadable` being
the one error there is, or types a batch whose every bit the input chose, where there is none. No value of the input
stands in an error, a log line or an output, which the canary shows: it is put into every input.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pyarrow as pa

from edge_agg.contract.plan import ColumnType
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest.arrow_body import frame_of_ipc
from edge_agg.ingest.decode import decode, typed_schema
from edge_agg.ingest.file import FileSource
from edge_agg.ingest.push import BodyRefused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

CANARY = b"Karina-Canary"
COLUMNS: Mapping[str, ColumnType] = {"t": "timestamp", "s": "string", "f": "float", "i": "integer", "b": "boolean"}
WANTED: tuple[ColumnType, ...] = get_args(ColumnType)
_FIXED = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
    *(pa.float16(), pa.float32(), pa.float64(), pa.date32(), pa.date64(), pa.time32("s"), pa.duration("ns")),
    *(pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "+05:30", "No/Where")),
    *(pa.decimal32(9, 2), pa.decimal64(18, 0), pa.decimal128(38, 3), pa.decimal256(76, -2), pa.binary(3)),
]
_TEXT = [pa.binary(), pa.large_binary(), pa.string(), pa.large_string(), pa.string_view(), pa.binary_view()]
KINDS: list[pa.DataType] = [*_FIXED, *_TEXT, pa.bool_(), pa.null()]
"""Types that a raw column may be held as; each also as a dictionary."""


class Bytes:
    """An input that is used up from the front; behind its end are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        self._at += count
        return self._data[self._at - count : self._at].ljust(count, b"\0")

    def number(self, below: int) -> int:
        """A number from 0."""
        return int.from_bytes(self.take(2), "little") % below

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(max(0, len(self._data) - self._at))


def array_of(data: Bytes, kind: pa.DataType, count: int) -> pa.Array:
    """A column of a kind, its values bit by bit as the input says, some of them null."""
    valid = pa.py_buffer(data.take(-(-count // 8))) if data.number(2) else None
    if pa.types.is_null(kind):
        return pa.nulls(count)
    if kind in _TEXT:
        texts = [data.take(data.number(24)) if data.number(4) else CANARY for _ in range(count)]
        large = kind in {pa.large_binary(), pa.large_string()}
        width = 8 if large else 4
        ends = b"".join(sum(map(len, texts[:i])).to_bytes(width, "little") for i in range(count + 1))
        plain = pa.large_binary() if large else pa.binary()
        held = pa.Array.from_buffers(plain, count, [valid, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])
        views = {pa.string_view(): pa.binary_view(), pa.binary_view(): pa.binary_view()}
        held = held.cast(views[kind]) if kind in views else held
        return held if held.type == kind else held.view(kind)
    return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(data.take(-(-count * kind.bit_width // 8) + 32))])


def batch_of(data: Bytes) -> tuple[pa.RecordBatch, Mapping[str, ColumnType]]:
    """A raw batch of one to three columns and what they are asked as."""
    count = data.number(9)
    arrays, columns = [], {}
    for name in "abc"[: 1 + data.number(3)]:
        kind = KINDS[data.number(len(KINDS))]
        held = array_of(data, kind, count)
        if data.number(3) == 0:
            texts = array_of(data, kind, 3)
            held = pa.DictionaryArray.from_arrays(pa.array([data.number(3) for _ in range(count)], pa.int8()), texts)
        arrays.append(held)
        columns[name] = WANTED[data.number(len(WANTED))]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(columns))
    return batch.slice(data.number(3)), columns


def typed(data: bytes) -> None:
    """Any batch is typed: each row is kept or counted, and what is kept is what its schema says.

    A text may stay in its dictionary.
    """
    raw, columns = batch_of(Bytes(data))
    with silence() as said:
        batch, rejected = decode(raw, columns)
    assert CANARY.decode() not in said()
    whole = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in batch.columns]
    assert pa.schema([(name, one.type) for name, one in zip(columns, whole, strict=True)]) == typed_schema(columns)
    assert batch.num_rows + rejected == raw.num_rows
    batch.validate(full=True)


def lines(data: bytes) -> None:
    """Any bytes as NDJSON: the good lines before and after are read, once each."""
    good = b'{"t":"2013-01-01","s":"ok","f":1,"i":1,"b":true}\n'
    bad = data.replace(b"\n", b"\r") if data[:1] < b"\x80" else data
    rows, error = read("ndjson", good + bad + CANARY + b"\n" + good)
    assert error is None
    assert rows[0] == rows[-1]
    assert rows[0]["s"] == "ok"


def cells(data: bytes) -> None:
    """Any bytes as CSV, under its header or in place of it: read, or refused in words that quote nothing."""
    if data[:1] < b"\x80":
        rows, error = read("csv", b"t,s,f,i,b\n2013-01-01,ok,1,1,1\n" + data + b"\n" + CANARY)
        assert error is not None or rows[0]["s"] == "ok"
    else:
        read("csv", data[1:] + CANARY)


def frames(data: bytes) -> None:
    """Any bytes as a file of Arrow IPC."""
    read("arrow", _stream_of(data))


def bodies(data: bytes) -> None:
    """Any bytes as Arrow IPC that is pushed: taken as a whole, or refused with a code; what is taken is sound."""
    with silence() as said, contextlib.suppress(BodyRefused):
        frame_of_ipc(_stream_of(data), COLUMNS, limit=1 << 20).batch.validate(full=True)
    assert CANARY.decode() not in said()


def _stream_of(data: bytes) -> bytes:
    """A good stream with bytes of it changed by the input, or the input itself."""
    changed = Bytes(data)
    if changed.number(8) == 0:
        return changed.rest() + CANARY
    stream = bytearray(STREAMS[changed.number(len(STREAMS))])
    for _ in range(1 + changed.number(8)):
        at = int.from_bytes(changed.take(4), "little") % len(stream)
        stream[at] = changed.take(1)[0]
    return bytes(stream)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "typed": typed,
    "lines": lines,
    "cells": cells,
    "frames": frames,
    "bodies": bodies,
}


def read(form: str, data: bytes) -> tuple[list[dict[str, object]], SourceUnreadable | None]:
    """Read bytes as a file of a form: the rows, and the one error that may be; whatever it says tells no value."""
    path = _folder() / f"any.{form}"
    path.write_bytes(data)
    source = FileSource(str(path), batch_rows=4)
    rows: list[dict[str, object]] = []
    raised: SourceUnreadable | None = None
    with silence() as said:
        for act in (partial(source.check, COLUMNS), partial(_read, source, rows)):
            try:
                act()
            except SourceUnreadable as error:
                raised = error
    if raised is not None:
        assert raised.__cause__ is None
        assert raised.__context__ is None
        assert CANARY.decode() not in "".join(traceback.format_exception(raised))
    assert CANARY.decode() not in said()
    return rows, raised


def _read(source: FileSource, rows: list[dict[str, object]]) -> None:
    for frame in source.frames(COLUMNS):
        frame.batch.validate(full=True)
        rows += frame.batch.to_pylist()


def _folder() -> Path:
    """One folder a process, in memory where there is such a place."""
    if not _FOLDERS:
        memory = Path("/dev/shm")  # a folder of its own is made in it
        _FOLDERS.append(tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None))
    return Path(_FOLDERS[0].name)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


@contextlib.contextmanager
def silence() -> Iterator[Callable[[], str]]:
    """Catch what is logged or printed; the caller looks at it."""
    out, handler = io.StringIO(), logging.StreamHandler(written := io.StringIO())
    logging.getLogger().addHandler(handler)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            yield lambda: out.getvalue() + written.getvalue()
    finally:
        logging.getLogger().removeHandler(handler)


def _stream(columns: Mapping[str, pa.Array], codec: str | None = None) -> bytes:
    out, batch = io.BytesIO(), pa.record_batch(dict(columns))
    with pa.ipc.new_stream(out, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    return out.getvalue()


_WORDS = pa.array(["x", CANARY.decode(), None, "2013-01-01"])
_NUMBERS = pa.array([1, 0, None, 7], pa.int64())
_HELD = {"t": _WORDS, "s": _WORDS, "f": _NUMBERS.cast(pa.float64()), "i": _NUMBERS, "b": _NUMBERS.cast(pa.bool_())}
STREAMS = [
    _stream(_HELD),
    _stream(_HELD, "zstd"),
    _stream(_HELD | {"s": _WORDS.dictionary_encode()}),
    _stream(_HELD | {"s": _WORDS.cast(pa.string_view()), "t": _NUMBERS.cast(pa.timestamp("ns"))}),
]
