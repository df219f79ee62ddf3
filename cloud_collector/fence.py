"""Who is shut out, and who decided so: fences and the audit log.

Place: part of the landing's transaction; `chain.py` raises fences, people raise and lift them by the command line.
Invariants: a fence and its line of the audit log are one commit; a fence that stands is not replaced, so the log holds
what was found first; nothing of a release is written down but who sent it and which rule it broke.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cloud_collector.landed import Action, Noted, Reason
from edge_agg.contract.codec import from_us

if TYPE_CHECKING:
    from cloud_collector.landing_store import Statements

COLLECTOR = "collector"
"""Who acted, where no person did."""


def number_of(db: Statements, tenant: str, agent: str) -> int:
    """The agent's number, given to it now if it has none."""
    found = db.execute("SELECT no FROM agents WHERE tenant = ? AND agent = ?", (tenant, agent)).get
    if found is None:
        found = db.execute("INSERT INTO agents (tenant, agent) VALUES (?, ?) RETURNING no", (tenant, agent)).get
    return int(found)


def note(
    db: Statements, tenant: str, agent: str, action: Action, *, reason: str, who: str = COLLECTOR, text: str = ""
) -> None:
    """Write one line of the audit log."""
    row = (time.time_ns() // 1000, tenant, agent, action, reason, who, text)
    db.execute("INSERT INTO audit (at_us, tenant, agent, action, reason, who, note) VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def raise_fence(
    db: Statements,
    tenant: str,
    agent: str,
    reason: Reason,
    *,
    incarnation: bytes | None = None,
    who: str = COLLECTOR,
    text: str = "",
) -> bool:
    """Shut an agent out; whether it was not already.

    Args:
        db: in a transaction.
        tenant: whose agent.
        agent: its name.
        reason: what was found.
        incarnation: of a journal that is let in when the fence is lifted.
        who: decided.
        text: what they said.
    """
    number = number_of(db, tenant, agent)
    query = "INSERT INTO fences VALUES (?, ?, ?) ON CONFLICT (agent) DO NOTHING RETURNING 1"
    raised = bool(db.execute(query, (number, reason, incarnation)).fetchall())
    if raised:
        note(db, tenant, agent, Action.FENCED, reason=reason, who=who, text=text)
    return raised


def lift(db: Statements, tenant: str, agent: str, *, who: str, text: str) -> bool:
    """Let an agent in again, with the journal that it was shut out for, if it was for a new one; whether it was out."""
    number = number_of(db, tenant, agent)
    found: list[Any] = db.execute(
        "DELETE FROM fences WHERE agent = ? RETURNING reason, incarnation", (number,)
    ).fetchall()
    for reason, incarnation in found:
        if incarnation is not None:
            add_journal(db, number, incarnation)
        note(db, tenant, agent, Action.UNFENCED, reason=reason, who=who, text=text)
    return bool(found)


def add_journal(db: Statements, number: int, incarnation: bytes) -> int:
    """Take up a journal of an agent's; its number among the agent's own."""
    query = "UPDATE agents SET journals = journals + 1 WHERE no = ? RETURNING journals - 1"
    journal = int(db.execute(query, (number,)).get)
    query = "INSERT INTO journals (agent, journal, incarnation) VALUES (?, ?, ?)"
    db.execute(query, (number, journal, incarnation))
    return journal


def noted(db: Statements, tenant: str | None = None, agent: str | None = None) -> list[Noted]:
    """The audit log, oldest first."""
    query = (
        "SELECT at_us, tenant, agent, action, reason, who, note FROM audit "
        "WHERE tenant = coalesce(?, tenant) AND agent = coalesce(?, agent) ORDER BY id"
    )
    return [
        Noted(at=from_us(at), tenant=of, agent=name, action=Action(action), reason=reason, who=who, note=text)
        for at, of, name, action, reason, who, text in db.execute(query, (tenant, agent))
    ]
