"""A log that grows: appended to, and rotated by name every third time."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from edge_agg.config.tables import TailTable
from edge_agg.ingest.tail import TailSource
from tests.conformance.harness import CANARY, SILENT, Answer, Rows, csv, make_rows, ndjson

if TYPE_CHECKING:
    from pathlib import Path


class TailHarness:
    """Who writes a log; see `Harness`."""

    tells: ClassVar[bool] = False
    keeps: ClassVar[bool] = True
    finite: ClassVar[bool] = True
    slow: ClassVar[bool] = False
    text: ClassVar[Literal["ndjson", "csv"]] = "ndjson"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "app.log"
        self._turns = 0

    async def start(self) -> None:
        """The log is there, and empty."""
        self._log.touch()

    async def close(self) -> None:
        """Nothing runs."""

    def source(self) -> TailSource:
        """A source that follows the log and its rotated files."""
        return TailSource(TailTable(path=str(self._folder / "app.log*"), format=self.text), poll_s=0.01)

    async def feed(self, rows: Rows) -> Answer:
        """Append lines."""
        return await self.feed_raw(ndjson(rows) if self.text == "ndjson" else csv(rows).partition(b"\n")[2])

    async def feed_raw(self, data: bytes) -> Answer:
        """Append bytes and end their line; where a log of CSV begins, the header comes first."""
        self._turns += 1
        if self._turns % 3 == 0:
            self._log.rename(self._folder / f"app.log.{self._turns}")
        with self._log.open("ab") as out:
            if self.text == "csv" and out.tell() == 0:
                out.write(csv(make_rows(1)).partition(b"\n")[0] + b"\n")
            out.write(data if data.endswith(b"\n") else data + b"\n")
        return SILENT

    async def end(self) -> None:
        """A log never says so."""

    def spoiled(self) -> list[TailSource]:
        """A header that is none; of lines of JSON nothing is asked beforehand."""
        self._log.write_text(f"{CANARY}\n{CANARY}\n")
        return [self.source()] if self.text == "csv" else []

    def hostile(self) -> list[bytes]:
        """Nothing of its own."""
        return []


class CsvTailHarness(TailHarness):
    """The same, with CSV."""

    text = "csv"


HARNESSES: dict[str, type] = {"tail-ndjson": TailHarness, "tail-csv": CsvTailHarness}
