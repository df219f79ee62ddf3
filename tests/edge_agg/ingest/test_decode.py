"""Typing a batch: what is kept, what is null, what is rejected."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.plan import ColumnType
from edge_agg.ingest import lines as cutter
from edge_agg.ingest.decode import can_read, decode, typed_schema
from edge_agg.ingest.file import FileSource

REJECTED = object()
NAN = math.nan
WANTED: list[ColumnType] = list(get_args(ColumnType))


def _one(held: pa.Array, wanted: ColumnType) -> list[Any]:
    """Decode each value by itself: what came out, or REJECTED."""
    out = []
    for k in range(len(held)):
        batch, rejected = decode(pa.record_batch([held.slice(k, 1)], names=["x"]), {"x": wanted})
        assert batch.num_rows + rejected == 1
        out.append(REJECTED if rejected else batch["x"][0].as_py())
    return out


def _at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        (pa.array([1.5, NAN, math.inf, None]), "float", [1.5, None, math.inf, None]),
        (pa.array([1.5], pa.float16()), "float", [1.5]),
        (pa.array([2**63 + 2**11], pa.uint64()), "float", [float(2**63 + 2**11)]),
        (pa.array([Decimal("12.50")]), "float", [12.5]),
        (pa.array(["nan", "-inf", "1e400", "", "1_0"]), "float", [None, -math.inf, *[REJECTED] * 3]),
        (pa.array([3.0, 3.5, NAN, -(2.0**63)]), "integer", [3, REJECTED, None, -(2**63)]),
        (pa.array([math.inf, 2.0**63]), "integer", [REJECTED] * 2),
        (pa.array([2**63 - 1, 2**63, None], pa.uint64()), "integer", [2**63 - 1, REJECTED, None]),
        (pa.array([Decimal("9007199254740993.00"), Decimal("1.50")]), "integer", [2**53 + 1, REJECTED]),
        (pa.array(["9007199254740993.0", "5.", ".", "-"]), "integer", [2**53 + 1, 5, *[REJECTED] * 2]),
        (pa.array(["TRUE", " 0 ", "t", ""]), "boolean", [True, False, *[REJECTED] * 2]),
        (pa.array([0, 10**18 * 9], pa.timestamp("s")), "timestamp", [_at(1970, 1, 1), REJECTED]),
        (pa.array([-1], pa.timestamp("ns", "Asia/Tokyo")), "timestamp", [_at(1969, 12, 31, 23, 59, 59, 999_999)]),
        (pa.array([date(1899, 12, 31), date(2200, 12, 31)]), "timestamp", [REJECTED, _at(2200, 12, 31)]),
        (pa.array([date(2201, 1, 1)]), "timestamp", [REJECTED]),
        (pa.array([date(2013, 5, 1)], pa.date64()), "timestamp", [_at(2013, 5, 1)]),
        (pa.array(["x", None, "y" * 4097], pa.string_view()), "string", ["x", None, REJECTED]),
        (pa.array([b"x", b"\xff", None], pa.large_binary()), "string", ["x", REJECTED, None]),
        (pa.array(["1", "x", None]).dictionary_encode(), "integer", [1, REJECTED, None]),
        (pa.nulls(2), "timestamp", [None, None]),
    ],
    ids=lambda value: str(getattr(value, "type", "")) or None,
)  # fmt: skip
def test_each_value_becomes_what_the_table_says(held: pa.Array, wanted: ColumnType, expected: list[Any]) -> None:
    """Exact where it can be, null for null and NaN, and otherwise rejected: nothing wraps, rounds or turns null.

    Mutants: casts of integers that wrap; timestamps rounded towards 1970; decimals through floats; NaN kept.
    """
    assert _one(held, wanted) == expected


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize(
    "held",
    [pa.list_(pa.int8()), pa.struct([("a", pa.string())]), pa.duration("s"), pa.time32("s"), pa.binary(3)],
    ids=str,
)  # fmt: skip
def test_other_arrow_types_cannot_be_read(held: pa.DataType, wanted: ColumnType) -> None:
    """Nested values, durations, times and fixed bytes are nothing a plan can ask for."""
    assert not can_read(held, wanted)


@pytest.mark.parametrize(
    ("held", "wanted"),
    [(pa.int64(), "timestamp"), (pa.int8(), "boolean"), (pa.int8(), "string"), (pa.bool_(), "float")],
)  # fmt: skip
def test_near_misses_cannot_be_read(held: pa.DataType, wanted: ColumnType) -> None:
    """A number is no timestamp, no boolean and no string."""
    assert not can_read(held, wanted)


_INTS = {pa.int8(): 7, pa.int16(): 15, pa.int32(): 31, pa.int64(): 63}
_INT64 = st.integers(-(2**63), 2**63 - 1)
_written = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.floats().map(repr),
    st.integers().map(str),
    st.datetimes().map(str),
    st.sampled_from(["true", "2013-01-01", "x" * 4097, "1e400", " 7 "]),
)


def _arrays() -> st.SearchStrategy[pa.Array]:
    """Arrow columns of most types, with nulls, sliced, plain and as dictionaries."""
    values: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
        (pa.bool_(), st.booleans()),
        (pa.float32(), st.floats(width=32)),
        (pa.float64(), st.floats()),
        (pa.uint64(), st.integers(0, 2**64 - 1)),
        (pa.decimal128(20, 3), st.decimals(-(10**16), 10**16, places=3)),
        (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=2)),
        (pa.date32(), st.dates()),
        (pa.duration("us"), st.integers(0, 2**40)),
        *[(kind, st.integers(-(2**bits), 2**bits - 1)) for kind, bits in _INTS.items()],
        *[(pa.timestamp(u, z), _INT64) for u in ("s", "ms", "us", "ns") for z in (None, "UTC")],
        *[(kind, _written) for kind in (pa.string(), pa.large_string(), pa.string_view())],
        *[(kind, st.binary(max_size=6) | _written.map(str.encode)) for kind in (pa.binary(), pa.binary_view())],
    ]  # fmt: skip

    def build(kind: pa.DataType, items: list[Any], start: int) -> pa.Array:
        return pa.array(items, kind).slice(min(start, len(items)))

    plain = st.one_of(
        [
            st.builds(build, st.just(kind), st.lists(st.none() | each, max_size=6), st.integers(0, 3))
            for kind, each in values
        ]
    )
    encoded = st.builds(lambda items: pa.array(items).dictionary_encode(), st.lists(st.none() | _written, max_size=6))
    return plain | encoded


@settings(max_examples=250, deadline=None)
@given(held=_arrays(), wanted=st.sampled_from(WANTED))
def test_decode_never_raises_and_judges_each_value_by_itself(held: pa.Array, wanted: ColumnType) -> None:
    """Whatever the column: every row is kept or counted, a null is kept as null, neighbours change nothing.

    Mutant: UTF-8 judged for the batch as a whole.
    """
    batch, rejected = decode(pa.record_batch([held], names=["x"]), {"x": wanted})
    (kind,) = batch.schema.types
    kind = kind.value_type if wanted == "string" and pa.types.is_dictionary(kind) else kind
    assert pa.schema({"x": kind}) == typed_schema({"x": wanted})
    batch.validate(full=True)
    assert batch.num_rows + rejected == len(held)
    alone = _one(held, wanted)
    assert batch["x"].to_pylist() == [value for value in alone if value is not REJECTED]
    if can_read(held.type, wanted):
        assert all(value is None for value, null in zip(alone, held.is_null().to_pylist(), strict=True) if null)


_fields = st.dictionaries(
    st.sampled_from([*"tsfib", "z"]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _written, st.lists(st.integers(), max_size=2)),
    max_size=6,
)


@settings(max_examples=100, deadline=None)
@given(lines=st.lists(st.binary(max_size=20) | _fields.map(lambda row: json.dumps(row).encode()), max_size=8))
def test_any_lines_are_read_or_counted_each_by_itself(lines: list[bytes], tmp_path_factory: Any) -> None:
    """Arbitrary bytes as NDJSON: no line stops the reading, and what one gives does not depend on the others."""
    columns: dict[str, ColumnType] = {"t": "timestamp", "s": "string", "f": "float", "i": "integer", "b": "boolean"}
    folder = tmp_path_factory.getbasetemp()
    lines = [line for part in lines for line in part.split(b"\n")]

    def read(data: bytes) -> tuple[list[Any], int]:
        path = folder / "any.ndjson"
        path.write_bytes(data)
        frames = list(FileSource(str(path)).frames(columns))
        return [row for frame in frames for row in frame.batch.to_pylist()], sum(frame.rejected for frame in frames)

    rows, rejected = read(b"\n".join(lines))
    singly = [read(line) for line in lines]
    assert rows == [row for found, _ in singly for row in found]
    assert rejected == sum(count for _, count in singly)
    assert len(rows) + rejected == sum(bool(line.strip()) for line in lines)


@settings(max_examples=100, deadline=None)
@given(text=st.binary(max_size=60).map(lambda b: b.replace(b"a", b"\n")), size=st.integers(1, 9))
def test_lines_are_cut_the_same_whatever_the_blocks(text: bytes, size: int) -> None:
    """Where the stream's blocks end changes no line."""
    at = 0

    def read(_: int) -> bytes:
        nonlocal at
        at += size
        return text[at - size : at]

    found = [line for block in cutter.blocks(read) for line in block.lines()]
    assert b"\n".join(found).rstrip(b"\n") == text.rstrip(b"\n")
