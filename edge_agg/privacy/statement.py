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

from edge_agg.contract.grammar import EVENT
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
        epsilon, delta = self.shown
        return f"epsilon {epsilon} (pure: at delta 0)" if delta == "0" else f"epsilon {epsilon} at delta {delta}"

    @property
    def shown(self) -> tuple[str, str]:
        """Epsilon and delta as people read them, rounded up: the pure epsilon, at delta 0, where that says more."""
        if self.pure is not None and self.pure <= self.epsilon:
            return rounded_up(self.pure), "0"
        return rounded_up(self.epsilon), delta_up(self.delta)

    @property
    def guess(self) -> float:
        """How often somebody is right at most who guesses whether the unit is in the data, at even odds beforehand.

        Source: Kairouz, Oh, Viswanath 2015, the trade-off region's corner: (e**epsilon + delta) / (1 + e**epsilon).
        """
        known = [(self.epsilon, self.delta)] + ([] if self.pure is None else [(self.pure, 0.0)])
        return min(1.0, *((1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon)) for epsilon, delta in known))


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a plan promises, composed."""

    window_site: Loss
    """One window at one site."""
    window_person: Loss
    """One window, for a person seen at up to `max_nodes` sites."""
    period_person: Loss | None
    """One period, for a person seen at the same `max_nodes` sites all along, where the plan bounds the windows that a
    unit counts in."""
    horizon_site: Loss
    """Every window of the account's horizon, at one site."""
    horizon_person: Loss
    """Every window of the account's horizon, for a person seen at up to `max_nodes` sites in each."""
    same_sites: bool
    """Whether that holds only where the sites stay the same: each counts a unit in fewer windows than there are, for
    the plan's bound or the budget's, and does not know in which others do."""
    windows: int
    """Windows that a unit counts in over the horizon: those that fit it, or those that its budget admits."""
    charges: int
    """Charges that pay for them: each for a window, or for a period."""


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


def loss_within(charge: Charge, delta: float) -> Loss | None:
    """A charge, shown as epsilon at a delta; None where discovered keys have taken all of that delta, or more."""
    if not charge.delta < delta or not delta - float(charge.delta) > 0:
        return None
    shown = loss(charge, delta)
    return None if math.isinf(shown.epsilon) else shown


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
        whole = None if pure is None else times * pure
        return loss(charge * times, kept + float(charge.delta) * times, pure=whole)

    return Statement(
        window_site=loss(charge, plan.budget.delta or kept + float(charge.delta), pure=pure),
        window_person=composed(nodes),
        period_person=None if plan.bounds.max_windows is None else composed(nodes * counted),
        horizon_site=composed(windows),
        horizon_person=composed(nodes * windows),
        same_sites=plan.bounds.max_windows is not None or min(rooms) < rooms[0],
        windows=windows,
        charges=min(rooms),
    )


def promises(said: Statement, plan: Plan, horizon: timedelta) -> list[tuple[str, Loss]]:
    """The statement, as lines of what somebody sees and what that tells at most about one unit."""
    nodes, span = plan.privacy_unit.max_nodes, f"{days(horizon)} ({_counted(said, plan)})"
    sites = "this site" if nodes == 1 else f"up to {nodes} sites"
    all_along = f"the same {nodes} sites" if nodes > 1 and said.same_sites else sites
    lines = [("one window, this site", said.window_site)]
    if nodes > 1:
        lines.append((f"one window, {sites}", said.window_person))
    if said.period_person is not None:
        lines.append((f"{plan.bounds.period} (counts in {plan.bounds.max_windows}), {all_along}", said.period_person))
    lines.append((f"{span}, this site", said.horizon_site))
    if nodes > 1:
        lines.append((f"{span}, {all_along}", said.horizon_person))
    return lines


