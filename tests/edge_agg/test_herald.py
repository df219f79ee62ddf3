"""Windows that an earlier life may have drawn wait until the collector knows how far the journal is (promise B6)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest

from edge_agg.contract.release import Charge
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.errors import JournalFailed
from edge_agg.herald import AGAIN_S, Herald, Standing
from tests.fakes import MONDAY, FakeClock, FakeCollector, settle, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = timedelta(hours=1)


@dataclass
class Books:
    """A journal of so many releases; each look at it may find `growing` more."""

    seq: int = 3
    growing: int = 0
    is_fresh: bool = False
    incarnation: str = "a" * 32
    looks: list[int] = field(default_factory=list)

    def places(self, also: int = 0) -> tuple[tuple[int, bytes], ...]:
        """As the journal's."""
        self.looks.append(also)
        found = tuple((seq, bytes([seq]) * 32) for seq in sorted({also, self.seq} - {0}))
        self.seq += self.growing
        return found

    def cumulative(self, account: str) -> Charge:
        """Always the same."""
        return Charge(rho=Fraction(1, 8))


def herald_of(books: Books, wire: FakeCollector, clock: FakeClock | None = None, *, waits: bool = True) -> Herald:
    return Herald(
        tenant="acme",
        agent="jfk",
        accounts=["people"],
        journal=books,
        wire=wire,
        clock=clock or FakeClock(jumps=True),
        jitter=lambda: 1.0,
        retry_first_s=1.0,
        retry_limit_s=60.0,
        waits=waits,
    )


def said(standing: pb.Standing.ValueType, last_seq: int = 0) -> pb.SayHeadResponse:
    return pb.SayHeadResponse(standing=standing, last_seq=last_seq)


def saying(books: Books, *answers: Any, patience_s: float = 0.0) -> tuple[Herald, FakeCollector]:
    """A herald that has said its head once, and what the collector was told."""
    wire = FakeCollector()
    wire.standings.extend(answers)
    herald = herald_of(books, wire)
    asyncio.run(herald.wait_heard(patience_s))
    return herald, wire


def test_until_the_head_was_heard_only_windows_of_this_start_are_drawn() -> None:
    """Guarantee: what ended before the start waits, also where the clock is set only afterwards."""
    clock = FakeClock()
    herald = herald_of(Books(), FakeCollector(), clock)
    assert not herald.may_draw(clock.time - HOUR)
    assert not herald.may_draw(clock.time)
    assert herald.may_draw(clock.time + HOUR)
    assert not herald.may_draw()
    clock.time += 1000 * HOUR  # set by NTP: the time since boot stands still
    assert not herald.may_draw(clock.time - HOUR)
    asyncio.run(herald.wait_heard(0.0))
    assert herald.may_draw()
    assert herald.may_draw(MONDAY - 1000 * HOUR)


@pytest.mark.parametrize("answer", [said(pb.STANDING_KNOWN), said(pb.STANDING_UNKNOWN), None])
def test_who_is_known_new_or_not_asked_may_draw(answer: Any) -> None:
    """Guarantee: a new agent is no offence, and a collector of an older version is not waited for."""
    herald, wire = saying(Books(), answer)
    assert herald.may_draw()
    (head,) = wire.heads
    assert (head.tenant, head.agent, head.places) == ("acme", "jfk", ((3, b"\3" * 32),))
    assert head.spent == {"people": Charge(rho=Fraction(1, 8))}
    assert not head.confirmed


def test_a_collector_with_less_compares_its_last_place() -> None:
    """Guarantee: what stands there must be the same, or the two are not one journal: it is asked again with it."""
    herald, wire = saying(Books(), said(pb.STANDING_BEHIND, 2), said(pb.STANDING_BEHIND, 2))
    assert herald.may_draw()
    assert [[seq for seq, _ in head.places] for head in wire.heads] == [[3], [2, 3]]
    forked, _ = saying(Books(), said(pb.STANDING_BEHIND, 2), said(pb.STANDING_FENCED, 2))
    assert forked.holding == "fenced"


def confirms_only_what_is_so() -> bool:
    """Whether an agent whose journal went on meanwhile does not confirm that it is behind."""
    moved, wire = saying(Books(growing=2), said(pb.STANDING_AHEAD, 4), said(pb.STANDING_KNOWN, 5))
    return moved.may_draw() and not any(head.confirmed for head in wire.heads)


