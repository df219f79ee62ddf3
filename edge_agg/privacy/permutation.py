"""Keyed mixing: a unit's secret key, and the permutation of the cells that comes from it.

Place: under bounding; a unit's key and a cell become the cell's place in the order in which that unit keeps cells.
Invariants: pure; the same salt gives the same keys; a permutation is a bijection, so two cells of one unit never share
a place; a key depends on one unit's id and the salt alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import polars as pl

    UInt64s = npt.NDArray[np.uint64]
    UInt32s = npt.NDArray[np.uint32]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 4
_KEY_STEP = np.uint32(13)
_ODD = 0x9E3779B1
_LEAST_BITS = 12
"""On fewer bits four rounds are too few: which pairs of cells are kept together would be visibly uneven."""


class Keying:
    """Keys of ids under one salt."""

    def __init__(self, salt: bytes) -> None:
        """Derive all that is secret from the salt.

        Raises:
            ValueError: the salt is too short to be one, or too long.
        """
        if not 16 <= len(salt) <= 64:
            raise ValueError("a salt has 16 to 64 bytes")
        digest = hashlib.blake2b(digest_size=16, key=salt).digest()
        self._seed, self._key = int.from_bytes(digest[:8], "little"), np.uint64(int.from_bytes(digest[8:], "little"))

    def of_integers(self, ids: UInt64s) -> UInt64s:
        """A key for each integer id: a bijection, so that equal keys are equal ids."""
        return mix(ids ^ self._key)

    def of_texts(self, ids: pl.Series) -> UInt64s:
        """A key for each text: it scatters ids, it never tells them apart."""
        hashed: UInt64s = ids.to_frame().hash_rows(self._seed).to_numpy()
        return mix(hashed ^ self._key)


def mix(x: UInt64s) -> UInt64s:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection on 64 bits."""
    mixed, shifted = x + _GAMMA, np.empty_like(x)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(mixed, np.uint64(shift), out=shifted)
        mixed ^= shifted
        mixed *= np.uint64(factor)
    np.right_shift(mixed, np.uint64(31), out=shifted)
    mixed ^= shifted
    return mixed


class Permutation:
    """A bijection on the codes of at least `n_cells` cells for each key.

    Rounds of key, odd multiply, xor-shift; each step is invertible modulo 2**bits.
    """

    def __init__(self, n_cells: int) -> None:
        """Fix the width."""
        self.bits = max(_LEAST_BITS, (n_cells - 1).bit_length())
        self._half = np.uint32((self.bits + 1) // 2)
        self._mask = np.uint32((1 << self.bits) - 1)
        self._factor, self._inverse = np.uint32(_ODD), np.uint32(pow(_ODD, -1, 1 << 32))

    def place(self, cell: npt.NDArray[np.integer], key: UInt64s) -> UInt32s:
        """Each cell's place, below 2**bits, under its unit's key."""
        place = cell.astype(np.uint32)
        for round_key in _round_keys(key):
            place ^= round_key
            place *= self._factor
            place &= self._mask
            place ^= place >> self._half
        return place

    def cell(self, place: UInt32s, key: UInt64s) -> UInt32s:
        """The cell that has a place."""
        cell = place.copy()
        for round_key in reversed(_round_keys(key)):
            cell ^= cell >> self._half
            cell *= self._inverse
            cell ^= round_key
            cell &= self._mask
        return cell


def _round_keys(key: UInt64s) -> list[UInt32s]:
    """A key for each round: its lower bits count, and no two rounds share more than a few of them."""
    low, high = key.astype(np.uint32), (key >> np.uint64(32)).astype(np.uint32)
    return [low, low >> _KEY_STEP, high, high >> _KEY_STEP][:_ROUNDS]
