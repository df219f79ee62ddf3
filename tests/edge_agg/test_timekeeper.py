"""The clock is believed only while it keeps step with the time since boot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.timekeeper import Doubt, Timekeeper

NOW = datetime(2026, 3, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def keeper(*, last_seen: datetime | None = None, settle: timedelta = HOUR) -> Timekeeper:
    return Timekeeper(created=NOW - DAY, last_seen=last_seen, max_jump=5 * MINUTE, settle=settle)


@pytest.mark.parametrize("jump", [2 * DAY, -2 * DAY, 6 * MINUTE, -6 * MINUTE])
def test_a_jump_is_held_until_the_clock_is_back(jump: timedelta) -> None:
    """Guarantee (A9): wall time that moves against the time since boot is not acted on; back again it is."""
    kept = keeper()
    assert kept.look(NOW, 100.0) is None
    held = kept.look(NOW + jump + MINUTE, 160.0)
    assert held is (Doubt.UNSET if NOW + jump + MINUTE < NOW - DAY - 5 * MINUTE else Doubt.JUMPED)
    assert kept.last_seen == NOW
    assert kept.look(NOW + 2 * MINUTE, 220.0) is None


def test_a_clock_that_stays_where_it_jumped_is_believed_once_it_has_settled() -> None:
    """Guarantee: a hold ends by itself; before `settle` has passed on the clock since boot it does not."""
    kept = keeper()
    kept.look(NOW, 100.0)
    for minute in range(1, 62):
        doubt = kept.look(NOW + DAY + minute * MINUTE, 100.0 + 60 * minute)
        assert (doubt is None) == (minute == 61), minute


def test_a_clock_that_keeps_jumping_is_never_believed() -> None:
    """Guarantee: settling begins again with each jump."""
    kept = keeper()
    kept.look(NOW, 0.0)
    for hour in range(1, 50):
        assert kept.look(NOW + hour * 7 * DAY, 3600.0 * hour) is Doubt.JUMPED


def test_a_suspend_is_no_jump() -> None:
    """Guarantee: both clocks go on through a suspend, so windows close as if the box had been awake."""
    kept = keeper()
    kept.look(NOW, 100.0)
    assert kept.look(NOW + 2 * DAY, 100.0 + (2 * DAY).total_seconds()) is None


def test_a_boot_in_1970_is_never_believed() -> None:
    """Guarantee (A9): however long it runs there; and once the clock is set all is as it was."""
    kept = keeper(last_seen=NOW)
    for hour in range(100):
        assert kept.look(datetime(1970, 1, 1, tzinfo=UTC) + hour * HOUR, 3600.0 * hour) is Doubt.UNSET
    assert kept.look(NOW + 5 * DAY, 3600.0 * 100) is None


def test_a_journal_that_was_created_in_1970_does_not_make_1970_right() -> None:
    """Guarantee: the first boot of all may have been in 1970."""
    kept = Timekeeper(created=datetime(1970, 1, 1, tzinfo=UTC), last_seen=None, max_jump=MINUTE, settle=HOUR)
    assert kept.look(datetime(1970, 1, 1, tzinfo=UTC), 5.0) is Doubt.UNSET


def test_a_boot_behind_what_was_seen_is_held() -> None:
    """Guarantee: after a restart the clock must not have gone back; in time it is believed (it was ahead before)."""
    kept = keeper(last_seen=NOW)
    assert kept.look(NOW - HOUR, 10.0) is Doubt.BEHIND
    assert kept.look(NOW, 10.0 + 3600.0) is None


@given(st.lists(st.floats(-250.0, 250.0), max_size=30))
def test_small_steps_are_believed(steps: list[float]) -> None:
    """Guarantee: what a time service corrects, below the limit at each look, never holds the agent."""
    kept, wall = keeper(), NOW
    for i, step in enumerate(steps):
        wall += timedelta(seconds=300.0 + step)
        assert kept.look(wall, 300.0 * (i + 1)) is None
