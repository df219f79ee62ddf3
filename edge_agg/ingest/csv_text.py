"""CSV files: a header line, commas, double quotes, one event a line.

Place: step 1, under `file.py`.
Invariants: those of `lines.py`; cells are handed on as bytes, so that `decode` judges each by itself; an empty cell,
quoted or not, is null; a line with too few or too many cells, or with a quote that does not close on it, is counted and
skipped, so a cell cannot hold a line break. A file of no lines has no rows.

Not pyarrow's reader: an unclosed quote or a long line ends it, it reads tens of blocks ahead in a thread, and its
handler of bad lines fails aloud where they are not UTF-8.
"""

from __future__ import annotations

import csv
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from edge_agg.ingest import lines
from edge_agg.ingest.lines import Block
from edge_agg.ingest.stream import open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.stream import Raw

    Cells = list[bytes]

_BOM = b"\xef\xbb\xbf"


def fields(path: str, columns: Mapping[str, ColumnType]) -> pa.Schema | None:  # noqa: ARG001 - one signature for all
    """Return the header's names, all as text, or None if there is no line."""
    with open_stream(path) as stream:
        header, _ = _header(stream.read)
    return pa.schema([(name, pa.binary()) for name in header]) if header else None


def batches(path: str, columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:
    """Read the asked cells, at most `rows` lines at a time."""
    with open_stream(path) as stream:
        yield from read_rows(stream.read, columns, rows=rows)


def read_rows(read: Callable[[int], bytes], columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:
    """As `batches`, from whatever gives bytes, the header first: a file, a pipe, a body in memory."""
    header, body = _header(read)
    places = {name: header.index(name) for name in columns if header.count(name) == 1}
    wanted, width = list(places.values()), len(header)
    cut = _cutter()

    def parse(line: bytes) -> Cells:
        cells = cut(line)
        if len(cells) != width:
            raise ValueError
        return [cells[place].encode("latin-1") for place in wanted]

    def build(events: list[Cells]) -> pa.RecordBatch:
        arrays = [pa.array([event[k] or None for event in events], pa.binary()) for k in range(len(wanted))]
        count = pa.nulls(len(events))  # even where no column is there, there are rows to reject
        return pa.record_batch([*arrays, count], names=[*places, ""])

    yield from lines.batches(body, parse, build, rows=rows)


def _header(read: Callable[[int], bytes]) -> tuple[list[str], Iterable[Block]]:
    """Read the first line that is not blank; return its names, none if there is no such line, and what follows."""
    blocks = lines.blocks(read)
    for block in blocks:
        if block.overlong:
            raise ValueError
        rest = block.text
        while rest:
            line, _, rest = rest.partition(b"\n")
            if line.strip():
                cells = _cutter()(line.removeprefix(_BOM))
                names = [cell.encode("latin-1").decode(errors="replace") for cell in cells]
                return names, chain([Block(rest, 0)], blocks)
    return [], []


def _cutter() -> Callable[[bytes], list[str]]:
    """Make what cuts one line into cells; a blank line, or one whose quotes do not fit, is a ValueError.

    Cells are in Latin-1, which gives every byte back as it was. The reader gets one line at a time, and has an
    IndexError where an open quote makes it ask for a second.
    """
    waiting: list[str] = []
    reader = csv.reader(iter(waiting.pop, None), strict=True)

    def cut(line: bytes) -> list[str]:
        if not line.strip():
            raise ValueError
        text = line.removesuffix(b"\r").decode("latin-1")
        if '"' not in text:
            return text.split(",")
        waiting.append(text)
        try:
            return next(reader)
        except (csv.Error, IndexError):
            pass
        raise ValueError

    return cut
