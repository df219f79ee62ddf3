"""A device that is rolled back to an old image is fenced before it draws, not after (promise B6).

Agent and collector over gRPC. An image of the state folder is taken while raw events wait in the spool; the device goes
on, and its window is drawn and sent; then the image comes back. Not shown, for nobody can: that a device whose program
was changed, or that never comes near its collector again, does not draw.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cloud_collector.gate import Gate, local
from cloud_collector.landed import Action, Reason
from cloud_collector.landing import Landing
from cloud_collector.service import CollectorService, Door
from edge_agg.assembly import build
from edge_agg.config import load
from edge_agg.contract.plan import plan_hash
from edge_agg.contract.v1.collector_pb2_grpc import add_CollectorServiceServicer_to_server
from edge_agg.control import facts_of
from edge_agg.errors import Fenced
from edge_agg.herald import Herald
from edge_agg.ingest.source import Frame
from edge_agg.journal import Journal
from edge_agg.privacy import noise
from edge_agg.wire import GrpcWire
from tests.fakes import DAY, MONDAY, WEEK, FakeClock, Row, UniqueNoise, batch_of, rest, small_plan, write_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from edge_agg.agent import Agent
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Inlet

PLAN = small_plan()


@dataclass(slots=True)
class Handed:
    """A source that hands rows over once: nobody can read them again."""

    rows: Sequence[Row]
    name: str = "handed"

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """All columns are there."""

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Hand over what there is."""
        if self.rows:
            await inlet.take(Frame(part=None, batch=batch_of(self.rows, PLAN), rejected=0, last=True))
        inlet.is_current(True)
        if not drain:
            await stop.wait()


@dataclass
class Device:
    """A device, the collector that it sends to, and the noise that was drawn on it."""

    home: Path
    landing: Landing
    address: str
    noise: UniqueNoise = field(default_factory=UniqueNoise)

    @contextlib.asynccontextmanager
    async def alive(self, now: datetime, *rows: Row, jumps: bool = True) -> AsyncIterator[Agent]:
        """An agent on the state folder as it is."""
        config, plans = load(self.home / "agent.toml")
        wire = GrpcWire(self.address, deadline_s=5.0)
        agent = build(config, plans, clock=FakeClock(now, jumps=jumps), wire=wire)
        agent.sources = [Handed(rows)]
        try:
            yield agent
        finally:
            await agent.close()

    async def drain(self, now: datetime, *rows: Row) -> bool:
        """One drain."""
        async with self.alive(now, *rows) as agent:
            return await agent.drain(5.0)

    async def live(self, now: datetime, *rows: Row) -> dict[str, Any]:
        """A live agent until nothing moves; what it says of itself."""
        async with self.alive(now, *rows, jumps=False) as agent:
            stop = asyncio.Event()
            running = asyncio.create_task(agent.run(stop))
            for _ in range(3):
                await rest()
            found = facts_of(agent, agent.clock)()
            stop.set()
            await running
        return found

    def charges(self) -> int:
        """Draws that the journal knows of."""
        journal = Journal.read(self.home / "state", "node")
        try:
            return sum(journal.attempts(plan_hash(PLAN), MONDAY + i * WEEK) for i in range(4))
        finally:
            journal.close()


@contextlib.asynccontextmanager
async def device(home: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Device]:
    """A device and its collector."""
    write_config(home, history=None)
    door = Door(max_calls=8, threads=2, store_failed=lambda: None)
    server = grpc.aio.server(interceptors=[Gate(local)])
    with contextlib.closing(Landing(home / "landing.sqlite")) as landing:
        service = CollectorService(landing, lambda *_, **__: PLAN, door=door, max_batch=64)
        add_CollectorServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        one = Device(home, landing, f"127.0.0.1:{port}")
        monkeypatch.setattr(noise, "draw", one.noise)
        try:
            yield one
        finally:
            await server.stop(0)
            door.close()


async def rolled_back(one: Device) -> int:
    """Bring a device to where an image with pending events came back; how much noise was drawn until then."""
    assert await one.drain(MONDAY + WEEK + DAY, Row())
    await one.live(MONDAY + WEEK + DAY, Row(t=MONDAY + WEEK))
    shutil.copytree(one.home / "state", one.home / "image")
    assert await one.drain(MONDAY + 2 * WEEK + DAY)
    assert one.landing.agents()[0].last_seq == 2
    shutil.rmtree(one.home / "state")
    shutil.copytree(one.home / "image", one.home / "state")
    return len(one.noise.answers)


async def comes_back(one: Device, how: str) -> dict[str, Any]:
    """The device starts from the image, a day after the window that waits in it has ended."""
    if how == "live":
        return await one.live(MONDAY + 2 * WEEK + DAY)
    with pytest.raises(Fenced, match="fenced this agent"):
        await one.drain(MONDAY + 2 * WEEK + DAY)
    return {"holding": "fenced"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["live", "drain"])
def test_a_rolled_back_device_is_fenced_before_it_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Guarantee: no noise is drawn a second time for a window, nothing is charged; the audit log and status say why."""

    async def go() -> None:
        async with device(tmp_path, monkeypatch) as one:
            drawn = await rolled_back(one)
            charged = one.charges()
            said = await comes_back(one, how)
            assert said["holding"] == "fenced"
            assert (len(one.noise.answers), one.charges()) == (drawn, charged)
            (line,) = one.landing.audit()
            assert (line.action, line.reason) == (Action.FENCED, Reason.ROLLBACK)

    asyncio.run(go())


@pytest.mark.slow
def test_without_its_head_said_it_draws_again_and_is_caught_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant of the check above: the head is not said, and the collector's chain is the first to notice."""

    async def nothing(self: Herald, *given: Any) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Herald, "wait_heard", nothing)
    monkeypatch.setattr(Herald, "run", nothing)
    monkeypatch.setattr(Herald, "may_draw", lambda self, end=None: True)

    async def go() -> None:
        async with device(tmp_path, monkeypatch) as one:
            drawn = await rolled_back(one)
            charged = one.charges()
            await one.drain(MONDAY + 2 * WEEK + DAY)
            assert len(one.noise.answers) > drawn, "the same events were measured twice"
            assert one.charges() == charged + 1
            (line,) = one.landing.audit()
            assert (line.action, line.reason) == (Action.FENCED, Reason.CONFLICT)

    asyncio.run(go())


@pytest.mark.slow
def test_while_the_collector_is_away_old_windows_wait_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: a restart without a way to the collector draws nothing old; with one again, all of it is sent."""

    async def go() -> None:
        async with device(tmp_path, monkeypatch) as one:
            assert await one.drain(MONDAY + WEEK + DAY, Row())
            await one.live(MONDAY + WEEK + DAY, Row(t=MONDAY + WEEK))
            drawn, address, one.address = len(one.noise.answers), one.address, "127.0.0.1:1"
            assert (await one.live(MONDAY + 2 * WEEK + DAY))["holding"] == "head"
            assert not await one.drain(MONDAY + 2 * WEEK + DAY)
            assert len(one.noise.answers) == drawn
            one.address = address
            assert await one.drain(MONDAY + 2 * WEEK + DAY)
            assert len(one.noise.answers) > drawn
            assert (one.landing.agents()[0].last_seq, one.landing.audit()) == (2, [])

    asyncio.run(go())
