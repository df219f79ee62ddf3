"""One question about a plan, as SQL that Spark's dialect and DuckDB's share, and its answer made of what they return.

The engine adds up, exactly (decimals of 38 digits), and counts draws of noise scale by scale; value, lo and hi are then
made by the same code as the collector's, so they are the collector's to the last bit. DuckDB lacks `unix_micros`;
`DUCKDB` gives it one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from cloud_collector import estimate
from cloud_collector.combine import Total
from cloud_collector.errors import QuestionInvalid
from cloud_collector.noise import Noise, Term
from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.grid import ORIGIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cloud_collector.question import Asked

DUCKDB = "CREATE OR REPLACE TEMP MACRO unix_micros(t) AS epoch_us(t)"
Row = tuple[Any, ...]


def queries(asked: Asked, *, quote: str = "`") -> dict[str, str]:
    """The SQL over a view `lake`: totals by bucket, group and scale, and who reported by bucket.

    Args:
        asked: of public keys, without filters.
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
    where = ["true"]
    where += [] if question.start_us is None else [f"{at} >= {question.start_us}"]
    where += [] if question.end_us is None else [f"{at} < {question.end_us}"]
    inside = " AND ".join(where)
    groups = [f"{bucket} AS bucket", *map(quoted, question.by)]
    scales = [quoted(f"{vector.name}__scale") for vector in asked.vectors]
    columns = [column for vector in asked.vectors for column in vector.columns]
    sums = [f"sum(CAST({quoted(column)} AS DECIMAL(38, 0)))" for column in columns]
    keyed = f"{inside} AND status = 'released'"
    node = "concat(tenant, '/', node"
    by = ", ".join(map(str, range(1, len(groups) + len(scales) + 1)))
    return {
        "totals": f"SELECT {', '.join([*groups, *scales, *sums])}, count(*) FROM lake WHERE {keyed} GROUP BY {by}",
        "reported": f"SELECT {groups[0]}, min({at}), max(unix_micros(window_end)), "
        f"count(DISTINCT {node})), count(DISTINCT {node}, '/', CAST({at} AS STRING))) "
        f"FROM lake WHERE {keyed} GROUP BY 1",
    }


def answer(asked: Asked, totals: Iterable[Row], reported: Iterable[Row]) -> pl.DataFrame:
    """What an analyst reads: start, end, the `by` columns, value, lo, hi, nodes_reporting, windows_reporting."""
    by, n = asked.question.by, len(asked.vectors)
    about = {row[0]: row[1:] for row in reported}
    found: dict[Row, Total] = {}
    for row in totals:
        key, rest = row[: 1 + len(by)], row[1 + len(by) :]
        total = _total(asked, rest[:n], rest[n:-1], rest[-1])
        found[key] = found[key] + total if key in found else total
    names = [*by, *estimate.columns(asked.metric), "value", "lo", "hi"]
    rows: list[Mapping[str, Any]] = []
    for (bucket, *texts), total in found.items():
        first, last, nodes, windows = about[bucket]
        span = (bucket, bucket + asked.question.every_us) if asked.question.every_us else (first, last)
        for part, one in zip(estimate.parts(asked.metric), estimate.estimates(asked, total), strict=True):
            told = dict(zip(names, (*texts, *part, *one), strict=True))
            moments = {"start": from_us(span[0]), "end": from_us(span[1])}
            rows.append({**moments, **told, "nodes_reporting": nodes, "windows_reporting": windows})
    order = {label: {key: i for i, key in enumerate(keys)} for label, keys in asked.keys.items()}
    rows.sort(key=lambda row: (row["start"], *(order[column][row[column]] for column in by)))
    return pl.DataFrame(rows, infer_schema_length=None)


def _total(asked: Asked, scales: Row, sums: Row, draws: int) -> Total:
    mechanism = asked.plan.budget.mechanism
    rest = iter(sums)
    return Total(
        sums=tuple(tuple(int(next(rest)) for _ in vector.columns) for vector in asked.vectors),
        noises=tuple(Noise.of([Term(mechanism=mechanism, scale=scale, count=draws)]) for scale in scales),
    )
