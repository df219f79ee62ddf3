"""Typed events become rows that can be bounded: cells coded, values clipped and on the grid, units indexed.

Place: the first step of bounding, between decoding and `bound`.
Invariants: what becomes of a row depends on that row alone; a row without a unit or a time is dropped, a null or
unlisted key goes to `other` or the row is dropped, a missing value leaves the row out of that metric only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.contract.cells import shape
from edge_agg.contract.plan import Mean, Partition, Plan, Sum
from edge_agg.contract.vectors import Vector, vectors_of
from edge_agg.privacy.aggregate import to_grid
from edge_agg.privacy.bound import Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The usable rows of a batch. All arrays have n_rows elements."""

    unit: pa.Array
    """Each row's privacy unit, string or int64."""
    time_us: Int64s
    cell: Int64s
    values: Mapping[str, Int64s]
    """What each row contributes to each summed vector."""
    dropped: int
    """Rows without a unit, a time or a cell."""

    def take(self, index: npt.NDArray[np.intp]) -> Rows:
        """Some of the rows."""
        if len(index) == len(self.cell):
            return Rows(unit=self.unit, cell=self.cell, time_us=self.time_us, values=self.values)
        return Rows(
            unit=self.unit.take(pa.array(index)),
            cell=self.cell[index],
            time_us=self.time_us[index],
            values={name: value[index] for name, value in self.values.items()},
        )


def read_events(plan: Plan, vectors: Sequence[Vector], batch: pa.RecordBatch) -> Events:
    """Read a typed batch as a plan's events.

    Args:
        plan: the plan.
        vectors: its vectors.
        batch: the plan's columns, typed by `ingest.decode`.
    """
    unit, time = batch.column(plan.privacy_unit.column), batch.column(plan.events.time)
    usable = _valid(unit) & _valid(time)
    cell = np.zeros(batch.num_rows, dtype=np.int64)
    for partition, size in zip(plan.partition, shape(plan), strict=True):
        code = _codes(partition, batch.column(partition.column))
        usable &= code >= 0
        cell = cell * size + code
    keep = np.flatnonzero(usable)
    return Events(
        unit=unit.filter(pa.array(usable)),
        time_us=pc.fill_null(time.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)[keep],
        cell=cell[keep],
        values={name: value[keep] for name, value in _contributions(plan, vectors, batch).items()},
        dropped=batch.num_rows - len(keep),
    )


def _codes(partition: Partition, column: pa.Array) -> Int64s:
    """Each row's code in one partition column, int64[n_rows]; -1 where the row has no cell."""
    known = pc.index_in(column, value_set=pa.array(partition.values, type=column.type), skip_nulls=True)
    missing = len(partition.values) if partition.other else -1
    codes: Int64s = pc.fill_null(known, missing).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _contributions(plan: Plan, vectors: Sequence[Vector], batch: pa.RecordBatch) -> dict[str, Int64s]:
    bounds = {
        vector.name: (metric.lower, metric.upper)
        for metric in plan.metric
        if isinstance(metric, Sum | Mean)
        for vector in vectors_of(plan, metric)
    }
    out: dict[str, Int64s] = {}
    for vector in vectors:
        if vector.column is None:
            continue
        column = batch.column(vector.column)
        valid = _valid(column)
        if vector.clip is None:
            out[vector.name] = valid.astype(np.int64)
        else:
            lower, upper = bounds[vector.name]
            values = pc.fill_null(column.cast(pa.float64(), safe=False), 0.0).to_numpy(zero_copy_only=False)
            out[vector.name] = to_grid(values, valid, lower=lower, upper=upper, clip=vector.clip)
    return out


def _valid(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Where a value stands: neither null nor NaN."""
    valid: npt.NDArray[np.bool_] = pc.is_valid(column).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        valid = valid & ~pc.fill_null(pc.is_nan(column), fill_value=True).to_numpy(zero_copy_only=False)
    return valid
