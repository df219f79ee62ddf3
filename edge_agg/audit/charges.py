"""Each charge against its plan: the text is parsed again, compiled again, and must come to the same loss, exactly.

Place: between `books.py` and `recount.py`.
Invariants: pure; a difference is said and the next row is looked at; nothing is mended.

What a plan's charges must be, window by window: each attempt costs one window's loss. Where the plan bounds the windows
that a unit counts in, the first attempt at a window that no earlier charge covers pays for as many windows as a unit
can count in and covers the rest of its period; a first attempt at a covered window costs nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import msgspec

from edge_agg.contract import rules
from edge_agg.contract.codec import from_us, to_us
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.grid import window_of
from edge_agg.contract.plan import Plan, plan_hash
from edge_agg.contract.release import Charge
from edge_agg.errors import PlanRefused
from edge_agg.privacy.ledger import Entry
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import MAX_ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_agg.audit.books import ChargeRow, PlanRow
    from edge_agg.privacy.measurement import Measurement

_NEVER = "at no time"
_RATIONAL = re.compile(r"[0-9]{1,60}(/[1-9][0-9]{0,59})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something in the books that does not follow."""

    where: str
    """The row it was found in."""
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """A charge, read."""

    row: ChargeRow
    charge: Charge


def compile_again(row: PlanRow) -> Measurement:
    """The plan as its stored text says.

    Raises:
        ValueError: saying why the text is not that of a plan of this hash and name that could have run.
    """
    try:
        plan = msgspec.json.decode(row.text.encode(), type=Plan)
        rules.check(plan)
    except (msgspec.DecodeError, PlanInvalid, RecursionError):
        raise ValueError("its text is not a plan") from None
    if plan_hash(plan) != row.hash:
        raise ValueError("its text has another hash: not the plan that ran")
    if plan.name != row.name:
        raise ValueError("its text has another name")
    try:
        return compile_plan(plan)
    except PlanRefused:
        raise ValueError("its text is a plan that no noise fits") from None


def read_charges(rows: Sequence[ChargeRow], differences: list[Difference]) -> list[Charged]:
    """Every charge that can be read; what cannot is a difference."""
    read = []
    for row in rows:
        if not (_RATIONAL.fullmatch(row.rho) and _RATIONAL.fullmatch(row.delta)):
            differences.append(Difference(where=where(row), problem="is no amount"))
        elif _NEVER in {moment(row.window_us), moment(row.window_us if row.through_us is None else row.through_us)}:
            differences.append(Difference(where=where(row), problem="is for no moment that a clock shows"))
        else:
            read.append(Charged(row=row, charge=Charge(rho=Fraction(row.rho), delta=Fraction(row.delta))))
    return read


def check_charges(
    charges: Sequence[Charged], measurements: Mapping[bytes, Measurement], differences: list[Difference]
) -> None:
    """Compare every charge with what its plan costs."""
    by_plan: dict[bytes, list[Charged]] = defaultdict(list)
    for charged in charges:
        by_plan[charged.row.plan_hash].append(charged)
    for hash_, of_plan in by_plan.items():
        accounts = {charged.row.account for charged in of_plan}
        if len(accounts) > 1:
            problem = f"is charged to several accounts: {', '.join(sorted(accounts))}"
            differences.append(Difference(where=f"plan {hash_.hex()[:12]}", problem=problem))
        if hash_ not in measurements:
            problem = "was charged, and there is no text of it to recompute from"
            differences.append(Difference(where=f"plan {hash_.hex()[:12]}", problem=problem))
            continue
        ordered = sorted(of_plan, key=lambda charged: (charged.row.window_us, charged.row.attempt))
        differences += _plan_differences(measurements[hash_], ordered)


def entries_of(charges: Sequence[Charged], account: str) -> list[Entry]:
    """The ledger's entries of an account."""
    return [
        Entry(
            window_start=from_us(charged.row.window_us),
            charge=charged.charge,
            through=None if charged.row.through_us is None else from_us(charged.row.through_us),
        )
        for charged in charges
        if charged.row.account == account
    ]


def where(row: ChargeRow) -> str:
    """How a charge is called."""
    return f"charge of window {moment(row.window_us)}, plan {row.plan_hash.hex()[:12]}, attempt {row.attempt}"


def moment(us: int) -> str:
    """A moment as people read it."""
    try:
        return f"{from_us(us):%Y-%m-%d %H:%M}"
    except OverflowError:
        return _NEVER


def _plan_differences(measurement: Measurement, ordered: Sequence[Charged]) -> list[Difference]:
    found: list[Difference] = []
    attempts: dict[int, int] = defaultdict(int)
    covered_to: int | None = None
    to_come: int | None = None
    window: int | None = None
    for charged in ordered:
        row = charged.row
        if row.window_us != window:
            window, covered_to = row.window_us, _later(covered_to, to_come)
        attempts[row.window_us] += 1
        if row.attempt != attempts[row.window_us]:
            found.append(Difference(where=where(row), problem=f"should be attempt {attempts[row.window_us]}"))
        if attempts[row.window_us] > MAX_ATTEMPTS:
            problem = f"is one attempt more than the {MAX_ATTEMPTS} that are allowed"
            found.append(Difference(where=where(row), problem=problem))
        charge, through = _due(measurement, row.window_us, attempts[row.window_us], covered_to)
        if charged.charge != charge:
            found.append(
                Difference(where=where(row), problem=f"is {amount(charged.charge)}, its plan says {amount(charge)}")
            )
        if row.through_us != through:
            found.append(Difference(where=where(row), problem="covers other windows than its plan says"))
        to_come = _later(to_come, row.through_us)
        if window_of(from_us(row.window_us), measurement.plan.every) != from_us(row.window_us):
            found.append(Difference(where=where(row), problem="is for a moment at which no window begins"))
    return found


def _due(measurement: Measurement, window_us: int, attempt: int, covered_to: int | None) -> tuple[Charge, int | None]:
    """What an attempt costs, and the last window that it covers."""
    plan, charge = measurement.plan, measurement.charge
    windows = plan.bounds.max_windows
    if plan.period is None or windows is None or attempt > 1:
        return charge, None
    if covered_to is not None and covered_to >= window_us:
        return Charge(), None
    last = window_of(from_us(window_us), plan.period) + plan.period - plan.every
    return charge * windows, to_us(last)


def amount(charge: Charge) -> str:
    """A charge as people compare it: rounded, but with its exact value."""
    text = f"rho {float(charge.rho):.6g} ({charge.rho})"
    return f"{text}, delta {float(charge.delta):.3g} ({charge.delta})" if charge.delta else text


def _later(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)
