"""A live agent among troubles: pushed events, a disk that fills, a clock that jumps, a stop, a restart, a reload."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from edge_agg import control, failpoint, process, telemetry
from edge_agg.agent import POLL_S, Agent
from edge_agg.assembly import build
from edge_agg.ceilings import Ceilings
from edge_agg.clock import wait_first
from edge_agg.config import load
from edge_agg.contract.plan import PlanHash
from edge_agg.contract.release import Charge, Status
from edge_agg.errors import JournalFull
from edge_agg.ingest.source import Cause, Frame, InletFull
from edge_agg.journal import Journal
from edge_agg.notify import Notifier
from edge_agg.privacy import noise
from edge_agg.privacy.ledger import Entry
from edge_agg.telemetry import Event
from tests.fakes import (
    DAY,
    MONDAY,
    FakeClock,
    FakeCollector,
    Row,
    batch_of,
    rest,
    small_plan,
    small_plan_text,
    write_config,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Inlet

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


@dataclass(slots=True)
class Pushed:
    """A source that a test pushes rows through."""

    name: str = "pushed"
    inlet: Inlet | None = field(default=None, init=False)
    behind: bool = False

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """All columns are there."""

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Hand over what `push` is given."""
        self.inlet = inlet
        inlet.is_current(not self.behind)
        if not drain:
            await stop.wait()

    async def push(self, *rows: Row) -> None:
        """Come back once the rows are safe."""
        assert self.inlet is not None
        frame = Frame(part=None, batch=batch_of(rows, small_plan()), rejected=0, last=True)
        await self.inlet.take(frame)


@dataclass
class Box:
    """A device: its folder, its clock, its collector; agents live on it one after another."""

    home: Path
    clock: FakeClock = field(default_factory=lambda: FakeClock(MONDAY + HOUR))
    wire: FakeCollector = field(default_factory=FakeCollector)
    config: Path = field(init=False)
    seen: list[list[int]] = field(default_factory=list)
    said: list[tuple[Event, dict[str, Any]]] = field(default_factory=list)

    def live(self, work: Callable[[Agent, Pushed], Any], *, killed: bool = False) -> Any:
        """One life: `work` happens while the agent runs, which is then stopped in order, or dropped as a kill would."""
        loaded, plans = load(self.config)

        async def life() -> Any:
            agent = build(loaded, plans, clock=self.clock, wire=self.wire)
            source, stop = Pushed(), asyncio.Event()
            agent.sources = [source]
            running = asyncio.create_task(agent.run(stop))
            try:
                await self.pass_time()
                done = await work(agent, source)
                if not killed:
                    stop.set()
                    await asyncio.wait_for(running, 10)
                return done
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                if agent.intake.spool is not None:
                    agent.intake.spool.close()
                agent.journal.close()

        return asyncio.run(life())

    async def pass_time(self, by: timedelta = timedelta(seconds=POLL_S)) -> None:
        """Let time pass, and the agent act on it."""
        await self.clock.advance(by)
        await rest()

    def events(self, *kinds: Event) -> list[Event]:
        """What was said, of some kinds."""
        return [event for event, _ in self.said if event in kinds]


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """Windows of a day; the noise is none, and noted."""
    box = Box(tmp_path)
    box.config = write_config(tmp_path, small_plan_text(every="1d", lateness="1h", max_rows=100), history=None)
    box.config.write_text(box.config.read_text().replace('kind = "file"\npath = "events/*.parquet"', 'kind = "stdin"'))

    def draw(mechanism: Any, scale: float, exact: Any) -> Any:
        box.seen.append(exact.tolist())
        return exact

    monkeypatch.setattr(noise, "draw", draw)
    monkeypatch.setattr(telemetry, "_watchers", [lambda event, fields: box.said.append((event, fields))])
    yield box
    failpoint.armed = None


def people(n: int, day: int = 0) -> list[Row]:
    """A row each of as many units."""
    return [Row(u=f"u{i}", t=MONDAY + day * DAY) for i in range(n)]


def test_pushed_rows_are_released_with_their_window_and_leave_the_disk(box: Box) -> None:
    """Guarantee: answered rows are in the release of their window; then nothing raw is left of them."""

    async def work(agent: Agent, source: Pushed) -> None:
        await source.push(*people(5))
        assert agent.intake.spool is not None
        assert agent.intake.spool.size_bytes > 0
        await box.pass_time(DAY)
        assert box.wire.windows == [MONDAY]
        assert agent.intake.spool.size_bytes == 0

    box.live(work)
    assert box.seen == [[5, 0, 0]]


