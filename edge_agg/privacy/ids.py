"""Ids by their codes, as a window holds them: integers, or texts.

Place: under `codes`.
Invariants: an id is held whole, and once; a window may hold more text than the 2 GiB that one string array can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import numpy.typing as npt
    import polars as pl

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

    def extend(self, ids: Int64s, rows: Index) -> None:
        """Append the ids of some rows."""
        self._values.extend(ids.take(rows))

    def differ(self, codes: UInt64s, ids: Int64s) -> Bools:
        """Where the id of a code is not the one beside it."""
        differ: Bools = self._values.values.take(codes.view(np.intp)) != ids
        return differ

    def take(self, codes: UInt64s) -> pa.Array:
        """The ids of some codes, int64."""
        return int64s(self._values.values.take(codes.view(np.intp)))


class Asked:
    """Texts that come, as an array, as a series, and as views."""

    def __init__(self, ids: pa.Array) -> None:
        """Look at texts, string or large_string."""
        import polars as pl

        self.array = ids
        views = _views(ids)
        self.series = pl.Series(values=views)
        self.views = _view_words(views)

    def __len__(self) -> int:
        return len(self.views)


class Texts:
    """Texts by code: a string view array that grows at its end, with the buffers that the longer ones lie in."""

    def __init__(self) -> None:
        """Begin without any."""
        self._views = Grown(np.uint64, (2,))  # length and prefix; then the rest of the text, or its buffer and offset
        self._buffers: list[pa.Buffer] = []
        self._series: pl.Series | None = None

    @property
    def size(self) -> int:
        """How many there are."""
        return self._views.size

    def extend(self, ids: Asked, rows: Index) -> None:
        """Append the ids of some rows."""
        more = ids.views.take(rows, axis=0)
        long = _are_long(more)
        if len(long):
            array = _views(ids.array.take(int64s(rows.take(long))))  # compact: it holds no more text than its own
            views = _view_words(array).copy()
            views.view(np.uint32)[:, 2] += np.uint32(len(self._buffers))
            more[long] = views
            self._buffers += array.buffers()[2:]
        self._views.extend(more)
        self._series = None

    def differ(self, codes: UInt64s, ids: Asked) -> Bools:
        """Where the id of a code is not the one beside it.

        A view tells short texts apart, and long ones whose lengths or prefixes differ; the others are compared whole.
        """
        held = self._views.values.take(codes.view(np.intp), axis=0)
        long = _are_long(ids.views)
        differ: Bools = held[:, 0] != ids.views[:, 0]
        beyond = held[:, 1] != ids.views[:, 1]
        if len(long):
            beyond[long] = (self._of(codes.take(long)) != _gathered(ids.series, long)).to_numpy()
        differ |= beyond
        return differ

    def take(self, codes: UInt64s) -> pa.Array:
        """The ids of some codes, large_string."""
        return self._of(codes).to_arrow().cast(pa.large_string())

    def _of(self, codes: UInt64s) -> pl.Series:
        import polars as pl

        if self._series is None:
            held = [None, pa.py_buffer(self._views.values), *self._buffers]
            self._series = pl.Series(values=pa.Array.from_buffers(pa.string_view(), self._views.size, held))
        return _gathered(self._series, codes)


def int64s(values: Int64s) -> pa.Array:
    """Integers as an Arrow array, int64, without a copy (and without what `pa.array` looks for, masks above all)."""
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def integers(ids: pa.Array) -> Int64s:
    """Integer ids as an array, int64[n]."""
    values: Int64s = ids.cast(pa.int64()).to_numpy()
    return values


def _gathered(series: pl.Series, index: npt.NDArray[np.integer]) -> pl.Series:
    import polars as pl

    return series[pl.Series(index.astype(np.uint32))]


def _views(ids: pa.Array) -> pa.StringViewArray:
    if pa.types.is_large_string(ids.type) and (data := ids.buffers()[2]) is not None and data.size >= _MOST_BYTES:
        ids = ids.take(pa.array(np.arange(len(ids))))
    return ids.cast(pa.string_view())


def _view_words(views: pa.StringViewArray) -> UInt64s:
    """The views themselves, uint64[n, 2]: a short text is all in them, and zeros fill what it leaves."""
    if not len(views):
        return np.empty((0, 2), np.uint64)
    return np.frombuffer(views.buffers()[1], np.uint64, 2 * len(views), 16 * views.offset).reshape(-1, 2)


def _are_long(views: UInt64s) -> Index:
    """Which texts do not lie in their views."""
    return np.flatnonzero(views.view(np.uint32)[:, 0] > _INLINE_BYTES)
