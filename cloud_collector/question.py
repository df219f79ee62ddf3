"""A question, and what it means for its plan: which keys, which nodes, which buckets of time.

Place: read off the wire by the query room, before anything is looked up in the lake.
Invariants: pure; a question that does not fit its plan is refused before any work, by a text that names the plan's
own columns, metrics and keys and repeats nothing out of the question.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from cloud_collector.errors import QuestionInvalid
from edge_agg.contract.cells import dimension, key_text
from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.grid import ORIGIN
from edge_agg.contract.vectors import vectors_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edge_agg.contract.plan import Metric, Plan
    from edge_agg.contract.v1.query_pb2 import EstimateRequest
    from edge_agg.contract.vectors import Vector

TENANT = "default"
"""Whose nodes are shown by their bare name, unless the plan is of another tenant."""
COVERAGE = ("nodes_reporting", "nodes_expected", "windows_reporting", "windows_expected")
"""The columns of an answer that say who stands behind it."""
_ORIGIN_US = to_us(ORIGIN)
_MAX_CONFIDENCE = 0.999999

Node = tuple[str, str]
"""(tenant, node): two tenants may use one name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about one metric, as it was asked."""

    plan: str
    metric: str
    version: int | None = None
    """The newest when absent."""
    by: tuple[str, ...] = ()
    """Partition columns, and `node`."""
    every_us: int | None = None
    """A multiple of the plan's window; absent for one bucket."""
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(column, values to keep); all must hold."""
    start_us: int | None = None
    end_us: int | None = None
    confidence: float = 0.95

    @classmethod
    def read(cls, request: EstimateRequest) -> Question:
        """Take a question from the wire; it is checked when it is asked."""
        return cls(
            plan=request.plan,
            version=request.version if request.HasField("version") else None,
            metric=request.metric,
            by=tuple(request.by),
            every_us=request.every_us if request.HasField("every_us") else None,
            where=tuple((one.column, tuple(one.values)) for one in request.where),
            start_us=request.start_us if request.HasField("start_us") else None,
            end_us=request.end_us if request.HasField("end_us") else None,
            confidence=request.confidence if request.HasField("confidence") else 0.95,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question that fits its plan; build it with :meth:`of`."""

    question: Question
    plan: Plan
    metric: Metric
    vectors: tuple[Vector, ...]
    keys: dict[str, list[str]]
    """By partition, the keys that are kept, in the plan's order; those of a discovered one are found in the lake."""
    discovered: str | None
    """The partition whose keys are found."""
    wanted: tuple[str, ...] | None
    """Of the discovered partition, the keys that the question names; None if it names none, and so asks for all."""
    node_names: tuple[frozenset[str], ...]
    """Each holds the names that one filter keeps."""
    home: str = TENANT
    """Whose nodes are shown by their bare name."""

    @classmethod
    def of(cls, plan: Plan, question: Question, *, home: str = TENANT) -> Asked:
        """Check a question against a plan, which is of the home tenant; raises QuestionInvalid."""
        metrics = {metric.name: metric for metric in plan.metric}
        keys = {partition.label: [key_text(key) for key in dimension(partition)] for partition in plan.partition}
        discovered = None if plan.discovered is None else plan.discovered.label
        columns = ", ".join([*keys, "node"])
        length_us = window_us(plan)
        require(question.metric in metrics, f"metric: the plan has {', '.join(metrics)}")
        require(all(column in {*keys, "node"} for column in question.by), f"by: the plan has {columns}")
        require(not set(question.by) & set(COVERAGE), "by: names a column that answers use themselves")
        require(len(set(question.by)) == len(question.by), "by: names a column twice")
        require(
            question.every_us is None or (question.every_us > 0 and question.every_us % length_us == 0),
            f"every: must be a multiple of the plan's window, {plan.window.every}",
        )
        require(0 < question.confidence <= _MAX_CONFIDENCE, f"confidence: must lie in 0 .. {_MAX_CONFIDENCE}")
        kept: dict[str, set[str]] = {}
        for column, values in question.where:
            require(column in {*keys, "node"}, f"where: the plan has {columns}")
            require(len(values) > 0, f"where.{column}: names no value")
            if column not in {discovered, "node"}:
                require(
                    set(values) <= set(keys[column]), f"where.{column}: the plan's keys are {_listed(keys[column])}"
                )
            kept[column] = kept.get(column, set(values)) & set(values)
        return cls(
            question=question,
            plan=plan,
            metric=metrics[question.metric],
            vectors=vectors_of(plan, metrics[question.metric]),
            keys={
                column: [key for key in offered if key in kept.get(column, offered)] for column, offered in keys.items()
            },
            discovered=discovered,
            wanted=tuple(sorted(kept[discovered])) if discovered is not None and discovered in kept else None,
            node_names=tuple(frozenset(values) for column, values in question.where if column == "node"),
            home=home,
        )

    def found(self, keys: Iterable[str]) -> Asked:
        """The same question, with these discovered keys to group by."""
        return self if self.discovered is None else replace(self, keys={**self.keys, self.discovered: sorted(keys)})

    def select_nodes(self, known: Iterable[Node]) -> list[Node]:
        """The known nodes that the question keeps, by name."""
        known = sorted(known, key=lambda node: (shown(node, self.home), node))
        if not self.node_names:
            return known
        names_known = {shown(node, self.home) for node in known}
        require(
            all(names <= names_known for names in self.node_names),
            'where.node: not a known node; by=["node"] shows them',
        )
        return [node for node in known if all(shown(node, self.home) in names for names in self.node_names)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The buckets of an answer; all in microseconds since 1970 UTC."""

    start: int
    end: int
    window: int
    every: int
    first: int
    """The start of the bucket that `start` lies in."""

    @classmethod
    def of(cls, asked: Asked, firsts: Sequence[int], lasts: Sequence[int], *, now_us: int) -> Grid:
        """Cut the question's range, by default what landed up to the window of now, into buckets.

        Args:
            asked: the question.
            firsts: the start of each node's first window.
            lasts: the end of each node's last one; a clock that was wrong may have put it into the future.
            now_us: the moment of the question.

        Raises:
            QuestionInvalid: the range is not on the plan's windows, or ends before it starts.
        """
        question, window = asked.question, window_us(asked.plan)
        for name, moment in (("start", question.start_us), ("end", question.end_us)):
            require(moment is None or _is_moment(moment), f"{name}: must lie in the years 1 to 9999")
            on_grid = moment is None or (moment - _ORIGIN_US) % window == 0
            require(on_grid, f"{name}: must lie on the plan's windows, {asked.plan.window.every} from 1970-01-05")
        start = question.start_us if question.start_us is not None else min(firsts, default=question.end_us or 0)
        latest = min(max(lasts, default=start), window_end_us(asked.plan, now_us))
        end = question.end_us if question.end_us is not None else max(latest, start)
        require(start < end or None in {question.start_us, question.end_us}, "end: must lie after start")
        if question.every_us is None:
            return cls(start=start, end=end, window=window, every=max(end - start, window), first=start)
        first = start - (start - _ORIGIN_US) % question.every_us
        return cls(start=start, end=end, window=window, every=question.every_us, first=first)

    def __len__(self) -> int:
        return max(0, -(-(self.end - self.first) // self.every)) if self.start < self.end else 0

    def span(self, bucket: int) -> tuple[int, int]:
        """What of a bucket lies in the range."""
        at = self.first + bucket * self.every
        return max(at, self.start), min(at + self.every, self.end)

    def windows(self, bucket: int) -> int:
        """How many windows that is."""
        start, end = self.span(bucket)
        return (end - start) // self.window


def window_us(plan: Plan) -> int:
    """The plan's window in microseconds."""
    return plan.every // timedelta(microseconds=1)


def window_end_us(plan: Plan, us: int) -> int:
    """The end of the plan's window that a moment lies in."""
    return us + window_us(plan) - (us - _ORIGIN_US) % window_us(plan)


def _is_moment(us: int) -> bool:
    try:
        from_us(us)
    except OverflowError:
        return False
    return True


def shown(node: Node, home: str = TENANT) -> str:
    """A node's name as answers show it: bare for the home tenant."""
    tenant, name = node
    return name if tenant == home else f"{tenant}/{name}"


def _listed(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def require(holds: bool, problem: str) -> None:  # noqa: FBT001  # reads as a sentence
    """Refuse the question unless this holds."""
    if not holds:
        raise QuestionInvalid(problem)
