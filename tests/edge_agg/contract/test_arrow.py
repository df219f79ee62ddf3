"""The payload: canonical bytes out, and a guard that hostile bytes do not get past.

Proved here: the bytes are a function of names and values alone (A5), and whatever is sent, decoding ends quickly, in
bounded memory, with the plan's columns or with MalformedRelease (B4). Not proved: that pyarrow itself is free of
memory errors on bytes that pass every check.
"""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract import arrow, flat
from edge_agg.contract.errors import MalformedRelease
from tests.edge_agg.contract.streams import END, Stand, flip, messages, pack, patched, qq, unpack, written

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Vectors = Mapping[str, npt.NDArray[np.int64]]

GOLDEN = Path(__file__).parents[2] / "contract" / "golden"
INT64 = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), -1, 0, 1, 2**63 - 1])
NAMES = ("departures", "delay_sum")
ROWS = 10
VALUES: dict[str, npt.NDArray[np.int64]] = {
    "departures": np.arange(ROWS, dtype=np.int64) * 7 - 3,
    "delay_sum": np.array([-(2**63), 2**63 - 1, 0, -1, 1, 2**40, -(2**40), 5, 6, 7], dtype=np.int64),
}
LUCKY_ROWS = 20
CANARY = 0x0BADC0DE5EED1234


STREAM = unpack(arrow.encode(VALUES))
SCHEMA, BATCH = messages(STREAM)


def same(decoded: Vectors, vectors: Vectors) -> bool:
    """Whether two sets of vectors are equal: names in order, type and every value."""
    return list(decoded) == list(vectors) and all(
        value.dtype == np.int64 and np.array_equal(value, vectors[name]) for name, value in decoded.items()
    )


# Round trip and canonical bytes


@st.composite
def vectors(draw: st.DrawFn) -> dict[str, npt.NDArray[np.int64]]:
    """A payload's worth of vectors, names as long as a plan may make them."""
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,68}", fullmatch=True), min_size=1, max_size=6, unique=True))
    rows = draw(st.integers(1, 40))
    return {name: np.array(draw(st.lists(INT64, min_size=rows, max_size=rows)), dtype=np.int64) for name in names}


@settings(max_examples=40)
@given(vectors=vectors())
def test_what_is_encoded_is_decoded(vectors: dict[str, npt.NDArray[np.int64]]) -> None:
    """Any vectors come back as they were, over all shapes and the whole of int64."""
    rows = len(next(iter(vectors.values())))
    assert same(arrow.decode(arrow.encode(vectors), list(vectors), rows), vectors)


@pytest.mark.parametrize(("n_vectors", "rows"), [(1, 1), (1, 8), (1, 9), (500, 1), (3, 100_000)])
def test_the_limit_admits_every_honest_payload(n_vectors: int, rows: int) -> None:
    """The largest stream that a plan allows passes the guard, with the longest names, however it is shaped."""
    values = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, size=rows, dtype=np.int64)
    payload = arrow.encode({f"{i:04}".ljust(69, "x"): values for i in range(n_vectors)})
    assert len(unpack(payload)) <= arrow.max_stream_bytes(n_vectors, rows)
    arrow.decode(payload, [f"{i:04}".ljust(69, "x") for i in range(n_vectors)], rows)


def test_the_golden_stream() -> None:
    """The bytes inside the zstd frame are the wire: they change with the version of the contract and never before.

    The frame itself is not pinned: zstd does not promise the same bytes from one of its versions to the next.
    """
    assert (GOLDEN / "payload_stream.bin").read_bytes() == STREAM


def test_golden_bytes_are_still_readable() -> None:
    """A payload that was stored in a lake years ago decodes to its values."""
    assert same(arrow.decode(pack((GOLDEN / "payload_stream.bin").read_bytes()), NAMES, ROWS), VALUES)


