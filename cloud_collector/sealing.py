"""Sealing at intervals, by one process at a time.

Place: around the sealer; the server runs it beside its calls, or a process of its own does where there are workers.
Invariants: whoever seals, in this process or another, has the turn, so there is one sealer at any instant; a disk that
fails ends the process, anything else is said and tried again.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from cloud_collector import metrics
from cloud_collector.errors import StoreFailed
from cloud_collector.telemetry import Event, emit
from cloud_collector.turns import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cloud_collector.sealer import Sealer
    from cloud_collector.upkeep import Upkeep


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

    def seal(self) -> int:
        """Move everything that waits; see :meth:`Sealer.seal`."""
        with turn(self._path), self._elsewhere(), metrics.timed_seal():
            return self._sealer.seal()

    def keep(self, upkeep: Upkeep) -> None:
        """Look after the lake, while nobody seals."""
        with turn(self._path), self._elsewhere():
            upkeep.run(datetime.now(UTC))


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
    turns: Turns,
    upkeep: Upkeep | None,
    every_s: float,
    store_failed: Callable[[], None],
) -> None:
    """Look after the lake at intervals until one of the waits is over; without an upkeep do nothing."""
    while upkeep is not None and not any(wait.done() for wait in waits):
        try:
            await asyncio.to_thread(turns.keep, upkeep)
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
