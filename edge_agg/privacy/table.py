"""A hash table from keys to dense codes, and from codes to keys, a whole array of keys at a time.

Place: under `codes`.
Invariants: a code stands for one whole key, as long as the table lives; a key that is in the table is always found.
Ids that share a whole key share its code here, so whoever asks compares ids.

Open addressing, in steps of 1, 2, 3 .. slots, which come to all of them; never more than half full. A slot holds a
code; its number comes from the lower bits of the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_agg.privacy.ids import Grown

if TYPE_CHECKING:
    import numpy.typing as npt

    Index = npt.NDArray[np.intp]
    UInt32s = npt.NDArray[np.uint32]
    UInt64s = npt.NDArray[np.uint64]

ABSENT = np.uint64(0xFFFFFFFF)
"""The code of what is not there."""
_EMPTY = np.uint32(ABSENT)
"""It, in a slot."""
_LEAST_SLOTS = 1 << 12
_ROOM = 2
"""Slots there are, at least, for each code."""
_GROWTH = 2
"""Slots there are, at least, for each code after the table has grown; up to twice as many."""
_BLOCK_SLOTS = 1 << 16


class Table:
    """Codes by key, and keys by code."""

    def __init__(self) -> None:
        """Begin without keys."""
        self._slots = np.full(_LEAST_SLOTS, _EMPTY)
        self._used = 0
        self._keys = Grown(np.uint64)

    def __len__(self) -> int:
        return self._keys.size

    @property
    def keys(self) -> UInt64s:
        """The key of each code so far, uint64[n]."""
        keys: UInt64s = self._keys.values
        return keys

    def look_up(self, keys: UInt64s, *, add: bool) -> tuple[UInt64s, Index]:
        """Find the codes of some keys.

        Args:
            keys: what is asked for, uint64[n].
            add: whether keys that are absent get the next codes.

        Returns:
            Each key's code, or ABSENT, uint64[n]; and one row for each code that was given out, in their order.
        """
        codes, slots = self._probe(keys)
        absent = np.flatnonzero(codes == ABSENT) if add else np.empty(0, np.intp)
        new = [np.empty(0, np.intp)]
        if len(absent) and (self._used + len(absent)) * _ROOM > len(self._slots):
            self._grow(self._used + len(absent))
            slots[absent] = self._probe(keys.take(absent))[1]
        while len(absent):
            at, rows = slots.take(absent), absent.astype(np.uint32)
            self._slots[at] = rows  # of rows that want one slot, the last gets it
            winners = self._slots.take(at)
            won = np.flatnonzero(winners == rows)
            new.append(absent.take(won))
            self._slots[at.take(won)] = np.arange(len(self), len(self) + len(won), dtype=np.uint32)
            self._keys.extend(keys.take(new[-1]))
            codes[absent] = self._slots.take(at)
            rest = np.compress(keys.take(winners) != keys.take(absent), absent)  # another key got the slot
            codes[rest], slots[rest] = self._probe(keys.take(rest))
            absent = np.compress(codes.take(rest) == ABSENT, rest)
        rows_of_new = np.concatenate(new)
        self._used += len(rows_of_new)
        return codes, rows_of_new

    def add_namesake(self, key: UInt64s) -> int:
        """Give out a code for another id of a key that has one, uint64[1]: no look-up finds it."""
        self._keys.extend(key)
        return len(self) - 1

    def _probe(self, keys: UInt64s) -> tuple[UInt64s, Index]:
        """Each key's code (or ABSENT), and the slot where it stands or would."""
        last = len(self._slots) - 1
        slots: Index = (keys & np.uint64(last)).view(np.intp)
        codes = self._slots.take(slots).astype(np.uint64)
        other = np.flatnonzero(self._key_of(codes) != keys)
        turn = 0
        while len(other := np.compress(codes.take(other) != ABSENT, other)):
            turn += 1
            at = (slots.take(other) + turn) & last
            there = self._slots.take(at).astype(np.uint64)
            slots[other], codes[other] = at, there
            other = np.compress(self._key_of(there) != keys.take(other), other)
        return codes, slots

    def _key_of(self, codes: UInt64s) -> UInt64s:
        """The keys of some codes; any key for an empty slot, whose code says what it is."""
        if not len(self):
            return np.zeros(len(codes), np.uint64)
        keys: UInt64s = self.keys.take(codes.view(np.intp), mode="clip")
        return keys

    def _grow(self, least: int) -> None:
        """Lay a larger table out, a block of the old one at a time."""
        old = self._slots
        self._slots = np.full(1 << (_GROWTH * least).bit_length(), _EMPTY)
        for start in range(0, len(old), _BLOCK_SLOTS):
            block = old[start : start + _BLOCK_SLOTS]
            self._lay(np.compress(block != _EMPTY, block))

    def _lay(self, codes: UInt32s) -> None:
        """Put codes in, of which none is there."""
        last = len(self._slots) - 1
        slots: Index = (self.keys.take(codes) & np.uint64(last)).view(np.intp)
        waiting, turn = np.arange(len(codes)), 0
        while len(waiting):
            turn += 1
            at = slots.take(waiting)
            code = codes.take(waiting)
            free = np.flatnonzero(self._slots.take(at) == _EMPTY)
            self._slots[at.take(free)] = code.take(free)
            waiting = np.compress(self._slots.take(at) != code, waiting)
            slots[waiting] = (slots.take(waiting) + turn) & last
