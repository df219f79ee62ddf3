"""Plans: what may be asked of the edge, read from TOML, and known by their hash.

Place: a plan is parsed where it is written, where it is run and where its releases land; all three agree by its hash.
Invariants: an unknown field is refused with its path; the hash covers meaning only (comments, order of tables, spelling
of numbers and durations, the description, defaults that are spelled out, the order of what a filter's `in` lists, and
whether keys were listed, ranged or read from a file do not count).
"""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NewType, get_args

import msgspec

from edge_agg.contract import row_rules, rules
from edge_agg.contract.derivation import ColumnType, Derivation, Filter, Key
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.grammar import (
    EVENT,
    MAX_BINS,
    MAX_CELLS,
    MAX_METRICS,
    MAX_UNITS,
    MAX_VALUES,
    OTHER,
    Bounds,
    Budget,
    Count,
    Discover,
    DistinctUnits,
    Events,
    Histogram,
    Identity,
    Mean,
    Metric,
    Partition,
    Plan,
    PrivacyUnit,
    Quantiles,
    Range,
    Ratio,
    Sum,
    Variance,
    Window,
    parse_duration,
)
from edge_agg.contract.rules import RESERVED

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agg.contract.derivation import Value

__all__ = [
    "EVENT",
    "MAX_BINS",
    "MAX_CELLS",
    "MAX_METRICS",
    "MAX_UNITS",
    "MAX_VALUES",
    "OTHER",
    "RESERVED",
    "Bounds",
    "Budget",
    "ColumnType",
    "Count",
    "Derivation",
    "Discover",
    "DistinctUnits",
    "Events",
    "Filter",
    "Histogram",
    "Identity",
    "Key",
    "Mean",
    "Metric",
    "Partition",
    "Plan",
    "PlanHash",
    "PrivacyUnit",
    "Quantiles",
    "Range",
    "Ratio",
    "Sum",
    "Variance",
    "Window",
    "parse_duration",
    "parse_plan",
    "plan_hash",
    "self_contained",
]

PlanHash = NewType("PlanHash", bytes)
_HOURS: list[Key] = list(range(24))
_WEEKDAYS: list[Key] = list(range(1, 8))
_MICROSECOND = timedelta(microseconds=1)
_KINDS = [kind.__struct_config__.tag for kind in get_args(Metric)]
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")


def parse_plan(text: str, *, read: Callable[[str], str] | None = None) -> Plan:
    """Read a plan from TOML.

    Args:
        text: the plan.
        read: gives the text of a file of keys by the name that the plan calls it; without it, such a plan is refused.

    Returns:
        A plan whose every rule holds, with all public keys written out in `Partition.values`.

    Raises:
        PlanInvalid: naming the path of the first field that is wrong; fix it there.
    """
    try:
        plan = msgspec.toml.decode(text.encode(), type=Plan)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `")
        path = place.rstrip("`") or "$"
        known = f": a kind is one of {', '.join(_KINDS)}" if path.endswith(".kind") else ""
        raise PlanInvalid(path, problem + known) from None
    except msgspec.DecodeError as error:
        raise PlanInvalid("$", f"not TOML: {error}") from None
    except (ValueError, RecursionError):
        raise PlanInvalid("$", "not TOML that a plan could be") from None
    rules.check_sources(plan)
    row_rules.check(plan)
    written = [_written_out(plan, i, partition, read) for i, partition in enumerate(plan.partition)]
    plan = msgspec.structs.replace(plan, partition=written)
    rules.check(plan)
    return msgspec.structs.replace(
        plan,
        partition=[_plain_partition(partition) for partition in plan.partition],
        metric=[_plain_metric(metric) for metric in plan.metric],
        derive=[_plain_derivation(derivation) for derivation in plan.derive],
        filter=[_plain_filter(each, plan.columns.get(each.column)) for each in plan.filter],
    )


