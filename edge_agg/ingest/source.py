"""What every source of events promises.

Place: step 1 of an event's way: bytes become frames, and each frame knows the part of the source it came from.
Invariants: the frames of a part come together and in order, exactly one of them is the last; a part that is to be
skipped is not opened. So a part is the unit of position: it has been read when its last frame has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    import pyarrow as pa

    from edge_agg.contract.plan import ColumnType


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file as it was when it was listed.

    A file that is written to again is another part, and all its rows come again: a writer must write elsewhere and
    rename the file into place when it is whole.
    """

    path: str
    """As the pattern found it."""
    size: int
    """In bytes, as stored (compressed)."""
    mtime_ns: int
    """Last modification, nanoseconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Some rows of one part, typed."""

    part: Part
    """Where the rows came from."""
    batch: pa.RecordBatch
    """The columns asked for, in the order asked, in the types of `decode.typed_schema`."""
    rejected: int
    """Rows dropped because a value had the wrong type; stays on the device."""
    last: bool
    """Whether the part ends here."""


class Source(Protocol):
    """Where events come from."""

    @property
    def name(self) -> str:
        """Stable across restarts: the kind and what it reads."""

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """Look at what is there now, at start-up, without reading it all.

        Raises:
            SourceUnreadable: nothing there, or it cannot give these columns. Fix the source or the plan.
        """

    def frames(self, columns: Mapping[str, ColumnType], *, skip: Collection[Part] = ()) -> Iterator[Frame]:
        """Read everything that is there now, except the parts in `skip`, in a stable order and bounded memory.

        Raises:
            SourceUnreadable: a part cannot be read to its end. Its frames so far do not count as read.
        """
