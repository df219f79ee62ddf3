"""What a config must hold beyond its types: each rule with the path of the field that it is about."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

from edge_agg.config.tables import FileTable, HttpTable, MqttTable, OtlpTable, StdinTable, TailTable
from edge_agg.config.values import bytes_of, horizon_of, is_local
from edge_agg.contract.address import is_address, is_loopback
from edge_agg.contract.plan import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.config.tables import AccountTable, CollectorTable, Config, SourceTable
    from edge_agg.contract.plan import Plan

    Rule = tuple[str, bool, str]

_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MIB = 1 << 20
_BAD_NAME = "letters, digits and _.- only, 63 at most"
LEAST_MEMORY = 192 * _MIB
"""An idle agent takes about 130 MB."""
LEAST_DISK = 16 * _MIB


def rules(config: Config, plans: list[Plan]) -> Iterator[Rule]:
    """Every rule: the field's path, whether it holds, and what to say if not."""
    accounts = {account.name: account for account in config.account}
    yield "$.agent.name", _NAME.fullmatch(config.agent.name) is not None, _BAD_NAME
    yield "$.agent.tenant", _NAME.fullmatch(config.agent.tenant) is not None, _BAD_NAME
    yield "$.agent.stop_s", 0 < config.agent.stop_s <= 3600, "must lie in 0 .. 3600 seconds"
    yield from _collector_rules(config.collector)
    for name in ("deadline_s", "retry_first_s", "retry_limit_s"):
        yield f"$.collector.{name}", 0 < getattr(config.collector, name) <= 3600, "must lie in 0 .. 3600 seconds"
    yield "$.collector.batch", 1 <= config.collector.batch <= 64, "must lie in 1 .. 64"
    yield "$.account", len(accounts) == len(config.account), "two accounts have one name"
    yield "$.source", len(config.source) > 0, "an agent has at least one source"
    yield "$.plan", len(plans) > 0, "an agent has at least one plan"
    yield "$.plan", len({plan.name for plan in plans}) == len(plans), "two plans have one name"
    if config.history is not None:
        yield "$.history", config.history.start < config.history.end, "must start before it ends"
    for i, account in enumerate(config.account):
        yield from _account_rules(f"$.account[{i}]", account)
    for i, source in enumerate(config.source):
        yield from _source_rules(f"$.source[{i}]", source)
    stdin = sum(isinstance(source, StdinTable) for source in config.source)
    yield "$.source", stdin <= 1, "there is one standard input"
    listens = [source.listen for source in config.source if isinstance(source, HttpTable | OtlpTable)]
    yield "$.source", len(set(listens)) == len(listens), "two sources listen at one address"
    yield from _plan_rules(config, plans)
    yield from _limit_rules(config)
    if _are_good(config.agent.hold, config.disk.spool_age):
        longest = max((plan.every + plan.lateness for plan in plans), default=_DAY)
        needed = longest + parse_duration(config.agent.hold)
        keeps = parse_duration(config.disk.spool_age) >= needed
        yield "$.disk.spool_age", keeps, "must outlast the longest window, its lateness and $.agent.hold"


def _plan_rules(config: Config, plans: list[Plan]) -> Iterator[Rule]:
    accounts = {account.name: account for account in config.account}
    again = any(isinstance(source, FileTable | TailTable) for source in config.source)
    types: dict[str, str] = {}
    for i, (entry, plan) in enumerate(zip(config.plan, plans, strict=True)):
        named = accounts.get(entry.account)
        yield f"$.plan[{i}].account", named is not None, "names no account"
        paid = named is None or plan.discovered is None or named.discovery != 0
        yield f"$.plan[{i}].account", paid, "keeps no delta for discovery, and the plan discovers keys"
        same = named is not None and named.privacy_unit == plan.privacy_unit.label
        yield f"$.plan[{i}].account", same, "protects another privacy unit than the plan"
        agree = all(types.setdefault(name, kind) == kind for name, kind in plan.events.columns.items())
        yield f"$.plan[{i}]", agree, "reads a column as another type than an earlier plan"
        assigns = plan.window.late == "assign"
        yield f"$.plan[{i}]", not (assigns and again), "assigns late rows, which files that are read again cannot do"


