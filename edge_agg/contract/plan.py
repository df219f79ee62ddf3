"""The plan grammar: what may be asked of the edge, as frozen values.

Place: a plan is parsed where it is written, where it is run and where its releases land; all three agree by its hash.
Invariants: the grammar is closed (no expressions), an unknown field is refused with its path, and the hash covers
meaning only (comments, order of tables, spelling of numbers and durations, and the description do not count).
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import timedelta
from typing import Any, Literal, NewType

import msgspec

from edge_agg.contract.errors import PlanInvalid

PlanHash = NewType("PlanHash", bytes)
ColumnType = Literal["timestamp", "string", "float", "integer", "boolean"]
Key = str | int | bool

MAX_CELLS = 100_000
"""Cells one window may have: the product of the partition columns' sizes."""
MAX_METRICS = 128
"""Metrics of one plan; its releases' envelopes name every vector, and an envelope is bounded."""
MAX_VALUES = 1_000_000
"""Values of one release: cells times vectors; its message is bounded."""
MAX_UNITS = 2**28
"""Privacy units one window may hold at one agent; the proof that no sum overflows starts here."""
OTHER = "other"
"""How the cell of null and unlisted keys is shown."""
RESERVED = frozenset(
    {"tenant", "node", "window_start", "window_end", "status", "landing_id", "start", "end", "value", "lo", "hi"}
    | {"nodes_reporting", "nodes_expected", "windows_reporting", "windows_expected"}
)
"""Names that the lake and the answers use themselves; engines that read the lake do not tell case apart."""

_NAME = re.compile(r"(?!.*__)[a-z][a-z0-9_]{0,62}")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_DURATION = re.compile(r"([0-9]{1,9})(us|ms|s|m|h|d)")
_UNIT_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the plan: frozen, and closed to fields it does not name."""


class Identity(_Strict, frozen=True, kw_only=True):
    """`[plan]`: which plan this is."""

    name: str
    """Lower case, digits and underscores."""
    version: int
    """Raised by its author with each change of meaning."""
    description: str = ""
    """For people; not part of the meaning."""


class Events(_Strict, frozen=True, kw_only=True):
    """`[events]`: what an event must have; anything else is dropped at the door."""

    time: str
    """The column of the event time."""
    columns: dict[str, ColumnType]
    """Every column that is read, with its type."""


class PrivacyUnit(_Strict, frozen=True, kw_only=True):
    """`[privacy_unit]`: whose rows are protected together."""

    column: str
    """The column that identifies the unit."""
    max_nodes: int = 1
    """Sites one unit may appear at in one window."""


class Bounds(_Strict, frozen=True, kw_only=True):
    """`[bounds]`: how much one unit may contribute to one window."""

    max_partitions: int
    """L0: partitions a unit may touch."""
    max_rows_per_partition: int
    """L-infinity: rows of a unit in one partition."""


class Window(_Strict, frozen=True, kw_only=True):
    """`[window]`: how event time is cut."""

    every: str
    """The window's length, for example `7d`."""
    lateness: str = "0s"
    """How long after its end a window stays open."""


class Partition(_Strict, frozen=True, kw_only=True):
    """`[[partition]]`: a column whose public values make the cells."""

    column: str
    values: list[Key]
    """The public keys, in the order of the cells."""
    other: bool = False
    """Whether null and unlisted keys land in one more cell; if not, their rows are dropped."""


class _Metric(_Strict, frozen=True, tag_field="kind", kw_only=True):
    name: str
    weight: float = 1.0
    """This metric's share of the loss, against the others'."""


class Count(_Metric, frozen=True, tag="count"):
    """Kept rows."""


class DistinctUnits(_Metric, frozen=True, tag="distinct_units"):
    """Privacy units with a kept row."""


class _Clipped(_Metric, frozen=True, kw_only=True):
    column: str
    lower: float
    """Values below are raised to it."""
    upper: float
    """Values above are lowered to it."""
    resolution: float
    """The step of the fixed-point grid; both bounds lie on it."""

    @property
    def grid(self) -> tuple[int, int]:
        """The bounds in grid steps."""
        return round(self.lower / self.resolution), round(self.upper / self.resolution)


class Sum(_Clipped, frozen=True, tag="sum"):
    """Sum of the clipped values."""


class Mean(_Clipped, frozen=True, tag="mean"):
    """Mean of the clipped values: a centred sum, and the count of rows that have a value."""


Metric = Count | DistinctUnits | Sum | Mean


class Budget(_Strict, frozen=True, kw_only=True):
    """`[budget]`: what one window's release costs one unit at one site."""

    mechanism: Literal["gaussian", "laplace"]
    epsilon: float
    delta: float = 0.0


