"""`[[derive]]` and `[[filter]]`: new columns made of old ones, and rows left out, each row by itself.

Place: a part of the grammar; `row_rules.py` checks it, the agent's `privacy/derive.py` does it.
Invariants: a closed list of ways, no expressions; what a derived column may hold follows from the plan alone.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

ColumnType = Literal["timestamp", "string", "float", "integer", "boolean"]
Key = str | int | bool
Value = str | int | float | bool
"""What a filter compares with; TOML tells these apart."""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the plan: frozen, and closed to fields it does not name."""


class Derivation(Strict, frozen=True, kw_only=True, rename={"source": "from"}):
    """`[[derive]]`: a new column out of another, in one way; without any it is the old column under a new name.

    A row without the old value has no new one.
    """

    column: str
    """The new column."""
    source: str
    """`from`: a column of the events, or one derived before."""
    buckets: list[float] | None = None
    """Public edges, ascending, of numbers: one bucket below the first, one from each edge to the next, one from the
    last on. An edge lies in the bucket above it."""
    numbered: bool = False
    """Buckets are called 0, 1 and so on, in place of `..0`, `0..15`, `15..`."""
    calendar: Literal["hour", "weekday"] | None = None
    """The hour (0 .. 23) or the ISO weekday (1 is Monday) of a timestamp."""
    timezone: str | None = None
    """Of the calendar; UTC if absent."""
    lower: bool | None = None
    """The text in lower case: see docs/plan.md for which letters."""
    first: int | None = None
    """So many of the text's first characters (Unicode code points), or all there are."""
    map: dict[str, str] | None = None
    """New texts for old ones, or for whole numbers."""
    otherwise: str | None = None
    """The new text of what the map does not name; without it, that has none."""

    @property
    def labels(self) -> list[str]:
        """What the buckets are called, in ascending order."""
        edges = [_written(edge) for edge in self.buckets or ()]
        return [f"{low}..{high}" for low, high in itertools.pairwise(["", *edges, ""])]

    @property
    def values(self) -> frozenset[Key] | None:
        """All that the new column may hold; None where that depends on the events."""
        if self.buckets is not None:
            return frozenset(range(len(self.buckets) + 1)) if self.numbered else frozenset(self.labels)
        if self.calendar is not None:
            return frozenset(range(24) if self.calendar == "hour" else range(1, 8))
        if self.map is not None:
            return frozenset(self.map.values()) | ({self.otherwise} if self.otherwise is not None else set())
        return None

    def kind(self, known: Mapping[str, ColumnType]) -> ColumnType | None:
        """The new column's type, or None if the old one is not known."""
        if self.calendar is not None or (self.buckets is not None and self.numbered):
            return "integer"
        plain = self.buckets is None and self.lower is None and self.first is None and self.map is None
        return known.get(self.source) if plain else "string"


class Filter(Strict, frozen=True, kw_only=True, rename={"within": "in"}):
    """`[[filter]]`: rows that do not pass are left out; a row without the value never passes."""

    column: str
    """A column of the events, or a derived one."""
    equals: Value | None = None
    not_equals: Value | None = None
    within: list[Value] | None = None
    """`in`: any of these."""
    at_least: int | float | None = None
    above: int | float | None = None
    at_most: int | float | None = None
    below: int | float | None = None


def _written(edge: float) -> str:
    """A number as people write it: `15`, `0.5`, `1e+300`; no two numbers alike."""
    edge += 0.0
    return str(int(edge)) if edge.is_integer() and abs(edge) < 2**53 else repr(edge)
