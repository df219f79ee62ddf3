"""Whole files, renamed into a folder."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar

from edge_agg.clock import SystemClock
from edge_agg.ingest.file import FileSource
from tests.conformance.harness import CANARY, SILENT, Answer, Rows, ndjson

if TYPE_CHECKING:
    from pathlib import Path


class FileHarness:
    """A folder, and who puts files there; see `Harness`."""

    tells: ClassVar[bool] = False
    keeps: ClassVar[bool] = True
    finite: ClassVar[bool] = True
    slow: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = itertools.count()

    async def start(self) -> None:
        """Nothing: the folder is there."""

    async def close(self) -> None:
        """Nothing."""

    async def end(self) -> None:
        """Nothing: there may always be another file."""

    def source(self) -> FileSource:
        """A source that looks often."""
        return FileSource(f"{self.folder}/*.ndjson", clock=SystemClock(), poll_s=0.02)

    async def feed(self, rows: Rows) -> Answer:
        """Put a file."""
        return await self.feed_raw(ndjson(rows))

    async def feed_raw(self, data: bytes) -> Answer:
        """Put a file of any bytes."""
        name = f"{next(self._count):06}"
        (self.folder / f"{name}.new").write_bytes(data)
        (self.folder / f"{name}.new").rename(self.folder / f"{name}.ndjson")
        return SILENT

    def spoiled(self) -> list[FileSource]:
        """Files of each sort of reader that hold the canary alone."""
        names = ("bad.ndjson", "bad.csv", "bad.csv.gz", "bad.parquet", "bad.arrow")
        for name in names:
            (self.folder / name).write_bytes(CANARY.encode() * 100)
        return [FileSource(f"{self.folder}/{name}") for name in names]

    def hostile(self) -> list[bytes]:
        """Nothing of its own: a file that changes while it is read is test_file.py's."""
        return []


HARNESSES: dict[str, type] = {"file": FileHarness}
