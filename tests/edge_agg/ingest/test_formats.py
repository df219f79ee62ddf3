"""One behaviour for every format and compression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest.decode import typed_schema
from edge_agg.ingest.file import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType

    Columns = Mapping[str, ColumnType]
    Rows = list[dict[str, Any]]
    Write = Callable[..., Path]
    Read = Callable[..., tuple[pa.Table, int]]


def test_the_same_events_come_out_of_every_format(
    form: str, write: Write, read: Read, events: Rows, columns: Columns
) -> None:
    """Order, values and nulls are the events', types the plan's, whatever the file; other columns stay behind.

    Mutants: the file format's first mark not skipped; frames of the first slice only.
    """
    path = write(form, events)
    FileSource(str(path)).check(columns)
    table, rejected = read(path, columns)
    assert table.schema == typed_schema(columns)
    assert table.to_pylist() == [{name: row[name] for name in columns} for row in events]
    assert rejected == 0


WRONG: dict[str, list[bytes]] = {
    "t": [b"yesterday", b"2013-02-29", b"1899-12-31T23:59:59Z", b"2201-01-01", b"1357034400", b"2013-01-01T24:00Z"],
    "s": [b"x" * 4097, b"ab\xff\xfe", "é".encode() * 2049],
    "f": [b"twelve", b"0x1F", b"1e999", b"12.5.1"],
    "i": [b"1.5", b"9223372036854775808", b"1e19", b"inf", b"many", b"9007199254740993.5"],
    "b": [b"yes", b"2", b"truth"],
}
RIGHT: dict[str, list[bytes | None]] = {
    "t": [b"2013-01-01", b"2013-01-01 10:00", b" 2013-01-01T10:00:00.123456789+02:00", None],
    "s": [b"x" * 4096, "é".encode() * 2048, b" kept as it is ", b"NA", b"null", None],
    "f": [b"12.5", b" -1e3", b"inf", b"7", None],
    "i": [b"9223372036854775807", b"-12", b"3.0", b" 1e3", None],
    "b": [b"true", b"False", b"1", b"0", None],
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_value_costs_its_row_and_no_other(
    form: str, name: str, write_cells: Write, read: Read, columns: Columns
) -> None:
    """Each wrong value is counted once and never becomes a null; each right one beside it is kept.

    Mutants: no check for overflow to infinity; no limit of length; a failed parse left as null; a float's
    integral part taken for an integer; the range of years not checked.
    """
    cells: list[list[bytes | None]] = []
    kept = []
    for k, wrong in enumerate(WRONG[name]):
        right = RIGHT[name][k % len(RIGHT[name])]
        cells += [[right, b"%d" % k], [wrong, b"%d" % -k]]
        kept.append(k)
    cells += [[right, b"1000"] for right in RIGHT[name]]
    path = write_cells(form, [name, "row"], cells)
    table, rejected = read(path, {name: columns[name], "row": "integer"})
    assert rejected == len(WRONG[name])
    assert table["row"].to_pylist() == [*kept, *[1000] * len(RIGHT[name])]
    is_null = [right is None for right in RIGHT[name]]
    assert table[name].is_null().to_pylist()[len(kept) :] == is_null


def test_a_missing_column_is_named_at_start(form: str, write: Write, events: Rows, columns: Columns) -> None:
    """The error says which file and which column, before anything is read.

    Mutant: only the first file of a pattern is looked at.
    """
    write(form, events, stem="a")
    path = write(form, events, names=["t", "s", "f", "b", "secret"], stem="b")
    with pytest.raises(SourceUnreadable) as raised:
        FileSource(str(path.parent / "*")).check(columns)
    assert str(path) in str(raised.value)
    assert "'i'" in str(raised.value)


@pytest.mark.parametrize("form", ["parquet", "arrow", "arrow.zst", "stream.arrow"])
@pytest.mark.parametrize("wanted", ["timestamp", "string", "float", "integer", "boolean"])
def test_a_column_of_another_arrow_type_is_refused_at_start_and_rejected_later(
    form: str, wanted: ColumnType, write: Write, read: Read
) -> None:
    """A list is nothing that can be asked for: refused by the check; all rows of a later file are rejected.

    Mutant: `can_read` always true.
    """
    path = write(form, [{"x": [1]}] * 70, schema=pa.schema([("x", pa.list_(pa.int64()))]))
    with pytest.raises(SourceUnreadable, match="column 'x'"):
        FileSource(str(path)).check({"x": wanted})
    table, rejected = read(path, {"x": wanted})
    assert (table.num_rows, rejected) == (0, 70)


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "csv.gz"])
def test_a_later_file_without_the_column_has_all_rows_rejected(
    form: str, write: Write, read: Read, events: Rows, columns: Columns
) -> None:
    """A column that is not there is not a column of nulls (in NDJSON a missing key is, by its rule)."""
    for names in (["t", "s"], ["secret"]):
        table, rejected = read(write(form, events, names=names), columns)
        assert (table.num_rows, rejected) == (0, len(events))


def test_frames_are_bounded_and_exactly_the_last_one_is_last(
    form: str, write: Write, events: Rows, columns: Columns
) -> None:
    """No frame has more than `batch_rows` rows; one frame of each part, the final one, is marked as the last.

    Mutants: no slicing of big record batches; `last` on every frame.
    """
    path = write(form, events * 3)
    frames = list(FileSource(str(path), batch_rows=7).frames(columns))
    assert max(frame.batch.num_rows for frame in frames) == 7
    assert sum(frame.batch.num_rows for frame in frames) == 300
    assert [frame.last for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert {frame.part.path for frame in frames if frame.part} == {str(path)}


def test_a_file_without_rows_is_one_empty_last_frame(form: str, write: Write, columns: Columns) -> None:
    """No rows is no error: neither a header alone nor no byte at all (packed or not)."""
    path = write(form, [])
    for _ in range(2):
        FileSource(str(path)).check(columns)
        (frame,) = FileSource(str(path)).frames(columns)
        assert (frame.batch.num_rows, frame.rejected, frame.last) == (0, 0, True)
        assert frame.batch.schema == typed_schema(columns)
        path.write_bytes(b"")


def test_a_damaged_end_raises_and_what_came_before_was_already_handed_on(
    form: str, write: Write, events: Rows, columns: Columns
) -> None:
    """A part that breaks off raises instead of ending, and frames come before the end of the file has been looked at.

    Formats that cannot be told from whole ones when cut at a line or message are left out. Mutants: the whole file read
    first; the closing mark of the IPC file format not looked for.
    """
    if form in {"ndjson", "jsonl", "csv"}:
        pytest.skip("a cut is just a shorter file")
    path = write(form, events * 250)
    data = bytearray(path.read_bytes())
    if form == "parquet":
        middle = len(data) // 2
        data[middle : middle + 4000] = bytes(4000)  # its index is at the end
    else:
        del data[-9:]
    path.write_bytes(data)
    frames = FileSource(str(path), batch_rows=1000).frames(columns)
    assert not next(frames).last
    with pytest.raises(SourceUnreadable, match=r"cannot be read \(\w+\)"):
        assert not any(frame.last for frame in frames)
