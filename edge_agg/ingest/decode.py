"""A raw batch in, a typed batch and a count of rejected rows out.

Place: step 2 of an event's way, between the formats and `edge_agg.window`.
Invariants: pure; a null stays null; a value of the wrong type takes its whole row with it, is counted, and
never becomes a null; NaN is null; each value is judged by itself, so what is kept never depends on its
neighbours; nothing but the columns asked for comes out.

| asked | held as | rejected |
|---|---|---|
| timestamp | timestamp, date, text in ISO 8601 (`instant.py`) | other text, years outside 1900 to 2200 |
| string | text | more than 4,096 bytes, invalid UTF-8 |
| float | float, integer, decimal, text | other text, text beyond the range of a float |
| integer | integer, float, decimal, text | a fraction, more than 64 bits, an infinity, other text |
| boolean | boolean, text (true, false, 1, 0) | other text |

Text is any Arrow string or binary type, in a dictionary or not; around what is not asked as a string, white space is
allowed. Texts in a dictionary stay there if all of it is fit to be kept. A column held as anything else cannot be read,
and a batch with such a column has all its rows rejected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.ingest import instant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from edge_agg.contract.plan import ColumnType

    Flags = npt.NDArray[np.bool_]
    Converted = tuple[pa.Array, Flags]
    """Typed values, and which rows hold a value of the wrong type."""

MAX_TEXT_BYTES = 4096
_MOST_TEXTS = 1 << 17
"""Of a dictionary that is kept; each batch looks at all of it."""

_ARROW: Mapping[ColumnType, pa.DataType] = {
    "timestamp": instant.TYPE,
    "string": pa.string(),
    "float": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
}
_TEXT = {pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()}
_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_VIEWS = {pa.string_view(), pa.binary_view()}
_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def typed_schema(columns: Mapping[str, ColumnType]) -> pa.Schema:
    """Return the schema of every typed batch of these columns, but that a string column may be a dictionary of it."""
    return pa.schema([(name, _ARROW[wanted]) for name, wanted in columns.items()])


def can_read(held: pa.DataType, wanted: ColumnType) -> bool:
    """Whether a column held as this Arrow type can be asked for as `wanted`; its values may still be wrong."""
    kind = held.value_type if pa.types.is_dictionary(held) else held
    if kind in _TEXT or pa.types.is_null(kind):
        return True
    if wanted == "timestamp":
        return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))
    if wanted == "boolean":
        return bool(pa.types.is_boolean(kind))
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return wanted in {"float", "integer"} and bool(numbers)


def decode(raw: pa.RecordBatch, columns: Mapping[str, ColumnType]) -> tuple[pa.RecordBatch, int]:
    """Type the asked columns of a raw batch.

    Returns:
        The rows whose every value fits, as of `typed_schema(columns)`, and the number of the others.
    """
    schema = typed_schema(columns)
    places = {name: raw.schema.get_field_index(name) for name in columns}  # -1: not there, or there twice
    if any(at < 0 or not can_read(raw.schema.types[at], columns[name]) for name, at in places.items()):
        return pa.RecordBatch.from_pylist([], schema), raw.num_rows
    rejected: Flags | None = None
    arrays = []
    for name, wanted in columns.items():
        values, wrong = _convert(raw.column(places[name]), wanted)
        arrays.append(values)
        if wrong is not None:
            rejected = wrong if rejected is None else rejected | wrong
    batch = pa.RecordBatch.from_arrays(arrays, names=schema.names)
    if rejected is None or not rejected.any():
        return batch, 0
    return batch.filter(pa.array(~rejected)), int(rejected.sum())


def _convert(held: pa.Array, wanted: ColumnType) -> tuple[pa.Array, Flags | None]:
    """Typed values, and which rows hold a value of the wrong type; None if none does."""
    if pa.types.is_dictionary(held.type):
        if wanted == "string" and (coded := _as_coded(held)) is not None:
            return coded, None
        held = _looked_up(held)
    if pa.types.is_null(held.type):
        return pa.nulls(len(held), _ARROW[wanted]), None
    if not held.null_count and len(held) and (values := _as_held(held, wanted)) is not None:
        return values, None
    return _CONVERT[wanted](held)


def _as_held(held: pa.Array, wanted: ColumnType) -> pa.Array | None:
    """The values as they are, if a glance shows that each of them stays what it is; there are no nulls, and some rows.

    This is most of most files, and a glance is a tenth of the work of looking at each value.
    """
    match wanted:
        case "timestamp" if pa.types.is_timestamp(held.type) and held.type.unit == "us":
            return held.view(instant.TYPE) if instant.are_all(held.view(pa.int64()).to_numpy()) else None
        case "string" if pa.types.is_string(held.type) or pa.types.is_large_string(held.type):
            return held.cast(pa.string()) if _is_short_ascii(held) else None
        case "float" if pa.types.is_float64(held.type):
            return None if np.isnan(held.to_numpy().min()) else held  # the least of numbers and a NaN is NaN
        case "integer" if pa.types.is_int64(held.type):
            return held
    return None


def _as_coded(held: pa.DictionaryArray) -> pa.DictionaryArray | None:
    """The texts in their dictionary, if a glance at it shows that each of them stays what it is."""
    texts = held.dictionary
    is_text = pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)
    if not is_text or texts.null_count or not 0 < len(texts) <= _MOST_TEXTS or not _is_short_ascii(texts):
        return None
    if pa.types.is_string(texts.type) and held.indices.type == pa.int32():
        return held
    return pa.DictionaryArray.from_arrays(held.indices.cast(pa.int32()), texts.cast(pa.string()))


def _is_short_ascii(held: pa.StringArray | pa.LargeStringArray) -> bool:
    """Whether no text is too long, and all are ASCII, and so in UTF-8."""
    _, offsets, data = held.buffers()
    ends = np.frombuffer(offsets, np.int32 if pa.types.is_string(held.type) else np.int64)
    ends = ends[held.offset : held.offset + len(held) + 1]
    text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data is not None else np.empty(0, np.uint8)
    return bool(text.max(initial=0) < 0x80 and np.diff(ends).max() <= MAX_TEXT_BYTES)


def _strings(held: pa.Array) -> Converted:
    # To binary, which judges no UTF-8. What is too long goes first: views can show one megabyte a thousand times.
    if held.type in _VIEWS:
        sizes, valid = _views(held)[:, 0], np.asarray(held.is_valid())
        wrong = valid & (sizes > MAX_TEXT_BYTES)
        held = _seen(held, _views(held), valid & ~wrong)
    else:
        wrong = np.asarray(pc.fill_null(pc.greater(pc.binary_length(held), MAX_TEXT_BYTES), False))
        held = _without(held.cast(_BINARY.get(held.type, held.type)), wrong)
    raw = held.cast(pa.binary())
    try:
        return raw.cast(pa.string()), wrong
    except pa.ArrowInvalid:  # somewhere in the batch: look at each
        garbled = np.array([not _is_utf8(value) for value in raw.to_pylist()], np.bool_)
        return _without(raw, garbled).cast(pa.string()), wrong | garbled


def _looked_up(held: pa.DictionaryArray) -> pa.Array:
    """A dictionary's values, row by row; Arrow has no kernel for those that are views."""
    values = held.dictionary
    if values.type not in _VIEWS:
        return held.dictionary_decode()
    if not len(values):
        return pa.nulls(len(held), values.type)
    at = np.asarray(pc.fill_null(held.indices, 0))
    return _seen(values, _views(values)[at], np.asarray(held.is_valid()) & np.asarray(values.is_valid())[at])


