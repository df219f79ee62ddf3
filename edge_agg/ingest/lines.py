"""Cuts text into lines, and makes batches of them.

Place: step 1, under the formats of one event a line (NDJSON, CSV).
Invariants: each line is judged by itself, so a bad one is counted and costs no other; one block of lines is held at a
time, and never more than the bound of a line longer than it. Blank lines are not events and are not counted. Lines that
are parsed together come out as if each had been parsed alone, or are parsed alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from edge_agg.ingest.stream import Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    import pyarrow as pa

T = TypeVar("T")

MAX_LINE_BYTES = 1 << 20
CHUNK_BYTES = 8 << 20
"""Text behind one batch at most, so that long lines do not add up."""
BAD_LINE = (ValueError, RecursionError)
"""What reading a bad line raises: UnicodeDecodeError and msgspec's errors are ValueErrors."""


class Block(NamedTuple):
    """Some whole lines."""

    text: bytes
    """The last line's end may be missing."""
    overlong: int
    """Lines before these that were dropped for their length."""

    def lines(self) -> list[bytes]:
        """One by one, and blank ones among them; nothing follows the last line's end."""
        lines = self.text.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return lines


class Cutter:
    """Cuts bytes, as they come, into blocks of whole lines."""

    def __init__(self) -> None:
        self._tail = b""
        self._dropping = False

    def cut(self, more: bytes) -> Block:
        """Add bytes; return the lines that are whole by now."""
        overlong = 0
        if self._dropping:
            _, newline, more = more.partition(b"\n")
            self._dropping = not newline
        first = more.find(b"\n")
        if first >= 0 and len(self._tail) + first > MAX_LINE_BYTES:
            self._tail, more = b"", more[first + 1 :]
            overlong += 1
        end = more.rfind(b"\n") + 1
        text, self._tail = (self._tail + more[:end], more[end:]) if end else (b"", self._tail + more)
        if len(self._tail) > MAX_LINE_BYTES:
            self._tail, self._dropping = b"", True
            overlong += 1
        return Block(text, overlong)

    def rest(self) -> Block:
        """Return the last line, which has no end."""
        text, self._tail = self._tail, b""
        return Block(text, 0)


def blocks(read: Callable[[int], bytes]) -> Iterator[Block]:
    """Cut a stream into blocks of lines, to its end."""
    cutter = Cutter()
    while more := read(MAX_LINE_BYTES):  # so that only the first line that ends in it can be too long
        yield cutter.cut(more)
    if (rest := cutter.rest()).text:
        yield rest


def batches(
    cut: Iterable[Block],
    parse: Callable[[bytes], T],
    build: Callable[[list[T]], pa.RecordBatch],
    *,
    rows: int,
    together: Callable[[bytes], list[T] | None] = lambda _: None,
) -> Generator[Raw]:
    """Make batches of at most `rows` lines out of what :func:`blocks` gives.

    Args:
        cut: blocks of lines.
        parse: reads one line, or raises one of `BAD_LINE`.
        build: makes a batch of what was read.
        rows: the most of a batch.
        together: reads a block of lines at once, exactly as `parse` reads each of them; None if it cannot.
    """
    events: list[T] = []
    skipped = text = 0
    for block in cut:
        skipped += block.overlong
        text += len(block.text)
        whole = together(block.text)
        if whole is None:
            whole, bad = _each(block, parse)
            skipped += bad
        events += whole
        while len(events) >= rows or text >= CHUNK_BYTES:
            yield Raw(build(events[:rows]), skipped)
            del events[:rows]
            skipped = text = 0
    if events or skipped:
        yield Raw(build(events), skipped)


def _each(block: Block, parse: Callable[[bytes], T]) -> tuple[list[T], int]:
    """Parse the lines one by one: what was read, and how many could not be."""
    events = []
    bad = 0
    for line in block.lines():
        try:
            events.append(parse(line))
        except BAD_LINE:
            bad += bool(line.strip())
    return events, bad
