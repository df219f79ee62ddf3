"""What goes wrong with files while nobody watches, and does not stop the agent.

Place: said by the sources that read files; counted and logged by whoever built them.
Invariants: a trouble is a word of this list; neither it nor how it is told holds a value or a file's content.
"""

from __future__ import annotations

from enum import StrEnum


class Trouble(StrEnum):
    """One thing that went wrong."""

    FILE_UNREADABLE = "file_unreadable"
    """A file was passed over: damaged, of no known format, without a column that a plan reads, or not to be opened."""
    FILE_VANISHED = "file_vanished"
    """A file went away before it was read to its end: removed, or truncated without a copy."""


def unheard(trouble: Trouble) -> None:
    """Say nothing."""
