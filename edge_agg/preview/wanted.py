"""The inverse question: what epsilon, and what bounds, does the accuracy take that an analyst wants?

Place: above `choice.py`; `page.py` calls it last.
Invariant: an epsilon is recommended only beside what it comes to in a year, or beside what the account could pay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from edge_agg.accounts import budget_for, journal_of
from edge_agg.config import load, plans_of
from edge_agg.errors import ConfigInvalid
from edge_agg.preview.choice import Want, affordable, cheapest
from edge_agg.preview.text import bounds_of, number, percent
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.outlook import demand_of
from edge_agg.privacy.statement import budget_of, state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from edge_agg.contract.plan import Plan
    from edge_agg.preview.choice import Candidate
    from edge_agg.privacy.measurement import Measurement

_YEAR = timedelta(days=365)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payer:
    """An account of an agent that would pay for a plan."""

    config: Path
    account: str


def parse_want(text: str, plan: Plan) -> Want:
    """Read what is wanted.

    Raises:
        ConfigInvalid: it is not `[METRIC=]NUMBER[%]` with a metric of the plan.
    """
    name, _, amount = text.rpartition("=")
    relative = amount.endswith("%")
    try:
        number = float(amount.rstrip("%"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf or (name and name not in {metric.name for metric in plan.metric}):
        raise ConfigInvalid("--want: is 5%, METRIC=5% or METRIC=NUMBER, with a metric of the plan")
    return Want(metric=name or None, error=number / 100 if relative else number, relative=relative)


def show_want(
    console: Console, plan: Plan, want: Want, candidates: Sequence[Candidate], *, sites: int, payer: Payer | None
) -> None:
    """Print the least epsilon that gets what is wanted, and whether it can be paid for."""
    asked = percent(want.error) if want.relative else number(want.error)
    what = want.metric or "every metric"
    size = "one site" if sites == 1 else f"{sites:,} sites"
    console.print(f"[bold]Wanted:[/] {what} to ± {asked}, one cell and window, at {size}.", highlight=False)
    found = cheapest(want, candidates, sites)
    if found is None:
        console.print("[red]No epsilon up to 62 does that with any bounds tried:[/] ask for larger cells, or for less.")
        return
    epsilon = found.plan.budget.epsilon
    with_ = bounds_of(found.plan, plan)
    console.print(
        f"  It takes epsilon {epsilon:g} a window" + (f", with {', '.join(with_)}." if with_ else "."), highlight=False
    )
    if payer is None:
        delta = plan.budget.delta or 1e-6
        said = state(found.measurement, budget_of(epsilon=1000.0, delta=delta, horizon=_YEAR), delta)
        whom = f"one {plan.privacy_unit.label}{', at the same sites all along' if said.same_sites else ''}"
        console.print(f"  A year of that: {said.horizon_person} for {whom}.", highlight=False)
        return
    most = _affordable(found.measurement, payer)
    if most is None:
        console.print(f"  [red]Account {payer.account} has no room for any such plan beside its others.[/]")
    elif most >= epsilon:
        console.print(
            f"  Account {payer.account} could pay up to epsilon {most:g} a window, for ever.", highlight=False
        )
    else:
        console.print(
            f"  [red]Account {payer.account} can pay no more than epsilon {most:g} a window, for ever:[/] it would "
            "run out. Use a longer window, larger cells, or ask for less.",
            highlight=False,
        )


def _affordable(measurement: Measurement, payer: Payer) -> float | None:
    config, plans = load(payer.config)
    table = next((account for account in config.account if account.name == payer.account), None)
    if table is None:
        raise ConfigInvalid(f"{payer.config}: --account names none of its accounts")
    own = [plan for plan in plans_of(config, plans, table.name) if plan.name != measurement.plan.name]
    with journal_of(config) as journal:
        budget = budget_for(table, [*own, measurement.plan], journal)
    start = datetime(1970, 1, 5, tzinfo=UTC)
    return affordable(measurement, budget, [demand_of(compile_plan(plan), start) for plan in own])
