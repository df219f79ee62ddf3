"""Who stands behind an answer: the pairs of node and window that were expected, and what became of them.

Place: beside the totals, in every row of an answer.
Invariants: pure; what is missing has a typed reason, also where a release was made that lacks a discovered key; what
reports never exceeds what is expected.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from cloud_collector.absence import Known, Standing, counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cloud_collector.absence import Due
    from cloud_collector.question import Grid, Node

UNKNOWN = Known()
"""Of a node of which nothing is known."""
SUPPRESSED = "suppressed"
"""A release was made, but the key's noisy units did not exceed the threshold."""
EXPIRED = "expired"
"""The window lies before what the plan's retention keeps."""


REASONS = (*(str(one) for one in Standing if one is not Standing.RELEASED), EXPIRED, SUPPRESSED)
"""All there are, as the column `absent` lists them."""
_NOTHING: Counter[str] = Counter()
_WORST = ("exhausted", "lost", "vetoed", SUPPRESSED, EXPIRED, "offline", "late")


class Facts(Protocol):
    """What is known of a plan's agents, all of it of one moment."""

    @property
    def named(self) -> Mapping[Node, tuple[int, int]]:
        """Those of whom somebody said from when until when they are expected."""

    def reported(self) -> Mapping[Node, int]:
        """All that ever reported, with their first window's start, kept or not. It costs something for each."""

    def of(self, nodes: Collection[Node]) -> Mapping[Node, Known]:
        """What is known of some; one of which nothing is known may be left out. It costs something for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Facts that are at hand."""

    known: Mapping[Node, Known] = field(default_factory=dict)

    @property
    def named(self) -> Mapping[Node, tuple[int, int]]:
        """Those of which it is known."""
        return {node: (known.since_us, known.until_us) for node, known in self.known.items() if known.named}

    def reported(self) -> Mapping[Node, int]:
        """It is not known of any."""
        return {}

    def of(self, nodes: Collection[Node]) -> Mapping[Node, Known]:
        """All of it."""
        del nodes
        return self.known


@dataclass(frozen=True, slots=True, kw_only=True)
class Absences:
    """What is known of what is not here."""

    due: Due
    facts: Facts = field(default_factory=Told)
    retired_us: int | None = None
    """Before it nothing is kept any more."""

    def counted(self, known: Known, start: int, end: int, present: Sequence[int]) -> Counter[str]:
        """What became of the windows of a range that are not here, of a node of which this is known."""
        kept = start if self.retired_us is None else min(max(start, self.retired_us), end)
        kept = start + -(-(kept - start) // self.due.window_us) * self.due.window_us  # a day may begin within a window
        gone = (kept - start) // self.due.window_us - sum(start <= one < kept for one in present)
        found: Counter[str] = Counter({EXPIRED: gone} if gone > 0 else {})
        found.update({str(what): n for what, n in counted(present, kept, end, known, self.due).items()})
        return found


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
        self._whole = [grid.windows(bucket) for bucket in range(len(grid))]
        patchy = {node for (bucket, node), record in records.items() if record.total() < self._whole[bucket]}
        self._present = present(sorted(patchy)) if patchy else {}
        buckets = Counter(node for _, node in records)
        lacking = [node for node in expected if node in patchy or buckets[node] < len(self._whole)]
        self._known = absences.facts.of(lacking) if lacking else {}

    def of(self, bucket: int, nodes: Sequence[Node]) -> Covered:
        """What became of a bucket's pairs.

        A node that is not expected, or not there, counts with the windows that are on record, so what reports never
        exceeds what is expected.
        """
        reasons: Counter[str] = Counter()
        reporting = expected = 0
        whole = self._whole[bucket]
        for node in nodes:  # 20,000 of them: most lack nothing, and cost a look at what is on record
            record = self._records.get((bucket, node), _NOTHING)
            here = record.total()
            absent = _NOTHING if here == whole else self._absent(bucket, node)
            for what, windows in (*record.items(), *absent.items()):
                reasons[what] += windows
            expected += here > 0 or absent.total() > 0
            reporting += "released" in record
        released = reasons.pop("released", 0)
        return Covered(
            nodes_reporting=reporting,
            nodes_expected=expected,
            windows_reporting=released,
            windows_expected=released + reasons.total(),
            reasons=reasons,
        )

    def _absent(self, bucket: int, node: Node) -> Counter[str]:
        since, until = self._expected.get(node, (0, 0))
        start, end = self._grid.span(bucket)
        window = self._grid.window
        first = start + -(-max(0, since - start) // window) * window
        last = min(end, start + -(-max(0, until - start) // window) * window)
        if first >= last:
            return _NOTHING
        return self._absences.counted(self._known.get(node, UNKNOWN), first, last, self._present.get(node, ()))
