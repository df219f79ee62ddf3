"""Typed events become rows that can be bounded: cells coded, values clipped and on the grid, units and keys at hand.

Place: the first step of bounding, between decoding and `bound`.
Invariants: what becomes of a row depends on that row alone; a row without a unit or a time is dropped, a null or
unlisted key goes to `other` or the row is dropped, a missing value leaves the row out of that metric only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.contract.cells import shape
from edge_agg.contract.vectors import Clip, Reading, Vector, readings_of, totals_of
from edge_agg.privacy.aggregate import to_bins, to_grid, to_steps
from edge_agg.privacy.bounded import Rows, Unread
from edge_agg.privacy.derive import derive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from edge_agg.contract.plan import Key, Partition, Plan

    Int64s = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The usable rows of a batch. All arrays have n_rows elements."""

    rows: Rows
    dropped: int
    """Rows without a unit, a time, a cell or a key."""

    @property
    def time_us(self) -> Int64s:
        """Each row's event time."""
        return self.rows.time_us

    def take(self, index: npt.NDArray[np.intp]) -> Rows:
        """Some of the rows, each at most once."""
        return self.rows if len(index) == len(self.rows.cell) else self.rows.take(index)


def read_events(plan: Plan, vectors: Sequence[Vector], batch: pa.RecordBatch) -> Events:
    """Read a typed batch as a plan's events.

    Args:
        plan: the plan.
        vectors: its vectors.
        batch: the plan's columns, typed by `ingest.decode`.
    """
    batch = derive(plan, batch)
    time = batch.column(plan.events.time)
    unit = None if plan.privacy_unit.column is None else batch.column(plan.privacy_unit.column)
    usable = _Usable()
    usable.need(time)
    if unit is not None:
        usable.need(unit)
    key = _key(plan, batch, usable)
    cell: Int64s | None = None
    for partition, size in zip(plan.public, shape(plan), strict=True):
        code = _codes(partition, batch.column(partition.column), usable)
        cell = code if cell is None else cell * size + code
    time_us = time.cast(pa.int64()) if time.null_count == 0 else pc.fill_null(time.cast(pa.int64()), 0)
    rows = Rows(
        unit=unit,
        cell=np.zeros(batch.num_rows, dtype=np.int64) if cell is None else cell,
        key=key,
        time_us=time_us.to_numpy(zero_copy_only=False),
        readings=_unread(
            batch, {name: (one.column, partial(_read, one)) for name, one in readings_of(vectors).items()}
        ),
        totals=_unread(batch, {name: _total(vector) for name, vector in totals_of(vectors).items()}),
    )
    whole = Events(rows=rows, dropped=0)
    keep = usable.rows()
    return whole if keep is None else Events(rows=whole.take(keep), dropped=batch.num_rows - len(keep))


class _Usable:
    """Which rows can be used; a batch in which all can never sees a mask."""

    def __init__(self) -> None:
        self._mask: Bools | None = None

    def need(self, column: pa.Array) -> None:
        """A row without a value here is dropped."""
        if column.null_count:
            self.keep(column.is_valid().to_numpy(zero_copy_only=False))

    def keep(self, mask: Bools | None) -> None:
        """Drop the rows where the mask is false; None: none."""
        if mask is not None and not mask.all():
            self._mask = mask if self._mask is None else self._mask & mask

    def rows(self) -> npt.NDArray[np.intp] | None:
        """The rows to keep; None if all are."""
        return None if self._mask is None else np.flatnonzero(self._mask)


def _key(plan: Plan, batch: pa.RecordBatch, usable: _Usable) -> pa.Array | None:
    """Each row's discovered key as text, or as the integer whose text it is, if the plan discovers any."""
    partition = plan.discovered
    if partition is None or partition.discover is None:
        return None
    column = batch.column(partition.column)
    usable.need(column)
    if pa.types.is_int64(column.type):
        filled = pc.fill_null(column, 0) if column.null_count else column
        usable.keep(_fits(filled.to_numpy(), partition.discover.max_bytes))
        return column
    coded = pa.types.is_dictionary(column.type)
    text = column if coded or pa.types.is_string(column.type) else column.cast(pa.string())
    length = pc.binary_length(text.dictionary).take(text.indices) if coded else pc.binary_length(text)
    usable.keep(pc.fill_null(length, 0).to_numpy(zero_copy_only=False) <= partition.discover.max_bytes)
    return text


