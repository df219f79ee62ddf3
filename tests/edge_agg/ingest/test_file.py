"""Which files are read, in which order, and what a start-up check says about them."""

from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import lines
from edge_agg.ingest.file import FileSource
from edge_agg.ingest.source import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Source

    Columns = Mapping[str, ColumnType]
    Rows = list[dict[str, Any]]
    Write = Callable[..., Path]
    Read = Callable[..., tuple[pa.Table, int]]

X: Columns = {"x": "integer"}


def test_files_come_sorted_and_from_any_depth(tmp_path: Path) -> None:
    """The order is the paths' own, not the disk's; folders are not files, whatever their name.

    Mutant: not sorted.
    """
    for k, name in enumerate(["c.ndjson", "a/z.csv", "b/deep/er/y.ndjson", "a.ndjson"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"x\n{k}\n" if name.endswith("csv") else f'{{"x": {k}}}\n')
    (tmp_path / "folder.csv").mkdir()
    source = FileSource(str(tmp_path / "**" / "*.*"))
    promised: Source = source
    promised.check(X)
    frames = list(source.frames(X))
    assert [frame.batch["x"].to_pylist() for frame in frames] == [[3], [1], [2], [0]]
    assert source.name == f"file:{tmp_path}/**/*.*"


def test_a_part_that_was_read_is_not_opened_again_unless_it_changed(tmp_path: Path) -> None:
    """Same path, size and time of change: skipped without a look inside. Anything else is a part of its own.

    Mutant: skip by path alone.
    """
    old, new = tmp_path / "old.ndjson", tmp_path / "p.ndjson"
    old.write_text('{"x": 1}\n')
    new.write_text('{"x": 2}\n')
    source = FileSource(str(tmp_path / "*.ndjson"))
    first, second = source.frames(X)
    assert first.part
    assert second.part
    old.chmod(0)  # opening it would fail for anyone but root
    assert list(source.frames(X, skip=[first.part, second.part])) == []
    old.chmod(0o600)
    new.write_text('{"x": 2}\n{"x": 3}\n')
    (again,) = source.frames(X, skip=[first.part, second.part])
    assert again.batch["x"].to_pylist() == [2, 3]
    assert again.part != second.part


def test_skipped_parts_are_not_even_opened(tmp_path: Path) -> None:
    """A part in `skip` may hold anything: its bytes are not looked at."""
    path = tmp_path / "x.parquet"
    path.write_bytes(b"no parquet")
    source = FileSource(str(path))
    now = path.stat()
    part = Part(path=str(path), size=now.st_size, mtime_ns=now.st_mtime_ns)
    assert list(source.frames(X, skip={part})) == []
    with pytest.raises(SourceUnreadable):
        list(source.frames(X))


def test_a_file_that_is_written_while_it_is_read_is_never_taken_as_whole(tmp_path: Path) -> None:
    """Its last frame does not come: a position must not say that more was read than was.

    Mutant: no second look at size and time.
    """
    path = tmp_path / "x.ndjson"
    path.write_text('{"x": 1}\n' * 10)
    frames = FileSource(str(path), batch_rows=2).frames(X)
    assert not next(frames).last
    with path.open("a") as out:
        out.write('{"x": 2}\n')
    with pytest.raises(SourceUnreadable, match="changed while it was read"):
        assert not any(frame.last for frame in frames)


@pytest.mark.parametrize("name", ["x.txt", "x.parquet.gz", "x.csv.xz", "x.zst", "x"])
def test_an_unknown_extension_is_refused_at_start(tmp_path: Path, name: str) -> None:
    """The file is named."""
    (tmp_path / name).write_text("x\n1\n")
    with pytest.raises(SourceUnreadable, match=rf"{name}: no known format"):
        FileSource(str(tmp_path / "*")).check(X)


def test_a_pattern_without_files_is_refused_at_start_and_has_no_frames(tmp_path: Path) -> None:
    """A misspelt path must not look like a quiet store."""
    source = FileSource(str(tmp_path / "*.csv"))
    with pytest.raises(SourceUnreadable, match="no file matches"):
        source.check(X)
    assert list(source.frames(X)) == []


def test_a_file_that_is_not_what_its_name_says_is_refused_at_start(form: str, tmp_path: Path) -> None:
    """Every format's check fails on bytes of another kind, naming the file."""
    path = tmp_path / f"x.{form}"
    path.write_bytes(b"\x00\x01\x02 not at all \n" * 9)
    with pytest.raises(SourceUnreadable, match=f"x.{form}: "):
        FileSource(str(path)).check(X)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, read: Read) -> None:
    """Which of the two was meant is not for us to guess.

    Mutant: the first one is taken.
    """
    path = tmp_path / "x.csv"
    path.write_text("x,x\n1,2\n")
    with pytest.raises(SourceUnreadable, match="more than one"):
        FileSource(str(path)).check(X)
    assert read(path, X)[1] == 1


