"""Who should have reported and did not: counted in the landing's own tables, whatever the size of the fleet.

Place: part of the landing, over whichever store; the rules are those of `absence.py`, as arithmetic on index ranges.
Invariants: one statement over a plan's agents, so a fleet of 100,000 is never a list in memory: what leaves are counts,
and so many of the worst; all of it is of one state of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cloud_collector.absence import BEGINNING, END, Due, Standing
from cloud_collector.landing_store import worded
from cloud_collector.whereabouts import PASSED, as_keys, number_of_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloud_collector.landing_store import Statements

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


def call(db: Statements, ask: Ask) -> Called:
    """Call a plan's roll, over one state of the tables."""
    number = number_of_plan(db, ask.plan_hash)
    if ask.clipped:
        first: Any = db.execute(*worded(_FIRST, {"plan": number, "tenant": ask.tenant})).get
        earliest = ask.end_us - ask.due.window_us if first is None else first
        ask = replace(ask, start_us=min(max(ask.start_us, earliest), ask.end_us))
    rows = db.execute(*worded(_ROLL, _params(ask, number))).fetchall()
    sums, listed = rows[0], rows[1:]
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
        for _, agent, fence, named, heard, ends, behind, *counts in listed
    ]
    _, _, _, agents, absent, fenced, _, *totals = sums
    return Called(
        start_us=ask.start_us,
        end_us=ask.end_us,
        agents=agents,
        absent=absent,
        fenced=fenced,
        counts=dict(zip(ORDER, totals, strict=True)),
        worst=worst,
    )


def _params(ask: Ask, number: int) -> dict[str, Any]:
    reach = ask.due.window_us + ask.due.allowed_us
    return {
        "plan": number,
        "tenant": ask.tenant,
        "name": ask.plan,
        "nodes": as_keys(ask.nodes),
        "agent": ask.agent,
        "start": ask.start_us,
        "end": ask.end_us,
        "window": ask.due.window_us,
        "reach": reach,
        "overdue": ask.due.now_us - reach + 1,
        "far": BEGINNING,
        "ever": END,
        "worst": ask.worst,
    }


def _larger(one: str, other: str) -> str:
    """Of two columns; the databases have no name in common for it."""
    return f"CASE WHEN {one} > {other} THEN {one} ELSE {other} END"


def _smaller(one: str, other: str) -> str:
    return f"CASE WHEN {one} < {other} THEN {one} ELSE {other} END"


def _snapped(moment: str, first: str, last: str) -> str:
    """The first window that starts at a moment or after, between two; a moment is a column."""
    up = f":start + ({moment} - :start + :window - 1) / :window * :window"
    return f"CASE WHEN {moment} <= {first} THEN {first} WHEN {moment} >= {last} THEN {last} ELSE {up} END"


def _here(first: str, last: str, also: str = "") -> str:
    """How many releases there are of windows between two starts."""
    return (
        f"(SELECT count(*) FROM releases WHERE releases.agent = no AND plan = :plan {also}"  # noqa: S608  # of constants
        f"AND window_start_us >= {first} AND window_start_us < {last})"
    )


def _absent(first: str, last: str) -> str:
    """How many windows between two starts are not here; the first is not after the last."""
    return f"({last} - {first}) / :window - {_here(first, last)}"


def _said(status: str) -> str:
    return _here("from_us", "to_us", f"AND status = '{status}' ")


