"""A hash table from keys to dense codes, a whole array of keys at a time.

Place: under `codes`.
Invariants: a key that is in the table is always found; a code that is found may be another key's, if both share a
slot's way and the half of the key that is not in the slot's number, so whoever asks compares ids.

Open addressing with linear probing, never more than half full. A slot is one word: the upper half of the key, and the
code; its number comes from the lower half of the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Index = npt.NDArray[np.intp]
    UInt64s = npt.NDArray[np.uint64]

ABSENT = np.uint64(0xFFFFFFFF)
"""The code of what is not there, and of an empty slot."""
_LEAST_SLOTS = 1 << 12
_HALF = np.uint64(32)
_CODE = np.uint64(0xFFFFFFFF)
_UPPER = ~_CODE


class Table:
    """Codes by key."""

    def __init__(self) -> None:
        """Begin without keys."""
        self._slots = np.full(_LEAST_SLOTS, ABSENT)
        self._used = 0

    def look_up(self, keys: UInt64s, known: UInt64s, *, add: bool) -> tuple[UInt64s, Index]:
        """Find the codes of some keys.

        Args:
            keys: what is asked for.
            known: the key of each code so far.
            add: whether keys that are absent get the next codes.

        Returns:
            Each key's code, or ABSENT; and one row for each code that was given out, in their order.
        """
        codes, slots = self._probe(keys)
        absent = np.flatnonzero(codes == ABSENT) if add else np.empty(0, np.intp)
        if not len(absent):
            return codes, absent
        if (self._used + len(absent)) * 2 > len(self._slots):
            self._grow(known, self._used + len(absent))
            slots[absent] = self._probe(keys[absent])[1]
        size, new = len(known), []
        while len(absent):
            at, key = slots[absent], keys[absent]
            rows = absent.view(np.uint64)
            self._slots[at] = (key & _UPPER) | rows  # of rows that want one slot, the last gets it
            won = absent[self._slots[at] & _CODE == rows]
            given = np.arange(size, size + len(won), dtype=np.uint64)
            self._slots[slots[won]] = (keys[won] & _UPPER) | given
            new.append(won)
            size += len(won)
            there = self._slots[at]
            same = (there ^ key) >> _HALF == 0
            codes[absent[same]] = there[same] & _CODE
            rest = absent[~same]
            codes[rest], slots[rest] = self._probe(keys[rest])
            absent = rest[codes[rest] == ABSENT]
        rows_of_new = np.concatenate(new)
        self._used += len(rows_of_new)
        return codes, rows_of_new

    def _probe(self, keys: UInt64s) -> tuple[UInt64s, Index]:
        """Each key's code (or ABSENT), and the slot where it stands or would."""
        last = len(self._slots) - 1
        slots: Index = (keys & np.uint64(last)).view(np.intp)
        found = self._slots.take(slots)
        codes = found & _CODE
        found ^= keys
        found >>= _HALF
        other = np.flatnonzero(found)
        while len(other := other[codes[other] != ABSENT]):
            at = (slots[other] + 1) & last
            there = self._slots[at]
            slots[other], codes[other] = at, there & _CODE
            other = other[(there ^ keys[other]) >> _HALF != 0]
        return codes, slots

    def _grow(self, known: UInt64s, least: int) -> None:
        codes = self._slots[self._slots != ABSENT] & _CODE
        keys = known[codes.view(np.intp)]
        self._slots = np.full(1 << (2 * least).bit_length(), ABSENT)
        slots = keys & np.uint64(len(self._slots) - 1)
        waiting = np.arange(len(codes))
        while len(waiting):
            at = slots[waiting].view(np.intp)
            free = self._slots[at] == ABSENT
            word = (keys[waiting] & _UPPER) | codes[waiting]
            self._slots[at[free]] = word[free]
            waiting = waiting[self._slots[at] != word]
            slots[waiting] = (slots[waiting] + np.uint64(1)) & np.uint64(len(self._slots) - 1)
