"""The vectors of a plan: what is shared is released once and paid for once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pytest

from edge_agg.contract import vectors as vectors_module
from edge_agg.contract.grammar import MAX_KEY_BYTES
from edge_agg.contract.plan import MAX_CELLS, MAX_VALUES, Mean, Metric, Plan, Sum, parse_plan
from edge_agg.contract.tree import Tree, least_error
from edge_agg.contract.vectors import (
    Clip,
    max_keys,
    metric_vectors,
    payload_columns,
    plan_vectors,
    readings_of,
    totals_of,
    vectors_of,
)
from tests.edge_agg.contract.plans import DISCOVER, SECOND_PARTITION, more, parsed

if TYPE_CHECKING:
    from collections.abc import Callable

    PlanWith = Callable[..., Plan]

COUNT = 'kind = "count"'
UNITS = 'kind = "distinct_units"'
CLIP = 'column = "dep_delay"\nlower = -30.0\nupper = 180.0\nresolution = 0.1'
MEAN = f'kind = "mean"\n{CLIP}'
SUM = f'kind = "sum"\n{CLIP}'
TOTAL = f'kind = "sum"\nclip = "unit"\n{CLIP}'
VARIANCE = f'kind = "variance"\n{CLIP}'
BINS = 'column = "dep_delay"\nlower = 0.0\nupper = 64.0\nbins = '
HISTOGRAM = f'kind = "histogram"\n{BINS}64'
QUANTILES = f'kind = "quantiles"\nquantiles = [0.5]\n{BINS}64'
FEW = f'kind = "quantiles"\nquantiles = [0.5]\n{BINS}8'
RATIO = 'kind = "ratio"\nnumerator = "{}"\ndenominator = "{}"'


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
    """One for a count, a distinct count, a sum, bins; two, named after the metric, for a mean; three for a variance."""
    other = VARIANCE.replace("dep_delay", "arr_delay")
    plan = plan_with(n=COUNT, units=UNITS, total=SUM, delay=MEAN, whole=TOTAL, v=other, h=HISTOGRAM, q=QUANTILES)
    assert {vector.name: vector.of for vector in plan_vectors(plan)} == {
        "n": "rows",
        "units": "units",
        "total": "values",
        "delay_sum": "values",
        "delay_count": "rows",
        "whole": "totals",
        "v_sum": "values",
        "v_count": "rows",
        "v_squares": "squares",
        "h": "bins",
        "q": "bins",
    }
    metrics = [metric.name for metric in plan.metric]
    begun = [next(name for name in metrics if vector.startswith(name)) for vector in names(plan)]
    assert begun == sorted(begun, key=metrics.index), "in the plan's order"


def test_every_kind_of_metric_has_its_vectors(plan_with: PlanWith) -> None:
    """None is forgotten: each kind reads at least one vector, and a ratio reads those of its two metrics."""
    plan = plan_with(
        n=COUNT, u=UNITS, s=SUM, m=MEAN, t=TOTAL, v=VARIANCE, h=HISTOGRAM, q=QUANTILES, r=RATIO.format("t", "n")
    )
    assert {type(metric) for metric in plan.metric} == set(get_args(Metric))
    assert all(metric_vectors(plan, metric) for metric in plan.metric)
    assert [vector.name for vector in vectors_of(plan, plan.metric[-1])] == ["t", "n"]


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
        "mean and variance": names(plan_with(a=MEAN, b=VARIANCE)),
        "variance and mean": names(plan_with(a=VARIANCE, b=MEAN)),
        "two totals": names(plan_with(a=TOTAL, b=TOTAL)),
        "two histograms": names(plan_with(a=HISTOGRAM, b=HISTOGRAM)),
        "two quantiles": names(plan_with(a=QUANTILES, b=QUANTILES.replace("0.5", "0.9"))),
        "few quantiles and a histogram": names(plan_with(a=FEW, b=HISTOGRAM.replace("bins = 64", "bins = 8"))),
        "bins by rule and listed": names(
            plan_with(a=FEW, b=f'kind = "histogram"\ncolumn = "dep_delay"\nedges = {list(range(0, 65, 8))}')
        ),
    }


SHARED = {
    "two counts": ["a"],
    "two distinct counts": ["a"],
    "two means": ["a_sum", "a_count"],
    "two sums": ["a"],
    "means of two grids": ["a_sum", "a_count", "b_sum"],
    "sum and mean about zero": ["a", "b_count"],
    "mean and variance": ["a_sum", "a_count", "b_squares"],
    "variance and mean": ["a_sum", "a_count", "a_squares"],
    "two totals": ["a"],
    "two histograms": ["a"],
    "two quantiles": ["a"],
    "few quantiles and a histogram": ["a"],
    "bins by rule and listed": ["a"],
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
    assert names(plan_with(s=SUM, t=TOTAL)) == ["s", "t"], "clipped by rows and by units"
    assert names(plan_with(h=HISTOGRAM, q=QUANTILES)) == ["h", "q"], "one is flat, the other a tree"
    assert names(plan_with(h=HISTOGRAM, g=HISTOGRAM.replace("64.0", "65.0"))) == ["h", "g"]
    assert names(plan_with(h=HISTOGRAM, g=HISTOGRAM.replace("dep_delay", "arr_delay"))) == ["h", "g"]
    assert names(plan_with(v=VARIANCE, w=VARIANCE.replace("0.1", "0.2"))) == [
        "v_sum",
        "v_count",
        "v_squares",
        "w_sum",
        "w_squares",
    ]


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
    alone = {vector.name for metric in plan.metric for vector in metric_vectors(plan, metric)}
    assert set(names(plan)) <= alone


@pytest.mark.parametrize(("lower", "upper"), [(-1.0, 2.0), (-3.0, -1.0), (0.0, 1.0), (-2.0, 1.0)])
def test_the_centre_of_a_mean_is_within_one_step_of_the_middle(lower: float, upper: float) -> None:
    """The middle of an odd range is rounded down, so the farther bound is at most half a step farther."""
    plan = parsed()
    vector, _ = metric_vectors(plan, Mean(name="m", column="c", lower=lower, upper=upper, resolution=1.0))
    assert vector.clip is not None
    assert 0 <= (vector.clip.lower + vector.clip.upper) / 2 - vector.clip.centre <= 0.5
    (total,) = metric_vectors(plan, Sum(name="m", column="c", lower=lower, upper=upper, resolution=1.0))
    assert total.clip is not None
    assert total.clip.centre == 0


def test_a_payload_has_a_column_a_node(plan_with: PlanWith) -> None:
    """A vector of bins is one column a node of its tree, level by level; any other is its own column."""
    plan = plan_with(n=COUNT, h=HISTOGRAM.replace("bins = 64", "bins = 3"), q=QUANTILES, z=MEAN)
    assert least_error(64, "gaussian") == Tree(branching=4, height=3)
    assert payload_columns(plan) == (
        "n",
        *(f"h__{i}" for i in range(3)),
        *(f"q__{i}" for i in range(4 + 16 + 64)),
        "z_sum",
        "z_count",
    )


def test_no_two_columns_are_called_alike(plan_with: PlanWith) -> None:
    """Not even where metrics are named after each other's columns as far as the rules let them."""
    plan = plan_with(a=VARIANCE, a_1=QUANTILES, a1=HISTOGRAM, a_sums=SUM, a_0=COUNT, b=FEW)
    columns = payload_columns(plan)
    assert len(set(columns)) == len(columns) == 3 + 84 + 64 + 1 + 1 + 8


