"""Whole releases that no honest agent sends, and the refusal that each must get.

Each is a generator: a name, and what makes header and payload from a maker of honest ones. Where the payload is hostile
the header's sha256 and size are right, so that the guard itself must refuse it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import zstandard

from edge_agg.contract import codec, flat
from edge_agg.contract.refusal import Refusal
from edge_agg.contract.vectors import payload_columns
from tests.edge_agg.contract.streams import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_agg.contract.release import Sealed
    from tests.cloud_collector.conftest import Made, Maker

    Crafted = tuple[bytes, bytes]


def stream_of(maker: Maker) -> bytes:
    """The honest stream."""
    return unpack(maker.make().sealed.payload)


def around(made: Made, payload: bytes) -> Crafted:
    """The honest header with another payload's sha256, and that payload."""
    sealed = codec.seal(replace(made.release, payload_sha256=hashlib.sha256(payload).digest()), payload)
    return sealed.header, sealed.payload


def rle_frame(declared: int, blocks: int, *, window: int = 0x88) -> bytes:
    """A zstd frame by hand: blocks of 128 KiB of zeros in 4 bytes each, a declared size and a window of its own."""
    frame = struct.pack("<IBB", 0xFD2FB528, 0b1000_0000, window) + struct.pack("<I", declared)
    sizes = [(i == blocks - 1) | 1 << 1 | 131072 << 3 for i in range(blocks)]
    return frame + b"".join(struct.pack("<I", size)[:3] + b"\0" for size in sizes)


