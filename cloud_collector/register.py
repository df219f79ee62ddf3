"""Whom somebody expects, and who called: rows of the landing that people and the service write.

Place: part of the landing, beside `fence.py`, over whichever store; the roll call reads them.
Invariants: the last word on an agent and plan holds, and the audit log has all of them; the later contact stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cloud_collector import fence
from cloud_collector.absence import END
from cloud_collector.landed import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloud_collector.landing_store import Statements


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """An agent that called."""

    tenant: str
    agent: str
    heard_us: int
    certificate_ends_us: int | None
    """None where it showed no certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """An agent that somebody expects."""

    tenant: str
    plan: str
    agent: str
    since_us: int
    until_us: int


def note_contacts(db: Statements, contacts: Sequence[Contact]) -> None:
    """Remember who called; whoever called later already stays as they are."""
    ones = sorted(
        contacts, key=lambda one: (one.tenant, one.agent)
    )  # two writers wait for each other in one order only
    db.executemany(
        "INSERT INTO agents (tenant, agent) SELECT ?, ? "
        "WHERE NOT EXISTS (SELECT 1 FROM agents WHERE tenant = ? AND agent = ?) ON CONFLICT (tenant, agent) DO NOTHING",
        [(one.tenant, one.agent) * 2 for one in ones],
    )
    db.executemany(
        "INSERT INTO contacts SELECT no, CAST(? AS BIGINT), CAST(? AS BIGINT) FROM agents "
        "WHERE tenant = ? AND agent = ? ON CONFLICT (agent) DO UPDATE SET heard_us = excluded.heard_us, "
        "certificate_ends_us = coalesce(excluded.certificate_ends_us, contacts.certificate_ends_us) "
        "WHERE excluded.heard_us > contacts.heard_us",
        [(one.heard_us, one.certificate_ends_us, one.tenant, one.agent) for one in ones],
    )


def expect(db: Statements, ones: Sequence[Expectation], *, who: str) -> None:
    """Expect agents from a window on, until another; what was expected of them before is replaced."""
    query = (
        "INSERT INTO expected VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, plan, agent) DO UPDATE "
        "SET since_us = excluded.since_us, until_us = excluded.until_us"
    )
    for one in ones:
        db.execute(query, (one.tenant, one.plan, one.agent, one.since_us, one.until_us))
        action = Action.EXPECTED if one.until_us == END else Action.UNEXPECTED
        fence.note(db, one.tenant, one.agent, action, reason=one.plan, who=who)


def expected(db: Statements, tenant: str | None = None, plan: str | None = None) -> list[Expectation]:
    """Who is expected by name, by tenant, plan and agent."""
    query = (
        "SELECT tenant, plan, agent, since_us, until_us FROM expected "
        "WHERE tenant = coalesce(?, tenant) AND plan = coalesce(?, plan) ORDER BY tenant, plan, agent"
    )
    return [
        Expectation(tenant=of, plan=name, agent=agent, since_us=since, until_us=until)
        for of, name, agent, since, until in db.execute(query, (tenant, plan)).fetchall()
    ]
