"""One plan's series of windows: from typed batches to sealed releases.

Place: steps 3 to 7 of an event's way, in their order: window, bound, aggregate, charge, noise, seal.
Invariants: one release for each window, oldest first, and never a second; the charge is committed before the noise is
drawn, the sealed bytes before anything is sent; of the exact vectors nothing outlives `_released`. A window that was
charged twice without being sealed is published as lost, one that finds no room as exhausted: never silence. Where a
plan bounds the windows of a period, the first that is drawn pays for as many as one unit can count in, the others pay
nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.contract import arrow, codec
from edge_agg.contract.grid import window_of
from edge_agg.contract.plan import PlanHash, plan_hash
from edge_agg.contract.release import Charge, Release, Sealed, Status, Veto
from edge_agg.contract.vectors import readings_of
from edge_agg.errors import BudgetExhausted
from edge_agg.failpoint import failpoint
from edge_agg.journal import Counted
from edge_agg.participation import each
from edge_agg.privacy.ledger import Budget, Entry, check_room
from edge_agg.privacy.rows import read_events
from edge_agg.telemetry import Event, emit
from edge_agg.window import Span, alone_in, closing, split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy.typing as npt

    from edge_agg.journal import Journal, Position
    from edge_agg.privacy.bound import Bounding
    from edge_agg.privacy.measurement import Measurement, Noisy

MAX_ATTEMPTS = 2
"""Draws that a window may be charged for; after that it is lost."""
NEVER = np.iinfo(np.int64).min
"""The closing time of a row that no window takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One population's budget at this agent."""

    name: str
    budget: Budget


