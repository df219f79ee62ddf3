"""The record of a run, and the file of records.

Place: written by `run.py`, read by the bars and by the page.
Invariant: records are only ever appended, one JSON object a line; the last of a system, query and case counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from benchmarks.privacy.meter import Reading  # noqa: TC001  # msgspec reads the annotations
from benchmarks.privacy.question import Case, Query

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = Path(".bench/results.jsonl")


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One system's answer to one query on one case."""

    system: str
    query: Query
    case: Case
    status: Literal["done", "capped", "failed"] = "done"
    readings: list[Reading] = []
    """One a repetition."""
    released: int = 0
    """Categories answered."""
    bounded: dict[str, float] = {}
    """Mean absolute error by figure, against the expected answer after this system's own kind of bounding."""
    true: dict[str, float] = {}
    """The same against the answer over all events."""
    noise: dict[str, float] = {}
    """The same against the system's own answer before noise, where it can be asked for that."""
    notes: dict[str, float] = {}
    machine: str | None = None
    """Where it ran; None in records from before it was kept, as the next two."""
    versions: dict[str, str] = {}
    """Of the packages that ours and the plain group-bys rest on."""
    load: float | None = None
    """The machine's load average over the minute before the first repetition: how much else it was doing."""

    @property
    def cpu_s(self) -> float:
        """The least of the repetitions."""
        return min((reading.cpu_s for reading in self.readings), default=float("nan"))

    @property
    def wall_s(self) -> float:
        """The least of the repetitions."""
        return min((reading.wall_s for reading in self.readings), default=float("nan"))

    @property
    def peak_mb(self) -> float:
        """The most of the repetitions."""
        return max((reading.peak_mb for reading in self.readings), default=float("nan"))


Results = dict[tuple[str, Query, Case], Result]


def load() -> Results:
    """Read the last record of each system, query and case."""
    lines = FILE.read_bytes().splitlines() if FILE.exists() else []
    return index(msgspec.json.decode(line, type=Result) for line in lines)


def index(results: Iterable[Result]) -> Results:
    """Look results up by system, query and case."""
    return {(result.system, result.query, result.case): result for result in results}


def store(result: Result) -> None:
    """Append a record."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("ab") as file:
        file.write(msgspec.json.encode(result) + b"\n")
