"""Qrlew: rewrites SQL into SQL that bounds and adds noise; DuckDB runs it over the Parquet files.

Public categories are declared as possible values, which Qrlew honours for text only, so the category is cast to text.
It has no quantiles. Its bounds are not ours: it keeps eight random categories of a unit, then scales what the unit adds
to each down to a norm that it derives from a multiplicity (rows of a unit); 32 rows is the multiplicity that L0 x
L-infinity rows amount to.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import duckdb
import pyqrlew
import sqlalchemy

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import DELTA, EPSILON, LOWER, MAX_PARTITIONS, MAX_ROWS, PUBLIC, UPPER

if TYPE_CHECKING:
    from benchmarks.privacy.question import Query

_SQL: dict[Query, str] = {
    "A": "select category as key, count(*) as n from events group by category",
    "B": "select category as key, sum(amount) as s from events group by category",
    "C": "select category as key, count(*) as n, avg(amount) as mean from events group by category",
    "D": "select category as key, count(distinct unit) as u from events group by category",
}


def answer(query: Query, pattern: str) -> Answer:
    """Rewrite and run."""
    columns = "unit, category::varchar as category, amount"
    duckdb.execute(f"create view events as select {columns} from read_parquet('{pattern}')")  # noqa: S608
    rows = duckdb.execute("select count(*) from events").fetchall()[0][0]
    dataset = _dataset(rows).with_range(None, "events", "amount", LOWER, UPPER)
    if query != "C":
        dataset = dataset.with_possible_values(None, "events", "category", [str(key) for key in range(PUBLIC)])
    rewritten = dataset.relation(_SQL[query]).rewrite_with_differential_privacy(
        dataset,
        [("events", [], "unit")],
        {"epsilon": EPSILON, "delta": DELTA},
        max_multiplicity=float(MAX_PARTITIONS * MAX_ROWS),
        max_privacy_unit_groups=MAX_PARTITIONS,
    )
    result = duckdb.execute(rewritten.relation().to_query(pyqrlew.Dialect.PostgreSql))
    names = [name for name, *_ in result.description]
    fetched = zip(*result.fetchall(), strict=True)
    return Answer(
        columns={name: [float(value) for value in column] for name, column in zip(names, fetched, strict=True)}
    )


def _dataset(rows: int) -> pyqrlew.Dataset:
    """Describe the table to Qrlew, which reads it from a database's catalogue; the number of rows counts as public."""
    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.StaticPool)
    metadata = sqlalchemy.MetaData()
    columns = {"unit": sqlalchemy.BigInteger, "category": sqlalchemy.Text, "amount": sqlalchemy.Float}
    table = sqlalchemy.Table("events", metadata, *(sqlalchemy.Column(name, kind) for name, kind in columns.items()))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(table.insert().values(unit=0, category="0", amount=0.0))
    single = pyqrlew.Dataset.from_database("bench", engine)
    size = _with_rows(json.loads(single.size), rows)
    spec = {"transformed": {"transform": uuid.uuid4().hex, "arguments": [], "named_arguments": {}}}
    head = {"@type": "sarus_data_spec/sarus_data_spec.Dataset", "uuid": size["dataset"], "name": "bench", "spec": spec}
    return pyqrlew.Dataset.from_str(json.dumps(head | {"properties": {}, "doc": ""}), single.schema, json.dumps(size))


def _with_rows(value: Any, rows: int) -> Any:
    match value:
        case dict():
            return {key: str(rows) if key == "size" else _with_rows(part, rows) for key, part in value.items()}
        case list():
            return [_with_rows(part, rows) for part in value]
        case _:
            return value


if __name__ == "__main__":
    serve(answer)
