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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    UInt64s = npt.NDArray[np.uint64]

BLOCK_ROWS = 1 << 15
"""Rows worked on at once."""
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
        self._place_bits, self._tail_bits = np.uint64(place_bits), np.uint64(tail_bits)
        self._rows = np.empty(0, np.uint64)
        self._kept = self.size = 0

    def add(self, unit: UInt64s, place: npt.NDArray[np.uint32], tail: UInt64s | None) -> None:
        """Take rows in; `tail` is None where it has no bits."""
        size = self.size + len(unit)
        if size > len(self._rows):
            self._resize(max(size, _GROWTH * len(self._rows)))
        word = self._rows[self.size : size]
        np.left_shift(unit, self._place_bits, out=word)
        word |= place
        if tail is not None:
            word <<= self._tail_bits
            word |= tail
        self.size = size
        if size - self._kept >= self._merge_at():
            self.merge()

    def merge(self) -> None:
        """Sort and truncate."""
        if self.size == self._kept:
            return
        self._sort()
        kept = 0
        for block in self._blocks():
            rows = self._truncated(block)
            self._rows[kept : kept + len(rows)] = rows
            kept += len(rows)
        self._kept = self.size = kept

    def blocks(self) -> Iterator[tuple[UInt64s, npt.NDArray[np.uint32], UInt64s, Bools]]:
        """What is kept, in blocks of whole units: unit, place, tail, and whether a row is its cell's first."""
        self.merge()
        for block in self._blocks():
            group = block >> self._tail_bits
            place = (group & ((np.uint64(1) << self._place_bits) - np.uint64(1))).astype(np.uint32)
            tail = block & ((np.uint64(1) << self._tail_bits) - np.uint64(1))
            yield group >> self._place_bits, place, tail, starts(group)

    def recode(self, codes_of: Callable[[UInt64s], UInt64s]) -> None:
        """Give every row's unit another code."""
        shift = self._place_bits + self._tail_bits
        for start in range(0, self.size, BLOCK_ROWS):
            rows = self._rows[start : min(start + BLOCK_ROWS, self.size)]
            rows ^= ((codes_of(rows >> shift)) << shift) ^ ((rows >> shift) << shift)
        self._kept = 0

    def _sort(self) -> None:
        rows = self._rows[: self.size]
        if rows.max() >> np.uint64(32):
            rows.sort()
        else:  # half the width, half the time
            narrow = rows.astype(np.uint32)
            narrow.sort()
            rows[:] = narrow

    def _merge_at(self) -> int:
        return max(self._merge_rows, self._kept)

    def _resize(self, rows: int) -> None:
        """Make room."""
        held = np.empty(rows, np.uint64)
        held[: self.size] = self._rows[: self.size]
        self._rows = held

    def _blocks(self) -> Iterator[UInt64s]:
        rows, shift = self._rows[: self.size], self._place_bits + self._tail_bits
        start = 0
        while start < len(rows):
            stop = min(start + BLOCK_ROWS, len(rows))
            if stop < len(rows):
                unit = rows[stop] >> shift
                stop = start + int(np.searchsorted(rows[start:stop], unit << shift))
                if stop == start:  # a unit of more rows than a block
                    past = (unit << shift) | ((np.uint64(1) << shift) - np.uint64(1))
                    stop = start + int(np.searchsorted(rows[start:], past, side="right"))
            yield rows[start:stop]
            start = stop

    def _truncated(self, block: UInt64s) -> UInt64s:
        group = block >> self._tail_bits
        keep = np.ones(len(block), np.bool_)
        limit = self._max_rows
        np.not_equal(group[limit:], group[:-limit], out=keep[limit:])
        new = starts(group)
        unit = group[np.flatnonzero(new)] >> self._place_bits
        limit = self._max_partitions
        if len(unit) > limit:
            within = np.ones(len(unit), np.bool_)
            np.not_equal(unit[limit:], unit[:-limit], out=within[limit:])
            if not within.all():
                keep &= within.take(np.cumsum(new) - 1, mode="clip")
        return np.compress(keep, block)


def starts(sorted_keys: npt.NDArray[np.integer]) -> Bools:
    """Where a run of equal keys begins."""
    begins = np.ones(len(sorted_keys), np.bool_)
    np.not_equal(sorted_keys[1:], sorted_keys[:-1], out=begins[1:])
    return begins
