"""What the landing says: verdicts, what waits, who was seen, what was noted of them.

Place: handed out by the landing to the service, the sealer and the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Verdict(StrEnum):
    """What became of a release."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    """The same bytes are here already: ack them again."""
    CONFLICT = "conflict"
    """Other bytes are here for this key: nothing was stored, the agent is fenced."""
    FENCED = "fenced"
    """The agent is fenced, perhaps for this very release, and the release is new: nothing was stored."""


class Reason(StrEnum):
    """Why an agent is fenced."""

    CONFLICT = "conflict"
    """Two different releases for one window."""
    FORK = "fork"
    """Two different releases at one place of one chain, or one that continues another release than the one here."""
    ROLLBACK = "rollback"
    """A chain that is further along here takes another turn behind its head, or has been charged less than it was."""
    INCARNATION = "incarnation"
    """A new journal, where the config lets none in unseen."""
    PERSON = "person"
    """Somebody decided it."""


class Action(StrEnum):
    """What the audit log tells of."""

    FENCED = "fenced"
    UNFENCED = "unfenced"
    REINSTALLED = "reinstalled"
    """An agent came back with a new journal: a new chain, and charges that start from nothing."""
    RESTORED = "restored"
    """The landing was restored from a backup."""
    BEHIND = "behind"
    """After a restore an agent goes on further along its chain than the backup knew it: what lies between is lost."""
    EXPECTED = "expected"
    """Somebody expects its releases of a plan, which is the reason's place."""
    UNEXPECTED = "unexpected"
    """Somebody expects them no longer, from a window on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LandedRelease:
    """A release that waits to be sealed, as the bytes that were sent."""

    id: int
    """Ascending in the order of commits, never used twice."""
    header: bytes
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSeen:
    """What is known of an agent from the releases it sent."""

    tenant: str
    agent: str
    incarnation: str
    """Of the journal that the last accepted release came from; empty if none was accepted."""
    last_seq: int
    """The highest of this incarnation."""
    releases: int
    """Accepted, of all incarnations."""
    missing: int
    """Releases before the last one of this incarnation that are not here: on their way, or lost to a restore."""
    journals: int
    """Incarnations that were seen."""
    behind: bool
    """Whether releases that an earlier collector acked are missing from the backup that this one was restored from."""
    last_window_end: datetime
    fence: Reason | None
    """Why it is fenced; None if it is not."""

    @property
    def fenced(self) -> bool:
        """Whether its new releases are refused."""
        return self.fence is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """One line of the audit log."""

    at: datetime
    tenant: str
    agent: str
    action: Action
    reason: str
    who: str
    """A person's login; `collector` where the collector acted by itself."""
    note: str
    """What the person said."""
