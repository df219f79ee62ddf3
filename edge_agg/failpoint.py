"""Named instants at which a test may end the process, to show that no instant is harmful.

Place: called by the rooms whose order matters (journal, series, uplink). Does nothing unless a test has armed it from
inside the process; there is no switch in the environment or the config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

POINTS = (
    "before_charge",
    "charge_uncommitted",
    "charge_committed",
    "noise_drawn",
    "seal_uncommitted",
    "seal_committed",
    "before_send",
    "receipts_arrived",
    "ack_uncommitted",
    "ack_committed",
)
"""Every point there is, in the order of a release's life."""

SPOOL_POINTS = ("before_spool", "spooled")
"""Those on the way in, for events that are handed over once."""

armed: Callable[[str], None] | None = None
"""What a test does at each point; None in production."""


def failpoint(name: str) -> None:
    """Pass the named instant."""
    if armed is not None:
        armed(name)
