"""The uplink: what is sealed goes up, byte for byte, until its own receipt says it is stored or refused for good."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.contract import codec
from edge_agg.contract.plan import PlanHash
from edge_agg.contract.refusal import RULES, Refusal
from edge_agg.contract.release import Charge, Mechanism, Release, Status, VectorSpec
from edge_agg.errors import JournalFailed, JournalFull
from edge_agg.telemetry import Event
from edge_agg.uplink import HOLD_S, Uplink
from edge_agg.wire import CallFailed
from tests.fakes import (
    DROP_REQUEST,
    DROP_RESPONSE,
    MISMATCH,
    MONDAY,
    REVERSED,
    WEEK,
    FakeClock,
    FakeCollector,
    settle,
    too_large,
    unavailable,
)

if TYPE_CHECKING:
    from edge_agg.journal import Journal

HASH = PlanHash(b"p" * 32)


def seal(journal: Journal, n: int = 1, size: int = 100) -> None:
    """Seal that many windows more."""
    import hashlib

    for _ in range(n):
        link = journal.next_link()
        start = MONDAY + link.seq * WEEK
        payload = bytes([link.seq % 256]) * size
        release = Release(
            tenant="default",
            agent="node",
            link=link,
            plan="p",
            plan_version=1,
            plan_hash=HASH,
            window_start=start,
            window_end=start + WEEK,
            status=Status.RELEASED,
            account="people",
            charge=Charge(rho=Fraction(1)),
            cumulative=Charge(rho=Fraction(link.seq)),
            vectors=(VectorSpec(name="n", mechanism=Mechanism.GAUSSIAN, scale=1.0, sensitivity=1.0, loss=0.5),),
            max_partitions=1,
            max_rows_per_partition=1,
            max_nodes=1,
            rows=1,
            payload_sha256=hashlib.sha256(payload).digest(),
        )
        journal.seal(
            seq=link.seq,
            plan_hash=HASH,
            window=(start, start + WEEK),
            status=Status.RELEASED,
            sealed=codec.seal(release, payload),
            positions=(),
            local_counts={},
        )


@dataclasses.dataclass
class Bench:
    """An uplink with its fakes."""

    journal: Journal
    collector: FakeCollector
    clock: FakeClock
    uplink: Uplink

    def send(self) -> str:
        """Send once."""
        return asyncio.run(self.uplink.send_once())

    def drain(self, patience_s: float = 10.0) -> bool:
        """Drain."""
        return asyncio.run(self.uplink.wait_drained(patience_s))

    @property
    def stored(self) -> list[int]:
        """The seqs that the collector holds."""
        return [release.link.seq for release in self.collector.releases]


def bench_of(journal: Journal, *, batch: int = 4, jitter: float = 0.5, jumps: bool = True) -> Bench:
    """An uplink over a journal."""
    collector, clock = FakeCollector(), FakeClock(jumps=jumps)
    uplink = Uplink(
        journal=journal,
        wire=collector,
        clock=clock,
        jitter=lambda: jitter,
        batch=batch,
        retry_first_s=1.0,
        retry_limit_s=60.0,
    )
    return Bench(journal=journal, collector=collector, clock=clock, uplink=uplink)


@pytest.fixture
def bench(journal: Journal) -> Bench:
    """An uplink in batches of four, whose clock jumps where somebody waits."""
    return bench_of(journal)


def test_what_waits_goes_oldest_first_in_batches(bench: Bench) -> None:
    """Guarantee (A11): by seq, `batch` at a time, until nothing waits; then nothing is sent."""
    seal(bench.journal, 10)
    assert bench.drain()
    assert bench.collector.batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert bench.stored == list(range(1, 11))
    assert bench.send() == "idle"
    assert len(bench.collector.batches) == 3
    assert bench.clock.waits == []


@pytest.mark.parametrize("fault", [DROP_REQUEST, DROP_RESPONSE, MISMATCH, REVERSED])
def test_only_matching_receipts_are_acks(bench: Bench, fault: str) -> None:
    """Guarantee: no receipts, or receipts of other hashes, ack nothing; the same bytes go again."""
    seal(bench.journal, 3)
    bench.collector.faults.append(fault)
    assert bench.send() == "failed"
    assert bench.journal.unacked() == 3
    assert bench.send() == "progress"
    assert bench.journal.unacked() == 0
    assert bench.collector.requests[0] == bench.collector.requests[1]
    assert bench.stored == [1, 2, 3]


def test_acks_by_number_instead_of_hash_would_be_caught(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: whatever comes back is settled in order; a receipt of another release then acks this one."""
    seal(bench.journal, 3)
    bench.collector.faults.append(MISMATCH)
    honest = FakeCollector.push

    async def blind(self: FakeCollector, batch: Any) -> Any:
        receipts = await honest(self, batch)
        for waiting, receipt in zip(batch, receipts, strict=True):
            receipt.release_hash = waiting.sealed.hash
        return receipts

    monkeypatch.setattr(FakeCollector, "push", blind)
    assert bench.send() == "progress"
    assert bench.journal.unacked() != 3