@pytest.mark.parametrize("killed", [False, True])
def test_pushed_rows_outlive_the_agent(box: Box, killed: bool) -> None:  # noqa: FBT001 - a case
    """Guarantee: rows that were answered in one life are released in the next, once, whichever way the first ended."""

    async def first(agent: Agent, source: Pushed) -> None:
        await source.push(*people(5))

    async def second(agent: Agent, source: Pushed) -> None:
        await source.push(Row(u="another", t=MONDAY))
        await box.pass_time(DAY)

    box.live(first, killed=killed)
    box.live(second)
    assert box.seen == [[6, 0, 0]]
    assert box.wire.windows == [MONDAY]


class Full:
    """A disk that is full at one instant of the journal, as often as told."""

    def __init__(self, point: str, times: int) -> None:
        self.point, self.left = point, times

    def __call__(self, name: str) -> None:
        """Refuse to write."""
        if name == self.point and self.left:
            self.left -= 1
            raise apsw.FullError


@pytest.mark.parametrize("point", ["charge_uncommitted", "seal_uncommitted"])
def test_a_full_disk_holds_the_agent_until_there_is_room(box: Box, point: str) -> None:
    """Guarantee (A10): no charge, no draw; one draw, one seal; input is refused meanwhile; it recovers by itself."""

    async def work(agent: Agent, source: Pushed) -> None:
        await source.push(*people(5))
        agent.journal._ballast.give_up()
        failpoint.armed = Full(point, 3)
        await box.pass_time(DAY)
        assert box.wire.windows == []
        assert len(box.seen) == (0 if point == "charge_uncommitted" else 1)
        with pytest.raises(InletFull):
            await source.push(Row(t=MONDAY + DAY))
        for _ in range(3):
            await box.pass_time()
        assert box.wire.windows == [MONDAY]
        await source.push(Row(t=MONDAY + DAY))
        assert agent.journal.attempts(agent.series[0].hash, MONDAY) == 1

    box.live(work)
    assert box.seen == [[5, 0, 0]]
    assert box.events(Event.DISK_FULL, Event.DISK_RECOVERED) == [Event.DISK_FULL, Event.DISK_RECOVERED]
    assert box.wire.releases[0].status is Status.RELEASED


def test_a_source_that_stays_behind_is_said_once(box: Box) -> None:
    """Guarantee: behind for `hold`, it is told with its cause, and when it no longer is; a short while is not told.

    The supervisor's line names it meanwhile. Mutant: `tell_stalled` forgets what it told.
    """

    async def work(agent: Agent, source: Pushed) -> None:
        assert source.inlet is not None
        for minutes in (5, 25):
            source.inlet.is_current(False, Cause.REFUSED)
            for _ in range(minutes):
                await box.pass_time(MINUTE)
            assert process._how(agent) == "holding (source); 0 releases wait; pushed behind (refused)"
            source.inlet.is_current(True)
            await box.pass_time()
        assert process._how(agent) == "0 releases wait"

    box.live(work)
    told = [(event, said) for event, said in box.said if event in {Event.SOURCE_STALLED, Event.SOURCE_RECOVERED}]
    assert told == [
        (Event.SOURCE_STALLED, {"source": "pushed", "cause": "refused"}),
        (Event.SOURCE_RECOVERED, {"source": "pushed"}),
    ]


