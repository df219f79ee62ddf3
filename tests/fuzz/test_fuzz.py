"""No input stops a reader or the decoder, and none appears in an error, a log line or an output (promises A6, A7).

Not proved: that no input exists. Hypothesis tries some each time; atheris, which sees which lines an input reached,
tries more (`slow`); `python -m tests.fuzz.harness` goes on for as long as it is left.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import decode as decoding
from edge_agg.ingest import file
from tests.fuzz import targets
from tests.fuzz.limits import memory_limit
from tests.fuzz.targets import CANARY, TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
RUNS = {"typed": 20_000, "lines": 3_000, "cells": 3_000, "frames": 3_000, "bodies": 20_000}
inputs = st.binary(max_size=200)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=inputs)
def test_no_input_breaks_a_law(name: str, data: bytes) -> None:
    """Guarantee: of any bytes, each reader gives rows or `SourceUnreadable`, and `decode` gives rows; nobody quotes."""
    TARGETS[name](data)


def breaks(target: Callable[[bytes], None], data: bytes) -> bool:
    """Whether an input breaks a law."""
    try:
        target(data)
    except Exception:  # noqa: BLE001  # whatever it is
        return True
    return False


GARBLED = b"t,s,f,i,b\n\xff,\xff,\xff,\xff,\xff\n"


def test_mutant_an_error_that_gets_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: a reader's own error is let out; it is named as the cause; it is quoted."""
    damaged = b"\x00\x00damaged"
    assert not breaks(targets.frames, damaged)
    with monkeypatch.context() as patch:
        patch.setattr(file, "_attempt", lambda path, action: action())
        assert breaks(targets.frames, damaged)
    original = file._attempt

    def fail(*_: object, **__: object) -> None:
        raise ValueError(CANARY.decode())

    def caused(path: str, action: Callable[[], object]) -> object:
        try:
            return action()
        except ValueError as error:
            raise SourceUnreadable(path) from error

    def quoted(path: str, action: Callable[[], object]) -> object:
        try:
            return original(path, action)
        except SourceUnreadable:
            told = f"{path}: {CANARY.decode()}"
        raise SourceUnreadable(told)

    monkeypatch.setattr(file, "decode", fail)
    assert not breaks(targets.cells, b"\xff" + GARBLED)
    for mutant in (caused, quoted):
        monkeypatch.setattr(file, "_attempt", mutant)
        assert breaks(targets.cells, b"\xff" + GARBLED)


def test_mutant_a_value_that_is_printed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the decoder prints what it is given."""
    random = Random(1)
    some = [random.randbytes(100) for _ in range(100)]
    assert not any(breaks(targets.typed, data) for data in some)
    original = decoding._convert
    monkeypatch.setattr(decoding, "_convert", lambda held, wanted: (print(held), original(held, wanted))[1])  # noqa: T201
    assert any(breaks(targets.typed, data) for data in some)


def test_mutant_utf8_that_is_believed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: text is taken for UTF-8 unseen; a CSV of other bytes then costs more than its rows."""
    assert not breaks(targets.cells, b"\x01,\xff,1,1,1\n2013-01-01,\xff,1,1,1")
    assert rejected_of([b"\xff", b"a"]) == 1
    monkeypatch.setattr(decoding, "_is_utf8", lambda value: True)
    with pytest.raises(pa.ArrowInvalid):
        rejected_of([b"\xff", b"a"])


def rejected_of(texts: list[bytes]) -> int:
    """Rows that are not text."""
    batch = pa.record_batch([pa.array(texts, pa.binary())], names=["c"])
    return decoding.decode(batch, {"c": "string"})[1]


def views_of(*views: tuple[int, bytes, int, int], valid: int) -> pa.Array:
    """Views into one buffer, bit by bit."""
    held = pa.py_buffer(b"".join(struct.pack("<i4sii", *view) for view in views))
    buffers = [pa.py_buffer(bytes([valid])), held, pa.py_buffer(b"x" * 8000)]
    return pa.Array.from_buffers(pa.string_view(), len(views), buffers)


SHORT, LONG, WRONG = (1, b"a\0\0\0", 0, 0), (5000, b"xxxx", 0, 0), (-(2**30), b"\0\0\0\0", 9, -1)


def test_a_null_view_is_not_looked_at() -> None:
    """Found by the fuzzer: Arrow's full validation passes a null view of a negative length, and its cast dies of it."""
    held = views_of(SHORT, WRONG, LONG, SHORT, valid=0b1101)
    held.validate(full=True)
    batch, rejected = decoding.decode(pa.record_batch([held], names=["c"]), {"c": "string"})
    assert (batch.column(0).to_pylist(), rejected) == (["a", None, "a"], 1)
    batch, rejected = decoding.decode(pa.record_batch([held.slice(1)], names=["c"]), {"c": "string"})
    assert (batch.column(0).to_pylist(), rejected) == ([None, "a"], 1)


def test_a_dictionary_of_views_is_read() -> None:
    """Found by the fuzzer: Arrow has no kernel to look views up with; a missing one stopped the source."""
    at = pa.array([3, 0, None, 1, 2, 0], pa.int8())
    held = pa.DictionaryArray.from_arrays(at, views_of(SHORT, WRONG, LONG, SHORT, valid=0b1101))
    batch, rejected = decoding.decode(pa.record_batch([held], names=["c"]), {"c": "string"})
    assert (batch.column(0).to_pylist(), rejected) == (["a", "a", None, None, "a"], 1)
    empty = pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([], pa.string_view()))
    assert decoding.decode(pa.record_batch([empty], names=["c"]), {"c": "integer"})[0].column(0).to_pylist() == [None]


MUTANT = """
import pyarrow as pa
from edge_agg.ingest import decode
from tests.fuzz.test_fuzz import SHORT, WRONG, views_of
if {broken}:
    decode._seen = lambda held, views, valid: held
held = views_of(SHORT, WRONG, SHORT, valid=0b101)
print(decode.decode(pa.record_batch([held], names=["c"]), {{"c": "string"}})[0].num_rows)
"""


@pytest.mark.slow
def test_mutant_a_null_view_that_is_looked_at_is_caught() -> None:
    """Mutant: views go to the cast as they are; the process dies, which only another process can see."""
    whole = [
        subprocess.run([sys.executable, "-c", MUTANT.format(broken=broken)], cwd=ROOT, check=False).returncode
        for broken in (False, True)
    ]
    assert whole[0] == 0
    assert whole[1] < 0


def search(name: str, folder: Path, *options: str, runs: int) -> int:
    """Let atheris search in a process of its own; how that ended."""
    limits = [
        memory_limit(),
        f"-runs={runs}",
        "-seed=1",
        "-max_len=256",
        "-max_total_time=120",
        "-timeout=30",
    ]
    command = [sys.executable, "-m", "tests.fuzz.harness", name, *options, *limits, f"-artifact_prefix={folder}/"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False).returncode


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_search_finds_nothing(name: str, tmp_path: Path) -> None:
    """Guarantee: neither an error nor a dead process in so many inputs that each reach for new lines of the readers."""
    pytest.importorskip("atheris")
    assert search(name, tmp_path, runs=RUNS[name]) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["typed", "frames"])
def test_mutant_a_search_finds_a_rule_that_is_broken(name: str, tmp_path: Path) -> None:
    """Mutants: text believed to be UTF-8; an error that names its cause. The search ends with the input in a file."""
    pytest.importorskip("atheris")
    assert search(name, tmp_path, "--mutant", runs=RUNS[name]) != 0
    assert len(list(tmp_path.iterdir())) == 1
