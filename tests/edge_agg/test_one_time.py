"""Which plans can do without times, and that doing without them changes nothing that is released."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from edge_agg.contract.codec import to_us
from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.ingest import groups
from edge_agg.ingest.file import FileSource
from edge_agg.privacy.ledger import Budget
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import Account, Series
from edge_agg.window import Span
from tests.fakes import COUNT, DAY, MEAN, MONDAY, WEEK, Row, small_plan, small_plan_text, write_events

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from edge_agg.journal import Journal

SECOND = MONDAY + WEEK
"""The second window's start."""
END = SECOND + 6 * DAY
"""The span ends within that window."""


@pytest.fixture(autouse=True)
def _groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of small row groups, read one by one."""
    monkeypatch.setattr(groups, "LEAST_ROWS", 1)
    monkeypatch.setattr(pq, "write_table", partial(pq.write_table, row_group_size=8))


def series_of(journal: Journal, plan: Plan) -> Series:
    """A plan's series over that span."""
    budget = Budget(rho=Fraction(10**6), delta=Fraction(1), horizon=365 * DAY)
    return Series(
        tenant="default",
        measurement=compile_plan(plan),
        account=Account(name="people", budget=budget),
        journal=journal,
        span=Span(start=MONDAY, end=END),
    )


def by_hour() -> Plan:
    """A plan whose cells are hours of the day."""
    text = small_plan_text(COUNT, by="t", keys="KEYS")
    return parse_plan(text.replace("values = KEYS\nother = true", 'calendar = "hour"'))


def asked(series: Series, first: datetime, last: datetime, column: str = "t") -> bool:
    """Ask for the times between two moments."""
    return series.takes_one_time(column, to_us(first), to_us(last))


def test_times_within_one_open_window_are_alike(journal: Journal) -> None:
    """Not where they span two windows, are late, or lie on both sides of the span's ends."""
    series = series_of(journal, small_plan(COUNT))
    assert asked(series, SECOND, SECOND + 5 * DAY)
    assert not asked(series, SECOND, END)
    assert not asked(series, SECOND - DAY, SECOND)
    assert not asked(series, MONDAY - DAY, MONDAY)
    assert asked(series, MONDAY, MONDAY + DAY)
    series.closed_before = SECOND
    assert not asked(series, MONDAY, MONDAY + DAY)


@pytest.mark.parametrize("plan", [small_plan(MEAN), small_plan(COUNT, MEAN), by_hour()])
def test_times_that_more_than_a_window_hangs_on_are_read(plan: Plan, journal: Journal) -> None:
    """A plan that reads values samples rows by their content, time included; one may count by the hour."""
    assert not asked(series_of(journal, plan), MONDAY, MONDAY)


def test_a_column_that_a_plan_does_not_read_is_none_of_its_business(journal: Journal) -> None:
    """What it reads as anything but its time is."""
    series = series_of(journal, small_plan(COUNT))
    assert asked(series, MONDAY, MONDAY + 9 * WEEK, column="elsewhere")
    assert not asked(series, MONDAY, MONDAY, column="k")


def measured(journal: Journal, plan: Plan, path: Path, *, believes: bool) -> list[Any]:
    """What a file gives before noise, window by window, and the rows that were dropped."""
    series = series_of(journal, plan)
    source = FileSource(str(path), one_time=series.takes_one_time if believes else None)
    for frame in source.frames(plan.events.columns):
        series.add(frame.batch)
    exact = {start: series.measurement.exact(bounding.kept()) for start, bounding in series._open.items()}
    windows = [(start, {name: vector.tolist() for name, vector in exact[start].items()}) for start in sorted(exact)]
    return [*windows, dict(series.counts)]


def both_ways(tmp_path: Path, journal: Journal, plan: Plan) -> tuple[list[Any], list[Any]]:
    """One file, read with all its times, and without those that are alike."""
    rows = [Row(u=f"unit {i % 20}", t=MONDAY + timedelta(hours=5 * i), k="ab"[i % 2]) for i in range(-5, 90)]
    path = write_events(tmp_path / "x.parquet", rows)
    return measured(journal, plan, path, believes=False), measured(journal, plan, path, believes=True)


@pytest.mark.parametrize("plan", [small_plan(COUNT), small_plan(COUNT, MEAN), by_hour()])
def test_what_is_released_does_not_hang_on_how_times_are_read(plan: Plan, tmp_path: Path, journal: Journal) -> None:
    """Windows, bounds, and the rows dropped by public rules: all as with every time read."""
    slowly, quickly = both_ways(tmp_path, journal, plan)
    assert slowly == quickly


def test_a_series_that_calls_all_times_alike_would_be_caught(
    tmp_path: Path, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: windows and spans are not looked at."""
    monkeypatch.setattr(Series, "takes_one_time", lambda *_: True)
    slowly, quickly = both_ways(tmp_path, journal, small_plan(COUNT))
    assert slowly != quickly
