"""Writers of event files: the same rows in every format and compression that `FileSource` reads."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edge_agg.ingest.file import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType

    Rows = list[dict[str, Any]]

PACKED = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}
PLAIN = ["ndjson", "csv", "arrow", "stream.arrow"]
FORMS = [
    "parquet",
    *PLAIN,
    *[f"{plain}.{packed}" for plain in PLAIN for packed in PACKED],
    "jsonl",
    "feather",
    "ipc",
]
"""Endings of file names; `stream.arrow` is the IPC stream format."""
SCHEMA = pa.schema(
    [
        ("secret", pa.string()),  # in every file, never asked for
        ("i", pa.int32()),
        ("t", pa.timestamp("ns")),
        ("s", pa.dictionary(pa.int8(), pa.large_string())),
        ("b", pa.bool_()),
        ("f", pa.float32()),
    ]
)


@pytest.fixture
def columns() -> Mapping[str, ColumnType]:
    """One column of each type, in another order than the files have."""
    return {"t": "timestamp", "s": "string", "f": "float", "i": "integer", "b": "boolean"}


@pytest.fixture
def events() -> Rows:
    """Rows that every format can hold, nulls in every column."""
    start = datetime(2013, 1, 1, 10, tzinfo=UTC)
    rows = [
        {
            "t": start + timedelta(minutes=k, microseconds=k),
            "s": ["N123", "Ünï, 漢", 'say "hi"'][k % 3],
            "f": k / 4 - 20,
            "i": k - 50,
            "b": k % 2 == 0,
            "secret": "not asked for",
        }
        for k in range(100)
    ]
    for k, name in enumerate(["t", "s", "f", "i", "b"]):
        rows[10 * k + 7][name] = None
    return rows


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """Each ending of a file name in turn."""
    return str(request.param)


def _text(rows: Rows, names: list[str], form: str) -> bytes:
    plain = [{n: v.isoformat() if isinstance(v := row[n], datetime) else v for n in names if n in row} for row in rows]
    if "json" in form:
        return b"".join(msgspec.json.encode(row) + b"\n" for row in plain)
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(plain)
    return out.getvalue().encode()


def _cells(rows: list[list[bytes | None]], names: list[str], form: str) -> bytes:
    if "json" in form:
        fields = [
            [b'"%s":%s' % (n.encode(), b"null" if c is None else b'"%s"' % c) for n, c in zip(names, row, strict=True)]
            for row in rows
        ]
        return b"".join(b"{%s}\n" % b",".join(field) for field in fields)
    header: list[bytes | None] = [name.encode() for name in names]
    return b"".join(b",".join(cell or b"" for cell in row) + b"\n" for row in [header, *rows])


def _store(path: Path, data: bytes, form: str) -> None:
    with pa.output_stream(str(path), compression=PACKED.get(form.rpartition(".")[2])) as out:
        out.write(data)


def _table(table: pa.Table, form: str) -> bytes:
    out = io.BytesIO()
    if form == "parquet":
        pq.write_table(table, out, row_group_size=64)
        return out.getvalue()
    open_writer = pa.ipc.new_stream if form.startswith("stream") else pa.ipc.new_file
    with open_writer(out, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=64):
            writer.write_batch(batch)
    return out.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write typed rows: `write(form, rows, names=None, schema=SCHEMA, stem="x")`."""

    def write(
        form: str, rows: Rows, *, names: list[str] | None = None, schema: pa.Schema = SCHEMA, stem: str = "x"
    ) -> Path:
        names = names or schema.names
        path = tmp_path / f"{stem}.{form}"
        if "json" in form or "csv" in form:
            _store(path, _text(rows, names, form), form)
        else:
            schema = pa.schema([schema.field(name) for name in names])
            _store(path, _table(pa.Table.from_pylist(rows, schema), form), form)
        return path

    return write


@pytest.fixture
def write_cells(tmp_path: Path) -> Callable[..., Path]:
    """Write text cells, any bytes in them, as text in every format: `write_cells(form, names, rows, stem="x")`."""

    def write_cells(form: str, names: list[str], rows: list[list[bytes | None]], *, stem: str = "x") -> Path:
        path = tmp_path / f"{stem}.{form}"
        if "json" in form or "csv" in form:
            _store(path, _cells(rows, names, form), form)
        else:
            arrays = [pa.array([row[k] for row in rows], pa.binary()) for k in range(len(names))]
            _store(path, _table(pa.table(arrays, names=names), form), form)
        return path

    return write_cells


@pytest.fixture
def read() -> Callable[..., tuple[pa.Table, int]]:
    """Read all that matches: `read(pattern, columns, batch_rows=32)` gives the typed table and the rejects."""

    def read(pattern: Path, columns: Mapping[str, ColumnType], *, batch_rows: int = 32) -> tuple[pa.Table, int]:
        frames = list(FileSource(str(pattern), batch_rows=batch_rows).frames(columns))
        return pa.Table.from_batches([f.batch for f in frames]), sum(f.rejected for f in frames)

    return read
