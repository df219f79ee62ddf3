"""Who should have reported and did not: counted in the landing's own file, whatever the size of the fleet.

Place: part of the landing, as `fence.py` is; the rules are those of `absence.py`, here as arithmetic on index ranges.
Invariants: one statement over a plan's agents, so a fleet of 100,000 is never a list in memory: what leaves are counts,
and so many of the worst; all of it is read in one transaction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cloud_collector.absence import BEGINNING, END, Due, Known, Standing
from cloud_collector.register import expected

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import apsw

ORDER = (Standing.RELEASED, Standing.LATE, Standing.LOST, Standing.VETOED, Standing.OFFLINE, Standing.EXHAUSTED)
"""The columns of counts, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Which windows of whom."""

    tenant: str
    plan: str
    plan_hash: bytes
    nodes: Sequence[str]
    """The agents that are registered for the plan."""
    due: Due
    start_us: int
    """The first window's start."""
    end_us: int
    """The last window's end, a multiple of windows later."""
    clipped: bool = False
    """Whether the range begins with the plan's first release at the earliest, and has one window if there is none."""
    agent: str | None = None
    """Of this one only."""
    worst: int = 20
    """How many agents are told of one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """One agent, and what became of its windows."""

    agent: str
    counts: Mapping[Standing, int]
    heard_us: int | None
    certificate_ends_us: int | None
    fence: str | None
    expected: bool
    """Whether it is; of one that is not, only what is here counts."""
    behind: bool
    """Whether a restore lost what was acked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Called:
    """What became of a plan's windows."""

    start_us: int
    """The range that was looked at."""
    end_us: int
    agents: int
    absent: int
    """Agents of which a window is not here that should be, or that said they lost it."""
    fenced: int
    counts: Mapping[Standing, int]
    worst: Sequence[Present]
    """Those with most windows lost or offline first, then the latest, then by name."""


_UNEXPECTED = 2  # others are expected: named (1), or learned from what they sent (0)
_NUMBER = "SELECT no FROM plans WHERE hash = ?"
_HOLE = (  # the last place of a journal's chain that has no hole before it; a restored one may have holes for ever
    "CASE WHEN head_seq = j.releases OR EXISTS (SELECT 1 FROM behind WHERE behind.agent = j.agent "
    "AND until_us > from_us) THEN head_seq WHEN NOT EXISTS (SELECT 1 FROM releases AS f WHERE f.agent = j.agent "
    "AND f.journal = j.journal AND f.seq = 1) THEN 0 ELSE (SELECT seq FROM releases AS r WHERE r.agent = j.agent "
    "AND r.journal = j.journal AND NOT EXISTS (SELECT 1 FROM releases AS n WHERE n.agent = j.agent "
    "AND n.journal = j.journal AND n.seq = r.seq + 1) ORDER BY seq LIMIT 1) END"
)
_PASSED = (  # the start of the latest window of the plan up to there
    "CASE WHEN (SELECT count(*) FROM journals WHERE agent = who.no AND head_seq > journals.releases) = 0 "  # noqa: S608  # of constants
    "THEN (SELECT max(window_start_us) FROM releases WHERE agent = who.no AND plan = ?1) "
    "ELSE (SELECT max(window_start_us) FROM journals AS j CROSS JOIN releases AS w WHERE j.agent = who.no "
    f"AND w.agent = j.agent AND w.plan = ?1 AND w.journal = j.journal AND w.seq <= {_HOLE}) END"
)


