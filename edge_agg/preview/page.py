"""What `edge-agg preview` shows: errors by metric and roll-up, what bounds take away, better bounds, an epsilon.

Place: above the rest of the room. Invariant: what was counted from a sample is shown below a warning that says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.panel import Panel

from edge_agg.config import load_plan
from edge_agg.contract.cells import n_cells
from edge_agg.preview.choice import by_bounds, take_for_granted, with_clips
from edge_agg.preview.sample import read_batches
from edge_agg.preview.study import study
from edge_agg.preview.text import bounds_of, number, percent, signed, table_of
from edge_agg.preview.wanted import parse_want, show_want
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.predict import assumed, chances_to_show, figures, units_to_show
from edge_agg.privacy.statement import plural

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa

    from edge_agg.preview.choice import Candidate, Total
    from edge_agg.preview.study import Study
    from edge_agg.preview.wanted import Payer
    from edge_agg.privacy.measurement import Measurement
    from edge_agg.privacy.predict import Figure, Truth

NOT_PRIVATE = (
    "[bold]These figures are NOT private.[/] They were counted from the sample without noise. Keep them on this "
    "device, and show them to nobody who may not see the events. The sample must not be the data that the plan will "
    "protect. If it is, whatever you change because of it (a bound, an epsilon) counts as your own knowledge of those "
    "people, and the plan gives it away."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a preview."""

    sites: int
    """In the fleet."""
    rows: int
    """That a cell is taken to hold at one site, where there is no sample."""
    windows: int
    """To roll up over."""
    sample: str | None = None
    """A pattern of event files, of one site."""
    want: str | None = None
    """`5%`, `departures=5%` or `delay=0.5`."""
    payer: Payer | None = None
    """With what is wanted: the account that would pay."""


def show(path: Path, question: Question) -> None:
    """Print what a plan's answers will be worth.

    Raises:
        ConfigInvalid: the plan or the config is wrong, or the question is.
        PlanRefused: no noise fits the budget.
        SourceUnreadable: the sample cannot be read.
    """
    console = Console()
    plan = load_plan(path)
    measurement = compile_plan(plan)
    want = None if question.want is None else parse_want(question.want, plan)
    console.print(
        f"[bold]{plan.name} v{plan.version}[/]  epsilon {plan.budget.epsilon:g} a window of {plan.window.every}, "
        f"{plural(question.sites, 'site')}",
        highlight=False,
    )
    if question.sample is None:
        candidates = [take_for_granted(measurement, question.rows, question.sites)]
        _show_noise(console, measurement, assumed(plan, question.rows), question, None)
        console.print(
            f"[dim]Taken for granted: {question.rows:,} rows a cell, site and window; as many of each unit as the "
            "bounds keep; means at the edge of their range (the worst case), quantiles of evenly spread values. With "
            "--sample FILE these come from events, and what clipping and bounding take away is shown too.[/]"
        )
    else:
        batches, rejected = read_batches(plan, question.sample)
        found = study(measurement, batches, rejected)
        console.print(Panel(NOT_PRIVATE, border_style="red", box=box.HEAVY))
        _show_sample(console, found)
        _show_noise(console, measurement, found.cell(), question, found)
        _show_bias(console, found)
        candidates = _show_choice(console, measurement, found, batches, question)
    _show_keys(console, measurement)
    if want is not None:
        show_want(console, plan, want, candidates, sites=question.sites, payer=question.payer)


def _show_noise(
    console: Console, measurement: Measurement, cell: Truth, question: Question, found: Study | None
) -> None:
    """The standard error of every number, rolled up step by step."""
    sites, cells = question.sites, float(n_cells(measurement.plan))
    if measurement.selection is not None:
        # Only released keys are added up; without a sample there is no saying how many.
        cells *= (
            0
            if found is None
            else float(
                chances_to_show(measurement.selection, found.kept.units_of_keys).sum() / len(found.sample.windows)
            )
        )
    all_cells = max(1, round(cells))
    share = 1.0 if found is None else found.cells / all_cells
    spread = {name: values * share for name, values in cell.items()}
    scopes: list[tuple[str, Truth, int]] = [("one cell\none site", cell, 1)]
    if sites > 1:
        scopes.append((f"one cell\n{sites:,} sites", cell, sites))
    if all_cells > 1:
        scopes.append((f"all {all_cells:,} cells\n{plural(sites, 'site')}", spread, sites * all_cells))
    if question.windows > 1:
        top = (spread, sites * all_cells) if all_cells > 1 else (cell, sites)
        scopes.append((f"and over\n{question.windows} windows", top[0], top[1] * question.windows))
    table = table_of("standard error from noise", "\nmetric", "one cell\nholds", *(name for name, _, _ in scopes))
    by_scope = [figures(measurement, truth, copies=copies) for _, truth, copies in scopes]
    for row in zip(*by_scope, strict=True):
        table.add_row(row[0].label, number(row[0].value), *(_error(figure) for figure in row))
    console.print(table)
    if any(figure.rank is not None for figure in by_scope[0]):
        console.print("[dim]Of a quantile: the value's error, and that of its rank as a share of the rows.[/]")


