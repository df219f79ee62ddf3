"""A plan's series: one release a window, charged before it is drawn, and nothing exact in any byte of it."""

from __future__ import annotations

import hashlib
import logging
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard

from edge_agg import failpoint
from edge_agg.contract import arrow, codec
from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import Plan, plan_hash
from edge_agg.contract.release import Charge, Release, Status
from edge_agg.errors import BudgetExhausted
from edge_agg.privacy import noise
from edge_agg.privacy.ledger import Budget
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
    small_plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_agg.journal import Journal

LIMITLESS = Budget(rho=Fraction(10**6), delta=Fraction(0), horizon=365 * DAY)


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


def room_for(charges: int, plan: Plan) -> Budget:
    """A budget for that many charges and not one more."""
    return Budget(rho=compile_plan(plan).charge.rho * charges, delta=Fraction(0), horizon=365 * DAY)


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
        assert journal._db.in_transaction is False
        at_draw.append(journal.attempts(plan_hash(plan), MONDAY))
        return exact

    monkeypatch.setattr(noise, "draw", spy)
    series_of(journal, plan).close(MONDAY)
    assert at_draw == [1]
    with monkeypatch.context() as mutant:  # Mutant: the charge comes after the draw.
        mutant.setattr(Series, "_charge", lambda *_: Status.RELEASED)
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


def recorder(seen: list[list[int]]) -> Callable[..., Any]:
    """A draw that adds nothing and notes what it was given."""

    def draw(mechanism: Any, scale: float, exact: Any) -> Any:
        seen.append(exact.tolist())
        return exact

    return draw


# The canary

CANARY = 7_777_777
NEEDLES = (str(CANARY).encode(), *(CANARY.to_bytes(8, order, signed=True) for order in ("little", "big")))


def every_byte(folder: Path, collector: FakeCollector, texts: list[str]) -> bytes:
    """All bytes that were stored, sent or said, and what the payloads among them hold when inflated."""
    payloads = [sealed.payload for _, sealed in collector.accepted.values() if sealed.payload]
    inflated = [zstandard.ZstdDecompressor().decompress(payload) for payload in payloads]
    files = [path.read_bytes() for path in folder.iterdir()]
    return b"\0".join([*files, *collector.requests, *payloads, *inflated, *(text.encode() for text in texts)])


def canary_run(journal: Journal, folder: Path, caplog: pytest.LogCaptureFixture) -> bytes:
    """Close windows whose exact sum is the canary, whose count is odd, and send them."""
    import asyncio

    from edge_agg.uplink import Uplink

    plan = small_plan(COUNT, SUM)
    collector = FakeCollector()
    series = series_of(journal, plan)
    series.add(batch_of([Row(u="canary-unit", x=float(CANARY)), Row(u="late", t=MONDAY - DAY, x=1.0)], plan))
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
        stored = every_byte(folder, collector, [])  # while the payloads are still in the journal
        assert asyncio.run(uplink.wait_drained(1.0))
    said = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert said
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
