"""A folder of logs, a source that follows it pass by pass, and an inlet that knows which windows are closed."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Self

from edge_agg.config.tables import TailTable
from edge_agg.ingest.source import Cause
from edge_agg.ingest.tail import TailSource
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame, Part
    from edge_agg.ingest.trouble import Trouble

COLUMNS: Mapping[str, ColumnType] = {"n": "integer", "w": "integer"}
"""A row's number, and its window."""


class TakeFailed(Exception):
    """The inlet broke."""


@dataclass(slots=True)
class Windows:
    """An inlet whose windows are numbers. What is open is lost in a crash; what is sealed is not, nor comes again."""

    closed: int = -1
    """Windows up to this one are closed."""
    sealed: Counter[int] = field(default_factory=Counter)
    open: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Rows of this life, with their window."""
    reach: dict[Part, int] = field(default_factory=dict)
    """Parts, and the last window that can have rows of them."""
    taken: set[Part] = field(default_factory=set)
    """Those of this life."""
    frames: list[Frame] = field(default_factory=list)
    current: list[bool] = field(default_factory=list)
    fail_in: int | None = None
    """After so many frames the next one is not taken."""

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        """Both."""
        return COLUMNS

    def done(self) -> Collection[Part]:
        """As the protocol says."""
        return self.taken | {part for part, window in self.reach.items() if window <= self.closed}

    async def take(self, frame: Frame) -> None:
        """Count rows of open windows."""
        if self.fail_in is not None:
            if self.fail_in == 0:
                self.fail_in = None
                raise TakeFailed
            self.fail_in -= 1
        assert frame.part is not None
        assert frame.last, "a stretch is one frame"
        self.frames.append(frame)
        self.reach[frame.part] = self.closed + 1
        self.taken.add(frame.part)
        rows = zip(frame.batch["n"].to_pylist(), frame.batch["w"].to_pylist(), strict=True)
        self.open.update(row for row in rows if row[1] > self.closed)

    def is_current(self, current: bool, cause: Cause = Cause.BACKLOG) -> None:  # noqa: FBT001 - as the protocol has it
        """Note it."""
        self.current.append(current)

    def close(self) -> None:
        """Close the open window."""
        self.closed += 1
        for n, window in list(self.open):
            if window <= self.closed:
                self.sealed[n] += self.open.pop((n, window))

    def crash(self) -> None:
        """Lose what was in memory."""
        self.open.clear()
        self.taken.clear()
        self.fail_in = None

    @property
    def rows(self) -> list[int]:
        """The rows of open windows, each as often as it counts."""
        return sorted(n for n, _ in self.open.elements())


class Steps(FakeClock):
    """A clock whose waits end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.waiting = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait for the next step."""
        self.waiting.set()
        await self.go.wait()
        self.go.clear()


class Tailing:
    """One life of a source after another, each led from pass to pass."""

    def __init__(self, folder: Path, *, pattern: str = "app.log*", text: str = "ndjson") -> None:
        self.folder, self.pattern, self.text = folder, pattern, text
        self.windows = Windows()
        self.troubles: list[Trouble] = []
        self._runner = asyncio.Runner()
        self._job: asyncio.Task[None] | None = None
        self.start()

    def start(self) -> None:
        """Begin a life."""
        table = TailTable(path=str(self.folder / self.pattern), format="csv" if self.text == "csv" else "ndjson")
        self.clock = Steps()
        self.source = TailSource(table, clock=self.clock, heard=self.troubles.append)

    def kill(self) -> None:
        """End a life without a word, and begin another."""
        self._runner.run(self._end())
        self.windows.crash()
        self.start()

    def step(self, by: timedelta = timedelta(0)) -> None:
        """One look at the folder, to its end.

        Raises:
            TakeFailed: the inlet broke in the middle; the next step begins the delivery again.
        """
        self.clock.time += by
        self._runner.run(self._step())

    def close(self) -> None:
        """End it all."""
        self._runner.run(self._end())
        self._runner.close()

    async def _step(self) -> None:
        if self._job is None:
            self._job = asyncio.create_task(self.source.deliver(self.windows, asyncio.Event(), drain=False))
        else:
            self.clock.go.set()
        self.clock.waiting.clear()
        waiting = asyncio.create_task(self.clock.waiting.wait())
        await asyncio.wait([self._job, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._job.done():
            job, self._job = self._job, None
            job.result()

    async def _end(self) -> None:
        if self._job is not None:
            self._job.cancel()
            await asyncio.wait([self._job])
            self._job = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
