"""Growing files: every whole line once, whatever becomes of the file and of the agent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import generation, lines, rotation, tail
from edge_agg.ingest.generation import Generation, Key, Past
from edge_agg.ingest.source import Part
from edge_agg.ingest.trouble import Trouble
from tests.edge_agg.ingest.tailing import Tailing, TakeFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def line(n: int, window: int = 0) -> bytes:
    """Write one row as JSON."""
    return b'{"n": %d, "w": %d}\n' % (n, window)


def rows(*numbers: int) -> bytes:
    """Write some."""
    return b"".join(line(n) for n in numbers)


def add(path: Path, data: bytes) -> None:
    """Append, as a writer of logs does."""
    with path.open("ab") as out:
        out.write(data)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The file that grows."""
    return tmp_path / "app.log"


@pytest.fixture
def tailing(tmp_path: Path) -> Iterator[Tailing]:
    """A source that follows `app.log*`."""
    with Tailing(tmp_path) as tailing:
        yield tailing


def test_a_line_is_an_event_once_its_line_break_is_there(log: Path, tailing: Tailing) -> None:
    """Half a line waits, however often it is looked at, and is then read as a whole.

    Mutant: `test_mutants_are_caught[partial]`.
    """
    whole = line(2)
    add(log, line(1) + whole[:5])
    tailing.step()
    assert tailing.source._rotation is not None
    listed = tail.list_files(str(log))
    assert list(tailing.source._rotation.due(listed, tailing.clock.now())) == [], "and is not read again meanwhile"
    tailing.step()
    assert tailing.windows.rows == [1]
    add(log, whole[5:-1])
    tailing.step()
    assert tailing.windows.rows == [1]
    add(log, whole[-1:])
    tailing.step()
    assert tailing.windows.rows == [1, 2]
    assert sum(frame.rejected for frame in tailing.windows.frames) == 0


def test_a_renamed_file_is_read_to_its_end_though_it_no_longer_matches(tmp_path: Path) -> None:
    """The writer goes on for a while in the file that was renamed away; the open file has it all, then the new one.

    Mutant: files are read by name alone (see `closed`).
    """
    log = tmp_path / "app.log"
    for mutant in (False, True):
        log.unlink(missing_ok=True)
        with Tailing(tmp_path, pattern="app.log") as tailing:
            add(log, rows(1))
            tailing.step()
            if mutant:
                assert tailing.source._rotation is not None
                tailing.source._rotation.close()
            log.rename(tmp_path / "old")
            add(tmp_path / "old", rows(2))
            tailing.step()
            add(tmp_path / "old", rows(3))
            add(log, rows(4))
            tailing.step()
            assert tailing.windows.rows == ([1, 4] if mutant else [1, 2, 3, 4])


def test_a_file_without_a_name_is_let_go_once_it_is_quiet(tmp_path: Path) -> None:
    """A minute after its last growth, not after its renaming; its disk space is free then."""
    log, old = tmp_path / "app.log", tmp_path / "old"
    with Tailing(tmp_path, pattern="app.log") as tailing:
        add(log, rows(1))
        tailing.step()
        log.rename(old)
        tailing.step()
        tailing.step(timedelta(seconds=50))
        add(old, rows(2))
        tailing.step(timedelta(seconds=50))
        assert tailing.windows.rows == [1, 2]
        tailing.step(timedelta(seconds=1))
        assert tailing.source._rotation is not None
        assert len(tailing.source._rotation.followed) == 1
        tailing.step(timedelta(seconds=61))
        assert tailing.source._rotation.followed == []
        old.rename(log)
        add(log, rows(3))
        tailing.step()
        assert tailing.windows.rows == [1, 2, 3], "and if it comes back, it is known"


