"""The yardstick of accuracy: the true answers, and the expected answers after each kind of bounding.

Place: after a run; it reads the same files as the systems did.
Invariants: nothing random here. A row's weight is the probability that it is kept (or the factor it is scaled by), so
an answer over weights is what the kind of bounding gives on average; only Qrlew's is an approximation, since its factor
depends on the sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from benchmarks.privacy.question import LOWER, MAX_PARTITIONS, MAX_ROWS, QUANTILES, UPPER, Query

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.privacy.registry import Sample

FREQUENT = 100
"""Of the discovered categories, those whose errors are compared: codes go by frequency, so the first."""
_IN_RANGE = {"mean", "p50", "p95"}
_N, _M, _L0 = pl.col("n"), pl.col("m"), float(MAX_PARTITIONS)
_ROWS = MAX_PARTITIONS * MAX_ROWS
_UNIT = pl.col("n").sum().over("unit")
_SAMPLED = (_L0 / _M).clip(upper_bound=1.0)
WEIGHTS: dict[Sample, pl.Expr] = {
    "none": pl.lit(1.0),
    "cells": _SAMPLED * (MAX_ROWS / _N).clip(upper_bound=1.0),
    "first": (pl.col("category").rank("dense").over("unit") < MAX_PARTITIONS) * (MAX_ROWS / _N).clip(upper_bound=1.0),
    "rows": (_ROWS / _UNIT).clip(upper_bound=1.0),
    "norm": _SAMPLED * (_ROWS / (_SAMPLED * (_N**2).sum().over("unit")).sqrt()).clip(upper_bound=1.0),
}
SEEN: dict[Sample, pl.Expr] = {
    "none": pl.lit(1.0),
    "cells": _SAMPLED,
    "first": (WEIGHTS["first"] > 0).cast(pl.Float64),
    "rows": 1 - (1 - WEIGHTS["rows"]) ** _N,
    "norm": _SAMPLED,
}
"""The probability that a unit is seen in a category at all."""


def truth(pattern: str, query: Query, sample: Sample) -> pl.DataFrame:
    """The expected answer: `key`, and the figures of the query."""
    events = pl.scan_parquet(pattern).select("unit", "category", v=pl.col("amount").clip(LOWER, UPPER))
    cells = events.group_by("unit", "category").agg(n=pl.len(), s=pl.col("v").sum())
    cells = cells.with_columns(m=pl.len().over("unit"))
    cells = cells.with_columns(w=WEIGHTS[sample], seen=SEEN[sample])
    if query == "E":
        return _quantiles(events.join(cells.select("unit", "category", "w"), on=["unit", "category"]))
    rows, total = (_N * pl.col("w")).sum(), (pl.col("s") * pl.col("w")).sum()
    figures = {"A": [rows.alias("n")], "B": [total.alias("s")], "D": [pl.col("seen").sum().alias("u")]}
    chosen = figures.get(query, [rows.alias("n"), (total / rows).alias("mean")])
    return cells.group_by("category").agg(chosen).rename({"category": "key"}).collect()


def errors(columns: Mapping[str, list[float]], expected: pl.DataFrame, query: Query) -> dict[str, float]:
    """Mean absolute error of each figure, over the categories that were answered and that exist.

    Where categories are discovered, over the most frequent only: else who releases more would look worse for it. Means
    and quantiles are held to the public range first, as any reader would: a noisy count near zero makes a mean of any
    size.
    """
    said = pl.DataFrame(dict(columns)).with_columns(pl.col("key").cast(pl.Int64))
    said = said.with_columns(pl.col(column).clip(LOWER, UPPER) for column in columns if column in _IN_RANGE)
    if query == "C":
        said = said.filter(pl.col("key") < FREQUENT)
    both = said.join(expected, on="key", suffix="_true")
    figures = [name for name in columns if name != "key"]
    means = both.select((pl.col(name) - pl.col(f"{name}_true")).abs().mean().alias(name) for name in figures)
    return {name: value for name, value in means.row(0, named=True).items() if value is not None}


def _quantiles(rows: pl.LazyFrame) -> pl.DataFrame:
    """The least value with a share q of the weight at or below it."""
    share = pl.col("w").cum_sum().over("category") / pl.col("w").sum().over("category")
    ranked = rows.filter(pl.col("w") > 0).select("category", "v", "w").sort("category", "v").with_columns(share=share)
    figures = [pl.col("v").filter(pl.col("share") >= q - 1e-9).first().alias(f"p{q * 100:.0f}") for q in QUANTILES]
    return ranked.group_by("category", maintain_order=True).agg(figures).rename({"category": "key"}).collect()
