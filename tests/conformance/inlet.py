"""An inlet for tests: it records what it is handed, and can be told to be full, to hold back, or never to come back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_agg.ingest.decode import typed_schema
from edge_agg.ingest.source import Cause, InletFull

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame, Part

COLUMNS: Mapping[str, ColumnType] = {
    "t": "timestamp",
    "who": "string",
    "x": "float",
    "n": "integer",
    "ok": "boolean",
}
"""What the suite's plans read."""
PATIENCE_S = 20.0
"""How long a test waits for what must come, seconds; a busy machine is no failure."""


@dataclass(slots=True, kw_only=True)
class FakeInlet:
    """Takes frames in, as the agent's does, and keeps them in memory."""

    columns: Mapping[str, ColumnType] = field(default_factory=lambda: COLUMNS)
    frames: list[Frame] = field(default_factory=list)
    """Every frame that is safe, in order."""
    parts: set[Part] = field(default_factory=set)
    """The parts whose last frame is safe: what `done` says."""
    current: list[bool] = field(default_factory=list)
    """Everything that was said about being current."""
    causes: list[Cause] = field(default_factory=list)
    """Why it was not current, each time that it said so."""
    retry_s: float = 0.05
    """What a pusher is told when the inlet is full."""
    offered: int = 0
    """How often a frame was offered, whatever became of it."""
    refused: int = 0
    """How often a frame was refused."""
    held: int = 0
    """Frames that wait inside `take` now."""
    _full: bool = False
    _holding: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def fill(self) -> None:
        """Be full: a frame without a part is refused, one with a part waits."""
        self._full = True

    def hold(self) -> None:
        """Let nothing come back from `take`, as a disk that does not answer, until :meth:`resume`."""
        self._holding = True

    def resume(self) -> None:
        """Be neither full nor holding."""
        self._full = self._holding = False
        self._wake()

    def done(self) -> Collection[Part]:
        """The parts that were taken whole."""
        return frozenset(self.parts)

    async def take(self, frame: Frame) -> None:
        """Take a frame in, once it may be."""
        assert frame.batch.schema == typed_schema(self.columns), "a frame has the columns asked for, typed"
        self.offered += 1
        self._wake()
        if self._full and frame.part is None:
            self.refused += 1
            raise InletFull(self.retry_s)
        self.held += 1
        self._wake()
        try:
            while self._full or self._holding:
                await self._wait()
        finally:
            self.held -= 1
        self.frames.append(frame)
        if frame.part is not None and frame.last:
            self.parts.add(frame.part)
        self._wake()

    def is_current(self, current: bool, cause: Cause = Cause.BACKLOG) -> None:  # noqa: FBT001 - as the protocol has it
        """Note it."""
        self.current.append(current)
        self.causes += [] if current else [cause]
        self._wake()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every row that is safe."""
        return [row for frame in self.frames for row in frame.batch.to_pylist()]

    @property
    def rejected(self) -> int:
        """Every row that was counted as rejected."""
        return sum(frame.rejected for frame in self.frames)

    async def wait_rows(self, count: int) -> None:
        """Come back once at least so many rows are safe."""
        await self.wait_until(lambda: len(self.rows) >= count)

    async def wait_held(self) -> None:
        """Come back once a frame waits inside `take`."""
        await self.wait_until(lambda: self.held > 0)

    async def wait_until(self, holds: Any) -> None:
        """Come back once it holds; looked at whenever something happened here."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await self._wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        await self._changed.wait()
