"""The commands about who should report: `fleet expect` and `fleet unexpect`.

Place: part of the command line; each opens the landing beside a collector that may be running.
Invariants: a plan that is not registered is refused; the audit log says who decided.
"""

from __future__ import annotations

import contextlib
import getpass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from cloud_collector.commands import coded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloud_collector.config import Config
    from cloud_collector.landing import Landing

_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, required=True, help="The collector's config file.")
_TENANT = click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
_WHO = click.option("--by", "who", default=getpass.getuser, show_default="your login", help="Who decided.")


@click.command("expect")
@click.argument("agents", nargs=-1)
@click.option("--plan", required=True, help="The plan's name.")
@click.option("--file", "listed", type=click.File(), help="Names of agents, one a line; - for standard input.")
@click.option("--since", type=_MOMENT, help="From the window on that this lies in, UTC; from now on by default.")
@_TENANT
@_WHO
@_CONFIG
def expect(
    agents: tuple[str, ...],
    *,
    plan: str,
    listed: TextIO | None,
    since: datetime | None,
    tenant: str,
    who: str,
    config: Path,
) -> None:
    """Expect AGENTS to report under a plan: whatever does not come of them is shown with its reason."""
    _put(config, agents, listed, tenant=tenant, plan=plan, who=who, since=since or datetime.now(UTC), until=None)


@click.command("unexpect")
@click.argument("agents", nargs=-1)
@click.option("--plan", required=True, help="The plan's name.")
@click.option("--file", "listed", type=click.File(), help="Names of agents, one a line; - for standard input.")
@click.option("--until", type=_MOMENT, help="Up to the window that this lies in, UTC; up to now by default.")
@_TENANT
@_WHO
@_CONFIG
def unexpect(
    agents: tuple[str, ...],
    *,
    plan: str,
    listed: TextIO | None,
    until: datetime | None,
    tenant: str,
    who: str,
    config: Path,
) -> None:
    """Expect AGENTS no longer, for a device that was taken away; what it reported stays."""
    _put(config, agents, listed, tenant=tenant, plan=plan, who=who, since=None, until=until or datetime.now(UTC))


def _put(
    config: Path,
    agents: tuple[str, ...],
    listed: TextIO | None,
    *,
    tenant: str,
    plan: str,
    who: str,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """Write down from when, or until when, agents are expected."""
    names = [*agents, *(line.strip() for line in listed or () if line.strip())]
    if not names:
        raise click.UsageError("name an agent, or give --file")
    with coded(), landing_of(config) as (landing, told):
        from cloud_collector import shared_plans
        from cloud_collector.absence import END
        from cloud_collector.errors import ConfigInvalid
        from cloud_collector.register import Expectation
        from edge_agg.contract.codec import to_us
        from edge_agg.contract.grid import window_of

        if not all(0 < len(name) <= 128 for name in names):
            raise ConfigInvalid("an agent's name has 1 .. 128 characters")
        every = shared_plans.registry(told).find(plan, None, tenant).plan.every

        def cut(moment: datetime) -> int:
            return to_us(window_of(moment.replace(tzinfo=UTC), every))

        before = {one.agent: one.since_us for one in landing.expected(tenant, plan)}
        ones = [
            Expectation(
                tenant=tenant,
                plan=plan,
                agent=name,
                since_us=before.get(name, 0) if since is None else cut(since),
                until_us=END if until is None else cut(until),
            )
            for name in dict.fromkeys(names)
        ]
        landing.expect(ones, who=who)
        click.echo(f"{len(ones)} agents are {'expected' if until is None else 'expected no longer'}")


@contextlib.contextmanager
def landing_of(config: Path) -> Iterator[tuple[Landing, Config]]:
    """The landing of a config, open; raises ConfigInvalid where no collector has run yet."""
    from cloud_collector import config as settings
    from cloud_collector.landing import Landing

    told = settings.load(config)
    with contextlib.closing(Landing(told.landing, make=False)) as landing:
        yield landing, told
