"""The collector's command line.

Place: around everything; each command reads the config, does one thing, and says how it went with its exit code.
Invariants: `--help` imports nothing heavy, and every failure that was foreseen ends in one line and its code.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cloud_collector.commands import CODE_OF_CHECK, CODE_OF_VERIFY, CODES, coded, show, table_of, token
from cloud_collector.fleet import fleet
from cloud_collector.issuing import ca
from cloud_collector.stores import backup, mark_restored, restore, verify

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_CONFIG = click.option("--config", type=_FILE, required=True, help="The collector's config file.")


@click.group(epilog=CODES + CODE_OF_CHECK + CODE_OF_VERIFY, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-aggregator")
def cli() -> None:
    """Collect noisy summaries from edge agents and answer analysts."""


@cli.command(epilog=CODES)
@click.argument("config", type=_FILE)
def serve(config: Path) -> None:
    """Run the collector of CONFIG until SIGTERM or Ctrl-C; its events go to standard error as JSON lines."""
    import asyncio

    from cloud_collector import config as settings
    from cloud_collector import figures, telemetry

    with coded():
        telemetry.configure(sys.stderr)
        loaded = settings.load(config)
        if loaded.workers > 1:  # before the library that keeps figures is imported, by whichever module
            figures.share(loaded.figures_path)
        from cloud_collector import garbage, server, supervisor
        from cloud_collector.notify import Notifier

        notifier = Notifier.from_environment()

        def ready(address: str) -> None:
            garbage.settle()
            click.echo(f"listening on {address}")
            notifier.ready(address)

        run = supervisor.serve if loaded.workers > 1 else server.serve
        serving = run(loaded, ready=ready, monitored=lambda address: click.echo(f"monitored on {address}"))
        asyncio.run(notifier.around(serving))


@cli.group(epilog=CODES)
def plans() -> None:
    """Register and list the plans whose releases are taken."""


@plans.command("add", epilog=CODES)
@click.argument("plan", type=_FILE)
@click.option("--node", "nodes", multiple=True, help="An agent that is expected to report; give it once for each.")
@click.option("--tenant", default="default", show_default=True, help="Whose plan it is.")
@_CONFIG
def add_plan(plan: Path, nodes: tuple[str, ...], tenant: str, config: Path) -> None:
    """Register PLAN; a collector that runs takes its releases from then on."""
    from cloud_collector import config as settings
    from cloud_collector.shared_plans import registry

    with coded():
        added = registry(settings.load(config)).add_file(plan, nodes, tenant=tenant)
        click.echo(f"registered {added.plan.name} version {added.plan.version}, {added.hash.hex()[:12]}")


@plans.command("list", epilog=CODES)
@_CONFIG
def list_plans(config: Path) -> None:
    """List the registered plans."""
    from cloud_collector import config as settings
    from cloud_collector.shared_plans import registry

    with coded():
        table = table_of("tenant", "plan", "version", "hash", "window", "metrics", "nodes")
        for one in registry(settings.load(config)).list():
            metrics = ", ".join(metric.name for metric in one.plan.metric)
            version, nodes = str(one.plan.version), str(len(one.nodes)) if one.nodes else "any"
            about = (one.plan.name, version, one.hash.hex()[:12], one.plan.window.every, metrics, nodes)
            table.add_row(one.tenant, *about)
        show(table)


cli.add_command(ca)
cli.add_command(token)
cli.add_command(fleet)
cli.add_command(verify)
cli.add_command(backup)
cli.add_command(restore)
cli.add_command(mark_restored)


def main() -> None:
    """Run the command line."""
    cli(prog_name="cloud-collector")


if __name__ == "__main__":
    main()
