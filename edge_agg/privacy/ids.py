"""Ids by their codes, as a window holds them: integers, or texts.

Place: under `codes`.
Invariants: an id is held whole, and once; a window may hold more text than the 2 GiB that one string array can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

if TYPE_CHECKING:
    import numpy.typing as npt

    Bools = npt.NDArray[np.bool_]
    Index = npt.NDArray[np.intp]
    Int64s = npt.NDArray[np.int64]
    UInt64s = npt.NDArray[np.uint64]

_INLINE_BYTES = 12
"""Arrow's string view holds so many bytes itself; a longer text lies in a buffer that the view names."""
_MOST_BYTES = 1 << 31
"""A view does not reach beyond."""


class Grown:
    """An array that grows at its end."""

    def __init__(self, dtype: type[np.generic], columns: tuple[int, ...] = ()) -> None:
        """Begin without rows."""
        self._room = np.empty((1024, *columns), dtype)
        self.size = 0

    @property
    def values(self) -> npt.NDArray[Any]:
        """What it holds."""
        return self._room[: self.size]

    def extend(self, more: npt.NDArray[Any]) -> None:
        """Append rows."""
        size = self.size + len(more)
        if size > len(self._room):
            room = np.empty((max(size, 2 * len(self._room)), *self._room.shape[1:]), self._room.dtype)
            room[: self.size] = self.values
            self._room = room
        self._room[self.size : size] = more
        self.size = size


class Integers:
    """Integers by code."""

    def __init__(self) -> None:
        """Begin without any."""
        self._values = Grown(np.int64)

    @property
    def size(self) -> int:
        """How many there are."""
        return self._values.size

    def extend(self, ids: pa.Array, rows: Index) -> None:
        """Append the ids of some rows."""
        self._values.extend(integers(ids)[rows])

    def differ(self, codes: UInt64s, ids: Int64s) -> Bools:
        """Where the id of a code is not the one beside it."""
        differ: Bools = self._values.values.take(codes.view(np.intp)) != ids
        return differ

    def take(self, codes: UInt64s) -> pa.Array:
        """The ids of some codes, int64."""
        return int64s(self._values.values.take(codes.view(np.intp)))


class Texts:
    """Texts by code: a string view array that grows at its end, with the buffers that the longer ones lie in."""

    def __init__(self) -> None:
        """Begin without any."""
        self._views = Grown(np.uint32, (4,))  # length; then the text, or its prefix, buffer and offset
        self._buffers: list[pa.Buffer] = []
        self._series = pl.Series(dtype=pl.String)

    @property
    def size(self) -> int:
        """How many there are."""
        return self._views.size

    def extend(self, ids: pa.Array, rows: Index) -> None:
        """Append the ids of some rows."""
        array = _views(ids.take(int64s(rows)))  # compact: it holds no more text than its own
        _, views, *buffers = array.buffers()
        more = np.frombuffer(views, np.uint32).reshape(-1, 4)[array.offset : array.offset + len(array)].copy()
        long = more[:, 0] > _INLINE_BYTES
        if long.any():
            more[long, 2] += np.uint32(len(self._buffers))
            self._buffers += buffers
        self._views.extend(more)
        held = [None, pa.py_buffer(self._views.values), *self._buffers]
        self._series = pl.Series(values=pa.Array.from_buffers(pa.string_view(), self._views.size, held))

    def differ(self, codes: UInt64s, ids: pl.Series) -> Bools:
        """Where the id of a code is not the one beside it."""
        differ = self._of(codes) != ids
        return differ.to_numpy() if differ.any() else np.zeros(len(ids), np.bool_)

    def take(self, codes: UInt64s) -> pa.Array:
        """The ids of some codes, large_string."""
        return self._of(codes).to_arrow().cast(pa.large_string())

    def _of(self, codes: UInt64s) -> pl.Series:
        return self._series[pl.Series(codes.astype(np.uint32))]


def int64s(values: Int64s) -> pa.Array:
    """Integers as an Arrow array, int64, without a copy (and without what `pa.array` looks for, masks above all)."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def integers(ids: pa.Array) -> Int64s:
    """Integer ids as an array, int64[n]."""
    values: Int64s = ids.cast(pa.int64()).to_numpy()
    return values


def texts(ids: pa.Array) -> pl.Series:
    """Textual ids as a series."""
    return pl.Series(values=_views(ids))


def _views(ids: pa.Array) -> pa.StringViewArray:
    if pa.types.is_large_string(ids.type) and (data := ids.buffers()[2]) is not None and data.size >= _MOST_BYTES:
        ids = ids.take(pa.array(np.arange(len(ids))))
    return ids.cast(pa.string_view())
