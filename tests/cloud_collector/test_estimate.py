"""From totals to rows: units, signs, and rows that line up with their bins.

Not proved here: that intervals cover; the tests of ratio, spread and order do.
"""

from __future__ import annotations

import pytest

from cloud_collector import estimate
from cloud_collector.combine import Total
from cloud_collector.question import Asked, Question
from edge_agg.contract.plan import parse_plan
from tests.cloud_collector.front import PLAN_TEXT
from tests.cloud_collector.laws import noise

OF = noise(("gaussian", 2.0, 1))
PLAN = parse_plan(
    PLAN_TEXT.replace(
        "[budget]",
        """
[[metric]]
name = "share"
kind = "ratio"
numerator = "departures"
denominator = "total"

[[metric]]
name = "each"
kind = "ratio"
numerator = "total"
denominator = "departures"

[[metric]]
name = "spread"
kind = "histogram"
column = "delay"
edges = [0.0, 1.0, 10.0]

[budget]
""",
    )
)


def asked(metric: str) -> Asked:
    return Asked.of(PLAN, Question(plan=PLAN.name, metric=metric))


def of(metric: str, *sums: tuple[int, ...]) -> list[estimate.Estimate]:
    return estimate.estimates(asked(metric), Total(sums=sums, noises=(OF,) * len(sums)))


def one_of(metric: str, *sums: tuple[int, ...]) -> tuple[float, float, float]:
    """The only row's value, lo and hi."""
    ((value, lo, hi),) = of(metric, *sums)
    assert value is not None
    assert lo is not None
    assert hi is not None
    return value, lo, hi


def test_a_ratio_is_in_units_of_both() -> None:
    """A sum of half-unit steps by a count, and the other way round; every interval holds the value."""
    value, lo, hi = one_of("each", (300,), (1000,))
    assert value == 0.15
    assert lo < 0.15 < hi < 0.16
    assert one_of("share", (1000,), (300,))[0] == pytest.approx(1000 / 150)


def test_a_denominator_may_be_negative_where_it_can_be() -> None:
    """A sum over negative values divides as well as another; a count below 0 is noise and does not."""
    value, lo, hi = one_of("share", (1000,), (-300,))
    assert value == pytest.approx(-1000 / 150)
    assert lo < value < hi < 0
    assert of("each", (300,), (-3,))[0][0] is None
    assert of("share", (5,), (0,))[0][0] is None


def test_rows_line_up_with_bins_also_where_nothing_was_released() -> None:
    """As many rows as bins, in their order."""
    metric = asked("spread").metric
    assert estimate.columns(metric) == ("bin_lower", "bin_upper")
    assert estimate.parts(metric) == [(0.0, 1.0), (1.0, 10.0)]
    assert [value for value, _, _ in of("spread", (7, -2))] == [7.0, -2.0]
    assert estimate.estimates(asked("spread"), None) == [(None, None, None)] * 2
    assert estimate.estimates(asked("each"), None) == [(None, None, None)]


def test_totals_add_up_vector_by_vector() -> None:
    """Column by column, and noise with noise."""
    one = Total(sums=((1, 2), (3,)), noises=(OF, OF))
    assert one + one == Total(sums=((2, 4), (6,)), noises=(OF.times(2), OF.times(2)))
