"""Newline-delimited JSON: one object a line.

Place: step 1, under `file.py`.
Invariants: those of `lines.py`; a key that is missing is null; a key that was not asked for is never made into a value.
A file of no lines has no rows.
"""

from __future__ import annotations

from functools import lru_cache
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa

from edge_agg.ingest import lines
from edge_agg.ingest.decode import MAX_TEXT_BYTES
from edge_agg.ingest.stream import open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

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


_LINE_END, _RETURN, _OPEN, _CLOSE = b"\n\r{}"


def fields(path: str, columns: Mapping[str, ColumnType]) -> pa.Schema | None:
    """Return the keys that some line of the first chunk has, all as text, or None if there is no line."""
    keys = msgspec.json.Decoder(dict[str, msgspec.Raw])
    found: set[str] = set()
    with open_stream(path) as stream:
        for block in lines.blocks(stream.read):
            events = [line for line in block.lines() if line.strip()]
            for line in events:
                try:
                    found.update(keys.decode(line).keys() & columns.keys())
                except lines.BAD_LINE:
                    continue
                if len(found) == len(columns):
                    break
            if events or block.overlong:
                return pa.schema([(name, pa.string()) for name in sorted(found)])
    return None


def batches(path: str, columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:
    """Decode the asked keys, at most `rows` lines at a time."""
    with open_stream(path) as stream:
        yield from read_rows(stream.read, columns, rows=rows)


def read_rows(read: Callable[[int], bytes], columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:
    """As `batches`, from whatever gives bytes: a file, a pipe, a body in memory."""
    decoder = _decoder(tuple(columns.items()))
    slots = [attrgetter(f"c{i}") for i in range(len(columns))]

    def build(events: list[Any]) -> pa.RecordBatch:
        pairs = zip(slots, columns.values(), strict=True)
        return pa.record_batch([_array(list(map(slot, events)), kind) for slot, kind in pairs], names=list(columns))

    def together(text: bytes) -> list[Any] | None:
        return _together(decoder, text)

    yield from lines.batches(lines.blocks(read), decoder.decode, build, rows=rows, together=together)


def _together(decoder: msgspec.json.Decoder[Any], text: bytes) -> list[Any] | None:
    """Decode all lines at once, in half the time, if that gives what decoding each of them gives.

    Decoding at once minds no line ends, so an object might go on in the next line, and two might share one. Not here:
    each line end stands between `}` and `{`, and JSON has nothing between those but the end of one object of the stream
    and the beginning of the next (a string holds no raw line end). So each line is one object or several, and as many
    objects as lines are one each. Any fault anywhere, and each line is looked at by itself.
    """
    body = text.removesuffix(b"\n")
    if not body.startswith(b"{") or not body.endswith((b"}", b"}\r")):
        return None
    codes = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(codes == _LINE_END)
    before = codes[ends - 1]
    if not (before == _CLOSE).all():
        before = np.where(before == _RETURN, codes[ends - 2], before)
    if not ((before == _CLOSE) & (codes[ends + 1] == _OPEN)).all():
        return None
    try:
        events = decoder.decode_lines(body)
    except lines.BAD_LINE:
        return None
    return events if len(events) == len(ends) + 1 else None


@lru_cache(maxsize=8)
def _decoder(columns: tuple[tuple[str, ColumnType], ...]) -> msgspec.json.Decoder[Any]:
    """Build a decoder of one line into a struct with a slot for each column, `c0`, `c1` and so on.

    Kept, because building one takes as long as decoding a thousand lines.
    """
    slots = [(f"c{i}", _JSON[wanted][0], None) for i, (_, wanted) in enumerate(columns)]
    names = {f"c{i}": name for i, (name, _) in enumerate(columns)}
    return msgspec.json.Decoder(msgspec.defstruct("Event", slots, rename=names, gc=False))


def _array(values: list[Any], wanted: ColumnType) -> pa.Array:
    """Build a column of its own type, or of text where a line has another ("12.5" beside 12.5): `decode` reads both."""
    _, kind, arrow = _JSON[wanted]
    if kind is str or set(map(type, values)) <= {kind, type(None)}:  # pyarrow would make 1.5 an integer without a word
        try:
            return pa.array(values, arrow)
        except OverflowError:  # an integer of more than 64 bits
            pass
    text = [value if value is None or isinstance(value, str) else repr(value) for value in values]
    return pa.array(text, pa.string())