def known(db: apsw.Connection, plan_hash: bytes, name: str, tenant: str | None) -> dict[tuple[str, str], Known]:
    """What is known of each agent, as far as a plan is concerned."""
    number: Any = db.execute(_NUMBER, (bytes(plan_hash),)).get
    query = (
        f"SELECT who.tenant, who.agent, heard_us, {_PASSED}, reason NOT NULL, coalesce(from_us, 0), "  # noqa: S608
        "coalesce(until_us, 0) FROM agents AS who LEFT JOIN contacts ON contacts.agent = no "
        "LEFT JOIN fences ON fences.agent = no LEFT JOIN behind ON behind.agent = no AND behind.plan = ?1 "
        "WHERE ?2 IS NULL OR who.tenant = ?2"
    )
    spans = {(one.tenant, one.agent): (one.since_us, one.until_us) for one in expected(db, tenant, name)}
    found = {(of, agent): Known(since_us=since, until_us=until) for (of, agent), (since, until) in spans.items()}
    for of, agent, heard, passed, fenced, begin, end in db.execute(query, (number, tenant)):
        since, until = spans.get((of, agent), (BEGINNING, END))
        found[of, agent] = Known(
            heard_us=heard,
            passed_us=passed,
            fenced=bool(fenced),
            behind=(begin, end),
            since_us=since,
            until_us=until,
        )
    return found


def call(db: apsw.Connection, ask: Ask) -> Called:
    """Call a plan's roll; the connection is in a transaction that is rolled back."""
    number: Any = db.execute(_NUMBER, (bytes(ask.plan_hash),)).get
    db.execute("DROP TABLE IF EXISTS temp.roll")
    if ask.clipped:
        first: Any = db.execute(_FIRST, {"plan": number, "tenant": ask.tenant}).get
        earliest = ask.end_us - ask.due.window_us if first is None else first
        ask = replace(ask, start_us=min(max(ask.start_us, earliest), ask.end_us))
    db.execute(_ROLL, {"plan": number, **_params(ask)})
    sums = ", ".join(f"coalesce(sum({one.value}), 0)" for one in ORDER)
    row: Any = db.execute(
        f"SELECT count(*), coalesce(sum(lost + late + offline > 0), 0), count(fence), {sums} FROM temp.roll"  # noqa: S608
    ).fetchone()
    listed = db.execute(
        f"SELECT agent, heard_us, ends_us, fence, named, behind, {', '.join(ORDER)} FROM temp.roll "  # noqa: S608
        "ORDER BY fence NOT NULL DESC, lost + offline DESC, late DESC, vetoed + exhausted DESC, agent LIMIT ?",
        (ask.worst,),
    )
    worst = [
        Present(
            agent=agent,
            counts=dict(zip(ORDER, counts, strict=True)),
            heard_us=heard,
            certificate_ends_us=ends,
            fence=fence,
            expected=named != _UNEXPECTED,
            behind=bool(behind),
        )
        for agent, heard, ends, fence, named, behind, *counts in listed
    ]
    db.execute("DROP TABLE temp.roll")
    counts = dict(zip(ORDER, row[3:], strict=True))
    about = {"start_us": ask.start_us, "end_us": ask.end_us, "agents": row[0], "absent": row[1], "fenced": row[2]}
    return Called(**about, counts=counts, worst=worst)


def _params(ask: Ask) -> dict[str, Any]:
    reach = ask.due.window_us + ask.due.allowed_us
    return {
        "tenant": ask.tenant,
        "name": ask.plan,
        "nodes": json.dumps(list(ask.nodes)),
        "agent": ask.agent,
        "start": ask.start_us,
        "end": ask.end_us,
        "window": ask.due.window_us,
        "reach": reach,
        "overdue": ask.due.now_us - reach + 1,
        "far": BEGINNING,
        "ever": END,
    }


def _snapped(moment: str) -> str:
    """The first window of the range that starts at a moment or after, at most the range's end."""
    return f"min(to_us, max(from_us, $start + (max(0, {moment} - $start) + $window - 1) / $window * $window))"


def _absent(first: str, last: str) -> str:
    """How many windows between two starts are not here."""
    here = f"SELECT count(*) FROM releases WHERE agent = no AND plan = $plan AND window_start_us >= {first}"  # noqa: S608
    return f"max(0, ({last} - {first}) / $window - ({here} AND window_start_us < {last}))"


