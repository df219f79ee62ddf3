"""Bounding: what is kept of each privacy unit in one window.

Place: step 4 of an event's way, between the window and the aggregates.
Invariants: what is kept of a unit depends on that unit's rows and the window's salt alone, never on other units, on
the order of rows, or on how they were cut into batches; truncating at every merge equals truncating at the end, so
the state is bounded by what is kept. Unit ids become dense codes, so no two units can collide.

Method (one sort): a row becomes the packed key `unit code | permuted cell | row priority`. The permutation is a
bijection on cell codes keyed by the unit and the salt, so a unit's first `max_partitions` distinct cells in key order
are a uniform sample of the cells it touched; the priority is a keyed hash of the row, so the first
`max_rows_per_partition` rows of a cell are a uniform sample of its rows (rows equal in time and values go together).
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_agg.contract.plan import MAX_UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    UInt64s = npt.NDArray[np.uint64]

MERGE_ROWS = 1 << 17
"""Rows that wait before they are merged into the state; a merge costs one sort of both."""
_GAMMA = 0x9E3779B97F4A7C15
_ROUNDS = 4
_LEAST_BITS = 12
"""On fewer bits four rounds are too few: which pairs of cells are kept together would be visibly uneven."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of one window, ready to be bounded. All arrays have n_rows elements."""

    units: Sequence[str] | Sequence[int]
    """The distinct unit ids that `unit` points into."""
    unit: Int64s
    """Each row's index into `units`."""
    cell: Int64s
    """Each row's cell, in the order of `contract.cells`."""
    time_us: Int64s
    """Each row's event time; it only feeds the row's priority."""
    values: Mapping[str, Int64s]
    """What each row contributes to each summed vector, by the vector's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounded:
    """The rows that were kept. All arrays have n_kept elements."""

    cell: Int64s
    first: npt.NDArray[np.bool_]
    """Whether the row is the first of its unit in its cell: exactly one is."""
    values: Mapping[str, Int64s]


class Bounding:
    """The bounded state of one window: add rows in any order and any cut, then take what is kept."""

    def __init__(self, *, max_partitions: int, max_rows: int, n_cells: int, names: Sequence[str], salt: bytes) -> None:
        """Begin an empty window.

        Args:
            max_partitions: L0, cells kept of a unit.
            max_rows: L-infinity, rows kept of a unit in a cell.
            n_cells: cells of the plan.
            names: the summed vectors, keys of `Rows.values`.
            salt: secret, this window's own; 16 to 64 bytes.

        Raises:
            ValueError: the salt is too short to be one.
        """
        if not 16 <= len(salt) <= 64:
            raise ValueError("a salt has 16 to 64 bytes")
        self._max_partitions, self._max_rows, self._names, self._salt = max_partitions, max_rows, tuple(names), salt
        self._cell_bits = max(_LEAST_BITS, (n_cells - 1).bit_length())
        self._codes: dict[str | int, int] = {}
        self._hashes = array("Q")
        empty = np.empty(0, np.uint64)
        self._kept = _Keyed(empty, empty, empty, np.empty(0, np.int64), {name: np.empty(0, np.int64) for name in names})
        self._pending: list[_Keyed] = []
        self._pending_rows = 0

    @property
    def rows(self) -> int:
        """Rows now held, waiting ones included."""
        return len(self._kept.unit) + self._pending_rows

    def add(self, rows: Rows) -> None:
        """Take rows in; work is amortised to one sort each."""
        if not len(rows.unit):
            return
        self._pending.append(self._key(rows))
        self._pending_rows += len(rows.unit)
        if self._pending_rows >= max(MERGE_ROWS, len(self._kept.unit)):
            self._merge()

    def kept(self) -> Bounded:
        """What is kept of all rows so far."""
        self._merge()
        keyed = self._kept
        group = _starts(keyed.unit) | _starts(keyed.place)
        return Bounded(cell=keyed.cell, first=group, values=keyed.values)

    def _key(self, rows: Rows) -> _Keyed:
        codes = np.fromiter((self._code(unit) for unit in rows.units), np.int64, len(rows.units))
        unit = codes[rows.unit]
        unit_hash = np.frombuffer(self._hashes, dtype=np.uint64)[unit]
        priority = _mix(unit_hash ^ rows.time_us.astype(np.uint64))
        for name in self._names:
            priority = _mix(priority ^ rows.values[name].astype(np.uint64))
        place = _permute(rows.cell.astype(np.uint64), unit_hash, self._cell_bits)
        return _Keyed(
            unit.astype(np.uint64), place, priority, rows.cell, {name: rows.values[name] for name in self._names}
        )

    def _code(self, unit: str | int) -> int:
        code = self._codes.get(unit)
        if code is None:
            code = len(self._hashes)
            if code >= MAX_UNITS:
                raise OverflowError("more privacy units in one window than the overflow proof allows")
            text = unit.encode() if isinstance(unit, str) else unit.to_bytes(8, "little", signed=True)
            digest = hashlib.blake2b(text, digest_size=8, key=self._salt).digest()
            self._hashes.append(int.from_bytes(digest, "little"))
            self._codes[unit] = code
        return code

    def _merge(self) -> None:
        if not self._pending:
            return
        keyed = _concat([self._kept, *self._pending])
        self._pending, self._pending_rows = [], 0
        order = self._order(keyed)
        unit, place = keyed.unit[order], keyed.place[order]
        new_unit = _starts(unit)
        new_group = new_unit | _starts(place)
        at = np.arange(len(unit))
        row_rank = at - np.maximum.accumulate(np.where(new_group, at, 0))
        group: npt.NDArray[np.int64] = np.cumsum(new_group)
        cell_rank = group - np.maximum.accumulate(np.where(new_unit, group, 0))
        keep = order[(cell_rank < self._max_partitions) & (row_rank < self._max_rows)]
        self._kept = keyed.take(keep)

    def _order(self, keyed: _Keyed) -> npt.NDArray[np.intp]:
        """Sort by unit, place, priority: one packed key, and the full keys only where packed ones tie."""
        spare = np.uint64(64 - max(1, (len(self._hashes) - 1).bit_length()) - self._cell_bits)
        packed = (keyed.unit << np.uint64(self._cell_bits)) | keyed.place
        packed = (packed << spare) | (keyed.priority >> (np.uint64(64) - spare))
        order = np.argsort(packed)
        if _ties(packed[order]):
            order = np.lexsort((*keyed.values.values(), keyed.priority, keyed.place, keyed.unit))
        return order


@dataclass(frozen=True, slots=True)
class _Keyed:
    """Rows with the parts of their sort key."""

    unit: UInt64s
    place: UInt64s
    priority: UInt64s
    cell: Int64s
    values: Mapping[str, Int64s]

    def take(self, keep: npt.NDArray[np.intp]) -> _Keyed:
        values = {name: value[keep] for name, value in self.values.items()}
        return _Keyed(self.unit[keep], self.place[keep], self.priority[keep], self.cell[keep], values)


def _concat(parts: Sequence[_Keyed]) -> _Keyed:
    return _Keyed(
        np.concatenate([part.unit for part in parts]),
        np.concatenate([part.place for part in parts]),
        np.concatenate([part.priority for part in parts]),
        np.concatenate([part.cell for part in parts]),
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
    )


def _starts(sorted_keys: UInt64s) -> npt.NDArray[np.bool_]:
    """Where a run of equal keys begins."""
    starts = np.ones(len(sorted_keys), dtype=np.bool_)
    starts[1:] = sorted_keys[1:] != sorted_keys[:-1]
    return starts


def _ties(sorted_keys: UInt64s) -> bool:
    return bool((sorted_keys[1:] == sorted_keys[:-1]).any())


def _mix(x: UInt64s) -> UInt64s:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection on 64 bits."""
    x = x + np.uint64(_GAMMA)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permute(cell: UInt64s, unit_hash: UInt64s, bits: int) -> UInt64s:
    """A bijection on `bits`-bit cell codes, keyed by the unit's hash: rounds of odd multiply, add and xor-shift.

    Each step is invertible modulo 2**bits, so two cells of one unit never share a place.
    """
    mask, half = np.uint64((1 << bits) - 1), np.uint64(max(1, (bits + 1) // 2))
    place = cell
    for turn in range(_ROUNDS):
        key = _mix(unit_hash ^ np.uint64(turn + 1))
        factor, shift = (key >> np.uint64(32)) | np.uint64(1), key & np.uint64(0xFFFFFFFF)
        place = (place * factor + shift) & mask
        place = place ^ (place >> half)
    return place
