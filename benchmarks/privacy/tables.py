"""Tables of the page, as Markdown, from results.

Place: between the stored results and `page.py`.
Invariant: a cell without a figure says why: `-` the system has no such query, `not run`, `capped`, `failed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.privacy.question import QUERIES, Case, short
from benchmarks.privacy.registry import PEERS, SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.privacy.question import Query
    from benchmarks.privacy.registry import System
    from benchmarks.privacy.result import Result, Results

FIGURES: dict[Query, tuple[str, ...]] = {"A": ("n",), "B": ("s",), "C": ("n", "mean"), "D": ("u",), "E": ("p50", "p95")}
SHOWN = [system for name, system in SYSTEMS.items() if name != "noise"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def cost(results: Results, case: Case) -> str:
    """CPU seconds by system and query, times the plain Polars group-by, and the peak memory."""

    def row(system: System) -> list[str]:
        cells = [_cell(results, system, query, case, _cost(results, query, case)) for query in QUERIES]
        peaks = [one.peak_mb for query in QUERIES if (one := results.get((system.name, query, case))) and one.readings]
        return [system.title, *cells, f"{max(peaks):,.0f}" if peaks else ""]

    return table(["CPU seconds (times Polars)", *QUERIES, "peak MB"], map(row, SHOWN))


def accuracy(results: Results, case: Case) -> str:
    """Mean absolute errors by system and query: against its own bounded truth, and against the whole truth."""

    def row(system: System) -> list[str]:
        return [system.title, *(_cell(results, system, query, case, _errors) for query in QUERIES)]

    return table(
        ["mean absolute error", *(f"{query}: {', '.join(FIGURES[query])}" for query in QUERIES)], map(row, SHOWN)
    )


def sizes(results: Results, query: Query, cases: Sequence[Case]) -> str:
    """CPU seconds of one query by system and case."""

    def row(system: System) -> list[str]:
        return [system.title, *(_cell(results, system, query, case, _seconds) for case in cases)]

    return table([f"CPU seconds of {query}", *(_title(case) for case in cases)], map(row, SHOWN))


def ratios(results: Results, cases: Sequence[Case]) -> str:
    """This project over the plain group-by, and over bounding by hand."""

    def row(case: Case) -> list[str]:
        return [_title(case), *(_ratio(results, query, case) for query in QUERIES)]

    return table(["edge-agg over Polars / over DuckDB by hand", *QUERIES], map(row, cases))


def bounds() -> str:
    """How each system's bounds differ, and which version it is."""
    return table(
        ["system", "version", "bounds"],
        ([system.title, version(system), system.bounds] for system in SHOWN if system.kind != "floor"),
    )


def version(system: System) -> str:
    """What is pinned for a peer: the first line of its requirements' source."""
    if system.kind != "peer":
        return ""
    folder = PEERS / system.name
    name = (folder / "requirements.in").read_text(encoding="utf-8").split()[0].partition("[")[0].replace(".", "-")
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return next(line.split()[0].replace("==", " ") for line in lines if line.startswith(f"{name}=="))


def _cell(results: Results, system: System, query: Query, case: Case, show: Callable[[Result], str]) -> str:
    if query not in system.queries:
        return "-"
    result = results.get((system.name, query, case))
    if result is None:
        return "not run"
    return show(result) if result.readings else result.status


def _cost(results: Results, query: Query, case: Case) -> Callable[[Result], str]:
    floor = results.get(("plain_polars", query, case))

    def show(result: Result) -> str:
        times = f" ({result.cpu_s / floor.cpu_s:,.1f})" if floor else ""
        return f"{result.cpu_s:,.2f}{times}"

    return show


def _seconds(result: Result) -> str:
    return f"{result.cpu_s:,.2f}"


def _errors(result: Result) -> str:
    parts = [
        f"{result.bounded[name]:,.3g} / {result.true[name]:,.3g}"
        for name in FIGURES[result.query]
        if name in result.bounded
    ]
    released = f"; {result.released:,} cells" if result.query == "C" or result.released < 1_000 else ""
    return ", ".join(parts) + released


def _ratio(results: Results, query: Query, case: Case) -> str:
    ours, floor, bounded = (results.get((name, query, case)) for name in ("ours", "plain_polars", "bounded_duckdb"))
    if not (ours and floor and bounded and ours.readings):
        return "not run"
    return f"{ours.cpu_s / floor.cpu_s:.1f} / {ours.cpu_s / bounded.cpu_s:.2f}"


def _title(case: Case) -> str:
    flat = ", flat" if case.flat else ""
    return f"{short(case.events)} events, {short(case.units)} units, {case.ids} ids{flat}"
