"""The command line of the edge agent: `check`, `run`, `status`. Heavy rooms are imported when a command needs them."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

EXIT_UNEXPECTED, EXIT_CONFIG, EXIT_SOURCE, EXIT_JOURNAL, EXIT_NOT_DRAINED, EXIT_PARKED = 1, 3, 4, 5, 6, 7
EXIT_CODES = """\b
Exit codes:
  0  done
  1  unexpected failure
  2  wrong usage
  3  config or plan invalid, or a budget too small for any noise
  4  a source cannot be read
  5  the journal cannot be read or written
  6  run --drain: the collector did not take everything in time; run again
  7  run --drain: the collector refused a release for good; see status
"""
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-aggregator")
def cli() -> None:
    """Aggregate events where they arise, add noise, ship only noisy summaries."""


@cli.command(epilog=EXIT_CODES)
@click.argument("path", type=_FILE)
@click.option("--sites", default=1, show_default=True, type=click.IntRange(1, 10**6), help="Sites in the fleet.")
def check(path: Path, sites: int) -> None:
    """Say what PATH (a plan, or an agent's config) would cost and release. Reads no events, spends nothing."""
    with _exit_codes():
        from edge_agg import report

        report.check(path, sites)


@cli.command(epilog=EXIT_CODES)
@click.argument("config", type=_FILE)
@click.option("--drain", is_flag=True, help="Read what is there, close every window, wait for the acks, exit.")
@click.option("--patience", default=60.0, show_default=True, help="Drain: seconds without an ack before giving up.")
@click.option("--log", type=click.Choice(["json", "bars", "none"]), help="Default: bars on a terminal, else json.")
def run(config: Path, *, drain: bool, patience: float, log: str | None) -> None:
    """Run the agent that CONFIG describes, until SIGTERM; or once with --drain."""
    with _exit_codes():
        from edge_agg import report, telemetry
        from edge_agg.agent import build
        from edge_agg.clock import SystemClock
        from edge_agg.config import load

        log = log or ("bars" if sys.stderr.isatty() else "json")
        telemetry.configure(quiet=log != "json")
        loaded, plans = load(config)

        async def work() -> bool:
            agent = build(loaded, plans, clock=SystemClock())
            task = asyncio.ensure_future(agent.drain(patience)) if drain else None
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, task.cancel if task else stop.set)
            try:
                if task is not None:
                    return await task
                await agent.run(stop)
            finally:
                await agent.close()
            return True

        with report.bars() if log == "bars" else nullcontext():
            drained = asyncio.run(work())
        if drain:
            _leave(loaded.agent.state, loaded.agent.name, drained=drained)


@cli.command(epilog=EXIT_CODES)
@click.argument("config", type=_FILE)
def status(config: Path) -> None:
    """Show an agent's windows, queue and budget; safe while it runs. What it shows is for this device's operator."""
    with _exit_codes():
        from edge_agg import report

        report.status(config)


def _leave(state: str, name: str, *, drained: bool) -> None:
    from edge_agg.journal import Journal

    journal = Journal.read(Path(state), name)
    parked = journal.parked()
    journal.close()
    if not drained:
        click.echo("the collector did not take everything; nothing is lost, run again", err=True)
        sys.exit(EXIT_NOT_DRAINED)
    if parked:
        click.echo(f"{len(parked)} releases were refused for good; see `edge-agg status`", err=True)
        sys.exit(EXIT_PARKED)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Map what the rooms raise on purpose to exit codes and one line of text."""
    from edge_agg import errors

    codes: dict[type[Exception], int] = {
        errors.ConfigInvalid: EXIT_CONFIG,
        errors.PlanRefused: EXIT_CONFIG,
        errors.SourceUnreadable: EXIT_SOURCE,
        errors.JournalFailed: EXIT_JOURNAL,
    }
    try:
        yield
    except tuple(codes) as error:
        click.echo(f"edge-agg: {error}", err=True)
        sys.exit(codes[type(error)])
    except asyncio.CancelledError:
        click.echo("edge-agg: stopped before everything was sent; nothing is lost, run again", err=True)
        sys.exit(EXIT_NOT_DRAINED)


def main() -> None:
    """Run the command line."""
    cli(prog_name="edge-agg")


if __name__ == "__main__":
    main()
