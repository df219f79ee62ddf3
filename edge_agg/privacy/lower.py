"""Lower case that is the same on every machine and stays so.

Place: under `derive.py`.
Invariants: each character by itself becomes one character; which one does not depend on the versions of what is
installed.

The libraries at hand disagree with each other and with their next versions: every Unicode adds letters, and some take
the characters around a letter into account. So only letters of Unicode 3.2 are changed: to their lower case where that
is one character, as Unicode's stability policy fixes it for ever ("case pair stability", since 5.0). CPython carries
the list of what Unicode 3.2 had, frozen. This is Latin, Greek, Cyrillic, Armenian, Georgian and Deseret; the capital
sigma always becomes the small one of the middle of a word, and the dotted capital I, whose lower case is two
characters, stays.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING
from unicodedata import ucd_3_2_0

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    import numpy.typing as npt

    Points = npt.NDArray[np.uint32]

_END = 0x10428
"""Behind the last capital of Unicode 3.2."""
_LONGER = (0x80, 0x800, 0x10000)
"""Where UTF-8 takes one byte more."""


def lower(text: pa.StringArray) -> pa.StringArray:
    """Each text in lower case; a null stays null."""
    plain = pc.ascii_lower(text)
    wide = pc.fill_null(pc.invert(pc.string_is_ascii(text)), False)
    if not pc.any(wide).as_py():
        return plain
    return pc.replace_with_mask(plain, wide, _lower_wide(text.filter(wide)))


def _lower_wide(text: pa.StringArray) -> pa.StringArray:
    """The same of texts without nulls that need not be ASCII: all as one array of code points."""
    _, held, data = text.buffers()
    ends = np.frombuffer(held, np.int32)[text.offset : text.offset + len(text) + 1]
    points = np.frombuffer(data[ends[0] : ends[-1]].to_pybytes().decode().encode("utf-32-le"), np.uint32)
    small = table()
    inside = points.max(initial=0) < _END
    lowered = small[points] if inside else np.where(points < _END, small[np.minimum(points, _END - 1)], points)
    offsets = ends - ends[0]
    changed = np.flatnonzero(points != lowered)
    grown = _widths(lowered[changed]) - _widths(points[changed])
    if grown.any():  # a few letters only
        begins = np.concatenate([[0], np.cumsum(pc.utf8_length(text).to_numpy())])
        before = np.concatenate([[0], np.cumsum(grown)])
        offsets = offsets + before[np.searchsorted(changed, begins)].astype(np.int32)
    encoded = lowered.tobytes().decode("utf-32-le").encode()
    return pa.StringArray.from_buffers(len(text), pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(encoded))


def _widths(points: Points) -> npt.NDArray[np.int64]:
    """Bytes of each character in UTF-8."""
    return 1 + sum(((points >= first).astype(np.int64) for first in _LONGER), np.zeros(len(points), np.int64))


@cache
def table() -> Points:
    """What becomes of each code point below `_END`, uint32[_END]."""
    small = np.arange(_END, dtype=np.uint32)
    for point in range(_END):
        letter = chr(point)
        lowered = letter.lower()
        if lowered != letter and len(lowered) == 1 and ucd_3_2_0.category(letter) != "Cn":
            small[point] = ord(lowered)
    return small
