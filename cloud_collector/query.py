"""What the query service answers: one question in, one Arrow table of estimates out.

Place: after the lake; an analyst's question comes in through the service and goes back as a table with intervals.

Invariants:
- An answer holds every release that was acked before the question: what would show in it is sealed first.
- Same question, same number, whether it is read from the lake or from the roll-ups.
- Every bucket and every public key of the plan appears, and every discovered key that the range holds or the question
  names; what is missing has a null value and a typed status.
- No error repeats a value of the question.
- An analyst's answer is made of their tenant's rows alone; a plan that is not theirs is unknown to them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from cloud_collector import estimate
from cloud_collector.absence import Due
from cloud_collector.attendance import ABSENT, Attendance, Roster, attended
from cloud_collector.coverage import Absences, Told
from cloud_collector.errors import PlanUnknown
from cloud_collector.freshness import concerns
from cloud_collector.question import COVERAGE, Asked, Question, require, shown, window_us
from cloud_collector.rolled import Rolled, fits
from cloud_collector.telemetry import Event, emit
from cloud_collector.totals import Held, Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from cloud_collector.caller import Caller
    from cloud_collector.combine import Total
    from cloud_collector.coverage import Coverage, Covered, Facts
    from cloud_collector.lake import Lake
    from cloud_collector.plans import PlanRegistry, RegisteredPlan
    from cloud_collector.question import Grid, Node
    from cloud_collector.rollup import Rollups
    from cloud_collector.totals import Key
    from edge_agg.contract.plan import PlanHash
    from edge_agg.contract.v1.query_pb2 import CoverageRequest, EstimateRequest

MAX_ROWS = 100_000
"""Rows of one answer; a question that asks for more is refused before it is worked on."""
NOTE = "lo .. hi cover noise, not bias"
NOTE_DISCOVERED = "sum of released keys only; "
_TIME = pa.timestamp("us", tz="UTC")
_US = timedelta(microseconds=1)


class Query:
    """Answers questions from the lake; may be asked from several threads at once."""

    def __init__(
        self,
        registry: PlanRegistry,
        lake: Lake,
        catch_up: Callable[[], object],
        *,
        rollups: Rollups | None = None,
        known: Callable[[PlanHash, str, str | None], AbstractContextManager[Facts]] = lambda *_: contextlib.nullcontext(
            Told()
        ),
        waiting: Callable[[PlanHash], Mapping[Node, tuple[int, int]]] | None = None,
        grace: timedelta = timedelta(hours=1),
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._rollups = rollups
        self._waiting = waiting
        self._known, self._grace, self._now_us = known, grace, now_us
        self._registry = registry
        self._lake = lake
        self._catch_up = catch_up
        self._duck = duckdb.connect(
            ":memory:", config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}
        )
        lake.attach(self._duck)

    def answer(self, request: EstimateRequest, asker: Caller) -> bytes:
        """Answer a question from the wire with one Arrow IPC stream; raises as :meth:`estimate` does."""
        return _streamed(request.plan, lambda: self.estimate(Question.read(request), asker))

    def answer_coverage(self, request: CoverageRequest, asker: Caller) -> bytes:
        """The same for a question about who reported; raises as :meth:`coverage` does."""
        return _streamed(request.plan, lambda: self.coverage(Attendance.read(request), asker))

    def estimate(self, question: Question, asker: Caller) -> pa.Table:
        """Answer one question.

        Args:
            question: names a metric of a registered plan; `start_us` and `end_us` lie on the plan's windows and default
                to the earliest and latest that landed, the latest at most the one that now lies in.
            asker: whose plans and rows there are.

        Returns:
            One row a bucket and group, by bucket, then by keys in the plan's order (discovered ones by text): start
            and end of what was added up (timestamp[us, UTC]; a bucket that the range cuts is shown cut), the `by`
            columns (string), value, lo, hi (float64, null where nothing was released), nodes_reporting, nodes_expected,
            windows_reporting, windows_expected (int64) and status (string). A histogram has a row a bin, with its edges
            in bin_lower and bin_upper; quantiles have a row a quantile, named in quantile (float64).

        Raises:
            PlanUnknown: register the plan, or correct its name.
            QuestionInvalid: the text names what the plan does not have; fix the question.
            StoreFailed: the disk failed while the landing was sealed.
        """
        registered = self._find(question.plan, question.version, asker)
        asked = Asked.of(registered.plan, question, home=registered.tenant)
        return self._looked_up(registered, asked, asker, _answer, rolled=fits(asked))

    def coverage(self, question: Attendance, asker: Caller) -> pa.Table:
        """Say what became of every window that was to be reported.

        Returns:
            One row a bucket and node, or a bucket, as `Attended` has it.

        Raises:
            As :meth:`estimate`.
        """
        registered = self._find(question.plan, question.version, asker)
        asked = Asked.of(registered.plan, question.of(registered.plan), home=registered.tenant)
        return self._looked_up(registered, asked, asker, _attendance, rolled=True)

    def _find(self, plan: str, version: int | None, asker: Caller) -> RegisteredPlan:
        registered = self._registry.find(plan, version, asker.tenant)
        if not asker.may_ask(registered.tenant, registered.plan.name):
            raise PlanUnknown("no registered plan has this name and version; run `cloud-collector plans add`")
        return registered

    def _looked_up(
        self,
        registered: RegisteredPlan,
        asked: Asked,
        asker: Caller,
        answer: Callable[[Asked, RegisteredPlan, Rows | Rolled, Absences], pa.Table],
        *,
        rolled: bool,
    ) -> pa.Table:
        plan, plan_hash = registered.plan, registered.hash
        due = Due(window_us=window_us(plan), allowed_us=(plan.lateness + self._grace) // _US, now_us=self._now_us())
        with contextlib.ExitStack() as views:
            # Before what waits is sealed: what a chain had passed by then is in the lake when that is read.
            facts = views.enter_context(self._known(plan_hash, plan.name, asker.tenant))
            sums = self._caught_up(asked.question, registered, asker.tenant)
            if sums is not None:
                views.callback(sums.close)
            absences = Absences(due=due, facts=facts, retired_us=self._lake.retired_us(plan, plan_hash))
            if sums is not None and rolled:
                return answer(asked, registered, sums, absences)
            seen = None if sums is None else sums.seen()  # read before the lake, which holds all that it tells of
            at = self._lake.snapshot(plan, plan_hash)

            def files(start: int | None, end: int | None) -> list[str]:
                return self._lake.files(plan, plan_hash, at, start_us=start, end_us=end, tenant=asker.tenant)

            duck = views.enter_context(contextlib.closing(self._duck.cursor()))
            return answer(asked, registered, Rows(duck, files, tenant=asker.tenant, seen=seen), absences)

    def _caught_up(self, question: Question, registered: RegisteredPlan, tenant: str | None) -> Rolled | None:
        """The plan's roll-ups, if it has any, once all that would show in the answer is sealed."""
        waiting = None if self._waiting is None else self._waiting(registered.hash)
        if waiting is not None and (rolled := self._rolled(registered, tenant)) is not None:
            if not concerns(question, waiting, [node for node, _, _ in rolled.seen()], tenant=tenant):
                return rolled
            rolled.close()
        self._catch_up()
        return self._rolled(registered, tenant)

    def _rolled(self, registered: RegisteredPlan, tenant: str | None) -> Rolled | None:
        if self._rollups is None or not self._rollups.covers(registered.hash):
            return None
        return Rolled(self._rollups.path, registered.plan, registered.hash, tenant=tenant)


