"""The main job, end to end: three airports' flights of 2013 in, an honest table and chart out. `make demo` runs it."""

from __future__ import annotations

import os
import shutil
import socket
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cloud_collector import connect
from edge_agg.config import horizon_of, load
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import budget_of, state
from examples.flights.chart import band_chart, save
from examples.flights.events import SITES, central_bytes, write_events
from examples.flights.site import collector, lay_out, run_agents
from examples.flights.truth import bounded_truth

if TYPE_CHECKING:
    from cloud_collector.client import Client

HOME = Path(".demo")
START, END = date(2013, 1, 1), date(2014, 1, 2)  # the last flights of the year left in 2014, by UTC


def main() -> None:
    """Run the demo; everything it makes lies in `.demo`."""
    console = Console()
    port = int(os.environ.get("DEMO_PORT", "8815"))
    _check_free(port)
    shutil.rmtree(HOME, ignore_errors=True)
    console.rule("flights of 2013 from three airports")
    console.print("Aircraft stand in for people: what is protected is everything one tail number did in a week.")
    agents = lay_out(HOME, port=port, start=START, end=END)
    with Progress(
        TextColumn("{task.description:>24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bars:
        writing = bars.add_task("event files at the sites", total=12 * len(SITES))
        for _ in write_events(HOME / "events", start=START, end=END):
            bars.advance(writing)
        with collector(HOME / "collector.toml") as address:
            shipped = _run_sites(agents, bars)
            bars.stop()
            with connect(address) as client:
                _show_table(console, client, agents)
                _show_loss(console, agents[0])
                _show_bytes(console, sum(shipped.values()))
                _show_chart(console, client)
    console.print("\nNext: [bold]make notebook[/] asks the same store your own questions.")


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise SystemExit(f"port {port} is taken; choose another: make demo DEMO_PORT=8816") from None


def _run_sites(agents: list[Path], bars: Progress) -> dict[str, int]:
    """Run the agents with two bars each; returns the bytes each one shipped."""
    sealed = {config.stem: bars.add_task(f"{config.stem}: windows released") for config in agents}
    acked = {config.stem: bars.add_task(f"{config.stem}: stored and acked") for config in agents}
    shipped = dict.fromkeys(sealed, 0)

    def follow(name: str, event: dict[str, Any]) -> None:
        match event["event"]:
            case "windows_due":
                bars.update(sealed[name], total=event["windows"])
                bars.update(acked[name], total=event["windows"])
            case "window_sealed":
                bars.advance(sealed[name])
            case "releases_acked":
                bars.advance(acked[name], event["releases"])
                shipped[name] += event["payload_bytes"]

    run_agents(agents, follow)
    return shipped


def _show_table(console: Console, client: Client, agents: list[Path]) -> None:
    truth = pl.concat(bounded_truth(config) for config in agents).group_by("carrier").agg(pl.selectors.integer().sum())
    plan = load(agents[0])[1][0]
    clip = next(vector.clip for vector in compile_plan(plan).vectors if vector.name == "delay_sum")
    assert clip is not None, "a mean has a grid"
    mean = (pl.col("delay_sum") / pl.col("delay_count") + clip.centre) * clip.resolution
    exact = {row["carrier"]: row for row in truth.with_columns(mean.alias("delay")).to_dicts()}
    title = "2013 by carrier, 95 % noise intervals; truth (bounded) only a demo may show"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True, min_width=5)
    metrics = {"departures": "departures", "aircraft": "aircraft", "delay": "mean delay, min"}
    for label in metrics.values():
        table.add_column(label, justify="right", no_wrap=True)
        table.add_column("truth", justify="right", style="dim", no_wrap=True)
    table.add_column("sites", no_wrap=True)
    answers = {metric: client.estimate("flight_delays", metric, by=["carrier"]) for metric in metrics}
    for carrier, rows in _by_carrier(answers).items():
        cells = []
        for metric, row in rows.items():
            digits = 1 if metric == "delay" else 0
            cells += [_interval(row, digits), f"{exact[carrier][metric]:,.{digits}f}"]
        last = rows["departures"]
        table.add_row(carrier, *cells, f"{last['nodes_reporting']}/{last['nodes_expected']}")
    console.print(table)
    console.print(
        f"{last['windows_reporting']} of {last['windows_expected']} expected releases (sites x weeks) are in: "
        f"{last['status']}."
    )
    console.print(
        "[dim]Aircraft: distinct aircraft, counted once per week and airport, then added up. The interval covers "
        "the truth of the bounded data; what clipping and bounding left out is not in it.[/]"
    )


def _by_carrier(answers: dict[str, pl.DataFrame]) -> dict[str, dict[str, dict[str, Any]]]:
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for metric, answer in answers.items():
        for row in answer.to_dicts():
            rows.setdefault(row["carrier"], {})[metric] = row
    return rows


def _interval(row: dict[str, Any], digits: int) -> str:
    if row["value"] is None:
        return "-"
    if digits == 0:
        return f"{row['value']:,.0f} ±{(row['hi'] - row['lo']) / 2:,.0f}"
    return f"{row['value']:.1f} ({row['lo']:.1f}..{row['hi']:.1f})"


def _show_loss(console: Console, config_path: Path) -> None:
    config, (plan, *_) = load(config_path)
    account = config.account[0]
    budget = budget_of(epsilon=account.epsilon, delta=account.delta, horizon=horizon_of(account))
    said = state(compile_plan(plan), budget, account.delta)
    console.rule("what it cost")
    nodes = plan.privacy_unit.max_nodes
    console.print(f"One aircraft, one week, one airport: {said.window_site}.")
    console.print(f"One aircraft, one week, at up to {nodes} airports: {said.window_person}.")
    console.print(f"One aircraft, the year's {said.windows} weeks, at up to {nodes} airports: {said.horizon_person}.")
    console.print(f"Each airport's own account allows epsilon {account.epsilon:g} in {budget.horizon.days} days.")


def _show_bytes(console: Console, shipped: int) -> None:
    ndjson, parquet = central_bytes(HOME / "events")
    console.rule("what left the sites")
    console.print(
        f"{shipped:,} bytes of noisy summaries. The same events, only the plan's columns, would take\n"
        f"{ndjson:,} bytes as NDJSON with zstd ({ndjson / shipped:.1f} times as much), and\n"
        f"{parquet:,} bytes as Parquet with zstd ({parquet / shipped:.1f} times as much).\n"
        "Summaries do not grow with the events."
    )


def _show_chart(console: Console, client: Client) -> None:
    weekly = client.estimate("flight_delays", "delay", every="7d")
    title = "Mean departure delay by week of 2013, all flights from EWR, JFK and LGA"
    png, html = save(band_chart(weekly, title=title, y="minutes"), HOME / "delay")
    console.rule("the chart")
    console.print(f"{png}\n{html}")


if __name__ == "__main__":
    main()
