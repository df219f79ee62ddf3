"""When a release leaves is a function of its window and the schedule, whatever the sampler's duration (promise A4).

Virtual time: a draw takes as long as a test says. Not shown: that nothing else on the device's wire depends on it.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from edge_agg.assembly import build
from edge_agg.config import load
from edge_agg.departures import Departures
from edge_agg.privacy import noise
from tests.fakes import MONDAY, WEEK, FakeClock, FakeCollector, Row, frozen_noise, write_config, write_events

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_agg.contract.head import Head
    from edge_agg.wire import Waiting

EVERY_S = 2.0


class Timed(FakeCollector):
    """A collector that notes when heads and batches arrive."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock, self.left_s = clock, list[float]()

    async def say_head(self, head: Head) -> Any:
        """Hear a head, and note the time since boot."""
        self.left_s.append(self.clock.since_boot_s())
        return await super().say_head(head)

    async def push(self, batch: Sequence[Waiting]) -> Any:
        """Take a batch, and note the time since boot."""
        self.left_s.append(self.clock.since_boot_s())
        return await super().push(batch)


def leaving(home: Path, monkeypatch: pytest.MonkeyPatch, draw_s: Sequence[float], *, begun_s: float = 0.3) -> Any:
    """When batches leave in a drain of four windows whose draws take so long, in turn; and the local counts.

    The head leaves when the drain begins, before any window closes.
    """
    home.mkdir()
    write_events(home / "events" / "a.parquet", [Row()])
    config = write_config(home)
    config.write_text(config.read_text().replace('leave_every = "0s"', f'leave_every = "{EVERY_S:.0f}s"'))
    clock = FakeClock(MONDAY + 52 * WEEK, jumps=True)
    clock._passed_s = begun_s
    wire, taken = Timed(clock), iter(draw_s)

    def slow(*given: Any) -> Any:
        passed = next(taken, 0.0)
        clock.time += timedelta(seconds=passed)
        clock._passed_s += passed
        return frozen_noise(*given)

    monkeypatch.setattr(noise, "draw", slow)
    loaded, plans = load(config)

    async def go() -> Any:
        agent = build(loaded, plans, clock=clock, wire=wire)
        assert await agent.drain(5.0)
        counts = agent.journal.local_counts()
        await agent.close()
        return counts

    counts = asyncio.run(go())
    head_s, *left_s = wire.left_s
    assert head_s == begun_s
    return left_s, counts.get("departures late", 0)


DURATIONS = ([0.0] * 4, [0.5, 0.5, 0.5, 0.4], [0.0, 1.9, 0.0, 0.0], [1.999, 0.0, 0.0, 0.0])


def leaves_by_the_schedule(home: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the moments are the same however long up to the period the draws take."""
    home.mkdir()
    found = [leaving(home / str(i), monkeypatch, draw_s) for i, draw_s in enumerate(DURATIONS)]
    return all(one == ([2 * EVERY_S], 0) for one in found)


def test_when_a_release_leaves_does_not_tell_how_long_its_noise_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: for any draws up to the period, all releases leave at the moment set before the first of them.

    Mutant: they leave when they are ready.
    """
    assert leaves_by_the_schedule(tmp_path / "kept", monkeypatch)

    async def ready(self: Departures) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Departures, "wait", ready)
    assert not leaves_by_the_schedule(tmp_path / "ready", monkeypatch)


def test_what_takes_longer_leaves_at_the_next_multiple_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: then a moment tells so many whole periods, no more; the count stays on the device."""
    assert leaving(tmp_path / "long", monkeypatch, [9.1]) == ([5 * EVERY_S], 1)


@pytest.mark.parametrize("begun_s", [0.0, 0.3, 1.999])
def test_there_is_a_whole_period_for_the_draws_whenever_closing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_s: float
) -> None:
    """Guarantee: also right before a multiple."""
    assert leaving(tmp_path / "late", monkeypatch, [EVERY_S], begun_s=begun_s) == ([2 * EVERY_S], 0)


@pytest.mark.parametrize("mutant", [False, True])
def test_no_head_leaves_while_windows_close(tmp_path: Path, mutant: bool) -> None:  # noqa: FBT001 - a case
    """Guarantee: a head waits for the schedule as releases do, and says the journal as it is then.

    Its moment would tell how long the draws took, and its place how far they are. Mutant: it knows no schedule.
    """
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace('leave_every = "0s"', f'leave_every = "{EVERY_S:.0f}s"'))
    clock = FakeClock(MONDAY + 52 * WEEK)
    wire, (loaded, plans) = Timed(clock), load(config)

    async def go() -> None:
        agent = build(loaded, plans, clock=clock, wire=wire)
        if mutant:
            agent.herald.departures = None
        agent.departures.begin(clock.since_boot_s())
        saying = asyncio.create_task(agent.herald.wait_heard(5.0))
        await clock.advance(timedelta(seconds=1))
        agent.series[0].close(MONDAY)
        agent.departures.end()
        while not saying.done():
            await clock.advance(timedelta(seconds=1))
        await agent.close()

    asyncio.run(go())
    found = wire.left_s, [head.seq for head in wire.heads]
    assert (found == ([2 * EVERY_S], [1])) is not mutant
