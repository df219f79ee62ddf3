"""An agent's state: what its journal, its folder and its config say, and while it runs what it says itself.

Place: gathered for `edge-agg status`; `status.py` shows it.
Invariants: it changes nothing; it is safe while the agent runs; what only this device may know stands apart, in
`local_counts` and `held_rows`, and is left out of what machines get.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agg.accounts import budget_for
from edge_agg.config import bytes_of, plans_of
from edge_agg.contract.plan import plan_hash
from edge_agg.identity.credentials import lifetime_of
from edge_agg.journal import Journal
from edge_agg.lock import holder
from edge_agg.policy import Policy, load_policy, objections
from edge_agg.privacy.measurement import compile_plan
from edge_agg.prospect import prospects
from edge_agg.report.live import ask

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from edge_agg.config import Config
    from edge_agg.contract.plan import Plan
    from edge_agg.identity.credentials import Lifetime
    from edge_agg.journal import Parked
    from edge_agg.policy import Objection
    from edge_agg.report.live import Live

STATUSES = ("released", "exhausted", "lost", "vetoed")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanState:
    """One plan of the config."""

    name: str
    version: int
    hash: bytes
    account: str
    sealed: Mapping[str, int]
    """Windows by status."""
    closed_before: datetime | None
    veto: Objection | None
    """The first rule of the device's policy that it breaks, as the policy reads now."""
    open: Sequence[datetime] | None
    """The starts of its open windows; None while nobody who knows answers."""
    held_rows: int | None
    """Rows that they hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountState:
    """One account, in words."""

    name: str
    spent: str
    lasts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that the page shows."""

    agent: str
    now: datetime
    pid: int | None
    """Of the agent that runs on the folder."""
    live: Live | None
    """What it says; None if it does not run, or does not answer."""
    memory_bytes: int | None
    memory_limit: int
    disk_bytes: int
    """What the state folder takes."""
    disk_limit: int
    disk_free: int
    """Of the file system that it lies on."""
    plans: Sequence[PlanState]
    waiting: int
    oldest: datetime | None
    """The end of the oldest window that waits."""
    parked: Sequence[Parked]
    accounts: Sequence[AccountState]
    local_counts: Mapping[str, int]
    certificate: Lifetime | None = None
    """Of the certificate that the agent shows; None without TLS, or where the file cannot be read."""


def look(config: Config, plans: Sequence[Plan], *, now: datetime) -> State:
    """Gather an agent's state.

    Raises:
        JournalFailed: there is no journal yet, or it cannot be read.
        ConfigInvalid: the policy is wrong.
    """
    folder = Path(config.agent.state)
    journal = Journal.read(folder, config.agent.name)
    try:
        vetoes = vetoes_of(config, plans)
        pid, live = holder(folder), ask(folder)
        vetoed = {plan.name for plan, veto in zip(plans, vetoes, strict=True) if veto is not None}
        said = {one.name: one for one in live.plans} if live is not None else {}
        found = prospects(config, plans, now=now, vetoed=vetoed)
        return State(
            agent=config.agent.name,
            now=now,
            pid=pid,
            live=live,
            memory_bytes=live.memory_bytes if live is not None else _resident_bytes(pid),
            memory_limit=bytes_of(config.memory.limit),
            disk_bytes=folder_bytes(folder),
            disk_limit=bytes_of(config.disk.limit),
            disk_free=shutil.disk_usage(folder).free,
            plans=[
                PlanState(
                    name=plan.name,
                    version=plan.version,
                    hash=plan_hash(plan),
                    account=entry.account,
                    sealed=journal.statuses(plan_hash(plan)),
                    closed_before=journal.closed_before(plan_hash(plan)),
                    veto=veto,
                    open=said[plan.name].open if plan.name in said else None,
                    held_rows=said[plan.name].held_rows if plan.name in said else None,
                )
                for plan, entry, veto in zip(plans, config.plan, vetoes, strict=True)
            ],
            waiting=journal.unacked(),
            oldest=journal.oldest_waiting(),
            parked=journal.parked(),
            accounts=[AccountState(name=one.account.name, spent=one.spent(), lasts=one.lasts()) for one in found],
            local_counts=journal.local_counts(),
            certificate=lifetime_of(config.collector),
        )
    finally:
        journal.close()


def vetoes_of(config: Config, plans: Sequence[Plan]) -> list[Objection | None]:
    """The first rule of the device's policy that each plan breaks, if it breaks any.

    Raises:
        ConfigInvalid: the policy is wrong.
    """
    if config.agent.policy is None:
        return [None for _ in plans]
    policy: Policy = load_policy(Path(config.agent.policy))
    budgets = {table.name: budget_for(table, plans_of(config, plans, table.name)) for table in config.account}
    return [
        next(objections(policy, compile_plan(plan), budgets[entry.account]), None)
        for plan, entry in zip(plans, config.plan, strict=True)
    ]


def folder_bytes(folder: Path) -> int:
    """What all files of a folder take on the disk."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(place) / name).st_blocks * 512
            except OSError:
                continue  # it went away meanwhile
    return total


def _resident_bytes(pid: int | None) -> int | None:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