def plan_hash(plan: Plan) -> PlanHash:
    """Sha256 over the meaning of a parsed plan, 32 bytes.

    Guarantee: equal only where the meaning is equal; and equal where no more differs than the module's head names.
    """
    meaning: dict[str, Any] = _canonical(msgspec.to_builtins(plan))
    del meaning["plan"]["description"]
    meaning["window"] = {"every_us": plan.every // _MICROSECOND, "lateness_us": plan.lateness // _MICROSECOND}
    if plan.window.late != "drop":
        meaning["window"]["late"] = plan.window.late
    for table in ("derive", "filter"):  # younger than the first plans, whose hashes stay
        if not meaning[table]:
            del meaning[table]
    if plan.period is not None:
        meaning["bounds"]["period"] = plan.period // _MICROSECOND
    canonical = msgspec.json.encode(meaning, order="sorted")
    return PlanHash(hashlib.sha256(b"edge_agg.plan.v1\n" + canonical).digest())


def self_contained(text: str, read: Callable[[str], str]) -> str:
    """The plan's text, with every file of keys written out as `values`: what can travel alone.

    Raises:
        PlanInvalid: as :func:`parse_plan`.
    """
    plan = parse_plan(text, read=read)
    raw: dict[str, Any] = msgspec.toml.decode(text.encode())
    tables = raw.get("partition", [])
    if not any("file" in table for table in tables):
        return text
    for table, partition in zip(tables, plan.partition, strict=True):
        if table.pop("file", None) is not None:
            table["values"] = partition.public
    return msgspec.toml.encode(raw).decode()


def _written_out(plan: Plan, i: int, partition: Partition, read: Callable[[str], str] | None) -> Partition:
    """The partition with its public keys in `values` as well, however they were given."""
    if partition.range is not None:
        rule = partition.range
        return msgspec.structs.replace(partition, values=list(range(rule.start, rule.stop, rule.step)))
    if partition.file is not None:
        path = f"$.partition[{i}].file"
        rules.require(path, read is not None, "no file can be read here: list the keys in values")
        assert read is not None, "just required"
        integers = plan.columns.get(partition.column) == "integer"
        return msgspec.structs.replace(partition, values=_lines(read(partition.file), path, integers=integers))
    if partition.calendar is not None:
        values = _HOURS if partition.calendar == "hour" else _WEEKDAYS
        return msgspec.structs.replace(partition, values=list(values))
    return partition


def _lines(text: str, path: str, *, integers: bool) -> list[Key]:
    """A file's keys: one a line; empty lines, the ends of lines and a byte order mark do not count."""
    lines = [line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n")]
    lines = [line for line in lines if line]
    bare = all(line == line.strip() for line in lines)
    rules.require(path, bare, "must hold no spaces around a key; a key that has them is listed in values")
    if not integers:
        return list(lines)
    whole = all(_INTEGER.fullmatch(line) for line in lines)
    rules.require(path, whole, "must hold a whole number of 64 bits on each line")
    return [int(line) for line in lines]


def _plain_partition(partition: Partition) -> Partition:
    """Without what does not count: how its keys were given, and defaults that are spelled out."""
    zone = None if partition.timezone == "UTC" else partition.timezone
    plain = msgspec.structs.replace(partition, range=None, file=None, timezone=zone, name=None)
    return plain if plain.label == partition.label else msgspec.structs.replace(plain, name=partition.name)


def _plain_metric(metric: Metric) -> Metric:
    """Without defaults that are spelled out."""
    match metric:
        case Sum(clip="row"):
            return msgspec.structs.replace(metric, clip=None)
        case Histogram(spacing="linear") | Quantiles(spacing="linear"):
            return msgspec.structs.replace(metric, spacing=None)
    return metric


def _plain_derivation(derivation: Derivation) -> Derivation:
    """Without a default that is spelled out."""
    return msgspec.structs.replace(derivation, timezone=None) if derivation.timezone == "UTC" else derivation


def _plain_filter(each: Filter, kind: ColumnType | None) -> Filter:
    """With numbers as the column holds them, and what stands in a list in order."""

    def plain(value: Value | None) -> Any:
        return float(value) if kind == "float" and isinstance(value, int) else value

    listed = None if each.within is None else sorted(map(plain, each.within), key=repr)
    names = ("equals", "not_equals", "at_least", "above", "at_most", "below")
    return msgspec.structs.replace(each, within=listed, **{name: plain(getattr(each, name)) for name in names})


def _canonical(value: Any) -> Any:
    """Without negative zeros, and without what was not written."""
    match value:
        case float():
            return value + 0.0
        case dict():
            return {key: _canonical(part) for key, part in value.items() if part is not None}
        case list():
            return [_canonical(part) for part in value]
        case _:
            return value