def test_the_mechanism_is_part_of_the_tree(plan_with: PlanWith) -> None:
    """A plan's noise decides how its bins are arranged: levels are dearer under Laplace noise."""
    text = plan_with(q=QUANTILES)
    laplace = msgspec.structs.replace(text, budget=msgspec.structs.replace(text.budget, mechanism="laplace"))
    assert [vector.tree for vector in plan_vectors(laplace)] == [Tree(branching=8, height=2)]
    assert [vector.tree for vector in plan_vectors(text)] == [Tree(branching=4, height=3)]


def test_a_column_is_read_once_for_all_that_share_a_grid(plan_with: PlanWith) -> None:
    """Sum, mean and variance on one grid read the column alike; bins, totals and counts of any row do not."""
    plan = plan_with(n=COUNT, s=SUM, m=MEAN, v=VARIANCE, t=TOTAL, h=HISTOGRAM, q=QUANTILES)
    vectors = plan_vectors(plan)
    readings = readings_of(vectors)
    assert [(reading.column, reading.size) for reading in readings.values()] == [("dep_delay", 2101), ("dep_delay", 64)]
    assert {vector.reading for vector in vectors} == {None, *readings.values()}
    assert list(totals_of(vectors)) == ["t"]


KEYS = {"one column": (1,), "cells": (250, more(SUM)), "bins": (1, more(HISTOGRAM)), "both": (300, more(HISTOGRAM))}


@pytest.mark.parametrize("max_bytes", [1, 64, 83, 84, 256])
@pytest.mark.parametrize("case", KEYS.values(), ids=KEYS.keys())
def test_as_many_keys_are_released_as_fit(case: tuple[Any, ...], max_bytes: int) -> None:
    """One more key would exceed the limit of cells, of values or of text; and there is always room for one."""
    size, *metrics = case
    second = SECOND_PARTITION.replace('["x"]', str([f"{i}" for i in range(size)]))
    found = ("delta = 1e-9", f"delta = 1e-9, max_bytes = {max_bytes}")
    plan = parsed(*DISCOVER, found, ('[[metric]]\nname = "departures"', second), *metrics)
    columns = len(payload_columns(plan))

    def fits(keys: int) -> bool:
        cells = keys * size
        return cells <= MAX_CELLS and cells * columns <= MAX_VALUES and keys * max_bytes <= MAX_KEY_BYTES

    assert max_keys(plan) > 0
    assert fits(max_keys(plan))
    assert not fits(max_keys(plan) + 1)


def test_a_plan_of_public_keys_has_room_for_no_other(plan_with: PlanWith) -> None:
    """Without discovery no key is released."""
    assert max_keys(plan_with(n=COUNT)) == 0
