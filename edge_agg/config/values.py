"""What a config's tables come to: durations, sizes, spans, and what an account pays for."""

from __future__ import annotations

import math
import re
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.contract.address import is_loopback
from edge_agg.contract.plan import Plan, parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import timedelta

    from edge_agg.config.tables import AccountTable, Config, HistoryTable

UNIX = "unix:"
"""Before the path of a socket."""
_SIZE = re.compile(r"([0-9]{1,12}) ?(B|KiB|MiB|GiB|TiB)")
_POWER = {"B": 0, "KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}


def bytes_of(text: str) -> int:
    """Read a size such as `512MiB`.

    Raises:
        ValueError: it is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a size is a whole number and one of B, KiB, MiB, GiB, TiB")
    return int(match[1]) << _POWER[match[2]]


def is_local(address: str) -> bool:
    """Whether nobody but this machine can reach it: loopback, or a Unix socket."""
    return address.startswith(UNIX) or is_loopback(address)


def horizon_of(account: AccountTable) -> timedelta:
    """The account's horizon."""
    return parse_duration(account.horizon)


def plans_of(config: Config, plans: Sequence[Plan], account: str) -> list[Plan]:
    """The plans that an account pays for; `plans` as :func:`load` returned them."""
    return [plan for entry, plan in zip(config.plan, plans, strict=True) if entry.account == account]


def discovery_of(account: AccountTable, plans: Iterable[Plan], charged: Fraction = Fraction(0)) -> float:
    """The part of the account's delta that is kept for key discovery.

    Args:
        account: whose delta.
        plans: that it pays for.
        charged: what discovery has taken of delta in one horizon: no less is kept, unless it is written how much.
    """
    if account.discovery is not None:
        return account.discovery
    kept = account.delta / 2 if any(plan.discovered is not None for plan in plans) else 0.0
    if not kept < charged < account.delta:
        return kept
    nearest = float(charged)
    return nearest if nearest >= charged else math.nextafter(nearest, 1.0)


def span_of(history: HistoryTable | None) -> tuple[datetime | None, datetime | None]:
    """The public span as moments in UTC; (None, None) without one."""
    if history is None:
        return None, None
    return _midnight(history.start), _midnight(history.end)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
