"""The commands about who may call: `ca` for certificates and one-time tokens, `token` for analysts' bearer tokens.

Place: part of the command line; the authority and the tokens do the work.
Invariants: a secret is printed once, to standard output, and kept nowhere; a key is written 0600 and never printed.
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

    from cloud_collector.authority.folder import Authority

CODES = """
\b
Exit codes:
  0  it is done
  1  something unforeseen
  2  wrong usage of the command line
  3  a config, plan or request is invalid: fix what is named
  5  the store failed: look at the disk
"""
_FOLDER = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
_CONFIG = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The collector's config file.",
)
_TENANT = click.option("--tenant", default="default", show_default=True, help="Whose it is.")
_OUT = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Gets cert.pem, key.pem and ca.pem."
)
_MOST_DAYS = 3650


@click.group(epilog=CODES)
def ca() -> None:
    """Run a certificate authority for a small fleet, in FOLDER."""


@ca.command()
@_FOLDER
@click.option("--trust-domain", required=True, help="The DOMAIN of spiffe://DOMAIN/TENANT/AGENT.")
def init(folder: Path, trust_domain: str) -> None:
    """Make an authority: a root, whose key is to be moved offline, and an issuer."""
    with coded():
        from cloud_collector.authority.folder import Authority

        Authority.init(folder, trust_domain, now=datetime.now(UTC))
        with Authority.opened(folder) as authority:
            click.echo(f"sha256 of the root: {authority.fingerprint}")
        click.echo(f"now move {folder / 'root.key'} to a safe place; only `ca renew --issuer` needs it")


@ca.command()
@_FOLDER
@click.option("--server", "hosts", multiple=True, help="A name or address of the collector; give it once for each.")
@click.option("--agent", help="An agent's name; better let the device enroll, then its key never travels.")
@click.option("--analyst", help="An analyst's name.")
@_TENANT
@click.option("--days", type=click.IntRange(1, _MOST_DAYS), help="Valid for; 90, an agent's 30.")
@_OUT
def issue(
    folder: Path,
    *,
    hosts: tuple[str, ...],
    agent: str | None,
    analyst: str | None,
    tenant: str,
    days: int | None,
    out: Path,
) -> None:
    """Issue a certificate, with a new key, for a server, an agent or an analyst."""
    if sum((bool(hosts), agent is not None, analyst is not None)) != 1:
        raise click.UsageError("give --server, --agent or --analyst")
    with _authority(folder) as authority:
        from cloud_collector.authority.certificate import CLIENT_LIFE, SERVER_LIFE, new_key

        key = new_key()
        life = timedelta(days=days) if days else CLIENT_LIFE if agent is not None else SERVER_LIFE
        if hosts:
            chain = authority.issue_server(hosts, key.public_key(), life)
        else:
            name = agent if agent is not None else analyst or ""
            spiffe_id = authority.id_of(tenant, name, analyst=analyst is not None)
            chain = authority.issue_client(spiffe_id, key.public_key(), life)
        authority.hand_out(out, key, chain)
        click.echo(f"wrote {out / 'cert.pem'}")


@ca.command()
@_FOLDER
@click.option("--root", is_flag=True, help="Make another root and issuer; the root from before stays trusted.")
@click.option("--issuer", is_flag=True, help="Make another issuer; needs root.key in FOLDER.")
@click.option("--in", "holder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="As issue's --out.")
def renew(folder: Path, *, root: bool, issuer: bool, holder: Path | None) -> None:
    """Renew the root, the issuer, or the certificate in a folder that `issue` wrote, with a new key, in place."""
    if sum((root, issuer, holder is not None)) != 1:
        raise click.UsageError("give --root, --issuer, or --in FOLDER")
    with _authority(folder) as authority:
        if root:
            authority.renew_root()
        elif holder is None:
            authority.renew_issuer()
        else:
            authority.renew_in(holder)
        click.echo("renewed")


@ca.command()
@_FOLDER
@click.argument("target")
def revoke(folder: Path, target: str) -> None:
    """Deny TARGET for good: a serial in hex, or a SPIFFE id, which means all its certificates so far."""
    with _authority(folder) as authority:
        if target.startswith("spiffe://"):
            denied = authority.revoke(subject=target)
        else:
            denied = authority.revoke(serial=_hex(target))
        for one in denied:
            click.echo(f"denied {one.serial:x} {one.subject}")
        if not denied:
            click.echo("nothing that is still valid was issued to it")


@ca.command("list")
@_FOLDER
def list_issued(folder: Path) -> None:
    """List everything that was issued."""
    with _authority(folder) as authority:
        table = table_of("serial", "kind", "to", "ends", "")
        for one in authority.certificates():
            table.add_row(f"{one.serial:x}", one.kind, one.subject, _day(one.ends), "revoked" if one.revoked else "")
        show(table)


@ca.command("token")
@_FOLDER
@_TENANT
@click.option("--agent", required=True, help="The agent that may enroll with it.")
@click.option("--hours", type=click.IntRange(1, 24 * 30), default=24, show_default=True, help="Valid for.")
def one_time_token(folder: Path, tenant: str, agent: str, hours: int) -> None:
    """Print a one-time token for `edge-agg enroll`."""
    with _authority(folder) as authority:
        click.echo(authority.make_token(tenant, agent, timedelta(hours=hours)))


@click.group(epilog=CODES)
def token() -> None:
    """Give analysts bearer tokens: read-only, of one tenant, for some plans or all, until a date."""


@token.command("issue")
@click.argument("name")
@_TENANT
@click.option("--plan", "plans", multiple=True, help="A plan it may ask about; give it once for each. Default: all.")
@click.option("--days", type=click.IntRange(1, _MOST_DAYS), default=90, show_default=True, help="Valid for.")
@_CONFIG
def issue_token(name: str, tenant: str, plans: tuple[str, ...], days: int, config: Path) -> None:
    """Print a token for the analyst NAME."""
    with coded():
        from cloud_collector import config as settings
        from cloud_collector.tokens import Tokens

        now = datetime.now(UTC)
        with contextlib.closing(Tokens(settings.load(config).tokens_path)) as tokens:
            given = tokens.issue(tenant, name, plans=plans or None, now=now, ends=now + timedelta(days=days))
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
                table.add_row(one.id, one.tenant, one.name, plans, _day(one.ends), state)
        show(table)


@token.command("revoke")
@click.argument("token_id")
@_CONFIG
def revoke_token(token_id: str, config: Path) -> None:
    """Let the token of this id in no more, from the next call on."""
    with coded():
        from cloud_collector import config as settings
        from cloud_collector.tokens import Tokens

        with contextlib.closing(Tokens(settings.load(config).tokens_path)) as tokens:
            gone = tokens.revoke(token_id, datetime.now(UTC))
        click.echo("revoked" if gone else "no such token is let in")


@contextlib.contextmanager
def coded() -> Iterator[None]:
    """End in one line and its exit code for each failure that was foreseen."""
    from cloud_collector.errors import CollectorError, StoreFailed
    from edge_agg.contract.errors import PlanInvalid

    try:
        yield
    except (CollectorError, PlanInvalid) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(5 if isinstance(error, StoreFailed) else 3)


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


@contextlib.contextmanager
def _authority(folder: Path) -> Iterator[Authority]:
    with coded():
        from cloud_collector.authority.folder import Authority

        with Authority.opened(folder) as authority:
            yield authority


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        raise click.UsageError("a target is a serial in hex, or a SPIFFE id") from None


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}Z"
