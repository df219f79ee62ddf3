"""Whole event files on this machine, by glob pattern.

Place: step 1 of an event's way, and the door to step 2: a format's raw batches are typed here and become frames.
Invariants: files come in sorted order; no more than `batch_rows` rows are in a frame and no file is held in memory; any
error of a reader, whose text may print a value, is replaced by one that names the file and the kind of error only.

A drain is strict: a file that cannot be read ends it. A live agent passes such a file over, says so, and goes on.
It is current once all files that were there when it last looked have been handed over.

Which format a file has is told by its extension: `.parquet`; `.ndjson`, `.jsonl`; `.csv`; `.arrow`, `.feather`, `.ipc`;
all but the first also with `.gz`, `.zst` or `.bz2` after it. A file of no bytes is a part with no rows.
"""

from __future__ import annotations

import glob
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import polars as pl
import pyarrow as pa

from edge_agg.clock import SystemClock
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import csv_text, ipc, ndjson, parquet
from edge_agg.ingest.decode import can_read, decode, typed_schema
from edge_agg.ingest.handover import in_thread, taken, wait_next
from edge_agg.ingest.source import Frame, Part
from edge_agg.ingest.stream import COMPRESSIONS, Raw
from edge_agg.ingest.trouble import Trouble, unheard

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Collection, Generator, Iterator, Mapping

    from edge_agg.clock import Clock
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.groups import OneTime
    from edge_agg.ingest.source import Inlet

T = TypeVar("T")

POLL_S = 5.0
"""How often a live agent looks for new files, seconds."""
_BEGINNING = datetime.min.replace(tzinfo=UTC)
RETRY = timedelta(minutes=10)
"""When a file that could not even be begun is tried again: rights are mended, a disk comes back."""


class FileDamaged(SourceUnreadable):
    """A file cannot be read, whoever asks for what: it is damaged, or it cannot be opened. Replace it."""


