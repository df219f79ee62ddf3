"""A folder over time: what a live agent does with files that come, that are damaged, and that go."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import file
from edge_agg.ingest.file import FileSource
from edge_agg.ingest.handover import in_thread, taken
from edge_agg.ingest.trouble import Trouble
from tests.conformance.inlet import FakeInlet
from tests.fakes import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping
    from pathlib import Path
    from typing import Any

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.source import Frame, Part

    Run = Callable[[Callable[["Live"], Coroutine[Any, Any, None]]], None]

X: Mapping[str, ColumnType] = {"x": "integer"}
GOOD, LONG = '{"x": 1}\n', '{"x": 2}\n' * 6


class Asked(FakeClock):
    """A clock that tells when somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Tell, and wait."""
        self.asked.set()
        await super().wait(seconds)


class Live:
    """A live source on a folder, in virtual time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inlet = FakeInlet(columns=X)
        self.clock = Asked()
        self.stop = asyncio.Event()
        self.troubles: list[Trouble] = []
        self.source = FileSource(
            str(folder / "*.*"), batch_rows=2, tolerant=True, clock=self.clock, heard=self.troubles.append
        )
        self.job = asyncio.create_task(self.source.deliver(self.inlet, self.stop, drain=False))

    async def look(self, seconds: float = 5.0) -> None:
        """Let that much time pass, and wait until the source waits again."""
        self.clock.asked.clear()
        await self.clock.advance(timedelta(seconds=seconds))
        await self.settled()

    async def settled(self) -> None:
        """Wait until the source waits."""
        async with asyncio.timeout(20):
            asked = asyncio.create_task(self.clock.asked.wait())
            await asyncio.wait([asked, self.job], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if self.job.done():
            self.job.result()

    @property
    def x(self) -> list[int]:
        """The rows that are safe."""
        return [row["x"] for row in self.inlet.rows]


@pytest.fixture
def live(tmp_path: Path) -> Run:
    """Run a body with a live source; then stop it."""

    def run(body: Callable[[Live], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            live = Live(tmp_path)
            await live.settled()
            await body(live)
            live.stop.set()
            async with asyncio.timeout(20):
                await live.job

        asyncio.run(whole())

    return run


def test_a_live_agent_waits_for_files_and_reads_each_once(tmp_path: Path, live: Run) -> None:
    """An empty folder is current; a new file is found at the next look, and not looked into again.

    Mutant: what is done is not asked for.
    """

    async def body(live: Live) -> None:
        assert live.inlet.current == [False, True]
        (tmp_path / "a.ndjson").write_text(GOOD)
        await live.clock.advance(timedelta(seconds=4.9))
        assert live.x == []
        await live.look(0.1)
        await live.look()
        assert live.x == [1]
        assert live.inlet.current == [False, True, False, True, True]

    live(body)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.parquet", b"none"),
        ("b.ndjson.gz", b"none"),
        ("b.txt", b"x\n1\n"),
        ("b.csv", b'"x\n'),
        ("b.arrow", b"ARROW1"),
    ],
)
def test_a_bad_file_stops_no_live_agent(tmp_path: Path, live: Run, name: str, content: bytes) -> None:
    """It is passed over and said once; the files after it are read, and the source is current.

    Mutant: as strict as a drain.
    """
    (tmp_path / name).write_bytes(content)
    (tmp_path / "c.ndjson").write_text(GOOD)

    async def body(live: Live) -> None:
        await live.look()
        await live.look()
        assert live.x == [1]
        assert live.troubles == [Trouble.FILE_UNREADABLE]
        assert live.inlet.current[-1]

    live(body)


def test_a_file_that_could_not_be_begun_is_tried_again_and_a_begun_one_is_not(
    tmp_path: Path, live: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten minutes later; but rows that were taken are not taken twice: a file that broke off stays away.

    Mutant: a file that broke off is tried again.
    """
    whole, broken = tmp_path / "a.ndjson", tmp_path / "b.ndjson"
    real = FileSource._part_frames
    mended = False

    def frames(source: FileSource, part: Part, columns: Mapping[str, ColumnType]) -> Iterator[Frame]:
        for k, frame in enumerate(real(source, part, columns)):
            if not mended and (part.path == str(whole) or k == 1):
                raise SourceUnreadable("no")
            yield frame

    monkeypatch.setattr(FileSource, "_part_frames", frames)
    whole.write_text(GOOD)
    broken.write_text(LONG)

    async def body(live: Live) -> None:
        nonlocal mended
        assert live.x == [2, 2]
        assert len(live.troubles) == 2
        mended = True
        await live.look(300)
        assert live.x == [2, 2]
        await live.look(300)
        assert live.x == [2, 2, 1]
        await live.look(3600)
        assert live.x == [2, 2, 1]

    live(body)


def test_a_file_that_is_mended_is_another_file(tmp_path: Path, live: Run) -> None:
    """Replaced, it is read at the next look; nothing is remembered of files that are gone."""
    bad = tmp_path / "a.ndjson.gz"
    bad.write_bytes(b"none")

    async def body(live: Live) -> None:
        assert len(live.source._passed_over) == 1
        bad.unlink()
        (tmp_path / "a.ndjson").write_text(GOOD)
        await live.look()
        assert live.x == [1]
        assert live.source._passed_over == {}

    live(body)


def test_a_file_that_goes_away_meanwhile_costs_nothing(
    tmp_path: Path, live: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed, and gone before it is looked at: as if it had never been there."""
    (tmp_path / "a.ndjson").write_text(GOOD)
    real = FileSource._paths
    monkeypatch.setattr(FileSource, "_paths", lambda source: [*real(source), str(tmp_path / "gone.csv")])

    async def body(live: Live) -> None:
        assert live.x == [1]
        assert live.troubles == []

    live(body)


def test_a_drain_is_strict(tmp_path: Path) -> None:
    """No file, or one bad file: refused, also by a tolerant source, before anything is taken.

    Mutant: checked file by file as they are read.
    """

    async def drain() -> list[int]:
        inlet = FakeInlet(columns=X)
        try:
            await FileSource(str(tmp_path / "*"), tolerant=True).deliver(inlet, asyncio.Event(), drain=True)
        finally:
            assert inlet.current[-1] == (not (tmp_path / "z.parquet").exists() and bool(inlet.rows))
        return [row["x"] for row in inlet.rows]

    with pytest.raises(SourceUnreadable, match="no file matches"):
        asyncio.run(drain())
    (tmp_path / "a.ndjson").write_text(GOOD)
    assert asyncio.run(drain()) == [1]
    (tmp_path / "z.parquet").write_bytes(b"none")
    with pytest.raises(SourceUnreadable, match=r"z.parquet: cannot be read"):
        asyncio.run(drain())


def test_a_tolerant_check_refuses_only_what_a_person_must_mend(tmp_path: Path) -> None:
    """No file yet, a damaged file, a misfit beside a good one: passed. Nothing but misfits: the plan is wrong.

    Mutant: the first file decides.
    """
    source = FileSource(str(tmp_path / "*"), tolerant=True)
    source.check(X)
    (tmp_path / "a.parquet").write_bytes(b"none")
    source.check(X)
    (tmp_path / "b.csv").write_text("y\n1\n")
    with pytest.raises(SourceUnreadable, match=r"b.csv: no column 'x'"):
        source.check(X)
    (tmp_path / "c.csv").write_text("x\n1\n")
    source.check(X)
    (tmp_path / "c.csv").unlink()
    (tmp_path / "b.csv").rename(tmp_path / "b.txt")
    with pytest.raises(SourceUnreadable, match=r"b.txt: no known format"):
        source.check(X)


def test_a_stop_comes_between_two_frames(tmp_path: Path) -> None:
    """Also while the inlet keeps it waiting; the part is not done then.

    Mutant: the stop is looked for between files.
    """
    (tmp_path / "a.ndjson").write_text(LONG)

    async def body() -> None:
        inlet, stop = FakeInlet(columns=X), asyncio.Event()
        source = FileSource(str(tmp_path / "*"), batch_rows=2)
        job = asyncio.create_task(source.deliver(inlet, stop, drain=False))
        await inlet.wait_rows(1)
        inlet.hold()
        await inlet.wait_held()
        stop.set()
        async with asyncio.timeout(20):
            await job
        assert inlet.done() == frozenset()
        assert len(inlet.rows) < 6
        assert inlet.current == [False, False]

    asyncio.run(body())


def test_a_thread_is_waited_for_before_anything_is_closed() -> None:
    """Called off in the middle of a read, the read ends first, and an error of it is nobody's to print.

    Mutant: the wait is simply called off.
    """

    async def body() -> None:
        import threading

        go, began, ended = threading.Event(), threading.Event(), threading.Event()

        def read() -> None:
            began.set()
            go.wait(20)
            ended.set()
            raise ValueError("a value")

        job = asyncio.create_task(in_thread(read))
        await asyncio.to_thread(began.wait, 20)
        job.cancel()
        await asyncio.sleep(0)
        assert not job.done()
        go.set()
        with suppress(asyncio.CancelledError):
            await job
        assert ended.is_set()

    asyncio.run(body())


def test_what_the_inlet_raises_is_heard() -> None:
    """An inlet that fails ends the delivery: the process must not go on as if the frame were safe."""

    class Broken(FakeInlet):
        async def take(self, frame: Frame) -> None:
            raise OSError

    async def body() -> None:
        frame = next(iter(()), None)
        with pytest.raises(OSError, match=r"^$"):
            await taken(Broken(columns=X), frame, asyncio.Event())  # type: ignore[arg-type]

    asyncio.run(body())


def test_a_panic_of_a_reader_is_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars' panics are no Exceptions; none may end the agent, nor be quoted."""
    import polars as pl

    (tmp_path / "a.ndjson").write_text(GOOD)

    def panic(*_: object) -> None:
        raise pl.exceptions.PanicException("value of a row")

    monkeypatch.setattr(file, "decode", panic)
    with pytest.raises(SourceUnreadable, match=r"cannot be read \(PanicException\)"):
        list(FileSource(str(tmp_path / "*")).frames(X))
