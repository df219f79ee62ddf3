"""Write docs/performance.md and its chart from the stored results: `python -m benchmarks.privacy.page`.

Place: last; it measures nothing.
Invariant: every figure of a run comes out of a stored result, the machine's and the versions' too.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.privacy import tables
from benchmarks.privacy.bars import FLAT, MAIN, NOISE, REMARKS, SCALE, bars
from benchmarks.privacy.chart import chart
from benchmarks.privacy.events import CATEGORY_EXPONENT, FLAT_EXPONENT, UNIT_EXPONENT
from benchmarks.privacy.question import BINS, DELTA, EPSILON, MAX_PARTITIONS, MAX_ROWS, Case
from benchmarks.privacy.registry import SYSTEMS
from benchmarks.privacy.result import Results, load
from benchmarks.privacy.truth import FREQUENT

if TYPE_CHECKING:
    from benchmarks.bar import Bar

PAGE, CHART = Path("docs/performance.md"), Path("docs/performance.png")
if TYPE_CHECKING:
    from benchmarks.bar import Bar

LARGE = Case(events=10_000_000, units=1_000_000)
SIZES = [Case(events=events, units=100_000) for events in (100_000, 1_000_000)]
STRINGS = Case(events=1_000_000, units=100_000, ids="string")

TEXT = """# Performance

What protecting people costs, in CPU time, against not doing it, against doing it by hand, and against other systems
that do it. This page is written by `python -m benchmarks.privacy.page` from the results that `make bench-privacy` and
`make bench-peers` leave in `.bench/results.jsonl`.

![CPU seconds by system and query](performance.png)

## The question

One day of events in one Parquet file (written by Polars, zstd, about 9 bytes a row): `t`, `unit`, `category`,
`amount`. Bounds are the same for all: at most {max_partitions} categories of a unit, {max_rows} rows of it in each,
epsilon {epsilon:g}, delta {delta:g}, amounts clipped to 0 .. 100.

| query | asks for |
| --- | --- |
| A | a count, by 1,000 public categories |
| B | a sum of clipped amounts, by the same |
| C | count and mean, over 50,000 categories that have to be discovered |
| D | distinct units, by the 1,000 |
| E | p50 and p95 of amounts, by the 1,000; {bins} public edges where a system wants edges or candidates |

Activity over units follows a Zipf law with exponent {unit_exponent:g}, popularity of categories one with exponent
{category_exponent:g}, independent of each other; ids are dealt at random. Half of all events then belong to a few
hundred units, and bounding drops most of theirs. The case named *flat* has exponent {flat_exponent:g} over units, where
most rows survive bounding: harder for whoever bounds, no different for the plain group-by. Categories are integers,
because the plain group-by is cheapest on them and ratios to it are then strictest. For A it reads one column of the
four; whoever bounds by unit and window reads three.

"edge-agg" is the agent's complete path except the uplink: Parquet, typed rows, windows, bounding, charge in a journal
on disk, noise, sealed release; with the heap settings that the agent's process gives itself at its start (decision
16), where peers have their defaults. Peers go from the same file to their noisy answer. Each run is a process of its
own. CPU time is user and system time of all threads and child processes (the JVM's too) from after the imports, with
engines already up, to the answer; peak memory includes imports. edge-agg, the plain group-bys and the SQL ran
{repeats} times, of which the least CPU time counts; peers ran once, ten minutes at most.

## Machine and versions

{surroundings}

CPU time is compared and not wall time, since a machine may have other work; CPU time suffers from company too (shared
caches), by up to a third between runs.

## Cost

10M events, 1M units, integer ids:

{cost}

{ratios}

{sizes}

## Accuracy

10M events, 1M units, integer ids: mean absolute error over the categories that were answered, for C over the {frequent}
most frequent of them. Before the slash against the expected answer after the system's own kind of bounding (so the
random choice of what is kept counts as error too), after it against the truth over all events. `cells` says how many
categories were released, where that is not all.

{accuracy}

Of these, edge-agg alone can be asked for its exact vectors before noise. Against those, on the same case, the mean
absolute error is {noise}.

## The bars

{bars}

## How the bounds differ

{bounds}

- **OpenDP** runs in an environment of its own, since `opendp[polars]` pins Polars 1.36.1. `truncate_num_groups` with
  its default `keep="sample"` fails there (a struct with two fields of one name), so `keep="first"` is used.
