"""How far each unit's kept cells reach, so that a row that could never be kept is dropped when it comes.

Place: beside the state of a window, which tells it after each merge and asks it before each batch.
Invariants: a row is dropped here only if the next merge would drop it: its unit already keeps `max_partitions` cells,
and the row's cell stands behind the last of them. More rows only bring that last one nearer. So what is kept in the end
is the same; only work is saved, which is most of it where few units send most rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    Index = npt.NDArray[np.intp]
    UInt32s = npt.NDArray[np.uint32]
    UInt64s = npt.NDArray[np.uint64]

MOST_UNITS = 1 << 22
"""Of units with larger codes every row is taken: 16 MiB are enough."""
_LEAST = 1 << 12
_ENDLESS = np.uint32(0xFFFFFFFF)


class Reach:
    """The last place that each unit may keep."""

    def __init__(self, max_partitions: int) -> None:
        """Begin with units that may keep anything."""
        self._max_partitions = max_partitions
        self._last: UInt32s | None = None
        """By unit code; the last element stands for all codes beyond."""

    def forget(self) -> None:
        """Let every unit keep anything again, as codes have changed."""
        self._last = None

    def learn(self, unit: npt.NDArray[np.integer], place: npt.NDArray[np.integer], stays: Bools) -> None:
        """Look at groups of whole units, sorted by unit and place.

        Args:
            unit: each group's unit.
            place: each group's place.
            stays: whether it is among its unit's first `max_partitions`.
        """
        before = self._max_partitions - 1
        full = stays[before:] & (unit[before:] == unit[: max(0, len(unit) - before)])
        at = np.flatnonzero(full)
        if not len(at):
            return
        at += before
        codes = unit.take(at)
        last = self._room(min(int(codes[-1]) + 1, MOST_UNITS))
        known = codes < len(last) - 1
        last[np.compress(known, codes)] = np.compress(known, place.take(at))

    def within(self, unit: UInt64s, place: UInt32s) -> Index | None:
        """Which of some rows may be kept; None if all of them may."""
        if self._last is None:
            return None
        keep = place <= self._last.take(unit.view(np.intp), mode="clip")
        return None if keep.all() else np.flatnonzero(keep)

    def _room(self, units: int) -> UInt32s:
        held = self._last
        if held is None or len(held) <= units:
            grown = np.full(min(max(_LEAST, 2 * units), MOST_UNITS) + 1, _ENDLESS)
            if held is not None:
                grown[: len(held)] = held
            self._last = held = grown
        return held
