"""The commands about what is kept: `verify`, `backup`, `restore`.

Place: part of the command line; all three are safe while the collector runs, but for a restore, which needs its folder.
"""

from __future__ import annotations

import getpass
from pathlib import Path

import click

from cloud_collector.commands import CODES, coded

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, required=True, help="The collector's config file.")


@click.command(epilog=CODES)
@_CONFIG
@click.pass_context
def verify(context: click.Context, config: Path) -> None:
    """Compare chains, landing, lake and roll-ups, and print what differs; exit code 1 if anything does."""
    found = 0
    with coded():
        from cloud_collector import config as settings
        from cloud_collector.errors import ConfigInvalid
        from cloud_collector.lake import Lake
        from cloud_collector.plans import PlanRegistry
        from cloud_collector.verify import Stores, differences

        told = settings.load(config)
        if not told.landing_path.exists():
            raise ConfigInvalid("$.collector.data: no collector has run here yet")
        plans = [(one.plan, one.hash) for one in PlanRegistry(told.plans_path).list()]
        lake = Lake.of(told, writes=False)
        stores = Stores(landing=told.landing_path, lake=lake, rollups=told.rollups_path, plans=plans)
        for difference in differences(stores):
            click.echo(difference)
            found += 1
        click.echo(f"{found} differences" if found else "all fits")
    context.exit(1 if found else 0)


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
        lake = None if told.bucket is None else Lake.of(told, writes=True)
        made = room.restore(folder.absolute(), told.data, who=getpass.getuser(), lake=lake)
        click.echo(f"restored the backup of {made:%Y-%m-%d %H:%M}Z; start the collector, then look at `fleet`")
