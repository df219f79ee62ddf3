"""Work handed to an event loop's thread is done once, there if the loop is free, and soon in any case."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pytest

from cloud_collector import handover
from cloud_collector.handover import handed_over

if TYPE_CHECKING:
    from collections.abc import Callable


class Work:
    """Notes which threads did it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.done_by: list[int] = []
        self._error = error

    def __call__(self) -> int:
        """Be done."""
        self.done_by.append(threading.get_ident())
        if self._error is not None:
            raise self._error
        return 7


def test_a_free_loop_does_the_work() -> None:
    """It is done in the loop's thread, and its result comes back."""
    work = Work()

    async def run() -> int:
        return await asyncio.to_thread(handed_over, asyncio.get_running_loop(), work)

    assert asyncio.run(run()) == 7
    assert work.done_by == [threading.get_ident()]


@pytest.mark.parametrize("error", [ValueError("no"), TimeoutError("its own")])
def test_what_the_work_raises_is_raised(error: Exception) -> None:
    """An error is the asker's, whatever its class, and the loop lives on."""
    work = Work(error)

    async def run() -> None:
        with pytest.raises(type(error), match=str(error)):
            await asyncio.to_thread(handed_over, asyncio.get_running_loop(), work)

    asyncio.run(run())
    assert len(work.done_by) == 1


def done_beside_a_busy_loop() -> Work:
    """The loop is busy for longer than the patience, then comes to what it was asked for."""
    work = Work()

    async def run() -> None:
        asked = asyncio.create_task(asyncio.to_thread(handed_over, asyncio.get_running_loop(), work, patience_s=0.01))
        await asyncio.sleep(0)  # the thread begins
        time.sleep(0.1)  # noqa: ASYNC251  # what a busy loop does
        assert await asked == 7
        await asyncio.sleep(0)

    asyncio.run(run())
    return work


def test_a_busy_loop_delays_nothing_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked does the work, and the loop does not do it again when it gets there."""
    work = done_beside_a_busy_loop()
    assert len(work.done_by) == 1
    assert work.done_by != [threading.get_ident()]

    class Unclaimed(Future[int]):  # mutant: nobody looks whether it was begun
        def set_running_or_notify_cancel(self) -> bool:
            return True

        def set_result(self, result: int) -> None:
            del result

    monkeypatch.setattr(handover, "Future", Unclaimed)
    assert len(done_beside_a_busy_loop().done_by) > 1


def stopped() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def closed() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop


@pytest.mark.parametrize("make", [stopped, closed])
def test_a_loop_that_is_gone_is_not_waited_for(make: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """A loop that does not run any more, closed or not, holds nothing up."""
    loop, work = make(), Work()
    try:
        assert handed_over(loop, work, patience_s=0.01) == 7
        assert work.done_by == [threading.get_ident()]
    finally:
        loop.close()
