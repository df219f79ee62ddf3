"""The payload of discovered keys: canonical bytes out, and the guard on the way back.

Proved here: the bytes are a function of names, keys and values alone, though keys come out of buffers that also hold
keys which were not released (A5); and whatever is sent, decoding gives ascending keys with all their cells, or
MalformedRelease (B4). The frame, the framing and the integers are `test_arrow.py`'s.
"""

from __future__ import annotations

import itertools
import random
import struct
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agg.contract import arrow, flat
from edge_agg.contract.arrow import Keys
from edge_agg.contract.errors import MalformedRelease
from tests.edge_agg.contract.streams import END, Stand, flip, messages, pack, patched, qq, unpack, written

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Columns = dict[str, npt.NDArray[np.int64]]

GOLDEN = Path(__file__).parents[2] / "contract" / "golden" / "keyed_stream.bin"
KEY, NAMES, CELLS, MAX_BYTES = "page", ("views", "stay__0"), 2, 16
TEXTS = ["", "/a", "/b", "/\u00e9", "\U0001f600"]
ROWS = CELLS * len(TEXTS)
VALUES: Columns = {
    "views": np.arange(ROWS, dtype=np.int64) * 7 - 3,
    "stay__0": np.array([-(2**63), 2**63 - 1, 0, -1, 1, 2**40, -(2**40), 5, 6, 7], dtype=np.int64),
}
PAYLOAD = arrow.encode(VALUES, Keys(KEY, TEXTS))
STREAM = unpack(PAYLOAD)
SCHEMA, BATCH = messages(STREAM)
CANARY = "a key that nobody may see"


def decode(payload: bytes, rows: int = ROWS, cells: int = CELLS) -> tuple[Keys, Columns]:
    """Decode as the collector would."""
    return arrow.decode_keyed(payload, KEY, NAMES, rows, cells=cells, max_bytes=MAX_BYTES)


def refuses(payload: bytes, rows: int = ROWS, cells: int = CELLS) -> bool:
    """Whether the guard refuses; any other exception than MalformedRelease fails the test."""
    try:
        decode(payload, rows, cells)
    except MalformedRelease as malformed:
        return bool(str(malformed))
    return False


def same(decoded: tuple[Keys, Columns], keys: Keys, columns: Columns) -> bool:
    """Whether keys, names in order, type and every value are equal."""
    return (decoded[0].partition, list(decoded[0].texts), list(decoded[1])) == (
        keys.partition,
        list(keys.texts),
        list(columns),
    ) and all(value.dtype == np.int64 and np.array_equal(value, columns[name]) for name, value in decoded[1].items())


# Round trip and canonical bytes


@st.composite
def payloads(draw: st.DrawFn) -> tuple[Keys, Columns, int]:
    """Keys, their columns, and how many cells each has."""
    texts = sorted(draw(st.sets(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=6)))
    cells, names = draw(st.integers(1, 4)), ["n", "m__1"][: draw(st.integers(1, 2))]
    chance = np.random.default_rng(draw(st.integers(0, 9)))
    columns = {name: chance.integers(-(2**63), 2**63, size=cells * len(texts), dtype=np.int64) for name in names}
    return Keys("k", texts), columns, cells


@settings(max_examples=40)
@given(made=payloads())
@example(made=(Keys("k", []), {"n": np.zeros(0, dtype=np.int64)}, 3))
@example(made=(Keys("k", [""]), {"n": np.zeros(1, dtype=np.int64)}, 1))
def test_what_is_encoded_is_decoded(made: tuple[Keys, Columns, int]) -> None:
    """Any keys and columns come back as they were: none, the empty key, any script, all of int64."""
    keys, columns, cells = made
    rows = cells * len(keys.texts)
    payload = arrow.encode(columns, keys)
    assert same(arrow.decode_keyed(payload, "k", list(columns), rows, cells=cells, max_bytes=48), keys, columns)


def test_the_golden_stream() -> None:
    """The bytes inside the zstd frame are the wire: they change with the version of the contract and never before."""
    assert GOLDEN.read_bytes() == STREAM


def test_golden_bytes_are_still_readable() -> None:
    """A payload that was stored in a lake years ago decodes to its keys and values."""
    assert same(decode(pack(GOLDEN.read_bytes())), Keys(KEY, TEXTS), VALUES)


