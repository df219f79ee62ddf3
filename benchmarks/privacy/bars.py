"""The bars: for each figure that the project has promised, whether this run met it.

Place: over the stored results of one run; the peers' are those of the last `make bench-peers`.
Invariant: CPU seconds are compared with those of the same case, least of the repetitions on both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.bar import Bar
from benchmarks.privacy.question import QUERIES, Case
from benchmarks.privacy.registry import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.privacy.question import Query
    from benchmarks.privacy.result import Results

MAIN = [
    Case(events=10_000_000, units=units, ids=ids) for units in (100_000, 1_000_000) for ids in ("integer", "string")
]
FLAT = Case(events=10_000_000, units=1_000_000, flat=True)
SCALE = [Case(events=events, units=1_000_000) for events in (1_000_000, 10_000_000, 100_000_000)]
NOISE = Case(events=100_000, units=100_000)
RATIO: dict[tuple[Query, str], float] = {
    ("A", "integer"): 6.0,
    ("A", "string"): 10.0,
    ("B", "integer"): 8.0,
    ("B", "string"): 12.0,
}

REMARKS = {
    "floor_ratio_A_10M-1M-string": "at its limit: 3 of 7 quiet runs missed it "
    "([decision 16](decisions/0016-rows-that-cannot-be-kept-do-not-wait.md))",
    "floor_ratio_A_10M-1M-integer-flat": "the floor is 0.09 to 0.13 s: the run before this one met it at 4.2",
}
"""What a bar's figure alone does not say."""


def bars(results: Results) -> Iterator[Bar]:
    """Every bar that the results have figures for."""
    for case in [*MAIN, FLAT]:
        for query in QUERIES:
            yield from _against(results, query, case)
    peaks = [one.peak_mb for (name, _, case), one in results.items() if name == "ours" and case.events >= 10_000_000]
    if peaks:
        yield Bar(name="peak_rss_mb", value=max(peaks), limit=400.0)
    small, middle, large = (results.get(("ours", "A", case)) for case in SCALE)
    if small and middle and large:
        yield Bar(name="linear_10M_to_100M", value=large.cpu_s / middle.cpu_s / 10, limit=1.2)
    if drawn := results.get(("noise", "C", NOISE)):
        yield Bar(name="noise_50k_cells_2_metrics_wall_s", value=drawn.wall_s, limit=1.5)


def _against(results: Results, query: Query, case: Case) -> Iterator[Bar]:
    ours = results.get(("ours", query, case))
    if ours is None or not ours.readings:
        return
    where = f"{query}_{case.name}"
    floor, bounded = (results.get((name, query, case)) for name in ("plain_polars", "bounded_duckdb"))
    if floor and (query, case.ids) in RATIO:
        yield Bar(name=f"floor_ratio_{where}", value=ours.cpu_s / floor.cpu_s, limit=RATIO[query, case.ids])
    if bounded:
        yield Bar(name=f"sql_ratio_{where}", value=ours.cpu_s / bounded.cpu_s, limit=0.5)
    for system in SYSTEMS.values():
        peer = results.get((system.name, query, case))
        if system.kind == "peer" and system.itself and peer and peer.readings:
            yield Bar(name=f"speed_up_{system.name}_{where}", value=peer.cpu_s / ours.cpu_s, limit=15.0, least=True)
        if query == "C" and system.kind == "peer" and peer and peer.readings:
            name = f"cells_over_{system.name}_{where}"
            yield Bar(name=name, value=float(ours.released), limit=float(peer.released), least=True)
