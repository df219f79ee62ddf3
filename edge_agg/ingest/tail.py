"""Files that grow by lines, through rotation and truncation.

Place: step 1 of an event's way; what a line says is read by `push.py` and the formats.
Invariants: a line is an event once its line break is there, and is handed over once; a position moves only after the
inlet has called what lies before it safe. A stretch is one part and one frame, of whole lines, so it is taken as a
whole or not at all. A line that is too long is counted and dropped without being held.

After a restart every stretch that is not done is read again, so a rotated file must stay readable, and match, until the
windows of its rows have closed. Compressed files are not read: they are logs that were rotated before.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from glob import iglob
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from edge_agg.clock import SystemClock
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import csv_text
from edge_agg.ingest.decode import typed_schema
from edge_agg.ingest.generation import Key, Past
from edge_agg.ingest.handover import in_thread, taken, wait_next
from edge_agg.ingest.lines import MAX_LINE_BYTES
from edge_agg.ingest.push import BodyRefused, frame_of_csv, frame_of_ndjson
from edge_agg.ingest.rotation import Listed, Rotation
from edge_agg.ingest.source import Frame
from edge_agg.ingest.stream import COMPRESSIONS
from edge_agg.ingest.trouble import Trouble, unheard

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from edge_agg.clock import Clock
    from edge_agg.config.tables import TailTable
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.generation import Generation
    from edge_agg.ingest.source import Inlet

POLL_S = 5.0
"""How often files are looked at, seconds: each look that finds new lines makes a stretch."""
STRETCH_BYTES = 4 << 20
STRETCH_LINES = 65_536
_PACKED = {*COMPRESSIONS, ".xz", ".lz4", ".br", ".z", ".zip", ".7z"}


class _Stretch(NamedTuple):
    end: int
    data: bytes
    """Its lines; nothing if it is one line that is too long."""


@dataclass(slots=True)
class TailSource:
    """The growing files that match a pattern, as a `Source`."""

    table: TailTable
    clock: Clock = field(default_factory=SystemClock, kw_only=True)
    poll_s: float = field(default=POLL_S, kw_only=True)
    heard: Callable[[Trouble], None] = field(default=unheard, kw_only=True)
    """Is told of each file that cannot be read, or that went away too early."""
    _rotation: Rotation | None = field(default=None, init=False, repr=False)
    _failing: set[Key] = field(default_factory=set, init=False, repr=False)

    @property
    def name(self) -> str:
        """`tail:` and the pattern."""
        return f"tail:{self.table.path}"

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """Look at the headers of the files that are there; none need be there yet, and a line of JSON may lack a key.

        Raises:
            SourceUnreadable: there are headers, and none of them has all columns once.
        """
        if self.table.format != "csv":
            return
        missing = ""
        for file in list_files(self.table.path).values():
            try:
                header = csv_text.fields(file.path, columns) if _has_line(file.path) else None
            except (OSError, ValueError):
                continue
            if header is None:
                continue
            lacks = [name for name in columns if header.get_field_index(name) < 0]
            if not lacks:
                return
            missing = missing or f"{file.path}: no column {lacks[0]!r}, or more than one"
        if missing:
            raise SourceUnreadable(missing)

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Hand over what is not done, then what is added; the protocol says the rest.

        It is current once all lines that were there when it last looked have been handed over. What it knows of the
        files outlasts the call, so that a second one goes on where the first stopped.
        """
        inlet.is_current(False)
        if self._rotation is None:
            self._rotation = Rotation(past=Past(inlet.done()), heard=self.heard)
        try:
            while not stop.is_set():
                await self._pass(self._rotation, inlet, stop, strict=drain)
                if drain:
                    return
                await wait_next(stop, self.clock, self.poll_s)
        finally:
            self._rotation.close()

    async def _pass(self, rotation: Rotation, inlet: Inlet, stop: asyncio.Event, *, strict: bool) -> None:
        listed = await in_thread(list_files, self.table.path)
        if strict and not listed:
            raise SourceUnreadable(f"{self.table.path}: no file matches")
        due = rotation.due(listed, self.clock.now())
        while (generation := await in_thread(next, due, None)) is not None:
            try:
                if not await self._hand_over(generation, inlet, stop):
                    return
            except OSError as error:
                kind = type(error).__name__
            else:
                self._failing.discard(generation.key)
                continue
            if strict:
                raise SourceUnreadable(f"{self.table.path}: cannot be read ({kind})")
            if generation.key not in self._failing:
                self._failing.add(generation.key)
                self.heard(Trouble.FILE_UNREADABLE)
        inlet.is_current(True)

    async def _hand_over(self, generation: Generation, inlet: Inlet, stop: asyncio.Event) -> bool:
        """Hand over what was there at the last look; false if the stop came before its end."""
        while (stretch := await in_thread(self._cut, generation)) is not None:
            frame = await in_thread(self._frame, generation, stretch, inlet.columns)
            if stop.is_set() or not await taken(inlet, frame, stop):
                return False
            generation.advance(stretch.end, stretch.data)
            if generation.size - stretch.end > STRETCH_BYTES:
                inlet.is_current(False)
        return True

    def _cut(self, generation: Generation) -> _Stretch | None:
        """Read the next stretch, or nothing if no line ends in what is there."""
        at, descriptor = generation.position, generation.descriptor
        assert descriptor is not None
        data = os.pread(descriptor, min(generation.size - at, STRETCH_BYTES), at)
        lines = data[: data.rfind(b"\n") + 1].split(b"\n", STRETCH_LINES)
        data = data[: data.rfind(b"\n") + 1 - len(lines[-1])]
        end = at + len(data) if data else _line_end(generation)
        if end is None or not generation.is_in(descriptor):
            return None
        return _Stretch(end, data)

    def _frame(self, generation: Generation, stretch: _Stretch, columns: Mapping[str, ColumnType]) -> Frame:
        part = generation.part(stretch.end)
        try:
            if not stretch.data:
                rejected = 1
            elif self.table.format == "ndjson":
                return replace(frame_of_ndjson(stretch.data, columns), part=part)
            else:
                return replace(frame_of_csv(_with_header(generation, stretch.data), columns), part=part)
        except BodyRefused:
            rejected = sum(bool(line.strip()) for line in stretch.data.split(b"\n"))
        nothing = pa.RecordBatch.from_pylist([], typed_schema(columns))
        return Frame(part=part, batch=nothing, rejected=rejected, last=True)


