"""A sample whose every figure can be counted by hand, and a plan over it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agg.contract.plan import parse_plan
from tests.fakes import DAY, MONDAY, WEEK, Row, small_plan_text

if TYPE_CHECKING:
    from edge_agg.contract.plan import Plan

GRID = 'column = "x"\nlower = 0.0\nupper = 10.0\nresolution = 0.5'
METRICS = (
    'name = "n"\nkind = "count"',
    'name = "people"\nkind = "distinct_units"',
    f'name = "total"\nkind = "sum"\n{GRID}',
    f'name = "capped"\nkind = "sum"\nclip = "unit"\n{GRID}',
    f'name = "level"\nkind = "mean"\n{GRID}',
    f'name = "spread"\nkind = "variance"\n{GRID}',
    'name = "half"\nkind = "quantiles"\ncolumn = "x"\nlower = 0.0\nupper = 16.0\nbins = 16\nquantiles = [0.5]',
)


def plan_of(*metrics: str, more: str = "", max_partitions: int = 1, max_rows: int = 2) -> Plan:
    """The small plan, with these metrics, over two keys and all others."""
    text = small_plan_text(*(metrics or METRICS), max_partitions=max_partitions, max_rows=max_rows, epsilon=2.0)
    bound = f"max_rows_per_partition = {max_rows}"
    return parse_plan(text.replace(bound, f"{bound}\n{more}"))


def events() -> list[Row]:
    """Two weeks, each: 40 units have a row of 4.0 in a; 10 have five rows of 20.0 in b, and one without a value."""
    rows = []
    for week in range(2):
        at = MONDAY + week * WEEK
        for unit in range(40):
            rows += [Row(u=f"one-{unit}", t=at, k="a", x=4.0)]
        for unit in range(10):
            rows += [Row(u=f"many-{unit}", t=at + i * DAY, k="b", x=20.0) for i in range(5)]
            rows += [Row(u=f"many-{unit}", t=at, k="c", x=None)]
    return rows
