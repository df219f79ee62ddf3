"""What `[[derive]]` and `[[filter]]` must keep to that types cannot say: each rule names the path of the field.

Place: run by `plan.parse_plan` before all other rules, which then take derived columns as they take those of events.
Invariants: pure; in a plan that passes, each derived column is new and made of one that is there, and every comparison
is with a value of its column's own type.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from edge_agg.contract import rules
from edge_agg.contract.rules import COLUMN, COLUMN_RULE, timezones

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.contract.derivation import ColumnType, Derivation, Filter
    from edge_agg.contract.grammar import Plan

MAX_TABLES = 64
"""Derivations of one plan, and filters."""
MAX_EDGES = 1_024
"""Edges of one column of buckets."""
MAX_LISTED = 10_000
"""Values of one map, and of one filter's `in`."""
_MAX_FIRST = 4_096
_MAX_BYTES = 256
_WAYS = ("buckets", "calendar", "lower", "first", "map")
_WAY_OF = {"numbered": "buckets", "timezone": "calendar", "otherwise": "map"}
_COMPARISONS = ("equals", "not_equals", "within", "at_least", "above", "at_most", "below")
_PLAIN = {"string": (str,), "integer": (int,), "float": (int, float), "boolean": (bool,)}


def check(plan: Plan) -> None:
    """Check every rule of derivations, in their order, and of filters.

    Raises:
        PlanInvalid: naming the path of the first field that is wrong.
    """
    rules.require("$.derive", len(plan.derive) <= MAX_TABLES, f"must hold {MAX_TABLES} derivations at most")
    rules.require("$.filter", len(plan.filter) <= MAX_TABLES, f"must hold {MAX_TABLES} filters at most")
    known: dict[str, ColumnType] = dict(plan.events.columns)
    for i, derivation in enumerate(plan.derive):
        known[derivation.column] = _check_derivation(derivation, known, f"$.derive[{i}]")
    values = {derivation.column: derivation.values for derivation in plan.derive}
    for i, each in enumerate(plan.filter):
        _check_filter(each, known.get(each.column, ""), f"$.filter[{i}]")
        wanted = [each.equals] if each.equals is not None else each.within or []
        there = values.get(each.column)
        possible = there is None or there.issuperset(wanted)
        rules.require(f"$.filter[{i}]", possible, "compares with what the derived column never holds")


def _check_derivation(derivation: Derivation, known: Mapping[str, ColumnType], path: str) -> ColumnType:
    """Check one derivation and return the new column's type."""
    rules.require(f"{path}.column", COLUMN.fullmatch(derivation.column) is not None, COLUMN_RULE)
    rules.require(f"{path}.column", derivation.column not in known, "is a column already: choose a new name")
    rules.require(f"{path}.from", derivation.source in known, "must name a column of the events, or one derived before")
    ways = [way for way in _WAYS if getattr(derivation, way) is not None]
    rules.require(path, len(ways) <= 1, "has one of buckets, calendar, lower, first and map, or none")
    for name, way in _WAY_OF.items():
        rules.require(
            f"{path}.{name}", getattr(derivation, name) in {None, False} or way in ways, f"belongs to `{way}`"
        )
    held = known[derivation.source]
    match ways:
        case ["buckets"]:
            _check_buckets(derivation.buckets or [], held, path)
        case ["calendar"]:
            rules.require(f"{path}.from", held == "timestamp", "a calendar is that of a timestamp")
            zone = derivation.timezone is None or derivation.timezone in timezones()
            rules.require(f"{path}.timezone", zone, "is not the name of a time zone in the IANA database")
        case ["lower" | "first"]:
            rules.require(f"{path}.from", held == "string", "must name a column of type string")
            rules.require(f"{path}.lower", derivation.lower is not False, "is true, or left out")
            length = derivation.first is None or 1 <= derivation.first <= _MAX_FIRST
            rules.require(f"{path}.first", length, f"must lie in 1 .. {_MAX_FIRST}")
        case ["map"]:
            _check_map(derivation, held, path)
    kind = derivation.kind(known)
    assert kind is not None, "its source is known"
    return kind


def _check_buckets(edges: list[float], held: ColumnType, path: str) -> None:
    rules.require(f"{path}.from", held in {"float", "integer"}, "must name a column of type float or integer")
    rules.require(f"{path}.buckets", 1 <= len(edges) <= MAX_EDGES, f"must hold 1 .. {MAX_EDGES} edges")
    rules.require(f"{path}.buckets", all(math.isfinite(edge) for edge in edges), "must be finite")
    ascending = all(low < high for low, high in itertools.pairwise(edges))
    rules.require(f"{path}.buckets", ascending, "must ascend")


def _check_map(derivation: Derivation, held: ColumnType, path: str) -> None:
    named = derivation.map or {}
    rules.require(f"{path}.from", held in {"string", "integer"}, "must name a column of type string or integer")
    rules.require(f"{path}.map", 1 <= len(named) <= MAX_LISTED, f"must name 1 .. {MAX_LISTED} values")
    plain = held == "string" or all(_is_whole(key) for key in named)
    rules.require(f"{path}.map", plain, 'must name whole numbers of 64 bits, as "404"')
    short = all(len(text.encode()) <= _MAX_BYTES for text in (*named.values(), derivation.otherwise or ""))
    rules.require(f"{path}.map", short, f"must give texts of {_MAX_BYTES} bytes at most")


def _is_whole(text: str) -> bool:
    """Whether a text is an integer of 64 bits in the one way to write it."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) < 20 and str(int(text)) == text and _fits(int(text))


def _fits(number: float) -> bool:
    return math.isfinite(number) and (isinstance(number, float) or -(2**63) <= number < 2**63)


def _check_filter(each: Filter, held: str, path: str) -> None:
    given = [name for name in _COMPARISONS if getattr(each, name) is not None]
    one = "has one of equals, not_equals, in, at_least, above, at_most and below"
    rules.require(path, len(given) == 1, one)
    rules.require(f"{path}.column", held in _PLAIN, "must name a column of type string, integer, float or boolean")
    (name,) = given
    if name == "within":
        listed = each.within or []
        rules.require(f"{path}.in", 1 <= len(listed) <= MAX_LISTED, f"must hold 1 .. {MAX_LISTED} values")
        rules.require(f"{path}.in", held != "boolean", "of a boolean: say which it equals")
    elif name not in {"equals", "not_equals"}:
        rules.require(f"{path}.column", held in {"integer", "float"}, "of type integer or float has an order")
    path = f"{path}.{'in' if name == 'within' else name}"
    values = each.within or [getattr(each, name)]
    rules.require(path, all(type(value) in _PLAIN[held] for value in values), "must be of the column's type")
    numbers = [value for value in values if isinstance(value, int | float)]
    rules.require(path, all(_fits(number) for number in numbers), "must be finite, and whole numbers of 64 bits")
    rules.require(path, len(set(values)) == len(values), "must hold no value twice")