def test_a_release_of_no_key_is_a_payload() -> None:
    """Where nothing passed the threshold the columns are empty, and no key fits beside them."""
    payload = arrow.encode({name: np.zeros(0, dtype=np.int64) for name in NAMES}, Keys(KEY, []))
    keys, columns = decode(payload, rows=0)
    assert (list(keys.texts), [len(column) for column in columns.values()]) == ([], [0, 0])
    assert refuses(payload, rows=CELLS)
    assert refuses(PAYLOAD, rows=0)


def histories() -> dict[str, Sequence[str]]:
    """The same keys as they come out of buffers that hold others as well."""
    wider = pa.array([CANARY, *TEXTS, CANARY])
    coded = pa.DictionaryArray.from_arrays(pa.array(range(len(TEXTS))), pa.array([*TEXTS, CANARY]))
    return {
        "fresh": list(TEXTS),
        "slice": wider.slice(1, len(TEXTS)).to_pylist(),
        "dictionary": coded.to_pylist(),
        "numpy": np.array([*TEXTS, CANARY])[: len(TEXTS)].tolist(),
        "tuple": tuple(TEXTS),
    }


def leaks(encode: Callable[[Columns, Keys], bytes]) -> list[str]:
    """The histories that can be told from the bytes: other bytes than a fresh list's, or a canary in them."""
    fresh = encode(VALUES, Keys(KEY, TEXTS))
    payloads = {history: encode(VALUES, Keys(KEY, texts)) for history, texts in histories().items()}
    return [history for history, payload in payloads.items() if payload != fresh or CANARY.encode() in unpack(payload)]


def test_bytes_hold_the_released_keys_and_nothing_else() -> None:
    """Equal keys give equal bytes wherever they come from, and no key that was left out comes along (A5)."""
    assert leaks(arrow.encode) == []


def test_mutant_keys_under_null_slots_are_caught() -> None:
    """Mutant: the keys that did not pass are masked rather than left out, and stay in the buffer of text."""

    def careless(columns: Columns, keys: Keys) -> bytes:
        text = "".join([*keys.texts, CANARY]).encode()
        ends = [0, *itertools.accumulate(len(one.encode()) for one in keys.texts)]
        offsets = pa.py_buffer(struct.pack(f"<{len(ends)}i", *ends))
        array = pa.Array.from_buffers(pa.string(), len(keys.texts), [None, offsets, pa.py_buffer(text)])
        masked = pa.DictionaryArray.from_arrays(pa.array(range(len(keys.texts))), array)
        batch = pa.record_batch([masked.dictionary, pa.array(range(len(keys.texts)))], names=["k", "n"])
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        return pack(sink.getvalue().to_pybytes() + text)

    assert "fresh" in leaks(careless)


# Hostile bytes


def text_array(texts: Sequence[bytes], ends: Sequence[int] | None = None, type_: Any = None) -> Any:
    """An array of text whose offsets and bytes are whatever we say."""
    wanted = [0, *itertools.accumulate(len(text) for text in texts)] if ends is None else ends
    offsets = pa.py_buffer(struct.pack(f"<{len(wanted)}i", *wanted))
    return pa.Array.from_buffers(type_ or pa.string(), len(wanted) - 1, [None, offsets, pa.py_buffer(b"".join(texts))])


def repeated(texts: Sequence[str]) -> list[bytes]:
    """Each key once for each of its cells."""
    return [text.encode() for text in texts for _ in range(CELLS)]


def stream(keys: Any, *, name: str = KEY, nullable: bool = False, rows: int = ROWS, last: bool = False) -> bytes:
    """A stream of a keys' column and two of integers, otherwise as honest as can be."""
    fields = [pa.field(one, pa.int64(), nullable=False) for one in NAMES]
    arrays = [pa.array(range(rows), pa.int64()) for _ in NAMES]
    at = len(fields) if last else 0
    fields.insert(at, pa.field(name, keys.type, nullable=nullable))
    arrays.insert(at, keys)
    return written(pa.record_batch(arrays, schema=pa.schema(fields)))


HONEST = repeated(TEXTS)
ENDS = [0, *itertools.accumulate(len(text) for text in HONEST)]


def with_offsets(*ends: int) -> bytes:
    """The honest stream with other offsets: pyarrow's writer would rather mend them."""
    body = struct.pack(f"<{len(ENDS)}i", *ENDS)
    return SCHEMA + patched(BATCH, body, struct.pack(f"<{len(ends)}i", *ends), 1) + END