@dataclass(slots=True, kw_only=True)
class Series:
    """The windows of one plan at one agent."""

    tenant: str
    measurement: Measurement
    account: Account
    journal: Journal
    span: Span
    """The public span of a backfill, or no bounds."""
    veto: Veto | None = None
    """Why the device's own policy forbids the plan: it takes no events, and its windows say so."""
    hash: PlanHash = field(init=False)
    closed_before: datetime | None = field(init=False)
    """The high-water mark."""
    counts: Counter[str] = field(default_factory=Counter)
    """What this device alone may know: rows late, dropped, outside."""
    _open: dict[datetime, Bounding] = field(default_factory=dict)
    _drawn: tuple[Release, Sealed] | None = field(default=None, repr=False)
    """What was drawn and is not sealed."""

    def __post_init__(self) -> None:
        self.hash = plan_hash(self.measurement.plan)
        self.closed_before = self.journal.closed_before(self.hash)

    def add(self, batch: pa.RecordBatch, *, floor: datetime | None = None) -> None:
        """Take a typed batch in: every row goes to its open window or is dropped by a public rule.

        Args:
            batch: the columns of all plans.
            floor: `closed_before` at the time when the batch first arrived, if it is read again.
        """
        plan = self.measurement.plan
        events = read_events(plan, self.measurement.vectors, batch)
        parts = split(
            events.time_us,
            every=plan.every,
            closed_before=self.closed_before,
            span=self.span,
            assign=plan.window.late == "assign",
            floor=floor,
        )
        for start, index in parts.windows.items():
            if start not in self._open:
                self._open[start] = self.measurement.bounding(self._salt(start))
            self._open[start].add(events.take(index))
        prefix = f"{plan.name}."
        self.counts.update(
            {f"{prefix}late": parts.late, f"{prefix}outside": parts.outside, f"{prefix}dropped": events.dropped}
        )

    def closing_times(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """When the window of each row closes, int64[n_rows] in microseconds; NEVER for rows that no window takes.

        It looks at times alone: a row that is dropped for another reason has a closing time too.
        """
        plan = self.measurement.plan
        time = batch.column(plan.events.time).cast(pa.int64())
        closes = np.full(len(time), NEVER)
        if self.veto is not None:
            return closes
        valid = time.is_valid().to_numpy(zero_copy_only=False)
        parts = split(
            time.fill_null(0).to_numpy(),
            every=plan.every,
            closed_before=self.closed_before,
            span=self.span,
            assign=plan.window.late == "assign",
        )
        for start, index in parts.windows.items():
            closes[index] = codec.to_us(start + plan.every + plan.lateness)
        closes[~valid] = NEVER
        return closes

    @property
    def closed_until(self) -> datetime | None:
        """The watermark that this series has reached: every window that closes by then has closed."""
        return None if self.closed_before is None else self.closed_before + self.measurement.plan.lateness

    @property
    def open_windows(self) -> list[datetime]:
        """The starts of the windows that hold rows."""
        return sorted(self._open)

    @property
    def held_rows(self) -> int:
        """Rows that are held for the open windows; what this device alone may know."""
        held = list(self._open.values())  # a thread may open a window while they are added up
        return sum(bounding.rows for bounding in held)

    def has_room(self, more: int) -> bool:
        """Whether each open window surely has room for so many rows more: it holds `MAX_UNITS` units at most."""
        return all(bounding.has_room(more) for bounding in list(self._open.values()))

    def takes_one_time(self, column: str, first_us: int, last_us: int) -> bool:
        """Whether times of a column between two moments, both included, may all be read as the first.

        They may where only the window hangs on them, and it is one for all, as matters stand: no reading has a
        priority, no partition is cut by time.
        """
        plan = self.measurement.plan
        if column not in plan.events.columns:
            return True
        if column != plan.events.time or readings_of(self.measurement.vectors):
            return False
        used = {one.column for one in plan.partition} | {one.column for one in plan.filter}
        if column in used | {one.source for one in plan.derive}:
            return False
        alone = alone_in(first_us, last_us, every=plan.every, closed_before=self.closed_before, span=self.span)
        return alone is not None

    def due(self, watermark: datetime) -> list[datetime]:
        """The windows that close at this watermark, oldest first, empty ones included."""
        plan = self.measurement.plan
        first = self.span.start if self.span.start is not None else min(self._open, default=None)
        return list(
            closing(
                first=first,
                closed_before=self.closed_before,
                watermark=watermark,
                every=plan.every,
                lateness=plan.lateness,
            )
        )

    def latest_open(self) -> datetime | None:
        """The end of the latest window that holds rows."""
        latest = max(self._open, default=None)
        return None if latest is None else latest + self.measurement.plan.every

    def close(self, start: datetime, positions: Sequence[Position] = ()) -> Status:
        """Close the oldest open window: charge, draw, seal.

        Args:
            start: the first of `due`.
            positions: parts read to their end, to be journalled with the release.

        Returns:
            What stands behind the window now.

        Raises:
            JournalFull: the disk is full. Call again, with this window before any other, once there is room: what was
                drawn is kept, and sealed then.
            JournalFailed: nothing more may be drawn; the process ends.
        """
        if self._drawn is None:
            self._drawn = self._draw(start)
        release, sealed = self._drawn
        self.journal.seal(
            seq=release.link.seq,
            plan_hash=self.hash,
            window=(release.window_start, release.window_end),
            status=release.status,
            sealed=sealed,
            positions=positions,
            local_counts=self.counts,
        )
        self._drawn = None
        for done in [one for one in self._open if one <= start]:  # or before the first window there is
            del self._open[done]
        self.counts.clear()
        self.closed_before = release.window_end
        emit(Event.WINDOW_SEALED, plan=release.plan, window=start.isoformat(), status=release.status.value)
        return release.status

    @property
    def drawn(self) -> datetime | None:
        """The window that was drawn and not sealed, for want of room on the disk: it comes before all others."""
        return None if self._drawn is None else self._drawn[0].window_start

    def _draw(self, start: datetime) -> tuple[Release, Sealed]:
        """Charge and draw a window, and encode what it releases: once."""
        plan = self.measurement.plan
        bounding = self._open.get(start) or self.measurement.bounding(self._salt(start))
        status = self._status(start)
        noisy = self._released(start, bounding) if status is Status.RELEASED else None
        payload = b"" if noisy is None else arrow.encode(noisy.columns, noisy.keys)
        release = Release(
            tenant=self.tenant,
            agent=self.journal.agent,
            link=self.journal.next_link(),
            plan=plan.name,
            plan_version=plan.version,
            plan_hash=self.hash,
            window_start=start,
            window_end=start + plan.every,
            status=status,
            veto=self.veto if status is Status.VETOED else None,
            account=self.account.name,
            charge=self.journal.window_charge(self.hash, start),
            cumulative=self.journal.cumulative(self.account.name),
            vectors=() if noisy is None else self.measurement.specs,
            max_partitions=plan.bounds.max_partitions,
            max_rows_per_partition=plan.bounds.max_rows_per_partition,
            max_nodes=plan.privacy_unit.max_nodes,
            selection=None if noisy is None else self.measurement.selection,
            rows=0 if noisy is None else len(next(iter(noisy.columns.values()))),
            payload_sha256=hashlib.sha256(payload).digest() if payload else b"",
        )
        return release, codec.seal(release, payload)

    def _status(self, start: datetime) -> Status:
        """Whether the window may be drawn, or the reason why not; changes nothing."""
        attempts = self.journal.attempts(self.hash, start)
        if self.veto is not None:
            return Status.LOST if attempts else Status.VETOED
        if attempts >= MAX_ATTEMPTS:
            return Status.LOST
        try:
            check_room(self.account.budget, self.journal.book(self.account.name), self._entry(start, attempts))
        except BudgetExhausted:
            return Status.LOST if attempts else Status.EXHAUSTED
        return Status.RELEASED

    def _entry(self, start: datetime, attempts: int) -> Entry:
        """What this attempt costs.

        Where units count in at most m windows of a period, the first window that is drawn pays m times and covers the
        rest of the period: no unit loses more, whichever windows count it. A second draw of a window pays for itself.
        """
        plan, charge = self.measurement.plan, self.measurement.charge
        period, windows = self._period(start), plan.bounds.max_windows
        if period is None or windows is None or plan.period is None or attempts:
            return Entry(window_start=start, charge=charge)
        if self.journal.is_covered(self.account.name, self.hash, start):
            return Entry(window_start=start, charge=Charge())
        return Entry(window_start=start, charge=charge * windows, through=period + plan.period - plan.every)

    def _period(self, start: datetime) -> datetime | None:
        """The start of the period that the window lies in, where the plan has one."""
        length = self.measurement.plan.period
        return None if length is None else window_of(start, length)

    def _released(self, start: datetime, bounding: Bounding) -> Noisy:
        """T1, then aggregate and draw. Nothing of it is logged, counted or kept but the noisy values."""
        plan = self.measurement.plan
        without, counted = self._participation(start, bounding)
        self.journal.charge(
            account=self.account.name,
            plan_hash=self.hash,
            name=plan.name,
            text=msgspec.json.encode(plan).decode(),
            entry=self._entry(start, self.journal.attempts(self.hash, start)),
            counted=counted,
        )
        noisy = self.measurement.release(bounding.blocks(without=without))
        failpoint("noise_drawn")
        return noisy

    def _participation(self, start: datetime, bounding: Bounding) -> tuple[pa.Array | None, Counted | None]:
        """Who has used up its windows of the period, and who counts in this one; None where the plan has no period."""
        plan, period = self.measurement.plan, self._period(start)
        if period is None or plan.bounds.max_windows is None:
            return None, None
        spent = self.journal.spent_units(
            self.hash,
            period=period,
            window_start=start,
            max_windows=plan.bounds.max_windows,
            # Of the plan and not of the window's rows: a window may have none.
            integers=plan.events.columns[plan.privacy_unit.label] == "integer",
        )
        units = bounding.units()
        if len(units):
            units = units.filter(pc.invert(pc.is_in(units, value_set=spent)))
        return spent, Counted(period=period, units=each(units))

    def _salt(self, start: datetime) -> bytes:
        return window_salt(self.journal.secret, self.hash, start)


def window_salt(secret: bytes, plan: PlanHash, start: datetime) -> bytes:
    """A window's own secret: it never repeats, and a restart finds it again."""
    return hmac.digest(secret, plan + codec.to_us(start).to_bytes(8, "little", signed=True), "sha256")
