"""What the command line shows a person: statements of loss, predicted errors, the state of a journal.

Place: beside the composition root, for `edge-agg check`, `status` and the bars of `run`; it spends and changes nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from edge_agg import telemetry
from edge_agg.config import AccountTable, horizon_of, load, load_plan
from edge_agg.contract import arrow
from edge_agg.contract.cells import n_cells
from edge_agg.contract.grid import window_of
from edge_agg.contract.plan import plan_hash
from edge_agg.errors import ConfigInvalid
from edge_agg.journal import Journal
from edge_agg.lock import holder
from edge_agg.privacy.ledger import heaviest, windows_left
from edge_agg.privacy.measurement import Measurement, compile_plan
from edge_agg.privacy.statement import budget_of, loss, period, predict, rounded_up, state
from edge_agg.telemetry import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.contract.plan import Plan

HEADER_BYTES = 700
"""About what the envelope adds to a payload."""


def check(path: Path, sites: int) -> None:
    """Print what a plan, or every plan of an agent's config, would cost and release.

    Raises:
        ConfigInvalid: the file is neither a valid plan nor a valid config.
        PlanRefused: no noise fits a budget.
    """
    console = Console()
    if _is_config(path):
        config, plans = load(path)
        accounts = {account.name: account for account in config.account}
        for entry, plan in zip(config.plan, plans, strict=True):
            _show_plan(console, plan, accounts[entry.account], sites)
        if config.history is None:
            console.print(
                "[yellow]No \\[history]:[/] `run --drain` then takes the first and last window from the data itself, "
                "and which windows exist is not protected. State the span to close this."
            )
    else:
        _show_plan(console, load_plan(path), None, sites)


def status(path: Path) -> None:
    """Print the state of an agent's journal.

    Raises:
        ConfigInvalid: the config is wrong.
        JournalFailed: there is no journal yet, or it cannot be read.
    """
    console = Console()
    config, plans = load(path)
    folder = Path(config.agent.state)
    journal = Journal.read(folder, config.agent.name)
    pid = holder(folder)
    memory = "" if pid is None else f", {_resident_mb(pid)} MB of memory"
    console.print(
        f"[bold]{config.agent.name}[/]  " + ("not running" if pid is None else f"running (pid {pid}{memory})")
    )
    table = Table("plan", "released", "exhausted", "lost", "closed to", title="windows")
    for plan in plans:
        sealed = journal.statuses(plan_hash(plan))
        closed = journal.closed_before(plan_hash(plan))
        counts = (str(sealed.get(name, 0)) for name in ("released", "exhausted", "lost"))
        table.add_row(f"{plan.name} v{plan.version}", *counts, f"{closed:%Y-%m-%d %H:%M}" if closed else "-")
    console.print(table)
    oldest = journal.oldest_waiting()
    waits = f"{journal.unacked()} releases wait to be acked"
    console.print(waits + (f", the oldest for the window that ended {oldest:%Y-%m-%d %H:%M}" if oldest else ""))
    for parked in journal.parked():
        console.print(
            f"[red]refused for good[/]: seq {parked.seq}, window {parked.window_start:%Y-%m-%d}: {parked.refusal}"
        )
    accounts = {account.name: account for account in config.account}
    for entry, plan in zip(config.plan, plans, strict=True):
        console.print(_budget_words(journal, accounts[entry.account], compile_plan(plan)))
    console.print("[dim]Known to this device only, never sent:[/]")
    for name, n in journal.local_counts().items():
        console.print(f"[dim]  {name}: {n:,}[/]")
    journal.close()


@contextmanager
def bars() -> Iterator[None]:
    """Show how far a run is, on standard error."""
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        read = progress.add_task("files read", total=None)
        sealed = progress.add_task("windows sealed", total=None)
        acked = progress.add_task("releases acked", total=None)

        def follow(event: Event, fields: dict[str, str | float]) -> None:
            if event is Event.PART_READ:
                progress.update(read, completed=int(fields["parts"]))
            elif event is Event.WINDOWS_DUE:
                progress.update(read, total=progress.tasks[read].completed)
                for task in (sealed, acked):
                    progress.update(task, total=(progress.tasks[task].total or 0) + int(fields["windows"]))
            elif event is Event.WINDOW_SEALED:
                progress.advance(sealed)
            elif event is Event.RELEASES_ACKED:
                progress.advance(acked, int(fields["releases"]))

        telemetry.watch(follow)
        yield


def _is_config(path: Path) -> bool:
    import tomllib  # noqa: PLC0415  # only to look which of the two strict readers to call

    try:
        return "agent" in tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise ConfigInvalid(f"{path}: not TOML") from None


def _show_plan(console: Console, plan: Plan, account: AccountTable | None, sites: int) -> None:
    measurement = compile_plan(plan)
    console.print(f"[bold]{plan.name} v{plan.version}[/]  {plan_hash(plan).hex()[:12]}  {plan.plan.description}")
    console.print(
        f"every {plan.window.every}: {n_cells(plan)} cells x {len(measurement.specs)} vectors, "
        f"about {_payload_bytes(measurement) + HEADER_BYTES:,} bytes a release, whatever the data"
    )
    _show_loss(console, plan, measurement, account)
    scales = Table("released vector", "noise", "scale (grid steps)", "sensitivity", title="what leaves the device")
    for spec in measurement.specs:
        scales.add_row(spec.name, spec.mechanism, f"{spec.scale:,.2f}", f"{spec.sensitivity:,.2f}")
    console.print(scales)
    title = "predicted error of one cell and window, 95 %, from noise alone"
    errors = Table("metric", "at one site", f"over {sites} sites", "taken for granted", title=title)
    for prediction in predict(measurement, sites):
        errors.add_row(
            prediction.metric, f"± {prediction.one_site:,.2f}", f"± {prediction.all_sites:,.2f}", prediction.note
        )
    console.print(errors)


def _show_loss(console: Console, plan: Plan, measurement: Measurement, account: AccountTable | None) -> None:
    unit, nodes = plan.privacy_unit.column, plan.privacy_unit.max_nodes
    delta = account.delta if account else (plan.budget.delta or 1e-6)
    horizon = horizon_of(account) if account else timedelta(days=365)
    # Without an account, the horizon is a year with room for every window.
    budget = budget_of(epsilon=account.epsilon if account else 1000.0, delta=delta, horizon=horizon)
    said = state(measurement, budget, delta)
    table = Table("whose rows are hidden", "loss", title="what is promised (all rows of one unit, added or removed)")
    table.add_row(f"one {unit}, one window, one site", str(said.window_site))
    table.add_row(f"one {unit}, one window, at up to {nodes} sites", str(said.window_person))
    over = f"one {unit}, {said.windows} windows ({horizon.days} days), at up to {nodes} sites"
    table.add_row(over, str(said.horizon_person))
    console.print(table)


def _payload_bytes(measurement: Measurement) -> int:
    """The size of a release of no data at all: the noise decides it, so it is every release's size."""
    nothing = np.zeros(n_cells(measurement.plan), dtype=np.int64)
    return len(arrow.encode(measurement.draw({spec.name: nothing for spec in measurement.specs})))


def _budget_words(journal: Journal, account: AccountTable, measurement: Measurement) -> str:
    plan = measurement.plan
    budget = budget_of(epsilon=account.epsilon, delta=account.delta, horizon=horizon_of(account))
    entries = journal.entries(account.name)
    start = journal.closed_before(plan_hash(plan)) or window_of(journal.created, plan.every)
    left = windows_left(budget, entries, charge=measurement.charge, start=start, every=plan.every)
    spent = loss(heaviest(budget.horizon, entries, around=start - plan.every), account.delta)
    over = f"{account.epsilon:g} spent in {budget.horizon.days} days"
    head = f"account {account.name}: epsilon {rounded_up(spent.epsilon)} of {over}"
    if left is None:
        return f"{head}; {period(plan.every)} releases of {plan.name} never run out"
    until: datetime = start + left * plan.every
    return f"{head}; {left} more {period(plan.every)} releases of {plan.name}, until {until:%-d %b %Y}"


def _resident_mb(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096 // 2**20