- **Qrlew** forgets the declared values of a column where there are more than 127, and then discovers keys with half of
  epsilon; the number of rows is given to it as public.
- **SmartNoise SQL** runs its SQL through pandas and an SQLite in memory. Its bound is on rows alone: the 32 rows of a
  unit may all be of one category.
- **Tumult Analytics** needs Java 17. Spark is started before the clock is.
- **PyDP** and **diffprivlib** have no bounding over partitions and no group-by, so their rows are the SQL's plus a
  call a category: they show what the noise costs, not what bounding costs. diffprivlib's counts are cut off at the
  exact number of rows (100 rows never give more than 100): not private under add/remove, whatever their error.
- **PipelineDP** reads Python tuples; its Beam and Spark backends would spread the same work, not lessen it.
- A mean and its count are released by edge-agg from two vectors, since a mean pays for its own count; peers that
  release count and mean apart pay for three.
"""


def main() -> None:
    """Write the page and the chart."""
    results = load()
    chart(results, LARGE).save(str(CHART), scale_factor=2)
    PAGE.write_text(_page(results), encoding="utf-8")
    print(f"wrote {PAGE} and {CHART}")


def _page(results: Results) -> str:
    found = list(bars(results))
    head = ["bar", "value", "limit", ""]
    noise = results.get(("ours", "A", LARGE)), results.get(("ours", "B", LARGE)), results.get(("ours", "D", LARGE))
    return TEXT.format(
        max_partitions=MAX_PARTITIONS,
        max_rows=MAX_ROWS,
        frequent=FREQUENT,
        epsilon=EPSILON,
        delta=DELTA,
        bins=BINS,
        unit_exponent=UNIT_EXPONENT,
        flat_exponent=FLAT_EXPONENT,
        category_exponent=CATEGORY_EXPONENT,
        repeats=_repeats(results),
        surroundings=_surroundings(results),
        cost=tables.cost(results, LARGE),
        ratios=tables.ratios(results, [*MAIN, FLAT]),
        sizes=tables.sizes(results, "A", [*SIZES, STRINGS, LARGE]) + "\n\n" + _scale(results),
        accuracy=tables.accuracy(results, LARGE),
        noise=", ".join(f"{one.query} {error:,.3g}" for one in noise if one for error in one.noise.values())
        or "not run",
        bars=tables.table(
            head,
            ([bar.name, f"{bar.value:,.4g}", f"{bar.limit:,.4g}", _verdict(bar)] for bar in found),
        ),
        bounds=tables.bounds(),
    )


def _repeats(results: Results) -> str:
    """How often the local systems ran: not every stored result need be of one run of the benchmark."""
    counts = {len(one.readings) for (name, _, _), one in results.items() if SYSTEMS[name].kind != "peer"}
    return f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts, default=0)}"


def _scale(results: Results) -> str:
    """Cost against events, and the noise's own."""
    costs = [(case, results.get(("ours", "A", case))) for case in SCALE]
    said = ", ".join(f"{one.cpu_s / case.events * 1e9:,.0f} ns at {case.events:,}" for case, one in costs if one)
    drawn = results.get(("noise", "C", NOISE))
    noise = f" Noise for 50,000 cells x 2 metrics: {drawn.wall_s:.2f} s wall, {drawn.cpu_s:.2f} s CPU." if drawn else ""
    return f"Cost of A by edge-agg for each event (1M units): {said}.{noise}" if said else noise.strip()


def _surroundings(results: Results) -> str:
    """Where the local systems ran, as each result says: a line for each machine and set of versions."""
    local = [one for (name, _, _), one in results.items() if SYSTEMS[name].kind != "peer"]
    places = Counter((one.machine, tuple(one.versions.items())) for one in local)
    lines = []
    for (machine, versions), count in places.most_common():
        if machine is None:
            lines.append(
                f"{count} results: machine, versions and load unknown, they were stored before these were kept."
            )
            continue
        loads = [one.load for one in local if one.machine == machine and one.load is not None]
        busy = f"load average before each {min(loads):.1f} to {max(loads):.1f}" if loads else "load unknown"
        lines.append(f"{count} results: {machine}; {', '.join(f'{name} {one}' for name, one in versions)}; {busy}.")
    return "\n".join(lines) or "No results."


def _verdict(bar: Bar) -> str:
    said = "met" if bar.met else "missed"
    return f"{said}; {REMARKS[bar.name]}" if bar.name in REMARKS else said


if __name__ == "__main__":
    main()