def _views(held: pa.Array) -> npt.NDArray[np.int32]:
    """Where each text of some views is, int32[n, 4]; the first is its length."""
    if not len(held):
        return np.empty((0, 4), np.int32)
    return np.frombuffer(held.buffers()[1], np.int32, 4 * len(held), 16 * held.offset).reshape(-1, 4)


def _seen(held: pa.Array, views: npt.NDArray[np.int32], valid: Flags) -> pa.Array:
    """Views into the same text. What is null is made empty: a cast follows its length too, and dies of a wrong one."""
    views = np.where(valid[:, np.newaxis], views, np.int32(0))
    buffers = [pa.array(valid).buffers()[1], pa.py_buffer(views), *held.buffers()[2:]]
    return pa.Array.from_buffers(pa.binary_view(), len(valid), buffers)


def _timestamps(held: pa.Array) -> Converted:
    if held.type in _TEXT:
        text, wrong = _strings(held)
        micros, valid = instant.from_text(pc.utf8_trim_whitespace(text))
    else:
        wrong = np.zeros(len(held), np.bool_)
        micros, valid = instant.from_arrow(held)
    return pa.array(micros, mask=~valid).view(instant.TYPE), wrong | (np.asarray(held.is_valid()) & ~valid)


def _floats(held: pa.Array) -> Converted:
    if held.type in _TEXT:
        text, wrong = _strings(held)
        stripped = _stripped(text)
        numbers = stripped.cast(pl.Float64, strict=False)
        wrong |= _flags(stripped.is_not_null() & numbers.is_null())
        if numbers.is_infinite().any():  # "inf" is one, "1e400" only becomes one
            wrong |= _flags(numbers.is_infinite() & ~stripped.str.contains("(?i)inf"))
        values = numbers.to_arrow()
    else:
        values, wrong = held.cast(pa.float64(), safe=False), np.zeros(len(held), np.bool_)
    return _without(values, np.asarray(pc.fill_null(pc.is_nan(values), False))), wrong


