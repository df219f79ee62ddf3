"""How long the data of each table is kept: what the config's entries say to whoever registered its plan.

Place: beside the registry; upkeep asks before it retires anything.
Invariant: nobody's data goes earlier than they asked for, though tenants who registered the same plan share a table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

    from cloud_collector.plans import PlanRegistry, RegisteredPlan
    from edge_agg.contract.plan import PlanHash


@dataclass(frozen=True, slots=True)
class Retention:
    """What was asked for, of a registry's plans.

    An entry is about its tenant's plans of a name, in all versions. Where wishes for a table differ the longest holds,
    and a tenant whose plans of that name have no entry wishes for ever.
    """

    registry: PlanRegistry
    """Whose plans there are; looked up each time, for plans are registered meanwhile."""
    _wishes: dict[tuple[str, str], set[timedelta | None]] = field(default_factory=dict)

    def wish(self, plan: RegisteredPlan, keep: timedelta | None) -> None:
        """Note what an entry says of a tenant's plan; for ever if None."""
        self._wishes.setdefault((plan.tenant, plan.plan.name), set()).add(keep)

    def of(self, plan_hash: PlanHash) -> timedelta | None:
        """How long the data of a plan's table is kept; for ever if None."""
        holders = {(one.tenant, one.plan.name) for one in self.registry.list() if one.hash == plan_hash}
        wishes = [keep for holder in holders for keep in self._wishes.get(holder, {None})]
        return None if None in wishes else max((keep for keep in wishes if keep is not None), default=None)
