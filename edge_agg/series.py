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
import pyarrow as pa

from edge_agg.contract import arrow, codec
from edge_agg.contract.grid import window_of
from edge_agg.contract.plan import PlanHash, plan_hash
from edge_agg.contract.release import Charge, Release, Status
from edge_agg.contract.vectors import readings_of
from edge_agg.errors import BudgetExhausted
from edge_agg.failpoint import failpoint
from edge_agg.journal import Counted
from edge_agg.privacy.ledger import Budget, Entry, check_room
from edge_agg.privacy.rows import read_events
from edge_agg.telemetry import Event, emit
from edge_agg.window import Span, alone_in, closing, split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from edge_agg.journal import Journal, Position
    from edge_agg.privacy.bound import Bounding
    from edge_agg.privacy.measurement import Measurement, Noisy

MAX_ATTEMPTS = 2
"""Draws that a window may be charged for; after that it is lost."""


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
    hash: PlanHash = field(init=False)
    closed_before: datetime | None = field(init=False)
    """The high-water mark."""
    counts: Counter[str] = field(default_factory=Counter)
    """What this device alone may know: rows late, dropped, outside."""
    _open: dict[datetime, Bounding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hash = plan_hash(self.measurement.plan)
        self.closed_before = self.journal.closed_before(self.hash)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a typed batch in: every row goes to its open window or is dropped by a public rule."""
        plan = self.measurement.plan
        events = read_events(plan, self.measurement.vectors, batch)
        parts = split(events.time_us, every=plan.every, closed_before=self.closed_before, span=self.span)
        for start, index in parts.windows.items():
            if start not in self._open:
                self._open[start] = self.measurement.bounding(self._salt(start))
            self._open[start].add(events.take(index))
        prefix = f"{plan.name}."
        self.counts.update(
            {f"{prefix}late": parts.late, f"{prefix}outside": parts.outside, f"{prefix}dropped": events.dropped}
        )

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
        if any(partition.column == column for partition in plan.partition):
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
            JournalFailed: nothing more may be drawn; the process ends.
        """
        plan = self.measurement.plan
        bounding = self._open.pop(start, None) or self.measurement.bounding(self._salt(start))
        status = self._status(start)
        noisy = self._released(start, bounding) if status is Status.RELEASED else None
        payload = b"" if noisy is None else arrow.encode(noisy.columns, noisy.keys)
        link = self.journal.next_link()
        release = Release(
            tenant=self.tenant,
            agent=self.journal.agent,
            link=link,
            plan=plan.name,
            plan_version=plan.version,
            plan_hash=self.hash,
            window_start=start,
            window_end=start + plan.every,
            status=status,
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
        self.journal.seal(
            seq=link.seq,
            plan_hash=self.hash,
            window=(release.window_start, release.window_end),
            status=status,
            sealed=codec.seal(release, payload),
            positions=positions,
            local_counts=self.counts,
        )
        self.counts.clear()
        self.closed_before = release.window_end
        emit(Event.WINDOW_SEALED, plan=plan.name, window=start.isoformat(), status=status.value)
        return status

    def _status(self, start: datetime) -> Status:
        """Whether the window may be drawn, or the reason why not; changes nothing."""
        attempts = self.journal.attempts(self.hash, start)
        if attempts >= MAX_ATTEMPTS:
            return Status.LOST
        try:
            check_room(self.account.budget, self.journal.entries(self.account.name), self._entry(start, attempts))
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
        if self.journal.is_covered(self.hash, start):
            return Entry(window_start=start, charge=Charge())
        return Entry(window_start=start, charge=charge * windows, through=period + plan.period - plan.every)

    def _period(self, start: datetime) -> datetime | None:
        """The start of the period that the window lies in, where the plan has one."""
        length = self.measurement.plan.period
        return None if length is None else window_of(start, length)

    def _released(self, start: datetime, bounding: Bounding) -> Noisy:
        """T1, then aggregate and draw. Nothing of it is logged, counted or kept but the noisy values."""
        plan, period = self.measurement.plan, self._period(start)
        counted, without = None, None
        if period is not None and plan.bounds.max_windows is not None:
            spent = self.journal.spent_units(
                self.hash, period=period, window_start=start, max_windows=plan.bounds.max_windows
            )
            # Of the plan's type and not of the window's rows: a window may have none.
            integers = plan.events.columns[plan.privacy_unit.label] == "integer"
            without = pa.array(spent, type=pa.int64() if integers else pa.string())
            counted = Counted(period=period, units=set(bounding.units().to_pylist()).difference(spent))
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

    def _salt(self, start: datetime) -> bytes:
        return window_salt(self.journal.secret, self.hash, start)


def window_salt(secret: bytes, plan: PlanHash, start: datetime) -> bytes:
    """A window's own secret: it never repeats, and a restart finds it again."""
    return hmac.digest(secret, plan + codec.to_us(start).to_bytes(8, "little", signed=True), "sha256")
