"""Windows: every row to its own, every window closed once and in order, by the clock alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg import window
from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.grid import window_of
from edge_agg.window import Span, Split, closing, split
from tests.fakes import DAY, MONDAY, WEEK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOUR = timedelta(hours=1)
ORIGIN = datetime(1970, 1, 5, tzinfo=UTC)
lengths = st.sampled_from([timedelta(seconds=1), timedelta(minutes=7), HOUR, DAY, 10 * DAY, WEEK, 366 * DAY])
moments = st.integers(to_us(datetime(1900, 1, 1, tzinfo=UTC)), to_us(datetime(2200, 12, 31, tzinfo=UTC))).map(from_us)
near = st.integers(-40 * 86_400, 40 * 86_400).map(lambda s: MONDAY + timedelta(seconds=s))
spans = st.builds(Span, start=st.none() | near, end=st.none() | near)


OPEN = Span(start=None, end=None)


def microseconds(times: Sequence[datetime]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Times as `split` takes them."""
    return np.array([to_us(time) for time in times], dtype=np.int64)


def by_hand(
    times: Sequence[datetime],
    every: timedelta,
    closed_before: datetime | None,
    span: Span,
    floor: datetime | None = None,
) -> tuple[dict[datetime, list[int]], int, int]:
    """Row by row, what should become of each; with a floor, late rows are assigned."""
    windows: dict[datetime, list[int]] = {}
    late = outside = 0
    for i, time in enumerate(times):
        start = time - (time - ORIGIN) % every
        if floor is not None and time < floor:
            start = floor
        if (span.start and time < span.start) or (span.end and time >= span.end):
            outside += 1
        elif (closed_before is not None and start < closed_before) or (span.end and start >= span.end):
            late += 1
        else:
            windows.setdefault(start, []).append(i)
    return windows, late, outside


def as_plain(parts: Split) -> tuple[dict[datetime, list[int]], int, int]:
    """A split in plain values."""
    return {start: index.tolist() for start, index in parts.windows.items()}, parts.late, parts.outside


@given(st.lists(near | moments, max_size=30), lengths.filter(lambda e: e >= HOUR), st.none() | near, spans)
def test_each_row_goes_to_the_window_that_holds_its_time(
    times: list[datetime], every: timedelta, closed: datetime | None, span: Span
) -> None:
    """Guarantee: window, late or outside follow from the row's own time, as by the definition row by row."""
    closed_before = None if closed is None else window_of(closed, every)
    parts = split(microseconds(times), every=every, closed_before=closed_before, span=span)
    assert as_plain(parts) == by_hand(times, every, closed_before, span)


@given(st.lists(near, min_size=1, max_size=20), st.lists(moments, max_size=3), st.none() | near, spans)
def test_what_happens_to_a_row_depends_on_its_own_time_alone(
    times: list[datetime], others: list[datetime], closed: datetime | None, span: Span
) -> None:
    """Guarantee: one unit's rows, also from 2200, do not change what happens to any other row."""
    closed_before = None if closed is None else window_of(closed, WEEK)
    alone, _, _ = as_plain(split(microseconds(times), every=WEEK, closed_before=closed_before, span=span))
    together, _, _ = as_plain(split(microseconds(times + others), every=WEEK, closed_before=closed_before, span=span))
    kept = {start: [i for i in index if i < len(times)] for start, index in together.items()}
    assert {start: index for start, index in kept.items() if index} == alone


def test_a_watermark_out_of_the_data_would_be_caught() -> None:
    """Mutant: a watermark from the latest event lets one far-future row close the window on everybody else."""
    times = [MONDAY + HOUR, MONDAY + 2 * HOUR]

    def kept(split_: Callable[[list[datetime]], Split], extra: list[datetime]) -> int:
        return len(split_(extra + times).windows.get(MONDAY, ()))

    def honest(rows: list[datetime]) -> Split:
        return split(microseconds(rows), every=WEEK, closed_before=None, span=Span(start=None, end=None))

    def mutant(rows: list[datetime]) -> Split:
        latest = window_of(max(rows), WEEK)
        return split(microseconds(rows), every=WEEK, closed_before=latest, span=Span(start=None, end=None))

    far = [datetime(2190, 1, 1, tzinfo=UTC)]
    assert kept(honest, far) == kept(honest, []) == 2
    assert kept(mutant, far) != kept(mutant, [])


@given(st.lists(near | moments, max_size=30), lengths.filter(lambda e: e >= HOUR), near, st.none() | near, spans)
def test_a_late_row_is_assigned_to_the_oldest_window_of_its_arrival(
    times: list[datetime], every: timedelta, closed: datetime, arrived: datetime | None, span: Span
) -> None:
    """Guarantee: with `assign`, window, late or outside follow from a row's own time and its arrival, row by row."""
    closed_before = window_of(closed, every)
    floor = None if arrived is None else min(window_of(arrived, every), closed_before)
    rows = microseconds(times)
    parts = split(rows, every=every, closed_before=closed_before, span=span, assign=True, floor=floor)
    assert as_plain(parts) == by_hand(times, every, closed_before, span, closed_before if floor is None else floor)
    dropped = split(rows, every=every, closed_before=closed_before, span=span, floor=floor)
    assert as_plain(dropped) == by_hand(times, every, closed_before, span)