def test_a_file_that_was_cut_begins_again(log: Path, tailing: Tailing) -> None:
    """Shorter than it was, or longer by now with other bytes: a new generation, from its first byte."""
    add(log, rows(1, 2, 3))
    tailing.step()
    os.truncate(log, 0)
    add(log, rows(4))
    tailing.step()
    os.truncate(log, 0)
    add(log, rows(5, 6, 7, 8, 9))
    tailing.step()
    assert tailing.windows.rows == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert len({frame.part.path for frame in tailing.windows.frames if frame.part}) == 3


def test_what_was_written_before_a_copy_is_read_from_the_copy(log: Path, tmp_path: Path, tailing: Tailing) -> None:
    """Copied, then cut: lines that were never seen in the file itself are in its copy, the others count once.

    Mutant: `test_mutants_are_caught[copies]`.
    """
    add(log, rows(1))
    tailing.step()
    add(log, rows(2))
    shutil.copyfile(log, tmp_path / "app.log.1")
    os.truncate(log, 0)
    add(log, rows(3))
    tailing.step()
    assert tailing.windows.rows == [1, 2, 3]
    assert tailing.troubles == []


def test_a_compressed_file_is_not_read(log: Path, tmp_path: Path, tailing: Tailing) -> None:
    """It was read before, under another name."""
    add(log, rows(1))
    for packed in ("gz", "zst", "bz2", "xz", "Z"):
        (tmp_path / f"app.log.1.{packed}").write_bytes(rows(2))
    tailing.step()
    assert tailing.windows.rows == [1]


def test_a_restart_reads_again_what_is_not_done_and_nothing_else(log: Path, tailing: Tailing) -> None:
    """Resumed at the end of the longest beginning of which all is done; a hole in the middle is read again.

    Mutant: the highest done end is taken for the position.
    """
    for n in range(4):
        add(log, line(n, n))
        tailing.step()
        if n < 2:
            tailing.windows.close()
    parts = [frame.part for frame in tailing.windows.frames if frame.part]
    tailing.windows.reach[parts[3]] = -1  # done, behind one that is not
    tailing.windows.frames.clear()
    tailing.kill()
    tailing.step()
    assert [frame.part.begin for frame in tailing.windows.frames if frame.part] == [parts[2].begin]
    assert tailing.windows.rows == [2, 3]


def test_an_inode_that_is_used_again_is_another_file(log: Path, tailing: Tailing) -> None:
    """A part that is done stands for the bytes it had: another file under its inode is read from its beginning.

    Mutant: `test_mutants_are_caught[inode]`.
    """
    add(log, rows(1, 2))
    tailing.step()
    tailing.windows.close()
    tailing.kill()
    os.truncate(log, 0)
    add(log, line(3, 1) + line(4, 1))
    tailing.step()
    assert tailing.windows.rows == [3, 4]


