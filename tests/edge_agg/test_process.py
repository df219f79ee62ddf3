"""The agent as a process: what its supervisor hears while it starts."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from edge_agg import process
from edge_agg.assembly import build
from edge_agg.config import load
from edge_agg.intake import Intake
from edge_agg.journal import Journal
from edge_agg.spool import Record, Spool
from tests.edge_agg.test_deploy import UNIT, seconds, settings
from tests.fakes import MONDAY, WEEK, FakeClock, FakeCollector, Row, batch_of, small_plan, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORDS = 3


def _says_nothing_of_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Spool.open
    monkeypatch.setattr(Spool, "open", lambda folder, *, quota_bytes, going_on: honest(folder, quota_bytes=quota_bytes))


def _says_nothing_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Intake.replay

    async def replay(self: Intake) -> None:
        self.going_on = lambda: None
        await honest(self)

    monkeypatch.setattr(Intake, "replay", replay)


@pytest.mark.parametrize("mutant", [None, _says_nothing_of_segments, _says_nothing_of_records])
def test_a_start_says_that_it_goes_on_with_every_segment_and_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee: however much lies in the spool, no part of it is read in silence. Mutants: one of both readings is."""
    loaded, plans = load(write_config(tmp_path))
    Journal.open(tmp_path / "state", "node", now=MONDAY).close()
    spool = Spool.open(tmp_path / "state" / "spool", quota_bytes=1 << 30)
    for i in range(RECORDS):
        batch = batch_of([Row(u=f"u{i}")], small_plan())
        spool.append([Record(source="s", batch=batch, expiry=MONDAY + (i + 1) * WEEK, floors={})])
    spool.close()
    if mutant is not None:
        mutant(monkeypatch)
    signs: list[None] = []

    async def start() -> int:
        clock = FakeClock(MONDAY)
        agent = build(loaded, plans, clock=clock, wire=FakeCollector(), going_on=lambda: signs.append(None))
        await agent.intake.replay()
        await agent.close()
        return len(signs)

    assert (asyncio.run(start()) == 2 * RECORDS) is (mutant is None)


class Ended(Exception):
    """A start that ends before there is an agent."""


def test_the_supervisor_is_told_that_a_start_goes_on_but_not_of_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: it gets as long again as the unit gives a start, once in some seconds. Mutant: at every step."""
    clock = FakeClock(MONDAY)

    def building(*_: Any, going_on: Callable[[], None], **__: Any) -> None:
        for _step in range(40):
            going_on()
            clock._passed_s += 1.0
        raise Ended

    config = write_config(tmp_path)
    loaded, plans = load(config)
    monkeypatch.setattr(process, "build", building)
    monkeypatch.setattr(process, "settle_heap", lambda: None)
    monkeypatch.setattr(process, "SystemClock", lambda: clock)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "ear"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "ear"))
        ear.setblocking(False)
        with pytest.raises(Ended):
            asyncio.run(process.live(config, loaded, plans))
        heard = []
        with suppress(BlockingIOError):
            while True:
                heard.append(ear.recv(4096).decode().splitlines()[0])
    wanted = seconds(*settings(UNIT)["TimeoutStartSec"]) * 1_000_000
    assert heard == [f"EXTEND_TIMEOUT_USEC={wanted}"] * 8
