"""The commands about certificates: `ca`, for a small fleet that has no other authority.

Place: part of the command line; the authority does the work.
Invariants: a one-time token is printed once, to standard output, and kept nowhere; a key is written 0600 and never
printed; a passphrase comes from a file, never from the command line, where every process of the machine could read it.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloud_collector.commands import CODES, MOST_DAYS, TENANT, coded, day, show, table_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloud_collector.authority.folder import Authority

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
_OUT = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Gets cert.pem, key.pem and ca.pem."
)
_PASSPHRASE = click.option("--passphrase-file", type=_FILE, help="Holds the passphrase of issuer.key, if it has one.")
_ROOT_PASSPHRASE = click.option(
    "--root-passphrase-file", type=_FILE, help="Holds the passphrase of root.key, if it has one."
)


@click.group(epilog=CODES)
def ca() -> None:
    """Run a certificate authority for a small fleet, in FOLDER."""


@ca.command()
@_FOLDER
@click.option("--trust-domain", required=True, help="The DOMAIN of spiffe://DOMAIN/TENANT/AGENT.")
@_PASSPHRASE
@_ROOT_PASSPHRASE
def init(folder: Path, trust_domain: str, passphrase_file: Path | None, root_passphrase_file: Path | None) -> None:
    """Make an authority: a root, whose key is to be moved offline, and an issuer."""
    with coded():
        from cloud_collector.authority.folder import Authority
        from cloud_collector.authority.keys import Passphrases

        unlock = Passphrases.read(issuer=passphrase_file, root=root_passphrase_file)
        Authority.init(folder, trust_domain, now=datetime.now(UTC), unlock=unlock)
        with Authority.opened(folder) as authority:
            click.echo(f"sha256 of the root: {authority.fingerprint}")
        click.echo(f"now move {folder / 'root.key'} to a safe place; only `ca renew {folder} --issuer` needs it")


@ca.command()
@_FOLDER
@click.option("--server", "hosts", multiple=True, help="A name or address of the collector; give it once for each.")
@click.option("--agent", help="An agent's name; better let the device enroll, then its key never travels.")
@click.option("--analyst", help="An analyst's name.")
@TENANT
@click.option("--days", type=click.IntRange(1, MOST_DAYS), help="Valid for; 90, an agent's 30.")
@_OUT
@_PASSPHRASE
def issue(
    folder: Path,
    *,
    hosts: tuple[str, ...],
    agent: str | None,
    analyst: str | None,
    tenant: str,
    days: int | None,
    out: Path,
    passphrase_file: Path | None,
) -> None:
    """Issue a certificate, with a new key, for a server, an agent or an analyst."""
    if sum((bool(hosts), agent is not None, analyst is not None)) != 1:
        raise click.UsageError("give --server, --agent or --analyst")
    with _authority(folder, issuer=passphrase_file) as authority:
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
@_PASSPHRASE
@_ROOT_PASSPHRASE
def renew(
    folder: Path,
    *,
    root: bool,
    issuer: bool,
    holder: Path | None,
    passphrase_file: Path | None,
    root_passphrase_file: Path | None,
) -> None:
    """Renew the root, the issuer, or the certificate in a folder that `issue` wrote, with a new key, in place."""
    if sum((root, issuer, holder is not None)) != 1:
        raise click.UsageError("give --root, --issuer, or --in FOLDER")
    with _authority(folder, issuer=passphrase_file, root=root_passphrase_file) as authority:
        if root:
            authority.renew_root()
        elif holder is None:
            authority.renew_issuer()
        else:
            authority.renew_in(holder)
        click.echo("renewed")


@ca.command()
@_FOLDER
@click.option("--root", is_flag=True, help="The root's key instead of the issuer's.")
@click.option("--new-passphrase-file", type=_FILE, help="Holds the passphrase from now on.")
@click.option("--open", "lay_open", is_flag=True, help="No passphrase from now on.")
@_PASSPHRASE
@_ROOT_PASSPHRASE
def protect(
    folder: Path,
    *,
    root: bool,
    new_passphrase_file: Path | None,
    lay_open: bool,
    passphrase_file: Path | None,
    root_passphrase_file: Path | None,
) -> None:
    """Encrypt the issuer's key under a passphrase, or under another one; a collector takes it up at its next use."""
    if (new_passphrase_file is None) is not lay_open:
        raise click.UsageError("give --new-passphrase-file or --open")
    with _authority(folder, issuer=passphrase_file, root=root_passphrase_file) as authority:
        from cloud_collector.authority.keys import Passphrases

        new = Passphrases.read(issuer=new_passphrase_file).issuer
        authority.protect("root" if root else "issuer", new)
        click.echo("the key lies open" if new is None else "the key is encrypted")


@ca.command()
@_FOLDER
@click.argument("target")
def revoke(folder: Path, target: str) -> None:
    """Deny TARGET for good: a serial in hex, or a SPIFFE id, all of whose certificates so far are meant.

    One-time tokens that are out for the id are used up. An analyst's bearer tokens stay: see `token revoke`.
    """
    with _authority(folder) as authority:
        from cloud_collector.authority.denylist import by_subject

        if target.startswith("spiffe://"):
            denied = authority.revoke(subject=target)
        else:
            denied = authority.revoke(serial=_hex(target))
        if by_subject(denied):
            last = day(max(one.ends for one in denied))
            click.echo(
                f"denied {target}: {len(denied)} certificates, and whatever else bears this name, to be enrolled or not"
            )
            click.echo(
                f"to let the name in again, delete its line from denied.txt, not before the last of them ends: {last}"
            )
        else:
            for one in denied:
                click.echo(f"denied {one.serial:x} {one.subject}")
        if not denied:
            click.echo("no certificate of it was still valid")
        if any(one.kind == "analyst" for one in denied):
            click.echo("bearer tokens of an analyst stay; `cloud-collector token revoke` ends them", err=True)
        click.echo(f"the collector's denied_file must be {folder / 'denied.txt'}, or a copy of it", err=True)


@ca.command("list")
@_FOLDER
def list_issued(folder: Path) -> None:
    """List everything that was issued."""
    with _authority(folder) as authority:
        table = table_of("serial", "kind", "to", "ends", "")
        for one in authority.certificates():
            table.add_row(f"{one.serial:x}", one.kind, one.subject, day(one.ends), "revoked" if one.revoked else "")
        show(table)


@ca.command("token")
@_FOLDER
@TENANT
@click.option("--agent", required=True, help="The agent that may enroll with it.")
@click.option("--hours", type=click.IntRange(1, 24 * 30), default=24, show_default=True, help="Valid for.")
def one_time_token(folder: Path, tenant: str, agent: str, hours: int) -> None:
    """Print a one-time token for `edge-agg enroll`."""
    with _authority(folder) as authority:
        click.echo(authority.make_token(tenant, agent, timedelta(hours=hours)))


@contextlib.contextmanager
def _authority(folder: Path, *, issuer: Path | None = None, root: Path | None = None) -> Iterator[Authority]:
    """The authority, open, with the passphrases in these files."""
    with coded():
        from cloud_collector.authority.folder import Authority
        from cloud_collector.authority.keys import Passphrases

        with Authority.opened(folder, unlock=Passphrases.read(issuer=issuer, root=root)) as authority:
            yield authority


def _hex(text: str) -> int:
    try:
        return int(text.replace(":", ""), 16)
    except ValueError:
        raise click.UsageError("a target is a serial in hex, or a SPIFFE id") from None
