"""Asking a running agent: an answer is read, and whatever else comes, or does not come, costs a second at most."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge_agg.report import live
from edge_agg.report.live import Live, ask

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def answering(folder: Path, *pieces: bytes, wait_s: float = 0.0, hang: bool = False) -> Iterator[list[bytes]]:
    """An agent's door that says these pieces, one after another; yields what it was asked."""
    asked: list[bytes] = []
    over = threading.Event()

    def serve() -> None:
        with door.accept()[0] as caller:
            asked.append(caller.recv(64))
            for piece in pieces:
                over.wait(wait_s)
                try:
                    caller.sendall(piece)
                except OSError:
                    return
            if hang:
                over.wait(10)

    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "agent.sock"))
        door.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        over.set()
        thread.join()


def test_an_answer_is_read(tmp_path: Path) -> None:
    """Guarantee: what the agent says, in however many pieces; what this program does not know yet is passed over."""
    said = b'{"pid": 7, "holding": "disk", "new": [1], "plans": [{"name": "p", "open": ["2013-01-07T00:00:00+00:00"]}]'
    with answering(tmp_path, said, b', "clock": {"state": "held", "reason": "jumped"}}', b"\n") as asked:
        found = ask(tmp_path)
    assert asked == [b"status\n"]
    assert found is not None
    assert (found.pid, found.holding, found.clock.reason) == (7, "disk", "jumped")
    assert [one.day for one in found.plans[0].open] == [7]
    assert found.sources == []


@pytest.mark.parametrize("said", [b"", b"{}", b"[1]", b'{"pid": "x"}', b'{"pid": 1', b"\xff", b"[" * 100_000])
def test_what_is_no_answer_counts_as_none(tmp_path: Path, said: bytes) -> None:
    """Guarantee: half an answer, or one of another kind, is no answer, and no error."""
    with answering(tmp_path, said):
        assert ask(tmp_path) is None


def test_nobody_there(tmp_path: Path) -> None:
    """Guarantee: no folder, no socket, or a socket that a killed agent left behind."""
    assert ask(tmp_path / "none") is None
    assert ask(tmp_path) is None
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "agent.sock"))
    assert ask(tmp_path) is None


@pytest.mark.parametrize("pieces", [(), (b" ",) * 50])
def test_a_slow_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> None:
    """Guarantee: the deadline is the whole answer's: an agent that hangs, or drips, does not hang who asks."""
    monkeypatch.setattr(live, "DEADLINE_S", 0.1)
    begun = time.monotonic()
    with answering(tmp_path, *pieces, wait_s=0.02, hang=True):
        assert ask(tmp_path) is None
        assert time.monotonic() - begun < 5


def test_an_answer_without_end_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: memory is bounded whatever listens there."""
    monkeypatch.setattr(live, "_MOST_BYTES", 1 << 16)
    with answering(tmp_path, b'{"pid": 1}' + b" " * (1 << 20)):
        assert ask(tmp_path) is None


def test_a_folder_whose_path_is_longer_than_a_sockets_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a path of more than 107 bytes can be asked."""
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    with answering(Path(), b'{"pid": 3}'):
        assert ask(folder) == Live(pid=3)
