"""The agent's config: tuning and places, never meaning. Strict: an unknown or wrong field is named by its path.

Relative paths are taken from the config file's folder.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_agg.contract.address import is_address, is_loopback
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import Plan, parse_duration, parse_plan
from edge_agg.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_DAY = timedelta(days=1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the config."""


class AgentTable(_Strict, frozen=True, kw_only=True):
    """`[agent]`."""

    name: str
    """The node's name at the collector."""
    state: str
    """The folder of the journal; only this agent may use it."""
    tenant: str = "default"


class CollectorTable(_Strict, frozen=True, kw_only=True):
    """`[collector]`."""

    url: str
    """`host:port`; without the three files below only loopback."""
    ca_file: str | None = None
    """Who may vouch for the collector, in PEM."""
    cert_file: str | None = None
    """The agent's certificate, as `edge-agg enroll` wrote it."""
    key_file: str | None = None
    """The certificate's key."""
    batch: int = 20
    """Releases in one call."""
    deadline_s: float = 20.0
    """How long one call may take."""
    retry_first_s: float = 0.5
    """The first back-off."""
    retry_limit_s: float = 60.0
    """The longest back-off."""


class AccountTable(_Strict, frozen=True, kw_only=True):
    """`[[account]]`: one population's budget."""

    name: str
    privacy_unit: str
    """The column that identifies the population's units in every plan of the account."""
    epsilon: float
    delta: float
    horizon: str
    discovery: float | None = None
    """The part of delta that key discovery may use in a horizon; half of it if absent and a plan discovers keys."""


class SourceTable(_Strict, frozen=True, kw_only=True):
    """`[[source]]`."""

    kind: Literal["file"]
    path: str
    """A glob pattern of parquet, ndjson, csv or arrow files."""


class PlanTable(_Strict, frozen=True, kw_only=True):
    """`[[plan]]`."""

    path: str
    account: str


class HistoryTable(_Strict, frozen=True, kw_only=True):
    """`[history]`: the public span of a backfill, so that which windows exist does not depend on the data."""

    start: date
    end: date
    """The first day after it."""


class Config(_Strict, frozen=True, kw_only=True):
    """A whole agent config; build it with :func:`load`."""

    agent: AgentTable
    collector: CollectorTable
    account: list[AccountTable]
    source: list[SourceTable]
    plan: list[PlanTable]
    history: HistoryTable | None = None


def load(path: Path) -> tuple[Config, list[Plan]]:
    """Read a config and the plans it names.

    Returns:
        The config with absolute paths, and its plans in the order of its `[[plan]]` tables.

    Raises:
        ConfigInvalid: naming the file and the path of the first field that is wrong.
    """
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=Config)
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read ({error.strerror})") from None
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at `")
        raise ConfigInvalid(f"{path}: {field.rstrip('`') or '$'}: {problem}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: not TOML: {error}") from None
    home = path.resolve().parent
    config = msgspec.structs.replace(
        config,
        agent=msgspec.structs.replace(config.agent, state=str(home / config.agent.state)),
        collector=_located(config.collector, home),
        source=[msgspec.structs.replace(source, path=str(home / source.path)) for source in config.source],
        plan=[msgspec.structs.replace(plan, path=str(home / plan.path)) for plan in config.plan],
    )
    plans = [load_plan(home / entry.path) for entry in config.plan]
    for field, holds, problem in _rules(config, plans):
        if not holds:
            raise ConfigInvalid(f"{path}: {field}: {problem}")
    return config, plans


def _located(table: CollectorTable, home: Path) -> CollectorTable:
    """With absolute paths; a link stays one, because what it points to may be exchanged."""
    ca, cert, key = (file and str(home / file) for file in (table.ca_file, table.cert_file, table.key_file))
    return msgspec.structs.replace(table, ca_file=ca, cert_file=cert, key_file=key)


def load_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ConfigInvalid: naming the file and the path of the first field that is wrong.
    """
    try:
        return parse_plan(_text(path), read=lambda name: _text(path.parent / name))
    except PlanInvalid as error:
        raise ConfigInvalid(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigInvalid(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{path}: not UTF-8") from None
    except ValueError:
        raise ConfigInvalid(f"{path}: cannot be read (no name of a file)") from None


def horizon_of(account: AccountTable) -> timedelta:
    """The account's horizon."""
    return parse_duration(account.horizon)


