"""The tables of a policy: what the owner of a device may write, as frozen types closed to fields they do not name."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from edge_agg.config import read_toml
from edge_agg.contract.plan import parse_duration
from edge_agg.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HASH = "sha256:"
"""Before a plan's hash, 64 hexadecimal digits: one version of a plan, to the letter of its meaning."""
_PLAN = re.compile(r"[a-z][a-z0-9_]{0,62}|sha256:[0-9a-f]{64}")
_DAY = timedelta(days=1)


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the policy."""


class PlansTable(_Strict, frozen=True, kw_only=True):
    """`[plans]`: which plans may run at all."""

    allowed: list[str] | None = None
    """Names, or `sha256:` and a hash; all plans if absent, none if empty."""
    max_nodes: int | None = None
    """Sites at which a unit may appear, at most."""
    min_window: str | None = None
    """The shortest window."""
    event_units: bool = True
    """Whether a plan may protect single events only."""


class ColumnsTable(_Strict, frozen=True, kw_only=True):
    """`[columns]`: what of an event may be read; in names `*` stands for anything."""

    allowed: list[str] | None = None
    denied: list[str] = []
    """Also where they are allowed."""
    discovered: bool = True
    """Whether keys that are found in the data may leave, above their threshold."""


class WindowTable(_Strict, frozen=True, kw_only=True):
    """`[window]`: what one window of one plan may cost a unit at this site."""

    epsilon: float
    delta: float


class HorizonTable(_Strict, frozen=True, kw_only=True):
    """`[horizon]`: what an account may lose in any span of that length."""

    epsilon: float
    delta: float
    over: str
    """The span; an account with a shorter horizon counts as often as it takes to cover it."""


class NoiseTable(_Strict, frozen=True, kw_only=True):
    """`[noise]`: the least standard deviation, by kind of metric.

    In multiples of what one row (of distinct units and clipped totals: one unit) can add to one cell: 1 for counts and
    bins, the largest clipped value for a sum, its distance from the centre for a mean.
    """

    any: float | None = None
    """Of every kind that is not named."""
    count: float | None = None
    distinct_units: float | None = None
    sum: float | None = None
    mean: float | None = None
    variance: float | None = None
    histogram: float | None = None
    quantiles: float | None = None
    keys: float | None = None
    """Of the units of discovered keys."""


class Policy(_Strict, frozen=True, kw_only=True):
    """A whole policy; read it with :func:`load_policy`. Without any table it limits nothing."""

    plans: PlansTable = PlansTable()
    columns: ColumnsTable = ColumnsTable()
    window: WindowTable | None = None
    horizon: HorizonTable | None = None
    noise: NoiseTable = NoiseTable()


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigInvalid: naming the file and the path of the first field that is wrong. The agent must not start without.
    """
    policy = read_toml(path, Policy)
    for field, holds, problem in _rules(policy):
        if not holds:
            raise ConfigInvalid(f"{path}: {field}: {problem}")
    return policy


def _rules(policy: Policy) -> Iterator[tuple[str, bool, str]]:
    """What must hold beyond types: the field's path, whether it holds, and what to say if not."""
    plans, columns = policy.plans, policy.columns
    for i, name in enumerate(plans.allowed or ()):
        known = _PLAN.fullmatch(name) is not None
        yield f"$.plans.allowed[{i}]", known, "must be a plan's name, or sha256: and 64 hexadecimal digits"
    yield "$.plans.max_nodes", plans.max_nodes is None or plans.max_nodes >= 1, "must be 1 or more"
    shortest = plans.min_window
    yield "$.plans.min_window", shortest is None or _is_duration(shortest, timedelta(0)), "must be a duration as 1h"
    for name, patterns in (("allowed", columns.allowed or []), ("denied", columns.denied)):
        yield f"$.columns.{name}", all(patterns), "holds an empty name"
    for table, ceiling in (("window", policy.window), ("horizon", policy.horizon)):
        if ceiling is not None:
            yield f"$.{table}.epsilon", 0 < ceiling.epsilon <= 1000, "must lie in 0 .. 1000"
            yield f"$.{table}.delta", 0 < ceiling.delta < 1, "must lie between 0 and 1"
    if policy.horizon is not None:
        yield "$.horizon.over", _is_duration(policy.horizon.over, _DAY), "must lie in 1d .. 36525d"
    for kind in policy.noise.__struct_fields__:
        least = getattr(policy.noise, kind)
        yield f"$.noise.{kind}", least is None or 0 < least < math.inf, "must be a positive number"


def _is_duration(text: str, least: timedelta) -> bool:
    try:
        return least <= parse_duration(text) <= 36_525 * _DAY
    except (ValueError, OverflowError):
        return False
