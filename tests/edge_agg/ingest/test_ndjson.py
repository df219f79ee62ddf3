"""Lines decoded together come out as lines decoded one by one."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.ingest import lines, ndjson
from edge_agg.ingest.decode import decode

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

    from edge_agg.contract.plan import ColumnType

COLUMNS: Mapping[str, ColumnType] = {"t": "timestamp", "s": "string", "f": "float", "i": "integer", "b": "boolean"}
_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["2013-01-01", "12.5", "true", "1"]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from("ab}"), st.text(max_size=2), max_size=2),
)
_objects = st.dictionaries(st.sampled_from([*COLUMNS, "x", "}"]), _values, max_size=5).map(json.dumps)
_right = st.fixed_dictionaries(
    {},
    optional={
        "t": st.just("2013-01-01T10:00:00Z"),
        "s": st.text(max_size=5),
        "f": st.floats(allow_nan=False, allow_infinity=False),
        "i": st.integers(-9, 9),
        "b": st.booleans(),
    },
).map(json.dumps)
_pieces = st.sampled_from(
    [b"", b" ", b"\r", b"{", b"}", b"}{", b"{}", b'"', b'{"s":', b"[", b"]", b",", b"\x00", b"\xff"]
)
_lines = st.one_of(_right.map(str.encode), _right.map(str.encode), _objects.map(str.encode), _pieces)


def _read(text: bytes) -> tuple[list[Any], int]:
    """The rows, and how many were rejected."""
    rows: list[Any] = []
    rejected = 0
    for raw in ndjson.read_rows(io.BytesIO(text).read, COLUMNS, rows=3):
        batch, wrong = decode(raw.batch, COLUMNS)
        rows += map(repr, batch.to_pylist())  # NaN is null by now, and -0.0 is told from 0.0
        rejected += wrong + raw.skipped
    return rows, rejected


def _read_singly(text: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], int]:
    with monkeypatch.context() as slow:
        slow.setattr(ndjson, "_together", lambda *_: None)
        return _read(text)


def _check(text: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        assert _read(text) == _read_singly(text, patch)


TRICKS = [
    b'{"i":1}{"i":2}\n{"i":\n3}',
    b'{"i":1}{"i":2}\n{"x":{"y":1}\n}',
    b'{"i":1}{"i":2}\n{"x":{"y":{}\n{"z":1}}}',
    b'{"i":1} {"i":2}\n{} ',
    b'{"i":1}\r{"i":2}\n\n{"i":3}',
    b'{"x":"}\n{"}',
    b'{"i":1,"i":2}\n{"i":1e0,"f":1e999}\n{"f":NaN}',
    b'{"x":[{}\n{}]}\n{"i":1}{"i":2}',
]


@pytest.mark.parametrize("text", TRICKS)
def test_tricks_with_line_ends_change_nothing(text: bytes) -> None:
    """Lines that share objects, and objects that share lines."""
    for end in (b"", b"\n"):
        _check(text + end)
        _check(text.replace(b"\n", b"\r\n") + end)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(parts=st.lists(_lines, max_size=6), end=st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_together_is_as_singly(parts: list[bytes], end: bytes) -> None:
    """Any lines, good, broken or sharing a line: same rows, same order, same count of rejects.

    Mutant: `test_line_ends_must_be_minded`.
    """
    _check(end.join(parts))
    _check(end.join(parts) + end)


def test_line_ends_must_be_minded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look at line ends, two objects on one line beside one on two are three good lines."""

    def heedless(decoder: msgspec.json.Decoder[Any], text: bytes) -> list[Any] | None:
        try:
            return decoder.decode_lines(text)
        except lines.BAD_LINE:
            return None

    monkeypatch.setattr(ndjson, "_together", heedless)
    with pytest.raises(AssertionError):
        _check(b'{"i":1}{"i":2}\n{"i":\n3}\n')


def test_clean_text_is_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text without a fault never goes line by line, whatever its line ends: that is where the speed is."""
    monkeypatch.setattr(lines, "_each", None)
    for end in (b"\n", b"\r\n"):
        rows, rejected = _read(end.join([b'{"i": 1, "x": {"y": [{}]}, "s": "}\\n{"}'] * 5) + end)
        assert (len(rows), rejected) == (5, 0)


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=60).map(lambda b: b.replace(b"a", b"\n").replace(b"b", b"\n")), size=st.integers(1, 9))
def test_long_lines_are_dropped_wherever_blocks_end(text: bytes, size: int) -> None:
    """With a bound of five bytes: every line within it comes, every other is counted, at any size of block up to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "MAX_LINE_BYTES", 5)
        stream = io.BytesIO(text)
        blocks = list(lines.blocks(lambda most: stream.read(min(size, most))))
    held = [line for line in text.split(b"\n") if line]
    assert [line for block in blocks for line in block.lines() if line] == [line for line in held if len(line) <= 5]
    assert sum(block.overlong for block in blocks) == sum(len(line) > 5 for line in held)