def histories() -> dict[str, npt.NDArray[np.int64]]:
    """The numbers 0 to 9 as arrays that came about differently, each within sight of canaries."""
    canaries = np.full(1000, CANARY, dtype=np.int64)
    middle, strided, matrix = canaries.copy(), canaries.copy(), np.full((ROWS, 7), CANARY, dtype=np.int64)
    middle[100 : 100 + ROWS] = np.arange(ROWS)
    strided[: 3 * ROWS : 3] = np.arange(ROWS)
    matrix[:, 3] = np.arange(ROWS)
    backward = canaries.copy()
    backward[:ROWS] = np.arange(ROWS)[::-1]
    return {
        "fresh": np.arange(ROWS, dtype=np.int64),
        "slice": middle[100 : 100 + ROWS],
        "strided": strided[: 3 * ROWS : 3],
        "column": matrix[:, 3],
        "reversed": backward[ROWS - 1 :: -1],
        "other byte order": np.arange(ROWS).astype(">i8"),
        "from arrow": pa.array([CANARY, *range(ROWS), CANARY]).slice(1, ROWS).to_numpy(),
    }


def leaks(encode: Callable[[Vectors], bytes]) -> list[str]:
    """The histories that can be told from the bytes: other bytes than a fresh array's, or a canary in them."""
    fresh = encode({"n": histories()["fresh"]})
    canaries = (struct.pack("<q", CANARY), struct.pack(">q", CANARY))
    found = []
    for history, array in histories().items():
        payload = encode({"n": array})
        if payload != fresh or any(canary in unpack(payload) or canary in payload for canary in canaries):
            found.append(history)
    return found


def test_bytes_hold_the_released_values_and_nothing_else() -> None:
    """Equal values give equal bytes whatever array they lie in, and no neighbour in memory comes along (A5)."""
    assert leaks(arrow.encode) == []


def test_mutant_an_encoder_that_keeps_buffers_is_caught() -> None:
    """Mutant: suppressed values under null slots of a larger array, as filtering frames would leave them."""

    def careless(vectors: Vectors) -> bytes:
        sink = pa.BufferOutputStream()
        arrays = []
        for vector in vectors.values():
            parent = vector if vector.base is None else np.ascontiguousarray(vector.base).ravel()
            arrays.append(pa.array(parent.astype(np.int64), mask=parent == CANARY))
        batch = pa.record_batch(arrays, names=list(vectors))
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return pack(sink.getvalue().to_pybytes())

    assert {"slice", "strided", "column"} <= set(leaks(careless))


def test_the_order_of_vectors_is_the_callers() -> None:
    """Columns travel in the plan's order; another order is another payload, and is refused."""
    swapped = dict(reversed(VALUES.items()))
    assert arrow.encode(swapped) != arrow.encode(VALUES)
    with pytest.raises(MalformedRelease):
        arrow.decode(arrow.encode(swapped), NAMES, ROWS)


# Hostile bytes


def batch_of(fields: list[Any], arrays: list[Any], metadata: Any = None) -> Any:
    """A batch under a schema of our own."""
    return pa.record_batch(arrays, schema=pa.schema(fields, metadata=metadata))


def ints(name: str, type_: Any = None, *, nullable: bool = False, metadata: Any = None) -> Any:
    """A field, by default as the plan wants it."""
    return pa.field(name, type_ or pa.int64(), nullable=nullable, metadata=metadata)


def columns(count: int = 2, rows: int = ROWS) -> list[Any]:
    """Columns of plain integers."""
    return [pa.array(list(range(rows)), pa.int64()) for _ in range(count)]


def buffers(first: tuple[int, int], second: tuple[int, int], validity: tuple[int, int] = (80, 0)) -> bytes:
    """The honest stream with other claims about where its two columns lie."""
    honest = qq(0, 0) + qq(0, 80) + qq(80, 0) + qq(80, 80)
    return SCHEMA + patched(BATCH, honest, qq(0, 0) + qq(*first) + qq(*validity) + qq(*second)) + END


