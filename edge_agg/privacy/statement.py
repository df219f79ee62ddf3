"""The guarantee in numbers and words: what a plan costs a unit at one site, a person, in a period and over a year.

Place: shown by `edge-agg check`, `status` and `ledger verify`, before and while a budget is spent; it spends nothing.
Invariants: every epsilon is OpenDP's conversion of a composed rho, rounded up; the delta of discovered keys is a part
of the delta shown beside it; no loss is quoted for one window alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.contract.release import Charge, Mechanism
from edge_agg.privacy import noise
from edge_agg.privacy.ledger import Budget

if TYPE_CHECKING:
    from edge_agg.contract.plan import Plan
    from edge_agg.privacy.measurement import Measurement

_PERIODS = {timedelta(hours=1): "hourly", timedelta(days=1): "daily", timedelta(days=7): "weekly"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A loss under one of privacy.md's statements."""

    rho: Fraction
    epsilon: float
    """At `delta`, rounded up."""
    delta: float
    """All of it: what discovered keys cost, and what the conversion of rho takes."""
    pure: float | None
    """The pure epsilon, where the mechanism has one."""

    def __str__(self) -> str:
        text = f"epsilon {rounded_up(self.epsilon)} at delta {self.delta:g}"
        return text if self.pure is None else f"epsilon {rounded_up(self.pure)} (pure); {text}"

    @property
    def guess(self) -> float:
        """How often somebody is right at most who guesses whether the unit is in the data, at even odds beforehand.

        Source: Kairouz, Oh, Viswanath 2015, the trade-off region's corner: (e**epsilon + delta) / (1 + e**epsilon).
        """
        epsilon = self.epsilon if self.pure is None else min(self.epsilon, self.pure)
        return min(1.0, (1 + self.delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a plan promises, composed."""

    window_site: Loss
    """One window at one site."""
    window_person: Loss
    """One window, for a person seen at up to `max_nodes` sites."""
    period_person: Loss | None
    """One period, for that person, where the plan bounds the windows that a unit counts in."""
    horizon_site: Loss
    """Every window of the account's horizon, at one site."""
    horizon_person: Loss
    """Every window of the account's horizon, for a person seen at up to `max_nodes` sites."""
    windows: int
    """Windows that were counted for the horizon: those that fit it, or those that its budget admits."""


def budget_of(*, epsilon: float, delta: float, horizon: timedelta, discovery: float = 0.0) -> Budget:
    """An account's budget: rho by the conversion at what discovery leaves of delta, and discovery's part of delta."""
    return Budget(rho=noise.rho_within(epsilon, delta - discovery), delta=Fraction(discovery), horizon=horizon)


def loss(charge: Charge, delta: float, *, pure: float | None = None) -> Loss:
    """A charge, shown as epsilon at a delta.

    Args:
        charge: what was or would be lost.
        delta: at which to show it; what the charge has for discovered keys is a part of it, and must be less.
        pure: the pure epsilon, where the mechanism has one.
    """
    left = delta - float(charge.delta)
    return Loss(rho=charge.rho, epsilon=noise.epsilon_of(charge.rho, left), delta=delta, pure=pure)


def charges_within(measurement: Measurement, horizon: timedelta) -> int:
    """How many of the plan's charges (a window's, or a period's) one span of the horizon's length can hold at most.

    A charge covers its windows' starts, from a first to a last; a half-open span of length H meets those whose first
    lies in an interval of length H + (last - first). Such intervals hold one more than fit them end to end.
    """
    plan = measurement.plan
    step = plan.period or plan.every
    return -(-(horizon + step - plan.every) // step)


def state(measurement: Measurement, budget: Budget, delta: float) -> Statement:
    """Compose a plan's loss.

    Args:
        measurement: the compiled plan.
        budget: its account's.
        delta: the account's, at which the composed epsilons are shown. Where discovered keys cost a person more than
            the account keeps for them at one site, the composed statements show a larger delta instead.
    """
    plan, charge = measurement.plan, measurement.charge
    nodes, counted = plan.privacy_unit.max_nodes, plan.bounds.max_windows or 1
    rooms = [charges_within(measurement, budget.horizon), math.floor(budget.rho / (charge.rho * counted))]
    if charge.delta and budget.delta:
        rooms.append(math.floor(budget.delta / (charge.delta * counted)))
    windows = min(rooms) * counted
    pure = None
    if measurement.specs[0].mechanism is Mechanism.LAPLACE and measurement.selection is None:
        pure = math.fsum(spec.loss for spec in measurement.specs)
    kept = delta - float(budget.delta)

    def composed(times: int) -> Loss:
        return loss(charge * times, kept + float(charge.delta) * times)

    return Statement(
        window_site=loss(charge, plan.budget.delta or kept + float(charge.delta), pure=pure),
        window_person=loss(
            charge * nodes, kept + float(charge.delta) * nodes, pure=None if pure is None else nodes * pure
        ),
        period_person=None if plan.bounds.max_windows is None else composed(nodes * counted),
        horizon_site=composed(windows),
        horizon_person=composed(nodes * windows),
        windows=windows,
    )


def promises(said: Statement, plan: Plan, horizon: timedelta) -> list[tuple[str, Loss]]:
    """The statement, as lines of what somebody sees and what that tells at most about one unit."""
    nodes, days = plan.privacy_unit.max_nodes, f"{horizon.days} days"
    lines = [("one window, this site", said.window_site)]
    if nodes > 1:
        lines.append((f"one window, up to {nodes} sites", said.window_person))
    if said.period_person is not None:
        lines.append((f"{plan.bounds.period}, in which it counts {plan.bounds.max_windows} times", said.period_person))
    lines.append((f"{days} ({said.windows} windows), this site", said.horizon_site))
    if nodes > 1:
        lines.append((f"{days} ({said.windows} windows), up to {nodes} sites", said.horizon_person))
    return lines


def in_words(said: Statement, plan: Plan) -> str:
    """The promise of one window as a sentence, and what weakens it."""
    unit = plan.privacy_unit.label
    whose = "one event" if plan.privacy_unit.event else f"one {unit}"
    text = (
        f"Whoever sees everything that leaves this site in one window learns at most {said.window_site} about {whose}."
    )
    if plan.privacy_unit.event:
        text += (
            " This hides one event, not whose it was: a weaker promise. Who has many events is hidden that much less."
        )
    if plan.discovered is not None:
        text += " The delta includes the chance that a discovered key shows which only one unit has."
    return text


def rounded_up(epsilon: float) -> str:
    """An epsilon as people read it: three decimals, rounded up."""
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}"


def period(every: timedelta) -> str:
    """A window's length as people say it: `weekly`, `daily`, `hourly`, or its hours."""
    return _PERIODS.get(every, f"{every.total_seconds() / 3600:g}-hour")
