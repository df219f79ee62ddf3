"""The agent's own way from the file to the sealed release, with a journal on disk; nothing is left out but the uplink.

Plans use the mechanism with the smaller error for the query: Laplace noise, except where three vectors and a selection
share the loss (C). A mean's own count serves as the count, since every event has an amount.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import (
    BINS,
    DELTA,
    EPSILON,
    LOWER,
    MAX_PARTITIONS,
    MAX_ROWS,
    PUBLIC,
    QUANTILES,
    RESOLUTION,
    UPPER,
    Query,
)
from cloud_collector.noise import Noise
from cloud_collector.order import Bins, quantile
from cloud_collector.payload import open_payload
from edge_agg.ceilings import settle_heap
from edge_agg.contract.codec import open_sealed
from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.vectors import metric_vectors
from edge_agg.ingest.file import FileSource
from edge_agg.journal import Journal
from edge_agg.privacy.ledger import Budget
from edge_agg.privacy.measurement import Measurement, compile_plan
from edge_agg.series import Account, Series
from edge_agg.window import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    Columns = Mapping[str, Int64s]

_CLIPPED = f'column = "amount"\nlower = {LOWER}\nupper = {UPPER}'
METRICS: dict[Query, str] = {
    "A": 'kind = "count"',
    "B": f'kind = "sum"\n{_CLIPPED}\nresolution = {RESOLUTION}',
    "C": f'kind = "mean"\n{_CLIPPED}\nresolution = {RESOLUTION}',
    "D": 'kind = "distinct_units"',
    "E": f'kind = "quantiles"\n{_CLIPPED}\nbins = {BINS}\nquantiles = {list(QUANTILES)}',
}
_PLAN = """
[plan]
name = "bench"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", unit = "{ids}", category = "integer"{amount} }}
[privacy_unit]
column = "unit"
[bounds]
max_partitions = {max_partitions}
max_rows_per_partition = {max_rows}
[window]
every = "1d"
[[partition]]
column = "category"
{keys}
[[metric]]
name = "m"
{metric}
[budget]
{budget}
"""
DAY = datetime(2013, 1, 7, tzinfo=UTC)
ENGINE = pl.thread_pool_size()
"""Polars is up before the clock starts, as every system's engine is; an agent loads it with its first events."""
settle_heap()


def plan_of(query: Query, ids: str, *, public: int | None = None) -> Plan:
    """The plan that asks a query; with `public` categories where the query does not say how many."""
    discovers = query == "C" and public is None
    return parse_plan(
        _PLAN.format(
            ids=ids,
            amount="" if query in {"A", "D"} else ', amount = "float"',
            max_partitions=MAX_PARTITIONS,
            max_rows=MAX_ROWS,
            keys=f"discover = {{ delta = {DELTA / 2} }}"
            if discovers
            else f"range = {{ start = 0, stop = {public or PUBLIC} }}",
            metric=METRICS[query],
            budget=f'mechanism = "gaussian"\nepsilon = {EPSILON}\ndelta = {DELTA}'
            if discovers
            else f'mechanism = "laplace"\nepsilon = {EPSILON}',
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched(Measurement):
    """A measurement that remembers its exact vectors, for the error column; in production nothing may."""

    seen: list[Columns]

    def draw(self, exact: dict[str, Int64s]) -> dict[str, Int64s]:
        """As ever, after a look."""
        self.seen.append(exact)
        return Measurement.draw(self, exact)


def answer(query: Query, pattern: str) -> Callable[[], Answer]:
    """Read, bound, charge, draw, seal."""
    first = next(iter(sorted(Path().glob(pattern))))
    ids = "string" if pq.read_schema(first).field("unit").type != "int64" else "integer"
    plan = plan_of(query, ids)
    compiled = compile_plan(plan)
    measurement = Watched(**{part.name: getattr(compiled, part.name) for part in fields(compiled)}, seen=[])
    folder = tempfile.TemporaryDirectory()
    journal = Journal.open(Path(folder.name), "bench", now=DAY)
    budget = Budget(rho=Fraction(64), delta=Fraction(DELTA), horizon=timedelta(days=1))
    account = Account(name="people", budget=budget)
    series = Series(
        tenant="bench", measurement=measurement, account=account, journal=journal, span=Span(start=None, end=None)
    )
    source = FileSource(pattern, one_time=series.takes_one_time)
    for frame in source.frames(plan.events.columns):
        series.add(frame.batch)
    series.close(DAY)
    return partial(_read, query, measurement, journal, folder)


def _read(query: Query, measurement: Watched, journal: Journal, folder: tempfile.TemporaryDirectory[str]) -> Answer:
    """What the collector would read out of the sealed bytes."""
    (waiting,) = journal.waiting(1)
    journal.close()
    folder.cleanup()
    release, sealed = open_sealed(waiting.sealed.header, waiting.sealed.payload)
    values = open_payload(release, sealed.payload, measurement.plan)
    keys = [int(key) for key in values.keys] if values.keys is not None else list(range(PUBLIC))
    (exact,) = measurement.seen
    flat = {
        column: part
        for vector in measurement.vectors
        for column, part in zip(vector.columns, exact[vector.name].reshape(len(keys), -1).T, strict=True)
    }
    return Answer(
        columns={"key": [float(key) for key in keys], **_figures(query, measurement.plan, values.columns)},
        exact=_figures(query, measurement.plan, flat),
        notes={"released_bytes": len(sealed.header) + len(sealed.payload)},
    )


def _figures(query: Query, plan: Plan, columns: Columns) -> dict[str, list[float]]:
    (metric,) = plan.metric
    vectors = metric_vectors(plan, metric)
    read = [np.stack([columns[name] for name in vector.columns], axis=1) for vector in vectors]
    match query:
        case "A":
            return {"n": read[0][:, 0].tolist()}
        case "B":
            return {"s": (read[0][:, 0] * RESOLUTION).tolist()}
        case "C":
            total, count = read[0][:, 0], read[1][:, 0]
            centre = vectors[0].clip.centre if vectors[0].clip else 0
            return {"n": count.tolist(), "mean": ((total / np.maximum(count, 1) + centre) * RESOLUTION).tolist()}
        case "D":
            return {"u": read[0][:, 0].tolist()}
        case "E":
            tree = vectors[0].tree
            assert tree is not None, "quantiles are read from a tree"
            edges = tuple(LOWER + (UPPER - LOWER) * i / BINS for i in range(BINS + 1))
            bins = [
                Bins(nodes=tuple(row), noise=Noise(terms=()), edges=edges, branching=tree.branching, height=tree.height)
                for row in read[0].tolist()
            ]
            return {f"p{q * 100:.0f}": [_or_middle(quantile(one, q)) for one in bins] for q in QUANTILES}


def _or_middle(value: float | None) -> float:
    return (LOWER + UPPER) / 2 if value is None else value


if __name__ == "__main__":
    serve(answer)
