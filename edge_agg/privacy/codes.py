"""Dense codes: a small number for each distinct id, and the way back.

Place: under bounding; ids of units, and texts of discovered keys, become numbers that can be packed and sorted.
Invariants: equal codes, equal ids, and never otherwise: a key only finds where to look, and the id behind each code
that was found is compared with the id that was asked for. A code's value depends on the order of arrival, so nothing
that is kept may hang on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from edge_agg.privacy.ids import Asked, Integers, Texts, integers
from edge_agg.privacy.table import ABSENT, Table

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_agg.privacy.permutation import Keying

    UInt64s = npt.NDArray[np.uint64]


_MOST_OF_DICTIONARY = 4
"""Texts that a dictionary may have for each row of the first array that comes with it."""


class Codes:
    """The codes of all ids so far: texts, or integers, never both."""

    def __init__(self, keying: Keying) -> None:
        """Begin without ids."""
        self._keying = keying
        self._table = Table()
        self._integers, self._texts = Integers(), Texts()
        self._namesakes: dict[str | int, int] = {}
        """Codes of ids whose whole keys are earlier ids' too."""
        self._last: tuple[object, pa.Array, UInt64s, UInt64s] | None = None
        """The last dictionary: where it lies, itself (so that it stays there), and its codes and keys."""

    def __len__(self) -> int:
        return len(self._table)

    def encode(self, ids: pa.Array) -> tuple[UInt64s, UInt64s]:
        """The code and the key of each id, uint64[n] each; ids that are new get codes."""
        return self._look_up(ids, add=True)

    def find(self, ids: pa.Array) -> UInt64s:
        """The code of each id, or ABSENT."""
        return self._look_up(ids, add=False)[0]

    def keys(self, codes: UInt64s) -> UInt64s:
        """The keys of some codes."""
        keys: UInt64s = self._table.keys.take(codes.view(np.intp))
        return keys

    def ids(self, codes: UInt64s) -> pa.Array:
        """The ids of some codes: int64, or large_string."""
        return self._texts.take(codes) if self._texts.size else self._integers.take(codes)

    def _look_up(self, ids: pa.Array, *, add: bool) -> tuple[UInt64s, UInt64s]:
        if pa.types.is_dictionary(ids.type):
            if (known := self._known(ids, add=add)) is not None:
                at = ids.indices.to_numpy()
                return known[0].take(at), known[1].take(at)
            ids = ids.dictionary_decode()
        if pa.types.is_integer(ids.type):
            numbers = integers(ids)
            keys = self._keying.of_integers(numbers.view(np.uint64))
            return self._matched(ids, numbers, keys, self._integers, add=add)
        asked = Asked(ids)
        return self._matched(ids, asked, self._keying.of_texts(asked.series), self._texts, add=add)

    def _known(self, ids: pa.DictionaryArray, *, add: bool) -> tuple[UInt64s, UInt64s] | None:
        """Code and key of each text of a dictionary; None if that is more work than the rows are.

        Arrays that follow each other often share one: memory that is still held, and never written to, holds the same
        texts as before.
        """
        texts = ids.dictionary
        place = _place_of(texts)
        if self._last is None or self._last[0] != place:
            if texts.null_count or len(texts) > _MOST_OF_DICTIONARY * len(ids):
                return None
            codes, keys = self._look_up(texts, add=add)
            if not add:
                return codes, keys
            self._last = place, texts, codes, keys
        return self._last[2], self._last[3]

    def _matched(
        self, ids: pa.Array, asked: Any, keys: UInt64s, held: Integers | Texts, *, add: bool
    ) -> tuple[UInt64s, UInt64s]:
        codes, new = self._table.look_up(keys, add=add)
        if len(new):
            held.extend(asked, new)
        if not held.size:  # nothing yet, or ids of the other kind
            return np.full(len(codes), ABSENT), keys
        differ = held.differ(codes if add else np.minimum(codes, np.uint64(held.size - 1)), asked)
        for row in np.flatnonzero(differ if add else differ & (codes != ABSENT)).tolist():
            codes[row] = self._settled(ids, asked, row, int(keys[row]), held, add=add)
        return codes, keys

    def _settled(self, ids: pa.Array, asked: Any, row: int, key: int, held: Integers | Texts, *, add: bool) -> int:
        """The code of an id whose key led to another's: their keys are equal in one half, or whole."""
        code, new = self._table.settle(key, add=add)
        one = ids[row].as_py()
        if not new:
            if code == ABSENT or self.ids(np.array([code], np.uint64))[0].as_py() == one:
                return code
            if one in self._namesakes or not add:
                return self._namesakes.get(one, int(ABSENT))
            code = self._namesakes[one] = self._table.add_namesake(key)
        held.extend(asked, np.array([row]))
        return code


def _place_of(array: pa.Array) -> object:
    """Where an array lies: of two that are both held, equal exactly if they are the same stretch of the same memory."""
    return len(array), array.offset, *(0 if held is None else held.address for held in array.buffers())