def test_lines_that_are_no_events_are_counted_and_skipped(tmp_path: Path, read: Read) -> None:
    """NDJSON: broken, not an object, a nested value, too deep, too long; blank lines and other keys do not count.

    Mutants: a blank line counted; RecursionError not caught; an overlong line's rest taken for lines.
    """
    bad = [
        b"{",
        b"[]",
        b'{"x": [1]}',
        b'{"x": {"y": 1}}',
        b'{"x": true}',
        b'{"x": 1} {"x": 2}',
        b'{"y": ' + b"[" * 100_000,
        b'{"x": 1, "y": "' + b"z" * 2_500_000 + b'"}',
        b'{"x": "\xff"}',
        b'{"x": NaN}',
    ]
    good = [b'{"x": 1}', b'{"x": "2"}\r', b'{"y": {"x": 9}}', b'  {"x": 3.0, "y": [1, {}]}']
    for order in (bad + good, good + bad, [line for pair in zip(bad, good * 3, strict=False) for line in pair]):
        path = tmp_path / "x.ndjson"
        path.write_bytes(b"\n\n".join([*order, b"  \t", b""]))
        table, rejected = read(path, X)
        assert rejected == len(bad)
        assert table.num_rows == len(order) - len(bad)
        assert set(table["x"].to_pylist()) == {1, 2, 3, None}


@pytest.mark.parametrize("before", [0, 1, 700_000, 1_048_570])
def test_a_line_has_one_bound_wherever_it_lies(tmp_path: Path, read: Read, before: int) -> None:
    """A line of exactly the bound is read, one byte more is too long, however the blocks fall.

    Mutant: only lines without an end in sight are measured.
    """
    path = tmp_path / "x.ndjson"
    event, bound = b'{"x": 1}', lines.MAX_LINE_BYTES
    path.write_bytes(b"\n".join([b" " * before, event.ljust(bound), event.ljust(bound + 1), event]))
    table, rejected = read(path, X)
    assert (table.num_rows, rejected) == (2, 1)


def test_csv_lines_that_are_no_rows_are_counted_and_skipped(tmp_path: Path, read: Read) -> None:
    """Too few or too many cells, or quotes that do not fit: the line is lost, and no other with it.

    Mutants: the text of an open quote taken for cells; quotes not strict; too many cells let through.
    """
    bad = [b"b", b"e,4,5", b'"open,6', b'x","open', b'"a"b,7', b'"a,"b"', b"z" * 2_500_000 + b",8"]
    good = [b"a,1", b'"c,""d""",3\r', b",", b'"",""', '"\u00e9",9'.encode()]
    path = tmp_path / "x.csv"
    for order in (bad + good, good + bad, [line for pair in zip(bad, good * 2, strict=False) for line in pair]):
        path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\n".join([b'"s",x', *order]))
        table, rejected = read(path, {"s": "string", "x": "integer"})
        assert rejected == len(bad)
        assert table.num_rows == len(order) - len(bad)
        assert read(path, {"s": "string", "x": "string"})[1] == len(bad)
        rows = {(row["s"], row["x"]) for row in table.to_pylist()}
        assert rows == {("a", 1), ('c,"d"', 3), (None, None), ("\u00e9", 9)}


def test_a_csv_cell_that_is_no_text_costs_its_row(tmp_path: Path, read: Read) -> None:
    """Quoted or not; bytes in cells that were not asked for are no matter.

    Mutant: UTF-8 judged for the batch as a whole.
    """
    path = tmp_path / "x.csv"
    path.write_bytes(b's,x,\xff\n\xff,1,\n"\xfe",2,\n\xfe\n\xc3\xa9,4,\xff\n6,\xf6,\n')
    table, rejected = read(path, {"s": "string", "x": "integer"})
    assert table.to_pylist() == [{"s": "\u00e9", "x": 4}]
    assert rejected == 4


def test_a_line_without_end_is_never_held(tmp_path: Path, write: Write, read: Read) -> None:
    """32 MiB without a line break take a bounded amount of memory, and the line after them is read.

    Mutant: the tail kept until its line break comes.
    """
    path = tmp_path / "x.ndjson.gz"
    with pa.output_stream(str(path)) as out:
        for _ in range(32):
            out.write(b" " * (1 << 20))
        out.write(b'{"x": 1}\n{"x": 2}\n')
    tracemalloc.start()
    table, rejected = read(path, X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (table["x"].to_pylist(), rejected) == ([2], 1)
    assert peak < 8 << 20


def test_long_lines_do_not_add_up_to_a_big_batch(tmp_path: Path) -> None:
    """A batch of NDJSON is cut by its text as well as by its rows.

    Mutant: cut by rows alone.
    """
    path = tmp_path / "x.ndjson.zst"
    with pa.output_stream(str(path)) as out:
        for _ in range(30):
            out.write(b'{"x": 1, "y": "' + b"z" * 900_000 + b'"}\n')
    counts = [frame.batch.num_rows for frame in FileSource(str(path)).frames(X)]
    assert sum(counts) == 30
    assert max(counts) < 12


@pytest.mark.parametrize("form", ["parquet", "arrow.zst", "csv"])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(form: str, write: Write, events: Rows, columns: Columns) -> None:
    """Arrow's memory at any frame of a file of 400,000 rows stays what one of 40,000 takes, within a factor of 2."""

    def peak(times: int) -> int:
        path = write(form, events * times, stem=str(times))
        before = pa.total_allocated_bytes()
        frames = FileSource(str(path), batch_rows=4096).frames(columns)
        return int(max(pa.total_allocated_bytes() - before for _ in frames))

    assert peak(4_000) < 2 * peak(400)
