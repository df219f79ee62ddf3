"""What is known of a plan's agents at one moment: who is expected by name, whom we heard of, what their chains passed.

Place: part of the landing, over one state of its tables; an answer asks it, and the roll call takes its words.
Invariants: all that it says is of the moment when it was made, however late it is asked; it reads of those agents only
that are asked about, because in most answers few lack anything and looking at a chain costs more than adding it up.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cloud_collector.absence import BEGINNING, END, Known
from cloud_collector.landing_store import worded

if TYPE_CHECKING:
    from collections.abc import Collection

    from cloud_collector.landing_store import Statements

_HOLE = (  # the last place of a journal's chain that has no hole before it; a restored one may have holes for ever
    "CASE WHEN j.head_seq = j.releases OR EXISTS (SELECT 1 FROM behind WHERE behind.agent = j.agent "
    "AND until_us > from_us) THEN j.head_seq WHEN NOT EXISTS (SELECT 1 FROM releases AS f WHERE f.agent = j.agent "
    "AND f.journal = j.journal AND f.seq = 1) THEN 0 ELSE (SELECT seq FROM releases AS r WHERE r.agent = j.agent "
    "AND r.journal = j.journal AND NOT EXISTS (SELECT 1 FROM releases AS n WHERE n.agent = j.agent "
    "AND n.journal = j.journal AND n.seq = r.seq + 1) ORDER BY seq LIMIT 1) END"
)
PASSED = (
    "CASE WHEN (SELECT count(*) FROM journals WHERE agent = who.no AND head_seq > journals.releases) = 0 "  # noqa: S608  # of constants
    "THEN (SELECT max(window_start_us) FROM releases WHERE agent = who.no AND plan = :plan) "
    "ELSE (SELECT max(window_start_us) FROM journals AS j CROSS JOIN releases AS w WHERE j.agent = who.no "
    f"AND w.agent = j.agent AND w.plan = :plan AND w.journal = j.journal AND w.seq <= {_HOLE}) END"
)
"""In SQL: the start of the latest window of the plan that an agent `who` has passed without a hole in its chain."""
_KNOWN = (
    f"SELECT who.agent, heard_us, {PASSED}, reason, coalesce(from_us, 0), coalesce(until_us, 0) "  # noqa: S608  # of constants
    "FROM json_each(:agents) AS one CROSS JOIN agents AS who LEFT JOIN contacts ON contacts.agent = who.no "
    "LEFT JOIN fences ON fences.agent = who.no LEFT JOIN behind ON behind.agent = who.no AND behind.plan = :plan "
    "WHERE who.tenant = :tenant AND who.agent = one.key"
)
_NAMED = (
    "SELECT tenant, agent, since_us, until_us FROM expected WHERE plan = :name AND tenant = coalesce(:tenant, tenant)"
)
_REPORTED = (
    "SELECT tenant, agent, (SELECT min(window_start_us) FROM releases WHERE releases.agent = no AND plan = :plan) "
    "FROM agents WHERE tenant = coalesce(:tenant, tenant)"
)

Node = tuple[str, str]
"""A tenant and an agent."""


class Whereabouts:
    """Over one state of a landing's tables.

    Args:
        db: in a transaction that only reads.
        plan_hash: of the plan.
        name: its name.
        tenant: of whose agents alone something is told; of everybody's if None.
    """

    def __init__(self, db: Statements, plan_hash: bytes, name: str, tenant: str | None) -> None:
        self._db, self._tenant = db, tenant
        self._plan = number_of_plan(db, plan_hash)  # the first statement: from here on the state is this one
        rows = db.execute(*worded(_NAMED, {"name": name, "tenant": tenant})).fetchall()
        self.named: dict[Node, tuple[int, int]] = {(of, agent): (since, until) for of, agent, since, until in rows}
        """Agents of whom somebody said from when until when they are expected."""

    def reported(self) -> dict[Node, int]:
        """Agents that ever reported under the plan, with their first window's start; raises StoreFailed."""
        rows = self._db.execute(*worded(_REPORTED, {"plan": self._plan, "tenant": self._tenant})).fetchall()
        return {(tenant, agent): first for tenant, agent, first in rows if first is not None}

    def of(self, nodes: Collection[Node]) -> dict[Node, Known]:
        """What is known of some agents; raises StoreFailed."""
        asked: dict[str, list[str]] = {}
        for tenant, agent in nodes:
            if self._tenant in {None, tenant}:
                asked.setdefault(tenant, []).append(agent)
        found = {node: Known(since_us=since, until_us=until) for node, (since, until) in self.named.items()}
        for tenant, agents in asked.items():
            about = {"plan": self._plan, "tenant": tenant, "agents": as_keys(agents)}
            for agent, heard, passed, reason, begin, end in self._db.execute(*worded(_KNOWN, about)).fetchall():
                since, until = self.named.get((tenant, agent), (BEGINNING, END))
                found[tenant, agent] = Known(
                    heard_us=heard,
                    passed_us=passed,
                    fenced=reason is not None,
                    behind=(begin, end),
                    since_us=since,
                    until_us=until,
                )
        return found


def number_of_plan(db: Statements, plan_hash: bytes) -> int:
    """The number that a plan's rows carry; one that no row carries if there are none."""
    found: Any = db.execute("SELECT no FROM plans WHERE hash = ?", (bytes(plan_hash),)).get
    return -1 if found is None else int(found)


def as_keys(names: Collection[str]) -> str:
    """Names as what `json_each` makes rows of in either database: the keys of an object."""
    return json.dumps(dict.fromkeys(names))
