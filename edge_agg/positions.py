"""How far each source has been read, as the agent keeps it: noted with the next release, forgotten once it is no use.

Place: between the intake, which says what was read to its end, and the journal.
Invariants: a position is journalled together with a release, or alone, but never before its rows are in their windows;
how far its rows can reach in event time is a public bound, so which parts are opened again tells nothing of them.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agg.errors import JournalFull
from edge_agg.ingest.source import Part
from edge_agg.journal import Position
from edge_agg.telemetry import Event, emit

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from edge_agg.journal import Journal
    from edge_agg.series import Series

TIDY_EVERY = timedelta(hours=1)
"""How often positions that nobody needs any more are forgotten."""


@dataclass(slots=True, kw_only=True)
class Positions:
    """The positions of one agent's sources."""

    journal: Journal
    series: Sequence[Series]
    waiting: list[Position] = field(default_factory=list)
    """Those that are not journalled yet; whoever journals them clears it."""
    _read: int = 0
    _tidied: datetime | None = None

    def done(self, source: str) -> list[Part]:
        """The parts that need not be read again."""
        done = self.journal.positions_within(source, self._closed())
        return [Part(path=p.path, size=p.size, mtime_ns=p.mtime_ns, begin=p.begin) for p in done]

    def note(self, parts: Iterable[tuple[str, Part]], reach: datetime) -> None:
        """Parts were read to their end; no row of theirs at or after `reach` was taken."""
        for source, part in parts:
            self.waiting.append(
                Position(
                    source=source,
                    path=part.path,
                    begin=part.begin,
                    size=part.size,
                    mtime_ns=part.mtime_ns,
                    reach=reach,
                )
            )
            if part.is_stretch:
                continue  # it is there because lines are: to tell of it would tell when single events came
            self._read += 1
            emit(Event.PART_READ, source=source, parts=self._read)

    def tidy(self, sources: Iterable[str], now: datetime) -> list[tuple[str, Part]]:
        """Forget the positions of files that are gone, and join stretches that touch; now and then.

        Returns:
            The parts that were forgotten, each with its source.
        """
        if self._tidied is not None and now - self._tidied < TIDY_EVERY:
            return []
        self._tidied = now
        closed = self._closed()
        gone: list[tuple[str, Part]] = []
        with suppress(JournalFull):
            for source in sources:
                done = self.done(source)
                present = {part.path for part in done if part.is_stretch or Path(part.path).exists()}
                self.journal.tidy_positions(source, closed, present=present)
                gone += [(source, part) for part in done if part.path not in present]
        return gone

    def _closed(self) -> list[datetime | None]:
        return [series.closed_before for series in self.series]
