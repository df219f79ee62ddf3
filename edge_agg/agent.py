"""The composition root: builds the parts, runs them, stops them in order.

Place: above all rooms; it moves batches from the sources to every plan's series, and wakes the uplink.
Invariants: each source is read once for all plans; the journal is touched by one thread; the order of windows over
several plans is by start, then by the config's order, so two plans of one account spend it the same way every time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agg.clock import wait_first
from edge_agg.config import discovery_of, horizon_of, plans_of, span_of
from edge_agg.contract.grid import window_of
from edge_agg.ingest.file import FileSource
from edge_agg.ingest.source import Part
from edge_agg.journal import Journal, Position
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import budget_of
from edge_agg.series import Account, Series
from edge_agg.telemetry import Event, emit
from edge_agg.uplink import GrpcWire, Uplink
from edge_agg.window import Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from edge_agg.clock import Clock
    from edge_agg.config import Config
    from edge_agg.contract.plan import ColumnType, Plan
    from edge_agg.ingest.source import Frame, Source
    from edge_agg.uplink import Wire

FUTURE = timedelta(days=1)
"""Rows that claim to be from later than this are dropped: a wrong clock somewhere must not open windows ahead."""
POLL_S = 5.0
"""How often a live agent looks for new files and for windows that are due, seconds."""


@dataclass(slots=True, kw_only=True)
class Agent:
    """One node's agent, built and ready."""

    name: str
    sources: Sequence[Source]
    columns: dict[str, ColumnType]
    """What is read of every source: the union of the plans' columns."""
    series: Sequence[Series]
    journal: Journal
    uplink: Uplink
    clock: Clock
    history: Span
    """The public span of a backfill, or no bounds."""
    _positions: list[Position] = field(default_factory=list)
    _read: dict[str, set[Part]] = field(default_factory=dict)

    async def drain(self, patience_s: float) -> bool:
        """Read what is there, close every window, send everything, and wait for the acks.

        Returns:
            Whether the collector has everything (or has refused it for good).

        Raises:
            SourceUnreadable: fix the source and run again; nothing is lost.
            JournalFailed: repair the disk and run again.
        """
        self._begin()
        sent = asyncio.Event()
        sender = asyncio.create_task(self.uplink.run(sent))
        try:
            await self._read_sources()
            await self._close_until(self._drain_watermark)
        finally:
            sent.set()
            await sender
        drained = await self.uplink.wait_drained(patience_s)
        emit(Event.AGENT_STOPPED, agent=self.name, unacked=self.journal.unacked())
        return drained

    async def run(self, stop: asyncio.Event) -> None:
        """Read, close and send as time passes, until `stop` is set.

        Raises:
            SourceUnreadable: fix the source and run again; nothing is lost.
            JournalFailed: repair the disk and run again.
        """
        self._begin()
        for series in self.series:
            if series.span.start is None:
                every = series.measurement.plan.every
                series.span = Span(start=window_of(self.journal.created, every), end=series.span.end)
        sender = asyncio.create_task(self.uplink.run(stop))
        try:
            while not stop.is_set():
                await self._read_sources()
                await self._close_until(self._live_watermark)
                await wait_first(stop.wait(), self.clock.wait(POLL_S))
                if sender.done():
                    break
        finally:
            stop.set()
            await sender
        emit(Event.AGENT_STOPPED, agent=self.name, unacked=self.journal.unacked())

    async def close(self) -> None:
        """Hang up, then close the journal; the last thing to do with an agent."""
        await self.uplink.wire.close()
        self.journal.close()

    def _begin(self) -> None:
        for source in self.sources:
            source.check(self.columns)
        emit(Event.AGENT_STARTED, agent=self.name, plans=len(self.series))

    async def _read_sources(self) -> None:
        end = self.clock.now() + FUTURE
        if self.history.end is not None:
            end = min(end, self.history.end)
        for series in self.series:
            series.span = Span(start=series.span.start, end=end)
        for source in self.sources:
            skip = self._read.setdefault(source.name, self._parts_done(source.name))
            frames = source.frames(self.columns, skip=skip)
            rejected = 0
            while (frame := await asyncio.to_thread(self._take, frames)) is not None:
                rejected += frame.rejected
                if frame.last:
                    self._note_part(source.name, frame.part, end)
                    self.series[0].counts["rejected"] += rejected
                    rejected = 0

    def _take(self, frames: Iterator[Frame]) -> Frame | None:
        """Read one frame into every series; off the event loop, because reading and bounding release the GIL."""
        frame = next(frames, None)
        if frame is not None:
            for series in self.series:
                series.add(frame.batch)
        return frame

    def _parts_done(self, source: str) -> set[Part]:
        done = self.journal.positions_within(source, [series.closed_before for series in self.series])
        return {Part(path=p.path, size=p.size, mtime_ns=p.mtime_ns) for p in done}

    def _note_part(self, source: str, part: Part, reach: datetime) -> None:
        self._read[source].add(part)
        self._positions.append(
            Position(source=source, path=part.path, size=part.size, mtime_ns=part.mtime_ns, reach=reach)
        )
        emit(Event.PART_READ, source=source, parts=len(self._read[source]))

    def _live_watermark(self, series: Series) -> datetime:
        """The clock's time, but never beyond the end of a history."""
        return self.clock.now() if self.history.end is None else min(self.clock.now(), self._drain_watermark(series))

    def _drain_watermark(self, series: Series) -> datetime:
        """As if time had passed the end of the history, or of the latest window with rows; never beyond the present."""
        plan = series.measurement.plan
        latest = self.history.end or series.latest_open()
        if latest is None:
            return series.closed_before or self.clock.now()
        last = min(latest - timedelta(microseconds=1), self.clock.now() + FUTURE)
        return window_of(last, plan.every) + plan.every + plan.lateness

    async def _close_until(self, watermark: Callable[[Series], datetime]) -> None:
        due = [(start, i) for i, series in enumerate(self.series) for start in series.due(watermark(series))]
        if due:
            emit(Event.WINDOWS_DUE, windows=len(due))
        for start, i in sorted(due):
            self.series[i].close(start, self._positions)
            self._positions = []
            self.uplink.wake()
            await asyncio.sleep(0)
        if self._positions and not due:
            counts = sum((series.counts for series in self.series), Counter[str]())
            self.journal.note(self._positions, counts)
            self._positions = []
            for series in self.series:
                series.counts.clear()


