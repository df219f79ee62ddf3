"""The agent as a whole: files in, releases out, and on neighbouring data the same bytes, events and exit."""

from __future__ import annotations

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np
import pytest

from edge_agg import ceilings, failpoint, telemetry
from edge_agg.agent import FUTURE, POLL_S, Agent
from edge_agg.assembly import build
from edge_agg.config import load
from edge_agg.contract.release import Status
from edge_agg.errors import ClockDoubted, ConfigInvalid, Fenced, JournalFailed, SourceUnreadable
from edge_agg.ingest.file import FileSource
from edge_agg.journal import Journal
from edge_agg.privacy import noise
from edge_agg.privacy.measurement import Measurement, units_of_keys
from edge_agg.series import Series
from edge_agg.telemetry import Event
from tests.fakes import (
    COUNT,
    DAY,
    DROP_REQUEST,
    MEAN,
    MONDAY,
    SUM,
    WEEK,
    FakeClock,
    FakeCollector,
    Row,
    frozen_noise,
    recorder,
    rest,
    small_plan_text,
    unavailable,
    write_config,
    write_events,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from edge_agg.privacy.bound import Bounded

LATER = MONDAY + 52 * WEEK
"""When the tests run, where the past is read."""
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanisms answer the same whatever the data; the tests here are about all the rest."""
    monkeypatch.setattr(noise, "draw", frozen_noise)


def with_agent(
    config: Path, work: Callable[[Agent], Awaitable[Any]], *, wire: FakeCollector, clock: FakeClock | None = None
) -> Any:
    """Build an agent, do something with it, and let go of its folder."""
    loaded, plans = load(config)

    async def live() -> Any:
        built = build(loaded, plans, clock=clock or FakeClock(LATER), wire=wire)
        try:
            return await work(built)
        finally:
            built.journal.close()

    return asyncio.run(live())


def drain(config: Path, wire: FakeCollector, clock: FakeClock | None = None, *, patience_s: float = 5.0) -> bool:
    """Run the agent once, as `run --drain` does."""
    return bool(with_agent(config, lambda agent: agent.drain(patience_s), wire=wire, clock=clock))


def test_a_drain_releases_every_window_of_the_history(tmp_path: Path) -> None:
    """Guarantee: with a public span, which windows exist is public: all of it, also where there are no rows."""
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY + WEEK)])
    wire = FakeCollector()
    assert drain(write_config(tmp_path), wire)
    assert wire.windows == [MONDAY + i * WEEK for i in range(4)]
    assert {release.status for release in wire.releases} == {Status.RELEASED}


def test_without_a_history_the_data_says_which_windows_there_are(tmp_path: Path) -> None:
    """Not protected, and said by `check`: from the first window with rows to the last, the empty ones between."""
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY + WEEK), Row(t=MONDAY + 3 * WEEK)])
    wire = FakeCollector()
    assert drain(write_config(tmp_path, history=None), wire)
    assert wire.windows == [MONDAY + i * WEEK for i in (1, 2, 3)]


@pytest.mark.parametrize("history", [None, ("2013-01-07", "2013-02-04")])
def test_a_second_drain_sends_nothing(tmp_path: Path, history: tuple[str, str] | None) -> None:
    """Guarantee: what was released is neither drawn nor sent again."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, wire = write_config(tmp_path, history=history), FakeCollector()
    assert drain(config, wire)
    sent = len(wire.requests)
    assert drain(config, wire)
    assert len(wire.requests) == sent


def test_a_new_file_brings_only_new_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: late rows of a new file stay out, and so do the rows of old files.

    Without a history every file is opened again: which ones were would tell of their rows (A4).
    """
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, wire = write_config(tmp_path, history=None), FakeCollector()
    assert drain(config, wire)
    write_events(tmp_path / "events" / "b.parquet", [Row(u="late"), Row(u="2", t=MONDAY + WEEK, k="b")])
    opened: list[str] = []
    honest = FileSource._part_frames

    def spy(self: FileSource, part: Any, columns: Any) -> Any:
        opened.append(part.path.rpartition("/")[2])
        return honest(self, part, columns)

    monkeypatch.setattr(FileSource, "_part_frames", spy)
    assert drain(config, wire)
    assert opened == ["a.parquet", "b.parquet"]
    assert wire.windows == [MONDAY, MONDAY + WEEK]
    assert seen == [[1, 0, 0], [0, 1, 0]]


def test_a_part_with_rows_of_an_open_window_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what was read and not released is not forgotten over a restart, nor counted twice."""
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    write_events(tmp_path / "events" / "a.parquet", [Row(), Row(u="2", t=MONDAY + WEEK)])
    config, wire = write_config(tmp_path), FakeCollector()

    async def first_window(agent: Agent) -> None:
        agent._begin()
        await agent._with_intake(agent._deliver_all())
        await agent._close_until(lambda _: MONDAY + WEEK + HOUR)

    with_agent(config, first_window, wire=wire)
    assert drain(config, wire)
    assert seen == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert wire.windows == [MONDAY + i * WEEK for i in range(4)]


def test_one_source_is_read_once_for_all_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: two plans over one source see the same rows out of one reading, and spend by window, then config."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config = write_config(tmp_path, small_plan_text(name="one"), small_plan_text(COUNT, SUM, name="two"))
    reads: list[object] = []
    honest = FileSource._part_frames

    def counted(self: FileSource, part: Any, columns: Any) -> Any:
        reads.append(part)
        return honest(self, part, columns)

    monkeypatch.setattr(FileSource, "_part_frames", counted)
    wire = FakeCollector()
    assert drain(config, wire)
    assert len(reads) == 1
    assert [(r.window_start, r.plan) for r in wire.releases] == [
        (MONDAY + i * WEEK, plan) for i in range(4) for plan in ("one", "two")
    ]


def test_bad_rows_are_counted_on_the_device_alone(tmp_path: Path, said: list[tuple[Event, dict[str, Any]]]) -> None:
    """Guarantee (A7): values of the wrong type are skipped and counted locally; nothing about them is said."""
    events = tmp_path / "events"
    events.mkdir()
    good = '{"t":"2013-01-08T00:00:00Z","u":"1","k":"a","x":1.5}'
    bad = ['{"t":"yesterday-7777777","u":"1","k":"a","x":1}', '{"t":"2013-01-08","u":"1","k":"a","x":"7777777x"}']
    (events / "a.ndjson").write_text("\n".join([good, *bad, good]))
    config, wire = write_config(tmp_path), FakeCollector()
    config.write_text(config.read_text().replace("*.parquet", "*.ndjson"))
    counts: dict[str, int] = {}

    async def work(agent: Agent) -> bool:
        drained = await agent.drain(5.0)
        counts.update(agent.journal.local_counts())
        return drained

    assert with_agent(config, work, wire=wire)
    assert counts == {"rejected": 2}
    assert "7777777" not in repr(said) + repr(wire.requests)


def test_a_drain_that_cannot_send_says_so_and_loses_nothing(tmp_path: Path) -> None:
    """Guarantee (A11): False, and the next run sends what was sealed."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, wire = write_config(tmp_path), FakeCollector()
    wire.faults.extend([DROP_REQUEST] * 1000)
    assert drain(config, wire, FakeClock(LATER, jumps=True)) is False
    assert wire.releases == []
    first = wire.requests[-1]
    wire.faults.clear()
    wire.requests.clear()
    assert drain(config, wire)
    assert wire.requests[0] == first
    assert len(wire.releases) == 4


def test_a_drain_that_does_not_fit_its_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A12): it ends and names the limit, where waiting would be for ever; nothing was charged."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    monkeypatch.setattr(ceilings, "resident_bytes", lambda: 1 << 50)
    config, wire = write_config(tmp_path), FakeCollector()

    async def work(agent: Agent) -> None:
        with pytest.raises(ConfigInvalid, match="memory"):
            await asyncio.wait_for(agent.drain(5.0), 10)
        assert agent.journal.entries("people") == []

    with_agent(config, work, wire=wire)


def test_no_source_stops_the_agent_before_anything_is_charged(tmp_path: Path) -> None:
    """Guarantee: fail fast: no file, no window, no charge."""
    config, wire = write_config(tmp_path), FakeCollector()

    async def work(agent: Agent) -> None:
        with pytest.raises(SourceUnreadable):
            await agent.drain(5.0)
        assert agent.journal.entries("people") == []

    with_agent(config, work, wire=wire)


def test_rows_from_the_future_open_no_windows_ahead(tmp_path: Path) -> None:
    """Guarantee: a wrong clock somewhere is not worth a release: later than a day from now is dropped."""
    now = MONDAY + 3 * DAY
    write_events(tmp_path / "events" / "a.parquet", [Row(), Row(u="9", t=now + FUTURE), Row(u="9", t=LATER)])
    wire = FakeCollector()
    assert drain(write_config(tmp_path, history=None), wire, FakeClock(now))
    assert wire.windows == [MONDAY]


def test_an_agent_that_boots_in_1970_releases_nothing(tmp_path: Path) -> None:
    """Guarantee (A9): before the clock is right nothing is released or removed, and a drain does not say it is done."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, wire = write_config(tmp_path, history=None), FakeCollector()
    with pytest.raises(ClockDoubted, match="unset"):
        drain(config, wire, FakeClock(datetime(1970, 1, 1, tzinfo=UTC)))
    assert wire.releases == []
    assert drain(config, wire)
    assert wire.windows == [MONDAY]


# Live


class Live:
    """A live agent under a virtual clock."""

    def __init__(self, agent: Agent, clock: FakeClock) -> None:
        self.agent, self.clock = agent, clock
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(agent.run(self.stop))

    async def pass_time(self, by: timedelta = timedelta(seconds=POLL_S)) -> None:
        """Let time pass, and the agent act on it."""
        await self.clock.advance(by)
        await rest()

    async def end(self) -> None:
        """Stop."""
        self.stop.set()
        await asyncio.wait_for(self.task, 10)


def test_a_drain_whose_clock_went_back_says_so_and_sends_what_was_sealed(tmp_path: Path) -> None:
    """Guarantee (A9): nothing new is drawn, what waits goes up, and whoever started it hears of it.

    Mutant: a clock that is not believed counts as nothing to do.
    """
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, wire = write_config(tmp_path, history=None), FakeCollector()
    wire.faults.extend([DROP_REQUEST] * 1000)
    for day in (0, 2):
        assert not drain(config, wire, FakeClock(LATER + day * DAY, jumps=True))
    wire.faults.clear()
    write_events(tmp_path / "events" / "b.parquet", [Row(t=MONDAY + WEEK)])
    with pytest.raises(ClockDoubted, match="behind"):
        drain(config, wire, FakeClock(LATER + DAY))
    assert wire.windows == [MONDAY]
    assert drain(config, wire, FakeClock(LATER + 3 * DAY))
    assert wire.windows == [MONDAY, MONDAY + WEEK]


def _judges_once(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Agent._may_draw
    judged: set[datetime] = set()

    def may_draw(self: Agent, series: Series, start: datetime) -> bool:
        again = start in judged
        judged.add(start)
        return again or honest(self, series, start)

    monkeypatch.setattr(Agent, "_may_draw", may_draw)


@pytest.mark.parametrize("mutant", [None, _judges_once])
def test_a_fence_between_two_windows_stops_the_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee (B6): once a receipt says so, no further window is charged or drawn; and the drain says why.

    Mutant: whether windows may be drawn is judged once for all that are due.
    """
    if mutant is not None:
        mutant(monkeypatch)
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, wire = write_config(tmp_path, history=("2013-01-07", "2013-12-30")), FakeCollector()
    wire.refuse[1] = "fenced"

    async def work(agent: Agent) -> int:
        with pytest.raises(Fenced):
            await agent.drain(5.0)
        return len(agent.journal.entries("people"))

    charged = with_agent(config, work, wire=wire)
    assert (0 < charged < 10) is (mutant is None)


def live(config: Path, wire: FakeCollector, clock: FakeClock, work: Callable[[Live], Awaitable[None]]) -> None:
    """Do something with a live agent."""

    async def run(agent: Agent) -> None:
        running = Live(agent, clock)
        try:
            await running.pass_time()
            await work(running)
        finally:
            await running.end()

    with_agent(config, run, wire=wire, clock=clock)


def daily(tmp_path: Path, history: tuple[str, str] | None = None) -> Path:
    """The config of a live agent with windows of a day."""
    return write_config(tmp_path, small_plan_text(every="1d", lateness="1h"), history=history)


def test_a_live_window_closes_when_the_clock_is_past_its_end_and_lateness(tmp_path: Path) -> None:
    """Guarantee: not a poll earlier, whatever times the rows claim; empty windows close too."""
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY + 7 * HOUR), Row(t=MONDAY + 30 * HOUR)])
    wire, clock = FakeCollector(), FakeClock(MONDAY + 6 * HOUR)

    async def work(running: Live) -> None:
        await running.pass_time(MONDAY + DAY + HOUR - clock.now() - timedelta(seconds=1))
        assert wire.windows == []
        await running.pass_time()
        assert wire.windows == [MONDAY]
        await running.pass_time(3 * DAY)
        assert wire.windows == [MONDAY + i * DAY for i in range(4)]

    live(daily(tmp_path), wire, clock, work)


def test_a_live_agent_has_no_windows_before_it_was_created(tmp_path: Path) -> None:
    """Guarantee: the first window is the one that the journal was created in, not one that a row names."""
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY - 40 * DAY), Row(t=MONDAY)])
    wire, clock = FakeCollector(), FakeClock(MONDAY + HOUR)

    async def work(running: Live) -> None:
        await running.pass_time(2 * DAY - HOUR)
        assert wire.windows == [MONDAY]

    live(daily(tmp_path), wire, clock, work)
    clock.time += DAY
    live(daily(tmp_path), wire, clock, work=_nothing)
    assert wire.windows == [MONDAY, MONDAY + DAY]


def _begins_with_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "first_run", lambda self, _: self.created)


@pytest.mark.parametrize("mutant", [None, _begins_with_the_journal])
def test_a_plan_that_is_added_later_begins_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee: on an old journal a new plan, or a new version, charges and releases no window from before it ran.

    From then on it has all of them, also those that a later restart finds due. Mutant: it begins with the journal.
    """
    if mutant is not None:
        mutant(monkeypatch)
    one, two = (small_plan_text(name=name, every="1d", lateness="1h", epsilon=0.1) for name in ("one", "two"))
    wire, clock = FakeCollector(), FakeClock(MONDAY + HOUR)
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY)])

    async def days(running: Live) -> None:
        await running.pass_time(2 * DAY)

    for plans in ((one,), (one, two), (one, two)):
        live(write_config(tmp_path, *plans, history=None), wire, clock, days)
        clock.time += 10 * DAY
    found = {name: [r.window_start for r in wire.releases if r.plan == name] for name in ("one", "two")}
    assert found["one"] == [MONDAY + i * DAY for i in range(26)]
    assert (found["two"] == [MONDAY + i * DAY for i in range(12, 26)]) is (mutant is None)


