"""As many public cells as a plan may have, through the whole path: each count stands in the cell that the plan names.

Ranges, lists, hours, weekdays and `other`, multiplied with one another; the noise is left out, so that a cell that was
taken for another shows as itself.
"""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from edge_agg.contract.plan import MAX_CELLS
from edge_agg.privacy import noise, rows
from tests.fakes import MONDAY
from tests.privacy.audit.path import drained

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

pytestmark = pytest.mark.slow

PLAN = """
[plan]
name = "products"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "string", n = "integer", v = "string" }}
[privacy_unit]
column = "u"
[bounds]
max_partitions = 1
max_rows_per_partition = 1
[window]
every = "1d"
{partitions}
[[metric]]
name = "n_rows"
kind = "count"
[budget]
mechanism = "laplace"
epsilon = 1.0
"""
HOUR = '[[partition]]\ncolumn = "t"\ncalendar = "hour"\n'
WEEKDAY = '[[partition]]\ncolumn = "t"\ncalendar = "weekday"\n'


def ranged(keys: int) -> str:
    """Keys 0, 2, 4 .. and all others."""
    return f'[[partition]]\ncolumn = "n"\nrange = {{ start = 0, stop = {2 * keys}, step = 2 }}\nother = true\n'


LISTED = '[[partition]]\ncolumn = "v"\nvalues = ["b", "a", "", "é"]\nother = true\n'
SHAPES = {
    "calendars": (HOUR + ranged(593) + WEEKDAY, (24, 594, 7)),
    "lists": (LISTED + ranged(19_999), (5, 20_000)),
}
NUMBERS, WORDS, HOURS, DAYS = (0, 2, 3, 1184, 2**40), ("a", "b", "é", "ü"), (0, 13, 23), (0, 6)


def expected(name: str) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """A row for each combination of some keys, every unit with one row, and the count of each cell by hand."""
    shape = SHAPES[name][1]
    counts = np.zeros(shape, np.int64)
    events = []
    for i, (n, v, hour, day) in enumerate(itertools.product(NUMBERS, WORDS, HOURS, DAYS)):
        number = n // 2 if n % 2 == 0 and n < 2 * (max(shape) - 1) else max(shape) - 1
        word = {"b": 0, "a": 1, "é": 3}.get(v, 4)
        counts[(hour, number, day) if name == "calendars" else (word, number)] += 1
        events.append((MONDAY + timedelta(days=day, hours=hour), f"u{i}", n, v))
    columns = [list(column) for column in zip(*events, strict=True)]
    types = (pa.timestamp("us", tz="UTC"), pa.string(), pa.int64(), pa.string())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.table(dict(zip("tunv", arrays, strict=True))), counts.ravel()


def released(home: Path, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What a week's windows released without noise, added up, and what they should."""
    table, counts = expected(name)
    windows = drained(home, PLAN.format(partitions=SHAPES[name][0]), table, 7)
    found: npt.NDArray[np.int64] = np.sum([window.columns["n_rows"] for window in windows], axis=0)
    return found, counts


@pytest.mark.parametrize("name", SHAPES)
def test_every_count_stands_in_its_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Guarantee: products of up to 100,000 cells run from file to decoded release, in the plan's order of cells."""
    monkeypatch.setattr(noise, "draw", lambda mechanism, scale, exact: exact)
    found, counts = released(tmp_path / "run", name)
    assert MAX_CELLS * 0.99 < len(found) <= MAX_CELLS
    assert (found == counts).all()
    assert counts.sum() == len(NUMBERS) * len(WORDS) * len(HOURS) * len(DAYS)


def test_cells_in_another_order_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: weekdays that begin with Sunday."""
    monkeypatch.setattr(noise, "draw", lambda mechanism, scale, exact: exact)
    honest = rows._calendar
    monkeypatch.setattr(
        rows,
        "_calendar",
        lambda partition, column: (
            (honest(partition, column) + 1) % 7 if partition.calendar == "weekday" else honest(partition, column)
        ),
    )
    found, counts = released(tmp_path / "run", "calendars")
    assert (found != counts).any()
