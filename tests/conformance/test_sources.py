"""One behaviour of every source; a kind joins with a `harness_<kind>.py` (see `harness.py`)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from edge_agg.errors import SourceUnreadable
from tests.conformance.harness import CANARY, Answer, Harness, Rows, found, hostile_text, make_rows
from tests.conformance.inlet import COLUMNS, PATIENCE_S, FakeInlet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

SOON_S = 1.0
"""How long a stop may take."""
KINDS = [
    pytest.param(make, id=name, marks=[pytest.mark.slow] if make.slow else [])  # type: ignore[attr-defined]
    for name, make in found()
]


@pytest.fixture(params=KINDS)
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Harness:
    """Each kind in turn."""
    made: Harness = request.param(tmp_path)
    return made


@pytest.fixture
def run(harness: Harness) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a test's body in a loop, between the harness's start and close."""
    return runner(harness)


def runner(harness: Harness) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Make what runs bodies of tests with this harness."""

    async def whole(body: Coroutine[Any, Any, None]) -> None:
        await harness.start()
        try:
            async with asyncio.timeout(10 * PATIENCE_S):
                await body
        finally:
            await harness.close()

    return lambda body: asyncio.run(whole(body))


@pytest.fixture(autouse=True)
def _silent(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No test of the suite lets a row's value into a log or an output; every row holds the canary."""
    caplog.set_level(logging.DEBUG)
    yield
    out, err = capfd.readouterr()
    assert CANARY not in out + err + caplog.text


@asynccontextmanager
async def delivering(harness: Harness, inlet: FakeInlet, *, drain: bool = False) -> AsyncIterator[asyncio.Task[None]]:
    """A source at work; at the end it is stopped, and ends soon."""
    stop = asyncio.Event()
    task = asyncio.create_task(harness.source().deliver(inlet, stop, drain=drain))
    try:
        yield task
    except BaseException:
        task.cancel()
        raise
    stop.set()
    async with asyncio.timeout(PATIENCE_S):
        await task


def _expected(rows: Rows) -> list[tuple[Any, ...]]:
    return sorted((tuple(row[name] for name in COLUMNS) for row in rows), key=lambda row: row[3])


async def _feed(harness: Harness, rows: Rows) -> None:
    answer = await harness.feed(rows)
    assert CANARY not in answer.text
    assert answer.kind == ("ok" if harness.tells else "silent")


def test_a_name_is_stable(harness: Harness, run: Callable[..., None]) -> None:
    """A restarted source has the name under which its positions are kept, and another kind has another."""

    async def body() -> None:
        names = {harness.source().name for _ in range(2)}
        assert len(names) == 1
        assert ":" in names.pop()

    run(body())


def test_rows_arrive_once_each_and_typed(harness: Harness, run: Callable[..., None]) -> None:
    """What was fed before and while the source runs is there once, in the types asked for, nulls as nulls.

    Mutant: `test_mutants.py`.
    """

    async def body() -> None:
        inlet = FakeInlet()
        async with delivering(harness, inlet):
            for first in (0, 50, 100):
                await _feed(harness, make_rows(50, first=first))
            await inlet.wait_rows(150)
        assert _expected(inlet.rows) == _expected(make_rows(150))
        assert inlet.rejected == 0

    run(body())


def test_a_bad_row_costs_no_other_and_is_counted(harness: Harness, run: Callable[..., None]) -> None:
    """A value of the wrong type takes its own row with it, one count each."""

    async def body() -> None:
        inlet = FakeInlet()
        rows = make_rows(30)
        for n in (0, 11, 29):
            rows[n]["x"] = CANARY
        async with delivering(harness, inlet):
            await _feed(harness, rows)
            await inlet.wait_until(lambda: len(inlet.rows) == 27 and inlet.rejected == 3)
        assert _expected(inlet.rows) == _expected([row for row in rows if row["x"] != CANARY])

    run(body())


def test_nobody_hears_ok_before_the_rows_are_safe(harness: Harness, run: Callable[..., None]) -> None:
    """While the inlet has not come back, the client waits; when the process ends there, it never hears ok.

    What then becomes of the rows: a client that was told nothing feeds again, files and brokers give again; lines of a
    pipe are lost, as docs/sources.md says. Mutant: `test_mutants.py`.
    """

    async def body() -> None:
        before, after = FakeInlet(), FakeInlet()
        before.hold()
        killed = asyncio.create_task(harness.source().deliver(before, asyncio.Event(), drain=False))
        fed = asyncio.create_task(harness.feed(make_rows(20)))
        await before.wait_held()
        if harness.tells:
            assert not fed.done(), "answered before it was safe"
        killed.cancel()
        await asyncio.wait([killed])
        answer = await fed
        assert answer.kind != "ok"
        assert not before.rows
        async with delivering(harness, after):
            if harness.tells:
                await _feed(harness, make_rows(20))
            if harness.tells or harness.keeps:
                await after.wait_rows(20)
        if harness.tells or harness.keeps:
            assert _expected(after.rows) == _expected(make_rows(20))

    run(body())


