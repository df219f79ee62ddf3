"""The command line of the edge agent: `check`, `preview`, `run`, `status`, `ledger`, `doctor`, `enroll`.

Heavy rooms are imported when a command needs them.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

(
    EXIT_UNEXPECTED,
    EXIT_CONFIG,
    EXIT_SOURCE,
    EXIT_JOURNAL,
    EXIT_NOT_DRAINED,
    EXIT_PARKED,
    EXIT_DIFFERS,
    EXIT_ENROLLMENT,
    EXIT_FULL,
) = (
    1,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
)
EXIT_CODES = """\b
Exit codes:
  0  done
  1  unexpected failure; doctor: something is wrong; status --check: no agent answers
  2  wrong usage
  3  config or plan invalid, or a budget too small for any noise
  4  a source cannot be read
  5  the journal or the spool cannot be read or written: a person looks at the disk first
  6  run --drain: the collector did not take everything in time, or has fenced the agent;
     or the clock is not believed; run again
  7  run --drain: the collector refused a release for good; see status
  8  ledger verify: the journal contradicts its plans, its chain or its budgets
  9  enroll: no certificate was given out
  10 the disk has no room or is read-only: nothing is lost, start again
"""
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edge-aggregator")
def cli() -> None:
    """Aggregate events where they arise, add noise, ship only noisy summaries."""


@cli.command(epilog=EXIT_CODES)
@click.argument("path", type=_FILE)
@click.option("--sites", default=1, show_default=True, type=click.IntRange(1, 10**6), help="Sites in the fleet.")
@click.option("--what-if", type=_FILE, help="With a config: a plan that is not in it yet.")
@click.option("--account", help="With --what-if: the account that would pay.")
def check(path: Path, sites: int, what_if: Path | None, account: str | None) -> None:
    """Say what PATH (a plan, or an agent's config) would cost and release, and how long its accounts last.

    Reads no events, spends nothing.
    """
    if (what_if is None) != (account is None):
        raise click.UsageError("--what-if and --account stand together")
    with _exit_codes():
        from edge_agg.report import check as page

        page.check(path, sites, what_if=what_if, account=account)


@cli.command(epilog=EXIT_CODES)
@click.argument("plan", type=_FILE)
@click.option("--sites", default=1, show_default=True, type=click.IntRange(1, 10**6), help="Sites in the fleet.")
@click.option("--sample", help="Event files of one site (a pattern). Their figures are NOT private.")
@click.option(
    "--rows", default=1000, show_default=True, type=click.IntRange(1), help="Rows in a cell, without a sample."
)
@click.option("--windows", default=4, show_default=True, type=click.IntRange(1), help="Windows to roll up over.")
@click.option("--want", help="5%, METRIC=5% or METRIC=NUMBER: what epsilon and bounds that takes.")
@click.option("--agent", type=_FILE, help="With --want: the config whose account would pay.")
@click.option("--account", help="With --agent: the account.")
def preview(
    plan: Path,
    *,
    sites: int,
    sample: str | None,
    rows: int,
    windows: int,
    want: str | None,
    agent: Path | None,
    account: str | None,
) -> None:
    """Say how accurate the answers to PLAN will be, before anything is spent."""
    if (agent is None) != (account is None) or (agent is not None and want is None):
        raise click.UsageError("--agent and --account stand together, with --want")
    with _exit_codes():
        from edge_agg.preview.page import Question, show
        from edge_agg.preview.wanted import Payer

        payer = None if agent is None or account is None else Payer(config=agent, account=account)
        show(plan, Question(sites=sites, rows=rows, windows=windows, sample=sample, want=want, payer=payer))


@cli.command(epilog=EXIT_CODES)
@click.argument("config", type=_FILE)
@click.option("--drain", is_flag=True, help="Read what is there, close every window, wait for the acks, exit.")
@click.option("--patience", default=60.0, show_default=True, help="Drain: seconds without an ack before giving up.")
@click.option("--log", type=click.Choice(["json", "bars", "none"]), help="Default: bars on a terminal, else json.")
def run(config: Path, *, drain: bool, patience: float, log: str | None) -> None:
    """Run the agent that CONFIG describes, until SIGTERM; or once with --drain."""
    with _exit_codes():
        from edge_agg import process, telemetry
        from edge_agg.config import load

        log = log or ("bars" if sys.stderr.isatty() else "json")
        telemetry.configure(quiet=log != "json")
        loaded, plans = load(config)
        with _bars() if log == "bars" else nullcontext():
            if drain:
                drained = asyncio.run(process.drain(loaded, plans, patience_s=patience))
            else:
                asyncio.run(process.live(config, loaded, plans))
        if drain:
            _leave(loaded.agent.state, loaded.agent.name, drained=drained)


@cli.command(epilog=EXIT_CODES)
@click.argument("config", type=_FILE)
@click.option("--json", "machine", is_flag=True, help="For machines, without what only this device may know.")
@click.option("--check", is_flag=True, help="Exit with 1 if no agent answers.")
def status(config: Path, *, machine: bool, check: bool) -> None:
    """Show an agent's windows, queue, budget and health; safe while it runs. For this device's operator."""
    with _exit_codes():
        from edge_agg.report import status as page

        answers = page.status(config, machine=machine)
    if check and not answers:
        sys.exit(EXIT_UNEXPECTED)


@cli.group(epilog=EXIT_CODES)
def ledger() -> None:
    """Go over an agent's books, or hand them to an auditor."""


@ledger.command(epilog=EXIT_CODES)
@click.argument("config", type=_FILE)
@click.option("--json", "machine", is_flag=True, help="For machines.")
def verify(config: Path, *, machine: bool) -> None:
    """Recompute every charge and release of an agent's journal from its plans; safe while it runs."""
    with _exit_codes():
        from edge_agg.audit import page

        follows = page.verify(config, machine=machine)
    if not follows:
        sys.exit(EXIT_DIFFERS)


@ledger.command(epilog=EXIT_CODES)
@click.argument("config", type=_FILE)
@click.option("--format", "kind", type=click.Choice(["json", "csv"]), default="json", show_default=True)
@click.option("-o", "--output", type=_NEW_FILE, help="In place of standard output.")
def export(config: Path, *, kind: Literal["json", "csv"], output: Path | None) -> None:
    """Write every charge, and how every release was made, for an outside auditor: no values, nothing of the data."""
    with _exit_codes():
        from edge_agg.audit import export as books

        books.export(config, kind=kind, output=output)


@cli.command(epilog=EXIT_CODES)
@click.argument("config", type=_FILE)
@click.option("-o", "--output", type=_NEW_FILE, help="Also write a support bundle (.tar.gz) that holds no raw data.")
def doctor(config: Path, *, output: Path | None) -> None:
    """Check an agent and the device under it, and say what to do about what is wrong; safe while it runs.

    Exits with 0 if all is well, else with 1.
    """
    with _exit_codes():
        from edge_agg.doctor import page

        healthy = page.doctor(config, output=output)
    if not healthy:
        sys.exit(EXIT_UNEXPECTED)


def _bars() -> AbstractContextManager[None]:
    from edge_agg.report.bars import bars  # an agent that nobody watches needs no Rich

    return bars()


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


@cli.command(epilog=EXIT_CODES)
@click.argument("url")
@click.option("--token", required=True, envvar="EDGE_AGG_TOKEN", help="The one-time token; better in EDGE_AGG_TOKEN.")
@click.option("--ca", type=_FILE, help="The collector's root certificates, in PEM.")
@click.option("--ca-fingerprint", help="Or the sha256 of its root, as `cloud-collector ca init` prints it.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("identity"),
    show_default=True,
    help="Gets cert.pem, key.pem and ca.pem.",
)
@click.option("--replace", is_flag=True, help="Give up the key that is there.")
def enroll(url: str, *, token: str, ca: Path | None, ca_fingerprint: str | None, out: Path, replace: bool) -> None:
    """Get this device's certificate from the collector at URL (its listen_open), for a one-time token.

    The key is made here and stays here.
    """
    if (ca is None) == (ca_fingerprint is None):
        raise click.UsageError("give --ca or --ca-fingerprint")
    with _exit_codes():
        from edge_agg import errors
        from edge_agg.identity import enroll as first
        from edge_agg.identity.files import IdentityFiles

        files = IdentityFiles.within(out)
        if files.key.exists() and not replace:
            raise errors.ConfigInvalid(f"{files.key}: there is a key already; --replace gives it up")
        anchors = ca.read_bytes() if ca is not None else first.anchors_by_fingerprint(url, ca_fingerprint or "")
        click.echo(f"this device is {first.enroll(url, token, anchors=anchors, into=files)}")
        for name, path in (("ca_file", files.ca), ("cert_file", files.cert), ("key_file", files.key)):
            click.echo(f'{name} = "{path}"')


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Map what the rooms raise on purpose to exit codes and one line of text."""
    from edge_agg import errors

    codes: dict[type[Exception], int] = {
        errors.ConfigInvalid: EXIT_CONFIG,
        errors.PlanRefused: EXIT_CONFIG,
        errors.SourceUnreadable: EXIT_SOURCE,
        errors.JournalFull: EXIT_FULL,  # before what it is a kind of
        errors.JournalFailed: EXIT_JOURNAL,
        errors.SpoolFailed: EXIT_JOURNAL,
        errors.SpoolFull: EXIT_FULL,
        errors.EnrollmentFailed: EXIT_ENROLLMENT,
        errors.Fenced: EXIT_NOT_DRAINED,
        errors.ClockDoubted: EXIT_NOT_DRAINED,
    }
    try:
        yield
    except tuple(codes) as error:
        click.echo(f"edge-agg: {error}", err=True)
        sys.exit(next(code for kind, code in codes.items() if isinstance(error, kind)))
    except asyncio.CancelledError:
        click.echo("edge-agg: stopped before everything was sent; nothing is lost, run again", err=True)
        sys.exit(EXIT_NOT_DRAINED)


def main() -> None:
    """Run the command line."""
    cli(prog_name="edge-agg")


if __name__ == "__main__":
    main()