_SAID = (
    "(SELECT count(*) FROM releases INDEXED BY told WHERE agent = no AND plan = $plan AND status = '{status}' "
    "AND window_start_us >= from_us AND window_start_us < to_us)"
)
_HERE = (
    "(SELECT count(*) FROM releases WHERE agent = no AND plan = $plan "
    "AND window_start_us >= from_us AND window_start_us < to_us)"
)
_FIRST = (
    "SELECT min((SELECT min(window_start_us) FROM releases WHERE releases.agent = no AND plan = $plan)) "
    "FROM agents WHERE tenant = $tenant"
)
_HEARD = "coalesce(heard_us - $reach + 1, $far)"
_ROLL = f"""
CREATE TEMP TABLE roll AS
WITH named (agent, since_us, until_us) AS (
  SELECT agent, since_us, until_us FROM expected WHERE tenant = $tenant AND plan = $name
  UNION ALL SELECT value, $far, $ever FROM json_each($nodes)
  WHERE NOT EXISTS (SELECT 1 FROM expected WHERE tenant = $tenant AND plan = $name AND expected.agent = value)
), everybody (agent, since_us, until_us, named) AS (
  SELECT agent, since_us, until_us, 1 FROM named
  UNION ALL
  SELECT agent, (SELECT min(window_start_us) FROM releases WHERE releases.agent = no AND plan = $plan), $ever, 0
  FROM agents WHERE tenant = $tenant AND NOT EXISTS (SELECT 1 FROM named)
  AND EXISTS (SELECT 1 FROM releases WHERE releases.agent = no AND plan = $plan)
  UNION ALL SELECT agent, $far, $ever, 2 FROM agents WHERE tenant = $tenant AND EXISTS (SELECT 1 FROM named)
  AND agent NOT IN (SELECT agent FROM named)
  AND EXISTS (SELECT 1 FROM releases WHERE releases.agent = no AND plan = $plan)
), who AS (
  SELECT everybody.agent AS agent, named, coalesce(agents.no, -1) AS no, heard_us,
    certificate_ends_us AS ends_us, reason,
    coalesce(behind.from_us, 0) AS lost_from, coalesce(behind.until_us, 0) AS lost_to,
    max($start, $start + (max(0, everybody.since_us - $start) + $window - 1) / $window * $window) AS from_us,
    min($end, $start + (max(0, everybody.until_us - $start) + $window - 1) / $window * $window) AS to_us
  FROM everybody LEFT JOIN agents ON agents.tenant = $tenant AND agents.agent = everybody.agent
  LEFT JOIN contacts ON contacts.agent = agents.no LEFT JOIN fences ON fences.agent = agents.no
  LEFT JOIN behind ON behind.agent = agents.no AND behind.plan = $plan
  WHERE $agent IS NULL OR everybody.agent = $agent
), passed AS MATERIALIZED (
  SELECT who.*, coalesce({_PASSED.replace("?1", "$plan")}, $far) AS passed_us FROM who WHERE from_us < to_us
), cut AS MATERIALIZED (
  SELECT *, {_snapped("passed_us")} AS a,
    {_snapped(f"max(passed_us, iif(reason NOT NULL, $ever, {_HEARD}))")} AS b,
    {_snapped(f"max(passed_us, iif(reason NOT NULL, $ever, max({_HEARD}, $overdue)))")} AS c,
    {_snapped("lost_from")} AS d, {_snapped("max(lost_from, lost_to)")} AS e
  FROM passed
), counted AS MATERIALIZED (
  SELECT *, {_HERE} AS here, {_SAID.format(status="lost")} AS said_lost, {_SAID.format(status="vetoed")} AS vetoed,
    {_SAID.format(status="exhausted")} AS exhausted,
    {_absent("from_us", "a")} + {_absent("max(a, d)", "max(a, e)")} AS concluded,
    {_absent("b", "c")} - {_absent("max(b, min(c, d))", "max(b, min(c, e))")} AS offline
  FROM cut
)
SELECT agent, named, heard_us, ends_us, reason AS fence, lost_to > lost_from AS behind,
  here - said_lost - vetoed - exhausted AS released, said_lost + iif(named = 2, 0, concluded) AS lost, vetoed,
  exhausted, iif(named = 2, 0, offline) AS offline,
  iif(named = 2, 0, (to_us - from_us) / $window - here - concluded - offline) AS late
FROM counted WHERE named < 2 OR here > 0
"""  # noqa: S608  # of constants; what is asked is bound
