"""Work of one thread done by another, so that the two do not take the interpreter from each other.

Place: below the landing. Its writer asks the event loop's thread to judge a group and keeps for itself what blocks: the
wait for a turn and the sync. Each call into SQLite lets go of the interpreter; a thread of its own would wait after
each for the loop to let go in turn (5 ms), many times a release, and longest when there is most to do.
Invariants: work is done once, by the loop's thread or by the one that asks; a loop that is busy, stopped or closed
delays it by no more than PATIENCE_S.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

T = TypeVar("T")

PATIENCE_S = 0.25
"""How long a loop may take to begin."""


def handed_over(loop: asyncio.AbstractEventLoop, work: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """Have a loop's thread do work and wait for it; what it returns, or raises."""
    done: Future[T] = Future()

    def begin() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised where it was asked for
            done.set_exception(error)

    try:
        loop.call_soon_threadsafe(begin)
    except RuntimeError:  # the loop is closed
        return work()
    try:
        return done.result(patience_s)
    except TimeoutError:
        return work() if done.cancel() else done.result()
