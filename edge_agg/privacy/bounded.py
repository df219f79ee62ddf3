"""What goes into bounding, and what comes out.

Place: the two ends of step 4 of an event's way.
Invariants: frozen; all arrays of one value have the same length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agg.privacy.ids import int64s

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Bools = npt.NDArray[np.bool_]
    Int64s = npt.NDArray[np.int64]
    UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread(Mapping[str, "Int64s"]):
    """Numbers by name that are made of values when they are asked for: of those rows that are there by then."""

    columns: Mapping[str, pa.Array]
    """The values, by column."""
    reads: Mapping[str, tuple[str, Callable[[pa.Array], Int64s]]]
    """By name: of which column, and how; what becomes of a value depends on that value alone."""

    def __getitem__(self, name: str) -> Int64s:
        """Read."""
        column, read = self.reads[name]
        return read(self.columns[column])

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.reads)

    def __len__(self) -> int:
        """How many names there are."""
        return len(self.reads)

    def of(self, some: Callable[[pa.Array], pa.Array]) -> Unread:
        """Of some of the rows, which each column is asked for."""
        return Unread(columns={name: some(values) for name, values in self.columns.items()}, reads=self.reads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one window, ready to be bounded. All arrays have n_rows elements."""

    unit: pa.Array | None
    """Each row's privacy unit: string, large_string, int64, or a dictionary of them, without nulls. None: every row is
    a unit of its own, and there is nothing to bound."""
    cell: Int64s
    """Each row's public cell, in the order of `contract.cells`."""
    key: pa.Array | None
    """Each row's discovered key: string, int64, or a dictionary of strings, without nulls; None unless the plan
    discovers. An integer stands for its text; one plan's keys are all texts, or all integers."""
    time_us: Int64s
    """Each row's event time; it only feeds the row's priority."""
    readings: Mapping[str, Int64s]
    """What each row's value was read as, by reading: a code from 0, or the reading's size where there is none. As of
    `Unread` where that waits until it is known which rows may be kept."""
    totals: Mapping[str, Int64s]
    """What each row adds to a total that is bounded for its unit and cell as a whole, within 2**31 of 0: a sum cannot
    wrap before one unit has 2**32 rows in one cell."""

    def slice(self, start: int, length: int) -> Rows:
        """At most `length` rows from one on, without a copy."""
        stop = start + length
        return Rows(
            unit=None if self.unit is None else self.unit.slice(start, length),
            cell=self.cell[start:stop],
            key=None if self.key is None else self.key.slice(start, length),
            time_us=self.time_us[start:stop],
            readings=_sliced(self.readings, start, length),
            totals=_sliced(self.totals, start, length),
        )

    def take(self, index: npt.NDArray[np.intp]) -> Rows:
        """Some of the rows, in the order of the index."""
        at = int64s(index)
        return Rows(
            unit=None if self.unit is None else self.unit.take(at),
            cell=self.cell.take(index),
            key=None if self.key is None else self.key.take(at),
            time_us=self.time_us.take(index),
            readings=_taken(self.readings, index),
            totals=_taken(self.totals, index),
        )


def _sliced(numbers: Mapping[str, Int64s], start: int, length: int) -> Mapping[str, Int64s]:
    if isinstance(numbers, Unread):
        return numbers.of(lambda values: values.slice(start, length))
    return {name: codes[start : start + length] for name, codes in numbers.items()}


def _taken(numbers: Mapping[str, Int64s], index: npt.NDArray[np.intp]) -> Mapping[str, Int64s]:
    if isinstance(numbers, Unread):
        at = int64s(index)
        return numbers.of(lambda values: values.take(at))
    return {name: codes.take(index) for name, codes in numbers.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """The rows that were kept. All arrays have n_kept elements; a unit's rows lie together."""

    cell: Int64s
    key: Int64s | None
    """Index into `keys`."""
    keys: Sequence[str]
    """The discovered keys of the kept rows, ascending; none unless the plan discovers."""
    unit: UInt64s
    """A code: equal exactly where the unit is the same."""
    first: Bools
    """Whether the row is the first of its unit in its cell (and key): exactly one is."""
    readings: Mapping[str, Int64s]
    totals: Mapping[str, Int64s]
    """On the first row of a unit in a cell its whole total there, rows beyond the limit included; 0 on the others."""

    def take(self, index: npt.NDArray[np.intp]) -> Bounded:
        """Some of the rows, in their order."""
        return Bounded(
            cell=self.cell.take(index),
            key=None if self.key is None else self.key.take(index),
            keys=self.keys,
            unit=self.unit.take(index),
            first=self.first.take(index),
            readings={name: codes.take(index) for name, codes in self.readings.items()},
            totals={name: total.take(index) for name, total in self.totals.items()},
        )
