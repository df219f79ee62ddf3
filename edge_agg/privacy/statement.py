"""The guarantee in numbers and words: what a plan costs a unit at one site, a person, and over a year.

Place: shown by `edge-agg check` and `status` before and while a budget is spent; nothing here spends any.
Invariants: every epsilon is OpenDP's conversion of a composed rho, rounded up; no loss is quoted for one window alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.contract.plan import Count, DistinctUnits, Mean, Sum
from edge_agg.contract.release import Charge, Mechanism
from edge_agg.contract.vectors import vectors_of
from edge_agg.privacy import noise
from edge_agg.privacy.ledger import Budget

if TYPE_CHECKING:
    from edge_agg.contract.plan import Metric
    from edge_agg.privacy.measurement import Measurement

TYPICAL_ROWS = 1_000
"""Rows a cell is taken to hold at one site, where a mean's error is predicted."""
_PERIODS = {timedelta(hours=1): "hourly", timedelta(days=1): "daily", timedelta(days=7): "weekly"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss under one of privacy.md's statements."""

    rho: Fraction
    epsilon: float
    """At `delta`, rounded up."""
    delta: float
    pure: float | None
    """The pure epsilon, where the mechanism has one."""

    def __str__(self) -> str:
        text = f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g}"
        return text if self.pure is None else f"epsilon {rounded_up(self.pure)} (pure); {text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a plan promises, composed."""

    window_site: Loss
    """One window at one site."""
    window_person: Loss
    """One window, for a person seen at up to `max_nodes` sites."""
    horizon_person: Loss
    """Every window of the account's horizon, for that person."""
    windows: int
    """Windows that were counted for the horizon: those that fit it, or those that its budget admits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How far off one metric's cell will be from noise alone: half the width of its 95 % interval."""

    metric: str
    one_site: float
    all_sites: float
    """For the sum (or the mean) over all sites."""
    note: str
    """What the figure takes for granted."""


def budget_of(*, epsilon: float, delta: float, horizon: timedelta) -> Budget:
    """An account's budget in rho. All of delta goes to the conversion: no plan discovers keys yet."""
    return Budget(rho=noise.rho_within(epsilon, delta), delta=Fraction(0), horizon=horizon)


def loss(charge: Charge, delta: float, *, pure: float | None = None) -> Loss:
    """A charge, shown as epsilon at a delta."""
    return Loss(rho=charge.rho, epsilon=noise.epsilon_of(charge.rho, delta), delta=delta, pure=pure)


def state(measurement: Measurement, budget: Budget, delta: float) -> Statement:
    """Compose a plan's loss.

    Args:
        measurement: the compiled plan.
        budget: its account's.
        delta: the account's, at which the composed epsilons are shown.
    """
    plan, charge = measurement.plan, measurement.charge
    # A span of the horizon's length can hold one window more than fit it end to end, but never more than its budget.
    fit = -(-budget.horizon // plan.every)
    windows = min(fit, math.floor(budget.rho / charge.rho))
    nodes = plan.privacy_unit.max_nodes
    pure = sum(spec.loss for spec in measurement.specs) if measurement.specs[0].mechanism is Mechanism.LAPLACE else None
    return Statement(
        window_site=loss(charge, plan.budget.delta or delta, pure=pure),
        window_person=loss(_times(charge, nodes), delta, pure=None if pure is None else nodes * pure),
        horizon_person=loss(_times(charge, nodes * windows), delta),
        windows=windows,
    )


def predict(measurement: Measurement, sites: int) -> list[Prediction]:
    """The error that noise alone will cause, per metric and cell, at one site and over all of them."""
    return [_predict(measurement, metric, sites) for metric in measurement.plan.metric]


def rounded_up(epsilon: float) -> str:
    """An epsilon as people read it: three decimals, rounded up."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def period(every: timedelta) -> str:
    """A window's length as people say it: `weekly`, `daily`, `hourly`, or its hours."""
    return _PERIODS.get(every, f"{every.total_seconds() / 3600:g}-hour")


def _times(charge: Charge, n: int) -> Charge:
    return Charge(rho=charge.rho * n, delta=charge.delta * n)


def _predict(measurement: Measurement, metric: Metric, sites: int) -> Prediction:
    deviation = {spec.name: _deviation(spec.mechanism, spec.scale) for spec in measurement.specs}
    names = [vector.name for vector in vectors_of(measurement.plan, metric)]
    root, note = math.sqrt(sites), "noise only"
    match metric:
        case Count() | DistinctUnits():
            one = 1.96 * deviation[names[0]]
            return Prediction(metric=metric.name, one_site=one, all_sites=one * root, note=note)
        case Sum():
            one = 1.96 * deviation[names[0]] * metric.resolution
            return Prediction(metric=metric.name, one_site=one, all_sites=one * root, note=note)
        case Mean():
            # Worst case: a mean at the edge of its range feels the noise of the count at half the range.
            half = (metric.upper - metric.lower) / 2
            spread = math.hypot(deviation[names[0]] * metric.resolution, deviation[names[1]] * half)
            one = 1.96 * spread / TYPICAL_ROWS
            note = f"at {TYPICAL_ROWS:,} rows a cell and site, mean at the edge of its range"
            return Prediction(metric=metric.name, one_site=one, all_sites=one / root, note=note)


def _deviation(mechanism: Mechanism, scale: float) -> float:
    """The standard deviation of the noise; the discrete Gaussian's is no more than its scale."""
    if mechanism is Mechanism.GAUSSIAN:
        return scale
    p = math.exp(-1 / scale)
    return math.sqrt(2 * p) / (1 - p)
