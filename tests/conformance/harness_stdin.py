"""Standard input, fed through a pipe."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, ClassVar, Literal

from edge_agg.config.tables import StdinTable
from edge_agg.ingest.stdin import StdinSource
from tests.conformance.harness import SILENT, Answer, Rows, csv, make_rows, ndjson

if TYPE_CHECKING:
    from pathlib import Path


class StdinHarness:
    """A pipe, and who writes into it; see `Harness`."""

    tells: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    finite: ClassVar[bool] = True
    slow: ClassVar[bool] = False
    text: ClassVar[Literal["ndjson", "csv"]] = "ndjson"

    def __init__(self, folder: Path) -> None:
        self._pipe: tuple[int, int] | None = None
        self._headed = self._made = self._ended = False

    async def start(self) -> None:
        """Lay the pipe."""
        self._pipe = os.pipe()

    async def close(self) -> None:
        """Take it away."""
        assert self._pipe is not None
        await self.end()
        os.close(self._pipe[0])

    def source(self) -> StdinSource:
        """A source that reads the pipe's end; one that comes after another reads a header of its own."""
        assert self._pipe is not None
        self._headed = self._headed and not self._made
        self._made = True
        return StdinSource(StdinTable(format=self.text), descriptor=self._pipe[0], gather_s=0.02)

    async def feed(self, rows: Rows) -> Answer:
        """Write lines."""
        return await self.feed_raw(ndjson(rows) if self.text == "ndjson" else csv(rows).partition(b"\n")[2])

    async def feed_raw(self, data: bytes) -> Answer:
        """Write bytes and end their line; before the first, the header of CSV."""
        assert self._pipe is not None
        if self.text == "csv" and not self._headed:
            data = csv(make_rows(1)).partition(b"\n")[0] + b"\n" + data
        self._headed = True
        await asyncio.to_thread(_write, self._pipe[1], data if data.endswith(b"\n") else data + b"\n")
        return SILENT

    async def end(self) -> None:
        """Close the writing end."""
        assert self._pipe is not None
        if not self._ended:
            os.close(self._pipe[1])
        self._ended = True

    def spoiled(self) -> list[StdinSource]:
        """A descriptor that is closed; a pipe cannot be looked into."""
        return [StdinSource(StdinTable(format=self.text), descriptor=1 << 20)]

    def hostile(self) -> list[bytes]:
        """Nothing of its own."""
        return []


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class CsvStdinHarness(StdinHarness):
    """The same, with CSV."""

    text = "csv"


HARNESSES: dict[str, type] = {"stdin-ndjson": StdinHarness, "stdin-csv": CsvStdinHarness}
