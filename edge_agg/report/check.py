"""What a plan, or every plan of a config, would cost and release, and what the device's policy says to it.

Place: for `edge-agg check`; it reads no events and spends nothing.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agg.accounts import check_charged, journal_of, spent_on_keys
from edge_agg.clock import SystemClock
from edge_agg.config import discovery_of, horizon_of, load, load_plan, plans_of
from edge_agg.contract import arrow, codec
from edge_agg.contract.cells import n_cells
from edge_agg.contract.grid import ORIGIN
from edge_agg.contract.plan import Count, DistinctUnits, Histogram, Sum, plan_hash
from edge_agg.contract.release import Link, Release, Status
from edge_agg.contract.vectors import payload_columns
from edge_agg.errors import ConfigInvalid
from edge_agg.policy import Policy, load_policy, objections
from edge_agg.privacy.measurement import Measurement, compile_plan
from edge_agg.privacy.predict import TYPICAL_ROWS, assumed, figures, units_to_show
from edge_agg.privacy.statement import budget_of, in_words, plural, promises, state
from edge_agg.prospect import prospects

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from edge_agg.config import AccountTable
    from edge_agg.contract.derivation import Derivation, Filter
    from edge_agg.contract.plan import Plan
    from edge_agg.privacy.predict import Figure
    from edge_agg.prospect import Prospect

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
        ConfigInvalid: the file is neither a valid plan nor a valid config, or there is no such account, or the agent
            would not start with it, for what its journal has charged.
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
    with journal_of(config) as journal:
        if journal is not None:
            check_charged(config, plans, journal)
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
    policy = Policy() if config.agent.policy is None else load_policy(Path(config.agent.policy))
    vetoed = set()
    with journal_of(config) as journal:
        spent = {name: spent_on_keys(table, journal) for name, table in accounts.items()}
    for plan, name in shown:
        own = [*plans_of(config, plans, name), plan]
        _show_plan(console, plan, accounts[name], discovery_of(accounts[name], own, spent[name]), sites)
        if _show_vetoes(console, policy, plan, accounts[name], discovery_of(accounts[name], own)):
            vetoed.add(plan.name)
    _show_accounts(console, prospects(config, plans, now=SystemClock().now(), extra=extra, vetoed=vetoed), extra)
    if config.history is None:
        console.print(
            "[yellow]No \\[history]:[/] `run --drain` then takes the first and last window from the data itself, "
            "and which windows exist is not protected. State the span to close this."
        )


def is_config(path: Path) -> bool:
    """Whether a file is an agent's config, and not a plan.

    Raises:
        ConfigInvalid: it is neither.
    """
    import tomllib  # noqa: PLC0415  # only to look which of the two strict readers to call

    try:
        return "agent" in tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{path}: not TOML: {error}") from None
    except (OSError, UnicodeDecodeError, RecursionError):
        raise ConfigInvalid(f"{path}: not TOML") from None


def _show_accounts(console: Console, found: Sequence[Prospect], extra: tuple[Plan, str] | None) -> None:
    for prospect in found:
        console.print(f"[bold]{prospect.spent()}[/]", highlight=False)
        asked = f", with {extra[0].name} beside the rest" if extra and extra[1] == prospect.account.name else ""
        console.print(f"  {prospect.promise()}", highlight=False)
        console.print(f"  {_capital(prospect.lasts())}{asked}.", highlight=False)
        if (remedy := prospect.remedy()) is not None:
            console.print(f"  [yellow]{remedy}[/]", highlight=False)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _show_plan(console: Console, plan: Plan, account: AccountTable | None, kept: float, sites: int) -> None:
    measurement = compile_plan(plan)
    console.print(
        f"[bold]{plan.name} v{plan.version}[/]  {plan_hash(plan).hex()[:12]}  {escape(plan.plan.description)}"
    )
    columns = len(payload_columns(plan))
    if measurement.selection is None:
        bytes_ = _release_bytes(measurement)
        size = f"about {round(bytes_, 2 - len(str(bytes_))):,} bytes a release ({TYPICAL_ROWS:,} rows a cell)"
        console.print(f"every {plan.window.every}: {n_cells(plan):,} cells x {columns} columns, {size}")
    else:
        console.print(f"every {plan.window.every}: {n_cells(plan):,} cells x {columns} columns for each released key")
    _show_rows(console, plan)
    _show_loss(console, measurement, account, kept)
    scales = Table("released vector", "noise", title="what leaves the device")
    for name in ("scale (grid steps)", "sensitivity"):
        scales.add_column(name, justify="right")
    for spec in measurement.specs:
        scales.add_row(spec.name, spec.mechanism, f"{spec.scale:,.2f}", f"{spec.sensitivity:,.2f}")
    console.print(scales)
    _show_errors(console, measurement, sites)


def _show_rows(console: Console, plan: Plan) -> None:
    """What becomes of a row before it is bounded, if the plan changes or leaves out any."""
    made = [(f"makes {one.column} of {one.source}", _options(one, "column", "source")) for one in plan.derive]
    kept = [(f"keeps rows by {one.column}", _options(one, "column")) for one in plan.filter]
    for said, options in (*made, *kept):
        console.print(escape(f"{said}: {options}" if options else said), highlight=False)


def _options(table: Derivation | Filter, *but: str) -> str:
    """What else is written in it; a filter may ask for false, a derivation is not numbered unless it says so."""
    values = ((name, getattr(table, name)) for name in table.__struct_fields__ if name not in but)
    said = ((name, value) for name, value in values if value is not None and (name, value) != ("numbered", False))
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in said)


def _show_vetoes(console: Console, policy: Policy, plan: Plan, account: AccountTable, kept: float) -> bool:
    """Say which rules of the device's policy the plan breaks; whether it breaks any."""
    budget = budget_of(epsilon=account.epsilon, delta=account.delta, horizon=horizon_of(account), discovery=kept)
    broken = list(objections(policy, compile_plan(plan), budget))
    if broken:
        console.print(
            f"[bold red]Vetoed:[/] this device's policy forbids {plan.name}. It takes no events and is charged nothing;"
            " its windows are released as vetoed, without values."
        )
    for one in broken:
        console.print(f"[red]-[/] {escape(f'{one.field}: {one.problem}')}", highlight=False)
    return bool(broken)


