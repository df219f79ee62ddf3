"""The one way in: what is answered is safe, what does not fit is not taken, and nothing counts twice."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from edge_agg import ceilings as ceilings_room
from edge_agg import failpoint
from edge_agg import intake as intake_room
from edge_agg.ceilings import Ceilings
from edge_agg.contract.plan import parse_plan
from edge_agg.errors import SpoolFailed, SpoolFull
from edge_agg.ingest.source import Frame, InletFull, Part
from edge_agg.intake import CROWDED_S, RETRY_S, Intake
from edge_agg.journal import Journal
from edge_agg.privacy import bound
from edge_agg.privacy.ledger import Budget
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import Account, Series
from edge_agg.spool import Spool
from edge_agg.window import Span
from tests.fakes import DAY, MONDAY, FakeClock, Row, batch_of, settle, small_plan, small_plan_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

HOUR = timedelta(hours=1)
ROOM = 1 << 40
PART = Part(path="a", size=1, mtime_ns=1)


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoint.armed = None


@dataclass
class Bench:
    """An intake over one or two plans, which can be dropped as a kill would, and begun again."""

    home: Path
    plans: list[Any]
    journal: Journal
    spooled: bool = True
    clock: FakeClock = field(default_factory=lambda: FakeClock(MONDAY + HOUR))
    intake: Intake = field(init=False)

    def begin(self) -> Intake:
        """A new life: windows empty, the spool as it lies on disk."""
        account = Account(name="people", budget=Budget(rho=10**6, delta=1, horizon=timedelta(days=365)))  # type: ignore[arg-type]
        ceilings = Ceilings(memory_bytes=ROOM, disk_bytes=ROOM, state=self.home)
        series = [
            Series(
                tenant="default",
                measurement=compile_plan(plan),
                account=account,
                journal=self.journal,
                span=Span(start=None, end=MONDAY + 40 * DAY),
            )
            for plan in self.plans
        ]
        self.intake = Intake(
            columns=dict(self.plans[0].events.columns),
            series=series,
            spool=Spool.open(self.home / "spool", quota_bytes=ROOM) if self.spooled else None,
            ceilings=ceilings,
            clock=self.clock,
        )
        return self.intake

    @asynccontextmanager
    async def working(self) -> AsyncIterator[Intake]:
        """One life, which ends as a kill ends it: nothing is told, nothing is closed in order."""
        intake = self.begin()
        await intake.replay()
        worker = asyncio.create_task(intake.run())
        try:
            yield intake
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            if intake.spool is not None:
                intake.spool.close()

    def counts(self) -> list[dict[str, int]]:
        """Rows held of each open window, by plan."""
        return [{f"{s:%d}": b.rows for s, b in series._open.items()} for series in self.intake.series]

    def frame(self, *rows: Row, part: Part | None = None) -> Frame:
        """Some rows as a source hands them over."""
        return Frame(part=part, batch=batch_of(rows, self.plans[0]), rejected=0, last=True)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """One plan of windows of a day."""
    journal = Journal.open(tmp_path, "node", now=MONDAY)
    yield Bench(home=tmp_path, plans=[small_plan(every="1d", lateness="1h", max_rows=100)], journal=journal)
    journal.close()


def rows(n: int, *, day: int = 0, unit: str = "u") -> list[Row]:
    """Rows of as many units."""
    return [Row(u=f"{unit}{i}", t=MONDAY + day * DAY) for i in range(n)]


def test_what_was_answered_is_there_after_a_kill(bench: Bench) -> None:
    """Guarantee: an answered frame is in its window in the next life, once, and in the life after that."""

    async def work() -> None:
        async with bench.working() as intake:
            await intake.take("http", bench.frame(*rows(3)))
            await intake.take("http", bench.frame(*rows(2, unit="v")))
        for _ in range(2):
            async with bench.working():
                assert bench.counts() == [{"07": 5}]

    asyncio.run(work())


@pytest.mark.parametrize(("point", "there"), [("before_spool", 0), ("spooled", 3)])
def test_a_kill_on_the_way_in(bench: Bench, point: str, there: int) -> None:
    """Guarantee: killed before the disk has it, it was not answered and is not there; killed after, it is there."""

    class Killed(BaseException):
        pass

    def armed(name: str) -> None:
        if name == point:
            raise Killed

    async def work() -> None:
        intake = bench.begin()
        failpoint.armed = armed
        taking = asyncio.create_task(intake.take("http", bench.frame(*rows(3))))
        await settle()
        group = intake._group()
        with pytest.raises(Killed):
            intake._commit(group)
        assert not taking.done()
        taking.cancel()
        failpoint.armed = None
        assert intake.spool is not None
        intake.spool.close()
        async with bench.working():
            assert bench.counts() == ([{"07": there}] if there else [{}])

    asyncio.run(work())


def _answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Intake._commit

    def commit(self: Intake, group: Any) -> bool:
        for offer in group:
            offer.taken.get_loop().call_soon_threadsafe(lambda o=offer: o.taken.done() or o.taken.set_result(None))
        return honest(self, group)

    monkeypatch.setattr(Intake, "_commit", commit)


@pytest.mark.parametrize("mutant", [None, _answers_first])
def test_nothing_is_called_safe_before_the_disk_has_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee: while the sync has not come back, neither has `take`. Mutant: the answer comes before the sync."""
    if mutant is not None:
        mutant(monkeypatch)

    async def work() -> bool:
        async with bench.working() as intake:
            loop, syncing, synced = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
            honest = Spool.append

            def slow(self: Spool, records: Any) -> None:
                loop.call_soon_threadsafe(syncing.set)
                asyncio.run_coroutine_threadsafe(synced.wait(), loop).result(10)
                honest(self, records)

            monkeypatch.setattr(Spool, "append", slow)
            taking = asyncio.create_task(intake.take("http", bench.frame(*rows(1))))
            await syncing.wait()
            await settle()
            early = taking.done()
            synced.set()
            await taking
            return early

    assert asyncio.run(work()) is (mutant is not None)


