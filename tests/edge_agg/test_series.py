"""A plan's series: one release a window, charged before it is drawn, and nothing exact in any byte of it."""

from __future__ import annotations

import hashlib
import logging
import tracemalloc
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard

from edge_agg import failpoint, participation
from edge_agg.contract import arrow, codec
from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import Plan, plan_hash
from edge_agg.contract.release import Charge, Release, Status
from edge_agg.errors import BudgetExhausted
from edge_agg.journal import Journal
from edge_agg.privacy import noise
from edge_agg.privacy.bound import Bounding
from edge_agg.privacy.ledger import Budget, Entry
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import Account, Series, window_salt
from edge_agg.window import Span
from tests.fakes import (
    COUNT,
    DAY,
    MEAN,
    MONDAY,
    SUM,
    WEEK,
    FakeClock,
    FakeCollector,
    Row,
    UniqueNoise,
    batch_of,
    frozen_noise,
    recorder,
    small_plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMITLESS = Budget(rho=Fraction(10**6), delta=Fraction(1), horizon=365 * DAY)


class Crash(Exception):
    """The process ends here."""


def series_of(journal: Journal, plan: Plan, *, budget: Budget = LIMITLESS, weeks: int = 4) -> Series:
    """A plan's series over the four weeks from MONDAY."""
    return Series(
        tenant="default",
        measurement=compile_plan(plan),
        account=Account(name="people", budget=budget),
        journal=journal,
        span=Span(start=MONDAY, end=MONDAY + weeks * WEEK),
    )


def crash_once(point: str) -> Callable[[str], None]:
    """End the process, so to say, at the next pass of a point."""

    def armed(name: str) -> None:
        if name == point:
            failpoint.armed = None
            raise Crash

    return armed


def crashed(journal: Journal, plan: Plan, point: str, start: Any = MONDAY, *, budget: Budget = LIMITLESS) -> None:
    """An agent that dies while it closes a window."""
    failpoint.armed = crash_once(point)
    with pytest.raises(Crash):
        series_of(journal, plan, budget=budget).close(start)


def releases(journal: Journal) -> list[tuple[Release, bytes]]:
    """What was sealed, opened as a collector does."""
    return [(codec.open_sealed(w.sealed.header, w.sealed.payload)[0], w.sealed.payload) for w in journal.waiting(1000)]


def room_for(charges: int, plan: Plan, *, horizon: timedelta = 365 * DAY) -> Budget:
    """A budget for that many charges and not one more."""
    return Budget(rho=compile_plan(plan).charge.rho * charges, delta=Fraction(0), horizon=horizon)


def test_a_release_says_how_it_was_made(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: every field of the header is the plan's, the ledger's or the chain's; the payload is the draw."""
    monkeypatch.setattr(noise, "draw", frozen_noise)
    plan = small_plan(COUNT, MEAN)
    series = series_of(journal, plan)
    series.add(batch_of([Row(), Row(k="z")], plan))
    assert series.close(MONDAY) is Status.RELEASED
    ((release, payload),) = releases(journal)
    measurement = compile_plan(plan)
    assert release == Release(
        tenant="default",
        agent="node",
        link=release.link,
        plan="small",
        plan_version=1,
        plan_hash=plan_hash(plan),
        window_start=MONDAY,
        window_end=MONDAY + WEEK,
        status=Status.RELEASED,
        account="people",
        charge=measurement.charge,
        cumulative=measurement.charge,
        vectors=measurement.specs,
        max_partitions=1,
        max_rows_per_partition=2,
        max_nodes=1,
        rows=3,
        payload_sha256=hashlib.sha256(payload).digest(),
    )
    assert (release.link.seq, release.link.prev_hash, release.link.incarnation) == (1, b"", journal.incarnation)
    decoded = arrow.decode(payload, ["n", "level_sum", "level_count"], 3)
    assert [vector.tolist() for vector in decoded.values()] == [[-5, 32, 69]] * 3


def test_the_noise_is_drawn_on_what_bounding_kept(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of other windows, late rows and rows past the bounds are not in a window's exact vectors."""
    seen: list[list[int]] = []

    def spy(mechanism: Any, scale: float, exact: Any) -> Any:
        seen.append(exact.tolist())
        return exact

    monkeypatch.setattr(noise, "draw", spy)
    plan = small_plan(COUNT)
    series = series_of(journal, plan)
    first = [Row(u="1"), Row(u="1"), Row(u="1"), Row(u="2", k="b"), Row(u="3", k=None), Row(u=None)]
    second = [Row(u="1", t=MONDAY + WEEK), Row(u="9", t=MONDAY - DAY), Row(u="9", t=MONDAY + 9 * WEEK)]
    series.add(batch_of(first + second, plan))
    series.close(MONDAY)
    series.add(batch_of([Row(u="late"), Row(u="4", t=MONDAY + WEEK)], plan))
    series.close(MONDAY + WEEK)
    assert seen == [[2, 1, 1], [2, 0, 0]]
    assert journal.local_counts() == {"small.dropped": 1, "small.late": 1, "small.outside": 2}


def test_an_empty_window_is_released_too(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A4): whether anybody was there does not show: the same status, charge, rows and sizes."""
    monkeypatch.setattr(noise, "draw", frozen_noise)
    plan = small_plan()
    series = series_of(journal, plan)
    series.add(batch_of([Row()], plan))
    assert [series.close(start) for start in series.due(MONDAY + 6 * WEEK)] == [Status.RELEASED] * 5
    (full, first), *rest = releases(journal)
    for i, (release, payload) in enumerate(rest):
        assert payload == first
        assert (release.charge, release.rows, release.vectors) == (full.charge, full.rows, full.vectors)
        assert release.window_start == MONDAY + (i + 1) * WEEK


def test_a_window_without_room_is_published_as_exhausted(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A3): no room, no charge, no draw; the window is still there, typed."""
    drawn = UniqueNoise()
    monkeypatch.setattr(noise, "draw", drawn)
    plan = small_plan()
    series = series_of(journal, plan, budget=room_for(2, plan))
    found = [series.close(start) for start in series.due(MONDAY + 4 * WEEK + timedelta(hours=1))]
    assert found == [Status.RELEASED, Status.RELEASED, Status.EXHAUSTED, Status.EXHAUSTED]
    assert len(drawn.answers) == 2
    release, payload = releases(journal)[-1]
    assert (release.status, release.charge, release.rows, release.vectors) == (Status.EXHAUSTED, Charge(), 0, ())
    assert (payload, release.payload_sha256) == (b"", b"")
    assert release.cumulative.rho == 2 * compile_plan(plan).charge.rho == journal.cumulative("people").rho


def test_a_series_that_asks_no_ledger_would_be_caught(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the ledger always has room; the account is overrun, and the check of the sum sees it."""
    monkeypatch.setattr("edge_agg.series.check_room", lambda *_: None)
    plan = small_plan()
    budget = room_for(2, plan)
    series = series_of(journal, plan, budget=budget)
    for start in series.due(MONDAY + 4 * WEEK):
        series.close(start)
    assert journal.cumulative("people").rho > budget.rho


@pytest.mark.parametrize("point", ["charge_committed", "noise_drawn", "seal_uncommitted"])
def test_a_window_that_was_charged_and_not_sealed_is_tried_once_more(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Guarantee: the second attempt is charged again, and the release names both charges."""
    drawn = UniqueNoise()
    monkeypatch.setattr(noise, "draw", drawn)
    plan = small_plan()
    charge = compile_plan(plan).charge
    crashed(journal, plan, point)
    assert series_of(journal, plan).close(MONDAY) is Status.RELEASED
    ((release, payload),) = releases(journal)
    assert release.charge == release.cumulative == charge + charge
    assert arrow.decode(payload, ["n"], 3)["n"].tolist() == [drawn.answers[-1]] * 3


def test_after_two_attempts_a_window_is_lost(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: two draws at most, whatever happens; then the window is published as lost, without values."""
    drawn = UniqueNoise()
    monkeypatch.setattr(noise, "draw", drawn)
    plan = small_plan()
    crashed(journal, plan, "noise_drawn")
    crashed(journal, plan, "seal_uncommitted")
    series = series_of(journal, plan)
    assert series.close(MONDAY) is Status.LOST
    assert len(drawn.answers) == 2
    ((release, payload),) = releases(journal)
    assert (release.status, payload, release.vectors, release.rows) == (Status.LOST, b"", (), 0)
    assert release.charge.rho == 2 * compile_plan(plan).charge.rho
    assert series.due(MONDAY + 2 * WEEK + timedelta(hours=1)) == [MONDAY + WEEK]


def test_no_room_for_the_second_attempt_means_lost(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what was charged once and finds no room again is lost, never drawn uncharged."""
    drawn = UniqueNoise()
    monkeypatch.setattr(noise, "draw", drawn)
    plan = small_plan()
    crashed(journal, plan, "noise_drawn", budget=room_for(1, plan))
    assert series_of(journal, plan, budget=room_for(1, plan)).close(MONDAY) is Status.LOST
    assert len(drawn.answers) == 1
    assert journal.cumulative("people") == compile_plan(plan).charge


def test_a_crash_before_the_charge_costs_nothing(journal: Journal) -> None:
    """No charge row, no draw: the window is as if nobody had tried."""
    plan = small_plan()
    crashed(journal, plan, "charge_uncommitted")
    crashed(journal, plan, "before_charge")
    assert series_of(journal, plan).close(MONDAY) is Status.RELEASED
    assert journal.cumulative("people") == compile_plan(plan).charge


def test_rows_are_counted_while_a_thread_opens_windows(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: who asks a running agent how it is gets an answer. Mutant: the windows are walked as they change."""
    series = series_of(journal, small_plan())
    series.add(batch_of([Row(t=MONDAY), Row(t=MONDAY + WEEK)], small_plan()))
    honest = vars(Bounding)["rows"].fget

    def rows(self: Bounding) -> int:
        start = MONDAY + len(series._open) * WEEK
        series._open[start] = series.measurement.bounding(window_salt(journal.secret, series.hash, start))
        return int(honest(self))

    monkeypatch.setattr(Bounding, "rows", property(rows))
    assert series.held_rows == 2


def test_what_was_sealed_is_never_closed_again(journal: Journal) -> None:
    """Guarantee: a restart after the seal goes on with the next window."""
    plan = small_plan()
    crashed(journal, plan, "seal_committed")
    series = series_of(journal, plan)
    series.add(batch_of([Row(), Row(t=MONDAY + WEEK)], plan))
    assert series.due(MONDAY + 2 * WEEK + timedelta(hours=1)) == [MONDAY + WEEK]
    assert series.counts["small.late"] == 1
    assert len(releases(journal)) == 1


def test_two_plans_over_one_account_share_its_budget(journal: Journal) -> None:
    """Guarantee (A3): one account a population; what one plan spends the other has not."""
    one, two = small_plan(name="one"), small_plan(name="two")
    budget = room_for(3, one)
    both = [series_of(journal, one, budget=budget), series_of(journal, two, budget=budget)]
    found = [series.close(MONDAY + i * WEEK).value for i in range(2) for series in both]
    assert found == ["released", "released", "released", "exhausted"]
    assert [release.cumulative.rho for release, _ in releases(journal)] == [
        compile_plan(one).charge.rho * i for i in (1, 2, 3, 3)
    ]


def test_the_charge_is_committed_before_the_draw(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: when noise is drawn, another process already sees the charge."""
    plan = small_plan()
    at_draw: list[int] = []

    def spy(mechanism: Any, scale: float, exact: Any) -> Any:
        assert journal._file.db.in_transaction is False
        at_draw.append(journal.attempts(plan_hash(plan), MONDAY))
        return exact

    monkeypatch.setattr(noise, "draw", spy)
    series_of(journal, plan).close(MONDAY)
    assert at_draw == [1]
    with monkeypatch.context() as mutant:  # Mutant: the charge comes after the draw.
        mutant.setattr(Journal, "charge", lambda self, **given: None)
        at_draw.clear()
        plan = small_plan(name="mutant")
        series_of(journal, plan).close(MONDAY)
        assert at_draw == [0]


def test_each_window_has_its_own_salt() -> None:
    """Guarantee: the sample of one window says nothing about another's, another plan's or another device's."""
    one, two = plan_hash(small_plan()), plan_hash(small_plan(name="two"))
    salts = {
        window_salt(secret, plan, start)
        for secret in (b"1" * 32, b"2" * 32)
        for plan in (one, two)
        for start in (MONDAY, MONDAY + WEEK, MONDAY - 3000 * WEEK)
    }
    assert len(salts) == 12
    assert window_salt(b"1" * 32, one, MONDAY) == window_salt(b"1" * 32, one, MONDAY)


def test_a_restart_bounds_the_same_rows_the_same_way(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: the second attempt at a window keeps of each unit what the first one kept."""
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    plan = small_plan(COUNT, SUM, keys="[" + ", ".join(f'"k{i}"' for i in range(8)) + "]")
    rows = [Row(u=f"u{i % 9}", k=f"k{i % 8}", x=float(i)) for i in range(200)]
    for order in (rows, rows[::-1]):
        series = series_of(journal, plan)
        series.add(batch_of(order[:70], plan))
        series.add(batch_of(order[70:], plan))
        failpoint.armed = crash_once("noise_drawn")
        with pytest.raises(Crash):
            series.close(MONDAY)
    assert seen[:2] == seen[2:]


# Periods: a unit counts in its first windows of each

UNITS = ["a", "b", "c"]


def period_plan(most: int = 2, **changes: Any) -> Plan:
    """A plan of weeks in periods of four, whose cells are its units: an exact vector says who was counted."""
    changes = {"by": "u", "keys": '["a", "b", "c"]', "other": False, "max_windows": most, **changes}
    return small_plan(**changes)


def every_week(weeks: int, units: str = "abc") -> list[Row]:
    """A row of each unit in each week."""
    return [Row(u=unit, t=MONDAY + i * WEEK) for i in range(weeks) for unit in units]


def charges(journal: Journal, plan: Plan, weeks: int) -> list[Fraction]:
    """What each week was charged, in charges of one draw."""
    one = compile_plan(plan).charge.rho
    return [journal.window_charge(plan_hash(plan), MONDAY + i * WEEK).rho / one for i in range(weeks)]


def restarted(journal: Journal, plan: Plan, rows: list[Row], *, budget: Budget = LIMITLESS) -> Series:
    """The series after a restart, its sources read again."""
    series = series_of(journal, plan, budget=budget, weeks=12)
    series.add(batch_of(rows, plan))
    return series


@pytest.mark.parametrize("restart", [False, True])
def test_a_unit_counts_in_its_first_windows_and_the_period_is_paid_for_once(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, *, restart: bool
) -> None:
    """Guarantee: m windows of a unit a period, from its own first; m charges with the first draw, none after it.

    The same where the agent is started again between windows.
    """
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    plan = period_plan()
    rows = [*every_week(8, "a"), *[Row(u="b", t=MONDAY + i * WEEK) for i in (1, 3, 4, 7)], Row(u="c", t=MONDAY)]
    series = restarted(journal, plan, rows)
    for i in range(8):
        if restart:
            series = restarted(journal, plan, rows)
        assert series.close(MONDAY + i * WEEK) is Status.RELEASED
    counted = [{unit for unit, n in zip(UNITS, exact, strict=True) if n} for exact in seen]
    assert counted == [{"a", "c"}, {"a", "b"}, set(), {"b"}, {"a", "b"}, {"a"}, set(), {"b"}]
    assert charges(journal, plan, 8) == [2, 0, 0, 0, 2, 0, 0, 0]
    assert [release.charge for release, _ in releases(journal)][1] == Charge()
    first = journal.entries("people")[0]
    assert (first.window_start, first.last) == (MONDAY, MONDAY + 3 * WEEK)


def test_who_counts_takes_no_more_memory_than_the_window(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A12): Python holds a slice of the ids at a time, of those that count and of those that are spent.

    Mutant: the ids of the window as a set.
    """
    monkeypatch.setattr(noise, "draw", frozen_noise)
    plan, n = period_plan(1, by="k", keys='["a"]'), 1 << 14
    monkeypatch.setattr(participation, "AT_ONCE", 1 << 10)
    spent, fresh = ([f"{kind}-unit-{i}" for i in range(n)] for kind in ("spent", "fresh"))
    first, second = (batch_of([Row(t=MONDAY + i * WEEK)], plan) for i in range(2))
    series = series_of(journal, plan)
    series.add(first.take([0] * n).set_column(*of_units(first, spent)))
    series.close(MONDAY)
    series.add(second.take([0] * 2 * n).set_column(*of_units(second, spent + fresh)))
    bounding = series._open[MONDAY + WEEK]

    def peak(work: Callable[[], int]) -> float:
        tracemalloc.start()
        try:
            assert work() == n
            return tracemalloc.get_traced_memory()[1] / n
        finally:
            tracemalloc.stop()

    def counts() -> int:
        without, counted = series._participation(MONDAY + WEEK, bounding)
        assert without is not None
        assert counted is not None
        return min(len(without), sum(1 for _ in counted.units))

    columns = peak(lambda: len(bounding.units()) // 2)
    assert peak(counts) < columns + 40
    assert peak(lambda: len(set(bounding.units().to_pylist())) // 2) > columns + 120


def of_units(batch: pa.RecordBatch, units: list[str]) -> tuple[int, str, pa.Array]:
    """The column of units, for `set_column`."""
    return batch.schema.get_field_index("u"), "u", pa.array(units)


def test_windows_that_count_everybody_would_be_caught(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: who is spent is asked and not left out; one unit then moves more draws than were paid for."""
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    honest = Bounding.blocks

    def everybody(self: Bounding, *, without: Any = None) -> Any:
        return honest(self, without=None)

    monkeypatch.setattr(Bounding, "blocks", everybody)
    plan = period_plan()
    series = restarted(journal, plan, every_week(4))
    for i in range(4):
        series.close(MONDAY + i * WEEK)
    draws_with_a = sum(exact[0] > 0 for exact in seen)
    assert draws_with_a > sum(charges(journal, plan, 4))


BEFORE_T1 = ["before_charge", "charge_uncommitted"]
AFTER_T1 = ["charge_committed", "noise_drawn", "seal_uncommitted"]


@pytest.mark.parametrize("week", [0, 1, 2])
@pytest.mark.parametrize("point", [*BEFORE_T1, *AFTER_T1, "seal_committed"])
def test_a_crash_anywhere_leaves_the_same_units_out_again(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, point: str, week: int
) -> None:
    """Guarantee: what is drawn after a crash holds whom the first try held, and is paid for by itself."""
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    plan, rows = period_plan(), every_week(4)
    for i in range(week):
        restarted(journal, plan, rows).close(MONDAY + i * WEEK)
    series = restarted(journal, plan, rows)
    failpoint.armed = crash_once(point)
    with pytest.raises(Crash):
        series.close(MONDAY + week * WEEK)
    series = restarted(journal, plan, rows)
    for start in series.due(MONDAY + 4 * WEEK + timedelta(hours=1)):
        series.close(start)
    assert [release.status for release, _ in releases(journal)] == [Status.RELEASED] * 4
    twice = point in {"noise_drawn", "seal_uncommitted"}
    by_week = [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert seen == [*by_week[: week + 1], *([by_week[week]] if twice else []), *by_week[week + 1 :]]
    paid = [Fraction(2), Fraction(0), Fraction(0), Fraction(0)]
    paid[week] += point in AFTER_T1
    assert charges(journal, plan, 4) == paid


def test_a_lost_first_window_has_paid_for_the_period(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: two draws that were lost count in their units' windows; nobody is charged or counted anew."""
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    plan, rows = period_plan(), every_week(4)
    for _ in range(2):
        series = restarted(journal, plan, rows)
        failpoint.armed = crash_once("noise_drawn")
        with pytest.raises(Crash):
            series.close(MONDAY)
    series = restarted(journal, plan, rows)
    found = [series.close(MONDAY + i * WEEK) for i in range(4)]
    assert found == [Status.LOST, *[Status.RELEASED] * 3]
    assert seen == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert charges(journal, plan, 4) == [3, 0, 0, 0]


def test_a_period_whose_first_window_found_no_room_is_not_covered(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: what was not paid covers nothing: the first window that is drawn pays, for itself and those after.

    Another plan's charge stands in the way of the first week and leaves the horizon of two weeks thereafter.
    """
    seen: list[list[int]] = []
    monkeypatch.setattr(noise, "draw", recorder(seen))
    plan, rows = period_plan(), every_week(4)
    budget = room_for(2, plan, horizon=2 * WEEK)
    journal.charge(
        account="people",
        plan_hash=plan_hash(small_plan(name="other")),
        name="other",
        text="{}",
        entry=Entry(window_start=MONDAY - WEEK, charge=compile_plan(plan).charge),
    )
    series = restarted(journal, plan, rows, budget=budget)
    found = [series.close(MONDAY + i * WEEK) for i in range(4)]
    assert found == [Status.EXHAUSTED, *[Status.RELEASED] * 3]
    assert seen == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert charges(journal, plan, 4) == [0, 2, 0, 0]


def test_periods_weigh_on_the_horizon_with_all_their_windows(journal: Journal) -> None:
    """Guarantee: a period's charge counts until its last window leaves the horizon, and a covered window needs no room.

    A horizon of five weeks with room for one period's two charges: the second period's first three windows lie within
    five weeks of the first one's last, so the fourth pays.
    """
    plan = period_plan()
    budget = room_for(2, plan, horizon=5 * WEEK)
    series = restarted(journal, plan, every_week(12), budget=budget)
    found = [series.close(MONDAY + i * WEEK).value for i in range(12)]
    assert found == [*["released"] * 4, *["exhausted"] * 4, *["released"] * 4]
    assert charges(journal, plan, 12) == [2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]


@pytest.mark.parametrize("unit", ["string", "integer"])
def test_an_empty_window_of_a_period_is_released_whatever_went_before(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    """Guarantee (A4): that nobody is there, while others have used up their windows, is nothing to fail at."""
    monkeypatch.setattr(noise, "draw", frozen_noise)
    plan = small_plan(unit=unit, max_windows=1)
    series = restarted(journal, plan, [Row(u="7" if unit == "string" else 7)])
    assert [series.close(MONDAY + i * WEEK) for i in range(3)] == [Status.RELEASED] * 3


# Discovered keys


def test_a_release_of_discovered_keys_says_how_they_were_found(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: the header carries the selection, the charge its delta, and the payload the keys that passed."""
    monkeypatch.setattr(noise, "draw", recorder([]))
    plan = small_plan(discover=1e-7, epsilon=20.0)
    measurement = compile_plan(plan)
    assert measurement.selection is not None
    series = series_of(journal, plan)
    many = measurement.selection.threshold + 1
    units = {"z": many, "é": many - 1, "b": many}
    series.add(batch_of([Row(u=f"{key}{i}", k=key) for key, n in units.items() for i in range(n)], plan))
    assert [series.close(MONDAY + i * WEEK) for i in range(2)] == [Status.RELEASED] * 2
    (release, payload), (empty, nothing) = releases(journal)
    assert release.selection == empty.selection == measurement.selection
    assert release.charge == measurement.charge
    assert 0 < release.charge.delta <= Fraction(1e-7) + Fraction(1, 2**80)
    keys, columns = arrow.decode_keyed(payload, "k", ["n"], release.rows, cells=1, max_bytes=64)
    assert (list(keys.texts), columns["n"].tolist()) == (["b", "z"], [many, many])
    assert empty.rows == 0
    assert arrow.decode_keyed(nothing, "k", ["n"], 0, cells=1, max_bytes=64)[0].texts == []


def test_discovery_without_delta_in_the_account_is_exhausted(journal: Journal) -> None:
    """Guarantee (A3): room in rho does not pay for keys."""
    plan = small_plan(discover=1e-7)
    charge = compile_plan(plan).charge
    budget = Budget(rho=charge.rho * 9, delta=charge.delta * 3 / 2, horizon=365 * DAY)
    series = series_of(journal, plan, budget=budget)
    assert [series.close(MONDAY + i * WEEK).value for i in range(2)] == ["released", "exhausted"]


# The canary

CANARY = 7_777_777
NEEDLES = (str(CANARY).encode(), *(CANARY.to_bytes(8, order, signed=True) for order in ("little", "big")))


def every_byte(folder: Path, collector: FakeCollector, texts: list[str]) -> bytes:
    """All bytes that were stored, sent or said, and what the payloads among them hold when inflated."""
    payloads = [sealed.payload for _, sealed in collector.accepted.values() if sealed.payload]
    inflated = [zstandard.ZstdDecompressor().decompress(payload) for payload in payloads]
    files = [path.read_bytes() for path in folder.iterdir()]
    return b"\0".join([*files, *collector.requests, *payloads, *inflated, *(text.encode() for text in texts)])


def canary_run(
    journal: Journal,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    plan: Plan | None = None,
    key: str = "a",
    stored_too: bool = True,
) -> bytes:
    """Close windows whose exact sum is the canary, whose count is odd, and send them."""
    import asyncio

    from edge_agg.uplink import Uplink

    plan = plan or small_plan(COUNT, SUM)
    collector = FakeCollector()
    series = series_of(journal, plan)
    rows = [Row(u="canary-unit", k=key, x=float(CANARY)), Row(u="late", t=MONDAY - DAY, x=1.0)]
    series.add(batch_of([*rows, Row(u="canary-unit", t=MONDAY + WEEK)], plan))
    uplink = Uplink(
        journal=journal,
        wire=collector,
        clock=FakeClock(),
        jitter=lambda: 0.5,
        batch=20,
        retry_first_s=1.0,
        retry_limit_s=60.0,
    )
    with caplog.at_level(logging.DEBUG):
        for start in series.due(MONDAY + 3 * WEEK):
            series.close(start)
        # While the payloads are still in the journal; without it, all that was sealed.
        sealed = [w.sealed.header + w.sealed.payload + repr(w).encode() for w in journal.waiting(1000)]
        stored = every_byte(folder, collector, []) if stored_too else b"\0".join(sealed)
        assert asyncio.run(uplink.wait_drained(1.0))
    said = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert said
    if not stored_too:
        folder = folder / "nothing"
        folder.mkdir()
    return stored + every_byte(folder, collector, said)


def test_no_exact_value_is_in_any_byte(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee (A5): an exact sum is in no file, no request, no payload and no log record; nor is a unit id."""
    monkeypatch.setattr(noise, "draw", frozen_noise)
    found = canary_run(journal, tmp_path / "state", caplog)
    assert not any(needle in found for needle in NEEDLES)
    assert b"canary-unit" not in found
    assert len(found) > 10_000


def test_no_id_of_who_was_counted_leaves_the_journals_file(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee (invariant 1): the ids that a period's bound needs are in no header, payload, request or log record.

    They are in the journal, which is what makes the scan worth something.
    """
    monkeypatch.setattr(noise, "draw", frozen_noise)
    plan = small_plan(COUNT, SUM, max_windows=1)
    found = canary_run(journal, tmp_path / "state", caplog, plan=plan, stored_too=False)
    assert b"canary-unit" not in found
    assert len(found) > 1_000
    journal.close()
    assert any(b"canary-unit" in path.read_bytes() for path in (tmp_path / "state").glob("journal*"))


def test_no_key_below_the_threshold_is_in_any_byte(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee (A5): a key that did not pass is in no file, no request, no payload and no log record.

    Mutant: a selection that lets every key pass; the scan finds it.
    """
    monkeypatch.setattr(noise, "draw", lambda mechanism, scale, exact: np.zeros_like(exact))
    plan = small_plan(COUNT, SUM, discover=1e-7)
    assert b"canary-key" not in canary_run(journal, tmp_path / "state", caplog, plan=plan, key="canary-key")
    monkeypatch.setattr(noise, "draw", lambda mechanism, scale, exact: np.full_like(exact, 10**6))
    plan = small_plan(COUNT, SUM, discover=1e-7, name="mutant")
    assert b"canary-key" in canary_run(journal, tmp_path / "state", caplog, plan=plan, key="canary-key")


def test_a_release_without_noise_would_be_caught(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mutant: the mechanism returns what it was given; the scan finds it in the inflated payload."""
    monkeypatch.setattr(noise, "draw", lambda mechanism, scale, exact: exact)
    found = canary_run(journal, tmp_path / "state", caplog)
    assert any(needle in found for needle in NEEDLES)


def test_an_exact_vector_that_is_logged_would_be_caught(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Mutant: somebody logs what was aggregated; the scan reads the record."""

    def talkative(mechanism: Any, scale: float, exact: Any) -> Any:
        logging.getLogger("edge_agg").info("aggregated", extra={"fields": {"exact": exact.tolist()}})
        return np.zeros_like(exact)

    monkeypatch.setattr(noise, "draw", talkative)
    found = canary_run(journal, tmp_path / "state", caplog)
    assert any(needle in found for needle in NEEDLES)


def test_the_sizes_are_the_plans(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rows in a payload is the number of cells, whatever the data."""
    monkeypatch.setattr(noise, "draw", frozen_noise)
    plan = small_plan()
    series = series_of(journal, plan)
    series.add(batch_of([Row(u=f"u{i}", k="ab"[i % 2]) for i in range(100)], plan))
    series.close(MONDAY)
    ((release, payload),) = releases(journal)
    assert release.rows == n_cells(plan) == 3
    assert len(arrow.decode(payload, ["n"], 3)["n"]) == 3


def test_budget_exhausted_is_not_an_error_of_the_caller(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused charge leaves no trace in the journal."""

    def refuse(*_: object) -> None:
        raise BudgetExhausted

    monkeypatch.setattr("edge_agg.series.check_room", refuse)
    assert series_of(journal, small_plan()).close(MONDAY) is Status.EXHAUSTED
    assert journal.entries("people") == []
