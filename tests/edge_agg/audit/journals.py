"""A journal in which everything that can happen has happened: for the tests of the audit, and of what shows it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from edge_agg.contract.plan import parse_plan, plan_hash
from edge_agg.journal import Journal
from edge_agg.privacy.ledger import Budget
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import budget_of
from edge_agg.series import Account, Series
from edge_agg.window import Span
from tests.fakes import COUNT, DAY, MEAN, MONDAY, WEEK, Row, batch_of, small_plan_text

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.contract.plan import Plan

WIDE = budget_of(epsilon=100.0, delta=1e-4, horizon=365 * DAY, discovery=5e-5)
NARROW = Budget(
    rho=compile_plan(parse_plan(small_plan_text(name="narrow"))).charge.rho, delta=WIDE.delta, horizon=365 * DAY
)
BUDGETS = {"people": WIDE, "poor": NARROW}
PROMISED = {name: lambda _, budget=budget: budget for name, budget in BUDGETS.items()}
"""Whatever key discovery took."""


def plans() -> dict[str, Plan]:
    """One plan of each kind of charge."""
    found = small_plan_text(COUNT, name="found").replace(
        'column = "k"\nvalues = ["a", "b"]\nother = true', 'column = "k"\ndiscover = { delta = 1e-7 }'
    )
    periodic = small_plan_text(COUNT, name="periodic").replace(
        "max_rows_per_partition = 2", 'max_rows_per_partition = 2\nmax_windows = 1\nperiod = "14d"'
    )
    texts = [
        small_plan_text(COUNT, MEAN),
        small_plan_text(COUNT, name="pure", mechanism="laplace"),
        found,
        periodic,
        small_plan_text(name="narrow"),
    ]
    return {plan.name: plan for plan in map(parse_plan, texts)}


def write_journal(folder: Path) -> None:
    """Four weeks: a window drawn twice, one lost, some exhausted, two releases acked, one window under way."""
    with closing(Journal.open(folder, "node", now=MONDAY)) as journal:
        series = [
            Series(
                tenant="default",
                measurement=compile_plan(plan),
                account=Account(name=name, budget=BUDGETS[name]),
                journal=journal,
                span=Span(start=MONDAY, end=MONDAY + 4 * WEEK),
            )
            for plan in plans().values()
            for name in ["poor" if plan.name == "narrow" else "people"]
        ]
        for one in series:
            one.add(batch_of([Row(u=f"unit-{i}", t=MONDAY + i % 28 * DAY) for i in range(300)], one.measurement.plan))
        for week in range(4):
            for one in series:
                start = MONDAY + week * WEEK
                for _ in range({("small", 1): 1, ("small", 2): 2}.get((one.measurement.plan.name, week), 0)):
                    cut_off(one, week)
                one.close(start)
        journal.settle(acked=[1, 2], parked=[])
        cut_off(series[0], 4)


def cut_off(series: Series, week: int) -> None:
    """A window that is charged, and then the power goes."""
    plan, start = series.measurement.plan, MONDAY + week * WEEK
    series.journal.charge(
        account=series.account.name,
        plan_hash=plan_hash(plan),
        name=plan.name,
        text="",
        entry=series._entry(start, series.journal.attempts(plan_hash(plan), start)),
    )