def test_a_used_up_spool_is_said_once(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A10): that raw events have used up their part of the disk is told, and when a sealed window ends it.

    Not how many fit, nor that a smaller frame still does. Mutant: each append that succeeds says that there is room.
    """
    monkeypatch.setattr(Ceilings, "spool_quota", lambda _: 96 << 10)

    async def fill(source: Pushed) -> None:
        for _ in range(100):
            await source.push(*people(1_000))

    async def work(agent: Agent, source: Pushed) -> None:
        await box.pass_time()
        assert control.holding(agent) is None
        for _ in range(3):
            with pytest.raises(InletFull):
                await fill(source)
            await source.push(*people(1))
            await box.pass_time()
            assert control.holding(agent) == "spool"
        await box.pass_time(DAY)
        assert control.holding(agent) is None
        await source.push(*people(1_000, day=1))

    box.live(work)
    assert box.events(Event.SPOOL_FULL, Event.SPOOL_RECOVERED) == [Event.SPOOL_FULL, Event.SPOOL_RECOVERED]
    assert box.wire.windows == [MONDAY]


def test_a_drain_on_a_full_disk_says_so(box: Box) -> None:
    """Guarantee (A10): a drain that could not close every window does not pass for one that did; the next one can."""
    box.config.write_text(box.config.read_text() + "\n[history]\nstart = 2013-01-07\nend = 2013-01-09\n")
    box.clock.time = MONDAY + 30 * DAY
    loaded, plans = load(box.config)

    async def drain(point: str | None) -> bool:
        agent = build(loaded, plans, clock=box.clock, wire=box.wire)
        agent.sources = [Pushed()]
        agent.journal._ballast.give_up()
        failpoint.armed = None if point is None else Full(point, 3)
        try:
            return await agent.drain(5.0)
        finally:
            assert agent.intake.spool is not None
            agent.intake.spool.close()
            agent.journal.close()

    with pytest.raises(JournalFull):
        asyncio.run(drain("seal_uncommitted"))
    assert box.wire.windows == []
    assert asyncio.run(drain(None))
    assert box.wire.windows == [MONDAY, MONDAY + DAY]


def test_an_ack_that_finds_no_room_is_asked_for_again(box: Box) -> None:
    """Guarantee (A10): the same bytes go again; the collector knows them; nothing is lost or doubled."""

    async def work(agent: Agent, source: Pushed) -> None:
        agent.journal._ballast.give_up()
        failpoint.armed = Full("ack_uncommitted", 2)
        await box.pass_time(DAY)
        for _ in range(5):
            await box.pass_time(MINUTE)
        assert agent.journal.unacked() == 0

    box.live(work)
    assert box.wire.windows == [MONDAY]
    assert len(box.wire.requests) >= 2
    assert len(set(box.wire.requests)) == 1


def _never_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_agg.timekeeper import Timekeeper

    monkeypatch.setattr(Timekeeper, "_judge", lambda self, wall, boot: None)
    monkeypatch.setattr(Agent, "_was_wrong", lambda *_: False)  # else the first window moves with the clock


@pytest.mark.parametrize("mutant", [None, _never_doubts])
def test_a_clock_that_jumps_closes_nothing_and_takes_nothing(
    box: Box, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee (A9): two days ahead, no window closes early; back again, all is as before. Mutant: it is believed."""
    if mutant is not None:
        mutant(monkeypatch)

    async def work(agent: Agent, source: Pushed) -> None:
        await source.push(*people(5))
        box.clock.time += 2 * DAY
        await box.pass_time()
        if mutant is None:
            with pytest.raises(InletFull):
                await source.push(Row(t=MONDAY))
        box.clock.time -= 2 * DAY
        await box.pass_time()
        await source.push(Row(u="late riser", t=MONDAY))
        await box.pass_time(DAY)

    box.live(work)
    assert (box.seen[0] == [6, 0, 0]) is (mutant is None)


def _looks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(self: Agent, stop: asyncio.Event) -> bool:
        await wait_first(self.intake.wait_current(self.tuning.hold), stop.wait())
        return not stop.is_set()

    monkeypatch.setattr(Agent, "_wait_current", wait)
    monkeypatch.setattr(Agent, "_now", property(lambda self: self.clock.now()))


