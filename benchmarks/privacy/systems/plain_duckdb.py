"""The second floor: a plain group-by in DuckDB, which protects nobody."""

from __future__ import annotations

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import LOWER, QUANTILES, UPPER, Query
from benchmarks.privacy.systems.bounded_duckdb import fetch

_CLIPPED = f"greatest({LOWER}, least({UPPER}, amount))"
FIGURES: dict[Query, str] = {
    "A": "count(*) as n",
    "B": f"sum({_CLIPPED}) as s",
    "C": f"count(*) as n, avg({_CLIPPED}) as mean",
    "D": "count(distinct unit) as u",
    "E": ", ".join(f"quantile_cont({_CLIPPED}, {q}) as p{q * 100:.0f}" for q in QUANTILES),
}


def answer(query: Query, pattern: str) -> Answer:
    """Group and aggregate."""
    sql = f"select category as key, {FIGURES[query]} from read_parquet('{pattern}') group by category"  # noqa: S608
    return Answer(columns=fetch(sql))


if __name__ == "__main__":
    serve(answer)
