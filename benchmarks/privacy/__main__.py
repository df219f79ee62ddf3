"""Compare this project with the plain group-by, with bounding by hand, and with other DP systems.

`python -m benchmarks.privacy` runs all but the slow peers and prints a line a bar; `--peers` runs the peers instead,
once each. `make bench-privacy` and `make bench-peers` do that.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from benchmarks.privacy.bars import FLAT, MAIN, NOISE, SCALE, bars
from benchmarks.privacy.events import drop
from benchmarks.privacy.question import PUBLIC, QUERIES, Case
from benchmarks.privacy.registry import SYSTEMS
from benchmarks.privacy.result import load
from benchmarks.privacy.run import run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.privacy.question import Query
    from benchmarks.privacy.result import Results

SMALL = [Case(events=events, units=100_000) for events in (100_000, 1_000_000)]
STRINGS = Case(events=1_000_000, units=100_000, ids="string")
LARGE = Case(events=10_000_000, units=1_000_000)
LOCAL = ("plain_polars", "bounded_duckdb", "ours")


def local(repeat: int) -> None:
    """Run everything but the peers; accuracy is compared where the page shows it."""
    run(SYSTEMS["noise"], "C", NOISE, repeat=repeat, compare=False)
    for query, case in [*_asked(), *((query, case) for case in MAIN if case != LARGE for query in QUERIES)]:
        for name in [*LOCAL, "plain_duckdb"] if case == LARGE else LOCAL:
            run(SYSTEMS[name], query, case, repeat=repeat, compare=case == LARGE or query == "C")
    for query in ("A", "B"):
        for name in LOCAL:
            run(SYSTEMS[name], query, FLAT, repeat=repeat, compare=False)
    for case in SCALE:
        if case not in MAIN:
            run(SYSTEMS["plain_polars"], "A", case, compare=False)
            run(SYSTEMS["ours"], "A", case, compare=False)
    drop(SCALE[-1], PUBLIC)


def peers(names: list[str], stored: Results) -> None:
    """Run the peers, once each, except what is stored; no larger case where a smaller one was capped or failed."""
    for name in names:
        gone: set[Query] = set()
        for query, case in _asked():
            if query not in SYSTEMS[name].queries or query in gone:
                continue
            result = stored.get((name, query, case)) or run(SYSTEMS[name], query, case)
            if result.status != "done":
                gone.add(query)


def _asked() -> Iterator[tuple[Query, Case]]:
    """A at every size, and with string ids; all queries at the middle and the largest."""
    yield "A", SMALL[0]
    for query in QUERIES:
        yield query, SMALL[1]
    yield "A", STRINGS
    for query in QUERIES:
        yield query, LARGE


def main() -> None:
    """Run, then print the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", metavar="PEER", help="these peers, or all of them, in place of the rest")
    parser.add_argument("--missing", action="store_true", help="with --peers: only what has no stored result")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions, of which the least counts")
    parser.add_argument("--only", action="store_true", help="run nothing: print the bars of what was stored")
    chosen = parser.parse_args()
    if chosen.peers is not None:
        names = chosen.peers or [name for name, system in SYSTEMS.items() if system.kind == "peer"]
        peers(names, load() if chosen.missing else {})
    elif not chosen.only:
        local(chosen.repeat)
    found = list(bars(load()))
    for bar in found:
        print(bar)
    print(f"{sum(bar.met for bar in found)} of {len(found)} bars met")


if __name__ == "__main__":
    main()
