"""OpenDP's Polars Context: bounds by itself.

`truncate_num_groups` cannot sample (its default, `keep="sample"`, fails in this version: it builds a struct with two
fields of one name), so the first categories of a unit in the order of their codes are kept; and it keeps one fewer than
asked while it pays for all: 7 of 8. Sums are of whole cents, since the noise of a float sum grows with the number of
rows that it may have.
"""

from __future__ import annotations

import opendp.prelude as dp
import polars as pl

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

dp.enable_features("contrib", "honest-but-curious")
_STEPS = round(1 / RESOLUTION)
_LOW, _HIGH = round(LOWER * _STEPS), round(UPPER * _STEPS)
_CANDIDATES = [_LOW + (_HIGH - _LOW) * i // BINS for i in range(BINS + 1)]
_CENTS = pl.col("cents").fill_null(0)
_FIGURES: dict[Query, list[pl.Expr]] = {
    "A": [dp.len().alias("n")],
    "B": [_CENTS.dp.sum((_LOW, _HIGH)).alias("s")],
    "C": [dp.len().alias("n"), _CENTS.dp.sum((_LOW, _HIGH)).alias("s")],
    "D": [pl.col("unit").dp.n_unique().alias("u")],
    "E": [_CENTS.dp.quantile(q, _CANDIDATES).alias(f"p{q * 100:.0f}") for q in QUANTILES],
}
_MAX_ROWS_OF_ALL = 2**24
_MAX_GROUPS = 2**17


def answer(query: Query, pattern: str) -> Answer:
    """Truncate, group, add noise."""
    events = pl.scan_parquet(pattern).select(
        "unit", "category", cents=(pl.col("amount") * _STEPS).round().cast(pl.Int64)
    )
    size = {"max_length": _MAX_ROWS_OF_ALL, "max_groups": _MAX_GROUPS}
    context = dp.Context.compositor(
        data=events,
        privacy_unit=dp.unit_of(contributions=1, identifier=pl.col("unit")),
        privacy_loss=_gaussian() if query == "C" else dp.loss_of(epsilon=EPSILON),
        split_evenly_over=1,
        margins=[dp.polars.Margin(**size), dp.polars.Margin(by=["category"], **size)],
    )
    bounded = context.query().truncate_per_group(MAX_ROWS, by=["category"])
    bounded = bounded.truncate_num_groups(MAX_PARTITIONS, by=["category"], keep="first")
    groups = bounded.group_by("category").agg(*_FIGURES[query])
    if query != "C":
        groups = groups.with_keys(pl.LazyFrame({"category": range(PUBLIC)}, schema={"category": pl.Int64}))
    columns = groups.release().collect().rename({"category": "key"}).to_dict(as_series=False)
    return Answer(columns=_in_units(query, columns))


def _gaussian() -> dp.PrivacyLoss:
    """The largest rho that, with half of delta, is within epsilon; the other half of delta goes to the keys."""
    half = DELTA / 2
    to_delta = dp.c.make_zCDP_to_approxDP
    make = lambda sigma: to_delta(dp.m.make_gaussian(dp.atom_domain(T=int), dp.absolute_distance(T=int), scale=sigma))  # noqa: E731
    sigma = dp.binary_search(lambda s: make(s).map(1).epsilon(half) <= EPSILON, bounds=(0.1, 100.0))
    return dp.loss_of(rho=1 / (2 * sigma**2), delta=half)


def _in_units(query: Query, columns: dict[str, list[float]]) -> dict[str, list[float]]:
    if query == "C":
        cents = columns.pop("s")
        columns["mean"] = [s / n / _STEPS for s, n in zip(cents, columns["n"], strict=True)]
    return {name: [v / _STEPS for v in c] if name in {"s", "p50", "p95"} else c for name, c in columns.items()}


if __name__ == "__main__":
    serve(answer)
