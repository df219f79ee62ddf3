"""One question about a plan, as SQL that Spark's dialect and DuckDB's share, and its answer made of what they return.

The answer is that of the plan's tenant: their releases alone, and the range that the collector would take. The engine
adds up, exactly (decimals of 38 digits), and counts draws of noise scale by scale; value, lo and hi are then
made by the same code as the collector's, so they are the collector's to the last bit. DuckDB lacks `unix_micros`;
`DUCKDB` gives it one.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import polars as pl

from cloud_collector import estimate
from cloud_collector.combine import Total
from cloud_collector.errors import QuestionInvalid
from cloud_collector.noise import Noise, Term
from cloud_collector.question import Grid, window_end_us
from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.grid import ORIGIN
from edge_agg.contract.spiffe import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cloud_collector.question import Asked

DUCKDB = "CREATE OR REPLACE TEMP MACRO unix_micros(t) AS epoch_us(t)"
Row = tuple[Any, ...]


def queries(asked: Asked, *, now_us: int, quote: str = "`") -> dict[str, str]:
    """The SQL over a view `lake`: totals by bucket, group and scale, who reported by bucket, and when windows landed.

    Args:
        asked: of public keys, without filters, by the plan's tenant.
        now_us: the moment of the question, in microseconds since 1970.
        quote: what stands around a column's name: a backtick in Spark's dialect, `"` in DuckDB's.

    Raises:
        QuestionInvalid: the plan discovers its keys, or the question filters or names nodes; ask the collector.
    """
    question = asked.question
    if asked.discovered is not None or "node" in question.by or question.where:
        raise QuestionInvalid("discovered keys, nodes and filters: ask the collector")

    def quoted(column: str) -> str:
        return quote + column.replace(quote, quote * 2) + quote

    at = "unix_micros(window_start)"
    bucket = f"{at} - ({at} - {to_us(ORIGIN)}) % {question.every_us}" if question.every_us else "0"
    theirs = f"tenant = {_literal(asked.home)}"
    end = window_end_us(asked.plan, now_us) if question.end_us is None else question.end_us
    inside = f"{theirs} AND {at} < {end}" + ("" if question.start_us is None else f" AND {at} >= {question.start_us}")
    groups = [f"{bucket} AS bucket", *map(quoted, question.by)]
    scales = [quoted(f"{vector.name}__scale") for vector in asked.vectors]
    columns = [column for vector in asked.vectors for column in vector.columns]
    sums = [f"sum(CAST({quoted(column)} AS DECIMAL(38, 0)))" for column in columns]
    keyed = f"{inside} AND status = 'released'"
    by = ", ".join(map(str, range(1, len(groups) + len(scales) + 1)))
    return {
        "totals": f"SELECT {', '.join([*groups, *scales, *sums])}, count(*) FROM lake WHERE {keyed} GROUP BY {by}",
        "reported": f"SELECT {groups[0]}, count(DISTINCT node), "
        f"count(DISTINCT concat(CAST({at} AS STRING), '/', node)) FROM lake WHERE {keyed} GROUP BY 1",
        "landed": f"SELECT min({at}), max(unix_micros(window_end)) FROM lake WHERE {theirs}",
    }


def answer(
    asked: Asked, *, now_us: int, totals: Iterable[Row], reported: Iterable[Row], landed: Iterable[Row]
) -> pl.DataFrame:
    """What an analyst reads: start, end, the `by` columns, value, lo, hi, nodes_reporting, windows_reporting.

    Every bucket of the range and every key has its row; value, lo and hi are null where nothing was released.
    """
    by, n = asked.question.by, len(asked.vectors)
    about = {row[0]: row[1:] for row in reported}
    ((first, last),) = landed
    grid = Grid.of(asked, [] if first is None else [first], [] if last is None else [last], now_us=now_us)
    found: dict[Row, Total] = {}
    for row in totals:
        key, rest = row[: 1 + len(by)], row[1 + len(by) :]
        total = _total(asked, rest[:n], rest[n:-1], rest[-1])
        found[key] = found[key] + total if key in found else total
    schema: dict[str, Any] = {"start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")}
    schema |= dict.fromkeys(by, pl.String)
    schema |= dict.fromkeys((*estimate.columns(asked.metric), "value", "lo", "hi"), pl.Float64)
    schema |= dict.fromkeys(("nodes_reporting", "windows_reporting"), pl.Int64)
    rows: list[Row] = []
    for at in range(len(grid)):
        bucket = grid.first + at * grid.every if asked.question.every_us else 0
        for key in itertools.product(*(asked.keys[column] for column in by)):
            estimates = estimate.estimates(asked, found.get((bucket, *key)))
            head, tail = (*map(from_us, grid.span(at)), *key), about.get(bucket, (0, 0))
            rows += (
                (*head, *part, *one, *tail) for part, one in zip(estimate.parts(asked.metric), estimates, strict=True)
            )
    return pl.DataFrame(rows, schema=schema, orient="row")


def _literal(text: str) -> str:
    """A tenant's name, which has letters, digits and few signs, as SQL of either dialect."""
    if not is_name(text):
        raise QuestionInvalid("the tenant's name is none")
    return f"'{text}'"


def _total(asked: Asked, scales: Row, sums: Row, draws: int) -> Total:
    mechanism = asked.plan.budget.mechanism
    rest = iter(sums)
    return Total(
        sums=tuple(tuple(int(next(rest)) for _ in vector.columns) for vector in asked.vectors),
        noises=tuple(Noise.of([Term(mechanism=mechanism, scale=scale, count=draws)]) for scale in scales),
    )