def build(config: Config, plans: Sequence[Plan], *, clock: Clock, wire: Wire | None = None) -> Agent:
    """Build an agent's parts.

    Args:
        config: the agent's config.
        plans: the plans it names, in its order.
        clock: the one door to time.
        wire: the way to the collector; over gRPC unless a test brings its own. Needs a running event loop.

    Raises:
        PlanRefused: a plan cannot be calibrated.
        JournalFailed: the state folder cannot be used.
    """
    measurements = [compile_plan(plan) for plan in plans]
    accounts = {
        account.name: Account(
            name=account.name,
            budget=budget_of(
                epsilon=account.epsilon,
                delta=account.delta,
                horizon=horizon_of(account),
                discovery=discovery_of(account, plans_of(config, plans, account.name)),
            ),
        )
        for account in config.account
    }
    journal = Journal.open(Path(config.agent.state), config.agent.name, now=clock.now())
    start, end = span_of(config.history)
    history = Span(start=start, end=end)
    series = [
        Series(
            tenant=config.agent.tenant,
            measurement=measurement,
            account=accounts[entry.account],
            journal=journal,
            span=history,
        )
        for measurement, entry in zip(measurements, config.plan, strict=True)
    ]
    uplink = Uplink(
        journal=journal,
        wire=wire or GrpcWire(config.collector.url, deadline_s=config.collector.deadline_s),
        clock=clock,
        jitter=random.random,
        batch=config.collector.batch,
        retry_first_s=config.collector.retry_first_s,
        retry_limit_s=config.collector.retry_limit_s,
    )
    return Agent(
        name=config.agent.name,
        sources=[FileSource(source.path) for source in config.source],
        columns={name: kind for plan in plans for name, kind in plan.events.columns.items()},
        series=series,
        journal=journal,
        uplink=uplink,
        clock=clock,
        history=history,
    )
