"""How the sources that read files do their waiting: for a thread, for the inlet, for the next look.

Place: step 1, under `file.py` and `tail.py`.
Invariants: nobody closes what a thread still uses; no wait outlasts a stop. A frame that was offered when the stop came
may have been taken or not: whoever reads it again after a restart counts it once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from edge_agg.clock import wait_first

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agg.clock import Clock
    from edge_agg.ingest.source import Frame, Inlet

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do it in a thread; called off, come back once the thread is through with it."""
    job = asyncio.ensure_future(asyncio.to_thread(action, *args, **kwargs))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait([job])
        if not job.cancelled():
            job.exception()  # looked at, so that asyncio does not print it
        raise


async def taken(inlet: Inlet, frame: Frame, stop: asyncio.Event) -> bool:
    """Hand a frame over.

    Returns:
        Whether it is safe; false if the stop came before that.
    """
    take = asyncio.ensure_future(inlet.take(frame))
    try:
        await wait_first(asyncio.wait([take]), stop.wait())
        if take.done():
            take.result()
            return True
    finally:
        take.cancel()
    return False


async def wait_next(stop: asyncio.Event, clock: Clock, seconds: float) -> None:
    """Come back after that many seconds, or when the stop comes."""
    await wait_first(stop.wait(), clock.wait(seconds))
