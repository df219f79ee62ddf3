"""The commands about what is kept: `verify`, `backup`, `restore`, `mark-restored`.

Place: part of the command line; `verify` and `backup` are safe while the collector runs.
"""

from __future__ import annotations

import contextlib
import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloud_collector.commands import CODE_OF_VERIFY, CODES, DIFFERS, coded

if TYPE_CHECKING:
    from cloud_collector.config import Config

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, required=True, help="The collector's config file.")


@click.command(epilog=CODES + CODE_OF_VERIFY)
@_CONFIG
@click.pass_context
def verify(context: click.Context, config: Path) -> None:
    """Compare chains, landing, lake and roll-ups, and print what differs; exit code 8 if anything does."""
    found = 0
    with coded():
        from cloud_collector import config as settings
        from cloud_collector.lake import Lake
        from cloud_collector.landing import store_of
        from cloud_collector.shared_plans import registry
        from cloud_collector.verify import Stores, differences

        told = settings.load(config)
        landing = store_of(told.landing, make=False)
        plans = [(one.plan, one.hash) for one in registry(told).list()]
        lake = Lake.of(told, writes=False)
        rollups = told.rollups_path if told.database is None else None
        with contextlib.closing(landing):
            stores = Stores(landing=landing, lake=lake, rollups=rollups, turns=told.turns_path, plans=plans)
            for difference in differences(stores):
                click.echo(difference)
                found += 1
        click.echo(f"{found} differences" if found else "all fits")
    context.exit(DIFFERS if found else 0)


@click.command(epilog=CODES)
@click.argument("folder", type=_FOLDER)
@_CONFIG
def backup(folder: Path, config: Path) -> None:
    """Copy everything that is kept to FOLDER, which must not exist; safe while the collector runs."""
    with coded():
        from cloud_collector import backup as room
        from cloud_collector import config as settings
        from cloud_collector.lake import Lake

        told = settings.load(config)
        _check_file(told, "pg_dump copies it. Dump it first, then copy the data folder")
        size = room.backup(told.data, folder.absolute(), Lake.of(told, writes=False))
        click.echo(f"backed up {size} bytes")


@click.command(epilog=CODES)
@click.argument("folder", type=_FOLDER)
@_CONFIG
def restore(folder: Path, config: Path) -> None:
    """Bring the backup in FOLDER back to an empty data folder; what was acked after it is lost, and shown so."""
    with coded():
        from cloud_collector import backup as room
        from cloud_collector import config as settings
        from cloud_collector.lake import Lake

        told = settings.load(config)
        _check_file(told, "pg_restore brings it back. Then run `cloud-collector mark-restored`")
        lake = None if told.bucket is None else Lake.of(told, writes=True)
        made = room.restore(folder.absolute(), told.data, who=getpass.getuser(), lake=lake)
        click.echo(f"restored the backup of {made:%Y-%m-%d %H:%M}Z; start the collector, then look at `fleet`")


@click.command("mark-restored", epilog=CODES)
@_CONFIG
def mark_restored(config: Path) -> None:
    """Note that a landing on a server came out of a dump, before collectors start: what may be lost is then said."""
    with coded():
        from cloud_collector import backup as room
        from cloud_collector import config as settings
        from cloud_collector.errors import ConfigInvalid, StoreUnavailable
        from cloud_collector.landing import store_of
        from cloud_collector.landing_store import Broken
        from cloud_collector.shared_plans import registry

        told = settings.load(config)
        if told.database is None:
            raise ConfigInvalid("$.landing.url: missing: `restore` marks what it brings back by itself")
        with contextlib.closing(store_of(told.landing, make=False)) as landing:
            try:
                room.mark_restored(landing, registry(told).list(), who=getpass.getuser())
            except Broken as error:
                raise StoreUnavailable(f"nothing was noted ({error.cause}): look at the landing's server") from None
        click.echo("noted; start the collectors, then look at `fleet`")


def _check_file(told: Config, instead: str) -> None:
    from cloud_collector.errors import ConfigInvalid

    if told.database is not None:
        raise ConfigInvalid(f"$.landing.url: the landing is on a server: {instead} (docs/operate.md)")