def rle_frame(declared: int, blocks: int) -> bytes:
    """A zstd frame by hand: it declares a size, and holds that many blocks of 128 KiB of zeros in 4 bytes each."""
    frame = struct.pack("<IBBQ", 0xFD2FB528, 3 << 6, 0x88, declared)
    for i in range(blocks):
        frame += struct.pack("<I", (131072 << 3) | (1 << 1) | (i == blocks - 1))[:3] + b"\0"
    return frame


def wide_schema() -> bytes:
    """A stream whose schema has 10,000 columns."""
    return written(batch_of([ints(f"c{i}") for i in range(10_000)], columns(10_000, 1)))


def dictionary_stream() -> bytes:
    """A stream with a dictionary-encoded column, hence with a dictionary batch."""
    fields = [pa.field("departures", pa.dictionary(pa.int32(), pa.int64()), nullable=False), ints("delay_sum")]
    return written(batch_of(fields, [columns(1)[0].dictionary_encode(), *columns(1)]))


def nested_schema(depth: int) -> bytes:
    """A stream whose one column is a list of lists of lists."""
    type_ = pa.int64()
    for _ in range(depth):
        type_ = pa.list_(type_)
    return written(batch_of([pa.field("departures", type_)], [pa.nulls(ROWS, type_)]))


