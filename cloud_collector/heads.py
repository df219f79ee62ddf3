"""What an agent says of its journal before it draws, held against what is here of it (promise B6).

Place: beside `chain.py`, whose rules these are; called by the landing's writer, in a transaction.
Invariants: nothing is taken in, and nothing is written but a fence with its line of the audit log. What an honest agent
said is never held against it, however late the call arrives: what stands at a place never changes, nor does an
account's charge fall; only that the collector has more may be old news, so that alone fences nobody before the agent
has looked again and confirmed it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from cloud_collector import chain, fence
from cloud_collector.landed import Reason

if TYPE_CHECKING:
    from cloud_collector.landing_store import Statements
    from edge_agg.contract.head import Head


class Standing(StrEnum):
    """What is known of a journal."""

    KNOWN = "known"
    UNKNOWN = "unknown"
    BEHIND = "behind"
    """Less than the agent has: the rest waits to be sent."""
    AHEAD = "ahead"
    """More than the agent has, as it seems."""
    FENCED = "fenced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What became of it."""

    standing: Standing
    last_seq: int = 0
    """The last place that is here."""
    alarm: Reason | None = None
    """Why the agent was fenced just now."""


def hear(db: Statements, head: Head, *, new_incarnation: chain.NewIncarnation) -> Heard:
    """Say what is known of a journal; fence its agent where the two cannot both be right."""
    incarnation = bytes.fromhex(head.incarnation)
    agent, journals, fenced, journal, last = chain.known_of(db, head.tenant, head.agent, incarnation)
    if fenced is not None:
        return Heard(standing=Standing.FENCED, last_seq=last)
    if agent is None or journal is None:
        if journals and new_incarnation == "fence":
            return _shut_out(db, head, Reason.INCARNATION, last)
        return Heard(standing=Standing.UNKNOWN)
    fault = _fault(db, agent, journal, head, last)
    if fault is not None:
        return _shut_out(db, head, fault, last)
    if last == head.seq:
        return Heard(standing=Standing.KNOWN, last_seq=last)
    return Heard(standing=Standing.BEHIND if last < head.seq else Standing.AHEAD, last_seq=last)


def _fault(db: Statements, agent: int, journal: int, head: Head, last: int) -> Reason | None:
    """What cannot be: another release at a place, a charge that fell, a journal that has forgotten its end."""
    query = "SELECT hash FROM releases WHERE agent = ? AND journal = ? AND seq = ?"
    for seq, said in head.places:
        found = db.execute(query, (agent, journal, seq)).get
        if found is not None and found != said:
            return chain.turned(seq, last)
    query = "SELECT account, rho, delta FROM accounts WHERE agent = ? AND journal = ? AND seq <= ?"
    rows: list[Any] = db.execute(query, (agent, journal, head.seq)).fetchall()
    for account, rho, delta in rows:
        now = head.spent.get(account)
        if now is not None and chain.is_fallen((Fraction(rho), Fraction(delta)), (now.rho, now.delta)):
            return Reason.ROLLBACK
    return Reason.ROLLBACK if head.confirmed and head.seq < last else None


def _shut_out(db: Statements, head: Head, reason: Reason, last: int) -> Heard:
    incarnation = bytes.fromhex(head.incarnation) if reason is Reason.INCARNATION else None
    raised = fence.raise_fence(db, head.tenant, head.agent, reason, incarnation=incarnation)
    return Heard(standing=Standing.FENCED, last_seq=last, alarm=reason if raised else None)
