"""What is read from a landing's tables, and what is marked in them, beside the judging of releases.

Place: part of the landing, over whichever store; called by its one writer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cloud_collector import fence
from cloud_collector.landed import Action, AgentSeen, LandedRelease, Reason
from edge_agg.contract.codec import from_us

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cloud_collector.landing_store import Statements


def unsealed(db: Statements, limit: int, *, after: int, until: int) -> list[LandedRelease]:
    """The oldest releases that are not in the lake, of ids above `after`, up to `until`."""
    query = "SELECT id, header, payload FROM waiting WHERE id > ? AND id <= ? ORDER BY id LIMIT ?"
    rows = db.execute(query, (after, until, limit)).fetchall()
    return [LandedRelease(id=row[0], header=row[1], payload=row[2]) for row in rows]


def mark_sealed(db: Statements, digests: Mapping[int, bytes]) -> None:
    """Drop the bytes of releases that are in the lake, and keep a digest of what was written."""
    rows = [(digest, landing_id) for landing_id, digest in digests.items()]
    db.executemany("UPDATE releases SET digest = ? WHERE id = ?", rows)
    db.executemany("DELETE FROM waiting WHERE id = ?", [(landing_id,) for landing_id in digests])


def mark_restored(db: Statements, every_us: Mapping[bytes, int], *, who: str) -> None:
    """From each agent's last window on, what does not come any more may have been acked and lost.

    Args:
        db: in a transaction.
        every_us: by plan hash, how long its windows are.
        who: decided it, for the audit log.
    """
    query = (
        "SELECT agent, plan, plans.hash, max(window_start_us), coalesce(max(journal), 0) FROM releases "
        "JOIN plans ON plans.no = plan GROUP BY agent, plan, plans.hash"
    )
    rows: list[Any] = db.execute(query).fetchall()
    query = (
        "INSERT INTO behind VALUES (?, ?, ?, ?, NULL) ON CONFLICT (agent, plan) DO UPDATE "
        "SET journal = excluded.journal, from_us = excluded.from_us, until_us = NULL"
    )
    for agent, plan, plan_hash, last_us, journal in rows:
        if plan_hash in every_us:
            db.execute(query, (agent, plan, journal, last_us + every_us[plan_hash]))
    db.execute("UPDATE meta SET restored_us = ?", (time.time_ns() // 1000,))
    fence.note(db, "", "", Action.RESTORED, reason="restored", who=who)


def seen(db: Statements, tenant: str | None, agent: str | None, limit: int) -> list[AgentSeen]:
    """Agents that a release was accepted from, or that are fenced, by tenant and name; so many at most."""
    query = (
        "SELECT tenant, agents.agent, journals.incarnation, coalesce(head_seq, 0), agents.releases, "
        "coalesce(head_seq - journals.releases, 0), agents.journals, last_window_end_us, reason, "
        "EXISTS (SELECT 1 FROM behind WHERE behind.agent = agents.no AND until_us > from_us) "
        "FROM agents LEFT JOIN journals ON journals.agent = agents.no AND journals.journal = agents.journal "
        "LEFT JOIN fences ON fences.agent = agents.no "
        "WHERE (agents.releases > 0 OR reason IS NOT NULL) AND tenant = coalesce(?, tenant) "
        "AND agents.agent = coalesce(?, agents.agent) ORDER BY tenant, agents.agent LIMIT ?"
    )
    rows: list[Any] = db.execute(query, (tenant, agent, limit)).fetchall()
    return [
        AgentSeen(
            tenant=of,
            agent=name,
            incarnation="" if incarnation is None else incarnation.hex(),
            last_seq=seq,
            releases=releases,
            missing=missing,
            journals=journals,
            behind=bool(behind),
            last_window_end=from_us(end_us),
            fence=None if reason is None else Reason(reason),
        )
        for of, name, incarnation, seq, releases, missing, journals, end_us, reason, behind in rows
    ]