def test_too_few_receipts_ack_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that is cut short is a failed call."""
    seal(bench.journal, 2)
    honest = FakeCollector.push

    async def short(self: FakeCollector, batch: Any) -> Any:
        return (await honest(self, batch))[:1]

    monkeypatch.setattr(FakeCollector, "push", short)
    assert bench.send() == "failed"
    assert bench.journal.unacked() == 2


def test_the_back_off_doubles_up_to_its_limit(bench: Bench) -> None:
    """Guarantee (B7): 1, 2, 4 ... 60 seconds, by the jitter; after a success it starts anew."""
    seal(bench.journal)
    bench.collector.faults.extend([DROP_REQUEST] * 9)
    for _ in range(9):
        assert bench.send() == "failed"
    ceilings = [min(60.0, 2.0**i) for i in range(9)]
    assert bench.clock.waits == pytest.approx([c * 0.55 for c in ceilings])
    assert bench.send() == "progress"
    seal(bench.journal)
    bench.collector.faults.append(DROP_REQUEST)
    bench.send()
    assert bench.clock.waits[-1] == pytest.approx(0.55)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 10_000))
def test_the_back_off_is_never_nothing_and_never_beyond_its_limit(jitter: float, failures: int) -> None:
    """Guarantee: between a tenth of the ceiling and the ceiling, after any number of failures."""
    uplink = Uplink(
        journal=None,  # type: ignore[arg-type]  # only the arithmetic is asked
        wire=FakeCollector(),
        clock=FakeClock(),
        jitter=lambda: jitter,
        batch=1,
        retry_first_s=1.0,
        retry_limit_s=60.0,
    )
    uplink._failures = failures
    ceiling = min(60.0, 2.0 ** min(failures, 30))
    assert ceiling * 0.1 <= uplink._backoff() <= ceiling


@pytest.mark.parametrize(("jitter", "waits"), [(0.0, 7.0), (0.9, 13.3)])
def test_the_collectors_pushback_is_honoured(journal: Journal, jitter: float, waits: float) -> None:
    """Guarantee: never sooner than asked, and spread over as long again, so a fleet does not come back at once."""
    bench = bench_of(journal, jitter=jitter)
    seal(journal)
    bench.collector.faults.append(CallFailed("RESOURCE_EXHAUSTED", pushback_s=7.0, too_large=False))
    assert bench.send() == "failed"
    assert bench.clock.waits == [pytest.approx(waits)]
    assert bench.send() == "progress"


def test_a_message_that_is_too_large_goes_in_halves_then_is_parked(bench: Bench) -> None:
    """Guarantee: only the release that cannot be sent alone is parked; the others get through, in order."""
    seal(bench.journal, 6)
    honest = bench.collector.push

    async def limited(batch: Any) -> Any:
        if any(w.seq == 2 for w in batch):
            bench.collector.batches.append([w.seq for w in batch])
            raise too_large()
        return await honest(batch)

    bench.uplink.wire = type("Limited", (), {"push": staticmethod(limited)})()
    assert bench.drain()
    assert bench.collector.batches == [[1, 2, 3, 4], [1, 2], [1], [2, 3, 4, 5], [2, 3], [2], [3], [4, 5, 6]]
    assert [(p.seq, p.refusal) for p in bench.journal.parked()] == [(2, Refusal.TOO_LARGE)]
    assert bench.stored == [1, 3, 4, 5, 6]
    assert bench.clock.waits == []


@pytest.mark.parametrize("jump", [timedelta(days=1), timedelta(days=-1)])
def test_patience_is_measured_by_the_time_since_boot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, jump: timedelta
) -> None:
    """Guarantee: a clock that is set anew ends no drain early and lengthens none. Mutant: the wall clock measures."""
    seal(bench.journal, 1)
    bench.collector.faults.extend([unavailable()] * 100)
    honest = bench.collector.push

    async def push(batch: Any) -> Any:
        if len(bench.collector.batches) == 1:
            bench.clock.time += jump
        return await honest(batch)

    monkeypatch.setattr(FakeCollector, "push", lambda _, batch: push(batch))
    assert not bench.drain(30.0)
    assert 30.0 <= bench.clock.since_boot_s() <= 60.0


def test_what_is_too_large_is_parked_once_there_is_room_to_say_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee (A10): a full disk ends no sending. Mutant: only what receipts say is tried again."""
    seal(bench.journal, 1)
    bench.collector.faults.extend([too_large(), too_large()])
    with monkeypatch.context() as patch:
        patch.setattr(bench.journal, "settle", _has_no_room)
        assert bench.send() == "failed"
    assert bench.journal.parked() == []
    assert bench.send() == "progress"
    assert [p.refusal for p in bench.journal.parked()] == [Refusal.TOO_LARGE]


