"""The commands about agents: who was seen, who is shut out, who decided it.

Place: part of the command line; each opens the landing beside a collector that may be running.
Invariants: whoever fences or lifts a fence says why, and the audit log says who; a name that came from outside is shown
without markup or control characters.
"""

from __future__ import annotations

import contextlib
import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloud_collector.commands import CODES, coded, show, table_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from cloud_collector.landing import Landing

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, required=True, help="The collector's config file.")
_TENANT = click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
_REASON = click.option("--reason", required=True, help="Why; it stands in the audit log.")
_WHO = click.option("--by", "who", default=getpass.getuser, show_default="your login", help="Who decided.")


@click.group(invoke_without_command=True, epilog=CODES)
@click.option("--config", type=_FILE, help="The collector's config file.")
@click.pass_context
def fleet(context: click.Context, config: Path | None) -> None:
    """Show every agent that a release was taken from; safe while the collector runs."""
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise click.MissingParameter(param_hint="'--config'", param_type="option")
    with coded(), _landing(config) as landing:
        table = table_of(
            *("tenant", "agent", "journal", "last seq", "releases", "missing", "last window ended", "state")
        )
        for one in landing.agents():
            numbers = (one.incarnation[:8], str(one.last_seq), str(one.releases), str(one.missing))
            ended = f"{one.last_window_end:%Y-%m-%d %H:%M}Z" if one.releases else "-"
            state = f"FENCED: {one.fence}" if one.fence is not None else "restored: behind" if one.behind else ""
            table.add_row(_clean(one.tenant), _clean(one.agent), *numbers, ended, state)
        show(table)


@fleet.command("fence")
@click.argument("agent")
@_TENANT
@_REASON
@_WHO
@_CONFIG
def fence(agent: str, tenant: str, reason: str, who: str, config: Path) -> None:
    """Refuse new releases of AGENT from now on; it keeps them and tries again much later."""
    with coded(), _landing(config) as landing:
        if (tenant, agent) not in {(one.tenant, one.agent) for one in landing.agents() if one.releases}:
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
    with coded(), _landing(config) as landing:
        lifted = landing.unfence(tenant, agent, who=who, note=reason)
        click.echo("unfenced" if lifted else "no such agent is fenced")


@fleet.command("list")
@click.argument("agent", required=False)
@click.option("--tenant", help="Whose agents; everybody's by default.")
@_CONFIG
def history(agent: str | None, tenant: str | None, config: Path) -> None:
    """Show the audit log, of AGENT or of all: who was fenced, let in again or re-installed, when, by whom and why."""
    with coded(), _landing(config) as landing:
        table = table_of("when", "tenant", "agent", "what", "reason", "by", "note")
        for one in landing.audit(tenant, agent):
            about = (_clean(one.tenant), _clean(one.agent), one.action, one.reason, _clean(one.who), _clean(one.note))
            table.add_row(f"{one.at:%Y-%m-%d %H:%M:%S}Z", *about)
        show(table)


@contextlib.contextmanager
def _landing(config: Path) -> Iterator[Landing]:
    from cloud_collector import config as settings
    from cloud_collector.landing import Landing

    with contextlib.closing(Landing(settings.load(config).landing, make=False)) as landing:
        yield landing


def _clean(name: str) -> Text:
    """A name that came from outside, without markup or control characters."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "?" for letter in name))
