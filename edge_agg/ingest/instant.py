"""Timestamps in microseconds since 1970, UTC.

Place: step 2, under `decode`.
Invariants: pure; one grammar for written timestamps, whatever else is in the batch; what is below a microsecond is cut
off (towards the past), never rounded; only the years 1900 to 2200 are instants.

The grammar is ISO 8601 as logs and databases write it: `YYYY-MM-DD`, or that and `T` or a space and `HH:MM[:SS[.f]]`
with one to nine digits of fraction, and then nothing (UTC), `Z`, `+HH`, `+HHMM` or `+HH:MM`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import numpy.typing as npt

    Micros = npt.NDArray[np.int64]
    Flags = npt.NDArray[np.bool_]
    Bytes = npt.NDArray[np.uint8]

TYPE = pa.timestamp("us", tz="UTC")
_DAY_US = 86_400_000_000
_FIRST_US = -25_567 * _DAY_US  # 1900-01-01
_END_US = 84_371 * _DAY_US  # 2201-01-01
_TICK: dict[str, tuple[int, int]] = {"s": (1_000_000, 1), "ms": (1_000, 1), "us": (1, 1), "ns": (1, 1_000)}
"""Microseconds a tick, as a fraction."""
_LONGEST = len("2013-01-01T10:00:00.123456789+02:00")
_MARKS = {4: b"-", 7: b"-", 10: b"Tt ", 13: b":", 16: b":", 19: b"."}


def from_arrow(held: pa.Array) -> tuple[Micros, Flags]:
    """Turn a timestamp (a naive one is UTC) or a date of any unit into micros and whether each is an instant."""
    if pa.types.is_date32(held.type):
        ticks, per_tick, per_us = held.cast(pa.int32()).cast(pa.int64()), _DAY_US, 1
    else:
        ticks = held.view(pa.int64())
        per_tick, per_us = _TICK["ms" if pa.types.is_date64(held.type) else held.type.unit]
    values: Micros = np.asarray(pc.fill_null(ticks, 0))
    valid = (values >= _FIRST_US * per_us // per_tick) & (values < _END_US * per_us // per_tick)
    return np.where(valid, values, 0) * per_tick // per_us, valid & np.asarray(held.is_valid())


def are_all(micros: Micros) -> bool:
    """Whether all of some micros, at least one, are instants."""
    return bool(micros.min() >= _FIRST_US and micros.max() < _END_US)


def from_text(text: pa.StringArray) -> tuple[Micros, Flags]:
    """Turn written timestamps into micros and whether each is an instant."""
    micros, valid = np.zeros(len(text), np.int64), np.zeros(len(text), np.bool_)
    lengths = np.asarray(pc.fill_null(pc.binary_length(text), 0))
    for length in np.unique(lengths[lengths <= _LONGEST]):
        where = np.flatnonzero(lengths == length)
        micros[where], valid[where] = _zoned(_matrix(text.take(pa.array(where)), int(length)))
    return micros, valid & (micros >= _FIRST_US) & (micros < _END_US)


def _matrix(text: pa.StringArray, length: int) -> Bytes:
    """Lay strings of one length out as uint8[n, length]."""
    _, offsets, data = text.buffers()
    if not length or data is None:
        return np.zeros((len(text), length), np.uint8)
    start = int(np.frombuffer(offsets, np.int32)[text.offset])
    return np.frombuffer(data, np.uint8, count=len(text) * length, offset=start).reshape(len(text), length)


def _zoned(rows: Bytes) -> tuple[Micros, Flags]:
    """Read what ends in a zone, or in none; rows of one length, uint8[n, length]."""
    count, length = rows.shape
    micros, valid = _local(rows)
    if length < 17:  # no room for a time and a zone
        return micros, valid
    zulu = (rows[:, -1] | 0x20) == ord("z")
    micros[zulu], valid[zulu] = _local(rows[zulu, :-1])
    for size in (3, 5, 6):  # +HH, +HHMM, +HH:MM
        sign = rows[:, -size] if length >= 16 + size else np.zeros(count, np.uint8)
        signed = np.flatnonzero((sign == ord("+")) | (sign == ord("-")))
        zone = rows[signed, length - size :]
        hours, minutes = _number(zone, 1, 3), _number(zone, size - 2, size) if size > 3 else 0
        digits = [i for i in range(1, size) if not (size == 6 and i == 3)]
        fits = _all_digits(zone, digits) & (hours < 24) & (minutes < 60)
        if size == 6:
            fits &= zone[:, 3] == ord(":")
        shift = (hours * 60 + minutes) * np.where(sign[signed] == ord("+"), 60_000_000, -60_000_000)
        local, is_local = _local(rows[signed, :-size])
        micros[signed], valid[signed] = local - shift, is_local & fits
    return micros, valid


def _local(rows: Bytes) -> tuple[Micros, Flags]:
    """Read a date, or a date and a time, without a zone; rows of one length."""
    count, length = rows.shape
    if length not in (10, 16, 19) and not 21 <= length <= 29:
        return np.zeros(count, np.int64), np.zeros(count, np.bool_)
    valid = _all_digits(rows, [i for i in range(length) if i not in _MARKS])
    for place, marks in _MARKS.items():
        if place < length:
            valid &= np.isin(rows[:, place], np.frombuffer(marks, np.uint8))
    month, day = _number(rows, 5, 7), _number(rows, 8, 10)
    months = ((_number(rows, 0, 4) - 1970) * 12 + month - 1).astype("datetime64[M]")
    date = months.astype("datetime64[D]") + (day - 1)
    valid &= (month >= 1) & (month <= 12) & (date.astype("datetime64[M]") == months)
    micros = date.astype(np.int64) * _DAY_US
    for place, below, size_us in ((11, 24, 3_600_000_000), (14, 60, 60_000_000), (17, 60, 1_000_000)):
        if place < length:
            part = _number(rows, place, place + 2)
            valid &= part < below
            micros += part * size_us
    if length > 20:
        places = min(length - 20, 6)
        micros += _number(rows, 20, 20 + places) * 10 ** (6 - places)
    return micros, valid


def _all_digits(rows: Bytes, places: list[int]) -> Flags:
    return np.asarray((rows[:, places] - np.uint8(48) <= 9).all(axis=1), np.bool_)


def _number(rows: Bytes, start: int, stop: int) -> Micros:
    """Read the digits of some places; where they are no digits, any number."""
    total: Any = np.zeros(len(rows), np.int64)
    for place in range(start, stop):
        total = total * 10 + (rows[:, place] - np.uint8(48))
    return np.asarray(total, np.int64)
