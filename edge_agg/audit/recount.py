"""A journal gone over again: charges, releases, and every account against its budget.

Place: the top of the audit, for `edge-agg ledger verify`; below it only `page.py`, which shows what was found.
Invariants: it changes nothing; one snapshot; every difference is said, and one is enough for the books to be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.audit.chain import check_chain
from edge_agg.audit.charges import Difference, amount, check_charges, compile_again, entries_of, moment, read_charges
from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Charge
from edge_agg.privacy.ledger import Book, Entry, heaviest, total
from edge_agg.privacy.statement import days

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import timedelta

    from edge_agg.audit.books import Books
    from edge_agg.audit.chain import Chain
    from edge_agg.audit.charges import Charged
    from edge_agg.privacy.ledger import Budget
    from edge_agg.privacy.measurement import Measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCount:
    """What one plan did to one account."""

    name: str
    hash: bytes
    measurement: Measurement | None
    """None where its text could not be read."""
    statuses: Mapping[str, int]
    charges: int
    redrawn: int
    """Charges that are a window's second attempt."""
    in_flight: int
    """Windows that are charged and not yet sealed."""
    charged: Charge


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountCount:
    """What an account was charged."""

    name: str
    budget: Budget | None
    """None where the config names no such account."""
    charged: Charge
    """Since the journal was created."""
    heaviest: Charge
    """In the heaviest span of the horizon, each part for itself."""
    with_discovery: Charge
    """The same, of the spans that key discovery was charged in."""
    alone: Budget | None
    """What it would promise had no key been discovered; `budget` is what it promises as it is."""
    plans: Sequence[PlanCount]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recount:
    """What a journal comes to."""

    agent: str
    incarnation: str
    releases: int
    head: bytes
    """The hash of the last release."""
    accounts: Sequence[AccountCount]
    uncharged: Mapping[str, Mapping[str, int]]
    """Plans that no account was ever charged for (vetoed, say), by name and hash: their windows by status."""
    differences: Sequence[Difference]


def recount(books: Books, promised: Mapping[str, Callable[[Fraction], Budget]]) -> Recount:
    """Go over a journal.

    Args:
        books: its open snapshot.
        promised: by account, as the agent's config says now: its budget, given the delta that discovery took.
    """
    differences: list[Difference] = []
    measurements: dict[bytes, Measurement] = {}
    for row in books.plans:
        try:
            measurements[row.hash] = compile_again(row)
        except ValueError as error:
            differences.append(Difference(where=f"plan {row.name} {row.hash.hex()[:12]}", problem=str(error)))
    charges = read_charges(books.charges, differences)
    check_charges(charges, measurements, differences)
    chain = check_chain(books, charges, measurements, differences)
    differences += _left_behind(charges, chain)
    names = sorted({charged.row.account for charged in charges} | set(promised))
    accounts = [
        _account(name, promised.get(name), books=books, charges=charges, chain=chain, measurements=measurements)
        for name in names
    ]
    for account in accounts:
        differences += _overrun(account)
    return Recount(
        agent=books.agent,
        incarnation=books.incarnation,
        releases=chain.releases,
        head=chain.head,
        accounts=accounts,
        uncharged=_uncharged(charges, chain),
        differences=differences,
    )


def _uncharged(charges: Sequence[Charged], chain: Chain) -> dict[str, Mapping[str, int]]:
    charged = {one.row.plan_hash for one in charges}
    return {
        f"{chain.names.get(plan_hash, '?')} {plan_hash.hex()[:12]}": statuses
        for plan_hash, statuses in chain.statuses.items()
        if plan_hash not in charged
    }


def _left_behind(charges: Sequence[Charged], chain: Chain) -> list[Difference]:
    """A window that was charged is sealed before a later one of its plan is; only the last one may be under way."""
    windows = {(charged.row.plan_hash, charged.row.window_us) for charged in charges}
    return [
        Difference(
            where=f"charge of window {moment(window_us)}, plan {plan_hash.hex()[:12]}",
            problem="was made, and its window was passed over without a release",
        )
        for plan_hash, window_us in sorted(windows - chain.sealed)
        if window_us < chain.last.get(plan_hash, window_us)
    ]


def _account(
    name: str,
    promised: Callable[[Fraction], Budget] | None,
    *,
    books: Books,
    charges: Sequence[Charged],
    chain: Chain,
    measurements: Mapping[bytes, Measurement],
) -> AccountCount:
    entries = entries_of(charges, name)
    worst, discovering = total(entries), Charge()
    alone = None if promised is None else promised(Fraction(0))
    if alone is not None and entries:
        first, last = min(entry.window_start for entry in entries), max(entry.last for entry in entries)
        worst = heaviest(alone.horizon, entries, around=first, through=last)
        discovering = _with_discovery(entries, alone.horizon)
    texts = {row.hash: row.name for row in books.plans}
    hashes = dict.fromkeys(charged.row.plan_hash for charged in charges if charged.row.account == name)
    plans = []
    for plan_hash in hashes:
        own = [charged for charged in charges if (charged.row.plan_hash, charged.row.account) == (plan_hash, name)]
        open_ = {charged.row.window_us for charged in own if (plan_hash, charged.row.window_us) not in chain.sealed}
        plans.append(
            PlanCount(
                name=texts.get(plan_hash, "?"),
                hash=plan_hash,
                measurement=measurements.get(plan_hash),
                statuses=chain.statuses[plan_hash],
                charges=len(own),
                redrawn=sum(charged.row.attempt > 1 for charged in own),
                in_flight=len(open_),
                charged=sum((charged.charge for charged in own), Charge()),
            )
        )
    return AccountCount(
        name=name,
        budget=None if promised is None else promised(worst.delta),
        charged=total(entries),
        heaviest=worst,
        with_discovery=discovering,
        alone=alone,
        plans=plans,
    )


def _with_discovery(entries: Sequence[Entry], horizon: timedelta) -> Charge:
    """The heaviest spans, each part for itself, of those that hold a charge for key discovery."""
    book = Book(Charge(), lambda: ((to_us(entry.window_start), to_us(entry.last), entry.charge) for entry in entries))
    found = [
        book.heaviest_with(horizon, Entry(window_start=entry.window_start, charge=Charge(), through=entry.last))
        for entry in entries
        if entry.charge.delta
    ]
    none = Fraction(0)
    return Charge(
        rho=max((one.rho for one in found), default=none), delta=max((one.delta for one in found), default=none)
    )


def _overrun(account: AccountCount) -> list[Difference]:
    where, budget, alone = f"account {account.name}", account.budget, account.alone
    if budget is None or alone is None:
        problem = "was charged, and the config names no such account: its charges count against nobody's budget"
        return [Difference(where=where, problem=problem)]
    spans = [(account.heaviest.rho, Fraction(0), alone), (account.with_discovery.rho, account.heaviest.delta, budget)]
    return [
        Difference(
            where=where,
            problem=f"lost {amount(Charge(rho=rho, delta=delta))} in {days(allowed.horizon)}, "
            f"and its budget is {amount(Charge(rho=allowed.rho, delta=allowed.delta))}",
        )
        for rho, delta, allowed in spans
        if rho > allowed.rho or delta > allowed.delta
    ][:1]