class Plan(_Strict, frozen=True, kw_only=True):
    """A whole plan; build it with :func:`parse_plan`, which also checks what types cannot say."""

    plan: Identity
    events: Events
    privacy_unit: PrivacyUnit
    bounds: Bounds
    window: Window
    metric: list[Metric]
    budget: Budget
    partition: list[Partition] = []

    @property
    def name(self) -> str:
        """The plan's name."""
        return self.plan.name

    @property
    def version(self) -> int:
        """The plan's version."""
        return self.plan.version

    @property
    def every(self) -> timedelta:
        """The window's length."""
        return parse_duration(self.window.every)

    @property
    def lateness(self) -> timedelta:
        """How long after its end a window stays open."""
        return parse_duration(self.window.lateness)


def parse_duration(text: str) -> timedelta:
    """Read `7d`, `1h`, `30m`, `10s`, `250ms` or `5us`.

    Raises:
        ValueError: if the text is anything else.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration is a whole number and one of us, ms, s, m, h, d")
    return timedelta(microseconds=int(match[1]) * _UNIT_US[match[2]])


def parse_plan(text: str) -> Plan:
    """Read a plan from TOML.

    Returns:
        A plan whose every rule holds.

    Raises:
        PlanInvalid: naming the path of the first field that is wrong; fix it there.
    """
    try:
        plan = msgspec.toml.decode(text.encode(), type=Plan)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `")
        raise PlanInvalid(path.rstrip("`") or "$", problem) from None
    except msgspec.DecodeError as error:
        raise PlanInvalid("$", f"not TOML: {error}") from None
    except (ValueError, RecursionError):
        raise PlanInvalid("$", "not TOML that a plan could be") from None
    for check in (
        _check_names,
        _check_columns,
        _check_bounds,
        _check_window,
        _check_partitions,
        _check_metrics,
        _check_budget,
    ):
        check(plan)
    return plan


def plan_hash(plan: Plan) -> PlanHash:
    """Sha256 over the plan's meaning, 32 bytes. Guarantee: equal exactly when the meaning is equal."""
    meaning: dict[str, Any] = _without_negative_zero(msgspec.to_builtins(plan))
    del meaning["plan"]["description"]
    meaning["window"] = {
        "every_us": plan.every // timedelta(microseconds=1),
        "lateness_us": plan.lateness // timedelta(microseconds=1),
    }
    canonical = msgspec.json.encode(meaning, order="sorted")
    return PlanHash(hashlib.sha256(b"edge_agg.plan.v1\n" + canonical).digest())


def _without_negative_zero(value: Any) -> Any:
    match value:
        case float():
            return value + 0.0
        case dict():
            return {key: _without_negative_zero(part) for key, part in value.items()}
        case list():
            return [_without_negative_zero(part) for part in value]
        case _:
            return value


def _require(path: str, holds: bool, problem: str) -> None:  # noqa: FBT001  # reads as a sentence
    if not holds:
        raise PlanInvalid(path, problem)


def _check_names(plan: Plan) -> None:
    rule = "lower-case letters, digits and single underscores, beginning with a letter, 63 at most"
    _require("$.plan.name", _NAME.fullmatch(plan.name) is not None, rule)
    _require("$.plan.version", 1 <= plan.version < 2**31, "must lie in 1 .. 2**31 - 1")
    _require("$.metric", 0 < len(plan.metric) <= MAX_METRICS, f"must hold 1 .. {MAX_METRICS} metrics")
    taken = {partition.column.lower() for partition in plan.partition} | RESERVED
    for i, metric in enumerate(plan.metric):
        _require(f"$.metric[{i}].name", _NAME.fullmatch(metric.name) is not None, rule)
        for name in (metric.name, f"{metric.name}_sum", f"{metric.name}_count"):
            _require(
                f"$.metric[{i}].name",
                name not in taken,
                f"`{name}` is taken by another metric, a partition, or reserved",
            )
        taken |= {metric.name, f"{metric.name}_sum", f"{metric.name}_count"}


def _check_columns(plan: Plan) -> None:
    columns = plan.events.columns
    for name in columns:
        _require(
            f"$.events.columns.{name}",
            _COLUMN.fullmatch(name) is not None,
            "letters, digits and underscores, 63 at most",
        )
    _require("$.events.time", columns.get(plan.events.time) == "timestamp", "must name a column of type timestamp")
    unit = columns.get(plan.privacy_unit.column)
    _require("$.privacy_unit.column", unit in {"string", "integer"}, "must name a column of type string or integer")
    _require("$.privacy_unit.max_nodes", 1 <= plan.privacy_unit.max_nodes <= 2**20, "must lie in 1 .. 2**20")


