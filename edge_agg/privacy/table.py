"""A hash table from keys to dense codes, and from codes to keys, a whole array of keys at a time.

Place: under `codes`.
Invariants: a code stands for one whole key, as long as the table lives. `look_up` finds the code of a key that is
there, or of another that has its upper half and a slot on its way: whoever asks compares ids, and has `settle` look
again, by the whole key, where they differ. Ids that share a whole key share its code here.

Open addressing, in steps of 1, 2, 3 .. slots, which come to all of them; never more than half full. A slot is one word:
the upper half of the key, and the code; its number comes from the lower half of the key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_agg.privacy.ids import Grown

if TYPE_CHECKING:
    import numpy.typing as npt

    Index = npt.NDArray[np.intp]
    UInt64s = npt.NDArray[np.uint64]

ABSENT = np.uint64(0xFFFFFFFF)
"""The code of what is not there, and of an empty slot."""
_LEAST_SLOTS = 1 << 12
_ROOM = 2
"""Slots there are, at least, for each code."""
_GROWTH = 2
"""Slots there are, at least, for each code after the table has grown; up to twice as many."""
_BLOCK_SLOTS = 1 << 16
_CODE = np.uint64(0xFFFFFFFF)
_UPPER = ~_CODE


class Table:
    """Codes by key, and keys by code."""

    def __init__(self) -> None:
        """Begin without keys."""
        self._slots = np.full(_LEAST_SLOTS, ABSENT)
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
        """Find the codes of some keys, or of others that are half equal.

        Args:
            keys: what is asked for, uint64[n].
            add: whether keys of which no half is found get the next codes.

        Returns:
            Each key's code, or ABSENT, uint64[n]; and one row for each code that was given out, in their order.
        """
        codes, slots = self._probe(keys)
        absent = np.flatnonzero(codes == ABSENT) if add else np.empty(0, np.intp)
        if not len(absent):
            return codes, absent
        if (self._used + len(absent)) * _ROOM > len(self._slots):
            self._grow(self._used + len(absent))
            codes[absent], slots[absent] = self._probe(keys.take(absent))
            absent = np.compress(codes.take(absent) == ABSENT, absent)  # in other slots, others may be half equal
        new = [np.empty(0, np.intp)]
        while len(absent):
            at, key = slots.take(absent), keys.take(absent)
            upper = key & _UPPER
            self._slots[at] = upper | absent.view(np.uint64)  # of rows that want one slot, the last gets it
            won = np.flatnonzero(self._slots.take(at) & _CODE == absent.view(np.uint64))
            given = np.arange(len(self), len(self) + len(won), dtype=np.uint64)
            self._slots[at.take(won)] = upper.take(won) | given
            new.append(absent.take(won))
            self._keys.extend(key.take(won))
            there = self._slots.take(at)
            codes[absent] = there & _CODE
            there ^= key
            rest = np.compress(there > _CODE, absent)  # another key got the slot
            codes[rest], slots[rest] = self._probe(keys.take(rest))
            absent = np.compress(codes.take(rest) == ABSENT, rest)
        rows_of_new = np.concatenate(new)
        self._used += len(rows_of_new)
        return codes, rows_of_new

    def settle(self, key: int, *, add: bool) -> tuple[int, bool]:
        """Find the code of one key by the whole of it.

        Args:
            key: what is asked for.
            add: whether it gets the next code where it is absent.

        Returns:
            Its code, or ABSENT; and whether the code was given out now.
        """
        if add and (self._used + 1) * _ROOM > len(self._slots):
            self._grow(self._used + 1)
        last, turn = len(self._slots) - 1, 0
        slot = key & last
        while (word := self._slots[slot]) != ABSENT:
            code = int(word & _CODE)
            if self._keys.values[code] == key:
                return code, False
            turn += 1
            slot = (slot + turn) & last
        if not add:
            return int(ABSENT), False
        code = self._append(key)
        self._slots[slot] = (np.uint64(key) & _UPPER) | np.uint64(code)
        self._used += 1
        return code, True

    def add_namesake(self, key: int) -> int:
        """Give out a code for another id of a key that has one: no look-up finds it."""
        return self._append(key)

    def _append(self, key: int) -> int:
        self._keys.extend(np.array([key], np.uint64))
        return len(self) - 1

    def _probe(self, keys: UInt64s) -> tuple[UInt64s, Index]:
        """Each key's code, or a half equal one's, or ABSENT; and the slot where it stands or would."""
        last = len(self._slots) - 1
        slots: Index = (keys & np.uint64(last)).view(np.intp)
        found = self._slots.take(slots)
        codes = found & _CODE
        found ^= keys
        other = np.flatnonzero(found > _CODE)
        turn = 0
        while len(other := np.compress(codes.take(other) != ABSENT, other)):
            turn += 1
            at = (slots.take(other) + turn) & last
            there = self._slots.take(at)
            slots[other], codes[other] = at, there & _CODE
            there ^= keys.take(other)
            other = np.compress(there > _CODE, other)
        return codes, slots

    def _grow(self, least: int) -> None:
        """Lay a larger table out, a block of the old one at a time."""
        old = self._slots
        self._slots = np.full(1 << (_GROWTH * least).bit_length(), ABSENT)
        for start in range(0, len(old), _BLOCK_SLOTS):
            block = old[start : start + _BLOCK_SLOTS]
            codes = np.compress(block != ABSENT, block) & _CODE
            self._lay(codes, self.keys.take(codes.view(np.intp)))

    def _lay(self, codes: UInt64s, keys: UInt64s) -> None:
        """Put codes in, of which none is there."""
        last = len(self._slots) - 1
        slots, words = (keys & np.uint64(last)).view(np.intp), (keys & _UPPER) | codes
        waiting, turn = np.arange(len(codes)), 0
        while len(waiting):
            turn += 1
            at = slots.take(waiting)
            word = words.take(waiting)
            free = np.flatnonzero(self._slots.take(at) == ABSENT)
            self._slots[at.take(free)] = word.take(free)
            waiting = np.compress(self._slots.take(at) != word, waiting)
            slots[waiting] = (slots.take(waiting) + turn) & last
