"""PipelineDP on its local backend: bounds by itself, uniform samples of a unit's categories and of its rows in each."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import pipeline_dp
import pyarrow.parquet as pq

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import (
    DELTA,
    EPSILON,
    LOWER,
    MAX_PARTITIONS,
    MAX_ROWS,
    PUBLIC,
    QUANTILES,
    UPPER,
    Query,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_METRICS: dict[Query, list[pipeline_dp.Metric]] = {
    "A": [pipeline_dp.Metrics.COUNT],
    "B": [pipeline_dp.Metrics.SUM],
    "C": [pipeline_dp.Metrics.COUNT, pipeline_dp.Metrics.MEAN],
    "D": [pipeline_dp.Metrics.PRIVACY_ID_COUNT],
    "E": [pipeline_dp.Metrics.PERCENTILE(100 * q) for q in QUANTILES],
}
_NAMES = {
    "count": "n",
    "sum": "s",
    "mean": "mean",
    "privacy_id_count": "u",
    "percentile_50": "p50",
    "percentile_95": "p95",
}


def answer(query: Query, pattern: str) -> Answer:
    """Aggregate a lazy stream of rows."""
    accountant = pipeline_dp.NaiveBudgetAccountant(total_epsilon=EPSILON, total_delta=DELTA)
    engine = pipeline_dp.DPEngine(accountant, pipeline_dp.LocalBackend())
    params = pipeline_dp.AggregateParams(
        noise_kind=pipeline_dp.NoiseKind.GAUSSIAN if query == "C" else pipeline_dp.NoiseKind.LAPLACE,
        metrics=_METRICS[query],
        max_partitions_contributed=MAX_PARTITIONS,
        max_contributions_per_partition=MAX_ROWS,
        min_value=LOWER,
        max_value=UPPER,
    )
    extractors = pipeline_dp.DataExtractors(
        privacy_id_extractor=operator.itemgetter(0),
        partition_extractor=operator.itemgetter(1),
        value_extractor=operator.itemgetter(2),
    )
    public = None if query == "C" else list(range(PUBLIC))
    result = engine.aggregate(list(_rows(pattern)), params, extractors, public_partitions=public)
    accountant.compute_budgets()
    columns: dict[str, list[float]] = {"key": []}
    for key, metrics in result:
        columns["key"].append(key)
        for name, value in metrics._asdict().items():
            if name in _NAMES:
                columns.setdefault(_NAMES[name], []).append(float(value))
    return Answer(columns=columns)


def _rows(pattern: str) -> Iterator[tuple[int | str, int, float]]:
    table = pq.read_table(pattern.rpartition("/")[0], columns=["unit", "category", "amount"])
    for batch in table.to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


if __name__ == "__main__":
    serve(answer)