def written(schema: pa.Schema, *batches: pa.RecordBatch, **options: object) -> bytes:
    """A stream of any schema and batches."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _of_columns(maker: Maker, kind: pa.DataType, *, rows: int | None = None) -> bytes:
    names = payload_columns(maker.plan)
    rows = maker.make().release.rows if rows is None else rows
    arrays = [pa.array([None] * rows, kind) if kind == pa.null() else pa.array(np.zeros(rows), kind) for _ in names]
    schema = pa.schema([pa.field(name, kind, nullable=kind == pa.null()) for name in names])
    return written(schema, pa.record_batch(arrays, schema=schema))


def _honest_batch(maker: Maker) -> tuple[pa.Schema, pa.RecordBatch]:
    with pa.ipc.open_stream(stream_of(maker)) as reader:
        return reader.schema, reader.read_next_batch()


def _null_column(maker: Maker) -> bytes:
    """A null column needs no bytes for its rows: 2**30 of them fit in 224 bytes."""
    schema = pa.schema([pa.field("n", pa.null())])
    return written(schema, pa.record_batch([pa.nulls(2**30)], schema=schema))


def _overlapping_views(maker: Maker) -> bytes:
    """Many string views of one buffer: each is looked at in full when the text is validated."""
    schema = pa.schema([pa.field(name, pa.string_view()) for name in payload_columns(maker.plan)])
    array = pa.array(["x" * 10_000] * maker.make().release.rows, pa.string_view())
    return written(schema, pa.record_batch([array] * len(schema), schema=schema))


def _nested(depth: int) -> bytes:
    kind: pa.DataType = pa.int64()
    for _ in range(depth):
        kind = pa.list_(kind)
    schema = pa.schema([pa.field("n", kind)])
    return written(schema, pa.record_batch([pa.nulls(1, kind)], schema=schema))


def _compressed(maker: Maker, codec_name: str) -> bytes:
    schema, batch = _honest_batch(maker)
    return written(schema, batch, compression=codec_name)


def _wide() -> bytes:
    schema = pa.schema([pa.field(f"c{i}", pa.int64(), nullable=False) for i in range(10_000)])
    return written(schema, pa.record_batch([pa.array([0])] * 10_000, schema=schema))


def _reordered(maker: Maker) -> bytes:
    """The batch before its schema."""
    stream = stream_of(maker)
    _, at = flat.message(stream, 0)
    _, end = flat.message(stream, at)
    return stream[at:end] + stream[:at] + stream[end:]


def _twice(maker: Maker) -> bytes:
    stream = stream_of(maker)
    _, at = flat.message(stream, 0)
    _, end = flat.message(stream, at)
    return stream[:end] + stream[at:end] + stream[end:]


STREAMS: dict[str, Callable[[Maker], bytes]] = {
    "null columns of 2**30 rows": _null_column,
    "null columns of the right number of rows": lambda maker: _of_columns(maker, pa.null()),
    "overlapping views": _overlapping_views,
    "lists 50 deep": lambda maker: _nested(50),
    "10,000 columns": lambda maker: _wide(),
    "a body in zstd": lambda maker: _compressed(maker, "zstd"),
    "a body in lz4": lambda maker: _compressed(maker, "lz4"),
    "floats": lambda maker: _of_columns(maker, pa.float64()),
    "one row": lambda maker: _of_columns(maker, pa.int64(), rows=1),
    "the batch before its schema": _reordered,
    "the batch twice": _twice,
    "half of it": lambda maker: stream_of(maker)[: len(stream_of(maker)) // 2],
    "without its end mark": lambda maker: stream_of(maker)[:-8],
    "bytes after its end": lambda maker: stream_of(maker) + b"\0" * 8,
    "nothing": lambda maker: b"",
}
"""IPC streams, each inside one honest zstd frame."""
PAYLOADS: dict[str, Callable[[Maker], bytes]] = {
    "a gibibyte in 33 KB, declared": lambda maker: rle_frame(2**30, 8192),
    "a gibibyte in 33 KB, undeclared": lambda maker: rle_frame(1000, 8192),
    "more than it declares": lambda maker: rle_frame(64, 1),
    "a window of 4 GiB": lambda maker: rle_frame(1000, 1, window=0xB0),
    "no declared size": lambda maker: zstandard.ZstdCompressor(write_content_size=False).compress(stream_of(maker)),
    "a frame and a byte": lambda maker: pack(stream_of(maker)) + b"\0",
    "two frames": lambda maker: pack(stream_of(maker)) + pack(stream_of(maker)),
    "half a frame": lambda maker: pack(stream_of(maker))[:-20],
    "a skippable frame before it": lambda maker: b"\x50\x2a\x4d\x18\x04\0\0\0\0\0\0\0" + pack(stream_of(maker)),
    "not zstd": stream_of,
    "nothing": lambda maker: b"",
}
"""Payloads that are not one honest frame."""


def _flat(maker: Maker, header: bytes) -> Crafted:
    return header, maker.make().sealed.payload


def _another_sha(maker: Maker) -> Crafted:
    sealed: Sealed = maker.make(payload_sha256=hashlib.sha256(b"another").digest()).sealed
    return sealed.header, sealed.payload


def _another_payload(maker: Maker) -> Crafted:
    return maker.make().sealed.header, maker.make(seed=1).sealed.payload


RELEASES: dict[str, tuple[Callable[[Maker], Crafted], Refusal]] = {
    "a sha256 of something else": (_another_sha, Refusal.MALFORMED),
    "the payload of another release": (_another_payload, Refusal.MALFORMED),
    "a header of 64 KiB and a byte": (lambda maker: _flat(maker, b"\0" * (64 * 1024 + 1)), Refusal.MALFORMED),
    "a header that is one long unknown field": (
        lambda maker: _flat(maker, b"\x9a\x06\xff\xff\x03" + b"\0" * 65535),
        Refusal.MALFORMED,
    ),
    "groups nested 10,000 deep": (lambda maker: _flat(maker, b"\x0b" * 10_000), Refusal.MALFORMED),
    "a tenant that is not UTF-8": (lambda maker: _flat(maker, b"\x0a\x02\xff\xfe"), Refusal.MALFORMED),
    "an empty header": (lambda maker: _flat(maker, b""), Refusal.MALFORMED),
    "4 billion rows": (lambda maker: _crafted(maker, rows=2**32 - 1), Refusal.PLAN_MISMATCH),
    "an unknown plan": (lambda maker: _crafted(maker, plan_hash=b"\1" * 32), Refusal.PLAN_UNKNOWN),
    "a window of 2051": (lambda maker: _crafted(maker, window=2000), Refusal.WINDOW_AHEAD),
    "another plan's name": (lambda maker: _crafted(maker, plan="elsewhere"), Refusal.PLAN_MISMATCH),
}
"""Headers, and payloads that are not theirs."""


def _crafted(maker: Maker, **changes: Any) -> Crafted:
    sealed = maker.make(**changes).sealed
    return sealed.header, sealed.payload


def corpus(maker: Maker) -> Iterator[tuple[str, Crafted, Refusal]]:
    """Every hostile release, by name, with what it must be refused as."""
    made = maker.make()
    for name, stream in STREAMS.items():
        yield f"stream: {name}", around(made, pack(stream(maker))), Refusal.MALFORMED
    for name, payload in PAYLOADS.items():
        yield f"payload: {name}", around(made, payload(maker)), Refusal.MALFORMED
    for name, (craft, refusal) in RELEASES.items():
        yield f"release: {name}", craft(maker), refusal
