"""The one way in: frames of all sources become safe, then rows of every plan's windows.

Place: between the sources (step 1) and the series (step 3), for all sources of an agent.
Invariants: a frame that nobody can read again is on disk, and synced, before its source hears that it is safe; what is
on disk is in the windows by then, and again after a restart, until its windows are sealed. Rows go into windows, or
windows close, never both. What does not fit is not taken, as a whole: a pushed frame is refused, a read one waits.

One worker takes what waits, all at once: one fsync for many frames (group commit), one thread for the windows.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from edge_agg.clock import wait_first
from edge_agg.contract.codec import from_us, to_us
from edge_agg.errors import ConfigInvalid, SpoolFull
from edge_agg.failpoint import failpoint
from edge_agg.ingest.decode import typed_schema
from edge_agg.ingest.handover import in_thread
from edge_agg.ingest.source import Cause, InletFull
from edge_agg.series import NEVER
from edge_agg.spool import Record
from edge_agg.telemetry import Event, emit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from datetime import timedelta

    from edge_agg.ceilings import Ceilings
    from edge_agg.clock import Clock
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame, Part
    from edge_agg.series import Series
    from edge_agg.spool import Spool

RETRY_S = 5.0
"""How long a source waits for room before it offers its frame again."""
CROWDED_S = 1.0
"""How long a pusher waits where others are ahead of it."""
GROUP_BYTES = 32 << 20
"""How much is taken in at once, at most (but for one frame): what a crash could make us read again is no more."""
FRAME_ROWS = 1 << 20
"""Rows that most frames have at most: a window that has no room for so many takes no smaller frame either."""
_NO_MEMORY = "$.memory.limit: a drain holds all its windows at once and has no room: raise it, or drain less"
_NO_WINDOW = (
    "$.source: one window has more privacy units than may be added up (2**28): drain less, or take shorter windows"
)
_BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)
"""No event is earlier."""


@dataclass(slots=True, kw_only=True)
class SourceState:
    """What the agent knows of one source."""

    name: str
    current: bool
    """Whether it has handed over all there was."""
    since_s: float
    """When that began, in seconds since boot: a clock that is set anew does not lengthen a wait."""
    cause: Cause = Cause.BACKLOG
    """Why it is behind, while it is."""
    told: bool = False
    """Whether the log says that it is behind."""


@dataclass(slots=True)
class _Offer:
    frame: Frame
    source: str
    size: int
    taken: asyncio.Future[None]


@dataclass(slots=True, kw_only=True)
class Intake:
    """Takes frames in for one agent."""

    columns: dict[str, ColumnType]
    """What is read of every source: the union of the plans' columns."""
    series: Sequence[Series]
    spool: Spool | None
    """None: what was handed over is kept in memory alone."""
    ceilings: Ceilings
    clock: Clock
    waits: bool = True
    """Whether a read frame waits for room. In a drain nothing would make any: no window closes before all is read."""
    trusted: bool = True
    """Whether the clock is believed; while not, nobody can say which rows are late or ahead."""
    going_on: Callable[[], None] = lambda: None
    """Told of every record that is put back after a restart."""
    sources: dict[str, SourceState] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    """What this device alone may know."""
    rows: int = 0
    """Rows taken in since the start; what this device alone may know."""
    parts: list[tuple[str, Part]] = field(default_factory=list)
    """Parts that were read to their end since somebody last took them from here."""
    _inlets: dict[str, SourceInlet] = field(default_factory=dict)
    _unkept_bytes: int = 0
    """The size of the most that the spool has refused since it had room; 0 while it has."""
    _coming_rows: int = 0
    """Rows that were offered and are not settled: they may still become units of any window."""
    _waiting: deque[_Offer] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _offered: asyncio.Event = field(default_factory=asyncio.Event)
    _currency: asyncio.Event = field(default_factory=asyncio.Event)
    _windows: asyncio.Lock = field(default_factory=asyncio.Lock)

    # For the sources

    def inlet(self, source: str, done: Collection[Part]) -> SourceInlet:
        """Where one source hands its frames over; until it says otherwise, it is not current."""
        self.sources[source] = SourceState(name=source, current=False, since_s=self.clock.since_boot_s())
        self._inlets[source] = SourceInlet(
            intake=self, source=source, parts={(one.path, one.begin): one for one in done}
        )
        return self._inlets[source]

    async def take(self, source: str, frame: Frame) -> None:
        """Take a frame in; see :class:`edge_agg.ingest.source.Inlet`."""
        size, rows = frame.batch.nbytes, frame.batch.num_rows
        if frame.part is None:
            if not self._has_room(rows):
                raise InletFull(RETRY_S)
            if self._waiting and self._waiting_bytes + size > self.ceilings.waiting_bytes:
                raise InletFull(CROWDED_S)
        while frame.part is not None and not self._has_room(rows):
            if not self.waits:
                raise ConfigInvalid(_NO_WINDOW if self._is_crowded(rows) else _NO_MEMORY)
            await self.clock.wait(RETRY_S)
        offer = _Offer(frame, source, size, asyncio.get_running_loop().create_future())
        self._waiting.append(offer)
        self._waiting_bytes += size
        self._coming_rows += rows
        self._offered.set()
        await asyncio.shield(offer.taken)

    def is_current(self, source: str, *, current: bool, cause: Cause = Cause.BACKLOG) -> None:
        """Note whether a source has handed over all there was, and why not."""
        state = self.sources[source]
        state.cause = cause
        if state.current != current:
            state.current, state.since_s = current, self.clock.since_boot_s()
        if all(state.current for state in self.sources.values()):
            self._currency.set()
        else:
            self._currency.clear()

    # For the agent

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of events wait to be taken in."""
        return self._waiting_bytes

    @property
    def crowded(self) -> bool:
        """Whether a window has so many privacy units that nothing more is taken in until it closes."""
        return self._is_crowded(0)

    @property
    def spool_full(self) -> bool:
        """Whether the spool has refused a frame, and since then neither let go of anything nor taken as much.

        A smaller frame that still fits changes nothing: else this would tell how large frames are.
        """
        return self._unkept_bytes > 0

    async def wait_current(self, patience: timedelta) -> None:
        """Come back once every source is current, or has not been for `patience`, by the time since boot."""
        while left_s := self.patience_left_s(patience):
            await wait_first(self._currency.wait(), self.clock.wait(left_s))

    def patience_left_s(self, patience: timedelta) -> float:
        """How long sources that are behind may have windows wait yet, seconds; 0 where none is behind."""
        behind = [state.since_s for state in self.sources.values() if not state.current]
        if not behind:
            return 0.0
        return max(0.0, max(behind) + patience.total_seconds() - self.clock.since_boot_s())

    def tell_stalled(self, patience: timedelta) -> None:
        """Say once of a source that it has been behind for `patience`, and why; and once that it no longer is."""
        for state in self.sources.values():
            if (
                not state.current
                and not state.told
                and self.clock.since_boot_s() - state.since_s >= patience.total_seconds()
            ):
                state.told = True
                emit(Event.SOURCE_STALLED, source=state.name, cause=state.cause.value)
            elif state.current and state.told:
                state.told = False
                emit(Event.SOURCE_RECOVERED, source=state.name)

    @asynccontextmanager
    async def windows_at_rest(self) -> AsyncIterator[None]:
        """While this is held, no row goes into a window."""
        async with self._windows:
            yield

    async def replay(self) -> None:
        """After a restart, before anything else: put back into the windows what lies on disk."""
        if self.spool is None:
            return
        records = self.spool.replay()
        while (record := await in_thread(next, records, None)) is not None:
            self.going_on()
            await in_thread(self._replay_one, record)

    async def run(self) -> None:
        """Take in what is offered, until cancelled.

        Raises:
            SpoolFailed: nothing more may be called safe; the process ends.
        """
        while True:
            await self._offered.wait()
            self._offered.clear()
            while self.ceilings.disk_full and self._waiting:
                self._refuse_pushed()
                await self.clock.wait(RETRY_S)
            while group := self._group():
                async with self._windows:
                    refused = await in_thread(self._commit, group)
                for offer in group:
                    self._settle(offer, refused)

    async def wait_idle(self) -> None:
        """Come back when nothing waits to be taken in."""
        while self._waiting:
            await asyncio.wait([self._waiting[-1].taken])  # a refusal is its pusher's to hear
        async with self._windows:
            return

    def forget(self, *, received_before: datetime) -> None:
        """Delete from disk what is sealed, and what was last written before a moment, by a clock that is believed."""
        if self.spool is None or not self.trusted:
            return
        reached = [series.closed_until for series in self.series]
        sealed = min((moment for moment in reached if moment is not None), default=None)
        if sealed is None or None in reached:
            sealed = from_us(0)
        if self.spool.forget(sealed, received_before=received_before):
            self._unkept_bytes = 0

    def forget_parts(self, gone: Iterable[tuple[str, Part]]) -> None:
        """Forget done parts, each with its source, whose files are gone and whose rows no window takes any more."""
        for source, part in gone:
            parts = self._inlets[source].parts
            if parts.get((part.path, part.begin)) == part:
                del parts[part.path, part.begin]

    # The worker's

    def _has_room(self, rows: int) -> bool:
        return self.trusted and not self._is_crowded(rows) and self.ceilings.holding() is None

    def _is_crowded(self, rows: int) -> bool:
        more = self._coming_rows + max(rows, FRAME_ROWS)
        return not all(series.has_room(more) for series in self.series)

    def _refuse_pushed(self) -> None:
        """While the disk is full: frames that can be read again wait on, the others go back."""
        pushed = [offer for offer in self._waiting if offer.frame.part is None]
        self._waiting = deque(offer for offer in self._waiting if offer.frame.part is not None)
        self._waiting_bytes -= sum(offer.size for offer in pushed)
        self._coming_rows -= sum(offer.frame.batch.num_rows for offer in pushed)
        for offer in pushed:
            if not offer.taken.done():
                offer.taken.set_exception(InletFull(RETRY_S))

    def _group(self) -> list[_Offer]:
        group: list[_Offer] = []
        size = 0
        while self._waiting and (not group or size + self._waiting[0].size <= GROUP_BYTES):
            offer = self._waiting.popleft()
            size += offer.size
            group.append(offer)
        self._waiting_bytes -= size
        return group

    def _commit(self, group: Sequence[_Offer]) -> bool:
        """Make a group safe and put it into the windows; in a thread.

        Returns:
            Whether what needs the disk was refused, for want of room there.
        """
        kept = [offer for offer in group if offer.frame.part is None]
        refused = False
        if self.spool is not None and kept:
            records = [record for offer in kept for record in self._records(offer)]
            size = sum(offer.size for offer in kept)
            failpoint("before_spool")
            try:
                self.spool.append(records)
            except SpoolFull:
                refused, self._unkept_bytes = True, max(self._unkept_bytes, size)
            else:
                if records and size >= self._unkept_bytes:
                    self._unkept_bytes = 0
            failpoint("spooled")
        for offer in group:
            if refused and offer.frame.part is None:
                continue
            for series in self.series:
                if series.veto is None:
                    series.add(offer.frame.batch)
        return refused

    def _settle(self, offer: _Offer, refused: bool) -> None:  # noqa: FBT001 - the answer of `_commit`
        frame = offer.frame
        self._coming_rows -= frame.batch.num_rows
        if refused and frame.part is None:
            if not offer.taken.done():
                offer.taken.set_exception(InletFull(RETRY_S))
            return
        self.rows += frame.batch.num_rows
        self.counts["rejected"] += frame.rejected
        if frame.part is not None and frame.last:
            self.parts.append((offer.source, frame.part))
        if not offer.taken.done():
            offer.taken.set_result(None)

    def _records(self, offer: _Offer) -> Iterator[Record]:
        """The rows that some window takes, by when the last of their windows closes."""
        batch = _plain(offer.frame.batch)
        closes = np.maximum.reduce([series.closing_times(batch) for series in self.series])
        floors = {
            series.hash.hex(): to_us(series.closed_before) for series in self.series if series.closed_before is not None
        }
        for moment in np.unique(closes[closes != NEVER]).tolist():
            at = np.flatnonzero(closes == moment)
            rows = batch if len(at) == batch.num_rows else batch.take(pa.array(at))
            yield Record(source=offer.source, batch=rows, expiry=from_us(moment), floors=floors)

    def _replay_one(self, record: Record) -> None:
        for series in self.series:
            if series.veto is None and _holds(
                record.batch.schema, series.measurement.plan.events.columns, self.columns
            ):
                floor = record.floors.get(series.hash.hex())
                series.add(record.batch, floor=_BEGINNING if floor is None else from_us(floor))


@dataclass(slots=True, kw_only=True)
class SourceInlet:
    """One source's inlet."""

    intake: Intake
    source: str
    parts: dict[tuple[str, int], Part]
    """What is done, by path and beginning, as the journal has it: a file that is written anew takes its own place."""

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        """What to read of each event."""
        return self.intake.columns

    def done(self) -> Collection[Part]:
        """The parts that need not be read again."""
        return frozenset(self.parts.values())

    async def take(self, frame: Frame) -> None:
        """Take a frame in."""
        await self.intake.take(self.source, frame)
        if frame.part is not None and frame.last and not frame.part.is_stretch:
            self.parts[frame.part.path, frame.part.begin] = frame.part

    def is_current(self, current: bool, cause: Cause = Cause.BACKLOG) -> None:  # noqa: FBT001 - as the protocol says
        """Say whether all events up to now were handed over, and if not, why."""
        self.intake.is_current(self.source, current=current, cause=cause)


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch with texts as texts, as it is stored."""
    arrays = [one.dictionary_decode() if pa.types.is_dictionary(one.type) else one for one in batch.columns]
    return pa.RecordBatch.from_arrays(arrays, names=batch.schema.names)


def _holds(schema: pa.Schema, wanted: Mapping[str, ColumnType], columns: Mapping[str, ColumnType]) -> bool:
    """Whether an old batch has a plan's columns, in the types of today."""
    types = typed_schema({name: columns[name] for name in wanted})
    held = [schema.field(name) for name in wanted if schema.get_field_index(name) >= 0]
    return len(held) == len(wanted) and all(field.type == types.field(field.name).type for field in held)