def with_text(text: bytes) -> bytes:
    """The honest stream with other text of the same length."""
    return SCHEMA + patched(BATCH, b"".join(HONEST), text, 1) + END


def with_buffer(index: int, start: int, length: int) -> bytes:
    """The honest stream with another claim about where one of its buffers lies."""
    where = buffers()
    claimed = [(start, length) if i == index else one for i, one in enumerate(where)]
    old, new = (b"".join(qq(*one) for one in some) for some in (where, claimed))
    return SCHEMA + patched(BATCH, old, new, 1) + END


def buffers() -> list[tuple[int, int]]:
    """Where the honest stream's buffers lie."""
    message = arrow._frame(STREAM)[1]
    return flat.Table(message.metadata, message.header).pairs(2)


VALIDITY, OFFSETS, TEXT = 0, 1, 2


def corpus() -> dict[str, bytes]:
    """Streams that are not a release of discovered keys, each in its own way."""
    swapped = repeated([TEXTS[1], TEXTS[0], *TEXTS[2:]])
    twice = repeated([*TEXTS[:3], TEXTS[2], TEXTS[4]])
    mixed = [*HONEST[:3], HONEST[4], *HONEST[4:]]
    nulls = pa.array([None, *(text.decode() for text in HONEST[1:])])
    whole = b"".join(HONEST)
    start, length = buffers()[TEXT]
    return {
        "keys that do not ascend": stream(text_array(swapped)),
        "keys in the order of another language": stream(text_array(repeated(["a", "B", "c", "d", "e"]))),
        "a key twice": stream(text_array(twice)),
        "one key for all": stream(text_array([b"x"] * ROWS)),
        "a key without all its cells": stream(text_array(mixed)),
        "cells in another order": stream(text_array([*(text.encode() for text in TEXTS)] * CELLS)),
        "a key that is too long": stream(text_array(repeated([*TEXTS[:4], "\U0001f600" + "x" * 13]))),
        "a key that is too long in bytes alone": stream(text_array(repeated([*TEXTS[:4], "\U0001f600" * 5]))),
        "text that is not UTF-8": with_text(b"\xff" * len(whole)),
        "half a character": with_text(whole.replace("\u00e9".encode(), b"\xc3\x28")),
        "a surrogate": with_text(whole.replace("\U0001f600".encode(), b"\xed\xa0\x80a")),
        "an overlong letter": with_text(whole.replace("\u00e9".encode(), b"\xc1\xa1")),
        "a character cut by an offset": with_offsets(*ENDS[:-1], ENDS[-1] - 1),
        "offsets that descend": with_offsets(*ENDS[:4], 1, *ENDS[5:]),
        "offsets that begin later": with_offsets(1, *ENDS[1:]),
        "offsets that end before the text": with_offsets(*[min(end, 4) for end in ENDS]),
        "offsets beyond the text": with_offsets(*ENDS[:-1], ENDS[-1] + 1),
        "offsets beyond the body": with_offsets(*ENDS[:-1], 2**31 - 1),
        "offsets of the most there can be": with_offsets(0, *[2**31 - 1] * (len(ENDS) - 1)),
        "negative offsets": with_offsets(*ENDS[:4], -1, *ENDS[5:]),
        "only negative offsets": with_offsets(*[-(2**31)] * len(ENDS)),
        "no text at all": with_buffer(TEXT, start, 0),
        "text beyond the body": with_buffer(TEXT, start, 2**40),
        "text far beyond the body": with_buffer(TEXT, 2**62, length),
        "text before the body": with_buffer(TEXT, -8, length),
        "text of negative length": with_buffer(TEXT, start, -length),
        "text over the offsets": with_buffer(TEXT, 0, length),
        "text over the integers": with_buffer(TEXT, start, length + 8),
        "text with bytes behind it": with_buffer(TEXT, start, length + 1),
        "unaligned text": with_buffer(TEXT, start + 1, length - 1),
        "offsets of one row less": with_buffer(OFFSETS, 0, 4 * ROWS),
        "offsets of no row": with_buffer(OFFSETS, 0, 0),
        "a validity buffer": with_buffer(VALIDITY, 0, 8),
        "a validity buffer over the offsets": with_buffer(VALIDITY, 0, 44),
        "a null count": SCHEMA + patched(BATCH, qq(ROWS, 0), qq(ROWS, 1), 1) + END,
        "nulls": stream(nulls, nullable=True),
        "nulls under an honest schema": SCHEMA + messages(stream(nulls, nullable=True))[1] + END,
        "a nullable key": stream(text_array(HONEST), nullable=True),
        "keys under another name": stream(text_array(HONEST), name="views_"),
        "keys behind the values": stream(text_array(HONEST), last=True),
        "binary keys": stream(text_array(HONEST, type_=pa.binary())),
        "binary keys under an honest schema": SCHEMA
        + messages(stream(text_array([b"\xff"] * ROWS, type_=pa.binary())))[1]
        + END,
        "large strings": stream(text_array(HONEST).cast(pa.large_string())),
        "large strings under an honest schema": SCHEMA
        + messages(stream(text_array(HONEST).cast(pa.large_string())))[1]
        + END,
        "string views": stream(text_array(HONEST).cast(pa.string_view())),
        "string views under an honest schema": SCHEMA
        + messages(stream(text_array(HONEST).cast(pa.string_view())))[1]
        + END,
        "a dictionary": stream(text_array(HONEST).dictionary_encode()),
        "integers for keys": stream(pa.array(range(ROWS), pa.int64())),
        "integers under an honest schema": SCHEMA + messages(stream(pa.array(range(ROWS), pa.int64())))[1] + END,
        "public cells": unpack(arrow.encode(VALUES)),
        "one row less": stream(text_array(HONEST[:-1]), rows=ROWS - 1),
        "one key more": stream(text_array(repeated([*TEXTS, "\U0001f601"])), rows=ROWS + CELLS),
        "no rows": stream(text_array([]), rows=0),
        "no batch": SCHEMA + END,
        "two batches": SCHEMA + BATCH + BATCH + END,
        "bytes after the end": STREAM + b"\0" * 8,
    }


