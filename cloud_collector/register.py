"""Whom somebody expects, and who called: rows of the landing that people and the service write.

Place: part of the landing, beside `fence.py`; the roll call reads them.
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

    import apsw


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


def note_contacts(db: apsw.Connection, contacts: Sequence[Contact]) -> None:
    """Remember who called; whoever called later already stays as they are."""
    db.executemany(
        "INSERT INTO contacts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET heard_us = excluded.heard_us, "
        "certificate_ends_us = coalesce(excluded.certificate_ends_us, certificate_ends_us) "
        "WHERE excluded.heard_us > heard_us",
        [(fence.number_of(db, one.tenant, one.agent), one.heard_us, one.certificate_ends_us) for one in contacts],
    )


def expect(db: apsw.Connection, ones: Sequence[Expectation], *, who: str) -> None:
    """Expect agents from a window on, until another; what was expected of them before is replaced."""
    for one in ones:
        row = (one.tenant, one.plan, one.agent, one.since_us, one.until_us)
        db.execute("INSERT OR REPLACE INTO expected VALUES (?, ?, ?, ?, ?)", row)
        action = Action.EXPECTED if one.until_us == END else Action.UNEXPECTED
        fence.note(db, one.tenant, one.agent, action, reason=one.plan, who=who)


def expected(db: apsw.Connection, tenant: str | None = None, plan: str | None = None) -> list[Expectation]:
    """Who is expected by name, by tenant, plan and agent."""
    query = (
        "SELECT tenant, plan, agent, since_us, until_us FROM expected "
        "WHERE (?1 IS NULL OR tenant = ?1) AND (?2 IS NULL OR plan = ?2) ORDER BY tenant, plan, agent"
    )
    return [
        Expectation(tenant=of, plan=name, agent=agent, since_us=since, until_us=until)
        for of, name, agent, since, until in db.execute(query, (tenant, plan))
    ]
