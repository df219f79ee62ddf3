"""What an agent's accounts may still lose, and which charges are theirs: the config and the journal together.

Place: between the config and the journal, which do not know each other; asked when an agent is built, and by those who
say how long its accounts last or go over its books.
Invariants: what was charged once is remembered whatever the config says now; nothing is charged here.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agg.config import discovery_of, horizon_of
from edge_agg.contract.plan import plan_hash
from edge_agg.errors import ConfigInvalid
from edge_agg.journal import Journal
from edge_agg.journal.file import NAME
from edge_agg.privacy.statement import budget_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from edge_agg.config import AccountTable, Config
    from edge_agg.contract.plan import Plan
    from edge_agg.privacy.ledger import Budget


def budget_for(table: AccountTable, plans: Iterable[Plan], journal: Journal | None = None) -> Budget:
    """An account's budget.

    Args:
        table: the account.
        plans: that it pays for.
        journal: what was charged. The delta that key discovery has taken stays set apart, also once no plan discovers
            keys any more, and rho gets the rest. Without a journal, what an account begins with.
    """
    return _budget(table, discovery_of(table, plans, spent_on_keys(table, journal)))


def spent_on_keys(table: AccountTable, journal: Journal | None) -> Fraction:
    """The most delta that key discovery was charged for in a horizon of an account."""
    return Fraction(0) if journal is None else journal.book(table.name).heaviest(horizon_of(table)).delta


@contextmanager
def journal_of(config: Config) -> Iterator[Journal | None]:
    """An agent's journal to look at, if there is one.

    Raises:
        JournalFailed: there is one, and it cannot be read.
    """
    folder = Path(config.agent.state)
    if not (folder / NAME).exists():
        yield None
        return
    with closing(Journal.read(folder, config.agent.name)) as journal:
        yield journal


def check_charged(config: Config, plans: Sequence[Plan], journal: Journal) -> None:
    """See that every charge of a journal still counts, under the account that was charged.

    A new name would begin a new budget for the same people: an account that was charged stays in the config, without
    plans once it is retired, and pays for the plans that it paid for.

    Raises:
        ConfigInvalid: an account is missing, or a plan has another than before; put it back.
    """
    charged = journal.charged()
    names = {table.name for table in config.account}
    for account in sorted({account for account, _ in charged} - names):
        raise ConfigInvalid(
            f"$.account: the journal has charges of account {account}, which the config does not name: "
            "an account that was charged stays, without plans if it is retired"
        )
    for i, (entry, plan) in enumerate(zip(config.plan, plans, strict=True)):
        payers = sorted(account for account, hash_ in charged if hash_ == plan_hash(plan))
        if payers and entry.account not in payers:  # of several, from before this was looked at, each has its charges
            raise ConfigInvalid(f"$.plan[{i}].account: the journal has charged this plan to account {payers[-1]}")


def promised(config: Config) -> dict[str, Callable[[Fraction], Budget]]:
    """By account: what it promises to keep to, given the most delta that key discovery was charged for in a horizon.

    An agent also keeps delta for keys that its plans may yet discover. Books are judged by what was charged.
    """

    def of(table: AccountTable) -> Callable[[Fraction], Budget]:
        return lambda charged: _budget(table, discovery_of(table, (), charged))

    return {table.name: of(table) for table in config.account}


def _budget(table: AccountTable, discovery: float) -> Budget:
    return budget_of(epsilon=table.epsilon, delta=table.delta, horizon=horizon_of(table), discovery=discovery)