async def _nothing(_: Live) -> None:
    """Only live and end."""


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY])
def test_a_clock_that_jumps_releases_no_window_twice(tmp_path: Path, jump: timedelta) -> None:
    """Guarantee (A9): windows are numbered against the stored high-water mark."""
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY)])
    wire, clock = FakeCollector(), FakeClock(MONDAY + HOUR)

    async def work(running: Live) -> None:
        await running.pass_time(3 * DAY)
        clock.time += jump
        await running.pass_time()
        clock.time -= jump
        await running.pass_time()
        await running.pass_time(DAY)

    live(daily(tmp_path), wire, clock, work)
    keys = [key for key, _ in wire.presented]
    assert len(set(keys)) == len(keys)
    assert wire.windows == [MONDAY + i * DAY for i in range(len(keys))]


def test_a_live_agent_finds_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives while it runs is in its window."""
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY)])
    wire, clock = FakeCollector(), FakeClock(MONDAY + HOUR)

    async def work(running: Live) -> None:
        write_events(tmp_path / "events" / "b.parquet", [Row(u="2", t=MONDAY + HOUR)])
        await running.pass_time()
        await running.pass_time(2 * DAY - 2 * HOUR)

    live(daily(tmp_path), wire, clock, work)
    assert seen == [[2, 0, 0]]


def test_files_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    """Guarantee (A12): of a file a day, taken away the day after, the agent remembers those that windows could take.

    Mutant: `Intake.forget_parts` forgets nothing.
    """
    folder, held = tmp_path / "events", []

    async def work(running: Live) -> None:
        for day in range(12):
            write_events(folder / f"{day}.parquet", [Row(t=running.clock.now())])
            (folder / f"{day - 1}.parquet").unlink(missing_ok=True)
            await running.pass_time()
            held.append(len(running.agent.intake._inlets[running.agent.sources[0].name].done()))
            assert running.agent.intake.rows == day + 1, "none is read twice"
            await running.pass_time(DAY - timedelta(seconds=POLL_S))

    live(daily(tmp_path), FakeCollector(), FakeClock(MONDAY + HOUR), work)
    assert max(held) == held[-1] <= 4


def test_a_file_that_is_written_anew_is_remembered_as_it_is(tmp_path: Path) -> None:
    """Guarantee (A12): one file that is replaced for ever is one part. Mutant: parts are kept in a set."""
    path = tmp_path / "events" / "latest.parquet"

    async def work(running: Live) -> None:
        for i in range(5):
            write_events(path, [Row(u=f"{i}-{n}") for n in range(i + 1)])
            await running.pass_time()
            [part] = running.agent.intake._inlets[running.agent.sources[0].name].done()
            assert part.mtime_ns == path.stat().st_mtime_ns

    live(daily(tmp_path), FakeCollector(), FakeClock(MONDAY + HOUR), work)


def test_a_live_agent_stops_closing_at_the_end_of_a_history(tmp_path: Path) -> None:
    """Guarantee: a public span that is over gets no further, empty, charged windows (tried: one a day, for ever)."""
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY)])
    wire = FakeCollector()

    async def work(running: Live) -> None:
        await running.pass_time(30 * DAY)
        await running.pass_time(30 * DAY)

    live(daily(tmp_path, history=("2013-01-07", "2013-01-10")), wire, FakeClock(MONDAY + HOUR), work)
    assert wire.windows == [MONDAY, MONDAY + DAY, MONDAY + 2 * DAY]


def test_a_live_agent_does_not_grow_while_it_idles(tmp_path: Path) -> None:
    """Guarantee (A12): polling leaves no tasks behind."""
    write_events(tmp_path / "events" / "a.parquet", [Row(t=MONDAY)])

    async def work(running: Live) -> None:
        before = len(asyncio.all_tasks())
        for _ in range(20):
            await running.pass_time()
        assert len(asyncio.all_tasks()) <= before + 2

    live(daily(tmp_path), FakeCollector(), FakeClock(MONDAY + HOUR), work)


def test_a_failed_journal_stops_a_drain_before_the_next_charge(tmp_path: Path) -> None:
    """Guarantee (A2): once an ack could not be stored, nothing more is charged or drawn."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, wire = write_config(tmp_path, history=("2013-01-07", "2013-12-30")), FakeCollector()

    async def work(agent: Agent) -> None:
        def armed(name: str) -> None:
            if name == "ack_uncommitted":
                raise apsw.IOError

        failpoint.armed = armed
        with pytest.raises(JournalFailed):
            await agent.drain(5.0)
        failpoint.armed = None
        agent.journal = Journal.read(tmp_path / "state", "node")
        assert len(agent.journal.entries("people")) < 10

    with_agent(config, work, wire=wire)


