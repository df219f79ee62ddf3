"""Rows of one word each, sorted and truncated in place.

Place: the state of a window whose rows fit: `unit code | place of the cell | priority | readings`, most significant
first. One bare sort brings a unit's rows together, its cells in the order in which it keeps them, and a cell's rows in
the order of their priorities.
Invariants: a row stays exactly if it is among the first `max_rows` of its cell, and its cell among the first
`max_partitions` of its unit; so truncating again, or at every merge, changes nothing.

After the sort a rank is a comparison: a row is beyond the limit exactly if it is of one cell with the row that stands
`max_rows` before it. Work goes in blocks of whole units that fit a core's cache, and never takes a second array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_agg.privacy.reach import Reach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    UInt64s = npt.NDArray[np.uint64]
    Words = npt.NDArray[np.uint64] | npt.NDArray[np.uint32]

BLOCK_ROWS = 1 << 15
"""Rows worked on at once."""
_NARROW_BITS = 32
_GROWTH = 4
"""Of the room for rows, whenever there is too little; what was never written to takes no memory."""


class Packed:
    """The rows of one window, one word each."""

    def __init__(self, *, max_partitions: int, max_rows: int, place_bits: int, tail_bits: int, merge_rows: int) -> None:
        """Begin without rows.

        Args:
            max_partitions: L0.
            max_rows: L-infinity.
            place_bits: width of a cell's place.
            tail_bits: width of what follows it.
            merge_rows: at least so many rows wait before they are merged; a merge costs one sort of all.
        """
        self._max_partitions, self._max_rows, self._merge_rows = max_partitions, max_rows, merge_rows
        self._place_bits, self._tail_bits = place_bits, tail_bits
        self._rows = np.empty(0, np.uint64)
        self._kept = self.size = 0
        self.reach = Reach(max_partitions)

    def add(self, unit: UInt64s, place: npt.NDArray[np.uint32], tail: UInt64s | None) -> None:
        """Take rows in; `tail` is None where it has no bits."""
        size = self.size + len(unit)
        if size > len(self._rows):
            self._resize(max(size, _GROWTH * len(self._rows)))
        word = self._rows[self.size : size]
        np.left_shift(unit, np.uint64(self._place_bits), out=word)
        word |= place
        if tail is not None:
            word <<= np.uint64(self._tail_bits)
            word |= tail
        self.size = size
        if size - self._kept >= self._merge_at():
            self.merge()

    def merge(self) -> None:
        """Sort and truncate."""
        if self.size == self._kept:
            return
        kept = 0
        for block in self._blocks(self._sorted()):
            rows = self._truncated(block)
            self._rows[kept : kept + len(rows)] = rows
            kept += len(rows)
        self._kept = self.size = kept

    def blocks(self) -> Iterator[tuple[UInt64s, npt.NDArray[np.uint32], UInt64s, Bools]]:
        """What is kept, in blocks of whole units: unit, place, tail, and whether a row is its cell's first."""
        self.merge()
        place_mask, tail_mask = (np.uint64((1 << bits) - 1) for bits in (self._place_bits, self._tail_bits))
        for block in self._blocks(self._rows[: self.size]):
            group = block >> np.uint64(self._tail_bits)
            place = (group & place_mask).astype(np.uint32)
            yield group >> np.uint64(self._place_bits), place, block & tail_mask, starts(group)

    def recode(self, codes_of: Callable[[UInt64s], UInt64s]) -> None:
        """Give every row's unit another code."""
        shift = np.uint64(self._unit_shift)
        for start in range(0, self.size, BLOCK_ROWS):
            rows = self._rows[start : min(start + BLOCK_ROWS, self.size)]
            unit = rows >> shift
            rows ^= (unit ^ codes_of(unit)) << shift
        self.reach.forget()
        self._kept = 0

    @property
    def _unit_shift(self) -> int:
        return self._place_bits + self._tail_bits

    def _sorted(self) -> Words:
        rows: Words = self._rows[: self.size]
        if self._unit_shift < _NARROW_BITS and int(rows.max()) < 1 << _NARROW_BITS:
            rows = rows.astype(np.uint32)  # half the width, half the time
        rows.sort()
        return rows

    def _merge_at(self) -> int:
        return max(self._merge_rows, self._kept)

    def _resize(self, rows: int) -> None:
        """Make room."""
        held = np.empty(rows, np.uint64)
        held[: self.size] = self._rows[: self.size]
        self._rows = held

    def _blocks(self, rows: Words) -> Iterator[Words]:
        """Cut sorted rows between units."""
        others = rows.dtype.type((1 << self._unit_shift) - 1)
        start = 0
        while start < len(rows):
            stop = min(start + BLOCK_ROWS, len(rows))
            if stop < len(rows):
                last = rows[stop] | others  # of the unit that stands there
                stop = start + int(np.searchsorted(rows[start:stop], last ^ others))
                if stop == start:  # a unit of more rows than a block
                    stop = start + int(np.searchsorted(rows[start:], last, side="right"))
            yield rows[start:stop]
            start = stop

    def _truncated(self, block: Words) -> Words:
        width = block.dtype.type
        group = block >> width(self._tail_bits) if self._tail_bits else block
        new = starts(group)
        groups = np.compress(new, group)
        unit = groups >> width(self._place_bits)
        stays = first_of(unit, self._max_partitions)
        self.reach.learn(unit, groups & width((1 << self._place_bits) - 1), stays)
        return block.compress(within(group, new, stays, max_rows=self._max_rows))


def starts(sorted_keys: npt.NDArray[np.integer]) -> Bools:
    """Where a run of equal keys begins."""
    begins = np.ones(len(sorted_keys), np.bool_)
    np.not_equal(sorted_keys[1:], sorted_keys[:-1], out=begins[1:])
    return begins


def first_of(unit: npt.NDArray[np.integer], max_partitions: int) -> Bools:
    """Which of some sorted groups, given by their units, are among the first of their unit."""
    stays = np.ones(len(unit), np.bool_)
    np.not_equal(unit[max_partitions:], unit[:-max_partitions], out=stays[max_partitions:])
    return stays


def within(group: npt.NDArray[np.integer], new: Bools, stays: Bools, *, max_rows: int) -> Bools:
    """Which of some sorted rows are within the limits.

    Args:
        group: each row's unit and cell, as one number.
        new: where a group begins.
        stays: which groups do.
        max_rows: L-infinity.
    """
    keep = np.ones(len(group), np.bool_)
    np.not_equal(group[max_rows:], group[:-max_rows], out=keep[max_rows:])
    if not stays.all():
        keep &= stays.take(np.cumsum(new) - 1, mode="clip")
    return keep