@given(st.lists(near, min_size=1, max_size=12), near, st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_an_assigned_row_counts_in_one_window_however_often_it_is_read(
    times: list[datetime], arrived: datetime, closings: list[int]
) -> None:
    """Guarantee (A8): read again after any closings, a row goes to the window it first went to, or to none."""
    assert moved(times, arrived, closings) == []


def moved(times: list[datetime], arrived: datetime, closings: list[int], *, forget: bool = False) -> list[int]:
    """The rows that a later reading sends to another window than the first."""
    floor = window_of(arrived, DAY)
    kept: dict[str, datetime | bool | None] = {"assign": True, "floor": None if forget else floor}

    def read(closed_before: datetime) -> dict[int, datetime]:
        parts = split(microseconds(times), every=DAY, closed_before=closed_before, span=OPEN, **kept)  # type: ignore[arg-type]  # one dict of several types
        return {i: start for start, index in as_plain(parts)[0].items() for i in index}

    first, closed_before, wrong = read(floor), floor, []
    for days in closings:
        closed_before += days * DAY
        wrong += [i for i, start in read(closed_before).items() if start != first[i]]
    return wrong


def test_mutant_an_arrival_that_is_forgotten_is_caught() -> None:
    """Mutant: a row that is read again is assigned anew, and counts in a second window."""
    times = [MONDAY - HOUR, MONDAY + HOUR]
    assert moved(times, MONDAY, [1]) == []
    assert moved(times, MONDAY, [1], forget=True) == [0, 1]


def test_no_late_row_opens_a_window_behind_the_span() -> None:
    """Where all windows of the span have closed, a late row is late: there is no open window to assign it to."""
    span = Span(start=MONDAY, end=MONDAY + WEEK)
    rows = microseconds([MONDAY, MONDAY - HOUR])
    parts = split(rows, every=WEEK, closed_before=MONDAY + WEEK, span=span, assign=True)
    assert as_plain(parts) == ({}, 1, 1)
    assert as_plain(split(rows, every=WEEK, closed_before=None, span=span, assign=True)) == ({MONDAY: [0]}, 0, 1)


@given(near, st.lists(near, min_size=1, max_size=6), lengths.filter(lambda e: e >= DAY), st.sampled_from([0, 1, 30]))
def test_every_window_closes_exactly_once_and_in_order(
    first: datetime, watermarks: list[datetime], every: timedelta, late_h: int
) -> None:
    """Guarantee: whatever steps (or jumps back) the clock takes, all windows from the first on close once, in order."""
    lateness = late_h * HOUR
    closed_before, closed = None, []
    for watermark in watermarks:
        due = closing(first=first, closed_before=closed_before, watermark=watermark, every=every, lateness=lateness)
        for start in due:
            closed.append(start)
            closed_before = start + every
    begin = window_of(first, every)
    expected = []
    while begin + every + lateness <= max(watermarks):
        expected.append(begin)
        begin += every
    assert closed == expected


@given(near, near)
def test_nothing_closes_before_its_end_and_lateness(first: datetime, watermark: datetime) -> None:
    """Guarantee: a window stays open for its lateness, to the microsecond."""
    for start in closing(first=first, closed_before=None, watermark=watermark, every=DAY, lateness=HOUR):
        assert start + DAY + HOUR <= watermark
    tight = MONDAY + DAY + HOUR
    just = {"first": MONDAY, "closed_before": None, "every": DAY, "lateness": HOUR}
    assert list(closing(watermark=tight, **just)) == [MONDAY]  # type: ignore[arg-type]  # one dict of several types
    assert not list(closing(watermark=tight - timedelta(microseconds=1), **just))  # type: ignore[arg-type]  # as above


def test_no_first_window_means_nothing_closes() -> None:
    """An agent that saw nothing and promised no span has no windows."""
    assert not list(closing(first=None, closed_before=None, watermark=MONDAY, every=DAY, lateness=HOUR))


def test_a_late_row_never_opens_a_closed_window() -> None:
    """Guarantee (A8): a row of a closed window is dropped and counted; the window it belongs to is not there."""
    times = microseconds([MONDAY - timedelta(microseconds=1), MONDAY, MONDAY + WEEK])
    parts = split(times, every=WEEK, closed_before=MONDAY, span=Span(start=None, end=None))
    assert set(parts.windows) == {MONDAY, MONDAY + WEEK}
    assert parts.late == 1


def test_the_span_is_half_open() -> None:
    """The first instant of the span is in it; its end is not."""
    times = microseconds([MONDAY - timedelta(microseconds=1), MONDAY, MONDAY + WEEK])
    parts = split(times, every=WEEK, closed_before=None, span=Span(start=MONDAY, end=MONDAY + WEEK))
    assert as_plain(parts) == ({MONDAY: [1]}, 0, 2)


@pytest.mark.parametrize("day", [datetime(2013, 1, 7, tzinfo=UTC), datetime(1970, 1, 5, tzinfo=UTC)])
def test_weeks_begin_on_monday(day: datetime) -> None:
    """A window of seven days is an ISO week; 2013-01-07 begins one."""
    assert day.isoweekday() == 1
    parts = split(microseconds([day, day - timedelta(microseconds=1)]), every=WEEK, closed_before=None, span=OPEN)
    assert as_plain(parts)[0] == {day: [0], day - WEEK: [1]}


def test_closing_by_rows_that_exist_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: windows without rows are skipped; the check of order and completeness sees the gap."""
    honest = list(closing(first=MONDAY, closed_before=None, watermark=MONDAY + 4 * WEEK, every=WEEK, lateness=DAY * 0))
    monkeypatch.setattr(window, "windows_between", lambda start, end, every: iter([start, start + 2 * every]))
    mutant = list(closing(first=MONDAY, closed_before=None, watermark=MONDAY + 4 * WEEK, every=WEEK, lateness=DAY * 0))
    assert honest == [MONDAY + i * WEEK for i in range(4)]
    assert mutant != honest
