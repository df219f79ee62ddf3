"""What the row groups of a Parquet file say of themselves, and how each is read because of it.

Place: step 1, under `parquet.py`.
Invariants: pure, over a file's metadata; whatever it says, every row comes once and in order.

A row group's statistics are the writer's claim. They are believed in one thing: that the times of a group lie between
the least and the largest that it names, none of them missing. A writer that lies there moves its own rows to a window
of its choice, as it can by writing other times; it cannot make a row count twice, nor past the bounds of its unit,
since bounding comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from edge_agg.ingest import instant

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from edge_agg.contract.plan import ColumnType

OneTime = Callable[[str, int, int], bool]
"""Asked with a timestamp column and two moments in microseconds, both included: whether each time between them may be
read as the first, since nobody who reads the column could tell."""
LEAST_ROWS = 1 << 13
"""Of a row group that is read by itself; smaller ones are read together."""
MOST_ROWS = 1 << 18
"""Of a row group that is read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Row groups that are read in one way."""

    groups: tuple[int, ...]
    rows: int
    times: Mapping[str, int]
    """Timestamp columns that are not read, and the one time that all their rows get, in microseconds."""
    texts: tuple[str, ...]
    """Columns that stay in their dictionaries."""


def runs(file: pq.ParquetFile, columns: Mapping[str, ColumnType], one_time: OneTime | None) -> Iterator[Run]:
    """Every row group, in order."""
    ordinary: list[Run] = []
    for group in range(file.metadata.num_row_groups):
        run = _run(file, group, columns, one_time)
        if run.times or run.texts:
            yield from _joined(ordinary)
            ordinary = []
            yield run
        else:
            ordinary.append(run)
    yield from _joined(ordinary)


def plain(run: Run) -> Run:
    """The same rows, with texts as texts."""
    return replace(run, texts=())


def _joined(ordinary: list[Run]) -> Iterator[Run]:
    if ordinary:
        groups = tuple(group for run in ordinary for group in run.groups)
        yield Run(groups=groups, rows=sum(run.rows for run in ordinary), times={}, texts=())


def _run(file: pq.ParquetFile, group: int, columns: Mapping[str, ColumnType], one_time: OneTime | None) -> Run:
    held = file.metadata.row_group(group)
    run = Run(groups=(group,), rows=held.num_rows, times={}, texts=())
    if held.num_rows < LEAST_ROWS:
        return run
    schema, times, texts = file.schema_arrow, dict[str, int](), list[str]()
    for at in range(held.num_columns):
        chunk = held.column(at)
        name = chunk.path_in_schema
        if name not in columns or (field := schema.get_field_index(name)) < 0:  # not asked, or there twice
            continue
        kind = schema.types[field]
        if columns[name] == "timestamp" and one_time is not None and pa.types.is_timestamp(kind) and kind.unit == "us":
            bounds = _bounds(chunk)
            if bounds is not None and one_time(name, *bounds):
                times[name] = bounds[0]
        elif columns[name] == "string" and held.num_rows <= MOST_ROWS:
            coded = chunk.has_dictionary_page and (pa.types.is_string(kind) or pa.types.is_large_string(kind))
            texts += [name] if coded else []
    if len(times) == len(columns):  # rows are counted by what is read of them
        times = {}
    return replace(run, times=times, texts=tuple(texts))


def _bounds(chunk: pq.ColumnChunkMetaData) -> tuple[int, int] | None:
    """The least and the largest time, if the group names them, they are instants, and no row is without one."""
    said = chunk.statistics
    if said is None or not said.has_min_max or not said.has_null_count or said.null_count:
        return None
    if chunk.physical_type != "INT64" or '"microseconds"' not in said.logical_type.to_json():
        return None
    first, last = int(said.min_raw), int(said.max_raw)
    return (first, last) if first <= last and instant.are_all(np.array([first, last])) else None