def _fits(values: Int64s, max_bytes: int) -> Bools | None:
    """Whether the text of each integer is short enough; None if all are."""
    most, least = min(10**max_bytes - 1, 2**63 - 1), max(1 - 10 ** (max_bytes - 1), -(2**63))
    if values.min(initial=0) >= least and values.max(initial=0) <= most:
        return None
    fits: Bools = (values >= least) & (values <= most)
    return fits


def _codes(partition: Partition, column: pa.Array, usable: _Usable) -> Int64s:
    """Each row's code in one public partition, int64[n_rows]; a row that has no cell is dropped."""
    codes = _calendar(partition, column) if partition.calendar is not None else _listed(partition, column)
    if partition.other:
        return np.where(codes < 0, len(partition.public), codes) if codes.min(initial=0) < 0 else codes
    usable.keep(codes >= 0)
    return codes


def _listed(partition: Partition, column: pa.Array) -> Int64s:
    """The place of each row's key among the public ones; -1 where it is none of them."""
    keys, first = partition.public, partition.public[0]
    codes: Int64s
    if (
        isinstance(first, int)
        and not column.null_count
        and pa.types.is_integer(column.type)
        and _consecutive(keys, first)
    ):
        values = column.to_numpy()
        codes = values - first
        outside = codes.view(np.uint64) >= len(keys)
        return np.where(outside, -1, codes) if outside.any() else codes
    if pa.types.is_dictionary(column.type):
        known = _index_in(column.dictionary, keys).take(column.indices)
    else:
        known = _index_in(column, keys)
    codes = (pc.fill_null(known, -1) if known.null_count else known).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _index_in(column: pa.Array, keys: Sequence[Key]) -> pa.Array:
    return pc.index_in(column, value_set=pa.array(keys, type=column.type), skip_nulls=True)


def _consecutive(keys: Sequence[Key], first: int) -> bool:
    return list(keys) == [*range(first, first + len(keys))]


def _calendar(partition: Partition, column: pa.Array) -> Int64s:
    import polars as pl

    local = pl.Series(values=column).dt.convert_time_zone(partition.timezone or "UTC")
    parts = local.dt.hour() if partition.calendar == "hour" else local.dt.weekday() - 1
    codes: Int64s = parts.cast(pl.Int64).fill_null(-1).to_numpy()
    return codes


def _unread(batch: pa.RecordBatch, reads: Mapping[str, tuple[str, Callable[[pa.Array], Int64s]]]) -> Unread:
    return Unread(columns={column: batch.column(column) for column, _ in reads.values()}, reads=reads)


def _read(reading: Reading, column: pa.Array) -> Int64s:
    """Each row's code: 0 .. size - 1, or size where there is no value."""
    values, missing = _numbers(column)
    if reading.edges:
        codes = to_bins(values, edges=reading.edges)
    else:
        codes = to_grid(values, lower=reading.lower, upper=reading.upper, resolution=reading.resolution)
    return codes if missing is None else np.where(missing, reading.size, codes)


def _total(vector: Vector) -> tuple[str, Callable[[pa.Array], Int64s]]:
    assert vector.column is not None, "a total is of a column"
    assert vector.clip is not None, "a total is on a grid"
    return vector.column, partial(_steps, vector.clip)


def _steps(clip: Clip, column: pa.Array) -> Int64s:
    """What each row adds to its unit's total, in grid steps; 0 where there is no value."""
    values, missing = _numbers(column)
    steps = to_steps(values, clip.resolution)
    return steps if missing is None else np.where(missing, 0, steps)


def _numbers(column: pa.Array) -> tuple[npt.NDArray[np.float64], Bools | None]:
    """A column as floats, and where it has no value: null or NaN. None if it has all."""
    filled = pc.fill_null(column, 0) if column.null_count else column
    values = filled.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    missing = ~column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
    if np.isnan(values.min(initial=0.0)):  # the least of numbers and a NaN is NaN
        nan = np.isnan(values)
        missing = nan if missing is None else missing | nan
        values = np.where(nan, 0.0, values)
    return values, missing
