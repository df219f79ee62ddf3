"""The bounds and the epsilon with the least error: more rows kept mean less bias, and more noise.

Place: above `study.py`; `page.py` shows what is found here.
Invariants: every candidate is compiled and bounded as an agent would do it; one sample and plan give one choice.
Chosen from a sample, bounds become public with the plan: they are the operator's knowledge from then on.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import MAX_CELLS, Mean, Sum, Variance
from edge_agg.contract.rules import check
from edge_agg.errors import PlanRefused
from edge_agg.preview.sample import keep, read_sample
from edge_agg.preview.study import average, numbers_of
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.outlook import demand_of, lasts_for_ever
from edge_agg.privacy.predict import Figure, assumed, figures, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa

    from edge_agg.contract.plan import Metric, Plan
    from edge_agg.preview.sample import Sample
    from edge_agg.preview.study import Study
    from edge_agg.privacy.ledger import Budget
    from edge_agg.privacy.measurement import Measurement
    from edge_agg.privacy.outlook import Demand
    from edge_agg.privacy.predict import Truth

_SHARES = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)
"""Quantiles of a unit's rows and cells that are tried as bounds."""
_TAILS = (0.0, 0.001, 0.01, 0.05)
"""Shares of the values that are tried to lie beyond a clip bound, at either end."""
_EPSILONS = [float(f"{0.01 * 1.02**i:.3g}") for i in range(443)]
"""0.01 to 62, each 2 % above the last."""
_HOPELESS = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """One number's error at the fleet's size, and what it is made of."""

    figure: Figure
    """With its noise."""
    truth: float
    """Without bounds; with the assumption alone, what was assumed."""
    bias: float
    """What clipping and bounding add; never smaller for a larger fleet."""

    @property
    def error(self) -> float:
        """Root mean square."""
        return math.hypot(self.figure.error, self.bias)

    @property
    def relative(self) -> float:
        """As a share of the truth."""
        return self.error / abs(self.truth) if self.truth else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan with other bounds, and the errors that it would have."""

    measurement: Measurement
    cell: Truth
    """What an average cell holds under its bounds."""
    totals: Sequence[Total]

    @property
    def plan(self) -> Plan:
        """The plan."""
        return self.measurement.plan

    @property
    def score(self) -> float:
        """The mean logarithm of the errors: no unit of measure weighs more than another."""
        return sum(math.log(min(max(total.error, 1e-12), _HOPELESS)) for total in self.totals) / len(self.totals)


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """A standard error that an analyst could live with, for one cell and window over the fleet."""

    metric: str | None
    """Every metric if None."""
    error: float
    relative: bool
    """Whether the error is a share of the value."""

    def met(self, totals: Iterable[Total]) -> bool:
        """Whether every number of the metric is that good."""
        return all(
            (total.relative if self.relative else total.error) <= self.error
            for total in totals
            if self.metric in {None, total.figure.metric}
        )


def weigh(measurement: Measurement, found: Study, sample: Sample, sites: int) -> Candidate:
    """The errors that a plan's bounds would have on a sample, which was read as that plan's."""
    cell = average(keep(measurement, measurement.plan, sample), found.loose.places)
    return Candidate(
        measurement=measurement, cell=cell, totals=_totals(measurement, cell, found.true_values(sites), sites)
    )


def take_for_granted(measurement: Measurement, rows: int, sites: int) -> Candidate:
    """The errors of a plan where nothing is known of the data: noise alone."""
    cell = assumed(measurement.plan, rows)
    return Candidate(measurement=measurement, cell=cell, totals=_totals(measurement, cell, None, sites))


def by_bounds(measurement: Measurement, found: Study, sites: int) -> list[Candidate]:
    """The plan under its own bounds on a unit's rows, which stands first, and under those that the sample suggests."""
    own, *others = _rows_and_cells(measurement.plan, found)
    compiled = [measurement, *(one for plan in others if (one := _compiled(plan)) is not None)]
    assert own.bounds == measurement.plan.bounds, "the plan's own stand first"
    return [weigh(one, found, found.sample, sites) for one in compiled]


def with_clips(best: Candidate, found: Study, batches: Sequence[pa.RecordBatch], sites: int) -> Candidate:
    """The best of a candidate's clip bounds and of those that the sample suggests, one metric after another."""
    for i, metric in enumerate(best.plan.metric):
        for clipped in _clips(metric, batches):
            changed = [clipped if j == i else other for j, other in enumerate(best.plan.metric)]
            one = _compiled(msgspec.structs.replace(best.plan, metric=changed))
            if one is not None:
                other = weigh(one, found, read_sample(one.plan, batches), sites)
                best = min(best, other, key=lambda candidate: candidate.score)
    return best


