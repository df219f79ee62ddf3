"""The commands about analysts' bearer tokens, and what all commands share: exit codes, tables.

Place: part of the command line; the tokens do the work.
Invariants: a secret is printed once, to standard output, and kept nowhere.
"""

from __future__ import annotations

import contextlib
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

CODES = """
\b
Exit codes:
  0  it is done
  1  something unforeseen
  2  wrong usage of the command line
  3  a config, plan or request is invalid: fix what is named
  5  the store failed: look at the disk
  6  a store does not take part now, as a server that is down: try again
"""
CODE_OF_CHECK = "  4  fleet --check: somebody is fenced, lost or offline\n"
DIFFERS = 8
"""What `verify` ends with; a code of its own, for 1 is whatever went wrong while it looked."""
CODE_OF_VERIFY = f"  {DIFFERS}  verify: the stores differ\n"
_CONFIG = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The collector's config file.",
)
TENANT = click.option("--tenant", default="default", show_default=True, help="Whose it is.")
MOST_DAYS = 3650
_OF_THE_EXTRA = frozenset({"deltalake", "duckdb", "grpc_health", "grpc_reflection", "prometheus_client"})
"""What the extra `collector` brings: an agent's installation has this command line, and not that."""


@click.group(epilog=CODES)
def token() -> None:
    """Give analysts bearer tokens: read-only, of one tenant, for some plans or all, until a date."""


@token.command("issue")
@click.argument("name")
@TENANT
@click.option("--plan", "plans", multiple=True, help="A plan it may ask about; give it once for each. Default: all.")
@click.option("--days", type=click.IntRange(1, MOST_DAYS), default=90, show_default=True, help="Valid for.")
@_CONFIG
def issue_token(name: str, tenant: str, plans: tuple[str, ...], days: int, config: Path) -> None:
    """Print a token for the analyst NAME."""
    with coded():
        from cloud_collector import config as settings
        from cloud_collector.shared_plans import registry
        from cloud_collector.tokens import Tokens

        now, told = datetime.now(UTC), settings.load(config)
        known = {
            one.plan.name for one in registry(told).list(tenant)
        }  # first: it may fail, and a token is printed once
        with contextlib.closing(Tokens(told.tokens_path)) as tokens:
            given = tokens.issue(tenant, name, plans=plans or None, now=now, ends=now + timedelta(days=days))
        for plan in sorted(set(plans) - known):
            click.echo(f"note: no plan of {tenant} is registered as {plan!r} yet", err=True)
        click.echo(given[1])
        click.echo(f"its id is {given[0]}; the token itself is kept nowhere", err=True)


@token.command("list")
@_CONFIG
def list_tokens(config: Path) -> None:
    """List every token there ever was."""
    with coded():
        from cloud_collector import config as settings
        from cloud_collector.tokens import Tokens

        table = table_of("id", "tenant", "analyst", "plans", "ends", "")
        now = datetime.now(UTC)
        with contextlib.closing(Tokens(settings.load(config).tokens_path)) as tokens:
            for one in tokens.list():
                plans = "all" if one.plans is None else ", ".join(one.plans)
                state = "revoked" if one.revoked else "over" if one.ends <= now else ""
                table.add_row(one.id, one.tenant, one.name, plans, day(one.ends), state)
        show(table)


@token.command("revoke")
@click.argument("token_id")
@_CONFIG
def revoke_token(token_id: str, config: Path) -> None:
    """Let the token of this id in no more, from the next call on."""
    with coded():
        from cloud_collector import config as settings
        from cloud_collector.errors import RequestInvalid
        from cloud_collector.tokens import Tokens

        with contextlib.closing(Tokens(settings.load(config).tokens_path)) as tokens:
            gone = tokens.revoke(token_id, datetime.now(UTC))
            known = gone or token_id in {one.id for one in tokens.list()}
        if not known:
            raise RequestInvalid("no token has this id; `cloud-collector token list` shows them")
        click.echo("revoked" if gone else "it was revoked before")


@contextlib.contextmanager
def coded() -> Iterator[None]:
    """End in one line and its exit code for each failure that was foreseen."""
    from cloud_collector.errors import CollectorError
    from edge_agg.contract.errors import PlanInvalid

    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _OF_THE_EXTRA:
            raise
        click.echo(
            f"error: {missing} is not installed: install requirements-collector.lock (docs/operate.md)", err=True
        )
        sys.exit(3)
    except (CollectorError, PlanInvalid) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, CollectorError) else 3)


def table_of(*columns: str) -> Table:
    """A plain table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(table: RenderableType) -> None:
    """Print a table, whole where nobody looks at it."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def day(moment: datetime) -> str:
    """A moment, to the minute."""
    return f"{moment:%Y-%m-%d %H:%M}Z"
