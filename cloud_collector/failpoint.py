"""Named instants at which a test may end the process, to show that no instant is harmful.

Place: called by the rooms whose order matters on the way from the ack to the lake. Does nothing unless a test has armed
it from inside the process; there is no switch in the environment or the config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = (
    "landing_uncommitted",
    "landing_committed",
    "file_written",
    "file_synced",
    "log_written",
    "log_linked",
    "log_synced",
    "rollup_uncommitted",
    "rollup_committed",
    "mark_uncommitted",
    "mark_committed",
    "checkpoint_made",
    "checkpoint_linked",
    "checkpoint_named",
    "log_cleared",
    "compaction_written",
    "compaction_committed",
    "retirement_written",
    "retirement_committed",
    "rollup_retired",
    "leftover_removed",
)
"""Every point there is, in the order of a release's life."""

armed: Callable[[str], None] | None = None
"""What a test does at each point; None in production."""


def failpoint(name: str) -> None:
    """Pass the named instant."""
    if armed is not None:
        armed(name)