def _error(figure: Figure) -> str:
    if math.isinf(figure.error):
        return "lost\nin noise"
    below = f"{figure.rank:.2%} rank" if figure.rank is not None else percent(figure.relative)
    return f"± {number(figure.error)}\n{below}"


def _show_sample(console: Console, found: Study) -> None:
    sample, kept, loose, bounds = found.sample, found.kept, found.loose, found.plan.bounds
    console.print(
        f"{sample.rows:,} rows in {len(sample.windows):,} windows ({sample.dropped:,} dropped: wrong type, or no unit, "
        f"time or cell); {found.cells:,.1f} cells of a window hold rows.",
        highlight=False,
    )
    unit = found.plan.privacy_unit.label
    for what, values, bound in (
        (f"rows of a {unit} in a cell", loose.rows_of_units, bounds.max_rows_per_partition),
        (f"cells of a {unit} in a window", loose.cells_of_units, bounds.max_partitions),
    ):
        half, most, nearly = (int(n) for n in np.quantile(values, (0.5, 0.9, 0.99), method="higher"))
        over = float((values > bound).mean())
        console.print(
            f"  {what}: half {half:,}, 90 % {most:,}, 99 % {nearly:,}, at most {values.max():,}; "
            f"{over:.1%} above {bound}",
            highlight=False,
        )
    console.print(f"  bounding keeps {kept.rows / max(1, loose.rows):.1%} of the rows", highlight=False)
    if found.suppressed:
        console.print(
            f"  about {found.suppressed:.1%} of these are of keys that will not show at one site", highlight=False
        )


def _show_bias(console: Console, found: Study) -> None:
    """What every bound takes away, one after another, of an average cell."""
    names = list(found.steps)
    table = table_of(
        "what clipping and bounding do to an average cell (bias: more sites do not help)",
        "metric",
        "truth",
        *(f"{name.replace(' ', chr(10), 1)}" for name in names[1:]),
        "in all",
        "bounded",
    )
    for label, truth in found.truth.items():
        steps = [found.steps[name][label] for name in names]
        changes = [later - earlier for earlier, later in pairwise(steps)]
        whole = found.bounded[label] - truth
        in_all = f"{signed(whole)}\n{percent(abs(whole / truth)) if truth else '-'}"
        table.add_row(label, number(truth), *map(signed, changes), in_all, number(found.bounded[label]))
    console.print(table)


def _show_choice(
    console: Console, measurement: Measurement, found: Study, batches: Sequence[pa.RecordBatch], question: Question
) -> list[Candidate]:
    """The plan's bounds beside the best that were found; returns what was tried, for the inverse question."""
    tried = by_bounds(measurement, found, question.sites)
    best = with_clips(min(tried, key=lambda one: one.score), found, batches, question.sites)
    sites = "one site" if question.sites == 1 else f"{question.sites:,} sites"
    table = table_of(
        f"error of an average cell at {sites}, noise and bias together", "metric", "this plan", "better bounds"
    )
    for own, other in zip(tried[0].totals, best.totals, strict=True):
        table.add_row(own.figure.label, _total(own), _total(other))
    console.print(table)
    changes = bounds_of(best.plan, measurement.plan)
    if changes:
        console.print("The least error, over all metrics, is with " + ", ".join(changes) + ".", highlight=False)
    else:
        console.print("No bounds that the sample suggests do better.")
    return [*tried, best]


def _total(total: Total) -> str:
    if math.isinf(total.error):
        return "lost in noise"
    parts = f"noise {number(total.figure.error)}, bias {signed(total.bias)}"
    return f"± {number(total.error)} ({percent(total.relative)})\n{parts}"


def _show_keys(console: Console, measurement: Measurement) -> None:
    selection = measurement.selection
    if selection is None:
        return
    half, most = units_to_show(selection, 0.5), units_to_show(selection, 0.95)
    unit = measurement.plan.privacy_unit.label
    console.print(
        f"A {selection.partition} shows at a site half of the time if it has {half:,} distinct {unit} there, 19 times "
        f"in 20 if it has {most:,}. What does not show is missing from every sum.",
        highlight=False,
    )