def test_it_is_behind_only_if_a_second_look_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a journal that ends before the collector's does is confirmed to, and fenced; one that went on is not.

    Mutant: it confirms whatever it is told.
    """
    herald, wire = saying(Books(), said(pb.STANDING_AHEAD, 4), said(pb.STANDING_FENCED, 4))
    assert (herald.holding, herald.may_draw(MONDAY + HOUR)) == ("fenced", False)
    assert [head.confirmed for head in wire.heads] == [False, True]
    assert confirms_only_what_is_so()
    monkeypatch.setattr("edge_agg.contract.head.Head.seq", 0)
    assert not confirms_only_what_is_so()


@pytest.mark.parametrize("answer", [unavailable(), said(pb.STANDING_UNSPECIFIED)])
def test_it_is_said_again_until_patience_ends(answer: Any) -> None:
    """Guarantee: no answer, and one that is not understood, leave everything as it was."""
    given, wire = saying(Books(), *[answer] * 50, patience_s=7.0)
    assert (given.holding, given.may_draw()) == ("head", False)
    assert len(wire.heads) >= 3
    heard, _ = saying(Books(), answer, answer, patience_s=30.0)
    assert heard.may_draw()


@pytest.mark.parametrize("how", ["fresh", "draw"])
def test_a_new_journal_and_a_device_that_may_draw_unheard_wait_for_nothing(how: str) -> None:
    """Guarantee: no earlier life drew for a journal made now; the device's owner may decide otherwise for all."""
    wire = FakeCollector()
    wire.standings.extend([unavailable()] * 9)
    herald = herald_of(Books(is_fresh=how == "fresh"), wire, waits=how != "draw")
    asyncio.run(herald.wait_heard(60.0))
    assert len(wire.heads) == 1, "said once, so that a fence is known"
    assert herald.may_draw()


def living(work: Callable[[Herald, FakeCollector, FakeClock], Any], *answers: Any) -> None:
    """A herald beside a live agent, over virtual time."""

    async def go() -> None:
        wire, clock, stop = FakeCollector(), FakeClock(), asyncio.Event()
        wire.standings.extend(answers)
        herald = herald_of(Books(), wire, clock)
        running = asyncio.create_task(herald.run(stop))
        await settle()
        await work(herald, wire, clock)
        stop.set()
        await settle()
        assert running.done()
        running.result()

    asyncio.run(go())


def test_a_live_agent_says_it_until_it_is_heard_and_then_no_more() -> None:
    """Guarantee: with a back-off, and whoever waits for the change is woken."""

    async def work(herald: Herald, wire: FakeCollector, clock: FakeClock) -> None:
        assert herald.holding == "head"
        for _ in range(3):
            await clock.advance(timedelta(seconds=4))
        assert (herald.standing, herald.changed.is_set()) == (Standing.HEARD, True)
        n = len(wire.heads)
        await clock.advance(24 * HOUR)
        assert len(wire.heads) == n == 3

    living(work, unavailable(), unavailable())


async def _reads_no_results(*waits: Any) -> None:
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("mutant", [None, _reads_no_results])
def test_a_journal_that_fails_ends_the_herald(monkeypatch: pytest.MonkeyPatch, mutant: Any) -> None:
    """Guarantee (A2): what the journal raised goes on to the agent, which ends. Mutant: a wait drops it."""
    if mutant is not None:
        monkeypatch.setattr("edge_agg.herald.wait_first", mutant)

    class Broken(Books):
        def cumulative(self, account: str) -> Charge:
            raise JournalFailed

    async def go() -> bool:
        running = asyncio.create_task(herald_of(Broken(), FakeCollector(), FakeClock()).run(asyncio.Event()))
        await settle()
        ended = running.done() and isinstance(running.exception(), JournalFailed)
        running.cancel()
        return ended

    assert asyncio.run(go()) is (mutant is None)


def test_a_fence_is_asked_about_until_it_is_lifted() -> None:
    """Guarantee: whoever runs the fleet lets the agent in, and it draws again by itself."""

    async def work(herald: Herald, wire: FakeCollector, clock: FakeClock) -> None:
        assert herald.holding == "fenced"
        await clock.advance(timedelta(seconds=AGAIN_S + 1))
        assert herald.holding == "fenced"
        await clock.advance(timedelta(seconds=AGAIN_S + 1))
        assert herald.may_draw()

    living(work, said(pb.STANDING_FENCED), said(pb.STANDING_FENCED))


def test_a_refused_release_makes_it_ask() -> None:
    """Guarantee: an agent that learns of its fence from a receipt stops drawing too, and asks at once."""

    async def work(herald: Herald, wire: FakeCollector, clock: FakeClock) -> None:
        assert herald.may_draw()
        wire.standings.append(said(pb.STANDING_FENCED))
        herald.told_fenced()
        assert not herald.may_draw(clock.time + HOUR)
        await settle()
        assert (herald.holding, len(wire.heads)) == ("fenced", 2)

    living(work)
