"""Cuts text into lines, and makes batches of them.

Place: step 1, under the formats of one event a line (NDJSON, CSV).
Invariants: each line is judged by itself, so a bad one is counted and costs no other; one chunk of lines is held at a
time, and never more than the bound of a line longer than it. Blank lines are not events and are not counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

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


def lines(read: Callable[[int], bytes]) -> Iterator[tuple[list[bytes], int]]:
    """Cut a stream into lines: how many were dropped for their length, and some lines after those, at each turn."""
    tail, dropping = b"", False
    while block := read(MAX_LINE_BYTES):
        overlong = 0
        if dropping:
            _, newline, block = block.partition(b"\n")
            dropping = not newline
        whole = (tail + block).split(b"\n")
        tail = whole.pop()
        if whole and len(whole[0]) > MAX_LINE_BYTES:  # a later one is shorter than the block it came in
            del whole[0]
            overlong += 1
        if len(tail) > MAX_LINE_BYTES:
            tail, dropping = b"", True
            overlong += 1
        yield whole, overlong
    if tail:
        yield [tail], 0


def batches(
    chunks: Iterable[tuple[list[bytes], int]],
    parse: Callable[[bytes], T],
    build: Callable[[list[T]], pa.RecordBatch],
    *,
    rows: int,
) -> Generator[Raw]:
    """Make batches of at most `rows` lines out of what :func:`lines` gives."""
    events: list[T] = []
    skipped = text = 0
    for chunk, overlong in chunks:
        skipped += overlong
        text += sum(map(len, chunk))
        for line in chunk:
            try:
                events.append(parse(line))
            except BAD_LINE:
                skipped += bool(line.strip())
        while len(events) >= rows or text >= CHUNK_BYTES:
            yield Raw(build(events[:rows]), skipped)
            del events[:rows]
            skipped = text = 0
    if events or skipped:
        yield Raw(build(events), skipped)
