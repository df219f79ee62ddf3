"""No value out of an event in any error, log line or output of a reader (promise A6)."""

from __future__ import annotations

import random
import traceback
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pytest

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import csv_text, file
from edge_agg.ingest.file import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType

    WriteCells = Callable[..., Path]

CANARY = "Karina-Canary"
COLUMNS: Mapping[str, ColumnType] = {
    "t": "timestamp",
    "s": "string",
    "f": "float",
    "i": "integer",
    "b": "boolean",
}
CELLS: list[list[bytes | None]] = [[CANARY.encode()] * 5, [b"2013-01-01", CANARY.encode(), b"1", b"1", b"true"]] * 40


def _speak(path: Path, columns: Mapping[str, ColumnType]) -> str:
    """Check and read a file; return all that an error would let out, down the whole chain of causes."""
    raised: list[SourceUnreadable] = []
    source = FileSource(str(path), batch_rows=16)
    for act in (lambda: source.check(columns), lambda: list(source.frames(columns))):
        try:
            act()
        except SourceUnreadable as error:
            raised.append(error)
    assert all(error.__cause__ is None and error.__context__ is None for error in raised)
    return "".join("".join([repr(error), *traceback.format_exception(error)]) for error in raised)


def _assert_silent(
    said: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, *, heard: bool = False
) -> None:
    out, err = capfd.readouterr()
    assert CANARY not in said + out + err + caplog.text
    assert not heard or said


def test_bad_values_are_not_told(
    form: str, write_cells: WriteCells, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Values of the wrong type, and a plan whose columns the file does not have, let nothing out."""
    path = write_cells(form, list(COLUMNS), CELLS)
    _assert_silent(_speak(path, COLUMNS), capfd, caplog)
    _assert_silent(_speak(path, {**COLUMNS, "absent": "float"}), capfd, caplog, heard=True)


def test_damaged_files_are_not_quoted(
    form: str, write_cells: WriteCells, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Cut, with bytes flipped, or the canary alone: every reader's error is SourceUnreadable and quotes nothing.

    Mutants: the reader's error left as the context of ours; offsets and indices of IPC not checked (the process dies).
    """
    path = write_cells(form, list(COLUMNS), CELLS)
    whole = path.read_bytes()
    rng = random.Random(form)
    damaged = [CANARY.encode() * 50, CANARY.encode() + b"\n" + b"," * 9, whole[: len(whole) // 2], whole + whole]
    for _ in range(12):
        flipped = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    said = ""
    for data in damaged:
        path.write_bytes(data)
        said += _speak(path, COLUMNS)
    _assert_silent(said, capfd, caplog, heard=True)


@pytest.mark.parametrize(
    "text",
    [
        f"t,s,f,i,b\n{CANARY}\n",
        f"t,s,f,i,b\n{CANARY}\xff\n",
        f'{CANARY},"{CANARY}\n',
        "t,s,f,i,b\n" + '"' + CANARY * 200_000,
        f"{CANARY},\xff\n",
        f"t,t,{CANARY}\n1,2,3\n",
    ],
    ids=["few cells", "few cells of bad bytes", "no header", "no end", "bad header", "twice"],
)
def test_csv_errors_quote_no_line(
    text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """No line of a CSV is quoted, whatever is wrong with it.

    Mutant: pyarrow's reader of CSV, whose handler of bad lines complains aloud where they are not UTF-8.
    """
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("latin-1"))
    _assert_silent(_speak(path, COLUMNS), capfd, caplog)


@pytest.mark.parametrize(
    "kind", [pa.ArrowInvalid, OSError, KeyError, UnicodeError, pl.exceptions.ComputeError, RuntimeError]
)
@pytest.mark.parametrize("at", ["fields", "batches", "decode"])
def test_whatever_a_reader_says_stays_inside(
    kind: type[Exception], at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any error, at the check, while reading or while typing, becomes the file's name and the error's kind.

    Mutants: the reader's text in the message; the reader's error left as the context of ours.
    """

    def fail(*_: object, **__: object) -> None:
        raise kind(CANARY)

    monkeypatch.setattr({"fields": csv_text, "batches": csv_text, "decode": file}[at], at, fail)
    path = tmp_path / "x.csv"
    path.write_text("t,s,f,i,b\n1,2,3,4,5\n")
    said = _speak(path, COLUMNS)
    assert f"{path}: cannot be read ({kind.__name__})" in said
    assert CANARY not in said
