"""What the sources share that are pushed to: a body of bytes in, one frame out.

Place: steps 1 and 2 for events that are handed over once (HTTP, MQTT, standard input).
Invariants: a body is one frame, so that it is taken as a whole or not at all; no body raises anything but
`BodyRefused`, whose text is a code of `Code` and never a value; a bad line costs itself and is counted.
"""

from __future__ import annotations

import io
from enum import StrEnum
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from edge_agg.ingest import csv_text, ndjson
from edge_agg.ingest.decode import decode, typed_schema
from edge_agg.ingest.source import Frame
from edge_agg.ingest.stream import Raw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from edge_agg.contract.plan import ColumnType

ROWS = 65_536
"""Lines that are decoded together."""


class Code(StrEnum):
    """Why a body was not taken; whoever sent it is told this and nothing else."""

    MALFORMED = "malformed"
    """It is not in the format that it says."""
    TOO_LARGE = "too_large"
    """More bytes or rows than are taken at once: send smaller batches."""
    WRONG_SCHEMA = "wrong_schema"
    """A column that a plan reads is not there, is there twice, or has a type that cannot be read."""
    ENCODING = "encoding"
    """It is not compressed as it says, or needs more memory to unpack than is given."""
    NOTHING_FITS = "nothing_fits"
    """Not one row has values of the types that the plans read."""


class BodyRefused(Exception):
    """Nothing of the body was taken, and the same bytes never will be."""

    def __init__(self, code: Code) -> None:
        super().__init__(code.value)
        self.code = code


def frame_of_ndjson(data: bytes, columns: Mapping[str, ColumnType]) -> Frame:
    """Make a frame of JSON objects, one a line; a line that is none is counted as rejected."""
    return guarded(lambda: _frame(ndjson.read_rows(io.BytesIO(data).read, columns, rows=ROWS), columns))


def frame_of_csv(data: bytes, columns: Mapping[str, ColumnType]) -> Frame:
    """Make a frame of lines of CSV, the first of which is the header."""
    return guarded(lambda: _frame(csv_text.read_rows(io.BytesIO(data).read, columns, rows=ROWS), columns))


def frame_of_batches(batches: Iterable[pa.RecordBatch], columns: Mapping[str, ColumnType]) -> Frame:
    """Make a frame of raw batches that were validated, each with the asked columns."""
    return guarded(lambda: _frame((Raw(batch, 0) for batch in batches), columns))


def joined(frames: Iterable[Frame], columns: Mapping[str, ColumnType]) -> Frame:
    """Make one frame of several without a part: they are then taken together, and fsynced once."""
    held = list(frames)
    return _whole([frame.batch for frame in held], sum(frame.rejected for frame in held), columns)


def empty(columns: Mapping[str, ColumnType], *, rejected: int) -> Frame:
    """Make a frame of no rows, which counts what was rejected."""
    return _whole([], rejected, columns)


def guarded(make: Callable[[], Frame]) -> Frame:
    """Make a frame, and turn whatever a decoder raises into a refusal that quotes nothing."""
    try:
        return make()
    except BodyRefused as refused:
        code = refused.code
    except (Exception, pl.exceptions.PanicException):  # noqa: BLE001 - whatever it is, its text may hold a value
        code = Code.MALFORMED
    raise BodyRefused(code)


def _frame(raws: Iterable[Raw], columns: Mapping[str, ColumnType]) -> Frame:
    batches: list[pa.RecordBatch] = []
    rejected = 0
    for raw in raws:
        batch, wrong = decode(raw.batch, columns)
        batches.append(batch)
        rejected += wrong + raw.skipped
    return _whole(batches, rejected, columns)


def _whole(batches: list[pa.RecordBatch], rejected: int, columns: Mapping[str, ColumnType]) -> Frame:
    batch = pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], typed_schema(columns))
    return Frame(part=None, batch=batch, rejected=rejected, last=True)
