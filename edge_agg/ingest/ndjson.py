"""Newline-delimited JSON: one object a line.

Place: step 1, under `file.py`.
Invariants: those of `lines.py`; a key that is missing is null; a key that was not asked for is never made into a value.
A file of no lines has no rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pyarrow as pa

from edge_agg.ingest import lines
from edge_agg.ingest.decode import MAX_TEXT_BYTES
from edge_agg.ingest.stream import open_stream

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.stream import Raw

_Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_BYTES)]
_JSON: Mapping[ColumnType, tuple[Any, type, pa.DataType]] = {
    "timestamp": (_Text | None, str, pa.string()),
    "string": (_Text | None, str, pa.string()),
    "float": (_Text | float | None, float, pa.float64()),
    "integer": (_Text | int | float | None, int, pa.int64()),
    "boolean": (_Text | bool | None, bool, pa.bool_()),
}
"""For each type: what JSON may hold, what it should hold, and the Arrow type of a column that holds only that."""


def fields(path: str, columns: Mapping[str, ColumnType]) -> pa.Schema | None:
    """Return the keys that some line of the first chunk has, all as text, or None if there is no line."""
    keys = msgspec.json.Decoder(dict[str, msgspec.Raw])
    found: set[str] = set()
    with open_stream(path) as stream:
        for chunk, overlong in lines.lines(stream.read):
            events = [line for line in chunk if line.strip()]
            for line in events:
                try:
                    found.update(keys.decode(line).keys() & columns.keys())
                except lines.BAD_LINE:
                    continue
                if len(found) == len(columns):
                    break
            if events or overlong:
                return pa.schema([(name, pa.string()) for name in sorted(found)])
    return None


def batches(path: str, columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:
    """Decode the asked keys, at most `rows` lines at a time."""

    def build(events: list[Any]) -> pa.RecordBatch:
        slots = [[getattr(event, f"c{i}") for event in events] for i in range(len(columns))]
        arrays = [_array(values, wanted) for values, wanted in zip(slots, columns.values(), strict=True)]
        return pa.record_batch(arrays, names=list(columns))

    with open_stream(path) as stream:
        yield from lines.batches(lines.lines(stream.read), _decoder(columns).decode, build, rows=rows)


def _decoder(columns: Mapping[str, ColumnType]) -> msgspec.json.Decoder[Any]:
    """Build a decoder of one line into a struct with a slot for each column, `c0`, `c1` and so on."""
    slots = [(f"c{i}", _JSON[wanted][0], None) for i, wanted in enumerate(columns.values())]
    names = {f"c{i}": name for i, name in enumerate(columns)}
    return msgspec.json.Decoder(msgspec.defstruct("Event", slots, rename=names, gc=False))


def _array(values: list[Any], wanted: ColumnType) -> pa.Array:
    """Build a column of its own type, or of text where a line has another ("12.5" beside 12.5): `decode` reads both."""
    _, kind, arrow = _JSON[wanted]
    if set(map(type, values)) <= {kind, type(None)}:  # pyarrow would truncate 1.5 to an integer without a word
        try:
            return pa.array(values, arrow)
        except OverflowError:  # an integer of more than 64 bits
            pass
    text = [value if value is None or isinstance(value, str) else repr(value) for value in values]
    return pa.array(text, pa.string())
