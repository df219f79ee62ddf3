"""The commands about who should report: `fleet expect` and `fleet unexpect`.

Place: part of the command line; each opens the landing beside a collector that may be running.
Invariants: a plan that is not registered is refused, and so is the end of what nobody expects; a command that is given
again moves nothing; the audit log says who decided.
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
    from collections.abc import Callable, Iterator, Sequence

    from cloud_collector.config import Config
    from cloud_collector.landing import Landing
    from cloud_collector.plans import PlanRegistry, RegisteredPlan

    Roster = dict[str, tuple[int, int]]  # from when until when agents are expected, in microseconds since 1970

_MOMENT = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, required=True, help="The collector's config file.")
_TENANT = click.option("--tenant", default="default", show_default=True, help="Whose agent it is.")
_WHO = click.option("--by", "who", default=getpass.getuser, show_default="your login", help="Who decided.")


@click.command("expect")
@click.argument("agents", nargs=-1)
@click.option("--plan", required=True, help="The plan's name.")
@click.option("--file", "listed", type=click.File(), help="Names of agents, one a line; - for standard input.")
@click.option(
    "--since", type=_MOMENT, help="From the window on that this lies in, UTC; by default from now on, or as before."
)
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
    """Expect AGENTS to report under a plan: whatever does not come of them is shown with its reason.

    Whoever is expected already stays so from the same window on. Once somebody is named, only those who are named are
    expected; before, it is whoever has reported.
    """
    _put(config, agents, listed, tenant=tenant, plan=plan, who=who, moment=since, spans=_since, said="expected")


@click.command("unexpect")
@click.argument("agents", nargs=-1)
@click.option("--plan", required=True, help="The plan's name.")
@click.option("--file", "listed", type=click.File(), help="Names of agents, one a line; - for standard input.")
@click.option(
    "--until", type=_MOMENT, help="Up to the window that this lies in, UTC; by default up to now, or as before."
)
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
    said = "expected no longer"
    _put(config, agents, listed, tenant=tenant, plan=plan, who=who, moment=until, spans=_until, said=said)


def _put(
    config: Path,
    agents: tuple[str, ...],
    listed: TextIO | None,
    *,
    tenant: str,
    plan: str,
    who: str,
    moment: datetime | None,
    spans: Callable[[Roster, Sequence[str], int | None, int], Roster],
    said: str,
) -> None:
    """Write down from when until when agents are expected from now on, and say what that does to the others."""
    names = list(dict.fromkeys([*agents, *(line.strip() for line in listed or () if line.strip())]))
    if not names:
        raise click.UsageError("name an agent, or give --file")
    with coded(), landing_of(config) as (landing, told):
        from cloud_collector import shared_plans
        from cloud_collector.errors import ConfigInvalid
        from cloud_collector.register import Expectation
        from edge_agg.contract.codec import to_us
        from edge_agg.contract.grid import window_of

        if not all(0 < len(name) <= 128 for name in names):
            raise ConfigInvalid("an agent's name has 1 .. 128 characters")
        registry = shared_plans.registry(told)
        newest = registry.find(plan, None, tenant)

        def cut(moment: datetime) -> int:
            return to_us(window_of(moment.replace(tzinfo=UTC), newest.plan.every))

        before = _roster(landing, registry, newest)
        given = None if moment is None else cut(moment)
        ones = [
            Expectation(tenant=tenant, plan=plan, agent=name, since_us=since, until_us=until)
            for name, (since, until) in spans(before, names, given, cut(datetime.now(UTC))).items()
        ]
        landing.expect(ones, who=who)
        after = _roster(landing, registry, newest)
    click.echo(f"{len(ones)} agents are {said}")
    left = len(before.keys() - after.keys())
    if left:
        click.echo(
            f"note: until now whoever had reported was expected, from now on those alone who are named: "
            f"{left} agents that have reported are expected no longer, unless you name them too",
            err=True,
        )
    elif after.keys() - before.keys() - set(names):
        click.echo("note: nobody is named any more, so whoever has reported is expected", err=True)


def _since(roster: Roster, names: Sequence[str], begin: int | None, now: int) -> Roster:
    """From when agents are expected: whoever is already stays so, unless another moment is given."""
    from cloud_collector.absence import END
    from cloud_collector.errors import ConfigInvalid

    over = [name for name in names if begin is None and roster.get(name, (0, END))[1] != END]
    if over:
        raise ConfigInvalid(
            f"expected once, and no longer: {_some(over)}; say with --since from when on again, "
            "which takes the place of the time before"
        )
    return {name: (roster.get(name, (now, END))[0] if begin is None else begin, END) for name in names}


def _until(roster: Roster, names: Sequence[str], end: int | None, now: int) -> Roster:
    """Until when agents are expected: whoever no longer is stays so, unless another moment is given."""
    from cloud_collector.absence import END
    from cloud_collector.errors import ConfigInvalid

    strange = [name for name in names if name not in roster]
    if strange:
        raise ConfigInvalid(f"nobody expects {_some(strange)} under this plan: look at the name")
    spans = {name: roster[name] for name in names}
    return {
        name: (since, end if end is not None else now if until == END else until)
        for name, (since, until) in spans.items()
    }


def _roster(landing: Landing, registry: PlanRegistry, newest: RegisteredPlan) -> Roster:
    """From when until when each agent of a tenant is expected under any version of a plan."""
    from cloud_collector.attendance import expected_of

    firsts: dict[tuple[str, str], int] = {}
    for one in registry.list(newest.tenant):
        if one.plan.name == newest.plan.name:
            with landing.known(bytes(one.hash), one.plan.name, newest.tenant) as facts:
                told = facts.named
                for node, first in facts.reported().items():
                    firsts[node] = min(first, firsts.get(node, first))
    expected = expected_of(newest, firsts, told)
    return {agent: (max(0, since), until) for (_, agent), (since, until) in expected.items()}


def _some(names: Sequence[str], most: int = 5) -> str:
    """The first few of some names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more


@contextlib.contextmanager
def landing_of(config: Path) -> Iterator[tuple[Landing, Config]]:
    """The landing of a config, open; raises ConfigInvalid where no collector has run yet."""
    from cloud_collector import config as settings
    from cloud_collector.landing import Landing

    told = settings.load(config)
    with contextlib.closing(Landing(told.landing, make=False)) as landing:
        yield landing, told
