"""Parquet files, row group by row group.

Place: step 1, under `file.py`.
Invariants: only the asked columns are read; pages are read as they are needed, so memory is bounded by `rows` and the
page size, not by the file, save that a row group of which texts are read as a dictionary is read at once and is bounded
in rows. A file of no bytes has no rows.

What a row group says of itself saves work twice (`groups.py`): texts stay in the dictionary they were written in, and
times that the caller cannot tell apart are not read.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edge_agg.ingest import instant
from edge_agg.ingest.groups import plain, runs
from edge_agg.ingest.stream import Raw, is_empty

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.groups import OneTime, Run

_PAGE_BUFFER = 1 << 18
_REPAYS = 2
"""A dictionary is worth keeping where each of its texts stands in so many rows, on average."""


@contextmanager
def _opened(
    path: str, *, metadata: pq.FileMetaData | None = None, texts: Sequence[str] = ()
) -> Iterator[pq.ParquetFile]:
    # An INT96 timestamp of the year 2300 would wrap as nanoseconds; as microseconds it stays out of range.
    options = {"buffer_size": _PAGE_BUFFER, "pre_buffer": False, "coerce_int96_timestamp_unit": "us"}
    with pq.ParquetFile(path, metadata=metadata, read_dictionary=list(texts), **options) as file:
        yield file


def fields(path: str, columns: Mapping[str, ColumnType]) -> pa.Schema | None:  # noqa: ARG001 - one signature for all formats
    """Return the file's schema, or None if the file is empty."""
    if is_empty(path):
        return None
    with _opened(path) as file:
        return file.schema_arrow


def batches(
    path: str, columns: Mapping[str, ColumnType], *, rows: int, one_time: OneTime | None = None
) -> Generator[Raw]:
    """Read the asked columns, at most `rows` rows at a time, or a row group at once.

    Args:
        path: the file.
        columns: what is asked for.
        rows: of a batch.
        one_time: whether times between two moments may be read as the first of them; None: never.
    """
    if is_empty(path):
        return
    with ExitStack() as stack:
        file = stack.enter_context(_opened(path))
        coded: dict[tuple[str, ...], pq.ParquetFile] = {}
        repays = True
        for run in runs(file, columns, one_time):
            if not run.texts or not repays:
                yield from _read(file, plain(run), columns, rows)
                continue
            if run.texts not in coded:
                coded[run.texts] = stack.enter_context(_opened(path, metadata=file.metadata, texts=run.texts))
            for raw in _read(coded[run.texts], run, columns, run.rows):
                repays = repays and all(_repays(raw.batch.column(name)) for name in run.texts)
                yield raw


def _read(file: pq.ParquetFile, run: Run, columns: Mapping[str, ColumnType], rows: int) -> Iterator[Raw]:
    names = [name for name in columns if name not in run.times]
    for batch in file.iter_batches(batch_size=rows, row_groups=run.groups, columns=names, use_threads=False):
        whole = batch
        for name, micros in run.times.items():
            same = pa.py_buffer(np.full(batch.num_rows, micros))
            whole = whole.append_column(name, pa.Array.from_buffers(instant.TYPE, batch.num_rows, [None, same]))
        yield Raw(whole, 0)


def _repays(column: pa.Array) -> bool:
    return len(column.dictionary) * _REPAYS <= len(column)