def _has_no_room(**_: object) -> None:
    raise JournalFull


@pytest.mark.parametrize("refusal", [r for r in Refusal if RULES[r].verdict == "park"])
def test_what_is_refused_for_good_is_parked_and_blocks_nothing(bench: Bench, refusal: Refusal) -> None:
    """Guarantee: one parked release does not hold up the rest, and is not sent again."""
    seal(bench.journal, 9)
    bench.collector.refuse[2] = refusal.value
    assert bench.drain()
    assert [(p.seq, p.refusal) for p in bench.journal.parked()] == [(2, refusal)]
    assert bench.stored == [1, 3, 4, 5, 6, 7, 8, 9]
    assert bench.send() == "idle"
    assert sum(2 in batch for batch in bench.collector.batches) == 1


HELD = [r.value for r in Refusal if RULES[r].verdict == "hold"]
RETRIED = [r.value for r in Refusal if RULES[r].verdict == "retry"]


@pytest.mark.parametrize("code", [*RETRIED, "a_code_of_next_year", ""])
def test_what_is_refused_for_a_moment_goes_again_after_a_back_off(bench: Bench, code: str) -> None:
    """Guarantee: also under a code that this agent does not know; the others pass, and nothing waits HOLD_S."""
    seal(bench.journal, 6)
    bench.collector.refuse[1] = code
    assert [bench.send(), bench.send(), bench.send()] == ["progress", "progress", "failed"]
    assert bench.stored == [2, 3, 4, 5, 6]
    assert (bench.journal.unacked(), bench.uplink.held, bench.journal.parked()) == (1, 0, [])
    assert len(bench.clock.waits) == 3
    assert bench.clock.waits == sorted(bench.clock.waits)
    assert max(bench.clock.waits) < HOLD_S
    del bench.collector.refuse[1]
    assert bench.send() == "progress"
    assert bench.collector.presented[0] == bench.collector.presented[-1]


def test_a_drain_does_not_sleep_longer_than_its_patience(bench: Bench) -> None:
    """Guarantee: a pushback of a day does not hold up a drain that was told to give up after five seconds."""
    seal(bench.journal)
    bench.collector.faults.extend([CallFailed("UNAVAILABLE", pushback_s=86_400.0, too_large=False)] * 10)
    assert not asyncio.run(bench.uplink.wait_drained(5.0))
    assert sum(bench.clock.waits) <= 10.0


@pytest.mark.parametrize("code", HELD)
def test_what_is_refused_for_now_is_kept_and_tried_again(
    bench: Bench, said: list[tuple[Event, dict[str, Any]]], code: str
) -> None:
    """Guarantee: the others pass, and later it goes again."""
    seal(bench.journal, 6)
    bench.collector.refuse[1] = code
    assert [bench.send(), bench.send()] == ["progress", "progress"]
    assert bench.stored == [2, 3, 4, 5, 6]
    assert (bench.journal.unacked(), bench.uplink.held, bench.journal.parked()) == (1, 1, [])
    assert bench.send() == "idle"
    del bench.collector.refuse[1]
    bench.clock.time += timedelta(seconds=HOLD_S)
    assert bench.send() == "progress"
    assert (bench.journal.unacked(), bench.uplink.held) == (0, 0)
    assert bench.collector.presented[0] == bench.collector.presented[-1]
    assert [e for e, _ in said].count(Event.RELEASE_HELD) == 1


@pytest.mark.parametrize("jump", [timedelta(days=2), timedelta(days=-2)])
def test_a_clock_that_jumps_holds_nothing_for_ever(bench: Bench, jump: timedelta) -> None:
    """Guarantee (A9): after a jump of two days, either way, what was held is tried again."""
    seal(bench.journal)
    bench.collector.refuse[1] = "plan_unknown"
    bench.send()
    bench.collector.refuse.clear()
    bench.clock.time += jump
    assert bench.send() == "progress"


def test_a_drain_gives_up_after_its_patience(bench: Bench) -> None:
    """Guarantee: without an ack for `patience_s` the drain says so; nothing is lost."""
    seal(bench.journal, 2)
    bench.collector.faults.extend([DROP_REQUEST] * 100)
    assert bench.drain(30.0) is False
    assert 30.0 <= sum(bench.clock.waits) < 60.0
    assert bench.journal.unacked() == 2
    bench.collector.faults.clear()
    assert bench.drain(30.0) is True


