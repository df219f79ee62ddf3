"""Parquet files, row group by row group.

Place: step 1, under `file.py`.
Invariants: only the asked columns are read; pages are read as they are needed, so memory is bounded by `rows` and the
page size, not by the file. A file of no bytes has no rows.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from edge_agg.ingest.stream import Raw, is_empty

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    import pyarrow as pa

    from edge_agg.contract.plan import ColumnType

_PAGE_BUFFER = 1 << 18


@contextmanager
def _opened(path: str) -> Iterator[pq.ParquetFile]:
    # An INT96 timestamp of the year 2300 would wrap as nanoseconds; as microseconds it stays out of range.
    options = {"buffer_size": _PAGE_BUFFER, "pre_buffer": False, "coerce_int96_timestamp_unit": "us"}
    with pq.ParquetFile(path, **options) as file:
        yield file


def fields(path: str, columns: Mapping[str, ColumnType]) -> pa.Schema | None:  # noqa: ARG001 - one signature for all formats
    """Return the file's schema, or None if the file is empty."""
    if is_empty(path):
        return None
    with _opened(path) as file:
        return file.schema_arrow


def batches(path: str, columns: Mapping[str, ColumnType], *, rows: int) -> Generator[Raw]:
    """Read the asked columns, at most `rows` rows at a time."""
    if is_empty(path):
        return
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=list(columns), use_threads=False):
            yield Raw(batch, 0)
