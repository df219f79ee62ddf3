"""Plans compiled once for all tests of a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agg.contract.plan import plan_hash
from edge_agg.privacy.measurement import compile_plan

if TYPE_CHECKING:
    from edge_agg.contract.plan import Plan, PlanHash
    from edge_agg.privacy.measurement import Measurement

_COMPILED: dict[PlanHash, Measurement] = {}


def compiled_once(plan: Plan) -> Measurement:
    """A plan compiles to the same measurement every time; each test need not search for its scales again."""
    return _COMPILED.get(plan_hash(plan)) or _COMPILED.setdefault(plan_hash(plan), compile_plan(plan))
