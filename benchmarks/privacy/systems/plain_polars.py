"""The floor: a plain group-by in Polars, which protects nobody."""

from __future__ import annotations

import polars as pl

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import LOWER, QUANTILES, UPPER, Query

_CLIPPED = pl.col("amount").clip(LOWER, UPPER)
FIGURES: dict[Query, list[pl.Expr]] = {
    "A": [pl.len().alias("n")],
    "B": [_CLIPPED.sum().alias("s")],
    "C": [pl.len().alias("n"), _CLIPPED.mean().alias("mean")],
    "D": [pl.col("unit").n_unique().alias("u")],
    "E": [_CLIPPED.quantile(q).alias(f"p{q * 100:.0f}") for q in QUANTILES],
}


def answer(query: Query, pattern: str) -> Answer:
    """Group and aggregate."""
    frame = pl.scan_parquet(pattern).group_by("category").agg(FIGURES[query]).collect()
    return Answer(columns=frame.rename({"category": "key"}).to_dict(as_series=False))


if __name__ == "__main__":
    serve(answer)
