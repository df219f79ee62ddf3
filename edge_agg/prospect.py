"""How long an agent's accounts last, and what would make them last: in words, for its operator.

Place: for `edge-agg check` and `status`; between the journal, which knows what was charged, and `privacy/outlook.py`.
Invariant: it reads and adds up; nothing is charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agg.accounts import budget_for, journal_of
from edge_agg.config import plans_of, span_of
from edge_agg.contract.grid import window_of
from edge_agg.contract.plan import plan_hash
from edge_agg.contract.release import Charge
from edge_agg.privacy.ledger import heaviest
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.outlook import advise, cheaper_epsilon, demand_of, lasts_for_ever, look, refused_until
from edge_agg.privacy.statement import account_in_words, days, loss_within, period, plural, rounded_up

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta

    from edge_agg.config import AccountTable, Config
    from edge_agg.contract.plan import Plan
    from edge_agg.journal import Journal
    from edge_agg.privacy.ledger import Budget, Entry
    from edge_agg.privacy.measurement import Measurement
    from edge_agg.privacy.outlook import Demand


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One account: what it may lose, what it has lost, what its plans will charge."""

    account: AccountTable
    budget: Budget
    entries: Sequence[Entry]
    measurements: Sequence[Measurement]
    demands: Sequence[Demand]
    """As the plans, in their order."""
    until: datetime | None
    """The end of the agent's history, where it has one: no window comes after it."""
    history: timedelta | None = None
    """How long that history is."""

    def spent(self) -> str:
        """What was spent of it around now."""
        now = min((demand.start for demand in self.demands), default=None)
        charge = Charge()
        if now is not None and self.entries:
            step = min(demand.every for demand in self.demands)
            charge = heaviest(self.budget.horizon, self.entries, around=now - step)
        lost, over = loss_within(charge, self.account.delta), f"spent in {days(self.budget.horizon)}"
        if lost is None:
            return f"account {self.account.name}: more than delta {self.account.delta:g} can express {over}"
        return f"account {self.account.name}: epsilon {rounded_up(lost.epsilon)} of {self.account.epsilon:g} {over}"

    def promise(self) -> str:
        """What it promises about one unit, whatever its plans are."""
        return account_in_words(
            self.budget,
            unit=self.account.privacy_unit,
            epsilon=self.account.epsilon,
            delta=self.account.delta,
            nodes=max((one.plan.privacy_unit.max_nodes for one in self.measurements), default=1),
            history=self.history,
        )

    def lasts(self) -> str:
        """Until when, if all its plans go on together."""
        if not self.demands:
            return "no plan charges it"
        if self._is_over:
            return f"its history, to {self.until:%-d %b %Y}, is closed: nothing more is charged"
        outlook = look(self.budget, self.entries, self.demands)
        names = [f"{period(demand.every)} releases of {demand.plan}" for demand in self.demands]
        if self.until is not None and (outlook.ends is None or outlook.ends >= self.until):
            return f"{_listed(names)} last for all of its history, to {self.until:%-d %b %Y}"
        if outlook.ends is None:
            found = "never run out" if outlook.looked_to is None else f"last beyond {outlook.looked_to:%-d %b %Y}"
            return f"{_listed(names)} {found}"
        left = []
        for demand in self.demands:
            count = max(0, -(-(outlook.ends - demand.start) // demand.every))
            left.append(f"{plural(count, f'more {period(demand.every)} release')} of {demand.plan}")
        return f"{_listed(left)}, until {outlook.ends:%-d %b %Y}"

    def remedy(self) -> str | None:
        """What would make it last for ever; None where it does."""
        if not self.demands or self._is_over:
            return None
        outlook = look(self.budget, self.entries, self.demands)
        if outlook.ends is None or (self.until is not None and outlook.ends >= self.until):
            return None
        if lasts_for_ever(self.budget, self.demands):
            last = refused_until(self.budget, self.entries, self.demands, self.until) or outlook.ends
            return (
                f"Charges from before fill it, not its plans: windows find no room up to that of {last:%-d %b %Y}. "
                f"Wait; after it they {'never run out' if self.until is None else 'last for the rest of the history'}."
            )
        advice = advise(self.budget, self.demands)
        measurement = next(one for one in self.measurements if one.plan.name == advice.plan)
        plan, ways = measurement.plan, []
        if advice.step is not None:
            field, now = (
                ("window.every", plan.window.every) if plan.period is None else ("bounds.period", plan.bounds.period)
            )
            ways.append(f"{field} = {advice.step.total_seconds() / 86_400:g}d in place of {now}")
        if advice.rho_share is not None and advice.rho_share < 1:
            epsilon = cheaper_epsilon(measurement, advice.rho_share)
            ways.append(f"epsilon {int(epsilon * 1000) / 1000:g} in place of {plan.budget.epsilon:g}")
        said = f"{advice.plan} asks for {advice.share:.0%} of it in {days(self.budget.horizon)}."
        if not ways:
            return f"{said} The other plans alone ask for too much: slow them down as well, or lower their epsilon."
        return f"{said} To last for ever: {', or '.join(ways)}."

    @property
    def _is_over(self) -> bool:
        """Whether every window of a history has closed: released, exhausted or lost, none is to come."""
        return self.until is not None and all(demand.start >= self.until for demand in self.demands)


def prospects(
    config: Config,
    plans: Sequence[Plan],
    *,
    now: datetime,
    extra: tuple[Plan, str] | None = None,
    vetoed: Collection[str] = (),
) -> list[Prospect]:
    """Every account of an agent, with what its journal has charged, if there is one.

    Args:
        config: the agent's.
        plans: its plans.
        now: the time, for a plan that has not run yet, where there is no history.
        extra: a plan that is not configured yet, and the account that would pay for it.
        vetoed: the names of plans that the device's policy forbids: they charge nothing.

    Raises:
        JournalFailed: there is a journal, and it cannot be read.
    """
    with journal_of(config) as journal:
        return [
            _prospect(config, account, plans, journal, now=now, extra=extra, vetoed=vetoed)
            for account in config.account
        ]


def _prospect(
    config: Config,
    account: AccountTable,
    plans: Sequence[Plan],
    journal: Journal | None,
    *,
    now: datetime,
    extra: tuple[Plan, str] | None,
    vetoed: Collection[str],
) -> Prospect:
    own = plans_of(config, plans, account.name)
    if extra is not None and extra[1] == account.name:
        own = [*(plan for plan in own if plan.name != extra[0].name), extra[0]]
    running = [plan for plan in own if plan.name not in vetoed]
    start, end = span_of(config.history)
    measurements = [compile_plan(plan) for plan in running]
    return Prospect(
        account=account,
        budget=budget_for(account, own, journal),
        entries=[] if journal is None else journal.entries(account.name),
        measurements=measurements,
        demands=[_demand(one, account.name, journal, start, now) for one in measurements],
        until=end,
        history=None if start is None or end is None else end - start,
    )


def _demand(
    measurement: Measurement, account: str, journal: Journal | None, history: datetime | None, now: datetime
) -> Demand:
    """What a plan will charge from its first window that is not closed; one that never ran begins now."""
    plan = measurement.plan
    hash_ = plan_hash(plan)
    closed, ran = (None, None) if journal is None else (journal.closed_before(hash_), journal.first_run(hash_))
    start = closed or history or ran or now
    paid = None
    if journal is not None and plan.period is not None:
        covered = journal.is_covered(account, hash_, window_of(start, plan.every))
        paid = window_of(start, plan.period) + plan.period - plan.every if covered else None
    return demand_of(measurement, start, paid)


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
