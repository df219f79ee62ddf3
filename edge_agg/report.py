"""What the command line shows a person: statements of loss, predicted errors, the state of a journal.

Place: beside the composition root, for `edge-agg check`, `status` and the bars of `run`; it spends and changes nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from edge_agg import telemetry
from edge_agg.clock import SystemClock
from edge_agg.config import discovery_of, horizon_of, load, load_plan, plans_of
from edge_agg.contract import arrow
from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import Count, DistinctUnits, Histogram, Sum, plan_hash
from edge_agg.contract.vectors import payload_columns
from edge_agg.errors import ConfigInvalid
from edge_agg.journal import Journal
from edge_agg.lock import holder
from edge_agg.privacy.measurement import Measurement, compile_plan
from edge_agg.privacy.predict import TYPICAL_ROWS, assumed, figures, units_to_show
from edge_agg.privacy.statement import budget_of, in_words, promises, rounded_up, state
from edge_agg.prospect import prospects
from edge_agg.telemetry import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.config import AccountTable
    from edge_agg.contract.plan import Plan
    from edge_agg.privacy.predict import Figure
    from edge_agg.privacy.statement import Loss

HEADER_BYTES = 700
"""About what the envelope adds to a payload."""
_SIZED_ROWS = 2_000
"""Rows that are drawn to learn how long a payload is; more are reckoned from them."""


def check(path: Path, sites: int, *, what_if: Path | None = None, account: str | None = None) -> None:
    """Print what a plan, or every plan of an agent's config, would cost and release, and how long the accounts last.

    Args:
        path: a plan or a config.
        sites: in the fleet.
        what_if: with a config, a plan that is not in it yet.
        account: of the config, that would pay for that plan.

    Raises:
        ConfigInvalid: the file is neither a valid plan nor a valid config, or there is no such account.
        PlanRefused: no noise fits a budget.
        JournalFailed: the agent has a journal, and it cannot be read.
    """
    console = Console()
    if not is_config(path):
        if what_if is not None:
            raise ConfigInvalid(f"{path}: --what-if asks about an agent's accounts: name its config")
        _show_plan(console, load_plan(path), None, 0.0, sites)
        return
    config, plans = load(path)
    accounts = {table.name: table for table in config.account}
    extra = None
    if what_if is not None:
        if account not in accounts:
            raise ConfigInvalid(f"{path}: --account names none of its accounts")
        extra = (load_plan(what_if), account)
        if extra[0].privacy_unit.label != accounts[account].privacy_unit:
            raise ConfigInvalid(f"{what_if}: protects another privacy unit than account {account}")
    shown = [
        *((plan, entry.account) for entry, plan in zip(config.plan, plans, strict=True)),
        *([extra] if extra else []),
    ]
    for plan, name in shown:
        kept = discovery_of(accounts[name], [*plans_of(config, plans, name), plan])
        _show_plan(console, plan, accounts[name], kept, sites)
    for prospect in prospects(config, plans, now=SystemClock().now(), extra=extra):
        console.print(f"[bold]{prospect.spent()}[/]", highlight=False)
        asked = f", with {extra[0].name} beside the rest" if extra and extra[1] == prospect.account.name else ""
        console.print(f"  {prospect.lasts()}{asked}.", highlight=False)
        if (remedy := prospect.remedy()) is not None:
            console.print(f"  [yellow]{remedy}[/]", highlight=False)
    if config.history is None:
        console.print(
            "[yellow]No \\[history]:[/] `run --drain` then takes the first and last window from the data itself, "
            "and which windows exist is not protected. State the span to close this."
        )


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
    for prospect in prospects(config, plans, now=SystemClock().now()):
        console.print(f"{prospect.spent()}; {prospect.lasts()}", highlight=False)
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


def is_config(path: Path) -> bool:
    """Whether a file is an agent's config, and not a plan.

    Raises:
        ConfigInvalid: it is neither.
    """
    import tomllib  # noqa: PLC0415  # only to look which of the two strict readers to call

    try:
        return "agent" in tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise ConfigInvalid(f"{path}: not TOML") from None


def _show_plan(console: Console, plan: Plan, account: AccountTable | None, kept: float, sites: int) -> None:
    measurement = compile_plan(plan)
    console.print(
        f"[bold]{plan.name} v{plan.version}[/]  {plan_hash(plan).hex()[:12]}  {escape(plan.plan.description)}"
    )
    columns = len(payload_columns(plan))
    if measurement.selection is None:
        size = f"about {_payload_bytes(measurement) + HEADER_BYTES:,} bytes a release, whatever the data"
        console.print(f"every {plan.window.every}: {n_cells(plan):,} cells x {columns} columns, {size}")
    else:
        console.print(f"every {plan.window.every}: {n_cells(plan):,} cells x {columns} columns for each released key")
    _show_loss(console, measurement, account, kept)
    scales = Table("released vector", "noise", title="what leaves the device")
    for name in ("scale (grid steps)", "sensitivity"):
        scales.add_column(name, justify="right")
    for spec in measurement.specs:
        scales.add_row(spec.name, spec.mechanism, f"{spec.scale:,.2f}", f"{spec.sensitivity:,.2f}")
    console.print(scales)
    _show_errors(console, measurement, sites)


def _show_loss(console: Console, measurement: Measurement, account: AccountTable | None, kept: float) -> None:
    plan = measurement.plan
    delta = account.delta if account else (plan.budget.delta or 1e-6)
    horizon = horizon_of(account) if account else timedelta(days=365)
    # Without an account, the horizon is a year with room for every window.
    epsilon = account.epsilon if account else 1000.0
    said = state(measurement, budget_of(epsilon=epsilon, delta=delta, horizon=horizon, discovery=kept), delta)
    console.print(in_words(said, plan), highlight=False)
    table = Table("who sees everything of", title=f"what that tells at most about one {plan.privacy_unit.label}")
    for name in ("epsilon", "delta", "an even guess is right"):
        table.add_column(name, justify="right")
    for seen, loss in promises(said, plan, horizon):
        table.add_row(seen, _epsilon(loss), f"{loss.delta:.3g}", f"{loss.guess:.1%}")
    console.print(table)


def _show_errors(console: Console, measurement: Measurement, sites: int) -> None:
    """Standard errors from noise alone, of one cell."""
    truth = assumed(measurement.plan, TYPICAL_ROWS)
    table = Table("metric", title="standard error of one cell and window, from noise alone")
    table.add_column("one site", justify="right")
    table.add_column("1 site" if sites == 1 else f"{sites} sites", justify="right")
    for one, all_ in zip(figures(measurement, truth), figures(measurement, truth, copies=sites), strict=True):
        table.add_row(one.label, error(one), error(all_))
    console.print(table)
    if any(not isinstance(metric, Count | DistinctUnits | Sum | Histogram) for metric in measurement.plan.metric):
        console.print(
            f"[dim]Where it depends on the data: {TYPICAL_ROWS:,} rows a cell and site, means at the edge of their "
            "range (the worst case), quantiles of evenly spread values. `edge-agg preview` says more.[/]"
        )
    if measurement.selection is not None:
        half, most = (units_to_show(measurement.selection, chance) for chance in (0.5, 0.95))
        unit = measurement.plan.privacy_unit.label
        console.print(
            f"A {measurement.selection.partition} shows at a site half of the time if {half:,} {unit} have it there, "
            f"19 times in 20 if {most:,} do."
        )


def error(figure: Figure) -> str:
    """A standard error as people read it; a quantile's also as a rank."""
    if figure.error == float("inf"):
        return "lost in noise"
    text = f"± {figure.error:,.3g}" if figure.error < 100 else f"± {figure.error:,.0f}"
    return text if figure.rank is None else f"{text} ({figure.rank:.1%} of ranks)"


def _epsilon(loss: Loss) -> str:
    text = rounded_up(loss.epsilon)
    return text if loss.pure is None else f"{rounded_up(loss.pure)} (pure), {text}"


def _payload_bytes(measurement: Measurement) -> int:
    """The size of a release of no data at all: the noise decides it, so it is every release's size."""
    cells = n_cells(measurement.plan)
    drawn = min(cells, _SIZED_ROWS)
    nothing = {
        vector.name: np.zeros(drawn if vector.tree is None else (drawn, vector.tree.nodes), np.int64)
        for vector in measurement.vectors
    }
    return len(arrow.encode(measurement.draw(nothing))) * cells // drawn


def _resident_mb(pid: int) -> int:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096 // 2**20
