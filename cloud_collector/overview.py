"""The fleet as one look: each tenant's plans, what became of their last windows, and the agents that are worst off.

Place: for `cloud-collector fleet`, beside a collector that may be running; `board.py` shows it.
Invariants: of each plan its newest version; what is held grows with plans and with the agents that are listed, never
with the fleet; only windows count that are due, so an agent has had the plan's lateness to close each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cloud_collector.absence import Due, Standing
from cloud_collector.errors import ConfigInvalid
from cloud_collector.question import window_us
from cloud_collector.roll_call import ORDER, Ask
from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.grid import ORIGIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from cloud_collector.landing import Landing
    from cloud_collector.plans import RegisteredPlan
    from cloud_collector.roll_call import Called, Present

_US = timedelta(microseconds=1)
_ORIGIN_US = to_us(ORIGIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is looked at."""

    tenant: str | None = None
    plan: str | None = None
    agent: str | None = None
    windows: int = 10
    """The last so many that are due, of each plan."""
    until: datetime | None = None
    """And ended by then."""
    worst: int = 20
    """Agents that are listed, of all plans together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanLine:
    """One tenant's plan."""

    tenant: str
    plan: str
    version: int
    called: Called


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLine:
    """One agent under one plan."""

    tenant: str
    plan: str
    present: Present


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All of it."""

    now: datetime
    plans: Sequence[PlanLine]
    """The worst first."""
    agents: Sequence[AgentLine]
    """The worst first."""

    @property
    def well(self) -> bool:
        """Whether nobody is fenced, and no window is lost or offline."""
        return not any(badness(one.called.counts, fenced=one.called.fenced)[:2] != (0, 0) for one in self.plans)


def look(
    landing: Landing, plans: Iterable[RegisteredPlan], wanted: Wanted, *, now: datetime, grace: timedelta
) -> Overview:
    """Call the roll of every plan that is wanted; raises StoreFailed."""
    newest: dict[tuple[str, str], RegisteredPlan] = {}
    for one in plans:  # ascending versions
        if wanted.tenant in {None, one.tenant} and wanted.plan in {None, one.plan.name}:
            newest[one.tenant, one.plan.name] = one
    lines, agents = [], []
    for one in newest.values():
        called = landing.roll_call(_ask(one, wanted, now, grace))
        about = {"tenant": one.tenant, "plan": one.plan.name}
        if wanted.agent is None or called.agents:
            lines.append(PlanLine(**about, version=one.plan.version, called=replace(called, worst=())))
        agents += [AgentLine(**about, present=present) for present in called.worst]
    lines.sort(key=lambda line: (*_worse(line.called.counts, line.called.fenced), line.tenant, line.plan))
    agents.sort(key=lambda line: (*_worse(line.present.counts, line.present.fence is not None), line.present.agent))
    return Overview(now=now, plans=lines, agents=agents[: wanted.worst])


def require_there(landing: Landing, plans: Iterable[RegisteredPlan], wanted: Wanted) -> None:
    """Refuse what names nothing that there is, for nothing is well in a name that was mistyped.

    Raises:
        ConfigInvalid: no plan is of that tenant and name, or nobody expects the agent or ever heard of it.
        StoreFailed: the landing cannot be read.
    """
    found = [one for one in plans if wanted.tenant in {None, one.tenant} and wanted.plan in {None, one.plan.name}]
    if not found and (wanted.tenant is not None or wanted.plan is not None):
        raise ConfigInvalid("no plan of this tenant and name is registered: look at the name, or at `plans list`")
    if wanted.agent is None or any(wanted.agent in one.nodes for one in found):
        return
    about = {(one.tenant, one.plan.name) for one in found}
    told = landing.expected(wanted.tenant, wanted.plan)
    if any(one.agent == wanted.agent and (one.tenant, one.plan) in about for one in told):
        return
    if not any(one.tenant in {tenant for tenant, _ in about} for one in landing.agents(wanted.tenant, wanted.agent)):
        raise ConfigInvalid("nobody expects an agent of this name, and none ever reported: look at the name")


def badness(counts: Mapping[Standing, int], *, fenced: int) -> tuple[int, int, int]:
    """How badly off: fenced, gone, late."""
    return fenced, counts[Standing.LOST] + counts[Standing.OFFLINE], counts[Standing.LATE]


def _worse(counts: Mapping[Standing, int], fenced: int) -> tuple[int, ...]:
    return tuple(-n for n in badness(counts, fenced=int(fenced)))


def _ask(one: RegisteredPlan, wanted: Wanted, now: datetime, grace: timedelta) -> Ask:
    length = window_us(one.plan)
    closed = min(to_us(now) - one.plan.lateness // _US, to_us(now if wanted.until is None else wanted.until))
    end = closed - (closed - _ORIGIN_US) % length
    return Ask(
        tenant=one.tenant,
        plan=one.plan.name,
        plan_hash=bytes(one.hash),
        nodes=one.nodes,
        due=Due(window_us=length, allowed_us=(one.plan.lateness + grace) // _US, now_us=to_us(now)),
        start_us=end - wanted.windows * length,
        end_us=end,
        clipped=True,
        agent=wanted.agent,
        worst=wanted.worst,
    )


def as_json(seen: Overview) -> dict[str, Any]:
    """For machines."""
    return {
        "at": seen.now.isoformat(),
        "well": seen.well,
        "plans": [
            {
                "tenant": one.tenant,
                "plan": one.plan,
                "version": one.version,
                "from": from_us(one.called.start_us).isoformat(),
                "until": from_us(one.called.end_us).isoformat(),
                "agents": one.called.agents,
                "agents_absent": one.called.absent,
                "agents_fenced": one.called.fenced,
                "windows": {str(what): one.called.counts[what] for what in ORDER},
            }
            for one in seen.plans
        ],
        "worst": [
            {
                "tenant": one.tenant,
                "plan": one.plan,
                "agent": one.present.agent,
                "last_heard": _iso(one.present.heard_us),
                "certificate_ends": _iso(one.present.certificate_ends_us),
                "fence": one.present.fence,
                "restored_behind": one.present.behind,
                "expected": one.present.expected,
                "windows": {str(what): one.present.counts[what] for what in ORDER},
            }
            for one in seen.agents
        ],
    }


def _iso(us: int | None) -> str | None:
    return None if us is None else from_us(us).isoformat()
