"""SmartNoise SQL over a pandas frame.

It has one bound, rows of a unit over all categories: 32 here, what L0 x L-infinity amounts to, sampled uniformly.
Epsilon is spent anew on each column, and once more where keys are censored, so it is divided beforehand by what
SmartNoise says a query costs. It has no quantiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import pyarrow.parquet  # noqa: F401  # loaded before the clock starts
import snsql

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import DELTA, EPSILON, LOWER, MAX_PARTITIONS, MAX_ROWS, UPPER

if TYPE_CHECKING:
    from benchmarks.privacy.question import Query

_SQL: dict[Query, str] = {
    "A": "select category as key, count(*) as n from db.events group by category",
    "B": "select category as key, sum(amount) as s from db.events group by category",
    "C": "select category as key, count(*) as n, avg(amount) as mean from db.events group by category",
    "D": "select category as key, count(distinct unit) as u from db.events group by category",
}


def answer(query: Query, pattern: str) -> Answer:
    """Load, rewrite, run."""
    frame = pd.read_parquet(pattern.rpartition("/")[0], columns=["unit", "category", "amount"])
    table = {
        "max_ids": MAX_PARTITIONS * MAX_ROWS,
        "row_privacy": False,
        "sample_max_ids": True,
        "censor_dims": query == "C",
        "clamp_counts": False,
        "unit": {"name": "unit", "type": "string" if frame["unit"].dtype == object else "int", "private_id": True},
        "category": {"name": "category", "type": "int"},
        "amount": {"name": "amount", "type": "float", "lower": LOWER, "upper": UPPER},
    }
    metadata = {"": {"db": {"events": table}}}
    whole = snsql.from_df(frame, privacy=snsql.Privacy(epsilon=EPSILON, delta=DELTA), metadata=metadata)
    epsilon, delta = whole.get_privacy_cost(_SQL[query])
    privacy = snsql.Privacy(epsilon=EPSILON * EPSILON / epsilon, delta=DELTA * DELTA / delta)
    names, *rows = snsql.from_df(frame, privacy=privacy, metadata=metadata).execute(_SQL[query])
    return Answer(
        columns={
            name: [float(value) for value in column]
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
    )


if __name__ == "__main__":
    serve(answer)
