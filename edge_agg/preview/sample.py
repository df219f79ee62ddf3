"""A sample of events, taken the agent's own way up to the noise: file, rows, windows, bounding, exact vectors.

Place: below `study.py`, which compares what different bounds leave of it.
Invariants: the figures are exact and so not private: they stay on this device; every row is kept in memory, so a sample
is a sample. One window's rows are bounded alone, with a salt of their own, as in an agent.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.contract.cells import n_cells
from edge_agg.contract.grid import window_of
from edge_agg.contract.vectors import plan_vectors
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest.file import FileSource
from edge_agg.privacy.derive import derive
from edge_agg.privacy.measurement import units_of_keys
from edge_agg.privacy.rows import read_events
from edge_agg.window import Span, split

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import numpy.typing as npt

    from edge_agg.contract.plan import Plan
    from edge_agg.privacy.bound import Bounded, Rows
    from edge_agg.privacy.measurement import Measurement
    from edge_agg.privacy.predict import Floats

    Int64s = npt.NDArray[np.int64]

_SALT = b"edge-agg preview, a sample of no secrecy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The rows of a sample, as a plan reads them, by window."""

    windows: Mapping[datetime, Sequence[Rows]]
    rows: int
    """Usable rows."""
    dropped: int
    """Rows of the wrong type, or without a unit, a time or a cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a plan's bounds leave of a sample."""

    truth: Mapping[str, Floats]
    """The exact vectors, summed over all windows and cells."""
    rows: int
    """Kept rows."""
    places: int
    """Cells of windows (and keys) that hold a row."""
    rows_of_units: Int64s
    """Rows that a unit has in a cell, one element for each unit and cell it touches."""
    cells_of_units: Int64s
    """Cells that a unit touches in a window, one element for each unit."""
    units_of_keys: Int64s
    """Where keys are discovered: each key's units, by window."""
    rows_of_keys: Int64s
    """And its rows."""


def read_batches(plan: Plan, pattern: str) -> tuple[list[pa.RecordBatch], int]:
    """Read the files that match a pattern.

    Returns:
        Typed batches, with derived columns and without what filters leave out, and how many rows had a value of the
        wrong type.

    Raises:
        SourceUnreadable: nothing there, or not with the plan's columns, or no row in it.
    """
    source = FileSource(pattern)
    source.check(plan.events.columns)
    frames = list(source.frames(plan.events.columns))
    if not any(frame.batch.num_rows for frame in frames):
        raise SourceUnreadable(f"{pattern}: holds no row that the plan could use")
    return [derive(plan, frame.batch) for frame in frames], sum(frame.rejected for frame in frames)


def read_sample(plan: Plan, batches: Sequence[pa.RecordBatch], rejected: int = 0) -> Sample:
    """Read batches as a plan's events, and send each row to its window."""
    windows: dict[datetime, list[Rows]] = defaultdict(list)
    rows = dropped = 0
    for batch in batches:
        events = read_events(plan, plan_vectors(plan), batch)
        rows, dropped = rows + len(events.time_us), dropped + events.dropped
        parts = split(events.time_us, every=plan.every, closed_before=None, span=Span(start=None, end=None))
        for start, index in parts.windows.items():
            windows[start].append(events.take(index))
    return Sample(windows=dict(sorted(windows.items())), rows=rows, dropped=dropped + rejected)


def keep(measurement: Measurement, plan: Plan, sample: Sample) -> Kept:
    """Bound a sample as another plan of the same vectors would, and add it up.

    Args:
        measurement: any compiled plan over the same events; its noise is not used.
        plan: whose bounds and clips count; `sample` was read as this plan's.
        sample: the rows.
    """
    bare = replace(measurement, plan=plan, vectors=plan_vectors(plan))
    seen: dict[tuple[datetime, int | str], int] = {}
    pieces = [_keep_window(bare, start, rows, seen) for start, rows in sample.windows.items()]
    names = [vector.name for vector in bare.vectors]
    return Kept(
        truth={name: np.sum([piece.truth[name] for piece in pieces], axis=0) for name in names},
        rows=sum(piece.rows for piece in pieces),
        places=sum(piece.places for piece in pieces),
        rows_of_units=np.concatenate([piece.rows_of_units for piece in pieces]),
        cells_of_units=np.concatenate([piece.cells_of_units for piece in pieces]),
        units_of_keys=np.concatenate([piece.units_of_keys for piece in pieces]),
        rows_of_keys=np.concatenate([piece.rows_of_keys for piece in pieces]),
    )


def _keep_window(
    bare: Measurement, start: datetime, rows: Sequence[Rows], seen: dict[tuple[datetime, int | str], int]
) -> Kept:
    bounding = bare.bounding(_SALT)
    for some in rows:
        bounding.add(some)
    bounded = bounding.kept(without=_spent(bare.plan, start, bounding.units(), seen))
    found = None if bounded.key is None else np.arange(len(bounded.keys))
    truth = {
        name: np.atleast_1d(exact.sum(axis=0)).astype(np.float64) for name, exact in bare.exact(bounded, found).items()
    }
    place = bounded.cell if bounded.key is None else bounded.key * n_cells(bare.plan) + bounded.cell
    first = np.flatnonzero(bounded.first)
    key = bounded.key
    return Kept(
        truth=truth,
        rows=len(place),
        places=len(np.unique(place)),
        rows_of_units=np.diff(first, append=len(place)),
        cells_of_units=_runs(bounded),
        units_of_keys=np.empty(0, np.int64) if key is None else units_of_keys(bounded),
        rows_of_keys=np.empty(0, np.int64) if key is None else np.bincount(key, minlength=len(bounded.keys)),
    )


def _runs(bounded: Bounded) -> Int64s:
    """How many cells each unit has; its rows lie together, each cell's first one is marked."""
    unit = bounded.unit[bounded.first]
    ends = np.flatnonzero(unit[1:] != unit[:-1]) + 1
    return np.diff([0, *ends.tolist(), len(unit)]) if len(unit) else np.empty(0, np.int64)


def _spent(
    plan: Plan, start: datetime, units: pa.Array, seen: dict[tuple[datetime, int | str], int]
) -> pa.Array | None:
    """The units that have used up their windows of the period, as the journal would say."""
    if plan.period is None or plan.bounds.max_windows is None:
        return None
    period = window_of(start, plan.period)
    gone = [unit for unit in units.to_pylist() if seen.get((period, unit), 0) >= plan.bounds.max_windows]
    spent = pa.array(gone, type=units.type)
    for unit in units.filter(pc.invert(pc.is_in(units, value_set=spent))).to_pylist():
        seen[period, unit] = seen.get((period, unit), 0) + 1
    return spent
