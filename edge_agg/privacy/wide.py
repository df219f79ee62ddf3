"""Rows of many columns, sorted and truncated by index.

Place: the state of a window whose rows do not fit one word, or carry what cannot be sorted on: totals, and discovered
keys. The way of `packed`, with the columns carried along; slower, and without a limit on what a row holds.
Invariants: those of `packed`, and the same order; a group is a unit's rows in one cell, and under one key; the totals
of a group are whole before any of its rows is dropped; where two keys of a unit have one place, their texts decide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_agg.privacy.packed import first_of, starts, within
from edge_agg.privacy.reach import Reach

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    Int64s = npt.NDArray[np.int64]
    UInt64s = npt.NDArray[np.uint64]
    Index = npt.NDArray[np.intp]

_WORD_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Some rows. All arrays have n_rows elements."""

    unit: UInt64s
    """Each row's unit, as a code."""
    place: UInt64s
    """Where its group stands among the unit's."""
    cell: npt.NDArray[np.uint32]
    key: npt.NDArray[np.int32] | None
    """Each row's discovered key, as a code."""
    tail: Sequence[UInt64s]
    """The words that order the rows of a group, most significant first."""
    totals: Mapping[str, Int64s]
    first: Bools | None = None
    """Whether a row is the first of its group; None before they are sorted."""

    def take(self, index: Index) -> Columns:
        """Some of the rows, in another order."""
        return Columns(
            unit=self.unit[index],
            place=self.place[index],
            cell=self.cell[index],
            key=None if self.key is None else self.key[index],
            tail=[word[index] for word in self.tail],
            totals={name: total[index] for name, total in self.totals.items()},
            first=None if self.first is None else self.first[index],
        )


class Wide:
    """The rows of one window, in columns."""

    def __init__(
        self, *, max_partitions: int, max_rows: int, ranks: Callable[[], Int64s] | None, merge_rows: int
    ) -> None:
        """Begin without rows.

        Args:
            max_partitions: L0.
            max_rows: L-infinity.
            ranks: the rank of each key among all so far, by code; None where rows have no keys.
            merge_rows: at least so many rows wait before they are merged.
        """
        self._max_partitions, self._max_rows, self._merge_rows = max_partitions, max_rows, merge_rows
        self._ranks = ranks
        self._parts: list[Columns] = []
        self._kept = self.size = 0
        self.reach = Reach(max_partitions)

    def add(self, part: Columns) -> None:
        """Take rows in."""
        self._parts.append(part)
        self.size += len(part.unit)
        if self.size - self._kept >= max(self._merge_rows, self._kept):
            self.merge()

    def recode(self, codes_of: Callable[[UInt64s], UInt64s]) -> None:
        """Give every row's unit another code."""
        self._parts = [replace(part, unit=codes_of(part.unit)) for part in self._parts]
        self.reach.forget()
        self._kept = 0

    def recode_keys(self, codes_of: Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]]) -> None:
        """Give every row's key another code; the order of rows does not hang on it."""
        self._parts = [part if part.key is None else replace(part, key=codes_of(part.key)) for part in self._parts]

    def columns(self) -> Columns | None:
        """What is kept, a unit's rows together; None if nothing is."""
        self.merge()
        return self._parts[0] if self._parts else None

    def merge(self) -> None:
        """Sort, add up, truncate."""
        if self.size == self._kept:
            return
        rows = joined(self._parts)
        self._parts = []
        order = self._order(rows)
        unit = rows.unit[order]
        first = starts(unit) | starts(rows.place[order]) | starts(rows.cell[order])
        if rows.key is not None:
            first |= starts(rows.key[order])
        begins = np.flatnonzero(first)
        stays = first_of(unit[begins], self._max_partitions)
        self.reach.learn(unit[begins], rows.place[order[begins]], stays)
        keep = np.flatnonzero(within(np.cumsum(first), first, stays, max_rows=self._max_rows))
        totals = {name: _whole(total[order], begins)[keep] for name, total in rows.totals.items()}
        self._parts = [replace(rows.take(order[keep]), totals=totals, first=first[keep])]
        self._kept = self.size = len(keep)

    def _order(self, rows: Columns) -> Index:
        """Sort by unit, place, text of the key, cell, tail."""
        order: Index = np.argsort(rows.tail[-1]) if rows.tail else np.arange(len(rows.unit))
        for word in rows.tail[-2::-1]:
            order = order[np.argsort(word[order], kind="stable")]
        bits, place_bits = (max(1, int(column.max())).bit_length() for column in (rows.unit, rows.place))
        index_bits = len(order).bit_length()
        if bits + place_bits + index_bits > _WORD_BITS:
            order = order[np.lexsort((rows.place[order], rows.unit[order]))]
        else:  # one bare sort of unit, place and index costs an eighth of an argsort
            word = ((rows.unit << np.uint64(place_bits)) | rows.place)[order] << np.uint64(index_bits)
            word |= np.arange(len(order), dtype=np.uint64)
            word.sort()
            word &= np.uint64((1 << index_bits) - 1)
            order = order[word.view(np.intp)]
        return order if rows.key is None else self._untied(rows, rows.key, order)

    def _untied(self, rows: Columns, key: npt.NDArray[np.int32], order: Index) -> Index:
        """Where keys or cells of a unit share a place, which is rare: by text, then cell, then as they stand."""
        begins = starts(rows.unit[order]) | starts(rows.place[order])
        mixed = (starts(key[order]) | starts(rows.cell[order])) & ~begins
        if not mixed.any():
            return order
        run = np.cumsum(begins)
        shared = np.zeros(run[-1] + 1, np.bool_)
        shared[run[mixed]] = True
        at = np.flatnonzero(shared[run])
        assert self._ranks is not None, "rows have keys"
        tied = order[at]
        order[at] = tied[np.lexsort((rows.cell[tied], self._ranks()[key[tied]], run[at]))]
        return order


def _whole(total: Int64s, begins: Index) -> Int64s:
    """Each group's sum on its first row, 0 on the others."""
    whole = np.zeros_like(total)
    whole[begins] = np.add.reduceat(total, begins)
    return whole


def joined(parts: Sequence[Columns]) -> Columns:
    """The rows of all parts."""
    return Columns(
        unit=np.concatenate([part.unit for part in parts]),
        place=np.concatenate([part.place for part in parts]),
        cell=np.concatenate([part.cell for part in parts]),
        key=None if (key := [part.key for part in parts if part.key is not None]) == [] else np.concatenate(key),
        tail=[np.concatenate(words) for words in zip(*(part.tail for part in parts), strict=True)],
        totals={name: np.concatenate([part.totals[name] for part in parts]) for name in parts[0].totals},
    )
