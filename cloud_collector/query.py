"""What the query service answers: one question in, one Arrow table of estimates out.

Place: after the lake; an analyst's question comes in through the service and goes back as a table with intervals.

Invariants:
- The landing is sealed first, so an answer holds every release that was acked before the question.
- Totals are exact integers, never clamped; their noise is counted draw by draw. Same question, same number.
- Every bucket and every key of the plan appears; what is missing has a null value and a typed status.
- No value of a question becomes part of the SQL, and no error repeats one.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from cloud_collector.combine import Noise, Term, ratio, ratio_interval, sum_interval
from cloud_collector.question import COVERAGE, TENANT, Asked, Grid, Node, Question, require, shown
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.plan import Mean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cloud_collector.lake import Lake
    from cloud_collector.plans import PlanRegistry, RegisteredPlan
    from edge_agg.contract.plan import Plan
    from edge_agg.contract.v1.query_pb2 import EstimateRequest

MAX_ROWS = 100_000
"""Rows of one answer; a question that asks for more is refused before it is worked on."""
NOTE = "an interval covers the noise alone: bias from clipping and bounding is not in it"
_TIME = pa.timestamp("us", tz="UTC")
_REASONS = ("exhausted", "lost", "vetoed", "offline")
_BUCKET = "(epoch_us(window_start) - $first) // $every"
_RANGE = "window_start >= make_timestamptz($start) and window_start < make_timestamptz($end)"
_NODES = "(tenant, node) in (select unnest($tenants::varchar[]), unnest($nodes::varchar[]))"

Key = tuple[object, ...]


class Query:
    """Answers questions from the lake; may be asked from several threads at once."""

    def __init__(self, registry: PlanRegistry, lake: Lake, catch_up: Callable[[], object]) -> None:
        self._registry = registry
        self._lake = lake
        self._catch_up = catch_up
        self._duck = duckdb.connect(
            ":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        )

    def answer(self, request: EstimateRequest) -> bytes:
        """Answer a question from the wire with one Arrow IPC stream; raises as :meth:`estimate` does."""
        begun = time.monotonic()
        table = self.estimate(Question.read(request))
        duration_s = round(time.monotonic() - begun, 6)
        emit(Event.QUERY_ANSWERED, plan=request.plan, rows=table.num_rows, duration_s=duration_s)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]  # pyarrow ships no types

    def estimate(self, question: Question) -> pa.Table:
        """Answer one question.

        Args:
            question: names a metric of a registered plan; `start_us` and `end_us` lie on the plan's windows and default
                to the earliest and latest that landed.

        Returns:
            One row a bucket and group, by bucket, then by keys in the plan's order: start and end of what was added up
            (timestamp[us, UTC]; a bucket that the range cuts is shown cut), the `by` columns (string), value, lo, hi
            (float64, null where nothing was released), nodes_reporting, nodes_expected, windows_reporting,
            windows_expected (int64) and status (string).

        Raises:
            PlanUnknown: register the plan, or correct its name.
            QuestionInvalid: the text names what the plan does not have; fix the question.
            StoreFailed: the disk failed while the landing was sealed.
        """
        registered = self._registry.find(question.plan, question.version)
        asked = Asked.of(registered.plan, question)
        self._catch_up()
        files = self._lake.files(registered.plan, registered.hash)
        with contextlib.closing(self._duck.cursor()) as duck:
            return _answer(asked, registered, _Rows(duck, files))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Total:
    """What was added up for one group: each vector's total and its noise."""

    sums: tuple[int, ...]
    noises: tuple[Noise, ...]

    def __add__(self, other: _Total) -> _Total:
        return _Total(
            sums=tuple(a + b for a, b in zip(self.sums, other.sums, strict=True)),
            noises=tuple(a + b for a, b in zip(self.noises, other.noises, strict=True)),
        )


