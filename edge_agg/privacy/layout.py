"""How what a row has read becomes words: a priority, then the codes of its readings.

Place: under bounding; words are compared as numbers, and so order the rows of a unit in a cell.
Invariants: a layout depends on the plan alone; a priority on the row's own content and its unit's key; rows whose words
are equal are interchangeable. No priority is needed where there are no readings: such rows differ in nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_agg.privacy.permutation import mix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    UInt64s = npt.NDArray[np.uint64]

_WORD_BITS = 64
_LEAST_PRIORITY_BITS, _MOST_PRIORITY_BITS = 12, 24
"""Rows tie in their priorities, and go by their readings, once in 2**bits pairs."""
_WISHED_UNIT_BITS = 24
_LEAST_UNIT_BITS = 12
_ODD = np.uint64(0xD6E8FEB86659FD93)


class Layout:
    """The words of one plan's rows."""

    def __init__(self, readings: Mapping[str, int], place_bits: int) -> None:
        """Lay out.

        Args:
            readings: by name: codes run from 0 to this number.
            place_bits: bits of a cell's place, which one word for all has to hold too.
        """
        widths = {name: size.bit_length() for name, size in readings.items()}
        spare = _WORD_BITS - _WISHED_UNIT_BITS - place_bits - sum(widths.values())
        bits = max(_LEAST_PRIORITY_BITS, min(_MOST_PRIORITY_BITS, spare)) if widths else 0
        self._priority_bits = bits
        self._fields: list[dict[str, tuple[int, int]]] = [{}]
        used = [bits]
        for name, width in widths.items():
            if used[-1] + width > _WORD_BITS:
                self._fields.append({})
                used.append(0)
            self._fields[-1][name] = (used[-1] - (bits if len(used) == 1 else 0), width)
            used[-1] += width
        self._priority_shift = used[0] - bits
        self.bits = used[0]
        """Of the first word; the others take all 64."""
        self.words = len(used) if widths else 0
        self.unit_bits = _WORD_BITS - place_bits - used[0] if len(used) == 1 else 0
        """What is left in one word that holds place and readings too."""
        self.packs = self.unit_bits >= _LEAST_UNIT_BITS

    def encode(self, key: UInt64s, time_us: Int64s, readings: Mapping[str, Int64s]) -> list[UInt64s]:
        """The words of some rows, most significant first; none if the plan has no readings.

        Args:
            key: the key of each row's unit.
            time_us: each row's time, which only feeds its priority.
            readings: each row's codes.
        """
        if not self.words:
            return []
        words = [_packed(fields, readings) for fields in self._fields]
        priority = (key ^ time_us.view(np.uint64)) * _ODD
        for word in words:
            priority ^= word
            priority *= _ODD
        priority = mix(priority)
        priority >>= np.uint64(_WORD_BITS - self._priority_bits)
        priority <<= np.uint64(self._priority_shift)
        words[0] |= priority
        return words

    def decode(self, words: Sequence[UInt64s]) -> dict[str, Int64s]:
        """The readings of some rows."""
        return {
            name: ((word >> np.uint64(shift)) & np.uint64((1 << width) - 1)).view(np.int64)
            for word, fields in zip(words, self._fields, strict=False)
            for name, (shift, width) in fields.items()
        }


def _packed(fields: Mapping[str, tuple[int, int]], readings: Mapping[str, Int64s]) -> UInt64s:
    names = iter(fields.items())
    name, (shift, _) = next(names)
    word: UInt64s = readings[name].astype(np.uint64) << np.uint64(shift)
    for name, (shift, _) in names:
        word |= readings[name].astype(np.uint64) << np.uint64(shift)
    return word
