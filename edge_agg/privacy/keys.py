"""The discovered keys of one window: keys become codes, codes keys again; and where a key stands among a unit's.

Place: under bounding, beside `units`, which does the same for ids.
Invariants: equal codes, equal keys, and never otherwise; a key's place hangs on the key, its cell and its unit's key,
never on its code or on what other keys there are.

Where a plan has one public cell, integers below a fixed number are their own codes, and their place comes from a
permutation: no two of them tie, and a place says which key it is, so that a row needs no more room than one of a public
cell. Other keys get places by hash; where two of a unit tie, whoever sorts decides by `ranks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.privacy.ids import integers
from edge_agg.privacy.permutation import mix
from edge_agg.privacy.units import Units

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_agg.privacy.permutation import Keying, Permutation

    Index = npt.NDArray[np.intp]
    Int32s = npt.NDArray[np.int32]
    Int64s = npt.NDArray[np.int64]
    UInt64s = npt.NDArray[np.uint64]

_PLACE_BITS = 20
"""Width of a place by hash alone."""
_ODD = np.uint64(0xD6E8FEB86659FD93)
_WORD_BITS = 64


class Keys:
    """The keys seen in one window."""

    def __init__(self, keying: Keying, permutation: Permutation | None) -> None:
        """Begin without keys.

        Args:
            keying: the window's.
            permutation: of integers that may be their own codes; None where the plan has more cells than one.
        """
        self._permutation = permutation
        self._below = np.uint64(0 if permutation is None else 1 << permutation.bits)
        self._codes = Units(keying, int(self._below))

    @property
    def bound(self) -> int:
        """All codes so far lie below it."""
        return self._codes.bound

    def outgrow(self, keys: pa.Array) -> bool:
        """Whether these keys ended the time in which keys are their own codes: what is held has to be recoded."""
        return self._codes.outgrow(keys)

    def recoded(self, codes: Int32s) -> Int32s:
        """The codes that take the place of what were its own codes."""
        return self._codes.recoded(codes.astype(np.uint64)).astype(np.int32)

    def encode(self, keys: pa.Array) -> Int32s:
        """The code of each key."""
        return self._codes.codes(keys).astype(np.int32)

    def place(self, keys: pa.Array, cell: npt.NDArray[np.uint32], unit_key: UInt64s) -> UInt64s:
        """Where each key and cell stand among those of a unit."""
        key = self._codes.encode(keys)[1]
        if self._permutation is None or not pa.types.is_integer(keys.type):
            return place_by_hash(key, cell, unit_key, _PLACE_BITS)
        place = place_by_hash(key, cell, unit_key, self._permutation.bits)
        values = integers(keys).view(np.uint64)
        small = np.flatnonzero(values < self._below)
        place[small] = self._permutation.place(values[small].view(np.int64), unit_key[small])
        return place

    def ranks(self) -> Int64s:
        """The rank of each key, by code, among all so far: of texts by their bytes, of integers by number."""
        import polars as pl

        held = pl.Series(values=self._codes.ids(np.arange(self.bound, dtype=np.uint64)))
        ranks = np.empty(len(held), np.int64)
        ranks[held.arg_sort().to_numpy()] = np.arange(len(held))
        return ranks

    def sorted(self, codes: Index) -> tuple[list[str], Index]:
        """The texts of some codes, ascending, and those codes in the same order."""
        texts = self._codes.ids(codes.astype(np.uint64)).cast(pa.string())
        order = pc.sort_indices(texts)  # by bytes, which in UTF-8 is by code points, as Python compares
        return texts.take(order).to_pylist(), codes.take(order.to_numpy())


def place_by_hash(key: UInt64s, cell: npt.NDArray[np.uint32], unit_key: UInt64s, bits: int) -> UInt64s:
    """A place, below 2**bits, that others may share."""
    return mix((unit_key ^ key) + cell * _ODD) >> np.uint64(_WORD_BITS - bits)