class _Rows:
    """One question's view of a plan's table: a fixed list of files."""

    def __init__(self, duck: duckdb.DuckDBPyConnection, files: list[str]) -> None:
        self._duck = duck
        self._files = files

    def seen(self) -> list[tuple[Node, int, int]]:
        """Each node that ever reported, with its first window's start and its last window's end."""
        select = "tenant, node, epoch_us(min(window_start)), epoch_us(max(window_end))"
        return [((tenant, node), first, last) for tenant, node, first, last in self._run(select, ["true"], {})]

    def records(self, nodes: list[Node], grid: Grid) -> dict[tuple[int, Node], Counter[str]]:
        """How many windows of each status are on record, by bucket and node."""
        select = f"{_BUCKET}, tenant, node, status, count(distinct window_start)"
        found: dict[tuple[int, Node], Counter[str]] = defaultdict(Counter)
        where, params = _in_range(nodes, grid)
        for bucket, tenant, node, status, windows in self._run(select, where, params):
            found[bucket, (tenant, node)][status] = windows
        return found

    def totals(self, asked: Asked, nodes: list[Node], grid: Grid) -> dict[Key, _Total]:
        """What was released, by bucket and group."""
        where, params = _in_range(nodes, grid)
        where += ["status = 'released'"]
        for n, (column, keys) in enumerate(asked.keys.items()):
            where += [f"list_contains($keys_{n}, {_quoted(column)})"]
            params[f"keys_{n}"] = keys
        by = asked.question.by
        group = ["struct_pack(tenant, node)" if column == "node" else _quoted(column) for column in by]
        scales = [_quoted(f"{vector.name}__scale") for vector in asked.vectors]
        sums = [f"sum({_quoted(vector.name)})" for vector in asked.vectors]
        select = ", ".join([_BUCKET, *group, *scales, *sums, "count(*)"])
        found: dict[Key, _Total] = {}
        for row in self._run(select, where, params):
            key = tuple(tuple(part.values()) if isinstance(part, dict) else part for part in row[: len(by) + 1])
            n = len(asked.vectors)
            *values, draws = row[len(by) + 1 :]
            total = _total(asked.plan, values[:n], values[n:], draws)
            found[key] = found[key] + total if key in found else total
        return found

    def _run(self, select: str, where: list[str], params: dict[str, object]) -> list[tuple[Any, ...]]:
        if not self._files:
            return []
        sql = f"select {select} from read_parquet($files) where {' and '.join(where)} group by all"  # noqa: S608  # names of the plan, quoted; values are bound
        return self._duck.execute(sql, {**params, "files": [_literal(file) for file in self._files]}).fetchall()


class _Coverage:
    """Who stands behind each bucket: the pairs of node and window that were expected, and what became of them."""

    def __init__(self, grid: Grid, expected: list[Node], records: dict[tuple[int, Node], Counter[str]]) -> None:
        self._grid = grid
        self._expected = frozenset(expected)
        self._records = records

    def of(self, bucket: int, nodes: Sequence[Node]) -> tuple[int, int, int, int, str]:
        """The columns of coverage: nodes reporting and expected, windows reporting and expected, status.

        A node that is no longer expected counts with the windows that are on record, so what reports never exceeds what
        is expected.
        """
        windows = self._grid.windows(bucket)
        reasons: Counter[str] = Counter()
        reporting = expected = 0
        for node in nodes:
            record = self._records.get((bucket, node), Counter())
            pairs = windows if node in self._expected else record.total()
            reasons.update(record)
            reasons["offline"] += pairs - record.total()
            expected += pairs > 0
            reporting += record["released"] > 0
        released, pairs = reasons.pop("released", 0), reasons.total()
        whole = "complete" if released else "offline"
        status = max(_REASONS, key=lambda reason: reasons[reason]) if pairs else whole
        return reporting, expected, released, released + pairs, status


def _answer(asked: Asked, registered: RegisteredPlan, rows: _Rows) -> pa.Table:
    seen = rows.seen()
    expected = _expected(registered, [node for node, _, _ in seen])
    grid = Grid.of(asked, [first for _, first, _ in seen], [last for _, _, last in seen])
    nodes = asked.select_nodes({*expected, *(node for node, _, _ in seen)})
    _check_size(asked, grid, nodes)
    coverage = _Coverage(grid, expected, rows.records(nodes, grid))
    return _table(asked, grid, nodes, rows.totals(asked, nodes, grid), coverage)