def plans_of(config: Config, plans: Sequence[Plan], account: str) -> list[Plan]:
    """The plans that an account pays for; `plans` as :func:`load` returned them."""
    return [plan for entry, plan in zip(config.plan, plans, strict=True) if entry.account == account]


def discovery_of(account: AccountTable, plans: Iterable[Plan]) -> float:
    """The part of the account's delta that is kept for key discovery, given the plans that it pays for."""
    if account.discovery is not None:
        return account.discovery
    return account.delta / 2 if any(plan.discovered is not None for plan in plans) else 0.0


def span_of(history: HistoryTable | None) -> tuple[datetime | None, datetime | None]:
    """The public span as moments in UTC; (None, None) without one."""
    if history is None:
        return None, None
    return _midnight(history.start), _midnight(history.end)


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _rules(config: Config, plans: list[Plan]) -> list[tuple[str, bool, str]]:
    accounts = {account.name: account for account in config.account}
    rules = [
        ("$.agent.name", _NAME.fullmatch(config.agent.name) is not None, "letters, digits and _.- only, 63 at most"),
        (
            "$.agent.tenant",
            _NAME.fullmatch(config.agent.tenant) is not None,
            "letters, digits and _.- only, 63 at most",
        ),
        *_collector_rules(config.collector),
        *(
            (f"$.collector.{name}", 0 < getattr(config.collector, name) <= 3600, "must lie in 0 .. 3600 seconds")
            for name in ("deadline_s", "retry_first_s", "retry_limit_s")
        ),
        ("$.collector.batch", 1 <= config.collector.batch <= 64, "must lie in 1 .. 64"),
        ("$.account", len(accounts) == len(config.account), "two accounts have one name"),
        ("$.source", len(config.source) > 0, "an agent has at least one source"),
        ("$.plan", len(plans) > 0, "an agent has at least one plan"),
        ("$.plan", len({plan.name for plan in plans}) == len(plans), "two plans have one name"),
    ]
    if config.history is not None:
        rules.append(("$.history", config.history.start < config.history.end, "must start before it ends"))
    for i, account in enumerate(config.account):
        rules += _account_rules(f"$.account[{i}]", account)
    for i, (entry, plan) in enumerate(zip(config.plan, plans, strict=True)):
        named = accounts.get(entry.account)
        rules.append((f"$.plan[{i}].account", named is not None, "names no account"))
        paid = named is None or plan.discovered is None or named.discovery != 0
        rules.append((f"$.plan[{i}].account", paid, "keeps no delta for discovery, and the plan discovers keys"))
        same = named is not None and named.privacy_unit == plan.privacy_unit.label
        rules.append((f"$.plan[{i}].account", same, "protects another privacy unit than the plan"))
    types: dict[str, str] = {}
    for i, plan in enumerate(plans):
        agree = all(types.setdefault(name, kind) == kind for name, kind in plan.events.columns.items())
        rules.append((f"$.plan[{i}]", agree, "reads a column as another type than an earlier plan"))
    return rules


def _collector_rules(table: CollectorTable) -> list[tuple[str, bool, str]]:
    given = [file for file in (table.ca_file, table.cert_file, table.key_file) if file is not None]
    return [
        ("$.collector", len(given) in {0, 3}, "ca_file, cert_file and key_file stand together"),
        (
            "$.collector.url",
            is_loopback(table.url) or (bool(given) and is_address(table.url)),
            "without TLS only a loopback address is taken; with it, host:port",
        ),
    ]


def _account_rules(path: str, account: AccountTable) -> list[tuple[str, bool, str]]:
    try:
        horizon: timedelta | None = horizon_of(account)
    except (ValueError, OverflowError):
        horizon = None
    return [
        (f"{path}.name", _NAME.fullmatch(account.name) is not None, "letters, digits and _.- only, 63 at most"),
        (f"{path}.epsilon", 0 < account.epsilon <= 1000, "must lie in 0 .. 1000"),
        (f"{path}.delta", 0 < account.delta < 1, "must lie between 0 and 1"),
        (f"{path}.discovery", 0 <= (account.discovery or 0) < account.delta, "must be a part of delta"),
        (
            f"{path}.horizon",
            horizon is not None and _DAY <= horizon <= 36_525 * _DAY,
            "must lie in 1d .. 36525d",
        ),
    ]