@pytest.mark.parametrize("mutant", [None, _looks_once])
@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY])
def test_a_clock_that_jumps_while_a_source_is_behind_is_noticed(
    box: Box, monkeypatch: pytest.MonkeyPatch, jump: timedelta, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee (A9): windows that wait for a source close by a clock that was looked at after the wait.

    Mutant: the clock is looked at before the wait alone, and read again after it.
    """
    if mutant is not None:
        mutant(monkeypatch)

    async def work(agent: Agent, source: Pushed) -> None:
        assert source.inlet is not None
        await source.push(*people(5))
        source.inlet.is_current(False)
        await box.pass_time()
        box.clock.time += jump
        await box.pass_time(MINUTE)
        doubted = box.events(Event.CLOCK_DOUBTED)
        source.inlet.is_current(True)
        await box.pass_time()
        assert (doubted == [Event.CLOCK_DOUBTED] and box.wire.windows == []) is (mutant is None)
        if mutant is None:
            box.clock.time -= jump
            await box.pass_time()
            await source.push(Row(u="late riser", t=MONDAY))
            await box.pass_time(DAY)
            assert box.wire.windows == [MONDAY]

    box.live(work)
    assert (box.seen == [[6, 0, 0]]) is (mutant is None)


def test_a_box_that_boots_in_1970_begins_when_its_clock_is_set(box: Box) -> None:
    """Guarantee (A9): no windows of the years between, nothing removed; the first one is the one it is in."""
    box.clock.time = MONDAY.replace(year=1970)

    async def work(agent: Agent, source: Pushed) -> None:
        with pytest.raises(InletFull):
            await source.push(Row())
        await box.pass_time(HOUR)
        assert box.wire.windows == []
        box.clock.time = MONDAY + HOUR
        await box.pass_time()
        await source.push(*people(3))
        await box.pass_time(DAY)
        assert box.wire.windows == [MONDAY]

    box.live(work)
    assert box.seen == [[3, 0, 0]]


def _stays_where_it_was_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agent, "_was_wrong", lambda *_: False)


@pytest.mark.parametrize("mutant", [None, _stays_where_it_was_noted])
def test_a_first_start_by_an_old_clock_brings_no_windows_of_the_time_between(
    box: Box, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee (A9): a clock that shows last autumn until NTP sets it charges nothing for the winter.

    Mutant: what was noted by the old clock stays.
    """
    if mutant is not None:
        mutant(monkeypatch)
    box.clock.time = MONDAY - 100 * DAY

    async def work(agent: Agent, source: Pushed) -> None:
        await source.push(Row(t=box.clock.time))
        await box.pass_time(MINUTE)
        box.clock.time = MONDAY + HOUR
        await box.pass_time()
        await box.pass_time(HOUR + MINUTE)
        await source.push(*people(3))
        await box.pass_time(DAY)
        assert agent.series[0].open_windows == []

    async def again(agent: Agent, source: Pushed) -> None:
        await box.pass_time(DAY)

    box.live(work)
    box.live(again)
    assert (box.wire.windows == [MONDAY, MONDAY + DAY]) is (mutant is None)
    assert ([row for row in box.seen if any(row)] == [[3, 0, 0]]) is (mutant is None)


def test_a_first_run_that_the_disk_has_no_room_to_note_is_noted_later(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee (A10): a full disk at the first start ends nothing; nothing is taken in until there is room.

    Mutant: the agent ends with the error.
    """

    def full(*_: object) -> None:
        raise JournalFull

    async def work(agent: Agent, source: Pushed) -> None:
        with pytest.raises(InletFull):
            await source.push(Row(t=MONDAY))
        await box.pass_time(2 * DAY)
        assert box.wire.windows == []
        patch.undo()
        await box.pass_time()
        await source.push(*people(2, day=2))
        await box.pass_time(DAY)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "note_first_run", full)
        box.live(work)
    assert box.wire.windows == [MONDAY + i * DAY for i in range(3)]
    assert box.events(Event.DISK_FULL, Event.DISK_RECOVERED) == [Event.DISK_FULL, Event.DISK_RECOVERED]


def test_windows_wait_for_a_source_that_is_behind_and_not_for_ever(box: Box) -> None:
    """Guarantee: a broker that is away holds windows for `hold`, and no longer."""

    async def work(agent: Agent, source: Pushed) -> None:
        assert source.inlet is not None
        agent.tuning.hold = 2 * HOUR
        await box.pass_time(DAY - 2 * HOUR + MINUTE)
        source.inlet.is_current(False)
        await box.pass_time(HOUR)
        await box.pass_time(30 * MINUTE)
        assert box.wire.windows == []
        await box.pass_time(31 * MINUTE)
        assert box.wire.windows == [MONDAY]

    box.live(work)


def test_a_stop_sends_what_is_sealed(box: Box) -> None:
    """Guarantee: SIGTERM's way out: what is sealed goes up within `stop_s`, what is open stays for the next life."""

    async def work(agent: Agent, source: Pushed) -> None:
        await source.push(*people(5))
        box.wire.faults.extend(["drop_request"])
        await box.pass_time(DAY)
        assert box.wire.windows == []
        await source.push(Row(t=MONDAY + DAY))

    box.live(work)
    assert box.wire.windows == [MONDAY]
    assert box.seen == [[5, 0, 0]]


def _each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agent, "_stop_left_s", lambda self: self.tuning.stop_s)


@pytest.mark.parametrize("mutant", [None, _each_for_itself])
def test_a_stop_takes_no_longer_than_it_may(
    box: Box, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee: what is still under way, what waits to be taken in and what is sealed share `stop_s`.

    Mutant: each of the three may take as long.
    """
    if mutant is not None:
        mutant(monkeypatch)
    asked: list[float] = []
    honest = Agent._stop_left_s

    def noted(self: Agent) -> float:
        asked.append(honest(self))
        return asked[-1]

    deliver = Pushed.deliver

    async def lingering(self: Pushed, *args: Any, **more: Any) -> None:
        await deliver(self, *args, **more)
        await asyncio.Event().wait()

    async def work(agent: Agent, source: Pushed) -> None:
        agent.tuning.stop_s = 0.02

    monkeypatch.setattr(Agent, "_stop_left_s", noted)
    monkeypatch.setattr(Pushed, "deliver", lingering)
    box.live(work)
    assert (asked == pytest.approx([0.02, 0.0, 0.0], abs=1e-3)) is (mutant is None)


def test_weeks_offline_are_caught_up_in_batches_oldest_first(box: Box) -> None:
    """Guarantee (A11): every window is encoded once; on reconnect they go up in order, in batches, as sealed."""
    box.wire.faults.extend(["drop_request"] * 100_000)

    async def work(agent: Agent, source: Pushed) -> None:
        for day in range(40):
            await source.push(*people(3, day))
            await box.pass_time(DAY)
        assert agent.journal.unacked() == 39 + (box.clock.now() >= MONDAY + 40 * DAY + HOUR)
        box.wire.faults.clear()
        before = len(box.wire.requests)
        for _ in range(10):
            await box.pass_time(MINUTE)
        assert agent.journal.unacked() == 0
        sent = box.wire.requests[before:]
        assert len(sent) <= 6

    box.live(work)
    assert box.wire.windows == [MONDAY + i * DAY for i in range(len(box.wire.windows))]
    assert len(box.wire.windows) >= 39
    assert len(box.seen) == len(box.wire.windows)


def test_a_reload_changes_tuning_and_nothing_else(box: Box) -> None:
    """Guarantee: tuning is taken over; an account, a plan or a policy that forbids one is refused, and said.

    Mutant: the plans that were read again are not looked at.
    """
    plan, policy = box.home / "plan0.toml", box.home / "policy.toml"
    policy.write_text("")
    box.config.write_text(box.config.read_text().replace("[agent]", '[agent]\npolicy = "policy.toml"'))
    old, _ = load(box.config)
    texts = {path: path.read_text() for path in (box.config, plan, policy)}

    async def work(agent: Agent, source: Pushed) -> None:
        def reload(path: Path, changed: str) -> None:
            path.write_text(changed)
            process.reload(agent, box.config, old, Notifier())
            path.write_text(texts[path])

        tuned = texts[box.config].replace("[collector]", '[memory]\nlimit = "300MiB"\n\n[collector]\nbatch = 7')
        reload(box.config, tuned)
        assert (agent.ceilings.memory_bytes, agent.uplink.batch) == (300 << 20, 7)
        reload(policy, "[columns]\ndenied = ['pilot']\n")  # forbids nothing that is asked
        reload(box.config, texts[box.config].replace("epsilon = 20.0", "epsilon = 30.0"))
        reload(plan, texts[plan].replace("max_rows_per_partition = 100", "max_rows_per_partition = 99"))
        reload(policy, "[plans]\nallowed = []\n")
        reload(policy, "[plans]\nallowed = 3\n")

    box.live(work)
    told = [(event, said.get("reason")) for event, said in box.said if event.value.startswith("config_")]
    assert told == [
        (Event.CONFIG_RELOADED, None),
        (Event.CONFIG_RELOADED, None),
        (Event.CONFIG_REFUSED, "more than tuning differs"),
        (Event.CONFIG_REFUSED, "a plan differs"),
        (Event.CONFIG_REFUSED, "the policy forbids other plans"),
        (Event.CONFIG_REFUSED, "invalid"),
    ]


def test_a_reload_judges_the_policy_as_the_start_did(box: Box) -> None:
    """Guarantee: delta that a retired plan took for keys is set apart by the account, and forbids nothing.

    Mutant: a reload holds the policy against what is left of the account.
    """
    policy = box.home / "policy.toml"
    policy.write_text('[horizon]\nover = "365d"\nepsilon = 1000.0\ndelta = 1e-8\n')
    box.config.write_text(box.config.read_text().replace("[agent]", '[agent]\npolicy = "policy.toml"'))
    old, _ = load(box.config)

    async def spend(agent: Agent, _: Pushed) -> None:
        entry = Entry(window_start=MONDAY - 30 * DAY, charge=Charge(rho=Fraction(1, 10**6), delta=Fraction(1, 10**7)))
        agent.journal.charge(account="people", plan_hash=PlanHash(b"k" * 32), name="keys", text="", entry=entry)

    async def reload(agent: Agent, _: Pushed) -> None:
        assert agent.series[0].account.budget.delta > 0
        process.reload(agent, box.config, old, Notifier())

    box.live(spend)
    box.live(reload)
    told = [(event, said.get("reason")) for event, said in box.said if event.value.startswith("config_")]
    assert told == [(Event.CONFIG_RELOADED, None)]
