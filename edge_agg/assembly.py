"""The composition root: builds an agent's parts out of its config, and retunes them when the config is reloaded.

Place: between the command line and the agent.
Invariants: a reload changes tuning, never meaning: it is taken as a whole or refused as a whole.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_agg.accounts import budget_for, check_charged
from edge_agg.agent import Agent, Tuning
from edge_agg.ceilings import Ceilings
from edge_agg.config import bytes_of, plans_of, span_of
from edge_agg.contract.plan import parse_duration, plan_hash
from edge_agg.departures import Departures
from edge_agg.errors import ConfigInvalid
from edge_agg.herald import Herald
from edge_agg.identity.credentials import credentials_of
from edge_agg.identity.renewal import Renewal
from edge_agg.ingest.kinds import source_of
from edge_agg.intake import Intake
from edge_agg.journal import Journal
from edge_agg.policy import Policy, load_policy, veto
from edge_agg.positions import Positions
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import Account, Series
from edge_agg.spool import Spool
from edge_agg.telemetry import Event, emit
from edge_agg.timekeeper import Timekeeper
from edge_agg.uplink import Uplink
from edge_agg.window import Span
from edge_agg.wire import GrpcWire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_agg.clock import Clock
    from edge_agg.config import Config
    from edge_agg.contract.plan import Plan
    from edge_agg.ingest.source import Source
    from edge_agg.ingest.trouble import Trouble
    from edge_agg.privacy.ledger import Budget
    from edge_agg.wire import Wire

TUNING = {"agent": ("hold", "stop_s"), "collector": ("batch", "retry_first_s", "retry_limit_s")}
"""By table: the fields that a running agent takes from a reloaded config, beside all of `[memory]` and `[disk]`."""


def build(
    config: Config,
    plans: Sequence[Plan],
    *,
    clock: Clock,
    wire: Wire | None = None,
    going_on: Callable[[], None] = lambda: None,
) -> Agent:
    """Build an agent's parts.

    Args:
        config: the agent's config.
        plans: the plans it names, in its order.
        clock: the one door to time.
        wire: the way to the collector; over gRPC unless a test brings its own. Needs a running event loop.
        going_on: called again and again while raw events are read back, here and when the agent starts.

    Raises:
        ConfigInvalid: the device's policy cannot be read, or its certificate, or that is another agent's; or charges of
            the journal would count against no account, or against another.
        PlanRefused: a plan cannot be calibrated.
        JournalFull, SpoolFull: the state folder has no room, or is read-only; build again later.
        JournalFailed, SpoolFailed: the state folder cannot be used.
    """
    table = config.collector
    credentials = credentials_of(table, tenant=config.agent.tenant, agent=config.agent.name)
    renewal = None
    if credentials is not None:
        renewal = Renewal(address=table.url, credentials=credentials, clock=clock, jitter=random.random)
    measurements = [compile_plan(plan) for plan in plans]
    state = Path(config.agent.state)
    journal = Journal.open(state, config.agent.name, now=clock.now())
    try:
        check_charged(config, plans, journal)
    except ConfigInvalid:
        journal.close()
        raise
    pays_for = {table.name: plans_of(config, plans, table.name) for table in config.account}
    accounts = {
        table.name: Account(name=table.name, budget=budget_for(table, pays_for[table.name], journal))
        for table in config.account
    }
    begun_with = _begun_with(config, plans)
    start, end = span_of(config.history)
    history = Span(start=start, end=end)
    policy = _policy(config)
    series = [
        Series(
            tenant=config.agent.tenant,
            measurement=measurement,
            account=accounts[entry.account],
            journal=journal,
            span=history,
            veto=veto(policy, measurement, begun_with[entry.account]),
        )
        for measurement, entry in zip(measurements, config.plan, strict=True)
    ]
    ceilings = Ceilings(memory_bytes=bytes_of(config.memory.limit), disk_bytes=bytes_of(config.disk.limit), state=state)
    spool = None
    if config.agent.spool == "disk":
        spool = Spool.open(state / "spool", quota_bytes=ceilings.spool_quota(), going_on=going_on)
    allowed = [one.measurement.plan for one in series if one.veto is None]
    columns = {name: kind for plan in allowed for name, kind in plan.events.columns.items()}
    intake = Intake(
        columns=columns,
        series=series,
        spool=spool,
        ceilings=ceilings,
        clock=clock,
        going_on=going_on,
    )
    wire = wire or GrpcWire(table.url, deadline_s=table.deadline_s, credentials=credentials)
    departures = Departures(clock=clock, every_s=parse_duration(table.leave_every).total_seconds())
    herald = Herald(
        tenant=config.agent.tenant,
        agent=config.agent.name,
        accounts=list(accounts),
        journal=journal,
        wire=wire,
        clock=clock,
        jitter=random.random,
        retry_first_s=table.retry_first_s,
        retry_limit_s=table.retry_limit_s,
        waits=config.agent.unheard == "wait",
        departures=departures,
    )
    return Agent(
        name=config.agent.name,
        sources=_sources(config, clock, intake) if allowed else [],
        intake=intake,
        series=series,
        journal=journal,
        positions=Positions(journal=journal, series=series),
        uplink=Uplink(
            journal=journal,
            renewal=renewal,
            wire=wire,
            clock=clock,
            jitter=random.random,
            batch=table.batch,
            retry_first_s=table.retry_first_s,
            retry_limit_s=table.retry_limit_s,
            fenced=herald.told_fenced,
            departures=departures,
        ),
        departures=departures,
        herald=herald,
        clock=clock,
        timekeeper=Timekeeper(
            created=journal.created,
            last_seen=journal.last_seen,
            max_jump=parse_duration(config.clock.max_jump),
            settle=parse_duration(config.clock.settle),
        ),
        ceilings=ceilings,
        tuning=_tuning(config),
        history=history,
    )


def retune(agent: Agent, old: Config, new: Config, plans: Sequence[Plan]) -> str | None:
    """Take over the tuning of a reloaded config.

    Args:
        agent: as built of `old`.
        old: the config that runs.
        new: as read again.
        plans: the plans it names, as read again.

    Returns:
        What takes a restart, and nothing was taken; None if all that differs is tuning, and it was.

    Raises:
        ConfigInvalid: the device's policy cannot be read; nothing was taken.
    """
    if _without_tuning(old) != _without_tuning(new):
        return "more than tuning differs"
    if [plan_hash(plan) for plan in plans] != [one.hash for one in agent.series]:
        return "a plan differs"
    policy, budgets = _policy(new), _begun_with(new, plans)
    if any(veto(policy, one.measurement, budgets[one.account.name]) != one.veto for one in agent.series):
        return "the policy forbids other plans"
    agent.tuning = _tuning(new)
    agent.ceilings.memory_bytes = bytes_of(new.memory.limit)
    agent.ceilings.disk_bytes = bytes_of(new.disk.limit)
    agent.uplink.batch = new.collector.batch
    for caller in (agent.uplink, agent.herald):
        caller.retry_first_s = new.collector.retry_first_s
        caller.retry_limit_s = new.collector.retry_limit_s
    return None


def _begun_with(config: Config, plans: Sequence[Plan]) -> dict[str, Budget]:
    """What each account has before anything is charged: what a policy is held against, at the start and at a reload."""
    return {table.name: budget_for(table, plans_of(config, plans, table.name)) for table in config.account}


def _policy(config: Config) -> Policy:
    return load_policy(Path(config.agent.policy)) if config.agent.policy else Policy()


def _sources(config: Config, clock: Clock, intake: Intake) -> list[Source]:
    def heard(trouble: Trouble) -> None:
        intake.counts[trouble.value] += 1
        emit(Event.SOURCE_TROUBLED, trouble=trouble.value)

    def one_time(column: str, first_us: int, last_us: int) -> bool:
        return all(one.takes_one_time(column, first_us, last_us) for one in intake.series if one.veto is None)

    return [source_of(table, clock=clock, heard=heard, one_time=one_time) for table in config.source]


def _tuning(config: Config) -> Tuning:
    return Tuning(
        hold=parse_duration(config.agent.hold),
        stop_s=config.agent.stop_s,
        spool_age=parse_duration(config.disk.spool_age),
    )


def _without_tuning(config: Config) -> dict[str, object]:
    tables: dict[str, object] = msgspec.to_builtins(config)
    for table in ("memory", "disk"):
        tables.pop(table)
    for table, names in TUNING.items():
        fields = tables[table]
        assert isinstance(fields, dict), "a table"
        for name in names:
            fields.pop(name)
    return tables