# Record and replay: promise A4

WEIRD = [
    Row(u="X", t=MONDAY + 2 * DAY, k="a", x=float("nan")),
    Row(u="X", t=MONDAY + 2 * DAY, k="no such key 7777777", x=float("inf")),
    Row(u="X", t=MONDAY + 8 * DAY, k=None, x=-1e308),
    Row(u="X", t=None, x=None),
    Row(u="X", t=MONDAY - 300 * DAY),
    Row(u="X", t=datetime(2190, 1, 1, tzinfo=UTC)),
    Row(u="X", t=MONDAY + 27 * DAY, x=7_777_777.0),
    *[Row(u="X", t=MONDAY + i * HOUR, k="ab"[i % 2]) for i in range(300)],
]
SHAPE = 'name = "shape"\nkind = "histogram"\ncolumn = "x"\nedges = [0.0, 1.0, 2.0]'
ALWAYS = [
    Row(u=f"v{i}", t=MONDAY + week * WEEK, k=key) for week in range(4) for i, key in enumerate("aabbb", start=10 * week)
]
"""In each week new units with the keys `a` and `b`, so that the selection answers something."""
OTHERS = [Row(u=f"u{i % 5}", t=MONDAY + i * DAY, k="abz"[i % 3], x=float(i)) for i in range(26)]


