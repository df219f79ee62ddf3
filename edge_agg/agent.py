"""The agent: takes events in, closes windows as time passes, sends what is sealed, and stops in order.

Place: above all rooms but the one that builds it (`assembly.py`).
Invariants: each source is read once for all plans; the journal is touched by one thread; the order of windows over
several plans is by start, then by the config's order, so two plans of one account spend it the same way every time.
Windows close by the clock alone, while it is believed; what the agent waits for besides (a source that is behind, a
disk that is full, a head that nobody has heard) depends on the box and not on anybody's events.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from edge_agg.ceilings import give_back
from edge_agg.clock import wait_first
from edge_agg.contract.grid import window_of
from edge_agg.errors import ClockDoubted, Fenced, JournalFull
from edge_agg.telemetry import Event, emit
from edge_agg.window import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from datetime import datetime
    from typing import Any

    from edge_agg.ceilings import Ceilings
    from edge_agg.clock import Clock
    from edge_agg.contract.plan import PlanHash
    from edge_agg.departures import Departures
    from edge_agg.herald import Herald
    from edge_agg.ingest.source import Source
    from edge_agg.intake import Intake
    from edge_agg.journal import Journal
    from edge_agg.positions import Positions
    from edge_agg.series import Series
    from edge_agg.timekeeper import Timekeeper
    from edge_agg.uplink import Uplink

FUTURE = timedelta(days=1)
"""Rows that claim to be from later than this are dropped: a wrong clock somewhere must not open windows ahead."""
POLL_S = 5.0
"""How often a live agent looks for windows that are due, seconds."""
NOTE_EVERY = timedelta(minutes=1)
"""How often the journal notes the time, so that a restart can tell that the clock went back."""


@dataclass(slots=True, kw_only=True)
class Tuning:
    """What a reload of the config may change in a running agent."""

    hold: timedelta
    """How long windows wait for a source that is not current."""
    stop_s: float
    """How long a stop may take."""
    spool_age: timedelta
    """How long a raw event may lie on disk."""


@dataclass(slots=True, kw_only=True)
class Agent:
    """One node's agent, built and ready."""

    name: str
    sources: Sequence[Source]
    intake: Intake
    series: Sequence[Series]
    journal: Journal
    positions: Positions
    uplink: Uplink
    herald: Herald
    departures: Departures
    clock: Clock
    timekeeper: Timekeeper
    ceilings: Ceilings
    tuning: Tuning
    history: Span
    """The public span of a backfill, or no bounds."""
    attendants: Sequence[Callable[[asyncio.Event], Coroutine[Any, Any, None]]] = ()
    """What else runs beside a live agent until it stops: the status door, the watchdog."""
    _reach: datetime | None = None
    _noted: datetime | None = None
    _spool_told: bool = False
    _begun_s: float | None = None
    """When the clock was first believed in this life, in seconds since boot."""
    _stops_s: float | None = None
    """When a stop that has begun is over, by the loop's time, seconds."""
    _new: set[PlanHash] = field(default_factory=set)
    """The plans that first ran in this life."""

    async def drain(self, patience_s: float) -> bool:
        """Read what is there, close every window, send everything, and wait for the acks.

        Returns:
            Whether the collector has everything (or has refused it for good).

        Raises:
            SourceUnreadable: fix the source and run again; nothing is lost.
            ClockDoubted: the clock is not believed, so nothing was read or drawn; what was sealed before was sent.
            ConfigInvalid: the windows together do not fit `[memory].limit`: raise it, or drain less at a time.
            Fenced: the collector has shut this agent out; since then nothing was drawn, and nothing is lost.
            JournalFull: there is no room to close every window: make room and run again; nothing is lost.
            JournalFailed, SpoolFailed: repair the disk and run again.
        """
        self._begin()
        self.intake.waits = False
        sent, drawn = asyncio.Event(), True
        sender = asyncio.create_task(self.uplink.run(sent))
        try:
            if self.intake.trusted:
                await self._with_intake(self._deliver_all())
                drawn = await self._close_all(patience_s)
                self.intake.forget(received_before=self._now - self.tuning.spool_age)
        finally:
            sent.set()
            await sender
        drained = await self.uplink.wait_drained(patience_s)
        emit(Event.AGENT_STOPPED, agent=self.name, unacked=self.journal.unacked())
        if self.timekeeper.doubt is not None:
            doubt = self.timekeeper.doubt.value
            raise ClockDoubted(f"the clock is not believed ({doubt}): nothing was read or drawn, set it and run again")
        return drained and drawn

    async def run(self, stop: asyncio.Event) -> None:
        """Read, close and send as time passes, until `stop` is set; then send for `stop_s` what is sealed.

        Raises:
            SourceUnreadable: fix the source and run again; nothing is lost.
            JournalFailed, SpoolFailed: repair the disk and run again.
        """
        self._begin()
        if self.intake.trusted:
            self._first_windows()
        await self._with_intake(self._live(stop))
        await self._send_last()
        emit(Event.AGENT_STOPPED, agent=self.name, unacked=self.journal.unacked())

    async def close(self) -> None:
        """Hang up, then close the spool and the journal; the last thing to do with an agent."""
        await self.uplink.wire.close()
        if self.intake.spool is not None:
            self.intake.spool.close()
        self.journal.close()

    def _begin(self) -> None:
        self._look_at_clock()
        for source in self.sources:
            source.check(self.intake.columns)
        emit(Event.AGENT_STARTED, agent=self.name, plans=len(self.series))

    async def _with_intake(self, work: Coroutine[Any, Any, None]) -> None:
        """Once the windows are as they were, do something while the intake works; let it finish what it was given."""
        try:
            await self.intake.replay()
        except BaseException:
            work.close()
            raise
        doing = asyncio.create_task(work)
        taking = asyncio.create_task(self.intake.run())
        try:
            await asyncio.wait({doing, taking}, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                await doing
                await wait_first(self.intake.wait_idle(), asyncio.sleep(self._stop_left_s()))
            else:
                taking.result()
        finally:
            await _end(doing, taking)

    async def _deliver_all(self) -> None:
        self._see_ahead()
        for source in self.sources:
            inlet = self.intake.inlet(source.name, self.positions.done(source.name))
            await source.deliver(inlet, asyncio.Event(), drain=True)
        await self.intake.wait_idle()
        self._note_parts()

    async def _close_all(self, patience_s: float) -> bool:
        """Close every window there is, once the head was said; whether they might be drawn."""
        if not any(series.due(self._drain_watermark(series)) for series in self.series):
            await self._close_until(self._drain_watermark)
            return True
        await self.herald.wait_heard(patience_s)
        self._check_fence()
        if not self.herald.may_draw():
            return False
        await self._close_until(self._drain_watermark)
        self._check_fence()
        if any(series.due(self._drain_watermark(series)) for series in self.series):
            raise JournalFull("the disk has no room to close every window: make room and run again")
        return True

    def _check_fence(self) -> None:
        if self.herald.holding == "fenced":
            raise Fenced("the collector has fenced this agent: no more is drawn; the people who run the fleet decide")

    # Live

    async def _live(self, stop: asyncio.Event) -> None:
        inlets = [self.intake.inlet(source.name, self.positions.done(source.name)) for source in self.sources]
        ended = asyncio.Event()
        crew = [
            asyncio.create_task(work)
            for work in (
                self.uplink.run(ended),
                self.herald.run(ended),
                self._tend(stop),
                *(attend(ended) for attend in self.attendants),
                *(source.deliver(inlet, stop, drain=False) for source, inlet in zip(self.sources, inlets, strict=True)),
            )
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            going = {*crew, stopping}
            while stopping in going:
                done, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            ended.set()
            await asyncio.wait(going, timeout=self._stop_left_s())
        finally:
            await _end(stopping, *crew)

    async def _tend(self, stop: asyncio.Event) -> None:
        """Close windows as they come due, and keep house."""
        while not stop.is_set():
            await asyncio.sleep(0)  # sources that wake at the same moment look first
            self._look_at_clock()
            if self.intake.trusted and self._first_windows():
                self._see_ahead()
                if await self._wait_current(stop):
                    self._note_parts()
                    await self._close_until(self._live_watermark)
                    self.intake.forget(received_before=self._now - self.tuning.spool_age)
                    gone = self.positions.tidy([source.name for source in self.sources], self._now)
                    self.intake.forget_parts(gone)
            self.intake.tell_stalled(self.tuning.hold)
            self._look_at_disk()
            # At whole multiples: when windows are looked at next does not tell how long the last ones took.
            left_s = POLL_S - self.clock.since_boot_s() % POLL_S
            await wait_first(stop.wait(), self.clock.wait(left_s), self.herald.changed.wait())
            self.herald.changed.clear()

    async def _wait_current(self, stop: asyncio.Event) -> bool:
        """Wait for sources that are behind, and look at the clock all the while; whether windows may close then."""
        while self.intake.trusted and not stop.is_set() and self.intake.patience_left_s(self.tuning.hold):
            await wait_first(self.intake.wait_current(self.tuning.hold), stop.wait(), self.clock.wait(POLL_S))
            self._look_at_clock()
        return self.intake.trusted and not stop.is_set()

    async def _send_last(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stop_left_s()):
                while self.journal.unacked() and await self.uplink.send_once() == "progress":
                    pass

    def _stop_left_s(self) -> float:
        """How much is left of the time that a stop may take, seconds; it runs from the first question on."""
        now_s = asyncio.get_running_loop().time()
        if self._stops_s is None:
            self._stops_s = now_s + self.tuning.stop_s
        return max(0.0, self._stops_s - now_s)

    # The time

    @property
    def _now(self) -> datetime:
        """The time when the clock was last looked at and believed: nothing is done by a time that nobody judged."""
        assert self.timekeeper.last_seen is not None, "the clock was believed"
        return self.timekeeper.last_seen

    def _look_at_clock(self) -> None:
        before, now = self.intake.trusted, self.clock.now()
        doubt = self.timekeeper.look(now, self.clock.since_boot_s())
        self.intake.trusted = doubt is None
        if doubt is not None and before:
            emit(Event.CLOCK_DOUBTED, doubt=doubt.value)
        elif doubt is None and not before:
            emit(Event.CLOCK_BELIEVED)
        if doubt is None and (self._noted is None or now - self._noted >= NOTE_EVERY):
            with suppress(JournalFull):
                self.journal.note_clock(now)
                self._noted = now

    def _first_windows(self) -> bool:
        """On live data no plan has windows before it first ran, by the clock as it is believed now.

        A clock that was months behind at the first start is known to have been once it was set: what began with it
        began later.

        Returns:
            Whether that is noted; the disk may have no room for it.
        """
        assert self.timekeeper.boot is not None, "the clock was believed"
        if self._begun_s is None:
            self._begun_s = self.clock.since_boot_s()
        begun = self.timekeeper.boot + timedelta(seconds=self._begun_s)
        try:
            self.journal.carry_first_runs([series.hash for series in self.series])
            for series in [] if self.history.start is not None else self.series:
                first = self._first_run(series, begun)
                series.span = Span(start=window_of(first, series.measurement.plan.every), end=series.span.end)
        except JournalFull:
            self._disk_is_full(full=True)
            return False
        return True

    def _first_run(self, series: Series, begun: datetime) -> datetime:
        first = self.journal.first_run(series.hash)
        if first is None or (series.hash in self._new and self._was_wrong(series, first, begun)):
            first = begun if series.closed_before is None else min(begun, series.closed_before)
            self.journal.note_first_run(series.hash, first)
            self._new.add(series.hash)
        return first

    def _was_wrong(self, series: Series, first: datetime, begun: datetime) -> bool:
        """Whether a first run was noted by a clock that has been set since, and nothing was drawn or closed by it."""
        untouched = series.closed_before is None and series.drawn is None
        return untouched and abs(begun - first) > self.timekeeper.max_jump

    def _see_ahead(self) -> None:
        """Take rows up to a day ahead of the clock, but not beyond a history's end; the limit never moves back."""
        end = self._now + FUTURE
        if self.history.end is not None:
            end = min(end, self.history.end)
        self._reach = end if self._reach is None else max(self._reach, end)
        for series in self.series:
            series.span = Span(start=series.span.start, end=self._reach)

    def _live_watermark(self, series: Series) -> datetime:
        """The time as it was believed last, but never beyond the end of a history."""
        return self._now if self.history.end is None else min(self._now, self._drain_watermark(series))

    def _drain_watermark(self, series: Series) -> datetime:
        """As if time had passed the end of the history, or of the latest window with rows; never beyond the present."""
        plan = series.measurement.plan
        latest = self.history.end or series.latest_open()
        if latest is None:
            return series.closed_before or self._now
        last = min(latest - timedelta(microseconds=1), self._now + FUTURE)
        return window_of(last, plan.every) + plan.every + plan.lateness

    # Windows and positions

    async def _close_until(self, watermark: Callable[[Series], datetime]) -> None:
        begun_s = self.clock.since_boot_s()
        async with self.intake.windows_at_rest():
            due = [(start, i) for i, series in enumerate(self.series) for start in self._due(series, watermark)]
            if due:
                emit(Event.WINDOWS_DUE, windows=len(due))
                self.departures.begin(begun_s)
            self.series[0].counts.update(self.intake.counts)
            self.intake.counts.clear()
            try:
                for start, i in sorted(due, key=lambda window: (window[0] != self.series[window[1]].drawn, window)):
                    if not self._may_draw(self.series[i], start):
                        break  # fenced meanwhile: no more is drawn
                    self.series[i].close(start, self.positions.waiting)
                    self.positions.waiting.clear()
                    self.uplink.wake()
                    await asyncio.sleep(0)
                if due:
                    give_back()
                if self.positions.waiting and not due:
                    self._note_positions()
            except JournalFull:
                self._disk_is_full(full=True)
            else:
                over = self.journal.bytes_used > self.ceilings.disk_bytes
                self._disk_is_full(full=over or not (self.journal.has_ballast or self.journal.restore_ballast()))
            finally:
                if due and self.departures.end():
                    self._note_late()

    def _due(self, series: Series, watermark: Callable[[Series], datetime]) -> Iterator[datetime]:
        """The windows to be closed now: up to the first that may not be drawn yet, for none is skipped."""
        for start in series.due(watermark(series)):
            if not self._may_draw(series, start):
                return
            yield start

    def _may_draw(self, series: Series, start: datetime) -> bool:
        """Whether a window may be closed now; one that was drawn already is only sealed."""
        return start == series.drawn or self.herald.may_draw(start + series.measurement.plan.every)

    def _note_late(self) -> None:
        with suppress(JournalFull):
            self.journal.note([], {"departures late": 1})

    def _note_positions(self) -> None:
        counts = sum((series.counts for series in self.series), type(self.series[0].counts)())
        self.journal.note(self.positions.waiting, counts)
        self.positions.waiting.clear()
        for series in self.series:
            series.counts.clear()

    def _note_parts(self) -> None:
        """Parts that were read to their end get their position: with the next release, or with nothing."""
        assert self._reach is not None, "rows were taken"
        parts, self.intake.parts = self.intake.parts, []
        self.positions.note(parts, self._reach)

    # The disk

    def _look_at_disk(self) -> None:
        if self.intake.spool is not None:
            self.intake.spool.quota_bytes = self.ceilings.spool_quota()
        if self.intake.spool_full != self._spool_told:
            self._spool_told = self.intake.spool_full
            emit(Event.SPOOL_FULL if self._spool_told else Event.SPOOL_RECOVERED)

    def _disk_is_full(self, *, full: bool) -> None:
        if full != self.ceilings.disk_full:
            emit(Event.DISK_FULL if full else Event.DISK_RECOVERED)
        self.ceilings.disk_full = full


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Call tasks off, and wait until they are gone."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
