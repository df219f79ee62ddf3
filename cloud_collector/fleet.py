"""The commands about agents: who reported and who did not, who is expected, who is shut out, who decided it.

Place: part of the command line; each opens the landing beside a collector that may be running.
Invariants: whoever fences or lifts a fence says why, and the audit log says who.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloud_collector.commands import CODE_OF_CHECK, CODES, coded, show, table_of
from cloud_collector.expecting import expect, landing_of, unexpect

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloud_collector.overview import Overview

_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, required=True, help="The collector's config file.")
_TENANT = click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
_REASON = click.option("--reason", required=True, help="Why; it stands in the audit log.")
_WHO = click.option("--by", "who", default=getpass.getuser, show_default="your login", help="Who decided.")


@click.group(invoke_without_command=True, epilog=CODES + CODE_OF_CHECK)
@click.option("--config", type=_FILE, help="The collector's config file.")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--plan", help="Of this plan only.")
@click.option("--agent", help="Of this agent only.")
@click.option("--windows", type=click.IntRange(1, 10_000), default=10, show_default=True, help="The last so many.")
@click.option("--until", type=_MOMENT, help="That ended by then, UTC; by default all that are due.")
@click.option("--worst", type=click.IntRange(0, 10_000), default=20, show_default=True, help="Agents that are listed.")
@click.option("--once", is_flag=True, help="Once, also on a terminal.")
@click.option("--json", "machine", is_flag=True, help="Once, for machines.")
@click.option("--check", is_flag=True, help="Once; exit with 4 if an agent is fenced or a window is lost or offline.")
@click.option(
    "--every", type=click.FloatRange(0.5, 3600), default=5.0, show_default=True, help="Seconds between looks."
)
@click.pass_context
def fleet(
    context: click.Context,
    /,
    config: Path | None,
    *,
    once: bool,
    machine: bool,
    check: bool,
    every: float,
    until: datetime | None,
    **about: Any,
) -> None:
    """Show what became of each plan's last windows, and which agents are worst off; on a terminal again and again.

    Safe while the collector runs.
    """
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise click.MissingParameter(param_hint="'--config'", param_type="option")
    well = True
    with coded(), landing_of(config) as (landing, told):
        from cloud_collector import overview, shared_plans

        registry = shared_plans.registry(told)
        wanted = overview.Wanted(until=None if until is None else until.replace(tzinfo=UTC), **about)
        overview.require_there(landing, registry.list(), wanted)

        def look() -> overview.Overview:
            return overview.look(landing, registry.list(), wanted, now=datetime.now(UTC), grace=told.grace)

        if machine:
            seen = look()
            click.echo(json.dumps(overview.as_json(seen), indent=2))
        else:
            seen = _shown(look, every_s=None if once or check or not sys.stdout.isatty() else every)
        well = seen.well
    context.exit(4 if check and not well else 0)


def _shown(look: Callable[[], Overview], *, every_s: float | None) -> Overview:
    """Show the fleet, until Ctrl-C or once; what was seen last."""
    from rich.console import Console
    from rich.live import Live

    from cloud_collector.board import board

    seen = look()
    if every_s is None:
        show(board(seen))
        return seen
    with contextlib.suppress(KeyboardInterrupt), Live(board(seen), console=Console(), auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            seen = look()
            live.update(board(seen), refresh=True)
    return seen


@fleet.command("chains")
@click.argument("agent", required=False)
@click.option("--tenant", help="Of this tenant only.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Agents that are listed.")
@_CONFIG
def chains(agent: str | None, tenant: str | None, limit: int, config: Path) -> None:
    """Show the chains of agents that a release was taken from: journal, place, releases, holes."""
    with coded(), landing_of(config) as (landing, _):
        from cloud_collector.board import clean

        table = table_of(
            *("tenant", "agent", "journal", "last seq", "releases", "missing", "last window ended", "state")
        )
        for one in landing.agents(tenant, agent, limit=limit):
            numbers = (one.incarnation[:8], str(one.last_seq), str(one.releases), str(one.missing))
            ended = f"{one.last_window_end:%Y-%m-%d %H:%M}Z" if one.releases else "-"
            state = f"FENCED: {one.fence}" if one.fence is not None else "restored: behind" if one.behind else ""
            table.add_row(clean(one.tenant), clean(one.agent), *numbers, ended, state)
        show(table)


@fleet.command("fence")
@click.argument("agent")
@_TENANT
@_REASON
@_WHO
@_CONFIG
def fence(agent: str, tenant: str, reason: str, who: str, config: Path) -> None:
    """Refuse new releases of AGENT from now on; it keeps them and tries again much later."""
    with coded(), landing_of(config) as (landing, _):
        if not any(one.releases for one in landing.agents(tenant, agent)):
            click.echo(f"note: no release of an agent {agent!r} of {tenant!r} was ever taken", err=True)
        raised = landing.fence(tenant, agent, who=who, note=reason)
        click.echo("fenced" if raised else "already fenced")


@fleet.command("unfence")
@click.argument("agent")
@_TENANT
@_REASON
@_WHO
@_CONFIG
def unfence(agent: str, tenant: str, reason: str, who: str, config: Path) -> None:
    """Take new releases of AGENT again, after a person has looked at why it was fenced."""
    with coded(), landing_of(config) as (landing, _):
        lifted = landing.unfence(tenant, agent, who=who, note=reason)
        click.echo("unfenced" if lifted else "no such agent is fenced")


@fleet.command("list")
@click.argument("agent", required=False)
@click.option("--tenant", help="Whose agents; everybody's by default.")
@_CONFIG
def history(agent: str | None, tenant: str | None, config: Path) -> None:
    """Show the audit log, of AGENT or of all: who was fenced, let in again or re-installed, when, by whom and why."""
    with coded(), landing_of(config) as (landing, _):
        from cloud_collector.board import clean

        table = table_of("when", "tenant", "agent", "what", "reason", "by", "note")
        for one in landing.audit(tenant, agent):
            about = (clean(one.tenant), clean(one.agent), one.action, one.reason, clean(one.who), clean(one.note))
            table.add_row(f"{one.at:%Y-%m-%d %H:%M:%S}Z", *about)
        show(table)


fleet.add_command(expect)
fleet.add_command(unexpect)