def test_many_frames_share_one_sync(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what waits is committed as a group; all of it is safe when anybody's is."""
    groups: list[int] = []
    honest = Spool.append

    def counted(self: Spool, records: Any) -> None:
        groups.append(len(records))
        honest(self, records)

    monkeypatch.setattr(Spool, "append", counted)

    async def work() -> None:
        async with bench.working() as intake:
            async with intake.windows_at_rest():
                taking = [asyncio.create_task(intake.take("http", bench.frame(Row(u=f"u{i}")))) for i in range(20)]
                await settle()
            await asyncio.gather(*taking)

    asyncio.run(work())
    assert sum(groups) == 20
    assert len(groups) <= 2


def test_no_row_goes_in_while_windows_close(bench: Bench) -> None:
    """Guarantee: rows go in, or windows close, never both."""

    async def work() -> None:
        async with bench.working() as intake:
            async with intake.windows_at_rest():
                taking = asyncio.create_task(intake.take("http", bench.frame(*rows(1))))
                await asyncio.sleep(0.02)
                assert not taking.done()
                assert bench.counts() == [{}]
            await taking
            assert bench.counts() == [{"07": 1}]

    asyncio.run(work())


def test_without_room_a_pushed_frame_is_refused_and_a_read_one_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee (A12): over the memory limit nothing is taken in; below it again, what waited is."""

    async def work() -> None:
        async with bench.working() as intake:
            resident = [ROOM]
            monkeypatch.setattr(ceilings_room, "resident_bytes", lambda: resident[0])
            with pytest.raises(InletFull) as full:
                await intake.take("http", bench.frame(*rows(1)))
            assert full.value.retry_s == RETRY_S
            waiting = asyncio.create_task(intake.take("file", bench.frame(*rows(2), part=PART)))
            await settle()
            assert not waiting.done()
            assert bench.counts() == [{}]
            resident[0] = 0
            await bench.clock.advance(timedelta(seconds=RETRY_S))
            await waiting
            assert bench.counts() == [{"07": 2}]

    asyncio.run(work())


def test_a_crowd_is_told_to_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what waits to be taken in is bounded in bytes; the next is refused and can come again."""
    monkeypatch.setattr(ceilings_room, "resident_bytes", lambda: 0)

    async def work() -> None:
        async with bench.working() as intake:
            frame = bench.frame(*rows(100))
            intake.ceilings.memory_bytes = ceilings_room.WAITING_SHARE * (2 * frame.batch.nbytes + 1)
            async with intake.windows_at_rest():
                first = [asyncio.create_task(intake.take("http", frame)) for _ in range(5)]
                await settle()
            ended = await asyncio.gather(*first, return_exceptions=True)
            refused = [end for end in ended if isinstance(end, InletFull)]
            assert refused
            assert all(end.retry_s == CROWDED_S for end in refused)
            assert intake.waiting_bytes == 0

    asyncio.run(work())


NAMES: dict[str, tuple[str, Callable[[int], str | int]]] = {
    "text": ("string", str),
    "small integer": ("integer", int),
    "large integer": ("integer", lambda i: 2**40 + i),
    "event": ("string", str),
}
"""By kind of unit: the column's type, and the name of each."""


@pytest.mark.parametrize("unit", NAMES)
def test_a_window_with_too_many_units_for_its_sums_takes_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    """Guarantee: a frame that could break the proof that no sum wraps is refused as a whole, before any of it is kept.

    What was offered beside it counts too. Once the window has closed there is room. Mutant: `_is_crowded` says no; the
    worker then ends, and would end again with each replay of the spool.
    """
    monkeypatch.setattr(bound, "MAX_UNITS", 10)
    monkeypatch.setattr(intake_room, "FRAME_ROWS", 5)
    kind, name = NAMES[unit]
    text = small_plan_text(every="1d", lateness="1h", unit=kind, max_rows=1)
    bench.plans = [parse_plan(text.replace('column = "u"', "event = true") if unit == "event" else text)]

    def some(n: int, first: int, day: int = 0) -> Frame:
        return bench.frame(*(Row(u=name(first + i), t=MONDAY + day * DAY) for i in range(n)))

    async def work() -> None:
        async with bench.working() as intake:
            await intake.take("http", some(5, 0))
            async with intake.windows_at_rest():
                first = asyncio.create_task(intake.take("http", some(2, 5)))
                await settle()
                with pytest.raises(InletFull):
                    await intake.take("http", some(4, 10))
            await first
            assert intake.crowded
            assert bench.counts() == [{"07": 7}]
            with pytest.raises(InletFull):
                await intake.take("http", some(1, 20, day=1))
            intake.series[0].close(MONDAY)
            assert not intake.crowded
            await intake.take("http", some(5, 30, day=1))
        with monkeypatch.context() as patch:
            patch.setattr(Intake, "_is_crowded", lambda *_: False)
            intake = bench.begin()
            worker = asyncio.create_task(intake.run())
            taking = asyncio.create_task(intake.take("http", some(20, 40, day=2)))
            with pytest.raises(OverflowError, match="more"):
                await worker
            taking.cancel()

    asyncio.run(work())


def test_a_full_spool_refuses_what_is_pushed_and_takes_what_can_be_read_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee (A10): refused rows are in no window, so a second push does not count twice."""

    def full(self: Spool, records: Any) -> None:
        raise SpoolFull

    async def work() -> None:
        async with bench.working() as intake:
            with monkeypatch.context() as patch:
                patch.setattr(Spool, "append", full)
                async with intake.windows_at_rest():
                    pushed = asyncio.create_task(intake.take("http", bench.frame(*rows(3))))
                    read = asyncio.create_task(intake.take("file", bench.frame(*rows(2), part=PART)))
                    await settle()
                with pytest.raises(InletFull):
                    await pushed
                await read
            assert bench.counts() == [{"07": 2}]
            await intake.take("http", bench.frame(*rows(3)))
            assert bench.counts() == [{"07": 5}]

    asyncio.run(work())


def test_a_refused_frame_is_its_pushers_alone_to_hear_of(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: who waits until all was taken in, as a stop does, is not told. Mutant: the wait raises it too."""

    def full(self: Spool, records: Any) -> None:
        raise SpoolFull

    async def work() -> None:
        async with bench.working() as intake:
            monkeypatch.setattr(Spool, "append", full)
            monkeypatch.setattr("edge_agg.intake.GROUP_BYTES", 1)
            async with intake.windows_at_rest():
                pushed = [asyncio.create_task(intake.take("http", bench.frame(*rows(3)))) for _ in range(2)]
                await settle()
                idle = asyncio.create_task(intake.wait_idle())
                await settle()
            await idle
            heard = await asyncio.gather(*pushed, return_exceptions=True)
            assert [type(one) for one in heard] == [InletFull, InletFull]

    asyncio.run(work())


def test_a_failed_spool_ends_the_intake(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A2): after a sync that failed nothing is called safe any more."""

    def failed(self: Spool, records: Any) -> None:
        raise SpoolFailed

    monkeypatch.setattr(Spool, "append", failed)

    async def work() -> None:
        intake = bench.begin()
        worker = asyncio.create_task(intake.run())
        taking = asyncio.create_task(intake.take("http", bench.frame(*rows(1))))
        with pytest.raises(SpoolFailed):
            await worker
        assert not taking.done()
        taking.cancel()

    asyncio.run(work())


def test_raw_events_leave_the_disk_with_their_window(bench: Bench) -> None:
    """Guarantee: a segment goes the moment that the last plan has sealed its window, and no earlier."""
    bench.plans.append(small_plan(every="7d", lateness="2h", max_rows=100, name="weekly"))

    async def work() -> None:
        async with bench.working() as intake:
            await intake.take("http", bench.frame(*rows(3)))
            spool, (daily, weekly) = intake.spool, intake.series
            assert spool is not None
            for day in range(7):
                daily.close(MONDAY + day * DAY)
                intake.forget(received_before=bench.clock.now() - 35 * DAY)
                assert spool.size_bytes > 0
            weekly.close(MONDAY)
            intake.forget(received_before=bench.clock.now() - 35 * DAY)
            if spool.size_bytes:  # the daily plan's watermark is an hour behind the weekly one's
                daily.close(MONDAY + 7 * DAY)
                intake.forget(received_before=bench.clock.now() - 35 * DAY)
            assert spool.size_bytes == 0
            assert not list((bench.home / "spool").glob("*.spool*"))

    asyncio.run(work())


def test_rows_that_no_window_takes_are_not_stored(bench: Bench) -> None:
    """Guarantee: a late row, and one that claims the far future, never lie on the disk."""

    async def work() -> None:
        async with bench.working() as intake:
            intake.series[0].close(MONDAY)
            assert intake.spool is not None
            await intake.take("http", bench.frame(Row(t=MONDAY), Row(t=MONDAY + 400 * DAY), Row(t=None)))
            assert intake.spool.size_bytes == 0
            await intake.take("http", bench.frame(Row(t=MONDAY), Row(t=MONDAY + DAY)))
            (record,) = intake.spool.replay()
            assert record.batch.num_rows == 1

    asyncio.run(work())


def _forgets_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Series.add
    monkeypatch.setattr(Series, "add", lambda self, batch, **_: honest(self, batch))


@pytest.mark.parametrize("mutant", [None, _forgets_the_floor])
def test_a_late_row_that_was_assigned_counts_once_over_restarts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None] | None
) -> None:
    """Guarantee (A8): read again, it goes where it went, and nowhere once that has closed.

    Mutant: where windows were closed to at its arrival is forgotten, and it counts in the next window too.
    """
    bench.plans = [small_plan(every="1d", lateness="1h", late="assign", max_rows=100)]
    if mutant is not None:
        mutant(monkeypatch)

    async def work() -> list[dict[str, int]]:
        async with bench.working() as intake:
            intake.series[0].close(MONDAY)
            await intake.take("http", bench.frame(Row(t=MONDAY), Row(u="other", t=MONDAY + 5 * DAY)))
            assert bench.counts() == [{"08": 1, "12": 1}]
        async with bench.working() as intake:
            assert bench.counts() == [{"08": 1, "12": 1}]
            intake.series[0].close(MONDAY + DAY)
        async with bench.working():
            return bench.counts()

    assert (asyncio.run(work()) == [{"12": 1}]) is (mutant is None)


def test_a_doubted_clock_takes_nothing_and_deletes_nothing(bench: Bench) -> None:
    """Guarantee (A9): in 1970 every row is from the future, and every stored one is old: neither is acted on."""

    async def work() -> None:
        async with bench.working() as intake:
            await intake.take("http", bench.frame(*rows(1)))
            intake.trusted = False
            with pytest.raises(InletFull):
                await intake.take("http", bench.frame(*rows(1)))
            assert intake.spool is not None
            before = intake.spool.size_bytes
            bench.clock.time += 4000 * DAY
            intake.forget(received_before=bench.clock.now() - DAY)
            assert intake.spool.size_bytes == before > 0

    asyncio.run(work())


def test_windows_wait_for_sources_that_are_behind_but_not_for_ever(bench: Bench) -> None:
    """Guarantee: a source says when it has handed over all; one that never does holds windows for `patience`."""

    async def work() -> None:
        async with bench.working() as intake:
            one, other = intake.inlet("one", ()), intake.inlet("other", ())
            waiting = asyncio.create_task(intake.wait_current(HOUR))
            one.is_current(True)
            await settle()
            assert not waiting.done()
            other.is_current(True)
            await asyncio.wait_for(waiting, 1)
            other.is_current(False)
            waiting = asyncio.create_task(intake.wait_current(HOUR))
            await bench.clock.advance(HOUR - timedelta(seconds=1))
            assert not waiting.done()
            await bench.clock.advance(timedelta(seconds=1))
            await asyncio.wait_for(waiting, 1)

    asyncio.run(work())


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY])
def test_patience_is_measured_by_the_time_since_boot(bench: Bench, jump: timedelta) -> None:
    """Guarantee (A9): a clock that is set anew neither ends the wait for a source that is behind nor lengthens it.

    Mutant: patience is measured by the wall clock.
    """

    async def work() -> None:
        async with bench.working() as intake:
            intake.inlet("one", ())
            waiting = asyncio.create_task(intake.wait_current(HOUR))
            await settle()
            bench.clock.time += jump
            await bench.clock.advance(HOUR - timedelta(seconds=1))
            assert not waiting.done()
            assert intake.patience_left_s(HOUR) == 1.0
            await bench.clock.advance(timedelta(seconds=1))
            await asyncio.wait_for(waiting, 1)

    asyncio.run(work())


def test_in_memory_nothing_touches_the_disk(bench: Bench) -> None:
    """Guarantee: with `spool = "memory"` no raw row is on the device's disk, and a restart begins without them."""
    bench.spooled = False

    async def work() -> None:
        async with bench.working() as intake:
            await intake.take("http", bench.frame(*rows(3)))
            assert bench.counts() == [{"07": 3}]
        assert not (bench.home / "spool").exists()
        async with bench.working():
            assert bench.counts() == [{}]

    asyncio.run(work())
