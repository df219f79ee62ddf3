"""Who stands behind an answer: the pairs of node and window that were expected, and what became of them.

Place: beside the totals, in every row of an answer.
Invariants: pure; what is missing has a typed reason, also where a release was made that lacks a discovered key; what
reports never exceeds what is expected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cloud_collector.question import Grid, Node

SUPPRESSED = "suppressed"
"""A release was made, but the key's noisy units did not exceed the threshold."""
EXPIRED = "expired"
"""The window lies before what the plan's retention keeps."""
_REASONS = ("exhausted", "lost", "vetoed", SUPPRESSED, EXPIRED, "offline")


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """Why releases may be absent that were made and acked."""

    behind: Mapping[Node, tuple[int, int]] = field(default_factory=dict)
    """By node, from when until when a backup lacks what was acked: those windows are lost."""
    retired_us: int | None = None
    """Before it nothing is kept any more."""

    def of(self, node: Node, start: int, end: int, window: int, absent: int) -> Counter[str]:
        """What became of a node's absent windows in a range; where the reasons overlap, as many as can be of each."""
        expired = 0 if self.retired_us is None else max(0, min(end, self.retired_us) - start) // window
        since, until = self.behind.get(node, (0, 0))
        lost = max(0, min(end, until) - max(start, since)) // window
        expired = min(absent, expired)
        lost = min(absent - expired, lost)
        return Counter({EXPIRED: expired, "lost": lost, "offline": absent - expired - lost})


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
            return max(_REASONS, key=lambda reason: self.reasons.get(reason, 0))
        return "complete" if self.windows_reporting else "offline"

    @property
    def row(self) -> tuple[int, int, int, int, str]:
        """In the order of an answer's columns."""
        counts = self.nodes_reporting, self.nodes_expected, self.windows_reporting, self.windows_expected
        return *counts, self.status

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
        expected: nodes that should report in every window.
        records: how many windows of each status, by bucket and node.
        absence: why releases may be absent that were made.
    """

    def __init__(
        self,
        grid: Grid,
        expected: Sequence[Node],
        records: Mapping[tuple[int, Node], Counter[str]],
        absence: Absence | None = None,
    ) -> None:
        self._grid = grid
        self._absence = Absence() if absence is None else absence
        self._expected = frozenset(expected)
        self._records = records

    def of(self, bucket: int, nodes: Sequence[Node]) -> Covered:
        """What became of a bucket's pairs.

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
            absent = pairs - record.total()
            if absent:
                reasons.update(self._absence.of(node, *self._grid.span(bucket), self._grid.window, absent))
            expected += pairs > 0
            reporting += record["released"] > 0
        released = reasons.pop("released", 0)
        return Covered(
            nodes_reporting=reporting,
            nodes_expected=expected,
            windows_reporting=released,
            windows_expected=released + reasons.total(),
            reasons=reasons,
        )
