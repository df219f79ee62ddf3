"""Says how far the journal is before the agent draws again (promise B6).

A device that was rolled back to an old image has forgotten what it drew, and would draw it again. The collector has
not forgotten: an agent that starts says its head, and until somebody has heard it, windows that an earlier life may
have drawn wait.

Place: beside the uplink, over the same wire; the agent asks before it closes a window.
Invariants: a window that ended before this start is not drawn unheard, unless the config says so; nothing is drawn
while the agent is fenced. No head leaves while windows close: when it does, and its place, would tell how far the draws
are. A journal that was made by this start has no earlier life, so nothing of it waits. A head is
confirmed to be behind only after a look at the journal as it is now: a call that arrives late fences nobody.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

from edge_agg.clock import wait_first
from edge_agg.contract.head import Head
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.telemetry import Event, emit
from edge_agg.wire import CallFailed, backoff_s

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from edge_agg.clock import Clock
    from edge_agg.contract.release import Charge
    from edge_agg.departures import Departures
    from edge_agg.wire import Wire

AGAIN_S = 300.0
"""How often an agent that is fenced asks whether it still is, seconds."""
_LOOKS = 4
"""Calls of one saying: the head, a place to compare, a look again, and its confirmation."""

Holding = Literal["fenced", "head"]


class Standing(StrEnum):
    """What the collector made of the head."""

    UNHEARD = "unheard"
    HEARD = "heard"
    FENCED = "fenced"


class Books(Protocol):
    """What the herald needs of the journal."""

    @property
    def incarnation(self) -> str:
        """Its random name."""
        ...

    @property
    def is_fresh(self) -> bool:
        """Whether this start made it."""
        ...

    def places(self, also: int = 0) -> tuple[tuple[int, bytes], ...]:
        """The last place of the chain and what stands there, with another place before it."""
        ...

    def cumulative(self, account: str) -> Charge:
        """All that an account was charged."""
        ...


@dataclass(slots=True, kw_only=True)
class Herald:
    """Says one journal's head."""

    tenant: str
    agent: str
    accounts: Sequence[str]
    journal: Books
    wire: Wire
    clock: Clock
    jitter: Callable[[], float]
    """Uniform in [0, 1); `random.random` in production."""
    retry_first_s: float
    retry_limit_s: float
    waits: bool
    """Whether windows from before this start wait until the head was heard."""
    departures: Departures | None = None
    """When anything may leave; at once where there is no schedule."""
    standing: Standing = Standing.UNHEARD
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever the standing changes; whoever waits for it clears it."""
    _begun_s: float = field(init=False)
    _failures: int = 0
    _again: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._begun_s = self.clock.since_boot_s()

    # Before a window is drawn

    @property
    def holding(self) -> Holding | None:
        """Why windows wait, if they do."""
        if self.standing is Standing.FENCED:
            return "fenced"
        heard = self.standing is Standing.HEARD or self.journal.is_fresh or not self.waits
        return None if heard else "head"

    def may_draw(self, end: datetime | None = None) -> bool:
        """Whether a window that ended then may be drawn now; without an end, any window whatever."""
        if self.holding != "head":
            return self.holding is None
        # Reckoned back from now: the clock may have been set since the start.
        begun = self.clock.now() - timedelta(seconds=self.clock.since_boot_s() - self._begun_s)
        return end is not None and end > begun

    # Saying it

    async def run(self, stop: asyncio.Event) -> None:
        """Say the head until it was heard; while the agent is fenced, ask now and then whether it still is."""
        while not stop.is_set():
            self._again.clear()
            await wait_first(self._try(), stop.wait())
            if self.standing is Standing.HEARD:
                await wait_first(self._again.wait(), stop.wait())
            elif self._failures:
                pause_s = backoff_s(self._failures - 1, self.retry_first_s, self.retry_limit_s, jitter=self.jitter)
                await wait_first(self.clock.wait(pause_s), stop.wait())
            elif not stop.is_set():
                await wait_first(self.clock.wait(AGAIN_S), stop.wait())

    async def wait_heard(self, patience_s: float) -> None:
        """Say the head until it was heard; give up after `patience_s` seconds, at once where nothing waits."""
        begun_s = self.clock.since_boot_s()
        while not await self._try() and self.holding == "head":
            if self.clock.since_boot_s() - begun_s >= patience_s:
                return
            pause_s = backoff_s(self._failures - 1, self.retry_first_s, self.retry_limit_s, jitter=self.jitter)
            await self.clock.wait(min(pause_s, patience_s))

    def told_fenced(self) -> None:
        """A release was refused because the agent is fenced: ask whether it is."""
        if self.standing is not Standing.FENCED:
            self._stand(Standing.FENCED)
            self._again.set()

    async def _try(self) -> bool:
        """Say the head once; whether somebody answered."""
        try:
            self._stand(await self._say())
        except CallFailed as failed:
            self._failures += 1
            emit(Event.HEAD_UNHEARD, status=failed.status)
            return False
        self._failures = 0
        return True

    async def _say(self) -> Standing:
        also, ahead, compared = 0, 0, False
        for _ in range(_LOOKS):
            if self.departures is not None:
                await self.departures.wait()
            head = self._head(also)
            heard = await self.wire.say_head(head.confirm() if head.seq < ahead else head)
            if heard is None or heard.standing in {pb.STANDING_KNOWN, pb.STANDING_UNKNOWN}:
                return Standing.HEARD
            if heard.standing == pb.STANDING_FENCED:
                return Standing.FENCED
            if heard.standing == pb.STANDING_AHEAD:
                also, ahead = 0, heard.last_seq
            elif heard.standing == pb.STANDING_BEHIND:
                if compared or not heard.last_seq:
                    return Standing.HEARD
                also, ahead, compared = heard.last_seq, 0, True  # what stands there must be the same
            else:
                break
        raise CallFailed("NO_STANDING", pushback_s=None, too_large=False)

    def _head(self, also: int = 0) -> Head:
        return Head(
            tenant=self.tenant,
            agent=self.agent,
            incarnation=self.journal.incarnation,
            places=self.journal.places(also),
            spent={name: self.journal.cumulative(name) for name in self.accounts},
        )

    def _stand(self, standing: Standing) -> None:
        if standing is self.standing:
            return
        self.standing = standing
        self.changed.set()
        emit(Event.AGENT_FENCED if standing is Standing.FENCED else Event.HEAD_HEARD)
