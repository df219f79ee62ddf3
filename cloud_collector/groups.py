"""Releases of several calls, handed to the landing together.

Place: between the service and the landing. While one group is being committed the next one gathers, so the busier the
collector is, the fewer threads are woken, lines logged and files synced for each release.
Invariants: a call gets its own verdicts, in its own order, once its group is on the disk; what the landing refuses is
refused to every call of the group, and none of it was promised; a group is never larger than what may wait, so a
landing that takes as many has room for it.
"""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from typing import TYPE_CHECKING, Protocol

from cloud_collector.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloud_collector.landing import Verdict
    from edge_agg.contract.release import Release, Sealed

    Pair = tuple[Release, Sealed]

MAX_WAITING = 2048
"""Releases that may gather while a group is committed; one call more is refused as overload."""
MAX_GROUP = 160
"""Releases of one group, unless one call has more: the loop judges a group in one go, and meanwhile takes no calls."""
GATHER_S = 0.005
"""Between a commit and the next one calls gather, unless a group is full: each costs threads and a sync, however many
releases it has. Who calls when nothing was committed for so long does not wait."""


class Lands(Protocol):
    """What takes releases and keeps them."""

    async def land(self, releases: Sequence[Pair]) -> list[Verdict]:
        """Commit releases; a verdict for each, in order, once all are on the disk."""
        ...


class Groups:
    """Gathers the releases of calls for a landing; of one event loop.

    Args:
        landing: commits them; its own queue takes `max_waiting` releases at least.
        max_waiting: releases that may gather while a group is committed; a call that finds nobody waiting has room.
        max_group: releases of one group, unless one call has more.
        gather_s: between a commit and the next one calls gather for so long.
    """

    def __init__(
        self,
        landing: Lands,
        *,
        max_waiting: int = MAX_WAITING,
        max_group: int = MAX_GROUP,
        gather_s: float = GATHER_S,
    ) -> None:
        self._landing = landing
        self._max_waiting = max_waiting
        self._max_group = min(max_group, max_waiting)
        self._gather_s = gather_s
        self._free_at = -math.inf
        self._full = asyncio.Event()
        self._waiting: list[tuple[Sequence[Pair], asyncio.Future[list[Verdict]]]] = []
        self._depth = 0
        self._committing: asyncio.Task[None] | None = None

    async def land(self, releases: Sequence[Pair]) -> list[Verdict]:
        """Commit releases with those of whoever else calls meanwhile.

        Raises:
            Overloaded: too many wait already.
            StoreFailed: nothing of this call was promised.
        """
        if self._depth and self._depth + len(releases) > self._max_waiting:
            raise Overloaded("too many releases wait for a commit")
        future: asyncio.Future[list[Verdict]] = asyncio.get_running_loop().create_future()
        self._waiting.append((releases, future))
        self._depth += len(releases)
        if self._depth >= self._max_group:
            self._full.set()
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit(), context=Context())  # it is no one call's
        return await future

    async def _commit(self) -> None:
        """Commit group after group until nobody waits."""
        try:
            loop = asyncio.get_running_loop()
            while self._waiting:
                await self._gathered(self._free_at - loop.time())
                group = self._next()
                try:
                    verdicts = await self._landing.land([pair for releases, _ in group for pair in releases])
                except Exception as error:  # noqa: BLE001  # handed to every call of the group
                    for _, future in group:
                        if not future.done():
                            future.set_exception(error)
                    continue
                finally:
                    self._free_at = loop.time() + self._gather_s
                at = 0
                for releases, future in group:
                    if not future.done():  # a caller may have gone; what it sent is kept all the same
                        future.set_result(verdicts[at : at + len(releases)])
                    at += len(releases)
        finally:
            self._committing = None

    async def _gathered(self, wait_s: float) -> None:
        """Wait until a group is full, and no longer than a time."""
        if wait_s <= 0 or self._depth >= self._max_group:
            return
        self._full.clear()
        timer = asyncio.get_running_loop().call_later(wait_s, self._full.set)  # `wait_for` would make a task
        try:
            await self._full.wait()
        finally:
            timer.cancel()

    def _next(self) -> list[tuple[Sequence[Pair], asyncio.Future[list[Verdict]]]]:
        """The calls that waited longest, as many as fit; at least one."""
        size = taken = 0
        for releases, _ in self._waiting:
            if taken and size + len(releases) > self._max_group:
                break
            size += len(releases)
            taken += 1
        group, self._waiting = self._waiting[:taken], self._waiting[taken:]
        self._depth -= size
        return group