_FIRST = (
    "SELECT min((SELECT min(window_start_us) FROM releases WHERE releases.agent = no AND plan = :plan)) "
    "FROM agents WHERE tenant = :tenant"
)
_REPORTED = "EXISTS (SELECT 1 FROM releases WHERE releases.agent = no AND plan = :plan)"
_SOMEBODY = (  # is named; a span that has an end names nobody
    "(EXISTS (SELECT 1 FROM json_each(:nodes)) OR EXISTS (SELECT 1 FROM named WHERE until_us = :ever))"
)
_WORST = "CASE WHEN fence IS NULL THEN 1 ELSE 0 END, lost + offline DESC, late DESC, vetoed + exhausted DESC, agent"
_SUMS = ", ".join(f"CAST(coalesce(sum({one.value}), 0) AS BIGINT)" for one in ORDER)
_ROLL = f"""
WITH named (agent, since_us, until_us) AS MATERIALIZED (
  SELECT agent, since_us, until_us FROM expected WHERE tenant = :tenant AND plan = :name
  UNION ALL SELECT one.key, :far, :ever FROM json_each(:nodes) AS one
  WHERE NOT EXISTS (SELECT 1 FROM expected AS e WHERE e.tenant = :tenant AND e.plan = :name AND e.agent = one.key)
), everybody (agent, since_us, until_us, named) AS (
  SELECT agent, since_us, until_us, 1 FROM named
  UNION ALL
  SELECT agents.agent, (SELECT min(window_start_us) FROM releases WHERE releases.agent = no AND plan = :plan), :ever, 0
  FROM agents LEFT JOIN named ON named.agent = agents.agent
  WHERE tenant = :tenant AND named.agent IS NULL AND NOT {_SOMEBODY} AND {_REPORTED}
  UNION ALL
  SELECT agents.agent, :far, :ever, 2 FROM agents LEFT JOIN named ON named.agent = agents.agent
  WHERE tenant = :tenant AND named.agent IS NULL AND {_SOMEBODY} AND {_REPORTED}
), who AS (
  SELECT everybody.agent AS agent, named, coalesce(agents.no, -1) AS no, heard_us,
    certificate_ends_us AS ends_us, reason AS fence,
    coalesce(behind.from_us, 0) AS lost_from, coalesce(behind.until_us, 0) AS lost_to,
    {_snapped("everybody.since_us", ":start", ":end")} AS from_us,
    {_snapped("everybody.until_us", ":start", ":end")} AS to_us
  FROM everybody LEFT JOIN agents ON agents.tenant = :tenant AND agents.agent = everybody.agent
  LEFT JOIN contacts ON contacts.agent = agents.no LEFT JOIN fences ON fences.agent = agents.no
  LEFT JOIN behind ON behind.agent = agents.no AND behind.plan = :plan
  WHERE everybody.agent = coalesce(:agent, everybody.agent)
), passed AS MATERIALIZED (
  SELECT who.*, coalesce({PASSED}, :far) AS passed_us,
    CASE WHEN fence IS NOT NULL THEN :ever ELSE coalesce(heard_us - :reach + 1, :far) END AS lives_us
  FROM who WHERE from_us < to_us
), open AS MATERIALIZED (
  SELECT passed.*, {_larger("passed_us", "lives_us")} AS open_us, {_larger("lost_from", "lost_to")} AS lost_until
  FROM passed
), closed AS MATERIALIZED (
  SELECT open.*, {_larger("open_us", ":overdue")} AS over_us FROM open
), cut AS MATERIALIZED (
  SELECT closed.*, {_snapped("passed_us", "from_us", "to_us")} AS a, {_snapped("open_us", "from_us", "to_us")} AS b,
    {_snapped("over_us", "from_us", "to_us")} AS c, {_snapped("lost_from", "from_us", "to_us")} AS d,
    {_snapped("lost_until", "from_us", "to_us")} AS e
  FROM closed
), parted AS MATERIALIZED (
  SELECT cut.*, {_larger("a", "d")} AS ad, {_larger("a", "e")} AS ae,
    {_larger("b", _smaller("c", "d"))} AS bd, {_larger("b", _smaller("c", "e"))} AS be
  FROM cut
), counted AS MATERIALIZED (
  SELECT parted.*, {_here("from_us", "to_us")} AS here, {_said("lost")} AS said_lost, {_said("vetoed")} AS vetoed,
    {_said("exhausted")} AS exhausted, {_absent("from_us", "a")} + {_absent("ad", "ae")} AS concluded,
    {_absent("b", "c")} - ({_absent("bd", "be")}) AS silent
  FROM parted
), roll AS MATERIALIZED (
  SELECT agent, named, heard_us, ends_us, fence, CASE WHEN lost_to > lost_from THEN 1 ELSE 0 END AS behind,
    here - said_lost - vetoed - exhausted AS released,
    said_lost + CASE WHEN named = 2 THEN 0 ELSE concluded END AS lost, vetoed, exhausted,
    CASE WHEN named = 2 THEN 0 ELSE silent END AS offline,
    CASE WHEN named = 2 THEN 0 ELSE (to_us - from_us) / :window - here - concluded - silent END AS late
  FROM counted WHERE named < 2 OR here > 0
)
SELECT 0, '', NULL, count(*), count(CASE WHEN lost + late + offline > 0 THEN 1 END), count(fence), 0, {_SUMS} FROM roll
UNION ALL
SELECT row_number() OVER (ORDER BY {_WORST}), agent, fence, named, heard_us, ends_us, behind,
  {", ".join(ORDER)} FROM (SELECT * FROM roll ORDER BY {_WORST} LIMIT :worst) AS worst
ORDER BY 1
"""  # noqa: S608  # of constants; what is asked is bound