def test_a_position_that_lies_in_a_line_is_of_another_file(
    log: Path, tailing: Tailing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a longer file begins with the very same bytes, the resumed position must still lie behind a line break.

    Mutant: the first bytes are believed alone.
    """
    monkeypatch.setattr(generation, "HEAD_BYTES", 9)
    add(log, rows(10, 11))
    tailing.step()
    tailing.windows.close()
    tailing.kill()
    os.truncate(log, 0)
    add(log, line(10, 1) + line(1_000_000, 1) + line(12, 1))
    tailing.step()
    assert tailing.windows.rows == [10, 12, 1_000_000]


def test_a_source_that_is_started_again_goes_on(log: Path, tmp_path: Path, tailing: Tailing) -> None:
    """After the inlet failed, in the same process: nothing twice, and files are held open again.

    Mutant: files that did not change are left closed.
    """
    add(log, rows(1, 2))
    tailing.step()
    add(tmp_path / "app.log.b", rows(3))
    tailing.windows.fail_in = 0
    with pytest.raises(TakeFailed):
        tailing.step()
    tailing.step()
    add(log, rows(4))
    log.unlink()
    tailing.step()
    assert tailing.windows.rows == [1, 2, 3, 4]


def test_positions_are_joined_however_the_journal_keeps_them() -> None:
    """Stretches that overlap or were merged give the same position; other files' stretches give none."""
    key, head = Key(1, 2), b"x" * 5000
    follow = Generation(key=key, folder="", descriptor=None, head=head[:4096])
    first = follow.part(100)
    follow.advance(100, b"")
    second = follow.part(5000)
    follow.advance(4000, b"")
    third = follow.part(6000)
    assert Past([third, second, first]).position(key, head) == 6000
    assert Past([third, second]).position(key, head) == 0
    merged = Part(path=second.path, begin=0, size=7000, mtime_ns=0)
    assert Past([merged, first]).position(key, head) == 7000
    assert Past([merged]).position(Key(1, 3), head) == 0
    assert Past([merged]).position(key, b"y" + head) == 0
    assert Past([Part(path=p, begin=0, size=9, mtime_ns=0) for p in ("", "1.2:", "1.2:x.y")]).position(key, head) == 0


def test_a_line_that_is_too_long_costs_itself_and_is_never_held(log: Path, tailing: Tailing) -> None:
    """Longer than a line may be, than a stretch, and still without an end: dropped and counted, the next one is read.

    Mutant: the rest of a long line taken for a line (a part of it is a row).
    """
    add(log, line(1) + b"x" * (lines.MAX_LINE_BYTES + 1) + b"\n" + line(2) + b"\n")
    tailing.step()
    assert tailing.windows.rows == [1, 2]
    assert tailing.windows.frames[-1].rejected == 1
    for _ in range(3):
        add(log, b"y" * (3 << 20))
        tailing.step()
    add(log, line(3) + line(4))
    tailing.step()
    assert tailing.windows.rows == [1, 2, 4]
    assert sum(frame.rejected for frame in tailing.windows.frames) == 2
    parts = [frame.part for frame in tailing.windows.frames if frame.part]
    assert all(before.size == after.begin for before, after in pairwise(parts))


def test_csv_rows_are_read_by_the_header_of_their_own_generation(tmp_path: Path) -> None:
    """Also after a restart in the middle, a cut, and blank lines; the header itself is no row.

    Mutant: the first line of each stretch taken for the header.
    """
    log = tmp_path / "app.log"
    with Tailing(tmp_path, text="csv") as tailing:
        add(log, b"\n \nn,w")
        tailing.step()
        assert tailing.windows.rows == []
        add(log, b"\n1,0\n")
        tailing.step()
        tailing.windows.close()
        tailing.kill()
        add(log, b"2,1\n")
        tailing.step()
        add(log, b"3,1\nbad\n")
        tailing.step()
        os.truncate(log, 0)
        add(log, b"w,x,n\n1,0,4\n1,0,5\n")
        tailing.step()
        assert tailing.windows.rows == [2, 3, 4, 5]
        assert sum(frame.rejected for frame in tailing.windows.frames) == 1


def test_it_is_current_once_what_was_there_has_been_handed_over(
    log: Path, tailing: Tailing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before its first look, and not while more than one stretch is left."""
    monkeypatch.setattr(tail, "STRETCH_BYTES", 100)
    tailing.step()
    assert tailing.windows.current == [False, True]
    add(log, rows(1))
    tailing.step()
    assert tailing.windows.current == [False, True, True]
    add(log, rows(*range(2, 30)))
    tailing.step()
    assert tailing.windows.current[3] is False
    assert tailing.windows.current[-1] is True


def test_a_file_that_cannot_be_opened_stops_no_other(
    log: Path, tmp_path: Path, tailing: Tailing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, and read when it can be; the same for a disk that fails while it is read."""
    bad = tmp_path / "app.log.bad"
    add(bad, rows(1))
    add(log, rows(2))
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if path == str(bad):
            raise PermissionError
        return real(path, flags)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        tailing.step()
        tailing.step()
    assert tailing.windows.rows == [2]
    assert tailing.troubles == [Trouble.FILE_UNREADABLE]
    tailing.step()
    assert tailing.windows.rows == [1, 2]

    def broken(*_: object) -> bytes:
        raise OSError(5, "line 2 of the log")

    add(log, rows(3))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        tailing.step()
    tailing.step()
    assert tailing.windows.rows == [1, 2, 3]


def test_a_file_that_is_cut_before_it_was_read_is_said(
    log: Path, tailing: Tailing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where lines are known to be lost, somebody hears of it: a word, and no value."""
    add(log, rows(1))
    tailing.step()
    add(log, rows(2, 3))
    with monkeypatch.context() as patch:
        patch.setattr(tail.TailSource, "_cut", lambda *_: None)
        tailing.step()
    os.truncate(log, 0)
    tailing.step()
    assert tailing.troubles == [Trouble.FILE_VANISHED]


@pytest.mark.parametrize("why", ["many", "idle"])
def test_files_are_not_kept_open_for_ever(
    log: Path, tmp_path: Path, tailing: Tailing, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Too many, or quiet for long: closed, and opened again when they grow; nothing is read twice or lost by it."""
    if why == "many":
        monkeypatch.setattr(rotation, "OPEN_FILES", 0)
    for path in (log, tmp_path / "app.log.b"):
        add(path, line(len(path.name)))
        os.utime(path, (0, 0) if why == "idle" else None)
    tailing.step()
    assert tailing.source._rotation is not None
    assert [follow.descriptor for follow in tailing.source._rotation.followed] == [None, None]
    log.rename(tmp_path / "app.log.1")
    add(tmp_path / "app.log.1", rows(1))
    add(log, rows(2))
    tailing.step()
    assert tailing.windows.rows == [1, 2, 7, 9]


def test_a_drain_wants_a_file_and_a_live_agent_waits_for_one(tmp_path: Path) -> None:
    """A misspelt path must not look like a quiet log where somebody waits for the answer."""
    with Tailing(tmp_path) as tailing:
        tailing.source.check({"n": "integer"})
        tailing.step()

        async def drain() -> None:
            import asyncio

            await tailing.source.deliver(tailing.windows, asyncio.Event(), drain=True)

        with pytest.raises(SourceUnreadable, match="no file matches"):
            tailing._runner.run(drain())
        add(tmp_path / "app.log", rows(1) + line(2)[:-1])
        tailing._runner.run(drain())
        assert tailing.windows.rows == [1]


def test_a_header_without_the_columns_is_refused_at_start(tmp_path: Path) -> None:
    """Unless another file has them, or the header is not whole yet: then time will tell."""
    with Tailing(tmp_path, text="csv") as tailing:
        (tmp_path / "app.log").write_bytes(b"n")
        tailing.source.check({"n": "integer", "w": "integer"})
        (tmp_path / "app.log").write_bytes(b"n,x\n")
        with pytest.raises(SourceUnreadable, match=r"app.log: no column 'w'"):
            tailing.source.check({"n": "integer", "w": "integer"})
        (tmp_path / "app.log.1").write_bytes(b"n,w\n")
        tailing.source.check({"n": "integer", "w": "integer"})


class Logs(RuleBasedStateMachine):
    """Logs that are written, renamed, copied, cut, compressed and removed, and an agent that is killed in between.

    After each look every whole line that can be read counts once in its window, unless the window was closed; what
    counted stays counted, whatever becomes of the file. What can be read is found by a simple reading of the folder.
    """

    text: ClassVar[str] = "ndjson"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.log = self.folder / "app.log"
        self.tailing = Tailing(self.folder, text=self.text)
        self.windows = self.tailing.windows
        self.n = self.n_closed = self.n_killed = 0
        """Rows written ever, by the last closing, and by the last kill: what is due must not depend on timing."""
        self.half = b""
        """What is missing of the last line of the log."""
        self.writer: BinaryIO | None = None
        """A writer that still has the file that was renamed last."""
        self.watched: dict[tuple[int, int], BinaryIO] = {}
        """Every file that the agent has seen in this life, open: it is read to its end wherever it goes."""

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.tailing.close()
        self._unwatch()
        if self.writer is not None:
            self.writer.close()
        shutil.rmtree(self.folder)

    def _unwatch(self) -> None:
        for file in self.watched.values():
            file.close()
        self.watched.clear()

    def _lines(self, count: int) -> bytes:
        first, self.n = self.n, self.n + count
        window = self.windows.closed + 1
        form = b"%d,%d\n" if self.text == "csv" else b'{"n": %d, "w": %d}\n'
        return b"".join(form % (n, window) for n in range(first, self.n))

    def _write(self, data: bytes) -> None:
        empty = not self.log.exists() or self.log.stat().st_size == 0
        add(self.log, (b"n,w\n" if self.text == "csv" and empty else b"") + data)

    @rule(count=st.integers(1, 9), whole=st.booleans(), looked=st.booleans())
    def write(self, *, count: int, whole: bool, looked: bool) -> None:
        """Lines, and perhaps half of another."""
        data = self.half + self._lines(count)
        self.half = b""
        if not whole:
            last = self._lines(1)
            data, self.half = data + last[:-2], last[-2:]
        self._write(data)
        if looked:
            self.look()

    @precondition(lambda self: self.writer is not None)
    @rule(count=st.integers(1, 4))
    def write_on(self, count: int) -> None:
        """The writer has not noticed yet that its file was renamed."""
        assert self.writer is not None
        empty = os.fstat(self.writer.fileno()).st_size == 0
        self.writer.write((b"n,w\n" if self.text == "csv" and empty else b"") + self._lines(count))
        self.writer.flush()

    def _shift(self) -> None:
        for k in (3, 2, 1):
            old = self.folder / f"app.log.{k}"
            if old.exists():
                old.rename(self.folder / f"app.log.{k + 1}")

    @precondition(lambda self: self.log.exists())
    @rule(away=st.booleans(), looked=st.booleans())
    def rename(self, *, away: bool, looked: bool) -> None:
        """To a name that matches, or to one that does not."""
        if looked:
            self.look()
        if self.half:
            self._write(self.half)
            self.half = b""
        if self.writer is not None:
            self.writer.close()
        self.writer = self.log.open("ab")
        if not away:
            self._shift()
        self.log.rename(self.folder / ("gone" if away else "app.log.1"))

    @precondition(lambda self: self.log.exists())
    @rule(looked=st.booleans())
    def copy(self, *, looked: bool) -> None:
        """The first half of a rotation by copying; the copy's last line may be half."""
        self._shift()
        shutil.copyfile(self.log, self.folder / "app.log.1")
        if looked:
            self.look()

    @precondition(lambda self: self.log.exists())
    @rule(count=st.integers(0, 9), looked=st.booleans())
    def cut(self, *, count: int, looked: bool) -> None:
        """The second half, or without the first; the writer may be quick."""
        os.truncate(self.log, 0)
        self.half = b""
        if count:
            self._write(self._lines(count))
        if looked:
            self.look()

    @rule(k=st.integers(1, 3), packed=st.booleans())
    def remove(self, *, k: int, packed: bool) -> None:
        """Rotated files go, or are compressed."""
        path = self.folder / f"app.log.{k}"
        if path.exists():
            if packed:
                (self.folder / f"app.log.{k}.gz").write_bytes(path.read_bytes())
            path.unlink()

    @precondition(lambda self: self.n > self.n_closed)
    @rule()
    def close_window(self) -> None:
        """Time passes."""
        self.n_closed = self.n
        self.windows.close()

    @precondition(lambda self: self.n > self.n_killed)
    @rule()
    def kill(self) -> None:
        """The agent dies and comes back."""
        self.n_killed = self.n
        self.tailing.kill()
        self._unwatch()

    @rule(after=st.integers(0, 2))
    def fail(self, after: int) -> None:
        """The inlet breaks in the middle of a look; what was taken is not taken again."""
        self.windows.fail_in = after
        try:
            self.look()
        except TakeFailed:
            self._unwatch()
        self.windows.fail_in = None

    @rule()
    def look(self) -> None:
        """One look; then every line counts once."""
        expected = Counter({n: 1 for n, _ in self.windows.open})
        for path in self.folder.glob("app.log*"):
            if path.suffix != ".gz" and (key := (path.stat().st_dev, path.stat().st_ino)) not in self.watched:
                self.watched[key] = path.open("rb")
        for file in self.watched.values():
            file.seek(0)
            expected |= Counter(n for n, window in self._read(file.read()) if window > self.windows.closed)
        self.tailing.step()
        assert self.windows.rows == sorted(expected.elements())
        assert max(self.windows.sealed.values(), default=0) <= 1

    def _read(self, data: bytes) -> Iterator[tuple[int, int]]:
        for text in data.split(b"\n")[:-1]:
            cells = (
                text.split(b",") if self.text == "csv" else [c.split(b":")[1] for c in text.strip(b"{}").split(b", ")]
            )
            if len(cells) == 2 and all(cell.strip().isdigit() for cell in cells):
                yield int(cells[0]), int(cells[1])


class CsvLogs(Logs):
    """The same in CSV, where all files begin alike."""

    text: ClassVar[str] = "csv"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stretches of a few lines, heads of a few bytes."""
    monkeypatch.setattr(tail, "STRETCH_BYTES", 90)
    monkeypatch.setattr(tail, "STRETCH_LINES", 3)
    monkeypatch.setattr(generation, "HEAD_BYTES", 40)


def run(machine: type[Logs], *, examples: int, shrink: bool = True) -> None:
    """Run a machine, the same way each time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=list(Phase) if shrink else [Phase.generate],
        ),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("machine", [Logs, CsvLogs])
def test_every_whole_line_counts_once(machine: type[Logs]) -> None:
    """Rotation by name and by copy, cuts, removals and restarts in any order, at any point.

    Mutants: `test_mutants_are_caught`.
    """
    run(machine, examples=150)


def script() -> None:
    """What chance finds late: kills after which another log has the inode, or the place, of one that is done."""
    for rotate in (False, True):
        logs = Logs()
        try:
            logs.write(count=3, whole=True, looked=True)
            logs.close_window()
            if rotate:
                logs.rename(away=False, looked=False)
            else:
                logs.cut(count=0, looked=False)
            logs.write(count=5, whole=True, looked=False)
            logs.kill()
            logs.look()
        finally:
            logs.teardown()


def test_the_script_of_the_mutants_passes_without_them() -> None:
    """What it asserts holds of the source as it is."""
    script()


def _position_first(source: tail.TailSource, follow: Generation, stretch: tail._Stretch, *rest: object) -> object:
    frame = FRAME(source, follow, stretch, *rest)  # type: ignore[arg-type]
    follow.advance(stretch.end, stretch.data)
    return frame


def _partial(source: tail.TailSource, follow: Generation) -> object:
    assert follow.descriptor is not None
    data = os.pread(follow.descriptor, follow.size - follow.position, follow.position)
    return tail._Stretch(follow.position + len(data), data) if data else None


FRAME = tail.TailSource._frame
MUTANTS: dict[str, tuple[object, str, Callable[..., object]]] = {
    "position": (tail.TailSource, "_frame", _position_first),
    "inode": (generation, "_fingerprint", lambda head: "0.0"),
    "partial": (tail.TailSource, "_cut", _partial),
    "copies": (Generation, "begins", lambda self, descriptor, head: False),
    "cut": (Generation, "is_in", lambda self, descriptor: True),
    "resume": (Past, "position", lambda self, key, head: max([p.size for x in self._parts.values() for p in x] or [0])),
}


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The position moves before the line is safe; an inode is a file; half a line is a line; a copy is another log; a
    cut goes unnoticed; any done part is a position.
    """  # noqa: D205
    where, name, what = MUTANTS[mutant]
    monkeypatch.setattr(where, name, what)

    def attempt() -> None:
        script()
        run(Logs, examples=100, shrink=False)

    with pytest.raises(AssertionError):
        attempt()
