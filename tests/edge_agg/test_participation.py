"""Participation: a unit counts in its first windows of a period, and asking again gives the same answer."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg import participation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PLAN, OTHER = b"p" * 32, b"q" * 32
PERIOD = 4
"""Windows in a period; window number n starts at n microseconds."""

Unit = int | str
Window = tuple[int, set[Unit], int]
"""Its number, who has rows in it, and how often it is closed: more than once after a crash."""


def opened() -> apsw.Connection:
    """An empty table, in memory."""
    db = apsw.Connection(":memory:")
    db.execute(participation.SCHEMA)
    return db


def close(db: apsw.Connection, window: int, units: set[Unit], most: int, plan: bytes = PLAN) -> set[Unit]:
    """Close a window as a series does: ask who is spent, record the others; who is left out."""
    period = window // PERIOD * PERIOD
    spent = list(participation.spent_units(db, plan, period_us=period, window_us=window, max_windows=most))
    participation.record_units(db, plan, period_us=period, window_us=window, units=units.difference(spent))
    return units.intersection(spent)


def by_hand(windows: Sequence[Window], most: int) -> list[set[Unit]]:
    """Who is left out of each window, by counting."""
    seen: Counter[tuple[int, Unit]] = Counter()
    out = []
    for window, units, _ in windows:
        left = {unit for unit in units if seen[window // PERIOD, unit] >= most}
        seen.update((window // PERIOD, unit) for unit in units - left)
        out.append(left)
    return out


names: st.SearchStrategy[Unit] = st.sampled_from(["a", "1", "", "N\0", "ü", 1, 0, -(2**63), 2**63 - 1])
histories = st.lists(st.tuples(st.integers(0, 3), st.sets(names, max_size=5), st.integers(1, 3)), max_size=12).map(
    lambda steps: [
        (sum(gap for gap, _, _ in steps[: i + 1]) + i, units, times) for i, (_, units, times) in enumerate(steps)
    ]
)


def answers(windows: Sequence[Window], most: int) -> list[list[set[Unit]]]:
    """Who is left out of each window, each time it is closed."""
    db = opened()
    found = [[close(db, window, units, most) for _ in range(times)] for window, units, times in windows]
    db.close()
    return found


@settings(max_examples=60)
@given(windows=histories, most=st.integers(1, 3))
def test_a_unit_counts_in_its_first_windows_however_often_it_is_asked(windows: list[Window], most: int) -> None:
    """Guarantee: as counting by hand has it; a window that is tried again, as after a crash, gets the same answer."""
    for found, wanted in zip(answers(windows, most), by_hand(windows, most), strict=True):
        assert found == [wanted] * len(found)


TWICE: list[Window] = [(0, {"a"}, 2), (1, {"a", "b"}, 2), (2, {"a", "b"}, 1), (4, {"a"}, 1)]


def _counts_each_time(
    db: apsw.Connection, plan: bytes, *, period_us: int, window_us: int, units: Sequence[Unit]
) -> None:
    """A mutant: closed again, a window counts again."""
    for unit in units:
        db.execute(
            "INSERT INTO participation VALUES (?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET windows = windows + 1",
            (plan, period_us, unit, window_us),
        )


def _counts_against_itself(
    db: apsw.Connection, plan: bytes, *, period_us: int, window_us: int, max_windows: int
) -> list[Unit]:
    """A mutant: the window that is asked about counts too."""
    query = "SELECT unit FROM participation WHERE plan_hash=? AND period_us=? AND windows >= ?"
    return [unit for (unit,) in db.execute(query, (plan, period_us, max_windows))]


def _nobody(*args: object, **given: object) -> list[Unit]:
    """A mutant: no unit is ever spent."""
    return []


@pytest.mark.parametrize(
    ("name", "mutant", "most"),
    [
        ("record_units", _counts_each_time, 2),
        ("spent_units", _counts_against_itself, 1),
        ("spent_units", _nobody, 1),
    ],
)
def test_mutants_are_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, mutant: Callable[..., object], most: int
) -> None:
    """Mutants: a second try counts twice; a window counts against itself; nobody is ever spent."""
    right = [[wanted] * times for wanted, (_, _, times) in zip(by_hand(TWICE, most), TWICE, strict=True)]
    assert answers(TWICE, most) == right
    monkeypatch.setattr(participation, name, mutant)
    assert answers(TWICE, most) != right


def test_plans_and_types_of_ids_are_kept_apart() -> None:
    """Guarantee: another plan has its own count; the text "1" is not the number 1."""
    db = opened()
    close(db, 0, {"1"}, 1)
    close(db, 0, {1}, 1, OTHER)
    assert list(participation.spent_units(db, PLAN, period_us=0, window_us=1, max_windows=1)) == ["1"]
    assert list(participation.spent_units(db, OTHER, period_us=0, window_us=1, max_windows=1)) == [1]
    db.close()


def test_a_period_that_is_over_is_forgotten() -> None:
    """Guarantee: ids stay on the device no longer than to the next period's first charge of their plan."""
    db = opened()
    close(db, 0, {"a"}, 1)
    close(db, 0, {"b"}, 1, OTHER)
    close(db, PERIOD, set(), 1)
    assert list(db.execute("SELECT unit FROM participation")) == [("b",)]
    db.close()
