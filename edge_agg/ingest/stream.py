"""Opens a file as a stream of bytes.

Place: under the formats that are read from front to back (NDJSON, CSV, Arrow IPC).
Invariants: compression is told by the last extension alone; a truncated or damaged stream raises, it never ends early.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}


class Raw(NamedTuple):
    """Rows as a format holds them, before they are typed."""

    batch: pa.RecordBatch
    """Those of the asked columns that are there, in any Arrow type; other columns may be among them."""
    skipped: int
    """Lines that could not be made into rows since the batch before."""


def open_stream(path: str) -> pa.NativeFile:
    """Open for reading from the front, decompressing by extension."""
    return pa.input_stream(path, compression=COMPRESSIONS.get(Path(path).suffix.lower()))


def is_empty(path: str) -> bool:
    """Whether not one byte is in the file, once decompressed."""
    with open_stream(path) as stream:
        return not stream.read(1)