def _show_loss(console: Console, measurement: Measurement, account: AccountTable | None, kept: float) -> None:
    plan = measurement.plan
    delta = account.delta if account else (plan.budget.delta or 1e-6)
    horizon = horizon_of(account) if account else timedelta(days=365)
    # Without an account, the horizon is a year with room for every window.
    epsilon = account.epsilon if account else 1000.0
    said = state(measurement, budget_of(epsilon=epsilon, delta=delta, horizon=horizon, discovery=kept), delta)
    console.print(in_words(said, plan, horizon), highlight=False)
    table = Table("who sees everything of", title=f"what that tells at most about one {plan.privacy_unit.label}")
    for name in ("epsilon", "delta", "an even guess is right"):
        table.add_column(name, justify="right")
    for seen, loss in promises(said, plan, horizon):
        table.add_row(seen, *loss.shown, f"{loss.guess:.1%}")
    console.print(table)


def _show_errors(console: Console, measurement: Measurement, sites: int) -> None:
    """Standard errors from noise alone, of one cell."""
    truth = assumed(measurement.plan, TYPICAL_ROWS)
    table = Table("metric", title="standard error of one cell and window, from noise alone")
    fleets = [1] if sites == 1 else [1, sites]
    for fleet in fleets:
        table.add_column(plural(fleet, "site"), justify="right")
    for row in zip(*(figures(measurement, truth, copies=fleet) for fleet in fleets), strict=True):
        table.add_row(row[0].label, *map(error, row))
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
            f"A {measurement.selection.partition} shows at a site half of the time if it has {half:,} distinct {unit} "
            f"there, 19 times in 20 if it has {most:,}."
        )


def error(figure: Figure) -> str:
    """A standard error as people read it; a quantile's also as a rank."""
    if figure.error == float("inf"):
        return "lost in noise"
    text = f"± {figure.error:,.3g}" if figure.error < 100 else f"± {figure.error:,.0f}"
    return text if figure.rank is None else f"{text} ({figure.rank:.1%} of ranks)"


def _release_bytes(measurement: Measurement) -> int:
    """The size of a typical release, header and payload; the cells' values decide how far zstd gets."""
    plan, cells = measurement.plan, n_cells(measurement.plan)
    drawn = min(cells, _SIZED_ROWS)
    payload = arrow.encode(measurement.draw(_typical(measurement, drawn)))
    release = Release(
        tenant="default",
        agent="a-site",
        link=Link(incarnation="0" * 32, seq=1_000, prev_hash=bytes(32)),
        plan=plan.name,
        plan_version=plan.version,
        plan_hash=plan_hash(plan),
        window_start=ORIGIN,
        window_end=ORIGIN + plan.every,
        status=Status.RELEASED,
        account=plan.privacy_unit.label,
        charge=measurement.charge,
        cumulative=measurement.charge * 1_000,
        vectors=measurement.specs,
        max_partitions=plan.bounds.max_partitions,
        max_rows_per_partition=plan.bounds.max_rows_per_partition,
        max_nodes=plan.privacy_unit.max_nodes,
        rows=cells,
        payload_sha256=bytes(32),
    )
    return len(codec.seal(release, payload).header) + len(payload) * cells // drawn


def _typical(measurement: Measurement, cells: int) -> dict[str, npt.NDArray[np.int64]]:
    """Exact vectors of so many cells, as many rows as `TYPICAL_ROWS` on average, and no two cells alike."""
    truth = assumed(measurement.plan, TYPICAL_ROWS)
    busy = np.random.default_rng(0).exponential(size=cells)
    vectors = {}
    for vector in measurement.vectors:
        exact = np.rint(np.multiply.outer(busy, truth[vector.name])).astype(np.int64)
        vectors[vector.name] = exact[:, 0] if vector.tree is None else exact
    return vectors