def test_patience_starts_again_with_each_ack(journal: Journal) -> None:
    """A slow collector that keeps acking is not given up."""
    bench = bench_of(journal, batch=1)
    seal(journal, 20)
    honest = bench.collector.push

    async def slow(batch: Any) -> Any:
        bench.clock.time += timedelta(seconds=9)
        return await honest(batch)

    bench.uplink.wire = type("Slow", (), {"push": staticmethod(slow)})()
    assert bench.drain(10.0) is True


def test_a_drain_does_not_wait_out_a_hold(bench: Bench) -> None:
    """A drain tries what is held again, and gives up by its patience, not by the hold."""
    seal(bench.journal)
    bench.collector.refuse[1] = "plan_unknown"
    assert bench.drain(5.0) is False
    assert len(bench.collector.requests) > 2
    assert sum(bench.clock.waits) < HOLD_S


@given(st.lists(st.sampled_from([None, DROP_REQUEST, DROP_RESPONSE, MISMATCH, REVERSED, "large"]), max_size=12))
def test_whatever_the_network_does_every_release_arrives_as_it_was_sealed(faults: list[str | None]) -> None:
    """Guarantee (A1): each release ends up stored once, or parked; every presentation is the sealed bytes."""
    import tempfile
    from pathlib import Path

    from edge_agg.journal import Journal as Opened

    with tempfile.TemporaryDirectory() as folder:
        journal = Opened.open(Path(folder), "node", now=MONDAY)
        bench = bench_of(journal, batch=3)
        seal(journal, 5)
        sealed = {w.sealed.hash for w in journal.waiting(10)}
        bench.collector.faults.extend(too_large() if f == "large" else f or "none" for f in faults)
        assert bench.drain(10_000.0)
        parked = {p.seq for p in journal.parked()}
        journal.close()
    assert set(bench.stored) | parked == {1, 2, 3, 4, 5}
    assert {hash_ for _, hash_ in bench.collector.presented} <= sealed


def test_what_is_acked_is_said_in_bytes_of_noise(bench: Bench, said: list[tuple[Event, dict[str, Any]]]) -> None:
    """The event counts releases and bytes; a failed call is said with its status alone."""
    seal(bench.journal, 2)
    bench.collector.faults.append(unavailable())
    assert bench.drain()
    size = sum(len(sealed.header) + len(sealed.payload) for _, sealed in bench.collector.accepted.values())
    assert said == [
        (Event.SEND_FAILED, {"status": "UNAVAILABLE", "retry_s": 0.55}),
        (Event.RELEASES_ACKED, {"releases": 2, "payload_bytes": size}),
    ]


# Living with the agent


def test_the_uplink_sends_when_it_is_woken_and_stops_when_told(journal: Journal) -> None:
    """Guarantee: no polling: a sealed release goes at once, and stopping takes no time."""
    bench = bench_of(journal, jumps=False)

    async def live() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(bench.uplink.run(stop))
        await settle()
        assert bench.collector.batches == []
        seal(journal, 2)
        await settle()
        assert bench.collector.batches == []
        bench.uplink.wake()
        await settle()
        assert bench.collector.batches == [[1, 2]]
        stop.set()
        await asyncio.wait_for(task, 5)

    asyncio.run(live())


def test_what_is_held_goes_again_by_itself(journal: Journal) -> None:
    """After HOLD_S a live uplink tries again without being woken."""
    bench = bench_of(journal, jumps=False)

    async def live() -> None:
        stop = asyncio.Event()
        seal(journal)
        bench.collector.refuse[1] = "plan_unknown"
        task = asyncio.create_task(bench.uplink.run(stop))
        await settle()
        bench.collector.refuse.clear()
        await bench.clock.advance(timedelta(seconds=HOLD_S))
        assert bench.stored == [1]
        stop.set()
        await asyncio.wait_for(task, 5)

    asyncio.run(live())


def test_stopping_does_not_wait_out_a_back_off(journal: Journal) -> None:
    """Guarantee: a live uplink stops at once, also while it backs off, whatever pushback a collector asked for."""
    bench = bench_of(journal, jumps=False)

    async def live() -> None:
        stop = asyncio.Event()
        seal(journal)
        bench.collector.faults.append(CallFailed("UNAVAILABLE", pushback_s=86_400.0, too_large=False))
        task = asyncio.create_task(bench.uplink.run(stop))
        await settle()
        stop.set()
        await settle()
        stopped = task.done()
        task.cancel()
        assert stopped

    asyncio.run(live())


def test_a_failed_journal_ends_the_uplink(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A2): an ack that cannot be stored is no ack, and nothing more is sent."""
    bench = bench_of(journal)
    seal(journal)

    def fail(**_: object) -> None:
        raise JournalFailed("disk full")

    monkeypatch.setattr(journal, "settle", fail)
    with pytest.raises(JournalFailed):
        asyncio.run(bench.uplink.run(asyncio.Event()))
    assert len(bench.collector.requests) == 1
