"""A promised figure, and whether a run met it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One figure and its limit."""

    name: str
    value: float
    limit: float
    least: bool = False
    """Whether the limit is the least that will do, not the most."""

    @property
    def met(self) -> bool:
        """Whether the value is on the right side; a missing one is not."""
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        """`bar NAME VALUE LIMIT met|missed`."""
        return f"bar {self.name} {self.value:.4g} {self.limit:.4g} {'met' if self.met else 'missed'}"