class Format(Protocol):
    """What the module of a format does."""

    def fields(self, path: str, columns: Mapping[str, ColumnType]) -> pa.Schema | None:
        """What the file says it holds (of the asked columns at least), or None if it is empty."""

    def batches(self, path: str, columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:
        """Its rows, raw, with the asked columns that are there."""


_FORMATS: Mapping[str, Format] = {
    ".parquet": parquet,
    ".ndjson": ndjson,
    ".jsonl": ndjson,
    ".csv": csv_text,
    ".arrow": ipc,
    ".feather": ipc,
    ".ipc": ipc,
}


@dataclass(frozen=True, slots=True)
class FileSource:
    """The files that match a pattern, as a `Source`."""

    pattern: str
    """As of `glob`, with `**` for any depth of folders."""
    batch_rows: int = field(default=65_536, kw_only=True)
    """Rows a frame has at most."""
    tolerant: bool = field(default=False, kw_only=True)
    """Whether `check` lets pass what a live agent lives with: no file yet, and bad files beside good ones."""
    clock: Clock = field(default_factory=SystemClock, kw_only=True)
    poll_s: float = field(default=POLL_S, kw_only=True)
    heard: Callable[[Trouble], None] = field(default=unheard, kw_only=True)
    """Is told of each file that a live agent passes over."""
    _passed_over: dict[Part, datetime | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The files as they were, and when to try each again; never, if some of its rows were taken."""
    one_time: OneTime | None = field(default=None, kw_only=True)
    """What its readers can do without, where a file says enough of itself: `groups.OneTime`. None: nothing."""

    @property
    def name(self) -> str:
        """`file:` and the pattern."""
        return f"file:{self.pattern}"

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """Look at the head of every file that matches now; the protocol says what is raised.

        Tolerant, it raises only where every file that is sound is of no known format, or cannot give the columns.
        """
        if not self.tolerant:
            self._check_all(columns)
            return
        misfit: SourceUnreadable | None = None
        for path in self._paths():
            try:
                _check_file(path, columns)
            except FileDamaged:
                continue
            except SourceUnreadable as error:
                misfit = misfit or error
            else:
                return
        if misfit is not None:
            raise misfit

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Hand over every file that is not done, then look again from time to time; the protocol says the rest.

        A drain looks at the head of every file before it hands anything over.
        """
        inlet.is_current(False)
        if drain:
            await in_thread(self._check_all, inlet.columns)
        while not stop.is_set():
            await self._pass(inlet, stop, strict=drain)
            if drain:
                return
            await wait_next(stop, self.clock, self.poll_s)

    def frames(self, columns: Mapping[str, ColumnType], *, skip: Collection[Part] = ()) -> Iterator[Frame]:
        """Read every file that matches now, except those in `skip` that are still as they were."""
        read = frozenset(skip)
        for path in self._paths():
            part = _attempt(path, partial(_part, path))
            if part not in read:
                yield from self._part_frames(part, columns)

    async def _pass(self, inlet: Inlet, stop: asyncio.Event, *, strict: bool) -> None:
        """Hand over what is there now and not done."""
        done = inlet.done()
        parts = [part for part in await in_thread(self._parts) if part not in done]
        for gone in self._passed_over.keys() - set(parts):
            del self._passed_over[gone]
        parts = [part for part in parts if self._is_due(part)]
        if parts:
            inlet.is_current(False)
        for part in parts:
            if not await self._hand_over(part, inlet, stop, strict=strict):
                return
        inlet.is_current(True)

    async def _hand_over(self, part: Part, inlet: Inlet, stop: asyncio.Event, *, strict: bool) -> bool:
        """Hand one file over, or pass it over; false if the stop came before its end."""
        begun = False
        with closing(self._part_frames(part, inlet.columns)) as frames:
            try:
                while (frame := await in_thread(next, frames, None)) is not None:
                    if stop.is_set() or not await taken(inlet, frame, stop):
                        return False
                    begun = True
            except SourceUnreadable:
                if strict:
                    raise
                self._passed_over[part] = None if begun else self.clock.now() + RETRY
                self.heard(Trouble.FILE_UNREADABLE)
        return True

    def _is_due(self, part: Part) -> bool:
        again = self._passed_over.get(part, _BEGINNING)
        return again is not None and again <= self.clock.now()

    def _check_all(self, columns: Mapping[str, ColumnType]) -> None:
        paths = self._paths()
        if not paths:
            raise SourceUnreadable(f"{self.pattern}: no file matches")
        for path in paths:
            _check_file(path, columns)

    def _parts(self) -> list[Part]:
        """The files that match now; one that goes away meanwhile does not."""
        parts = []
        for path in self._paths():
            with suppress(FileNotFoundError):
                parts.append(_part(path))
        return parts

    def _paths(self) -> list[str]:
        found = glob.iglob(self.pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return _attempt(self.pattern, lambda: sorted(path for path in found if Path(path).is_file()))

    def _part_frames(self, part: Part, columns: Mapping[str, ColumnType]) -> Generator[Frame]:
        """Hold each frame back until it is known whether another follows."""
        held = Frame(part=part, batch=pa.RecordBatch.from_pylist([], typed_schema(columns)), rejected=0, last=True)
        seen = False
        with closing(_typed(part.path, columns, self.batch_rows, self.one_time)) as typed:
            while (pair := _attempt(part.path, partial(next, typed, None))) is not None:
                if seen:
                    yield replace(held, last=False)
                held, seen = replace(held, batch=pair[0], rejected=pair[1]), True
        if _attempt(part.path, partial(_part, part.path)) != part:
            raise SourceUnreadable(f"{part.path}: changed while it was read; write elsewhere, rename when whole")
        yield held


def _part(path: str) -> Part:
    now = Path(path).stat()
    return Part(path=path, size=now.st_size, mtime_ns=now.st_mtime_ns)


def _format(path: str) -> Format:
    name = Path(path.lower())
    packed = name.suffix in COMPRESSIONS
    extension = name.with_suffix("").suffix if packed else name.suffix
    if extension not in _FORMATS or (packed and extension == ".parquet"):
        raise SourceUnreadable(f"{path}: no known format has this extension")
    return _FORMATS[extension]


def _check_file(path: str, columns: Mapping[str, ColumnType]) -> None:
    schema = _attempt(path, lambda: _format(path).fields(path, columns))
    if schema is None:
        return
    for name, wanted in columns.items():
        at = schema.get_field_index(name)
        if at < 0:
            raise SourceUnreadable(f"{path}: no column {name!r}, or more than one")
        if not can_read(schema.types[at], wanted):
            raise SourceUnreadable(f"{path}: column {name!r} is of a type that cannot be read as {wanted}")


def _typed(
    path: str, columns: Mapping[str, ColumnType], rows: int, one_time: OneTime | None
) -> Generator[tuple[pa.RecordBatch, int]]:
    """Read and type a file, at most `rows` rows at a time."""
    held = _format(path)
    batches = partial(parquet.batches, one_time=one_time) if held is parquet else held.batches
    with closing(batches(path, columns, rows=rows)) as raws:
        for raw, skipped in raws:
            for start in range(0, max(raw.num_rows, 1), rows):
                batch, rejected = decode(raw.slice(start, rows), columns)
                yield batch, rejected + (skipped if start == 0 else 0)


def _attempt(path: str, action: Callable[[], T]) -> T:
    """Do what a reader might fail at, and let none of its words out, not even as the context of the new error."""
    try:
        return action()
    except SourceUnreadable:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # noqa: BLE001 - whatever it is, its text may hold a value
        kind = type(error).__name__
    raise FileDamaged(f"{path}: cannot be read ({kind})")
