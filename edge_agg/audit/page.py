"""What `edge-agg ledger verify` shows: a table an account, the sums in words, every difference; or all as JSON.

Place: above `recount.py`. Invariant: nothing of the data but losses; exact amounts as fractions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agg.accounts import promised
from edge_agg.audit.books import open_books
from edge_agg.audit.recount import recount
from edge_agg.config import load
from edge_agg.errors import JournalFailed
from edge_agg.privacy.statement import days, loss, loss_within, plural, rounded_up

if TYPE_CHECKING:
    from edge_agg.audit.recount import AccountCount, Recount
    from edge_agg.config import AccountTable
    from edge_agg.contract.release import Charge


def verify(path: Path, *, machine: bool) -> bool:
    """Go over an agent's journal, and print what was found.

    Returns:
        Whether everything follows.

    Raises:
        ConfigInvalid: the config is wrong.
        JournalFailed: there is no journal yet, it cannot be read, or it is another agent's.
    """
    config, _ = load(path)
    tables = {account.name: account for account in config.account}
    with open_books(Path(config.agent.state)) as books:
        if books.agent != config.agent.name:
            raise JournalFailed("the journal in this folder belongs to another agent")
        found = recount(books, promised(config))
    if machine:
        print(json.dumps(_as_json(found, tables), indent=2))  # noqa: T201  # for machines, no colours
    else:
        _show(Console(), found, tables)
    return not found.differences


def _show(console: Console, found: Recount, tables: dict[str, AccountTable]) -> None:
    head = f", the last {found.head.hex()[:12]}" if found.releases else ""
    console.print(
        f"[bold]{found.agent}[/]  journal {found.incarnation[:12]}, {plural(found.releases, 'release')}{head}"
    )
    for account in found.accounts:
        table = Table(title=escape(f"account {account.name}"))
        table.add_column("plan")
        for name in ("released", "exhausted", "lost", "vetoed", "open", "charges", "rho"):
            table.add_column(name, justify="right")
        for plan in account.plans:
            statuses = (str(plan.statuses.get(name, 0)) for name in ("released", "exhausted", "lost", "vetoed"))
            charges = f"{plan.charges}" + (f" ({plan.redrawn} again)" if plan.redrawn else "")
            version = "?" if plan.measurement is None else str(plan.measurement.plan.version)
            table.add_row(
                escape(f"{plan.name} v{version}"),
                *statuses,
                str(plan.in_flight),
                charges,
                f"{float(plan.charged.rho):.6g}",
            )
        console.print(table)
        console.print(_in_words(account, tables.get(account.name)))
    for name, sealed in found.uncharged.items():
        windows = ", ".join(f"{n} {status}" for status, n in sorted(sealed.items()))
        console.print(f"never charged: {escape(name)}: {escape(windows)}", highlight=False)
    if found.differences:
        console.print(f"[bold red]{len(found.differences)} differences:[/]")
        for difference in found.differences:
            console.print(f"[red]-[/] {escape(difference.where)}: {escape(difference.problem)}", highlight=False)
    else:
        console.print(
            "[green]Everything follows:[/] each charge from its plan, each release from its charge and its place in "
            "the chain, each account within its budget."
        )


def _in_words(account: AccountCount, table: AccountTable | None) -> str:
    if account.budget is None or table is None:
        return "No budget is known for it."
    lost = loss_within(account.heaviest, table.delta)
    if lost is None:
        return "More was lost in one horizon than this delta can express."
    text = (
        f"In the heaviest {days(account.budget.horizon)} one {table.privacy_unit} lost at most epsilon "
        f"{rounded_up(lost.epsilon)} of {table.epsilon:g} (delta {table.delta:g}) at this site"
    )
    nodes = max((plan.measurement.plan.privacy_unit.max_nodes for plan in account.plans if plan.measurement), default=1)
    if nodes > 1:
        kept = table.delta - float(account.budget.delta)
        person = loss(account.heaviest * nodes, kept + float(account.heaviest.delta) * nodes)
        text += f"; if {nodes} sites lost as much, at most {person}"
    return text + "."


def _as_json(found: Recount, tables: dict[str, AccountTable]) -> dict[str, Any]:
    return {
        "agent": found.agent,
        "incarnation": found.incarnation,
        "releases": found.releases,
        "head": found.head.hex(),
        "accounts": [_account_json(account, tables.get(account.name)) for account in found.accounts],
        "uncharged": {plan: dict(statuses) for plan, statuses in found.uncharged.items()},
        "differences": [{"where": one.where, "problem": one.problem} for one in found.differences],
    }


def _account_json(account: AccountCount, table: AccountTable | None) -> dict[str, Any]:
    lost = None if table is None else loss_within(account.heaviest, table.delta)
    budget = account.budget
    return {
        "name": account.name,
        "charged": _charge_json(account.charged),
        "heaviest": _charge_json(account.heaviest),
        "heaviest_epsilon": None if lost is None else lost.epsilon,
        "budget": None
        if budget is None or table is None
        else {
            "rho": str(budget.rho),
            "delta": str(budget.delta),
            "horizon_days": budget.horizon.days,
            "epsilon": table.epsilon,
            "at_delta": table.delta,
        },
        "plans": [
            {
                "name": plan.name,
                "hash": plan.hash.hex(),
                "statuses": dict(plan.statuses),
                "charges": plan.charges,
                "redrawn": plan.redrawn,
                "open": plan.in_flight,
                "charged": _charge_json(plan.charged),
            }
            for plan in account.plans
        ],
    }


def _charge_json(charge: Charge) -> dict[str, str]:
    return {"rho": str(charge.rho), "delta": str(charge.delta)}
