"""What every system is asked: the queries, the bounds they share, and the events they are asked of.

Place: below everything here, and imported inside the peers' own environments, so the standard library only.
Invariants: one set of bounds for all; a case names its events completely, so that the same case is the same files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Query = Literal["A", "B", "C", "D", "E"]
Ids = Literal["integer", "string"]

QUERIES: Final[dict[Query, str]] = {
    "A": "count by 1,000 public categories",
    "B": "clipped sum by 1,000 public categories",
    "C": "count and mean over up to 50,000 discovered categories",
    "D": "distinct units by 1,000 public categories",
    "E": "p50 and p95 by 1,000 public categories",
}
MAX_PARTITIONS: Final = 8
"""L0: categories kept of a unit."""
MAX_ROWS: Final = 4
"""L-infinity: rows kept of a unit in a category."""
LOWER: Final = 0.0
UPPER: Final = 100.0
RESOLUTION: Final = 0.01
EPSILON: Final = 1.0
DELTA: Final = 1e-6
QUANTILES: Final = (0.5, 0.95)
BINS: Final = 20
"""Public edges for quantiles, where a system wants edges or candidates: five steps of the range each."""
PUBLIC: Final = 1_000
"""Categories 0 .. PUBLIC - 1 are the plan's, known before the data is read."""
DISCOVERED: Final = 50_000
"""Categories that events may have under query C; no system is told which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Which events are asked."""

    events: int
    units: int
    ids: Ids = "integer"
    flat: bool = False
    """Whether activity is spread more evenly over units than the usual Zipf law has it."""

    @property
    def name(self) -> str:
        """For example `10M-1M-integer`."""
        return f"{short(self.events)}-{short(self.units)}-{self.ids}{'-flat' if self.flat else ''}"


def categories(query: Query) -> int:
    """How many categories the events of a query have."""
    return DISCOVERED if query == "C" else PUBLIC


def short(number: int) -> str:
    """Write 10,000,000 as 10M."""
    if number % 1_000_000 == 0:
        return f"{number // 1_000_000}M"
    return f"{number // 1_000}k"
