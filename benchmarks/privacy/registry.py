"""The systems that are compared: how each is started, what it can answer, and how its bounds differ.

Place: between the runs and everything that reads their results.
Invariant: a system that cannot answer a query says so here, with the reason on the page; nothing is left out in
silence.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from benchmarks.privacy.question import Query

PEERS = Path("benchmarks/privacy/peers")
ENVIRONMENTS = Path(".bench/peers")
Sample = Literal["none", "cells", "first", "rows", "norm"]
"""What is kept of a unit: all; a sample of categories and rows; its first categories; a sample of rows; all, scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system."""

    name: str
    title: str
    kind: Literal["floor", "bounded", "ours", "peer"]
    sample: Sample
    bounds: str
    """How its bounds differ, for the page."""
    itself: bool = True
    """Whether it bounds by itself."""
    queries: tuple[Query, ...] = ("A", "B", "C", "D", "E")

    @property
    def command(self) -> list[str]:
        """What starts it, before query, pattern and output; run at the root, which is on the module path."""
        if self.kind == "peer":
            return [str(ENVIRONMENTS / self.name / "bin" / "python"), "-W", "ignore", str(PEERS / self.name / "run.py")]
        return [sys.executable, "-m", f"benchmarks.privacy.systems.{self.name}"]


_HAND = "the bounding in front is this page's best SQL in DuckDB, whose time counts; the library adds noise only"
SYSTEMS = {
    system.name: system
    for system in (
        System(name="plain_polars", title="Polars, no privacy", kind="floor", sample="none", bounds="none"),
        System(name="plain_duckdb", title="DuckDB, no privacy", kind="floor", sample="none", bounds="none"),
        System(
            name="bounded_duckdb",
            title="DuckDB, bounded by hand",
            kind="bounded",
            sample="cells",
            bounds="both bounds, as uniform samples; no noise",
        ),
        System(name="ours", title="edge-agg", kind="ours", sample="cells", bounds="both bounds, as uniform samples"),
        System(name="noise", title="edge-agg, noise alone", kind="ours", sample="none", bounds="none", queries=("C",)),
        System(
            name="opendp",
            title="OpenDP Polars Context",
            kind="peer",
            sample="first",
            bounds="keeps the first 7 categories of a unit by code and pays for 8: sampling fails in this version, and "
            "its filter is off by one; 4 rows each, sampled",
        ),
        System(
            name="pipelinedp",
            title="PipelineDP, local",
            kind="peer",
            sample="cells",
            bounds="both bounds, as uniform samples",
        ),
        System(
            name="qrlew",
            title="Qrlew on DuckDB",
            kind="peer",
            sample="norm",
            bounds="8 random categories of a unit, then what it adds is scaled down to an l2 norm of 32 rows; a "
            "thousand declared categories are too many for it, so it discovers them under every query",
            queries=("A", "B", "C", "D"),
        ),
        System(
            name="smartnoise",
            title="SmartNoise SQL, pandas",
            kind="peer",
            sample="rows",
            bounds="one bound: 32 rows of a unit, sampled over all its categories",
            queries=("A", "B", "C", "D"),
        ),
        System(
            name="tumult",
            title="Tumult Analytics, Spark",
            kind="peer",
            sample="cells",
            bounds="both bounds, as samples by hash",
        ),
        System(name="pydp", title="PyDP", kind="peer", sample="cells", itself=False, bounds=_HAND),
        System(
            name="diffprivlib",
            title="diffprivlib",
            kind="peer",
            sample="cells",
            itself=False,
            bounds=f"{_HAND}, by group privacy over 32 rows",
            queries=("A", "B", "D", "E"),
        ),
    )
}
