"""Sealing at intervals, by one process at a time.

Place: around the sealer; the server runs it beside its calls, or a process of its own does where there are workers.
Invariants: whoever seals, in this process or another, has the turn, so there is one sealer at any instant; a call waits
for what was acked before it and not for what comes after, and calls that wait at one time share a pass; a disk that
fails ends the process, anything else is said and tried again.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from cloud_collector import metrics
from cloud_collector.errors import StoreFailed
from cloud_collector.telemetry import Event, emit
from cloud_collector.turns import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cloud_collector.sealer import Sealer
    from cloud_collector.upkeep import Upkeep


class _Pass:
    """A pass of the sealer, and the calls that wait for it."""

    def __init__(self, upto: int) -> None:
        self.upto = upto
        """The highest id that any of them needs; fixed once the pass has its turn."""
        self.moved: Future[int] = Future()


class Turns:
    """The sealer of this process, which waits for its turn among those of others.

    Args:
        sealer: does the work.
        path: the file whose lock is the turn.
        elsewhere: the turn among other machines, if there are any: taken second, so one of this machine waits there.
    """

    def __init__(
        self, sealer: Sealer, path: Path, elsewhere: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self._sealer = sealer
        self._path = path
        self._elsewhere = elsewhere
        self._lock = threading.Lock()
        self._under_way: _Pass | None = None
        self._next: _Pass | None = None

    def seal(self) -> int:
        """Move what was there before the call, in one pass with whoever else waits; see :meth:`Sealer.seal`.

        Returns:
            How many releases the pass moved.
        """
        upto = self._sealer.newest()
        if upto == 0:
            with metrics.timed_seal():
                return 0
        shared, mine = self._join(upto)
        if mine:
            self._run(shared)
        return shared.moved.result()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every sealer from moving anything meanwhile; for what takes milliseconds."""
        with turn(self._path), self._elsewhere(), self._sealer.paused():
            yield

    def _join(self, upto: int) -> tuple[_Pass, bool]:
        """The pass that brings what a call needs, and whether the call is to run it."""
        with self._lock:
            if self._under_way is not None and self._under_way.upto >= upto:
                return self._under_way, False
            if self._next is not None:
                self._next.upto = max(self._next.upto, upto)
                return self._next, False
            self._next = _Pass(upto)
            return self._next, True

    def _run(self, one: _Pass) -> None:
        try:
            with turn(self._path), self._elsewhere(), metrics.timed_seal():
                with self._lock:
                    self._under_way, self._next = one, None
                one.moved.set_result(self._sealer.seal(one.upto))
        except BaseException as error:  # noqa: BLE001  # handed to every call that waits, this one too
            one.moved.set_exception(error)
        finally:
            with self._lock:
                self._under_way = None if self._under_way is one else self._under_way
                self._next = None if self._next is one else self._next


async def seal_until(
    waits: Sequence[asyncio.Task[Literal[True]]],
    seal: Callable[[], int] | None,
    every_s: float,
    store_failed: Callable[[], None],
) -> None:
    """Seal at intervals until one of the waits is over: the collector is told to stop, or its disk fails.

    Without a sealer only wait.
    """
    try:
        while not any(wait.done() for wait in waits):
            if seal is not None:
                await _seal_once(seal, store_failed)
            timeout = None if seal is None else every_s
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def keep_until(
    waits: Sequence[asyncio.Task[Literal[True]]],
    upkeep: Upkeep | None,
    every_s: float,
    store_failed: Callable[[], None],
) -> None:
    """Look after the lake at intervals until one of the waits is over; without an upkeep do nothing."""
    while upkeep is not None and not any(wait.done() for wait in waits):
        try:
            await asyncio.to_thread(upkeep.run, datetime.now(UTC))
        except Exception as error:  # noqa: BLE001  # nothing that was promised depends on it
            emit(Event.UPKEEP_FAILED, cause=type(error).__name__)
            store_failed()
        await asyncio.wait(waits, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)


async def _seal_once(seal: Callable[[], int], store_failed: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(seal)
    except StoreFailed:  # the sealer has said so; what was not moved is safe in the landing
        store_failed()
    except Exception as error:  # noqa: BLE001  # as above, but nobody has said so
        emit(Event.SEAL_FAILED, cause=type(error).__name__)