def cheapest(want: Want, candidates: Sequence[Candidate], sites: int) -> Candidate | None:
    """The candidate that gets what is wanted at the least epsilon, with that epsilon; None if none does at any."""
    best, least = None, len(_EPSILONS)
    for candidate in candidates:
        # A candidate that does not do it right below the best so far need not be searched: more is never worse.
        if _meets(want, candidate, least - 1, sites=sites):
            least = bisect_left(range(least - 1), True, key=partial(_meets, want, candidate, sites=sites))
            best = _at(candidate, _EPSILONS[least], sites)
        if least == 0:
            break
    return best


def affordable(measurement: Measurement, budget: Budget, others: Sequence[Demand]) -> float | None:
    """The largest epsilon a window at which an account lasts for ever beside its other plans; None if there is none."""
    start = datetime(1970, 1, 5, tzinfo=UTC)  # whether it lasts for ever does not depend on when it starts

    def too_much(epsilon: float) -> bool:
        one = _compiled(with_epsilon(measurement.plan, epsilon))
        return one is not None and not lasts_for_ever(budget, [*others, demand_of(one, start)])

    i = bisect_left(_EPSILONS, True, key=too_much)  # the value looked for
    return _EPSILONS[i - 1] if i else None


def with_epsilon(plan: Plan, epsilon: float) -> Plan:
    """The plan at another epsilon a window."""
    return msgspec.structs.replace(plan, budget=msgspec.structs.replace(plan.budget, epsilon=epsilon))


def _meets(want: Want, candidate: Candidate, i: int, *, sites: int) -> bool:
    at = _at(candidate, _EPSILONS[i], sites)
    return at is not None and want.met(at.totals)


def _at(candidate: Candidate, epsilon: float, sites: int) -> Candidate | None:
    """The candidate at another epsilon; its bias stays. None where no noise fits it."""
    measurement = _compiled(with_epsilon(candidate.plan, epsilon))
    if measurement is None:
        return None
    pairs = zip(figures(measurement, candidate.cell, copies=sites), candidate.totals, strict=True)
    totals = [Total(figure=figure, truth=old.truth, bias=old.bias) for figure, old in pairs]
    return Candidate(measurement=measurement, cell=candidate.cell, totals=totals)


def _totals(measurement: Measurement, cell: Truth, truth: Mapping[str, float] | None, sites: int) -> list[Total]:
    bounded = values(measurement.plan, {name: total * sites for name, total in cell.items()})
    truth = truth or bounded
    return [
        Total(figure=figure, truth=truth[figure.label], bias=bounded[figure.label] - truth[figure.label])
        for figure in figures(measurement, cell, copies=sites)
    ]


def _rows_and_cells(plan: Plan, found: Study) -> list[Plan]:
    rows = {int(n) for n in np.quantile(found.loose.rows_of_units, _SHARES, method="higher")}
    cells = {int(n) for n in np.quantile(found.loose.cells_of_units, _SHARES, method="higher")}
    pairs = sorted((min(l0, MAX_CELLS), min(li, 2**20)) for l0 in cells for li in rows)
    tried = [
        msgspec.structs.replace(plan.bounds, max_partitions=l0, max_rows_per_partition=li)
        for l0, li in dict.fromkeys(pairs)
    ]
    return [plan, *(msgspec.structs.replace(plan, bounds=bounds) for bounds in tried if bounds != plan.bounds)]


def _clips(metric: Metric, batches: Sequence[pa.RecordBatch]) -> Iterator[Metric]:
    """The metric with other clip bounds, on its own grid. A bound at 0 with no value below it stays: it means a lot."""
    if not isinstance(metric, Sum | Mean | Variance) or (isinstance(metric, Sum) and metric.clip == "unit"):
        return
    numbers = numbers_of(metric.column, batches) / metric.resolution
    if not len(numbers):
        return
    lowers = {math.floor(n) for n in np.quantile(numbers, _TAILS)}
    if metric.lower == 0 and min(lowers) >= 0:
        lowers = {0}
    uppers = {math.ceil(n) for n in np.quantile(numbers, [1 - tail for tail in _TAILS])}
    for lower, upper in itertools.product(sorted(lowers), sorted(uppers)):
        if lower < upper:
            step = metric.resolution
            yield msgspec.structs.replace(metric, lower=_on_grid(lower, step), upper=_on_grid(upper, step))


def _on_grid(steps: int, resolution: float) -> float:
    """A bound as a person would write it."""
    return float(f"{steps * resolution:.12g}")


def _compiled(plan: Plan) -> Measurement | None:
    """The plan, calibrated; None if a rule or the budget speaks against it."""
    try:
        check(plan)
        return compile_plan(plan)
    except (PlanInvalid, PlanRefused):
        return None
