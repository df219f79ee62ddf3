"""How figures are written: three digits, a sign where something changes, two digits of a share; bounds as in a plan.

Place: below `page.py` and `wanted.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from edge_agg.contract.plan import Mean, Sum, Variance

if TYPE_CHECKING:
    from edge_agg.contract.plan import Plan


def table_of(title: str, first: str, *columns: str) -> Table:
    """A plain table; all columns but the first hold figures."""
    table = Table(first, title=title, box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def bounds_of(plan: Plan, before: Plan) -> list[str]:
    """The bounds of a plan that are not those of another, as they would be written."""
    changes = [
        f"{name} = {getattr(plan.bounds, name)}"
        for name in ("max_partitions", "max_rows_per_partition")
        if getattr(plan.bounds, name) != getattr(before.bounds, name)
    ]
    for one, other in zip(plan.metric, before.metric, strict=True):
        if isinstance(one, Sum | Mean | Variance) and isinstance(other, Sum | Mean | Variance):
            changes += [
                f"{one.name}.{end} = {getattr(one, end):g}"
                for end in ("lower", "upper")
                if getattr(one, end) != getattr(other, end)
            ]
    return changes


def number(value: float) -> str:
    """Three digits, or all before the point."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def signed(value: float) -> str:
    """A change: with its sign; 0 where it is none."""
    return "0" if abs(value) < 1e-9 else f"{'+' if value > 0 else '-'}{number(abs(value))}"


def percent(share: float) -> str:
    """A share: two digits."""
    if not math.isfinite(share):
        return "-"
    return f"{share * 100:.2g} %" if share < 0.995 else f"{share * 100:,.0f} %"