CORPUS = corpus()


def test_the_honest_message_passes() -> None:
    """Taken apart and put together again it still decodes: what the corpus changes is what is refused."""
    assert SCHEMA + BATCH + END == STREAM == with_offsets(*ENDS) == with_text(b"".join(HONEST))
    assert with_buffer(TEXT, *buffers()[TEXT]) == STREAM
    assert not refuses(pack(STREAM))
    assert not refuses(pack(stream(text_array(HONEST))))


@pytest.mark.parametrize("hostile", CORPUS.values(), ids=CORPUS.keys())
def test_a_hostile_payload_is_refused_in_bounded_memory(hostile: bytes) -> None:
    """MalformedRelease and nothing else, in a few times the plan's size; the same where the public cells are one."""
    before = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    try:
        assert refuses(pack(hostile))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert pa.default_memory_pool().max_memory() - before < 2**20
    assert hostile == CORPUS["cells in another order"] or refuses(pack(hostile), cells=1)


def test_wrong_expectations_are_refused() -> None:
    """The plan decides: other rows, cells, names or a shorter limit refuse an honest payload."""
    assert all(refuses(PAYLOAD, rows) for rows in (0, 1, ROWS - 1, ROWS + 1, 2**20))
    assert all(refuses(PAYLOAD, cells=cells) for cells in (1, 3, 4, 5, ROWS))
    odd = arrow.encode({name: column[:9] for name, column in VALUES.items()}, Keys(KEY, [f"{i}" for i in range(9)]))
    assert refuses(odd, rows=9), "rows that are no multiple of the cells"
    assert not refuses(odd, rows=9, cells=1)
    for key, names, max_bytes in ((KEY, NAMES, 3), ("pages", NAMES, 16), (KEY, NAMES[:1], 16), (KEY, NAMES[::-1], 16)):
        with pytest.raises(MalformedRelease):
            arrow.decode_keyed(PAYLOAD, key, names, ROWS, cells=CELLS, max_bytes=max_bytes)
    with pytest.raises(MalformedRelease):
        arrow.decode(PAYLOAD, NAMES, ROWS)


def test_every_truncation_is_refused() -> None:
    """A stream that ends early is refused, wherever it was cut."""
    assert [at for at in range(len(STREAM)) if not refuses(pack(STREAM[:at]))] == []


