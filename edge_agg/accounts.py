"""What an agent's accounts may still lose, and which charges are theirs: the config and the journal together.

Place: between the config and the journal, which do not know each other; asked when an agent is built, and by those who
say how long its accounts last or go over its books.
Invariants: what was charged once is remembered whatever the config says now; nothing is charged here.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.config import discovery_of, horizon_of
from edge_agg.privacy.statement import budget_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_agg.config import AccountTable, Config
    from edge_agg.contract.plan import Plan
    from edge_agg.journal import Journal
    from edge_agg.privacy.ledger import Budget


def budget_for(table: AccountTable, plans: Iterable[Plan], journal: Journal | None = None) -> Budget:
    """An account's budget.

    Args:
        table: the account.
        plans: that it pays for.
        journal: what was charged. The delta that key discovery has taken stays set apart, also once no plan discovers
            keys any more, and rho gets the rest. Without a journal, what an account begins with.
    """
    charged = Fraction(0) if journal is None else journal.book(table.name).heaviest(horizon_of(table)).delta
    return _budget(table, discovery_of(table, plans, charged))


def promised(config: Config) -> dict[str, Callable[[Fraction], Budget]]:
    """By account: what it promises to keep to, given the most delta that key discovery was charged for in a horizon.

    An agent also keeps delta for keys that its plans may yet discover. Books are judged by what was charged.
    """

    def of(table: AccountTable) -> Callable[[Fraction], Budget]:
        return lambda charged: _budget(table, discovery_of(table, (), charged))

    return {table.name: of(table) for table in config.account}


def _budget(table: AccountTable, discovery: float) -> Budget:
    return budget_of(epsilon=table.epsilon, delta=table.delta, horizon=horizon_of(table), discovery=discovery)
