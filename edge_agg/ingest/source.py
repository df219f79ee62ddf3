"""What every source of events promises, and where it hands them over.

Place: step 1 of an event's way: bytes become frames.
Invariants: a source says nothing is safe before its inlet has; a frame is taken as a whole or not at all. The frames of
a part come together and in order, exactly one of them is the last, and a part that is done is not opened: so a part is
the unit of position, it has been read when its last frame has.

| source | kind | read again after a restart |
|---|---|---|
| `file.py` | whole files in a folder | from the files |
| `tail.py` | files that grow | from the files |
| `http.py`, `otlp.py`, `mqtt.py`, `stdin.py` | events that are handed over once | from the spool |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Collection, Mapping

    import pyarrow as pa

    from edge_agg.contract.plan import ColumnType


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file as it was when it was listed, or one stretch of a file that grows.

    A whole file that is written to again is another part, and all its rows come again: a writer must write elsewhere
    and rename the file into place when it is whole.
    """

    path: str
    """As the pattern found it; of a file that grows, what identifies it through rotation."""
    size: int
    """In bytes, as stored (compressed); of a stretch, where it ends."""
    mtime_ns: int
    """Last modification, nanoseconds since 1970; of a stretch 0."""
    begin: int = 0
    """Where a stretch begins, in bytes."""

    @property
    def is_stretch(self) -> bool:
        """Whether it is a stretch of a file that grows."""
        return self.mtime_ns == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Some rows, typed."""

    part: Part | None
    """Where the rows can be read again; None if they were handed over and only the inlet can keep them."""
    batch: pa.RecordBatch
    """The columns asked for, in the order asked, in the types of `decode.typed_schema`."""
    rejected: int
    """Rows dropped because a value had the wrong type; stays on the device."""
    last: bool
    """Whether the part ends here; true without a part."""


class Cause(StrEnum):
    """Why a source is behind, as far as it can say: a word of this list, never what the other end wrote."""

    BACKLOG = "backlog"
    """It hands over what there is, or waits until the agent has room."""
    UNREACHABLE = "unreachable"
    """Nobody answers at the address, or the connection breaks."""
    UNTRUSTED = "untrusted"
    """TLS fails: the other end's certificate, or the CA that should vouch for it."""
    REFUSED = "refused"
    """The other end does not let the agent in: user, password, client id or topic."""
    UNREADABLE = "unreadable"
    """A file that it needs, of a CA or a password, cannot be read."""


class InletFull(Exception):
    """Nothing of a frame was taken: offer it again after `retry_s`, and tell whoever pushed it to wait."""

    def __init__(self, retry_s: float) -> None:
        super().__init__("the agent takes nothing more for now")
        self.retry_s = retry_s
        """Seconds to wait."""


class Inlet(Protocol):
    """Where one source hands its frames over."""

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        """What to read of each event, and as what: the union of the plans' columns."""

    def done(self) -> Collection[Part]:
        """The parts that need not be read again: whole files that were taken, and whatever every plan has closed."""

    async def take(self, frame: Frame) -> None:
        """Take a frame in. Comes back once it is safe: whatever happens to the process, its rows count once.

        A frame with a part waits its turn while the agent is short of room; it is never refused.

        Raises:
            InletFull: only for frames without a part.
        """

    def is_current(self, current: bool, cause: Cause = Cause.BACKLOG) -> None:  # noqa: FBT001 - a state, as its name says
        """Say whether all events up to now were handed over, and if not, why; windows wait (for a bounded time)."""


class Source(Protocol):
    """Where events come from."""

    @property
    def name(self) -> str:
        """Stable across restarts: the kind and what it reads."""

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """Look at what is there now, at start-up, without reading it all or taking anything.

        Raises:
            SourceUnreadable: nothing there, or it cannot give these columns. Fix the source or the plan.
        """

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Hand events over until `stop` is set; with `drain`, until what is there now has been handed over.

        Raises:
            SourceUnreadable: it cannot go on. What it was given so far and did not call safe does not count as read.
        """
