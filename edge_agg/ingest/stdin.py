"""Standard input: a line an event.

Place: step 1 of an event's way, for events that are piped in.
Invariants: a frame holds whole lines, of 4 MiB or of 200 ms, whichever comes first, and nothing more is read before it
is safe, so a full agent stops the pipe. A pipe takes no answer: lines that were read and are not yet safe are nobody's
if the process ends. The last line counts without its end.
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import push
from edge_agg.ingest.lines import MAX_LINE_BYTES, Cutter
from edge_agg.ingest.source import InletFull

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.config.tables import StdinTable
    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame, Inlet

GATHER_S = 0.2
"""How long lines are gathered into one frame, seconds; also how soon a stop is noticed."""
GATHER_BYTES = 4 << 20
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


@dataclass(frozen=True, slots=True)
class StdinSource:
    """The process's standard input, as a `Source`."""

    table: StdinTable
    descriptor: int = field(default=0, kw_only=True)
    """What is read; tests bring a pipe of their own."""
    gather_s: float = field(default=GATHER_S, kw_only=True)

    @property
    def name(self) -> str:
        """The kind and the format: there is only one standard input."""
        return f"stdin:{self.table.format}"

    def check(self, columns: Mapping[str, ColumnType]) -> None:  # noqa: ARG002 - one signature for all sources
        """Look whether it is open; a pipe cannot be looked into. The protocol says what is raised."""
        try:
            os.fstat(self.descriptor)
        except OSError:
            pass
        else:
            return
        raise SourceUnreadable("standard input: it is closed")

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Hand lines over until the input ends; without `drain` an ended input stays current until the stop."""
        text = _Text(self.table.format, inlet.columns)
        inlet.is_current(False)
        while not stop.is_set():
            gathered, more, ended = await asyncio.to_thread(self._gather)
            frame = await asyncio.to_thread(text.frame, gathered, ended=ended)
            if (frame.batch.num_rows or frame.rejected) and not await _take(inlet, frame, stop):
                return
            inlet.is_current(not more)
            if ended:
                if not drain:
                    await stop.wait()
                return

    def _gather(self) -> tuple[list[bytes], bool, bool]:
        """Read what comes, for a moment; also whether more waits behind it, and whether it has ended."""
        ready = select.poll()
        ready.register(self.descriptor, _READABLE)
        blocks: list[bytes] = []
        size, until = 0, time.monotonic() + self.gather_s
        while size < GATHER_BYTES and (left := until - time.monotonic()) > 0:
            if not ready.poll(left * 1000):
                break
            try:
                block = os.read(self.descriptor, MAX_LINE_BYTES)
            except BlockingIOError:  # somebody else at the same end was faster
                continue
            except OSError as error:
                kind = type(error).__name__
                raise SourceUnreadable(f"standard input: cannot be read ({kind})") from None
            if not block:
                return blocks, False, True
            blocks.append(block)
            size += len(block)
        return blocks, size >= GATHER_BYTES, False


async def _take(inlet: Inlet, frame: Frame, stop: asyncio.Event) -> bool:
    """Offer a frame until it is taken; false if the agent stops before."""
    while not stop.is_set():
        try:
            await inlet.take(frame)
        except InletFull as full:
            inlet.is_current(False)
            retry_s = full.retry_s
        else:
            return True
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), retry_s)
    return False


class _Text:
    """Makes frames of blocks of text that end anywhere."""

    def __init__(self, form: str, columns: Mapping[str, ColumnType]) -> None:
        self._cutter = Cutter()
        self._columns = columns
        self._form = form
        self._header = b""

    def frame(self, gathered: list[bytes], *, ended: bool) -> Frame:
        """Make one frame of the lines that are whole by now, or of the rest."""
        cut = [self._cutter.cut(block) for block in gathered]
        if ended:
            cut.append(self._cutter.rest())
        text, overlong = b"".join(block.text for block in cut), sum(block.overlong for block in cut)
        try:
            whole = self._decoded(text)
        except push.BodyRefused:  # a header that is no CSV: not one line can be read
            whole = push.empty(self._columns, rejected=text.count(b"\n"))
        return replace(whole, rejected=whole.rejected + overlong)

    def _decoded(self, text: bytes) -> Frame:
        if self._form == "ndjson":
            return push.frame_of_ndjson(text, self._columns)
        while text and not self._header:
            line, _, text = text.partition(b"\n")
            self._header = line + b"\n" if line.strip() else b""
        return push.frame_of_csv(self._header + text, self._columns)
