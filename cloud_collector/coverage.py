"""Who stands behind an answer: the pairs of node and window that were expected, and what became of them.

Place: beside the totals, in every row of an answer.
Invariants: pure; what is missing has a typed reason, also where a release was made that lacks a discovered key; what
reports never exceeds what is expected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cloud_collector.absence import Known, Standing, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cloud_collector.absence import Due
    from cloud_collector.question import Grid, Node

SUPPRESSED = "suppressed"
"""A release was made, but the key's noisy units did not exceed the threshold."""
EXPIRED = "expired"
"""The window lies before what the plan's retention keeps."""


REASONS = (*(str(one) for one in Standing if one is not Standing.RELEASED), EXPIRED, SUPPRESSED)
"""All there are, as the column `absent` lists them."""
_WORST = ("exhausted", "lost", "vetoed", SUPPRESSED, EXPIRED, "offline", "late")


@dataclass(frozen=True, slots=True, kw_only=True)
class Absences:
    """What is known of what is not here."""

    due: Due
    known: Mapping[Node, Known] = field(default_factory=dict)
    """Of each node; of one that nothing is known of, nothing."""
    retired_us: int | None = None
    """Before it nothing is kept any more."""

    def of(self, node: Node) -> Known:
        """What is known of a node."""
        return self.known.get(node, _UNKNOWN)

    def counted(self, node: Node, start: int, end: int, present: Sequence[int]) -> Counter[str]:
        """What became of a node's windows in a range that are not here."""
        kept = start if self.retired_us is None else min(max(start, self.retired_us), end)
        gone = (kept - start) // self.due.window_us - sum(start <= one < kept for one in present)
        found: Counter[str] = Counter({EXPIRED: gone} if gone > 0 else {})
        found.update({str(what): n for what, n in counted(present, kept, end, self.of(node), self.due).items()})
        return found


_UNKNOWN = Known()


@dataclass(frozen=True, slots=True, kw_only=True)
class Covered:
    """The columns of coverage in one row of an answer."""

    nodes_reporting: int
    nodes_expected: int
    windows_reporting: int
    windows_expected: int
    reasons: Mapping[str, int]
    """What is missing, by reason."""

    @property
    def status(self) -> str:
        """`complete`, or the most frequent reason."""
        if sum(self.reasons.values()):
            return max(_WORST, key=lambda reason: self.reasons.get(reason, 0))
        return "complete" if self.windows_reporting else "offline"

    @property
    def row(self) -> tuple[int, int, int, int, dict[str, int], str]:
        """In the order of an answer's columns."""
        counts = self.nodes_reporting, self.nodes_expected, self.windows_reporting, self.windows_expected
        return *counts, {reason: self.reasons.get(reason, 0) for reason in REASONS}, self.status

    def narrowed(self, *, nodes: int, windows: int, lacking: int) -> Covered:
        """The same pairs, where only some released what is asked for.

        Args:
            nodes: that released any of it.
            windows: pairs of node and window with any of it.
            lacking: what a release that was made does not hold.
        """
        reasons = Counter(self.reasons)
        reasons[SUPPRESSED] += lacking
        return Covered(
            nodes_reporting=nodes,
            nodes_expected=self.nodes_expected,
            windows_reporting=windows,
            windows_expected=self.windows_expected,
            reasons=reasons,
        )


class Coverage:
    """What is on record.

    Args:
        grid: the buckets.
        expected: nodes that should report, each from a window on and until another.
        records: how many windows of each status, by bucket and node.
        absences: what is known of what is not here.
        present: the starts of those that are, ascending, of nodes that lack some window of a bucket and have others.
    """

    def __init__(
        self,
        grid: Grid,
        expected: Mapping[Node, tuple[int, int]],
        records: Mapping[tuple[int, Node], Counter[str]],
        absences: Absences,
        present: Callable[[list[Node]], Mapping[Node, Sequence[int]]] = lambda _: {},
    ) -> None:
        self._grid = grid
        self._absences = absences
        self._expected = expected
        self._records = records
        patchy = {node for (bucket, node), record in records.items() if record.total() < grid.windows(bucket)}
        self._present = present(sorted(patchy)) if patchy else {}

    def of(self, bucket: int, nodes: Sequence[Node]) -> Covered:
        """What became of a bucket's pairs.

        A node that is not expected, or not there, counts with the windows that are on record, so what reports never
        exceeds what is expected.
        """
        reasons: Counter[str] = Counter()
        reporting = expected = 0
        for node in nodes:
            record = self._records.get((bucket, node), Counter())
            absent = self._absent(bucket, node, record.total())
            reasons.update(record)
            reasons.update(absent)
            expected += record.total() + absent.total() > 0
            reporting += record["released"] > 0
        released = reasons.pop("released", 0)
        return Covered(
            nodes_reporting=reporting,
            nodes_expected=expected,
            windows_reporting=released,
            windows_expected=released + reasons.total(),
            reasons=reasons,
        )

    def _absent(self, bucket: int, node: Node, here: int) -> Counter[str]:
        since, until = self._expected.get(node, (0, 0))
        start, end = self._grid.span(bucket)
        window = self._grid.window
        first = start + -(-max(0, since - start) // window) * window
        last = min(end, start + -(-max(0, until - start) // window) * window)
        if first >= last or here == self._grid.windows(bucket):
            return Counter()
        return self._absences.counted(node, first, last, self._present.get(node, ()))