def _integers(held: pa.Array) -> Converted:
    if pa.types.is_decimal(held.type):
        held = held.cast(pa.string())
    if held.type in _TEXT:
        return _written_integers(held)
    if pa.types.is_floating(held.type):
        return _whole(held.cast(pa.float64()), below=2.0**63)
    wrong = np.zeros(len(held), np.bool_)
    if pa.types.is_uint64(held.type):
        wrong = np.asarray(pc.fill_null(pc.greater(held, pa.scalar(2**63 - 1, pa.uint64())), False))
    return _without(held, wrong).cast(pa.int64()), wrong


def _written_integers(held: pa.Array) -> Converted:
    text, wrong = _strings(held)
    stripped = _stripped(text).str.replace(r"\.0*$", "")
    exact = stripped.cast(pl.Int64, strict=False)
    # What is left may be "1e3"; past 2**53 a float no longer shows whether there was a fraction.
    rest = pl.select(pl.when(exact.is_null()).then(stripped)).to_series()
    floats, unreadable = _floats(rest.to_arrow())
    whole, broken = _whole(floats, below=2.0**53)
    return pc.coalesce(exact.to_arrow(), whole), wrong | unreadable | broken


def _whole(held: pa.DoubleArray, *, below: float) -> Converted:
    """Turn floats without a fraction into integers; NaN is null here too, as that is how data frames write it."""
    numbers = np.asarray(pc.fill_null(held, np.nan))
    whole = (numbers >= -below) & (numbers < below) & (np.trunc(numbers) == numbers)
    return pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole), ~whole & ~np.isnan(numbers)


def _booleans(held: pa.Array) -> Converted:
    if held.type not in _TEXT:
        return held, np.zeros(len(held), np.bool_)
    text, wrong = _strings(held)
    stripped = _stripped(text)
    truth = stripped.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.Boolean)
    return truth.to_arrow(), wrong | _flags(stripped.is_not_null() & truth.is_null())


_CONVERT: Mapping[ColumnType, Callable[[pa.Array], Converted]] = {
    "timestamp": _timestamps,
    "string": _strings,
    "float": _floats,
    "integer": _integers,
    "boolean": _booleans,
}


def _without(values: pa.Array, wrong: Flags) -> pa.Array:
    """Null what is wrong, so that the rest can be looked at; its row does not stay."""
    return pc.if_else(pa.array(wrong), pa.scalar(None, values.type), values) if wrong.any() else values


def _stripped(text: pa.StringArray) -> pl.Series:
    return pl.Series(values=text, dtype=pl.String).str.strip_chars()


def _flags(series: pl.Series) -> Flags:
    flags: Flags = series.fill_null(value=False).to_numpy()
    return flags


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False
