"""Record and replay of a live agent (promise A4): what it says while it follows a file tells nothing of single lines.

The agent runs over a file that grows between its looks, and over the same file with one unit's lines more, some of them
in looks that find nothing else. What leaves is compared with the moment at which it left: requests, events, status.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pytest

from edge_agg import control, telemetry
from edge_agg.agent import POLL_S
from edge_agg.assembly import build
from edge_agg.config import load
from edge_agg.ingest.source import Part
from edge_agg.privacy import noise
from edge_agg.report import state, status
from edge_agg.report.live import Live
from tests.fakes import MONDAY, FakeClock, FakeCollector, frozen_noise, rest, small_plan_text, write_config

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agg.agent import Agent
    from edge_agg.config import Config
    from edge_agg.contract.plan import Plan
    from edge_agg.telemetry import Event

pytestmark = pytest.mark.slow

LOOKS = 4
"""How often the agent looks at the file before its window closes."""


class Left(NamedTuple):
    """Everything that left the device."""

    requests: list[bytes]
    events: list[tuple[str, str, dict[str, str]]]
    """When, what, and with what."""
    statuses: list[dict[str, Any]]
    """`edge-agg status --json` after each look."""


def line(unit: str, look: int) -> str:
    """One event, shortly before a look."""
    at = MONDAY + timedelta(hours=1, seconds=look * POLL_S)
    return json.dumps({"t": at.isoformat(), "u": unit, "k": "a", "x": 1.0}) + "\n"


def asked(agent: Agent, clock: FakeClock, config: Config, plans: Sequence[Plan]) -> dict[str, Any]:
    """What `edge-agg status --json` says of a running agent."""
    facts = control.facts_of(agent, clock)()
    live = msgspec.json.decode(json.dumps(facts), type=Live)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "ask", lambda _: live)
        return status.as_json(state.look(config, plans, now=clock.now()))


def left(looks: Sequence[Sequence[str]]) -> Left:
    """Let an agent live for a day over a file that has grown by these units' lines before each of its looks."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        home, wire, clock = Path(folder), FakeCollector(), FakeClock(MONDAY + timedelta(hours=1))
        said: list[tuple[str, str, dict[str, str]]] = []

        def hear(event: Event, fields: dict[str, str | int | float]) -> None:
            shown = {name: str(value).replace(folder, "") for name, value in fields.items()}
            said.append((clock.now().isoformat(), event.value, shown))

        path = write_config(home, small_plan_text(every="1d", max_rows=100), history=None)
        path.write_text(path.read_text().replace('"file"', '"tail"').replace("*.parquet", "app.log"))
        (home / "events").mkdir()
        file = home / "events" / "app.log"
        file.touch()
        patch.setattr(noise, "draw", frozen_noise)
        patch.setattr(telemetry, "_watchers", [hear])
        patch.setattr(secrets, "token_hex", lambda n: "ab" * n)
        patch.setattr(secrets, "token_bytes", lambda n: b"s" * n)
        patch.setattr(control, "resident_bytes", lambda: 150 << 20)
        config, plans = load(path)
        statuses = []

        async def life() -> None:
            agent, stop = build(config, plans, clock=clock, wire=wire), asyncio.Event()
            running = asyncio.create_task(agent.run(stop))
            try:
                await rest()
                for look, units in enumerate(looks):
                    with file.open("a") as log:
                        log.writelines(line(unit, look) for unit in units)
                    await clock.advance(timedelta(seconds=POLL_S))
                    await rest()
                    statuses.append(asked(agent, clock, config, plans))
                await clock.advance(timedelta(days=1))
                await rest()
                stop.set()
                await asyncio.wait_for(running, 10)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await agent.close()

        asyncio.run(life())
        for one in statuses:
            one["sources"] = [source | {"name": source["name"].replace(folder, "")} for source in one["sources"]]
            one["disk_free"] = None  # of a disk that others write to meanwhile
        return Left(wire.requests, said, statuses)


OTHERS = [["u1", "u2"], [], ["u3"], []]
WITH_MINE = [["u1", "u2"], ["mine", "mine"], ["u3", "mine"], ["mine"]]


def test_following_a_file_tells_nothing_of_one_unit() -> None:
    """Guarantee (A4): the same requests, events and status, at the same moments, with and without a unit's lines."""
    one, other = left(OTHERS), left(WITH_MINE)
    assert one == other
    assert len(one.requests) > 0
    assert len(one.statuses) == LOOKS


def test_an_event_for_each_stretch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a stretch of a file that grows is told like a file that was read to its end."""
    monkeypatch.setattr(Part, "is_stretch", property(lambda _: False))
    assert left(OTHERS).events != left(WITH_MINE).events


def test_exact_sizes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the status tells sizes to the byte; the journal notes each look that found lines."""
    monkeypatch.setattr(status, "_tenths", lambda count, _limit: count)
    assert left(OTHERS).statuses != left(WITH_MINE).statuses
