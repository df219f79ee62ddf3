"""Who should have reported, and the answer that lists what became of each of their windows.

Place: between the query room, which knows the plan, and the coverage of its buckets.
Invariants: who was named is expected from the window on that they were named for; where nobody is, whoever reported is
expected from their first window on; a span that has ended names nobody; every pair of node and window that is expected
is counted under one standing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from cloud_collector.absence import BEGINNING, END, Standing
from cloud_collector.coverage import REASONS, SUPPRESSED, UNKNOWN, Absences, Coverage
from cloud_collector.question import Asked, Grid, Node, Question, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloud_collector.plans import RegisteredPlan
    from cloud_collector.rolled import Rolled
    from cloud_collector.totals import Rows
    from edge_agg.contract.plan import Plan
    from edge_agg.contract.v1.query_pb2 import CoverageRequest

ABSENT = pa.struct([(reason, pa.int64()) for reason in REASONS])
"""What is missing behind an estimate, by reason."""
_COUNTS = (str(Standing.RELEASED), *(reason for reason in REASONS if reason != SUPPRESSED))
_TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """A question about who reported, as it was asked."""

    plan: str
    version: int | None
    nodes: tuple[str, ...]
    """Of these only; of all if empty."""
    every_us: int | None
    start_us: int | None
    end_us: int | None
    total: bool
    """Of all nodes together."""

    @classmethod
    def read(cls, request: CoverageRequest) -> Self:
        """Take a question from the wire; it is checked when it is asked."""
        return cls(
            plan=request.plan,
            version=request.version if request.HasField("version") else None,
            nodes=tuple(request.nodes),
            every_us=request.every_us if request.HasField("every_us") else None,
            start_us=request.start_us if request.HasField("start_us") else None,
            end_us=request.end_us if request.HasField("end_us") else None,
            total=request.total,
        )

    def of(self, plan: Plan) -> Question:
        """As a question about the plan: any metric has the same nodes and windows."""
        return Question(
            plan=plan.name,
            metric=plan.metric[0].name,
            version=self.version,
            by=() if self.total else ("node",),
            where=(("node", self.nodes),) if self.nodes else (),
            every_us=self.every_us,
            start_us=self.start_us,
            end_us=self.end_us,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """Whom an answer speaks of, and when."""

    grid: Grid
    nodes: list[Node]
    expected: Mapping[Node, tuple[int, int]]
    """From when until when."""
    rows: Rows | Rolled
    absences: Absences

    @classmethod
    def of(cls, asked: Asked, registered: RegisteredPlan, rows: Rows | Rolled, absences: Absences) -> Self:
        """Find out; raises QuestionInvalid."""
        seen = rows.seen()
        reported = {node: first for node, first, _ in seen}
        if absences.retired_us is not None and not registered.nodes:  # whoever was silent since is in the landing alone
            reported |= absences.facts.reported()
        expected = expected_of(registered, reported, absences.facts.named)
        grid = Grid.of(
            asked, [first for _, first, _ in seen], [last for _, _, last in seen], now_us=absences.due.now_us
        )
        nodes = asked.select_nodes({*expected, *(node for node, _, _ in seen)})
        return cls(grid=grid, nodes=nodes, expected=expected, rows=rows, absences=absences)

    def coverage(self) -> Coverage:
        """What is on record of them, and what is not."""
        records = self.rows.records(self.nodes, self.grid)
        expected = {node: self.expected[node] for node in self.nodes if node in self.expected}
        return Coverage(self.grid, expected, records, self.absences, lambda nodes: self.rows.present(nodes, self.grid))


def attended(asked: Asked, roster: Roster, absences: Absences) -> pa.Table:
    """The answer: a row a bucket and node, or a bucket.

    Returns:
        start, end (timestamp[us, UTC]); node (string), unless all are added up; windows_expected, then a count a
        standing (int64); with nodes also last_heard (timestamp[us, UTC], null if never) and fenced (bool).
    """
    coverage = roster.coverage()
    by_node = "node" in asked.question.by
    groups: list[Sequence[Node]] = [[node] for node in roster.nodes] if by_node else [roster.nodes]
    facts = absences.facts.of(roster.nodes) if by_node else {}
    rows: list[tuple[Any, ...]] = []
    for bucket in range(len(roster.grid)):
        for group in groups:
            covered = coverage.of(bucket, group)
            counts = {**covered.reasons, str(Standing.RELEASED): covered.windows_reporting}
            about: tuple[Any, ...] = (covered.windows_expected, *(counts.get(what, 0) for what in _COUNTS))
            if by_node:
                known = facts.get(group[0], UNKNOWN)
                about = (shown(group[0], asked.home), *about, known.heard_us, known.fenced)
            rows.append((*roster.grid.span(bucket), *about))
    fields = [("start", _TIME), ("end", _TIME), *([("node", pa.string())] if by_node else [])]
    fields += [(name, pa.int64()) for name in ("windows_expected", *_COUNTS)]
    fields += [("last_heard", _TIME), ("fenced", pa.bool_())] if by_node else []
    columns = list(zip(*rows, strict=True)) if rows else [() for _ in fields]
    arrays = [pa.array(column, type=kind) for column, (_, kind) in zip(columns, fields, strict=True)]
    named = {"plan": asked.plan.name, "version": str(asked.plan.version)}
    return pa.table(arrays, schema=pa.schema(fields, metadata=named))


def expected_of(
    registered: RegisteredPlan, reported: Mapping[Node, int], told: Mapping[Node, tuple[int, int]]
) -> dict[Node, tuple[int, int]]:
    """From when until when each node is expected; `roll_call.py` says the same in SQL.

    Args:
        registered: the plan, and the nodes that it is registered with.
        reported: each node that ever reported, with its first window's start, in microseconds since 1970.
        told: from when until when somebody said that nodes are expected. A span that has an end names nobody.
    """
    told = {node: span for node, span in told.items() if node[0] == registered.tenant}
    if not registered.nodes and all(until != END for _, until in told.values()):
        return {node: (first, END) for node, first in reported.items()} | told
    by_name: dict[str, list[Node]] = {}
    for node in reported if registered.nodes else ():
        by_name.setdefault(shown(node, registered.tenant), []).append(node)
    named = [node for name in registered.nodes for node in by_name.get(name, [(registered.tenant, name)])]
    return dict.fromkeys(named, (BEGINNING, END)) | told
