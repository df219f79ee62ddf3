"""Tumult Analytics on a local Spark of two cores: bounds by itself, uniform samples by hash.

Spark is up, and has run one job, before the clock starts; the JVM's CPU time and memory count.
"""

from __future__ import annotations

import os
import sys
import tempfile

import pandas as pd
from pyspark.sql import SparkSession
from tmlt.analytics import (
    AddRowsWithID,
    ApproxDPBudget,
    KeySet,
    MaxGroupsPerID,
    MaxRowsPerGroupPerID,
    QueryBuilder,
    Session,
)

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

os.environ["PYSPARK_PYTHON"] = sys.executable
SPARK = (
    SparkSession.builder.master("local[2]")
    .config("spark.driver.memory", "6g")
    .config("spark.sql.shuffle.partitions", "4")
    .config("spark.ui.enabled", "false")
    .config("spark.sql.warehouse.dir", f"{tempfile.gettempdir()}/warehouse")
    .getOrCreate()
)
SHARE = 0.5
"""What query C spends on discovering the categories, of epsilon; all of delta goes there."""


def answer(query: Query, pattern: str) -> Answer:
    """Open a session over the files and evaluate."""
    events = SPARK.read.parquet(pattern.rpartition("/")[0]).select("unit", "category", "amount")
    session = Session.from_dataframe(
        privacy_budget=ApproxDPBudget(EPSILON, DELTA),
        source_id="events",
        dataframe=events,
        protected_change=AddRowsWithID("unit"),
    )
    rows = QueryBuilder("events").enforce(MaxGroupsPerID("category", MAX_PARTITIONS))
    rows = rows.enforce(MaxRowsPerGroupPerID("category", MAX_ROWS))
    if query == "C":
        return _discovered(session, rows)
    groups = rows.groupby(KeySet.from_dataframe(SPARK.createDataFrame(pd.DataFrame({"category": range(PUBLIC)}))))
    budget = ApproxDPBudget(EPSILON, DELTA)
    match query:
        case "A":
            frame = session.evaluate(groups.count(name="n"), budget).toPandas()
        case "B":
            frame = session.evaluate(groups.sum("amount", LOWER, UPPER, name="s"), budget).toPandas()
        case "D":
            frame = session.evaluate(groups.count_distinct(["unit"], name="u"), budget).toPandas()
        case "E":
            half = ApproxDPBudget(EPSILON / len(QUANTILES), DELTA / len(QUANTILES))
            frame = pd.DataFrame({"category": range(PUBLIC)})
            for q in QUANTILES:
                query_q = groups.quantile("amount", q, LOWER, UPPER, name=f"p{q * 100:.0f}")
                frame = frame.merge(session.evaluate(query_q, half).toPandas(), on="category")
    return _answer(frame)


def _discovered(session: Session, rows: QueryBuilder) -> Answer:
    found = session.evaluate(rows.get_groups(["category"]), ApproxDPBudget(SHARE * EPSILON, DELTA))
    groups = rows.groupby(KeySet.from_dataframe(found))
    rest = ApproxDPBudget((1 - SHARE) * EPSILON / 2, 0)
    frame = session.evaluate(groups.count(name="n"), rest).toPandas()
    means = session.evaluate(groups.average("amount", LOWER, UPPER, name="mean"), rest).toPandas()
    return _answer(frame.merge(means, on="category"))


def _answer(frame: pd.DataFrame) -> Answer:
    return Answer(columns=frame.rename(columns={"category": "key"}).astype(float).to_dict(orient="list"))


if __name__ == "__main__":
    SPARK.range(1000).count()
    serve(answer)
    SPARK.stop()
