"""What a plan must keep to that types cannot say: each rule names the path of the field that breaks it.

Place: run by `plan.parse_plan` on every plan, at the edge and at the collector.
Invariants: pure; a plan that passes cannot overflow an int64, exceed a payload, or name two columns alike.
"""

from __future__ import annotations

import itertools
import math
import re
from datetime import timedelta
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from edge_agg.contract.cells import n_cells
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.grammar import (
    EVENT,
    MAX_BINS,
    MAX_CELLS,
    MAX_METRICS,
    MAX_PARTITIONS,
    MAX_UNITS,
    MAX_VALUES,
    OTHER,
    Count,
    DistinctUnits,
    Histogram,
    Mean,
    Partition,
    Plan,
    Quantiles,
    Ratio,
    Sum,
    Variance,
    parse_duration,
)
from edge_agg.contract.vectors import payload_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_COLUMNS = 4_096
"""Columns of one payload: its schema lists them."""
RESERVED = frozenset(
    {"tenant", "node", "window_start", "window_end", "status", "landing_id", "start", "end", "value", "lo", "hi"}
    | {"nodes_reporting", "nodes_expected", "windows_reporting", "windows_expected", "absent"}
)
"""Names that the lake and the answers use themselves; engines that read the lake do not tell case apart."""
ANSWERS = frozenset({"quantile", "bin_lower", "bin_upper"})
"""Names that the answers to histograms and quantiles use; taken as well where a plan has one of these."""
SOURCES = ("values", "range", "file", "calendar", "discover")
"""Where a partition's keys may come from."""
COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
"""What a column may be called."""
COLUMN_RULE = "letters, digits and underscores, 63 at most"

_NAME = re.compile(r"(?!.*__)[a-z][a-z0-9_]{0,62}")
_FILE = re.compile(r"\w[\w .-]*(/\w[\w .-]*)*", re.ASCII)
_DERIVED = re.compile(r".*__(scale|[0-9]+)")
_SUFFIXES = ("_sum", "_count", "_squares")
_KEY_TYPE: dict[str, type] = {"string": str, "integer": int, "boolean": bool}
_NAME_RULE = "lower-case letters, digits and single underscores, beginning with a letter, 63 at most"
_MAX_DURATION = timedelta(days=366)
_MAX_QUANTILES = 100
_SHOWN_COLUMNS = 20
_MAX_STEPS = 2**31


def require(path: str, holds: bool, problem: str) -> None:  # noqa: FBT001  # reads as a sentence
    """Refuse the plan unless this holds.

    Raises:
        PlanInvalid: naming the path.
    """
    if not holds:
        raise PlanInvalid(path, problem)