def _check_bounds(plan: Plan) -> None:
    _require(
        "$.bounds.max_partitions",
        1 <= plan.bounds.max_partitions <= MAX_CELLS,
        f"must lie in 1 .. {MAX_CELLS}",
    )
    rows = plan.bounds.max_rows_per_partition
    _require("$.bounds.max_rows_per_partition", 1 <= rows <= 2**20, "must lie in 1 .. 2**20")


def _check_window(plan: Plan) -> None:
    for name, text, least in (("every", plan.window.every, 1), ("lateness", plan.window.lateness, 0)):
        try:
            length = parse_duration(text)
        except ValueError as error:
            raise PlanInvalid(f"$.window.{name}", str(error)) from None
        _require(
            f"$.window.{name}",
            timedelta(seconds=least) <= length <= timedelta(days=366),
            f"must lie in {least}s .. 366d",
        )


_KEY_TYPE: dict[str, type] = {"string": str, "integer": int, "boolean": bool}


def _check_partitions(plan: Plan) -> None:
    cells = 1
    seen: set[str] = set()
    for i, partition in enumerate(plan.partition):
        path = f"$.partition[{i}]"
        _require(f"{path}.column", partition.column.lower() not in seen | RESERVED, "stands twice, or is reserved")
        seen.add(partition.column.lower())
        _require(f"{path}.column", not partition.column.lower().endswith("__scale"), "must not end in __scale")
        wanted = _KEY_TYPE.get(plan.events.columns.get(partition.column, ""))
        _require(f"{path}.column", wanted is not None, "must name a column of type string, integer or boolean")
        _require(f"{path}.values", len(partition.values) > 0, "must hold at least one key")
        _require(
            f"{path}.values",
            all(type(key) is wanted for key in partition.values),
            "must hold keys of the column's type",
        )
        _require(f"{path}.values", len(set(partition.values)) == len(partition.values), "must hold no key twice")
        _require(
            f"{path}.values",
            all(len(str(key).encode()) <= 256 for key in partition.values),
            "must hold keys of 256 bytes at most",
        )
        integers = [key for key in partition.values if isinstance(key, int)]
        _require(f"{path}.values", all(abs(key) < 2**63 for key in integers), "must hold keys of 64 bits")
        if partition.other:
            _require(
                f"{path}.values",
                OTHER not in partition.values,
                f"`{OTHER}` is the name of the cell for all other keys",
            )
        cells *= len(partition.values) + partition.other
    _require("$.partition", cells <= MAX_CELLS, f"the product of all partitions has at most {MAX_CELLS} cells")
    vectors = sum(2 if isinstance(metric, Mean) else 1 for metric in plan.metric)
    _require("$.metric", cells * vectors <= MAX_VALUES, f"cells times vectors must not exceed {MAX_VALUES}")


def _check_metrics(plan: Plan) -> None:
    for i, metric in enumerate(plan.metric):
        path = f"$.metric[{i}]"
        _require(f"{path}.weight", 0 < metric.weight < 1e6, "must be positive")
        if isinstance(metric, Sum | Mean):
            _check_clip(plan, metric, path)


def _check_clip(plan: Plan, metric: Sum | Mean, path: str) -> None:
    kind = plan.events.columns.get(metric.column)
    _require(f"{path}.column", kind in {"float", "integer"}, "must name a column of type float or integer")
    numbers = (metric.lower, metric.upper, metric.resolution)
    _require(path, all(math.isfinite(number) for number in numbers), "lower, upper and resolution are finite")
    _require(f"{path}.resolution", metric.resolution > 0, "must be positive")
    _require(f"{path}.upper", metric.lower < metric.upper, "must lie above lower")
    # The sum over every row that bounding can keep stays below 2**62, so int64 cannot wrap.
    farthest = max(abs(metric.lower), abs(metric.upper)) / metric.resolution
    rows = MAX_UNITS * plan.bounds.max_rows_per_partition
    _require(
        f"{path}.resolution",
        farthest * rows < 2**62,
        "is too fine: max_rows_per_partition * bound / resolution stays below 2**34",
    )
    for name, bound in (("lower", metric.lower), ("upper", metric.upper)):
        steps = bound / metric.resolution
        _require(f"{path}.{name}", abs(steps - round(steps)) < 1e-6, "must be a multiple of resolution")


def _check_budget(plan: Plan) -> None:
    budget = plan.budget
    _require("$.budget.epsilon", 0 < budget.epsilon <= 64, "must lie in 0 .. 64")
    if budget.mechanism == "gaussian":
        _require("$.budget.delta", 0 < budget.delta < 1, "gaussian noise needs a delta between 0 and 1")
    else:
        _require("$.budget.delta", budget.delta == 0, "laplace noise has no delta: leave it out")