def streams() -> dict[str, bytes]:
    """Arrow streams that are not the plan's, each in its own way; all are inside one honest zstd frame."""
    plain = [ints(name) for name in NAMES]
    node = qq(ROWS, 0)
    nulls = pa.array([None, *range(ROWS - 1)], pa.int64())
    count = struct.pack("<q", ROWS)
    null_columns = written(batch_of([pa.field(name, pa.null()) for name in NAMES], [pa.nulls(ROWS)] * 2))
    claim = struct.pack("<q", 2**30)
    body = struct.pack("<q", 160)
    return {
        "empty": b"",
        "only the end mark": END,
        "no batch": SCHEMA + END,
        "batch before schema": BATCH + SCHEMA + END,
        "two schemas": SCHEMA + SCHEMA + BATCH + END,
        "two batches": SCHEMA + BATCH + BATCH + END,
        "no end mark": SCHEMA + BATCH,
        "half an end mark": SCHEMA + BATCH + END[:4],
        "bytes after the end": STREAM + b"\0",
        "eight bytes after the end": STREAM + b"\0" * 8,
        "two streams": STREAM + STREAM,
        "old framing without continuation": written(batch_of(plain, columns()), use_legacy_format=True),
        "dictionary column": dictionary_stream(),
        "dictionary batch under an honest schema": SCHEMA + messages(dictionary_stream())[1] + BATCH + END,
        "dictionary batch instead of the batch": SCHEMA + messages(dictionary_stream())[1] + END,
        "body compressed with lz4": written(batch_of(plain, columns()), compression="lz4"),
        "body compressed with zstd": written(batch_of(plain, columns()), compression="zstd"),
        "nullable field": written(batch_of([ints("departures", nullable=True), plain[1]], columns())),
        "nullable field with nulls": written(
            batch_of([ints("departures", nullable=True), plain[1]], [nulls, columns(1)[0]])
        ),
        "nulls under an honest schema": SCHEMA
        + messages(written(batch_of([ints("departures", nullable=True), plain[1]], [nulls, columns(1)[0]])))[1]
        + END,
        "extra column": written(batch_of([*plain, ints("extra")], columns(3))),
        "extra column under an honest schema": SCHEMA
        + messages(written(batch_of([*plain, ints("extra")], columns(3))))[1]
        + END,
        "missing column": written(batch_of(plain[:1], columns(1))),
        "missing column under an honest schema": SCHEMA + messages(written(batch_of(plain[:1], columns(1))))[1] + END,
        "no column": written(pa.record_batch([], schema=pa.schema([]))),
        "wrong name": written(batch_of([ints("departures"), ints("delay_sun")], columns())),
        "swapped names": written(batch_of(plain[::-1], columns())),
        "one name twice": written(batch_of([plain[0], plain[0]], columns())),
        "name that is not UTF-8": patched(SCHEMA, b"departures", b"depart\xff\xfe\xfd\xfc") + BATCH + END,
        "unsigned": written(
            batch_of([ints("departures", pa.uint64()), plain[1]], [columns(1)[0].cast(pa.uint64()), columns(1)[0]])
        ),
        "32 bits": written(
            batch_of([ints("departures", pa.int32()), plain[1]], [columns(1)[0].cast(pa.int32()), columns(1)[0]])
        ),
        "floats": written(
            batch_of([ints("departures", pa.float64()), plain[1]], [columns(1)[0].cast(pa.float64()), columns(1)[0]])
        ),
        "timestamps": written(
            batch_of(
                [ints("departures", pa.timestamp("us")), plain[1]],
                [columns(1)[0].cast(pa.timestamp("us")), columns(1)[0]],
            )
        ),
        "strings": written(
            batch_of([ints("departures", pa.string()), plain[1]], [pa.array(["x"] * ROWS), columns(1)[0]])
        ),
        "string views": written(
            batch_of(
                [ints("departures", pa.string_view()), plain[1]],
                [pa.array(["longer than twelve bytes"] * ROWS, pa.string_view()), columns(1)[0]],
            )
        ),
        "string views under an honest schema": SCHEMA
        + messages(
            written(
                batch_of(
                    [ints("departures", pa.string_view()), plain[1]],
                    [pa.array(["longer than twelve bytes"] * ROWS, pa.string_view()), columns(1)[0]],
                )
            )
        )[1]
        + END,
        "run ends": written(
            batch_of(
                [ints("departures", pa.run_end_encoded(pa.int32(), pa.int64())), plain[1]],
                [pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int32()), pa.array([1])), columns(1)[0]],
            )
        ),
        "nested schema": nested_schema(50),
        "schema metadata": written(batch_of(plain, columns(), metadata={"site": "x"})),
        "field metadata": written(batch_of([ints("departures", metadata={"site": "x"}), plain[1]], columns())),
        "batch metadata": written(batch_of(plain, columns()), metadata=pa.KeyValueMetadata({"site": "x"})),
        "one row less": written(batch_of(plain, columns(rows=ROWS - 1))),
        "one row more": written(batch_of(plain, columns(rows=ROWS + 1))),
        "no rows": written(batch_of(plain, columns(rows=0))),
        "2**30 rows in the batch": SCHEMA + patched(BATCH, node, qq(2**30, 0)).replace(count, claim) + END,
        "2**30 rows of null columns": null_columns.replace(count, claim),
        "2**30 rows of null columns under an honest schema": SCHEMA
        + messages(null_columns)[1].replace(count, claim)
        + END,
        "negative rows": SCHEMA + BATCH.replace(count, struct.pack("<q", -1)) + END,
        "a null count": SCHEMA + patched(BATCH, node, qq(ROWS, 1)) + END,
        "overlapping buffers": buffers((0, 80), (0, 80)),
        "half-overlapping buffers": buffers((0, 80), (40, 80)),
        "buffers in the wrong order": buffers((80, 80), (0, 80)),
        "unaligned buffer": buffers((0, 80), (81, 80)),
        "buffer beyond the body": buffers((0, 80), (160, 80)),
        "buffer far beyond the body": buffers((0, 80), (2**62, 80)),
        "buffer before the body": buffers((0, 80), (-8, 80)),
        "buffer that is too long": buffers((0, 80), (80, 2**40)),
        "buffer that is too short": buffers((0, 80), (80, 72)),
        "buffer of negative length": buffers((0, 80), (80, -80)),
        "validity buffer": buffers((0, 80), (80, 80), (80, 8)),
        "body longer than its columns": SCHEMA + patched(BATCH, body, struct.pack("<q", 240), 1) + b"\0" * 80 + END,
        "body shorter than its columns": SCHEMA + patched(BATCH, body, struct.pack("<q", 152), 1)[:-8] + END,
        "body that claims the world": SCHEMA + patched(BATCH, body, struct.pack("<q", 2**62), 1) + END,
        "body of negative length": SCHEMA + patched(BATCH, body, struct.pack("<q", -160), 1) + END,
        "metadata that claims the world": struct.pack("<II", 0xFFFFFFFF, 0xFFFFFFF8) + STREAM[8:],
        "metadata of unaligned length": struct.pack("<II", 0xFFFFFFFF, 7) + STREAM[8:],
        "zeros": b"\0" * 4000,
        "ones": b"\xff" * 4000,
        "10,000 columns": wide_schema(),
    }