@pytest.mark.parametrize(("keys", "cells", "max_bytes"), [(1, 1, 1), (1, 1, 256), (300, 7, 256), (4_000, 1, 64)])
def test_the_limit_admits_every_honest_payload(keys: int, cells: int, max_bytes: int) -> None:
    """The longest keys, as many as may be, with values that no compression helps, pass the guard."""
    chance = np.random.default_rng(1)
    texts = sorted({f"{i:04}".ljust(max_bytes, "x")[:max_bytes] for i in range(keys)})
    columns = {"n": chance.integers(-(2**63), 2**63 - 1, size=cells * len(texts), dtype=np.int64)}
    payload = arrow.encode(columns, Keys("k", texts))
    arrow.decode_keyed(payload, "k", ["n"], cells * len(texts), cells=cells, max_bytes=max_bytes)


def admitted() -> set[str]:
    """The hostile payloads that get through, of those that a careless reader survives."""
    through = set()
    for name in ORDER:
        try:
            decode(pack(CORPUS[name]))
        except MalformedRelease:
            continue
        through.add(name)
    return through


ORDER = (
    "keys that do not ascend",
    "keys in the order of another language",
    "a key twice",
    "one key for all",
    "a nullable key",
)


def test_mutant_an_order_that_is_not_checked_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: keys are taken in any order; another order of the same keys, or one key twice, gets through."""

    class Itertools(Stand):
        def pairwise(self, texts: object) -> tuple[()]:
            return ()

    monkeypatch.setattr(arrow, "itertools", Itertools(itertools))
    assert admitted() == set(ORDER) - {"a nullable key"}


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
    assert admitted() == {"a nullable key"}


def test_mutant_text_that_is_not_validated_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: what pyarrow decodes is believed; text that is not UTF-8 then raises something else."""

    class Believed(Stand):
        def validate(self, *, full: bool) -> None:
            pass

    class Ipc(Stand):
        def read_record_batch(self, source: Any, schema: Any) -> Any:
            return Believed(self.real.read_record_batch(source, schema))

    class Pyarrow(Stand):
        ipc = Ipc(pa.ipc)

    monkeypatch.setattr(arrow, "pa", Pyarrow(pa))
    with pytest.raises(UnicodeDecodeError):
        refuses(pack(CORPUS["text that is not UTF-8"]))


def test_mutant_text_that_is_not_measured_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the text is taken to be as long as its keys, so bytes that belong to no key get through."""
    hostile = pack(CORPUS["text with bytes behind it"])
    monkeypatch.setattr(arrow, "sum", lambda lengths: (buffers()[TEXT][1] + 1) / CELLS, raising=False)
    assert not refuses(hostile)


def survivors(times: int, seed: int) -> int:
    """Flip bytes of the stream or of the frame that many times; how often the guard let the result through.

    A survivor must be keys and values that mean the same when they are encoded again.
    """
    chance = random.Random(seed)
    let_through = 0
    for i in range(times):
        mutated = flip(PAYLOAD, chance) if i % 4 == 0 else pack(flip(STREAM, chance))
        try:
            keys, columns = decode(mutated)
        except MalformedRelease:
            continue
        let_through += 1
        assert list(keys.texts) == sorted(set(keys.texts))
        assert all(column.shape == (ROWS,) and column.dtype == np.int64 for column in columns.values())
        assert same(decode(arrow.encode(columns, keys)), keys, columns)
    return let_through


def test_flipped_bytes_are_refused_or_consistent() -> None:
    """1,000 mutations: MalformedRelease, or a release that survives another round trip; never another exception."""
    assert 0 < survivors(1_000, seed=1) < 1_000


@pytest.mark.slow
def test_many_flipped_bytes_are_refused_or_consistent() -> None:
    """The same for 100,000 mutations."""
    assert 0 < survivors(100_000, seed=2) < 100_000


@given(noise=st.binary(max_size=400))
def test_random_bytes_are_refused(noise: bytes) -> None:
    """Noise is refused, inside a frame, after an honest schema, or bare."""
    assert refuses(noise)
    assert refuses(pack(noise))
    assert refuses(pack(SCHEMA + noise))


def test_a_decoded_column_cannot_be_written() -> None:
    """What was received stays what was received."""
    with pytest.raises(ValueError, match="read-only"):
        decode(PAYLOAD)[1]["views"][0] = 1