def in_words(said: Statement, plan: Plan, horizon: timedelta) -> str:
    """The promise in sentences: of a window, of a person, of a period, of a horizon; and what weakens it."""
    unit, nodes = plan.privacy_unit.label, plan.privacy_unit.max_nodes
    whose = "one event" if plan.privacy_unit.event else f"one {unit}"
    text = (
        f"Whoever sees everything that leaves this site in one window learns at most {said.window_site} about {whose}."
    )
    if nodes > 1:
        text += f" Seen at up to {nodes} sites, {whose} loses at most {said.window_person} in a window."
    if said.period_person is not None:
        text += (
            f" O{whose[1:]} counts in at most {plural(plan.bounds.max_windows or 1, 'window')} of {plan.bounds.period} "
            f"at a site, and loses at most {said.period_person} in all of them, "
            f"{'there' if nodes == 1 else f'seen at the same {nodes} sites all along'}."
        )
    text += (
        f" About {whose if plan.privacy_unit.event else f'what {whose} did'} in any {days(horizon)} this plan's "
        f"releases ({_counted(said, plan)}) tell at most {said.horizon_site}"
    )
    if nodes > 1:
        text += f"; those of {'the same ' * said.same_sites}{nodes} sites together, at most {said.horizon_person}"
    text += "."
    if said.same_sites:
        text += " Every site counts for itself: who is seen at others in other windows loses more in all."
    if plan.privacy_unit.event:
        text += (
            " This hides one event, not whose it was: a weaker promise. Who has many events is hidden that much less."
        )
    if plan.discovered is not None:
        text += " The delta includes the chance that a discovered key shows which only one unit has."
    if said.window_site.pure is not None:
        text += (
            " The account pays for pure noise by zCDP: one window counts in it like epsilon "
            f"{rounded_up(said.window_site.epsilon)} at delta {delta_up(said.window_site.delta)}."
        )
    return text


def account_in_words(
    budget: Budget, *, unit: str, epsilon: float, delta: float, nodes: int, history: timedelta | None = None
) -> str:
    """What an account promises, whatever its plans are: no charge is taken that would break it.

    Args:
        budget: the account's.
        unit: what one of its privacy units is called.
        epsilon: as written in the config.
        delta: as written in the config.
        nodes: sites that one unit may appear at, each with an account like this one.
        history: the length of the agent's, where it has one; what leaves may then be about all of it.
    """

    def times(count: int) -> Loss:
        lost = Charge(rho=budget.rho, delta=budget.delta) * count
        return loss(lost, delta - float(budget.delta) + float(lost.delta))

    whose = "one event" if unit == EVENT else f"what one {unit} did"
    text = (
        f"All its plans together, and every window drawn again after a crash: about {whose} in any "
        f"{days(budget.horizon)}, all that ever leaves this site tells at most epsilon {epsilon:g} at delta {delta:g}"
    )
    if nodes > 1:
        text += f"; all that leaves {nodes} sites with such an account, at most {times(nodes)}"
    if history is not None and history > budget.horizon:
        text += f"; about all {days(history)} of the history, this site at most {times(-(-history // budget.horizon))}"
    return f"{text}."


def _counted(said: Statement, plan: Plan) -> str:
    """How many windows a horizon was taken to hold."""
    if said.period_person is None:
        return plural(said.windows, "window")
    return f"{plural(said.charges, 'period')} of {plan.bounds.period}"


def days(span: timedelta) -> str:
    """A horizon as people say it; it is a day at least, and what it has beyond whole days is left out of no sum."""
    whole = span / timedelta(days=1)
    return "day" if whole == 1 else f"{whole:g} days"


def plural(count: int, noun: str) -> str:
    """So many of something: `1 window`, `2 windows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def delta_up(delta: float) -> str:
    """A delta as people read it: three digits, rounded up."""
    shown = f"{delta:.3g}"
    if float(shown) < delta:
        shown = f"{delta + 10.0 ** (math.floor(math.log10(delta)) - 2) / 2:.3g}"
    return shown


def rounded_up(epsilon: float) -> str:
    """An epsilon as people read it: three decimals, rounded up from how the number is written: 1.1 is 1.100."""
    thousandths = math.ceil(Fraction(repr(float(epsilon))) * 1000)
    return f"{thousandths // 1000}.{thousandths % 1000:03}"


def period(every: timedelta) -> str:
    """A window's length as people say it: `weekly`, `daily`, `hourly`, or its hours."""
    return _PERIODS.get(every, f"{every.total_seconds() / 3600:g}-hour")
