"""Bounding: what is kept of each privacy unit in one window.

Place: step 4 of an event's way, between the window and the aggregates.
Invariants: what is kept of a unit depends on that unit's rows and the window's salt alone, never on other units, on
the order of rows, or on how they were cut into batches; truncating at every merge equals truncating at the end, so
the state is bounded by what is kept. Units are told apart by their ids: where two ids have one hash, the ids decide.

Method: a row becomes the packed key `unit code | permuted cell | row priority`. The permutation is a
bijection on cell codes keyed by the unit and the salt, so a unit's first `max_partitions` distinct cells in key order
are a uniform sample of the cells it touched; the priority is a keyed hash of the row, so the first
`max_rows_per_partition` rows of a cell are a uniform sample of its rows (rows equal in time and values go together).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

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

    unit: pa.Array
    """Each row's privacy unit, string or int64, without nulls."""
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
        self._max_partitions, self._max_rows, self._names = max_partitions, max_rows, tuple(names)
        digest = hashlib.blake2b(digest_size=16, key=salt).digest()
        self._seed, self._key = int.from_bytes(digest[:8], "little"), np.uint64(int.from_bytes(digest[8:], "little"))
        self._cell_bits = max(_LEAST_BITS, (n_cells - 1).bit_length())
        self._parts: list[_Keyed] = []
        self._kept_rows = self._pending_rows = 0
        self._first = np.empty(0, np.bool_)

    @property
    def rows(self) -> int:
        """Rows now held, waiting ones included."""
        return self._kept_rows + self._pending_rows

    def add(self, rows: Rows) -> None:
        """Take rows in; work is amortised to a few sorts each."""
        if not len(rows.unit):
            return
        self._parts.append(self._keyed(rows))
        self._pending_rows += len(rows.unit)
        if self._pending_rows >= max(MERGE_ROWS, self._kept_rows):
            self._merge()

    def kept(self) -> Bounded:
        """What is kept of all rows so far."""
        self._merge()
        if not self._parts:
            nothing = np.empty(0, np.int64)
            return Bounded(cell=nothing, first=self._first, values=dict.fromkeys(self._names, nothing))
        (keyed,) = self._parts
        return Bounded(cell=keyed.cell, first=self._first, values=keyed.values)

    def _keyed(self, rows: Rows) -> _Keyed:
        unit_hash = _mix(_hash(rows.unit, self._seed) ^ self._key)
        priority = _mix(unit_hash ^ rows.time_us.view(np.uint64))
        for name in self._names:
            priority = _mix(priority ^ rows.values[name].view(np.uint64))
        place = _permute(rows.cell.view(np.uint64), unit_hash, self._cell_bits)
        values = {name: rows.values[name] for name in self._names}
        # A window may hold more text than the 2 GiB that a plain string array can.
        unit = rows.unit.cast(pa.large_string()) if pa.types.is_string(rows.unit.type) else rows.unit
        return _Keyed(unit, unit_hash, place, priority, rows.cell, values)

    def _merge(self) -> None:
        if not self._pending_rows:
            return
        keyed = _concat(self._parts)
        unit = _codes(keyed.unit, keyed.unit_hash)
        order = self._order(keyed, unit)
        new_unit = _starts(unit[order])
        new_group = new_unit | _starts(keyed.place[order])
        at = np.arange(len(order))
        row_rank = at - np.maximum.accumulate(np.where(new_group, at, 0))
        group: npt.NDArray[np.int64] = np.cumsum(new_group)
        cell_rank = group - np.maximum.accumulate(np.where(new_unit, group, 0))
        keep = (cell_rank < self._max_partitions) & (row_rank < self._max_rows)
        self._parts = [keyed.take(order[keep])]
        self._first = new_group[keep]
        self._kept_rows, self._pending_rows = len(self._first), 0

    def _order(self, keyed: _Keyed, unit: UInt64s) -> npt.NDArray[np.intp]:
        """Sort by unit, place, priority: one packed key, and the full keys only where packed ones tie."""
        spare = np.uint64(64 - max(1, int(unit.max()).bit_length()) - self._cell_bits)
        packed = (unit << np.uint64(self._cell_bits)) | keyed.place
        packed = (packed << spare) | (keyed.priority >> (np.uint64(64) - spare))
        order = np.argsort(packed)
        if _ties(packed[order]):
            order = np.lexsort((*keyed.values.values(), keyed.priority, keyed.place, unit))
        return order


@dataclass(frozen=True, slots=True)
class _Keyed:
    """Rows with the parts of their sort key."""

    unit: pa.Array
    unit_hash: UInt64s
    place: UInt64s
    priority: UInt64s
    cell: Int64s
    values: Mapping[str, Int64s]

    def take(self, keep: npt.NDArray[np.intp]) -> _Keyed:
        values = {name: value[keep] for name, value in self.values.items()}
        unit = self.unit.take(pa.array(keep))
        return _Keyed(unit, self.unit_hash[keep], self.place[keep], self.priority[keep], self.cell[keep], values)


def _concat(parts: Sequence[_Keyed]) -> _Keyed:
    return _Keyed(
        pa.concat_arrays([part.unit for part in parts]),
        np.concatenate([part.unit_hash for part in parts]),
        np.concatenate([part.place for part in parts]),
        np.concatenate([part.priority for part in parts]),
        np.concatenate([part.cell for part in parts]),
        {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values},
    )


def _hash(unit: pa.Array, seed: int) -> UInt64s:
    """A 64-bit keyed hash of each id: it scatters units, it never tells them apart."""
    hashed: UInt64s = pl.Series(values=unit).hash(seed).to_numpy()
    return hashed


def _codes(unit: pa.Array, unit_hash: UInt64s) -> UInt64s:
    """A dense code for each row's unit: equal codes, equal ids, and never otherwise.

    Small non-negative integers are their own codes. Else units are grouped by hash, and the ids within each group are
    compared: if two ids ever share a hash, the ids themselves are coded.

    Raises:
        OverflowError: more units than the proof that no sum overflows allows.
    """
    if pa.types.is_integer(unit.type):
        bounds = pc.min_max(unit).as_py()
        if bounds["min"] >= 0 and bounds["max"] < MAX_UNITS:
            return np.asarray(unit).view(np.uint64)
    order = np.argsort(unit_hash)
    new = _starts(unit_hash[order])
    grouped = unit.take(pa.array(order))
    differs = ~np.asarray(pc.equal(grouped.slice(1), grouped.slice(0, len(grouped) - 1)))
    codes = np.empty(len(order), np.uint64)
    if (differs & ~new[1:]).any():
        codes[:] = np.asarray(pc.dictionary_encode(unit).indices)
    else:
        codes[order] = np.cumsum(new) - 1
    if int(codes.max()) >= MAX_UNITS:
        raise OverflowError("more privacy units in one window than the overflow proof allows")
    return codes


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