def _answer(asked: Asked, registered: RegisteredPlan, rows: Rows | Rolled, absences: Absences) -> pa.Table:
    roster = Roster.of(asked, registered, rows, absences)
    grid, nodes = roster.grid, roster.nodes
    _check_size(asked, grid, nodes)
    if asked.discovered is not None:
        asked = asked.found(rows.keys(asked, nodes, grid))
        _check_size(asked, grid, nodes)
    held = rows.held(asked, nodes, grid)
    return _table(asked, grid, nodes, rows.totals(asked, nodes, grid), _Behind(asked, nodes, roster.coverage(), held))


def _attendance(asked: Asked, registered: RegisteredPlan, rows: Rows | Rolled, absences: Absences) -> pa.Table:
    roster = Roster.of(asked, registered, rows, absences)
    _check_size(asked, roster.grid, roster.nodes)
    return attended(asked, roster, absences)


def _streamed(plan: str, ask: Callable[[], pa.Table]) -> bytes:
    begun = time.monotonic()
    table = ask()
    emit(Event.QUERY_ANSWERED, plan=plan, rows=table.num_rows, duration_s=round(time.monotonic() - begun, 6))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]  # pyarrow ships no types


class _Behind:
    """Who stands behind each row: all that released, or those that released the discovered keys it speaks of."""

    def __init__(self, asked: Asked, nodes: Sequence[Node], coverage: Coverage, held: Mapping[Key, Held]) -> None:
        self._asked = asked
        self._nodes = nodes
        self._coverage = coverage
        self._held = held
        self._whole: dict[tuple[int, Node | None], Covered] = {}

    def of(self, bucket: int, key: Key) -> tuple[int, int, int, int, dict[str, int], str]:
        """The columns of coverage for one group."""
        asked = self._asked
        by = asked.question.by
        node: Any = key[by.index("node")] if "node" in by else None
        if (bucket, node) not in self._whole:
            self._whole[bucket, node] = self._coverage.of(bucket, self._nodes if node is None else [node])
        whole = self._whole[bucket, node]
        if asked.discovered is None:
            return whole.row
        named = [part for column, part in zip(by, key, strict=True) if column in {"node", asked.discovered}]
        held = self._held.get((bucket, *named), Held())
        lacking = whole.windows_reporting - held.windows
        if asked.discovered not in by:
            lacking = max(1, len(asked.keys[asked.discovered])) * whole.windows_reporting - held.keyed
        return whole.narrowed(nodes=held.nodes, windows=held.windows, lacking=lacking).row