def _table(asked: Asked, grid: Grid, nodes: list[Node], totals: dict[Key, _Total], coverage: _Coverage) -> pa.Table:
    by = asked.question.by
    groups: list[Sequence[Any]] = [nodes if column == "node" else asked.keys[column] for column in by]
    rows: list[tuple[Any, ...]] = []
    for bucket in range(len(grid)):
        start, end = grid.span(bucket)
        covered = {node: coverage.of(bucket, [node]) for node in nodes} if "node" in by else {}
        overall = coverage.of(bucket, nodes)
        for key in itertools.product(*groups):
            total = totals.get((bucket, *key))
            estimate = (None, None, None) if total is None else _estimate(asked, total)
            texts = [shown(part) if column == "node" else part for column, part in zip(by, key, strict=True)]
            about = covered[key[by.index("node")]] if covered else overall
            rows.append((start, end, *texts, *estimate, *about))
    schema = _schema(asked)
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _schema(asked: Asked) -> pa.Schema:
    fields = [("start", _TIME), ("end", _TIME), *((column, pa.string()) for column in asked.question.by)]
    fields += [(name, pa.float64()) for name in ("value", "lo", "hi")]
    fields += [(name, pa.int64()) for name in COVERAGE]
    about = {"plan": asked.plan.name, "version": str(asked.plan.version), "metric": asked.metric.name}
    about |= {"confidence": str(asked.question.confidence), "note": NOTE}
    return pa.schema([*fields, ("status", pa.string())], metadata=about)


def _estimate(asked: Asked, total: _Total) -> tuple[float | None, float, float]:
    """A group's value and interval, in the metric's unit."""
    confidence, clip = asked.question.confidence, asked.vectors[0].clip
    unit = 1.0 if clip is None else clip.resolution
    if not isinstance(asked.metric, Mean):
        interval = sum_interval(total.sums[0], total.noises[0], unit=unit, confidence=confidence)
        return total.sums[0] * unit, interval.lo, interval.hi
    assert clip is not None
    (numerator, denominator), (numerator_noise, denominator_noise) = total.sums, total.noises
    value = ratio(numerator, denominator)
    interval = ratio_interval(
        numerator=numerator,
        numerator_noise=numerator_noise,
        denominator=denominator,
        denominator_noise=denominator_noise,
        lower=clip.lower - clip.centre,
        upper=clip.upper - clip.centre,
        confidence=confidence,
    )
    lo, hi = ((end + clip.centre) * unit for end in (interval.lo, interval.hi))
    return None if value is None else (value + clip.centre) * unit, lo, hi


def _total(plan: Plan, scales: Sequence[float], sums: Sequence[int], draws: int) -> _Total:
    mechanism = plan.budget.mechanism
    noises = (Noise.of([Term(mechanism=mechanism, scale=scale, count=draws)]) for scale in scales)
    return _Total(sums=tuple(int(one) for one in sums), noises=tuple(noises))


def _expected(registered: RegisteredPlan, seen: Sequence[Node]) -> list[Node]:
    """The registered nodes, or all that were ever seen if none is registered."""
    if not registered.nodes:
        return list(seen)
    by_name: dict[str, list[Node]] = defaultdict(list)
    for node in seen:
        by_name[shown(node)].append(node)
    return [node for name in registered.nodes for node in by_name.get(name, [(TENANT, name)])]


def _in_range(nodes: list[Node], grid: Grid) -> tuple[list[str], dict[str, object]]:
    params: dict[str, object] = {"first": grid.first, "every": grid.every, "start": grid.start, "end": grid.end}
    params |= {"tenants": [tenant for tenant, _ in nodes], "nodes": [node for _, node in nodes]}
    return [_RANGE, _NODES], params


def _check_size(asked: Asked, grid: Grid, nodes: list[Node]) -> None:
    """Refuse what would take long to list: buckets x groups, or buckets x nodes behind them."""
    by = asked.question.by
    groups = math.prod(len(nodes) if column == "node" else len(asked.keys[column]) for column in by)
    rows = len(grid) * max(groups, len(nodes), 1)
    require(
        rows <= MAX_ROWS, f"the answer is over {MAX_ROWS} rows: ask for a longer every, fewer columns, or less time"
    )


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _literal(path: str) -> str:
    """A path in which DuckDB sees no pattern."""
    return re.sub(r"([*?\[])", r"[\1]", path)