def frames() -> dict[str, bytes]:
    """Payloads that are not one honest zstd frame."""
    honest = pack(STREAM)
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(STREAM)
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    trained = zstandard.ZstdCompressionDict(STREAM * 4, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return {
        "nothing": b"",
        "not zstd": STREAM,
        "bare magic": honest[:4],
        "byte after the frame": honest + b"\0",
        "two frames": honest + honest,
        "skippable frame first": skippable + honest,
        "skippable frame last": honest + skippable,
        "skippable frame alone": skippable,
        "no declared size": sizeless,
        "bomb that says so": rle_frame(8192 * 131072, 8192),
        "bomb that declares little": rle_frame(4000, 8192),
        "bomb that declares one block less": rle_frame(131072, 2),
        "frame that declares too much": rle_frame(4000, 0) + struct.pack("<I", 1)[:3],
        "declares 2**64 - 1": rle_frame(2**64 - 1, 1),
        "one byte over the limit": pack(b"\0" * (arrow.max_stream_bytes(len(NAMES), ROWS) + 1)),
        "needs a dictionary": zstandard.ZstdCompressor(dict_data=trained).compress(STREAM),
    }


CORPUS = {
    **{f"frame: {name}": payload for name, payload in frames().items()},
    **{f"stream: {name}": pack(stream) for name, stream in streams().items()},
}


def refuses(payload: bytes, rows: int = ROWS) -> bool:
    """Whether the guard refuses; any other exception than MalformedRelease fails the test."""
    try:
        arrow.decode(payload, NAMES, rows)
    except MalformedRelease as malformed:
        return bool(str(malformed))
    return False


def test_the_honest_message_passes() -> None:
    """Taken apart and put together again it still decodes: what the corpus changes is what is refused."""
    assert SCHEMA + BATCH + END == STREAM
    assert not refuses(pack(STREAM))


@pytest.mark.parametrize("payload", CORPUS.values(), ids=CORPUS.keys())
def test_a_hostile_payload_is_refused_quickly_and_in_bounded_memory(payload: bytes) -> None:
    """MalformedRelease and nothing else, in well under a second of CPU and a few times the plan's size."""
    pa_before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    began = time.process_time()
    try:
        assert refuses(payload)
        took_s, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took_s < 1.0
    # One inflated block of zstd (128 KiB) is the most that comes before the limit is looked at.
    assert peak < 8 * arrow.max_stream_bytes(len(NAMES), ROWS) + 2 * 131072 + 16 * len(payload)
    assert pa.default_memory_pool().max_memory() - pa_before < 1 << 20


def lucky_compression() -> bytes:
    """A compressed column that is by chance exactly as long as the plain one would be."""
    for zeros in range(8 * LUCKY_ROWS):
        body = bytes(zeros) + random.Random(zeros).randbytes(8 * LUCKY_ROWS - zeros)
        column = pa.array(np.frombuffer(body, dtype=np.int64))
        stream = written(batch_of([ints("n")], [column]), compression="lz4")
        if qq(0, 0) + qq(0, 8 * LUCKY_ROWS) in stream:
            return stream
    raise AssertionError


def test_the_guard_refuses_before_pyarrow_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch of the corpus reaches pyarrow's decoder: each is refused by the guard's own checks (B4)."""

    class Ipc(Stand):
        def read_record_batch(self, source: Any, schema: Any) -> Any:
            raise AssertionError("hostile bytes reached the decoder")

    class Pyarrow(Stand):
        ipc = Ipc(pa.ipc)

    stream = lucky_compression()
    for names, rows in ((NAMES, ROWS), (("n",), LUCKY_ROWS)):
        arrow._layout(names, rows)  # decodes a stream of our own, once
    monkeypatch.setattr(arrow, "pa", Pyarrow(pa))
    for name, payload in CORPUS.items():
        assert refuses(payload), name
    with pytest.raises(MalformedRelease):
        arrow.decode(pack(stream), ["n"], LUCKY_ROWS)


def findings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where a changed byte of the stream is judged otherwise by its layout than where every message is read."""

    def judged(stream: bytes) -> bytes | None:
        try:
            return b"".join(column.tobytes() for column in arrow.decode(pack(stream), NAMES, ROWS).values())
        except MalformedRelease:
            return None

    changed = [
        STREAM[:at] + bytes([STREAM[at] ^ bit]) + STREAM[at + 1 :] for at in range(len(STREAM)) for bit in (1, 128)
    ]
    changed += [STREAM[:at] for at in range(0, len(STREAM), 8)] + [STREAM + END, STREAM[:-8] + bytes(8) + END]
    by_layout = [judged(stream) for stream in changed]
    with monkeypatch.context() as reading:
        reading.setattr(arrow._Layout, "fits", lambda self, stream: False)
        by_reading = [judged(stream) for stream in changed]
    assert None in by_reading
    assert len(set(by_reading)) > ROWS, "some must pass, with other values"
    return [i for i, (one, other) in enumerate(zip(by_layout, by_reading, strict=True)) if one != other]


def test_a_known_layout_is_judged_as_if_it_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """One comparison stands for the steps from framing to validation: the same streams pass, with the same values."""
    assert findings(monkeypatch) == []


@pytest.mark.parametrize("blind", ["head", "size", "end"])
def test_mutant_a_layout_that_is_not_compared_is_caught(blind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a part of the layout is not looked at."""

    def fits(self: Any, stream: bytes) -> bool:
        size = len(stream) == self.size or (blind == "size" and len(stream) > self.size)
        head = stream.startswith(self.head) or blind == "head"
        return size and head and (stream.endswith(END) or blind == "end")

    monkeypatch.setattr(arrow._Layout, "fits", fits)
    assert findings(monkeypatch)


def test_every_truncation_is_refused() -> None:
    """A payload that ends early is refused, wherever it was cut: the frame or the stream inside it."""
    payload = arrow.encode(VALUES)
    assert [at for at in range(len(payload)) if not refuses(payload[:at])] == []
    assert [at for at in range(len(STREAM)) if not refuses(pack(STREAM[:at]))] == []


def test_wrong_expectations_are_refused() -> None:
    """The plan decides: another number of rows, fewer or more names, or other names refuse an honest payload."""
    payload = arrow.encode(VALUES)
    assert all(refuses(payload, rows) for rows in (1, ROWS - 1, ROWS + 1, 2**20))
    for names in (["departures"], [*NAMES, "more"], ["departures", "delay"], []):
        with pytest.raises(MalformedRelease):
            arrow.decode(payload, names, ROWS)


def admitted() -> set[str]:
    """The hostile payloads that get through, or fail otherwise than by MalformedRelease."""
    through = set()
    for name, payload in CORPUS.items():
        if "2**30" in name or "bomb" in name or "world" in name or "far" in name or "buffer before" in name:
            continue  # without its guard this one would do what it threatens
        try:
            arrow.decode(payload, NAMES, ROWS)
        except MalformedRelease:
            continue
        except Exception:  # noqa: BLE001  # a mutant may fail in any way
            through.add(name)
        else:
            through.add(name)
    return through


def test_mutant_no_check_of_the_batch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: pyarrow decodes whatever the batch says."""
    monkeypatch.setattr(arrow, "_check_batch", lambda batch, wanted, rows: None)
    assert {
        "stream: body compressed with lz4",
        "stream: body compressed with zstd",
        "stream: overlapping buffers",
        "stream: one row more",
        "stream: one row less",
        "stream: body longer than its columns",
    } <= admitted()


def test_mutant_lenient_framing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the first two messages are looked at and the rest is not."""

    def lenient(stream: bytes) -> tuple[flat.Message, flat.Message]:
        head, at = flat.message(stream, 0)
        return head, flat.message(stream, at)[0]

    monkeypatch.setattr(arrow, "_frame", lenient)
    assert {"stream: two batches", "stream: bytes after the end", "stream: two streams"} <= admitted()


def test_mutant_lenient_inflating_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: whatever zstd can inflate is taken."""
    monkeypatch.setattr(
        arrow, "_inflate", lambda payload, limit: zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    )
    assert {"frame: no declared size", "frame: byte after the frame", "frame: two frames"} <= admitted()


def test_mutant_a_schema_that_is_not_compared_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the plan's schema is taken to be the message's own."""

    class Agreeable:
        def equals(self, other: object, *, check_metadata: bool) -> bool:
            return True

    class Lenient(Stand):
        def read_schema(self, data: Any) -> Agreeable:
            return Agreeable()

    class Pyarrow(Stand):
        ipc = Lenient(pa.ipc)

    monkeypatch.setattr(arrow, "pa", Pyarrow(pa))
    assert {
        "stream: schema metadata",
        "stream: field metadata",
        "stream: swapped names",
        "stream: wrong name",
        "stream: unsigned",
        "stream: floats",
        "stream: nullable field",
    } <= admitted()


def survivors(times: int, seed: int) -> int:
    """Flip bytes of the stream or of the frame that many times; how often the guard let the result through.

    A survivor must be a plan's worth of values that means the same when it is encoded again.
    """
    chance = random.Random(seed)
    payload = arrow.encode(VALUES)
    let_through = 0
    for i in range(times):
        mutated = flip(payload, chance) if i % 4 == 0 else pack(flip(STREAM, chance))
        try:
            decoded = arrow.decode(mutated, NAMES, ROWS)
        except MalformedRelease:
            continue
        let_through += 1
        assert list(decoded) == list(NAMES)
        assert all(vector.shape == (ROWS,) and vector.dtype == np.int64 for vector in decoded.values())
        assert same(arrow.decode(arrow.encode(decoded), NAMES, ROWS), decoded)
    return let_through


def test_flipped_bytes_are_refused_or_consistent() -> None:
    """3,000 mutations: MalformedRelease, or values that survive another round trip; never another exception."""
    assert 0 < survivors(3_000, seed=1) < 3_000


@pytest.mark.slow
def test_many_flipped_bytes_are_refused_or_consistent() -> None:
    """The same for 100,000 mutations."""
    assert 0 < survivors(100_000, seed=2) < 100_000


@given(stream=st.binary(max_size=400))
def test_random_bytes_are_refused(stream: bytes) -> None:
    """Noise is refused, inside a frame, after an honest schema, or bare."""
    assert refuses(stream)
    assert refuses(pack(stream))
    assert refuses(pack(SCHEMA + stream))


def test_a_decoded_vector_cannot_be_written() -> None:
    """What was received stays what was received."""
    decoded = arrow.decode(arrow.encode(VALUES), NAMES, ROWS)
    with pytest.raises(ValueError, match="read-only"):
        decoded["departures"][0] = 1
