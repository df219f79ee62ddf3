"""A glance at a column, where it shows enough, gives what looking at each value gives."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.ingest import decode as decoding
from edge_agg.ingest.decode import MAX_TEXT_BYTES, decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_agg.contract.plan import ColumnType

LONG, GARBLED = b"x" * (MAX_TEXT_BYTES + 1), b"\xff\xfe"
MICROS = st.sampled_from([0, 1, -1, 2**62, -(2**62)]) | st.integers(-(2**50), 2**50)
TEXTS = st.sampled_from([b"", b"a", b"\0", "é".encode(), LONG, GARBLED, b"x" * MAX_TEXT_BYTES])
FLOATS = st.floats() | st.sampled_from([float("nan"), float("inf"), 0.0])
INTEGERS = st.integers(-(2**63), 2**63 - 1)


def text(values: Sequence[Any], *, large: bool) -> pa.Array:
    """Text as a file may hold it, its bytes unchecked."""
    array = pa.array(values, pa.large_binary() if large else pa.binary())
    return array.view(pa.large_string() if large else pa.string())


def held(draw: st.DrawFn, kind: str) -> pa.Array:
    """A column of one kind, of no more than eight values, some of which may be null."""
    values = {"timestamp": MICROS, "string": TEXTS, "float": FLOATS, "integer": INTEGERS}[kind]
    listed = draw(st.lists(values, max_size=8) | st.lists(st.none() | values, max_size=8))
    if kind == "string":
        return text(listed, large=draw(st.booleans()))
    if kind == "timestamp":
        zone = draw(st.sampled_from([None, "UTC", "Asia/Tokyo"]))
        return pa.array(listed, pa.int64()).view(pa.timestamp("us", tz=zone))
    return pa.array(listed, {"float": pa.float64(), "integer": pa.int64()}[kind])


@st.composite
def columns(draw: st.DrawFn) -> tuple[pa.RecordBatch, Mapping[str, ColumnType]]:
    """A batch of one column, cut out of a longer one, and what it is asked as."""
    kind = draw(st.sampled_from(["timestamp", "string", "float", "integer"]))
    array = held(draw, kind)
    start = draw(st.integers(0, len(array)))
    cut = array.slice(start, draw(st.integers(0, len(array) - start)))
    return pa.record_batch([cut], names=["c"]), {"c": kind}  # type: ignore[dict-item]


def slowly(batch: pa.RecordBatch, wanted: Mapping[str, ColumnType]) -> tuple[pa.RecordBatch, int]:
    """Decode without a glance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "_as_held", lambda held, wanted: None)
        return decode(batch, wanted)


def same(left: tuple[pa.RecordBatch, int], right: tuple[pa.RecordBatch, int]) -> bool:
    """Whether two results are equal, schema and all."""
    return left[1] == right[1] and left[0].schema == right[0].schema and left[0].to_pylist() == right[0].to_pylist()


@given(columns())
def test_a_glance_and_a_look_agree(asked: tuple[pa.RecordBatch, Mapping[str, ColumnType]]) -> None:
    """Whatever a column holds: nulls, NaN, what is too long, garbled, or out of range; and wherever it was cut."""
    assert same(decode(*asked), slowly(*asked))


BAD: list[tuple[str, Any]] = [
    ("string", text([b"a", GARBLED], large=False)),
    ("string", text([b"a", LONG], large=True)),
    ("float", pa.array([1.0, float("nan")])),
    ("timestamp", pa.array([0, 2**62]).view(pa.timestamp("us"))),
]


@pytest.mark.parametrize(("kind", "array"), BAD)
def test_mutant_a_glance_that_sees_nothing_is_caught(monkeypatch: pytest.MonkeyPatch, kind: Any, array: Any) -> None:
    """Mutant: what a column holds is believed; a wrong value then stays, or breaks the batch."""
    batch = pa.record_batch([array], names=["c"])
    assert same(decode(batch, {"c": kind}), slowly(batch, {"c": kind}))
    honest = decoding._ARROW[kind]
    monkeypatch.setattr(
        decoding, "_as_held", lambda held, wanted: held.cast(honest) if kind == "string" else held.view(honest)
    )
    believed, rejected = decode(batch, {"c": kind})
    assert rejected == 0
    assert believed.num_rows == 2
    expected = slowly(batch, {"c": kind})
    assert expected[1] == 1 or expected[0].column(0).null_count == 1


def test_what_is_plain_is_not_copied() -> None:
    """A column that needs nothing done is handed on as it is."""
    whole = pa.array(np.arange(5))
    decoded, _ = decode(pa.record_batch([whole], names=["c"]), {"c": "integer"})
    assert decoded.column(0).buffers()[1].address == whole.buffers()[1].address
    time = pa.array([datetime(2013, 1, 7, tzinfo=UTC)], pa.timestamp("us", tz="UTC"))
    decoded, _ = decode(pa.record_batch([time], names=["c"]), {"c": "timestamp"})
    assert decoded.column(0).buffers()[1].address == time.buffers()[1].address
