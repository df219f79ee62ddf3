"""A model of agent and collector: crashes, lost requests, lost responses, restarts, late rows, three plans.

What it shows: each closed window is at the collector exactly once, as the bytes of the journal's chain, whatever the
order of events; noise that answers another number each time makes a second draw visible; and where a unit counts in
some windows of a period only, it never moves more draws than that period was charged for. What it does not show: kills
of a real process (test_kills) and power cuts.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge_agg import failpoint
from edge_agg.contract import arrow
from edge_agg.contract.codec import from_us
from edge_agg.contract.grid import window_of
from edge_agg.contract.plan import plan_hash
from edge_agg.contract.release import Charge, Status
from edge_agg.errors import JournalFailed
from edge_agg.failpoint import POINTS
from edge_agg.journal import Journal
from edge_agg.privacy import noise
from edge_agg.privacy.ledger import Budget, Entry
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import MAX_ATTEMPTS, Account, Series
from edge_agg.uplink import Uplink
from edge_agg.window import Span
from tests.fakes import (
    DAY,
    DROP_REQUEST,
    DROP_RESPONSE,
    MISMATCH,
    MONDAY,
    REVERSED,
    WEEK,
    FakeClock,
    FakeCollector,
    Row,
    UniqueNoise,
    batch_of,
    small_plan,
    too_large,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge_agg.contract.release import Link, Mechanism, ReleaseKey

UNITS = ["a", "b", "c"]
MOST, PERIOD = 2, timedelta(days=28)
PLANS = [
    small_plan(name="one"),
    small_plan(name="two", every="14d"),
    small_plan(name="three", by="u", keys='["a", "b", "c"]', other=False, max_windows=MOST, period="28d"),
]
MEASUREMENTS = [compile_plan(plan) for plan in PLANS]
ROOM = 9
"""Charges that the shared account has room for."""
BUDGET = Budget(rho=max(m.charge.rho for m in MEASUREMENTS) * ROOM, delta=Fraction(0), horizon=timedelta(days=3650))


class Crash(Exception):
    """The process ends here."""


class Model(RuleBasedStateMachine):
    """One agent, one collector, and everything that may come between them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.collector = FakeCollector()
        self.noise = UniqueNoise()
        self.real_draw, noise.draw = noise.draw, self.draw
        self.closing = (0, MONDAY)
        self.moved: Counter[tuple[datetime, str]] = Counter()
        """By period and unit: the draws of the third plan that held rows of it. Its cells are its units."""
        self.rows: list[Row] = []
        self.now = MONDAY
        self.sealed: dict[int, tuple[bytes, bytes]] = {}
        self.first_seen: dict[ReleaseKey, bytes] = {}

    @initialize()
    def start(self) -> None:
        """Start the agent: what was not released comes again from the sources."""
        self.journal = Journal.open(Path(self.folder.name), "node", now=MONDAY)
        account = Account(name="people", budget=BUDGET)
        self.series = [
            Series(
                tenant="default",
                measurement=measurement,
                account=account,
                journal=self.journal,
                span=Span(start=MONDAY, end=None),
            )
            for measurement in MEASUREMENTS
        ]
        for series in self.series:
            series.add(batch_of(self.rows, series.measurement.plan))
        self.uplink = Uplink(
            journal=self.journal,
            wire=self.collector,
            clock=FakeClock(MONDAY, jumps=True),
            jitter=lambda: 0.5,
            batch=2,
            retry_first_s=1.0,
            retry_limit_s=60.0,
        )

    def draw(self, mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Answer with the next number, and note whose rows were there."""
        i, start = self.closing
        if PLANS[i].period is not None:
            self.moved.update((window_of(start, PERIOD), unit) for unit, n in zip(UNITS, exact, strict=True) if n)
        return self.noise(mechanism, scale, exact)

    def restart(self) -> None:
        """The process ended; the next one begins."""
        failpoint.armed = None
        self.journal.close()
        self.start()

    @rule()
    def stop_and_start(self) -> None:
        """An operator restarts the agent."""
        self.restart()

    @rule(unit=st.sampled_from(UNITS), day=st.integers(-20, 60), key=st.sampled_from(["a", "b", "z", None]))
    def event(self, unit: str, day: int, key: str | None) -> None:
        """A row comes in, also late or early."""
        self.take(Row(u=unit, t=MONDAY + day * DAY, k=key))

    @rule(unit=st.sampled_from(UNITS), first=st.integers(0, 4))
    def regular(self, unit: str, first: int) -> None:
        """Somebody comes every week."""
        self.take(*[Row(u=unit, t=MONDAY + week * WEEK) for week in range(first, first + 6)])

    def take(self, *rows: Row) -> None:
        """Rows come in."""
        self.rows.extend(rows)
        for series in self.series:
            series.add(batch_of(rows, series.measurement.plan))

    @rule(days=st.integers(-2, 12))
    def time_passes(self, days: int) -> None:
        """Or jumps back."""
        self.now += days * DAY

    @rule(point=st.none() | st.sampled_from(POINTS), hit=st.integers(1, 2))
    def close(self, point: str | None, hit: int) -> None:
        """Close what is due, oldest first, or die in between."""
        self.close_due(point, hit)

    def close_due(self, point: str | None, hit: int) -> None:
        """Close what is due, oldest first; the process may end at the n-th pass of a point."""
        due = [(start, i) for i, series in enumerate(self.series) for start in series.due(self.now)]
        with self.dying(point, hit):
            for start, i in sorted(due):
                self.closing = i, start
                self.series[i].close(start)

    @rule(
        fault=st.sampled_from([None, DROP_REQUEST, DROP_RESPONSE, MISMATCH, REVERSED, "large"]),
        point=st.none() | st.sampled_from(POINTS[6:]),
    )
    def send(self, fault: str | None, point: str | None) -> None:
        """Send a batch over a bad network, or die in between."""
        if fault:
            self.collector.faults.append(too_large() if fault == "large" else fault)
        with self.dying(point, 1):
            asyncio.run(self.uplink.send_once())
        self.collector.faults.clear()

    @precondition(lambda self: self.collector.requests)
    @rule()
    def duplicate(self) -> None:
        """The network delivers an old request again."""
        from edge_agg.contract.release import Sealed
        from edge_agg.contract.v1 import collector_pb2 as pb

        for release in pb.PushReleasesRequest.FromString(self.collector.requests[0]).releases:
            self.collector._take(Sealed(header=release.header, payload=release.payload, hash=b""))

    def dying(self, point: str | None, hit: int) -> Any:
        """A block in which the process may end at a point; it is started again afterwards."""
        from contextlib import contextmanager

        @contextmanager
        def block() -> Any:
            left = {point: hit}

            def armed(name: str) -> None:
                left[name] = left.get(name, 0) - 1
                if name == point and left[name] == 0:
                    raise Crash

            failpoint.armed = armed
            try:
                yield
            except Crash:
                self.restart()
            finally:
                failpoint.armed = None

        return block()

    @invariant()
    def chain_never_changes(self) -> None:
        """What is sealed stays what it is: the same seq, the same header, linked without gaps."""
        if not hasattr(self, "journal"):
            return
        rows = list(self.journal._file.db.execute("SELECT seq, header, hash FROM release ORDER BY seq"))
        assert [seq for seq, _, _ in rows] == list(range(1, len(rows) + 1))
        for seq, header, digest in rows:
            assert self.sealed.setdefault(seq, (header, digest)) == (header, digest)
        assert len(rows) == len(self.sealed)

    @invariant()
    def one_release_a_window(self) -> None:
        """No key was ever presented as two different bytes."""
        for key, digest in self.collector.presented:
            assert self.first_seen.setdefault(key, digest) == digest

    @invariant()
    def charges_cover_draws(self) -> None:
        """Charged is no less than drawn, no more than the budget, and twice a window at most."""
        if not hasattr(self, "journal"):
            return
        charges = list(self.journal._file.db.execute("SELECT count(*) FROM charge GROUP BY plan_hash, window_start_us"))
        assert sum(n for (n,) in charges) >= len(self.noise.answers)
        assert all(n <= MAX_ATTEMPTS for (n,) in charges)
        assert self.journal.cumulative("people").rho <= BUDGET.rho

    @invariant()
    def no_unit_moves_more_than_is_charged(self) -> None:
        """What the third plan's period was charged is no less than the draws that any one unit was in."""
        if not hasattr(self, "journal"):
            return
        paid: defaultdict[datetime, Fraction] = defaultdict(Fraction)
        query = "SELECT window_start_us, rho FROM charge WHERE plan_hash=?"
        for us, rho in self.journal._file.db.execute(query, (plan_hash(PLANS[2]),)):
            paid[window_of(from_us(us), PERIOD)] += Fraction(rho) / MEASUREMENTS[2].charge.rho
        assert all(draws <= paid[period] for (period, _), draws in self.moved.items())

    def teardown(self) -> None:
        """In the end the network is good: everything that was sealed is there once, in its own bytes."""
        try:
            if hasattr(self, "journal"):
                self.finish()
        finally:
            noise.draw = self.real_draw
            failpoint.armed = None
            self.journal.close()
            self.folder.cleanup()

    def finish(self) -> None:
        """Drain and compare."""
        parked = {p.seq for p in self.journal.parked()}
        assert asyncio.run(self.uplink.wait_drained(100_000.0))
        self.journal.close()
        stored = {release.link.seq: sealed for release, sealed in self.collector.accepted.values()}
        missing = set(self.sealed) - set(stored)
        assert missing <= parked
        assert all(self.sealed[seq] == (sealed.header, sealed.hash) for seq, sealed in stored.items())
        answers: list[int] = []
        windows: dict[str, list[datetime]] = {}
        for release in self.collector.releases:
            windows.setdefault(release.plan, []).append(release.window_start)
            if release.status is Status.RELEASED:
                payload = self.collector.accepted[release.key][1].payload
                answers.append(int(arrow.decode(payload, ["n"], 3)["n"][0]))
        assert len(set(answers)) == len(answers)
        assert set(answers) <= set(self.noise.answers)
        for plan, starts in windows.items():
            every = 2 * WEEK if plan == "two" else WEEK
            assert starts == sorted(starts)
            if not missing:
                assert all(b - a == every for a, b in itertools.pairwise(starts))


class CrashLoops(Model):
    """The same, with an agent that dies again where it died."""

    @rule(lives=st.integers(2, 3))
    def crash_loop(self, lives: int) -> None:
        """Life after life ends at the same window, its noise drawn and not sealed."""
        for _ in range(lives):
            self.close_due("noise_drawn", 1)


FAST = settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(FAST, max_examples=120, stateful_step_count=50)


def test_exactly_once_whatever_happens() -> None:
    """Guarantee (A1): each closed window reaches the collector exactly once, as it was sealed and charged."""
    run_state_machine_as_test(Model, settings=FAST)


@pytest.mark.slow
def test_exactly_once_over_many_histories() -> None:
    """Guarantee: as above, over more and longer histories."""
    run_state_machine_as_test(Model, settings=LONG)
    run_state_machine_as_test(CrashLoops, settings=settings(LONG, max_examples=30))


def _draws_again_when_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the high-water mark is not kept, so a restart closes windows again, under a new place in the chain."""
    monkeypatch.setattr(Journal, "closed_before", lambda *_: None)


def _charges_after_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: T1 comes after the draw."""
    charge, next_link = Journal.charge, Journal.next_link
    owed: list[tuple[Journal, dict[str, Any]]] = []

    def late(self: Journal, **given: Any) -> None:
        owed[:] = [(self, given)]

    def pay(self: Journal) -> Link:
        while owed:
            journal, given = owed.pop()
            if journal is self:  # what a crash left owing is never paid
                charge(self, **given)
        return next_link(self)

    monkeypatch.setattr(Journal, "charge", late)
    monkeypatch.setattr(Journal, "next_link", pay)


def _covers_without_paying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a period's first window pays for itself alone, and still covers the others."""
    honest = Series._entry

    def entry(self: Series, *args: Any) -> Entry:
        paid = honest(self, *args)
        return paid if paid.charge == Charge() else replace(paid, charge=self.measurement.charge)

    monkeypatch.setattr(Series, "_entry", entry)


def _forgets_who_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: nobody is left out of a window."""
    monkeypatch.setattr(Journal, "spent_units", lambda self, *args, **given: pa.array([], pa.large_string()))


def _draws_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a window is tried until it is sealed."""
    monkeypatch.setattr("edge_agg.series.MAX_ATTEMPTS", 10**9)


@pytest.mark.parametrize(
    ("mutant", "model"),
    [
        (_draws_again_when_sealed, Model),
        pytest.param(_charges_after_the_draw, Model, marks=pytest.mark.slow),
        pytest.param(_covers_without_paying, Model, marks=pytest.mark.slow),
        pytest.param(_forgets_who_was_counted, Model, marks=pytest.mark.slow),
        pytest.param(_draws_without_a_limit, CrashLoops, marks=pytest.mark.slow),
    ],
)
def test_the_model_sees_a_broken_rule(monkeypatch: pytest.MonkeyPatch, mutant: Any, model: type[Model]) -> None:
    """Mutants: no high-water mark; charge after draw; a period half paid; nobody left out; no limit of attempts."""
    mutant(monkeypatch)
    find = settings(
        FAST, max_examples=400, phases=(Phase.generate,), database=None, derandomize=True, report_multiple_bugs=False
    )
    with pytest.raises((AssertionError, JournalFailed)):
        run_state_machine_as_test(model, settings=find)
