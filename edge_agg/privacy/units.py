"""The privacy units of one window: ids become codes, and codes ids again.

Place: under bounding, before rows are packed.
Invariants: equal codes, equal ids, and never otherwise. Integers that are small enough are their own codes; once one is
not, all get dense codes, and what is held is recoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from edge_agg.privacy.codes import Codes
from edge_agg.privacy.ids import int64s, integers
from edge_agg.privacy.table import ABSENT

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge_agg.privacy.permutation import Keying

    UInt64s = npt.NDArray[np.uint64]


class Units:
    """The units seen in one window."""

    def __init__(self, keying: Keying, direct_below: int) -> None:
        """Begin without units.

        Args:
            keying: the window's.
            direct_below: non-negative integers below it may be their own codes.
        """
        self._keying = keying
        self._direct_below = np.uint64(direct_below)
        self._codes: Codes | None = None
        self.bound = 0
        """All codes so far lie below it."""

    @property
    def is_dense(self) -> bool:
        """Whether codes are given out one after another, so that `bound` is the number of units."""
        return self._codes is not None

    def outgrow(self, ids: pa.Array) -> bool:
        """Whether these ids ended the time in which integers are their own codes: what is held has to be recoded.

        Ask before they are encoded, at least one.
        """
        if self._codes is not None:
            return False
        if _is_integer(ids) and (most := _unsigned(ids).max()) < self._direct_below:
            self.bound = max(self.bound, int(most) + 1)
            return False
        self._codes = Codes(self._keying)
        return True

    def recoded(self, codes: UInt64s) -> UInt64s:
        """Dense codes for what were its own codes."""
        assert self._codes is not None, "after `outgrow`"
        return self._codes.encode(int64s(codes.view(np.int64)))[0]

    def encode(self, ids: pa.Array) -> tuple[UInt64s, UInt64s]:
        """The code and the key of each id, uint64[n] each."""
        codes, keys = self._coded(ids)
        return codes, self._keying.of_integers(codes) if keys is None else keys

    def codes(self, ids: pa.Array) -> UInt64s:
        """The code of each id, where nobody asks for its key."""
        return self._coded(ids)[0]

    def find(self, ids: pa.Array) -> UInt64s:
        """The codes of those among some ids that have one, ascending."""
        if self._codes is None:
            codes = _unsigned(ids) if _is_integer(ids) else np.empty(0, np.uint64)
            return np.unique(codes[codes < self._direct_below])
        found = self._codes.find(ids)
        return np.unique(found[found != ABSENT])

    def keys(self, codes: UInt64s) -> UInt64s:
        """The keys of some codes."""
        if self._codes is None:
            return self._keying.of_integers(codes)
        return self._codes.keys(codes)

    def ids(self, codes: UInt64s) -> pa.Array:
        """The ids of some codes, int64 or large_string."""
        return int64s(codes.view(np.int64)) if self._codes is None else self._codes.ids(codes)

    def _coded(self, ids: pa.Array) -> tuple[UInt64s, UInt64s | None]:
        """The code of each id; and its key, if that has been found on the way."""
        if self._codes is None:
            return _unsigned(ids), None
        dense, keys = self._codes.encode(ids)
        self.bound = len(self._codes)
        return dense, keys


def _is_integer(ids: pa.Array) -> bool:
    return bool(pa.types.is_integer(ids.type))


def _unsigned(ids: pa.Array) -> UInt64s:
    """Integers as 64 bits; a negative one becomes a large one."""
    return integers(ids).view(np.uint64)
