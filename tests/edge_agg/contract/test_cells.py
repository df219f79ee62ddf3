"""The cells of a plan: their order is the plan's, so that no key travels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_agg.contract import cells
from edge_agg.contract.cells import dimension, key_text, keys, n_cells, shape
from edge_agg.contract.plan import Partition, parse_plan
from tests.edge_agg.contract.plans import DISCOVER, INTEGERS, KEYS, SECOND_PARTITION, parsed

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agg.contract.plan import Key

THREE = """\
[[partition]]
column = "carrier"
values = ["b", "a"]
other = true

[[partition]]
column = "gate"
values = [10, -2]

[[partition]]
column = "late"
values = [true, false]
other = true

[[metric]]
name = "departures"
"""
COLUMNS = ('dep_delay = "float"', 'dep_delay = "float"\ngate = "integer"\nlate = "boolean"')


@pytest.fixture(scope="module")
def three(edit: Callable[..., str]) -> str:
    """A plan over three partition columns of three types."""
    text = edit(COLUMNS)
    before, _, rest = text.partition("[[partition]]")
    return str(before + THREE + rest[rest.index('kind = "count"') :])


def test_cells_are_row_major_with_other_last(three: str) -> None:
    """The last column turns fastest, each column keeps the plan's order, and `other` comes last in its column."""
    plan = parse_plan(three)
    assert shape(plan) == (3, 2, 3)
    assert list(keys(plan)) == [
        (carrier, gate, late)
        for carrier in ("b", "a", "other")
        for gate in ("10", "-2")
        for late in ("true", "false", "other")
    ]


def test_the_number_of_cells_is_the_number_of_keys(three: str) -> None:
    """Rows of a payload and keys of a plan always line up."""
    plan = parse_plan(three)
    assert n_cells(plan) == len(list(keys(plan))) == 18


def test_mutant_sorted_keys_are_caught(three: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: keys in sorted order, as a group-by would give them; the test of the order fails."""
    monkeypatch.setattr(cells, "dimension", lambda partition: sorted(partition.public, key=str))
    with pytest.raises(AssertionError):
        test_cells_are_row_major_with_other_last(three)


def test_a_plan_without_partitions_has_one_cell(plan_text: str) -> None:
    """A total is one cell with no keys."""
    before, _, rest = plan_text.partition("[[partition]]")
    plan = parse_plan(before + rest[rest.index("[[metric]]") :])
    assert (shape(plan), n_cells(plan), list(keys(plan))) == ((), 1, [()])


def test_without_other_there_is_no_other_cell() -> None:
    """Only a plan that asks for it has a cell for unlisted keys."""
    assert dimension(Partition(column="c", values=["x", "y"])) == ["x", "y"]
    assert dimension(Partition(column="c", values=["x", "y"], other=True)) == ["x", "y", "other"]


def test_discovered_keys_are_no_cells() -> None:
    """Cells are those of the public partitions; each key that is found has all of them."""
    plan = parsed(*DISCOVER, ('[[metric]]\nname = "departures"', SECOND_PARTITION.replace('["x"]', '["x", "y"]')))
    assert (shape(plan), n_cells(plan), list(keys(plan))) == ((2,), 2, [("x",), ("y",)])
    assert n_cells(parsed(*DISCOVER)) == 1


def test_a_calendar_and_a_range_are_cells_like_any_other() -> None:
    """Their keys are written out, so cells follow them; a range may have `other`, a calendar has none."""
    plan = parsed(
        ("other = true", 'other = true\n[[partition]]\ncolumn = "time_hour"\ncalendar = "weekday"'),
        *INTEGERS,
        (KEYS, "range = { start = 3, stop = -3, step = -3 }"),
    )
    assert list(keys(plan)) == [(gate, str(day)) for gate in ("3", "0", "other") for day in range(1, 8)]


@pytest.mark.parametrize(
    ("key", "text"), [("US", "US"), ("", ""), (-7, "-7"), (0, "0"), (True, "true"), (False, "false")]
)
def test_a_key_is_shown_by_its_type(key: Key, text: str) -> None:
    """Integers in decimal, booleans as TOML writes them; `1` and `true` never look alike."""
    assert key_text(key) == text
