"""Whether what waits for the lake would show in an answer.

Place: the query room asks before it has anything sealed, so that questions about the past do not wait for the present.
Invariants: pure; where it says no, the answer is the same as if all had been sealed first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cloud_collector.question import Node, Question


def concerns(
    question: Question, waiting: Mapping[Node, tuple[int, int]], seen: Collection[Node], *, tenant: str | None
) -> bool:
    """Whether an answer must wait for the sealer.

    Args:
        question: with a start and an end, or it is about everything.
        waiting: of its plan, what waits: by node, the starts of the first and the last window.
        seen: nodes that answers know already; one more would be listed, or expected.
        tenant: whose rows the asker sees; everybody's if None.
    """
    mine = {node: windows for node, windows in waiting.items() if tenant in {None, node[0]}}
    if not mine:
        return False
    start, end = question.start_us, question.end_us
    if start is None or end is None or not mine.keys() <= set(seen):
        return True
    return any(first < end and last >= start for first, last in mine.values())