def _table(asked: Asked, grid: Grid, nodes: list[Node], totals: Mapping[Key, Total], behind: _Behind) -> pa.Table:
    by = asked.question.by
    groups: list[Sequence[Any]] = [nodes if column == "node" else asked.keys[column] for column in by]
    parts = estimate.parts(asked.metric)
    rows: list[tuple[Any, ...]] = []
    for bucket in range(len(grid)):
        start, end = grid.span(bucket)
        for key in itertools.product(*groups):
            texts = [
                shown(part, asked.home) if column == "node" else part for column, part in zip(by, key, strict=True)
            ]
            about = behind.of(bucket, key)
            found = estimate.estimates(asked, totals.get((bucket, *key)))
            rows += ((start, end, *texts, *part, *one, *about) for part, one in zip(parts, found, strict=True))
    schema = _schema(asked)
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.table(arrays, schema=schema)


def _schema(asked: Asked) -> pa.Schema:
    fields = [("start", _TIME), ("end", _TIME), *((column, pa.string()) for column in asked.question.by)]
    fields += [(name, pa.float64()) for name in (*estimate.columns(asked.metric), "value", "lo", "hi")]
    fields += [(name, pa.int64()) for name in COVERAGE]
    about = {"plan": asked.plan.name, "version": str(asked.plan.version), "metric": asked.metric.name}
    note = NOTE if asked.discovered in {None, *asked.question.by} else NOTE_DISCOVERED + NOTE
    about |= {"confidence": str(asked.question.confidence), "note": note}
    return pa.schema([*fields, ("absent", ABSENT), ("status", pa.string())], metadata=about)


def _check_size(asked: Asked, grid: Grid, nodes: list[Node]) -> None:
    """Refuse what would take long to list: buckets x groups, or buckets x nodes behind them."""
    by = asked.question.by
    groups = math.prod(len(nodes) if column == "node" else len(asked.keys[column]) for column in by)
    rows = len(grid) * max(groups * len(estimate.parts(asked.metric)), len(nodes), 1)
    require(
        rows <= MAX_ROWS, f"the answer is over {MAX_ROWS} rows: ask for a longer every, fewer columns, or less time"
    )
