"""The vectors of a plan: what is shared is released once and paid for once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_agg.contract import vectors as vectors_module
from edge_agg.contract.plan import Mean, Plan, Sum, parse_plan
from edge_agg.contract.vectors import Clip, metric_vectors, plan_vectors, vectors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    PlanWith = Callable[..., Plan]

COUNT = 'kind = "count"'
UNITS = 'kind = "distinct_units"'
CLIP = 'column = "dep_delay"\nlower = -30.0\nupper = 180.0\nresolution = 0.1'
MEAN = f'kind = "mean"\n{CLIP}'
SUM = f'kind = "sum"\n{CLIP}'


@pytest.fixture(scope="session")
def plan_with(plan_text: str) -> PlanWith:
    """Build the design's plan with other metrics: `plan_with(name="kind = ...", ...)`."""
    before, _, rest = plan_text.partition("[[metric]]")
    columns = ('dep_delay = "float"', 'dep_delay = "float"\narr_delay = "float"')

    def build(**metrics: str) -> Plan:
        tables = "".join(f'[[metric]]\nname = "{name}"\n{body}\n\n' for name, body in metrics.items())
        return parse_plan(before.replace(*columns) + tables + rest[rest.index("[budget]") :])

    return build


def names(plan: Plan) -> list[str]:
    """The names of the released vectors, in the payload's order."""
    return [vector.name for vector in plan_vectors(plan)]


def test_each_kind_has_its_vectors(plan_with: PlanWith) -> None:
    """One column for a count, a distinct count or a sum; two, named after the metric, for a mean; in plan order."""
    plan = plan_with(n=COUNT, units=UNITS, total=SUM, delay=MEAN)
    assert names(plan) == ["n", "units", "total", "delay_sum", "delay_count"]
    assert [vector.of for vector in plan_vectors(plan)] == ["rows", "units", "values", "values", "rows"]


def test_a_sum_counts_from_zero_and_a_mean_from_the_middle(plan_with: PlanWith) -> None:
    """The centre is what the sensitivity of a mean is halved by."""
    _, total, numerator, _ = plan_vectors(plan_with(n=COUNT, total=SUM, delay=MEAN))
    assert total.clip == Clip(lower=-300, upper=1800, centre=0, resolution=0.1)
    assert numerator.clip == Clip(lower=-300, upper=1800, centre=750, resolution=0.1)


def shared(plan_with: PlanWith) -> dict[str, list[str]]:
    """What each pair of metrics releases."""
    return {
        "two counts": names(plan_with(a=COUNT, b=COUNT)),
        "two distinct counts": names(plan_with(a=UNITS, b=UNITS)),
        "two means": names(plan_with(a=MEAN, b=MEAN)),
        "two sums": names(plan_with(a=SUM, b=SUM)),
        "means of two grids": names(plan_with(a=MEAN, b=MEAN.replace("0.1", "0.2"))),
        "sum and mean about zero": names(
            plan_with(a=SUM.replace("-30.0", "-180.0"), b=MEAN.replace("-30.0", "-180.0"))
        ),
    }


SHARED = {
    "two counts": ["a"],
    "two distinct counts": ["a"],
    "two means": ["a_sum", "a_count"],
    "two sums": ["a"],
    "means of two grids": ["a_sum", "a_count", "b_sum"],
    "sum and mean about zero": ["a", "b_count"],
}


def test_what_two_metrics_share_is_one_vector(plan_with: PlanWith) -> None:
    """Equal vectors are released once, under the first metric's name."""
    assert shared(plan_with) == SHARED


def test_mutant_vectors_that_are_never_shared_are_caught(plan_with: PlanWith, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: identity by name, so that nothing is shared and everything is paid for twice."""
    monkeypatch.setattr(vectors_module, "_identity", lambda vector: (vector.name,))
    assert all(shared(plan_with)[case] != names for case, names in SHARED.items())


def test_what_differs_is_not_shared(plan_with: PlanWith) -> None:
    """A count of rows, of units, of rows with a value, and values of another column are different questions."""
    other = MEAN.replace("dep_delay", "arr_delay")
    assert names(plan_with(n=COUNT, u=UNITS, a=MEAN, b=other)) == ["n", "u", "a_sum", "a_count", "b_sum", "b_count"]


@pytest.mark.parametrize(("first", "second"), [(1.0, 3.0), (3.0, 1.0)])
def test_a_shared_vector_takes_the_larger_weight(plan_with: PlanWith, first: float, second: float) -> None:
    """Neither of two metrics gets less of the loss than it asked for, whatever their order."""
    plan = plan_with(a=f"{COUNT}\nweight = {first}", b=f"{COUNT}\nweight = {second}", m=f"{MEAN}\nweight = 2.0")
    assert [vector.weight for vector in plan_vectors(plan)] == [3.0, 2.0, 2.0]


def test_a_metric_finds_the_vectors_it_shares(plan_with: PlanWith) -> None:
    """The collector reads a second metric out of the first one's columns."""
    plan = plan_with(a=MEAN, b=MEAN, n=COUNT, k=COUNT)
    assert [[vector.name for vector in vectors_of(plan, metric)] for metric in plan.metric] == [
        ["a_sum", "a_count"],
        ["a_sum", "a_count"],
        ["n"],
        ["n"],
    ]


def test_names_are_distinct_and_belong_to_their_metric(plan_with: PlanWith) -> None:
    """Every vector is named after the metric that it is first needed by, and no name stands twice."""
    plan = plan_with(a=MEAN, b=SUM, c=COUNT, d=UNITS, e=MEAN.replace("dep_delay", "arr_delay"))
    assert len(set(names(plan))) == len(names(plan))
    alone = {vector.name for metric in plan.metric for vector in metric_vectors(metric)}
    assert set(names(plan)) <= alone


@pytest.mark.parametrize(("lower", "upper"), [(-1.0, 2.0), (-3.0, -1.0), (0.0, 1.0), (-2.0, 1.0)])
def test_the_centre_of_a_mean_is_within_one_step_of_the_middle(lower: float, upper: float) -> None:
    """The middle of an odd range is rounded down, so the farther bound is at most half a step farther."""
    vector, _ = metric_vectors(Mean(name="m", column="c", lower=lower, upper=upper, resolution=1.0))
    assert vector.clip is not None
    assert 0 <= (vector.clip.lower + vector.clip.upper) / 2 - vector.clip.centre <= 0.5
    (total,) = metric_vectors(Sum(name="m", column="c", lower=lower, upper=upper, resolution=1.0))
    assert total.clip is not None
    assert total.clip.centre == 0
