"""What is written to the journal and read from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from edge_agg.contract.refusal import Refusal
    from edge_agg.contract.release import Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A sealed release that has not been acked."""

    seq: int
    sealed: Sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The units that a window counts, where a plan bounds the windows of a period."""

    period: datetime
    """Its start."""
    units: Iterable[int | str] = field(repr=False)
    """Their ids, gone over once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """A release that was refused for good."""

    seq: int
    window_start: datetime
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A part of a source that was read to its end, and how far in event time its rows can reach."""

    source: str
    path: str
    size: int
    """In bytes; of a stretch, where it ends."""
    mtime_ns: int
    """Of a stretch 0."""
    reach: datetime
    """No row of it at or after this moment was taken: a public bound (the clock's, or the history's end), so that which
    parts are opened again after a restart says nothing about their rows."""
    begin: int = 0
    """Where a stretch begins, in bytes."""
