"""A plan against the device's policy. Pure: no clock, no disk, no data.

Place: asked by the composition root for each plan, and by `edge-agg check`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from edge_agg.contract.plan import Ratio, parse_duration, plan_hash
from edge_agg.contract.release import Charge, Mechanism, Veto
from edge_agg.contract.vectors import Vector, vectors_of
from edge_agg.policy.tables import HASH
from edge_agg.privacy.statement import loss_within, rounded_up

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.contract.plan import Plan
    from edge_agg.policy.tables import NoiseTable, Policy
    from edge_agg.privacy.ledger import Budget
    from edge_agg.privacy.measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """One rule that a plan breaks."""

    veto: Veto
    field: str
    """Of the policy."""
    problem: str
    """In words, out of plan and policy alone."""


def veto(policy: Policy, measurement: Measurement, budget: Budget) -> Veto | None:
    """The first rule that a plan breaks; None if it may run.

    Args:
        policy: the device's.
        measurement: the compiled plan.
        budget: of the account that pays for it.
    """
    first = next(objections(policy, measurement, budget), None)
    return None if first is None else first.veto


def objections(policy: Policy, measurement: Measurement, budget: Budget) -> Iterator[Objection]:
    """Every rule that a plan breaks, in the order of :class:`Veto`; arguments as for :func:`veto`."""
    plan = measurement.plan
    yield from _of_the_plan(policy, plan)
    yield from _of_the_loss(policy, measurement, budget)
    yield from _of_the_noise(policy.noise, measurement)


def _of_the_plan(policy: Policy, plan: Plan) -> Iterator[Objection]:
    allowed, columns = policy.plans.allowed, policy.columns
    name = HASH + plan_hash(plan).hex()
    if allowed is not None and plan.name not in allowed and name not in allowed:
        yield Objection(veto=Veto.PLAN, field="plans.allowed", problem=f"names neither {plan.name} nor {name}")
    for column in sorted(plan.events.columns):
        if any(fnmatchcase(column, pattern) for pattern in columns.denied):
            yield Objection(veto=Veto.COLUMN, field="columns.denied", problem=f"the plan reads {column}")
        elif columns.allowed is not None and not any(fnmatchcase(column, pattern) for pattern in columns.allowed):
            yield Objection(veto=Veto.COLUMN, field="columns.allowed", problem=f"the plan reads {column}")
    if not columns.discovered and plan.discovered is not None:
        problem = f"the plan releases keys of {plan.discovered.column} that it finds in the data"
        yield Objection(veto=Veto.COLUMN, field="columns.discovered", problem=problem)
    if not policy.plans.event_units and plan.privacy_unit.event:
        yield Objection(veto=Veto.UNIT, field="plans.event_units", problem="the plan protects single events only")
    nodes, most = plan.privacy_unit.max_nodes, policy.plans.max_nodes
    if most is not None and nodes > most:
        problem = f"the plan lets a unit appear at {nodes} sites, {most} is the most"
        yield Objection(veto=Veto.NODES, field="plans.max_nodes", problem=problem)
    least = policy.plans.min_window
    if least is not None and plan.every < parse_duration(least):
        problem = f"the plan's windows of {plan.window.every} are shorter than {least}"
        yield Objection(veto=Veto.WINDOW, field="plans.min_window", problem=problem)


def _of_the_loss(policy: Policy, measurement: Measurement, budget: Budget) -> Iterator[Objection]:
    if (limit := policy.window) is not None:
        asked = measurement.plan.budget
        # A compiled plan keeps within what it asks for, so what is asked for is enough where it is within the ceiling.
        stated = asked.epsilon <= limit.epsilon and asked.delta <= limit.delta
        epsilon = min(_epsilon(measurement.charge, limit.delta), _pure(measurement))
        if not stated and epsilon > limit.epsilon:
            problem = f"one window costs {_at(epsilon, limit.delta)}, {limit.epsilon:g} is the most"
            yield Objection(veto=Veto.EPSILON, field="window.epsilon", problem=problem)
    if (most := policy.horizon) is not None:
        # A span is covered by so many spans of the account's horizon, and each of those costs its budget at most.
        times = -(-parse_duration(most.over) // budget.horizon)
        epsilon = _epsilon(Charge(rho=budget.rho, delta=budget.delta) * times, most.delta)
        if epsilon > most.epsilon:
            problem = f"the account may lose {_at(epsilon, most.delta)} in {most.over}, {most.epsilon:g} is the most"
            yield Objection(veto=Veto.HORIZON, field="horizon.epsilon", problem=problem)


def _of_the_noise(least: NoiseTable, measurement: Measurement) -> Iterator[Objection]:
    plan = measurement.plan
    specs = {spec.name: spec for spec in measurement.specs}
    for metric in plan.metric:
        if isinstance(metric, Ratio):
            continue  # of two other metrics, with their noise
        kind = str(metric.__struct_config__.tag)
        for vector in vectors_of(plan, metric):
            spec = specs[vector.name]
            found = _deviation(spec.mechanism, spec.scale) / _reach(vector)
            yield from _too_little(least, kind, f"{metric.name}: {vector.name} has noise of {found:.3g}", found)
    if (selection := measurement.selection) is not None:
        found = _deviation(selection.mechanism, selection.scale)
        yield from _too_little(
            least, "keys", f"the units of each {selection.partition} have noise of {found:.3g}", found
        )


def _too_little(least: NoiseTable, kind: str, said: str, found: float) -> Iterator[Objection]:
    named: float | None = getattr(least, kind)
    field, wanted = ("any", least.any) if named is None else (kind, named)
    if wanted is not None and found < wanted:
        yield Objection(veto=Veto.NOISE, field=f"noise.{field}", problem=f"{said}, {wanted:g} is the least")


def _reach(vector: Vector) -> float:
    """What one row, or one unit's total, can add to one cell, in the vector's own steps."""
    if vector.clip is None:
        return 1.0
    furthest = max(abs(vector.clip.lower - vector.clip.centre), abs(vector.clip.upper - vector.clip.centre))
    return float(furthest**2 if vector.of == "squares" else furthest)


def _deviation(mechanism: Mechanism, scale: float) -> float:
    """The standard deviation: sigma, or of a Laplace distribution sqrt(2) times its scale."""
    return scale if mechanism is Mechanism.GAUSSIAN else math.sqrt(2) * scale


def _epsilon(charge: Charge, delta: float) -> float:
    """A charge at a delta; without end where discovered keys alone cost more than that delta."""
    lost = loss_within(charge, delta)
    return math.inf if lost is None else lost.epsilon


def _pure(measurement: Measurement) -> float:
    """The pure epsilon of one window, which holds at every delta; without end where the plan has none."""
    laplace = all(spec.mechanism is Mechanism.LAPLACE for spec in measurement.specs)
    return math.fsum(spec.loss for spec in measurement.specs) if laplace and measurement.selection is None else math.inf


def _at(epsilon: float, delta: float) -> str:
    text = "more than any epsilon" if math.isinf(epsilon) else f"epsilon {rounded_up(epsilon)}"
    return f"{text} at delta {delta:g}"