def list_files(pattern: str) -> dict[Key, Listed]:
    """The files that match and are not compressed; of several names of one file, the first."""
    found: dict[Key, Listed] = {}
    for path in sorted(iglob(pattern, recursive=True)):  # noqa: PTH207 - Path.glob takes no absolute pattern
        if Path(path).suffix.lower() in _PACKED:
            continue
        try:
            now = Path(path).stat()
        except OSError:
            continue
        if S_ISREG(now.st_mode):
            file = Listed(path=path, size=now.st_size, mtime_ns=now.st_mtime_ns)
            found.setdefault(Key(now.st_dev, now.st_ino), file)
    return found


def _has_line(path: str) -> bool:
    with Path(path).open("rb") as file:
        return b"\n" in file.read(MAX_LINE_BYTES)


def _line_end(generation: Generation) -> int | None:
    """Behind the line break that ends a line of more than a stretch, if it is there yet."""
    assert generation.descriptor is not None
    at = max(generation.position, generation.searched)
    while at < generation.size and (block := os.pread(generation.descriptor, MAX_LINE_BYTES, at)):
        found = block.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(block)
    generation.searched = at
    return None


def _with_header(generation: Generation, data: bytes) -> bytes:
    """Put the file's first line that is not blank before lines that lie behind it."""
    assert generation.descriptor is not None
    head = data if generation.position == 0 else os.pread(generation.descriptor, MAX_LINE_BYTES + 1, 0)
    begin = len(head) - len(head.lstrip())
    begin = head.rfind(b"\n", 0, begin) + 1
    end = head.find(b"\n", begin) + 1
    return data if end == 0 or end > generation.position else head[begin:end] + data