def test_a_full_agent_makes_the_client_wait_and_loses_nothing(harness: Harness, run: Callable[..., None]) -> None:
    """Full: a client that can be told is told to wait, any other is not read from; then every row comes, once."""

    async def body() -> None:
        inlet = FakeInlet()
        async with delivering(harness, inlet):
            inlet.fill()
            fed = asyncio.create_task(harness.feed(make_rows(20)))
            await inlet.wait_until(lambda: inlet.offered > 0)
            if harness.tells:
                answer = await fed
                assert answer.kind == "wait"
            inlet.resume()
            if harness.tells:
                await _feed(harness, make_rows(20))
            await fed
            await inlet.wait_rows(20)
        assert _expected(inlet.rows) == _expected(make_rows(20))

    run(body())


def test_a_stop_ends_the_source_soon(harness: Harness, run: Callable[..., None]) -> None:
    """Within a second of the stop the source is gone, and a new one takes its place."""

    async def body() -> None:
        for first in (0, 10):
            inlet, stop = FakeInlet(), asyncio.Event()
            task = asyncio.create_task(harness.source().deliver(inlet, stop, drain=False))
            await _feed(harness, make_rows(10, first=first))
            await inlet.wait_rows(10)
            stop.set()
            async with asyncio.timeout(SOON_S):
                await task

    run(body())


def test_what_was_done_does_not_come_again(harness: Harness, run: Callable[..., None]) -> None:
    """A restart goes on where the inlet says that everything is done."""

    async def body() -> None:
        before = FakeInlet()
        async with delivering(harness, before):
            await _feed(harness, make_rows(20))
            await before.wait_rows(20)
        after = FakeInlet(parts=set(before.done()))
        async with delivering(harness, after):
            await _feed(harness, make_rows(20, first=20))
            await after.wait_rows(20)
        assert _expected(before.rows + after.rows) == _expected(make_rows(40))

    run(body())


def test_a_drain_ends(harness: Harness, run: Callable[..., None]) -> None:
    """A drain hands over what is there and comes back by itself; a kind that is pushed to has nothing there."""

    async def body() -> None:
        inlet = FakeInlet()
        if harness.finite:
            await harness.feed(make_rows(20))
            await harness.end()
        async with asyncio.timeout(PATIENCE_S):
            await harness.source().deliver(inlet, asyncio.Event(), drain=True)
        assert len(inlet.rows) == (20 if harness.finite else 0)
        assert inlet.current[-1:] != [False]

    run(body())


def test_a_source_says_when_it_is_current(harness: Harness, run: Callable[..., None]) -> None:
    """Once everything is handed over the source says so, or windows would wait for it."""

    async def body() -> None:
        inlet = FakeInlet()
        async with delivering(harness, inlet):
            await _feed(harness, make_rows(20))
            await inlet.wait_rows(20)
            await inlet.wait_until(lambda: inlet.current[-1:] == [True])

    run(body())


def test_no_input_stops_a_source_or_is_heard_of_again(harness: Harness, run: Callable[..., None]) -> None:
    """Whatever is fed, the source goes on, the good rows after it come, and no word of it is in an answer or a log."""

    async def body() -> None:
        inlet = FakeInlet()
        async with delivering(harness, inlet) as task:
            for first, data in enumerate([*hostile_text(), *harness.hostile()]):
                answer: Answer = await harness.feed_raw(data)
                assert CANARY not in answer.text
                assert answer.kind != "wait"
                await _feed(harness, make_rows(1, first=first))
                await inlet.wait_until(lambda first=first: task.done() or any(row["n"] == first for row in inlet.rows))
                if task.done():
                    await task

    run(body())


def test_a_check_says_nothing_of_rows(harness: Harness, run: Callable[..., None]) -> None:
    """Looking at what is there refuses what cannot be read, and the error names the place alone."""

    async def body() -> None:
        spoiled = harness.spoiled()
        if not spoiled:
            harness.source().check(COLUMNS)
        for source in spoiled:
            with pytest.raises(SourceUnreadable) as raised:
                source.check(COLUMNS)
            assert CANARY not in str(raised.value)
            assert raised.value.__cause__ is None
            assert raised.value.__context__ is None

    run(body())