def _collector_rules(table: CollectorTable) -> Iterator[Rule]:
    given = [file for file in (table.ca_file, table.cert_file, table.key_file) if file is not None]
    yield "$.collector", len(given) in {0, 3}, "ca_file, cert_file and key_file stand together"
    safe = is_loopback(table.url) or (bool(given) and is_address(table.url))
    yield "$.collector.url", safe, "without TLS only a loopback address is taken; with it, host:port"


def _account_rules(path: str, account: AccountTable) -> Iterator[Rule]:
    try:
        horizon: timedelta | None = horizon_of(account)
    except (ValueError, OverflowError):
        horizon = None
    yield f"{path}.name", _NAME.fullmatch(account.name) is not None, _BAD_NAME
    yield f"{path}.epsilon", 0 < account.epsilon <= 1000, "must lie in 0 .. 1000"
    yield f"{path}.delta", 0 < account.delta < 1, "must lie between 0 and 1"
    yield f"{path}.discovery", 0 <= (account.discovery or 0) < account.delta, "must be a part of delta"
    yield f"{path}.horizon", horizon is not None and _DAY <= horizon <= 36_525 * _DAY, "must lie in 1d .. 36525d"


def _source_rules(path: str, source: SourceTable) -> Iterator[Rule]:
    match source:
        case HttpTable():
            yield f"{path}.listen", is_local(source.listen), "events are taken on loopback or a unix: socket only"
            yield f"{path}.max_body", _is_size(source.max_body, 1 << 10, 1 << 30), "must lie in 1KiB .. 1GiB"
        case OtlpTable():
            yield f"{path}.listen", is_local(source.listen), "events are taken on loopback or a unix: socket only"
            yield f"{path}.signals", len(source.signals) > 0, "names no signal"
        case MqttTable():
            secret = source.url.startswith("mqtts://")
            address = source.url.removeprefix("mqtts://").removeprefix("mqtt://")
            known = source.url != address and ":" in address
            yield f"{path}.url", known, "must read mqtt://host:port or mqtts://host:port"
            yield f"{path}.url", secret or is_loopback(address), "without TLS only a loopback broker is asked"
            yield f"{path}.topics", len(source.topics) > 0 and all(source.topics), "names no topic"
            yield f"{path}.client_id", _NAME.fullmatch(source.client_id) is not None, _BAD_NAME
        case _:
            return


def _limit_rules(config: Config) -> Iterator[Rule]:
    yield "$.memory.limit", _is_size(config.memory.limit, LEAST_MEMORY, 1 << 50), "must be 192MiB or more"
    yield "$.disk.limit", _is_size(config.disk.limit, LEAST_DISK, 1 << 50), "must be 16MiB or more"
    yield "$.disk.spool_age", _is_between(config.disk.spool_age, _HOUR, 36_525 * _DAY), "must lie in 1h .. 36525d"
    yield "$.agent.hold", _is_between(config.agent.hold, timedelta(0), 7 * _DAY), "must lie in 0s .. 7d"
    leaves = _is_between(config.collector.leave_every, timedelta(0), _HOUR)
    yield "$.collector.leave_every", leaves, "must lie in 0s .. 1h"
    yield "$.clock.max_jump", _is_between(config.clock.max_jump, timedelta(seconds=1), _DAY), "must lie in 1s .. 1d"
    yield "$.clock.settle", _is_between(config.clock.settle, _MINUTE, 30 * _DAY), "must lie in 1m .. 30d"


def _is_size(text: str, least: int, most: int) -> bool:
    try:
        return least <= bytes_of(text) <= most
    except ValueError:
        return False


def _is_between(text: str, least: timedelta, most: timedelta) -> bool:
    try:
        return least <= parse_duration(text) <= most
    except (ValueError, OverflowError):
        return False


def _are_good(*durations: str) -> bool:
    return all(_is_between(text, timedelta(0), 36_525 * _DAY) for text in durations)