def check_sources(plan: Plan) -> None:
    """Check where keys come from, before any are written out: a short text must not become a long list.

    Raises:
        PlanInvalid: naming the path of the first field that is wrong.
    """
    require("$.partition", len(plan.partition) <= MAX_PARTITIONS, f"must hold {MAX_PARTITIONS} partitions at most")
    for i, partition in enumerate(plan.partition):
        given = [name for name in SOURCES if getattr(partition, name) is not None]
        require(
            f"$.partition[{i}]", len(given) == 1, "must have exactly one of values, range, file, calendar and discover"
        )
        if partition.file is not None:
            inside = _FILE.fullmatch(partition.file) is not None
            require(f"$.partition[{i}].file", inside, "names a file in the plan's folder, by letters, digits and ._-")
        if partition.range is not None:
            path, rule = f"$.partition[{i}].range", partition.range
            require(f"{path}.step", rule.step != 0, "must not be 0")
            keys = -(-abs(rule.stop - rule.start) // abs(rule.step or 1))
            require(path, keys <= MAX_CELLS, f"must span {MAX_CELLS} keys at most")


def check(plan: Plan) -> None:
    """Check every rule, once all public keys stand in `values`.

    Raises:
        PlanInvalid: naming the path of the first field that is wrong.
    """
    _check_names(plan)
    _check_columns(plan)
    _check_bounds(plan)
    _check_window(plan)
    _check_period(plan)
    _check_partitions(plan)
    _check_metrics(plan)
    _check_size(plan)
    _check_budget(plan)


def _check_names(plan: Plan) -> None:
    require("$.plan.name", _NAME.fullmatch(plan.name) is not None, _NAME_RULE)
    require("$.plan.version", 1 <= plan.version < 2**31, "must lie in 1 .. 2**31 - 1")
    require("$.metric", 0 < len(plan.metric) <= MAX_METRICS, f"must hold 1 .. {MAX_METRICS} metrics")
    taken = {partition.label.lower() for partition in plan.partition} | _reserved(plan)
    for i, metric in enumerate(plan.metric):
        path = f"$.metric[{i}].name"
        require(path, _NAME.fullmatch(metric.name) is not None, _NAME_RULE)
        names = {metric.name, *(metric.name + suffix for suffix in _SUFFIXES)}
        for name in sorted(names):
            require(path, name not in taken, f"`{name}` is taken by another metric, a partition, or reserved")
        taken |= names


def _reserved(plan: Plan) -> frozenset[str]:
    binned = any(isinstance(metric, Histogram | Quantiles) for metric in plan.metric)
    return RESERVED | ANSWERS if binned else RESERVED


def _check_columns(plan: Plan) -> None:
    columns, unit = plan.events.columns, plan.privacy_unit
    for name in columns:
        fits = COLUMN.fullmatch(name) is not None
        require(f"$.events.columns.{name}", fits, COLUMN_RULE)
    _require_column(columns, "$.events.time", plan.events.time)
    require("$.events.time", columns.get(plan.events.time) == "timestamp", "must name a column of type timestamp")
    if unit.event is None:
        require("$.privacy_unit.column", unit.column is not None, "stands here, or `event = true` does")
        _require_column(columns, "$.privacy_unit.column", unit.column or "")
        known = unit.column is not None and columns.get(unit.column) in {"string", "integer"}
        require("$.privacy_unit.column", known, "must name a column of type string or integer")
        require("$.privacy_unit.column", unit.column != EVENT, f"`{EVENT}` is what a unit without a column is called")
    else:
        require("$.privacy_unit.event", unit.event, "is true, or left out")
        require("$.privacy_unit.column", unit.column is None, "stands beside `event`: choose one")
        ones = plan.bounds.max_partitions == plan.bounds.max_rows_per_partition == 1
        require("$.bounds", ones, "where every event is its own unit, both bounds are 1")
        require("$.bounds.max_windows", plan.bounds.max_windows is None, "an event lies in one window anyway")
        require("$.privacy_unit.max_nodes", unit.max_nodes == 1, "an event is seen at one site")
    require("$.privacy_unit.max_nodes", 1 <= unit.max_nodes <= 2**20, "must lie in 1 .. 2**20")


def _require_column(columns: Mapping[str, object], path: str, name: str) -> None:
    known = ", ".join(itertools.islice(columns, _SHOWN_COLUMNS))
    more = ", and others" if len(columns) > _SHOWN_COLUMNS else ""
    require(path, name in columns, f"names no column of the plan: there are {known}{more}")


def _check_bounds(plan: Plan) -> None:
    partitions, rows = plan.bounds.max_partitions, plan.bounds.max_rows_per_partition
    require("$.bounds.max_partitions", 1 <= partitions <= MAX_CELLS, f"must lie in 1 .. {MAX_CELLS}")
    require("$.bounds.max_rows_per_partition", 1 <= rows <= 2**20, "must lie in 1 .. 2**20")


def _check_window(plan: Plan) -> None:
    for name, text, least in (("every", plan.window.every, 1), ("lateness", plan.window.lateness, 0)):
        length = _duration(f"$.window.{name}", text)
        fits = timedelta(seconds=least) <= length <= _MAX_DURATION
        require(f"$.window.{name}", fits, f"must lie in {least}s .. 366d")


def _check_period(plan: Plan) -> None:
    windows, period = plan.bounds.max_windows, plan.bounds.period
    require("$.bounds.period", (windows is None) == (period is None), "max_windows and period stand together")
    if windows is None or period is None:
        return
    length = _duration("$.bounds.period", period)
    fits = timedelta(0) < length <= 10 * _MAX_DURATION and length % plan.every == timedelta(0)
    require("$.bounds.period", fits, "must be a multiple of the window, 3660d at most")
    held = length // plan.every
    require("$.bounds.max_windows", 1 <= windows <= held, f"must lie in 1 .. {held}, the windows of a period")


def _duration(path: str, text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise PlanInvalid(path, str(error)) from None


def _check_partitions(plan: Plan) -> None:
    cells = 1
    taken = set(_reserved(plan))
    for i, partition in enumerate(plan.partition):
        path = f"$.partition[{i}]"
        fits, label = COLUMN.fullmatch(partition.label) is not None, partition.label.lower()
        where = f"{path}.column" if partition.name is None else f"{path}.name"
        require(where, fits, COLUMN_RULE)
        require(where, label not in taken, "stands twice, or is reserved")
        require(where, _DERIVED.fullmatch(label) is None, "must not end in __scale or __ and digits")
        taken.add(label)
        _require_column(plan.columns, f"{path}.column", partition.column)
        if partition.discover is None:
            _check_public(plan, partition, path)
            cells *= len(partition.public) + partition.other
        else:
            _check_discovered(plan, partition, path)
    found = [i for i, partition in enumerate(plan.partition) if partition.discover is not None]
    require("$.partition", len(found) <= 1, "keys are discovered in one column at most: list the others' values")
    require("$.partition", cells <= MAX_CELLS, f"the product of all partitions has at most {MAX_CELLS} cells")


def _check_size(plan: Plan) -> None:
    columns = len(payload_columns(plan))
    require("$.metric", columns <= MAX_COLUMNS, f"releases over {MAX_COLUMNS} columns: ask for fewer bins")
    within = n_cells(plan) * columns <= MAX_VALUES
    require("$.metric", within, f"cells times columns must not exceed {MAX_VALUES}")


def _check_public(plan: Plan, partition: Partition, path: str) -> None:
    kind = plan.columns.get(partition.column, "")
    if partition.calendar is None:
        require(f"{path}.column", kind in _KEY_TYPE, "must name a column of type string, integer or boolean")
        require(f"{path}.timezone", partition.timezone is None, "belongs to a calendar")
        given = next(name for name in ("range", "file", "values") if getattr(partition, name) is not None)
        _check_keys(partition, _KEY_TYPE[kind], f"{path}.{given}")
        values = next((made.values for made in plan.derive if made.column == partition.column), None)
        there = values is None or values.issuperset(partition.public)
        require(f"{path}.{given}", there, "must hold keys that the derived column can take")
    else:
        require(f"{path}.column", kind == "timestamp", "a calendar is that of a timestamp")
        require(f"{path}.other", not partition.other, "every time has an hour and a weekday")
        known = partition.timezone is None or partition.timezone in timezones()
        require(f"{path}.timezone", known, "is not the name of a time zone in the IANA database")


def _check_keys(partition: Partition, wanted: type, path: str) -> None:
    keys = partition.public
    require(path, len(keys) > 0, "must hold at least one key")
    require(path, len(keys) <= MAX_CELLS, f"must hold {MAX_CELLS} keys at most")
    require(path, all(type(key) is wanted for key in keys), "must hold keys of the column's type")
    require(path, len(set(keys)) == len(keys), "must hold no key twice")
    require(path, all(len(str(key).encode()) <= 256 for key in keys), "must hold keys of 256 bytes at most")
    require(path, all(abs(key) < 2**63 for key in keys if isinstance(key, int)), "must hold keys of 64 bits")
    clear = not partition.other or OTHER not in keys
    require(path, clear, f"`{OTHER}` is the name of the cell for all other keys")


def _check_discovered(plan: Plan, partition: Partition, path: str) -> None:
    kind, discover = plan.columns.get(partition.column), partition.discover
    assert discover is not None, "asked by the caller"
    require(f"{path}.column", kind in {"string", "integer"}, "keys are discovered in a column of string or integer")
    require(f"{path}.timezone", partition.timezone is None, "belongs to a calendar")
    require(f"{path}.other", not partition.other, "keys that are not released leave nothing behind: leave `other` out")
    require(f"{path}.discover.delta", 0 < discover.delta < 1, "must lie between 0 and 1")
    require(f"{path}.discover.max_bytes", 1 <= discover.max_bytes <= 256, "must lie in 1 .. 256")
    require(f"{path}.discover.weight", 0 < discover.weight < 1e6, "must be positive")


@cache
def timezones() -> frozenset[str]:
    """Names that mean the same on every machine; what a machine has beside them (`localtime`) does not."""
    return frozenset(files("tzdata").joinpath("zones").read_text(encoding="utf-8").split()) - {"Factory"}


def _check_metrics(plan: Plan) -> None:
    for i, metric in enumerate(plan.metric):
        path = f"$.metric[{i}]"
        require(f"{path}.weight", 0 < metric.weight < 1e6, "must be positive")
        match metric:
            case Sum() | Mean() | Variance():
                _check_clip(plan, metric, path)
            case Histogram() | Quantiles():
                _check_bins(plan, metric, path)
            case Ratio():
                _check_ratio(plan, metric, path)
            case Count() | DistinctUnits():
                pass


def _check_clip(plan: Plan, metric: Sum | Mean | Variance, path: str) -> None:
    _check_number(plan, metric.column, path)
    numbers = (metric.lower, metric.upper, metric.resolution)
    require(path, all(math.isfinite(number) for number in numbers), "lower, upper and resolution are finite")
    require(f"{path}.resolution", metric.resolution > 0, "must be positive")
    require(f"{path}.upper", metric.lower < metric.upper, "must lie above lower")
    # The sum over every row that bounding can keep stays below 2**62, so int64 cannot wrap.
    farthest = max(abs(metric.lower), abs(metric.upper)) / metric.resolution
    whole = isinstance(metric, Sum) and metric.clip == "unit"
    rows = MAX_UNITS * (1 if whole else plan.bounds.max_rows_per_partition)
    problem = "is too fine: max_rows_per_partition * bound / resolution stays below 2**34"
    require(f"{path}.resolution", farthest * rows < 2**62, problem)
    if isinstance(metric, Variance):
        half = (metric.upper - metric.lower) / metric.resolution / 2 + 1
        problem = "is too fine: max_rows_per_partition * (half the range / resolution)**2 stays below 2**34"
        require(f"{path}.resolution", half**2 * rows < 2**62, problem)
    if whole:
        problem = "is too fine: bound / resolution stays below 2**31"
        require(f"{path}.resolution", farthest < _MAX_STEPS, problem)
        require(f"{path}.lower", metric.lower <= 0 <= metric.upper, "a unit's total is clipped about 0")
    for name, bound in (("lower", metric.lower), ("upper", metric.upper)):
        steps = bound / metric.resolution
        require(f"{path}.{name}", abs(steps - round(steps)) < 1e-6, "must be a multiple of resolution")


def _check_number(plan: Plan, column: str, path: str) -> None:
    _require_column(plan.columns, f"{path}.column", column)
    kind = plan.columns.get(column)
    require(f"{path}.column", kind in {"float", "integer"}, "must name a column of type float or integer")


def _check_bins(plan: Plan, metric: Histogram | Quantiles, path: str) -> None:
    _check_number(plan, metric.column, path)
    rule = [metric.lower, metric.upper, metric.bins]
    if metric.edges is None:
        complete = None not in rule
        require(f"{path}.edges", complete, "stands here, or lower, upper and bins do")
        require(f"{path}.bins", 1 <= (metric.bins or 0) <= MAX_BINS, f"must lie in 1 .. {MAX_BINS}")
        ends = [end for end in (metric.lower, metric.upper) if end is not None]
        require(path, all(math.isfinite(end) for end in ends), "lower and upper are finite")
        positive = metric.spacing != "logarithmic" or min(ends) > 0
        require(f"{path}.lower", positive, "logarithmic edges are positive")
    else:
        alone = rule == [None] * 3 and metric.spacing is None
        require(f"{path}.edges", alone, "stands beside lower, upper, bins or spacing: choose one")
        require(f"{path}.edges", 2 <= len(metric.edges) <= MAX_BINS + 1, f"must hold 2 .. {MAX_BINS + 1} edges")
        require(f"{path}.edges", all(math.isfinite(edge) for edge in metric.edges), "must be finite")
    edges = metric.all_edges
    ascending = all(low < high for low, high in itertools.pairwise(edges))
    require(path, ascending, "the edges ascend, each a number apart from the next")
    if isinstance(metric, Quantiles):
        asked = metric.quantiles
        inside = 0 < len(asked) <= _MAX_QUANTILES and all(0 < q < 1 for q in asked)
        require(f"{path}.quantiles", inside, f"must hold 1 .. {_MAX_QUANTILES}, each between 0 and 1")
        require(f"{path}.quantiles", asked == sorted(set(asked)), "must ascend")


def _check_ratio(plan: Plan, metric: Ratio, path: str) -> None:
    sums = {other.name for other in plan.metric if isinstance(other, Count | DistinctUnits | Sum)}
    for name, of in (("numerator", metric.numerator), ("denominator", metric.denominator)):
        require(f"{path}.{name}", of in sums, "must name a count, distinct_units or sum of this plan")
    require(f"{path}.denominator", metric.numerator != metric.denominator, "is the numerator")
    require(f"{path}.weight", metric.weight == 1.0, "a ratio releases nothing of its own: leave weight out")


def _check_budget(plan: Plan) -> None:
    budget, discovered = plan.budget, plan.discovered
    require("$.budget.epsilon", 0 < budget.epsilon <= 64, "must lie in 0 .. 64")
    if budget.mechanism == "gaussian":
        require("$.budget.delta", 0 < budget.delta < 1, "gaussian noise needs a delta between 0 and 1")
        spent = 0.0 if discovered is None or discovered.discover is None else discovered.discover.delta
        require("$.budget.delta", spent < budget.delta, "must exceed the delta of discovery, which is a part of it")
    else:
        require("$.budget.delta", budget.delta == 0, "laplace noise has no delta of its own: leave it out")