def record(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rows: list[Row],
    *,
    history: bool = True,
    runs: int = 1,
) -> tuple[list[bytes], list[tuple[Event, dict[str, Any]]], list[bool]]:
    """Run on some rows, in files of the same names; everything that leaves: requests, events, exit."""
    home = tmp_path / name
    write_events(home / "events" / "a.parquet", rows[: len(rows) // 2])
    write_events(home / "events" / "b.parquet", rows[len(rows) // 2 :])
    plans = (
        small_plan_text(COUNT, name="one"),
        small_plan_text(COUNT, MEAN, SUM, name="two"),
        small_plan_text(COUNT, SHAPE, name="found", discover=1e-9, max_windows=2),
    )
    config = write_config(home, *plans, history=("2013-01-07", "2013-02-04") if history else None, epsilon=2.0)
    wire = FakeCollector()
    wire.faults.extend([unavailable(), DROP_REQUEST, "drop_response"])
    heard: list[tuple[Event, dict[str, Any]]] = []
    with monkeypatch.context() as patch:
        patch.setattr(telemetry, "_watchers", [lambda event, fields: heard.append((event, fields))])
        patch.setattr(secrets, "token_hex", lambda n: "ab" * n)
        patch.setattr(secrets, "token_bytes", lambda n: b"s" * n)
        patch.setattr("edge_agg.assembly.random.random", lambda: 0.5)
        exits = [drain(config, wire, FakeClock(LATER, jumps=True)) for _ in range(runs)]
    said = [(event, {k: str(v).replace(str(home), "") for k, v in fields.items()}) for event, fields in heard]
    return wire.requests, said, exits


class FrozenSelection:
    """Stands in for the noisy selection: on one run every key that is `a` or `b` passes, on the next the same ones."""

    def __init__(self) -> None:
        self.answers: list[list[str]] = []
        self.replayed: Iterator[list[str]] | None = None

    def __call__(self, parts: Sequence[Bounded]) -> Any:
        """Answer with indices, ascending by text."""
        units = np.sum([units_of_keys(part) for part in parts], axis=0)
        held = {key: i for i, key in enumerate(parts[0].keys) if units[i]}
        if self.replayed is None:
            self.answers.append(sorted({"a", "b"} & held.keys()))
            return np.array([held[key] for key in self.answers[-1]], dtype=np.int64)
        return np.array([held[key] for key in next(self.replayed)], dtype=np.int64)


def neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: list[Row], other: list[Row], **options: Any
) -> list[Any]:
    """Record on one, then replay on the other, which has all its rows."""
    selection = FrozenSelection()
    with monkeypatch.context() as patch:
        patch.setattr(Measurement, "_select", lambda self, spec, parts: selection(parts))
        first = record(tmp_path, monkeypatch, "one", one, **options)
        selection.replayed = iter(selection.answers)
        return [first, record(tmp_path, monkeypatch, "other", other, **options)]


NEIGHBOURS = pytest.mark.parametrize(
    ("one", "other"),
    [
        (OTHERS, OTHERS + WEIRD),
        (OTHERS, WEIRD + OTHERS),
        ([], WEIRD),
        ([row for row in OTHERS if row.u != "u3"], OTHERS),
        (ALWAYS, ALWAYS + WEIRD),
    ],
    ids=[
        "weird unit last",
        "weird unit first",
        "only the weird unit",
        "an ordinary unit",
        "keys that are always there",
    ],
)


@NEIGHBOURS
def test_nothing_that_leaves_depends_on_one_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: list[Row], other: list[Row]
) -> None:
    """Guarantee (A4): with the mechanisms' answers frozen, D and D' give the same requests, events and exits.

    It needs a [history]: without one, the first and last windows come from the data, and `check` says so. And it needs
    the same files: how many there are, and that they can be read, is the operator's doing, not a unit's.
    """
    first, second = neighbours(tmp_path, monkeypatch, one, other)
    assert first == second


@NEIGHBOURS
def test_nothing_that_a_second_run_says_depends_on_one_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: list[Row], other: list[Row]
) -> None:
    """Guarantee (A4): also which files are opened again after a restart is not one unit's doing."""
    first, second = neighbours(tmp_path, monkeypatch, one, other, runs=2)
    assert first == second


def test_the_replay_sees_a_history_taken_from_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no [history]; the weird unit's times then say which windows there are."""
    one = record(tmp_path, monkeypatch, "one", OTHERS, history=False)
    assert one != record(tmp_path, monkeypatch, "other", OTHERS + WEIRD, history=False)


def _logs_a_row_count(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Series.add

    def add(self: Series, batch: Any, **more: Any) -> None:
        telemetry.emit(Event.PART_READ, rows=batch.num_rows)
        honest(self, batch, **more)

    monkeypatch.setattr(Series, "add", add)


def _skips_empty_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Series.due
    monkeypatch.setattr(Series, "due", lambda self, watermark: [s for s in honest(self, watermark) if s in self._open])


def _moves_the_watermark_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Series.add

    def add(self: Series, batch: Any, **more: Any) -> None:
        honest(self, batch, **more)
        latest = max(self._open, default=None)
        if latest is not None and (self.closed_before is None or latest > self.closed_before):
            self.closed_before = latest

    monkeypatch.setattr(Series, "add", add)


def test_the_replay_sees_keys_that_did_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: every key of the data leaves; the keys that passed leave in the order of their exact units.

    The unit that is added has the key `c` for itself, and is one more with `a` where as many have `b`.
    """
    few = [row for row in ALWAYS if row.u != "v4"]
    more = [*few, *[Row(u="X", t=MONDAY + week * WEEK, k=key) for week, key in enumerate("ac")]]
    first, second = neighbours(tmp_path / "honest", monkeypatch, few, more)
    assert first == second
    honest = FrozenSelection.__call__

    def by_units(self: FrozenSelection, parts: Sequence[Bounded]) -> Any:
        found = honest(self, parts)[::-1]
        return found[np.argsort(-units_of_keys(parts[0])[found], kind="stable")]

    for name, mutant in (("every", lambda self, parts: np.arange(len(parts[0].keys))), ("order", by_units)):
        with monkeypatch.context() as patch:
            patch.setattr(FrozenSelection, "__call__", mutant)
            first, second = neighbours(tmp_path / name, monkeypatch, few, more)
        assert first != second


@pytest.mark.parametrize("mutant", [_logs_a_row_count, _skips_empty_windows, _moves_the_watermark_by_events])
def test_the_replay_sees_what_depends_on_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Mutants: a row count in an event; no release for an empty window; a watermark that events move."""
    mutant(monkeypatch)
    few = [row for row in OTHERS if row.t is not None and row.t < MONDAY + WEEK]
    assert record(tmp_path, monkeypatch, "one", few) != record(tmp_path, monkeypatch, "other", few + WEIRD)
