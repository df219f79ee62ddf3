"""The plan grammar: the tables of a plan as frozen values.

Place: what `plan.parse_plan` reads a plan into; `rules.py` checks what types cannot say.
Invariants: the grammar is closed (no expressions) and frozen; a field that is None was not written, and does not count
in the plan's hash.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_agg.contract.derivation import ColumnType, Derivation, Filter, Key, Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CELLS = 100_000
"""Cells one window may have: the product of the partition columns' sizes."""
MAX_PARTITIONS = 16
"""Partitions of one plan; so many with two keys each already have more than half of the cells."""
MAX_METRICS = 128
"""Metrics of one plan; its releases' envelopes name every vector, and an envelope is bounded."""
MAX_VALUES = 1_000_000
"""Values of one release: cells times payload columns; so a message is bounded."""
MAX_KEY_BYTES = 2**23
"""Text of the discovered keys of one release, each counted once; with the values it fits a message of 16 MiB."""
MAX_BINS = 1_024
"""Bins of one histogram."""
MAX_UNITS = 2**28
"""Privacy units one window may hold at one agent; the proof that no sum overflows starts here."""
OTHER = "other"
"""How the cell of null and unlisted keys is shown."""
EVENT = "event"
"""What the privacy unit is called where every row is its own."""

_DURATION = re.compile(r"([0-9]{1,9})(us|ms|s|m|h|d)")
_UNIT_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def parse_duration(text: str) -> timedelta:
    """Read `7d`, `1h`, `30m`, `10s`, `250ms` or `5us`.

    Raises:
        ValueError: if the text is anything else.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError("a duration is a whole number and one of us, ms, s, m, h, d")
    return timedelta(microseconds=int(match[1]) * _UNIT_US[match[2]])


class Identity(Strict, frozen=True, kw_only=True):
    """`[plan]`: which plan this is."""

    name: str
    """Lower case, digits and underscores."""
    version: int
    """Raised by its author with each change of meaning."""
    description: str = ""
    """For people; not part of the meaning."""


class Events(Strict, frozen=True, kw_only=True):
    """`[events]`: what an event must have; anything else is not read."""

    time: str
    """The column of the event time."""
    columns: dict[str, ColumnType]
    """Every column that is read, with its type; derived ones are not among them."""


class PrivacyUnit(Strict, frozen=True, kw_only=True):
    """`[privacy_unit]`: whose rows are protected together."""

    column: str | None = None
    """The column that identifies the unit."""
    event: bool | None = None
    """In place of a column: every row is its own unit, a weaker promise."""
    max_nodes: int = 1
    """Sites one unit may appear at in one window."""

    @property
    def label(self) -> str:
        """What a unit is called: its column, or `event`."""
        return EVENT if self.column is None else self.column


class Bounds(Strict, frozen=True, kw_only=True):
    """`[bounds]`: how much one unit may contribute to one window."""

    max_partitions: int
    """L0: partitions a unit may touch."""
    max_rows_per_partition: int
    """L-infinity: rows of a unit in one partition."""
    max_windows: int | None = None
    """Windows of one period that a unit counts in: its first ones."""
    period: str | None = None
    """The period of `max_windows`, a multiple of the window."""


class Window(Strict, frozen=True, kw_only=True):
    """`[window]`: how event time is cut."""

    every: str
    """The window's length, for example `7d`."""
    lateness: str = "0s"
    """How long after its end a window stays open."""
    late: Literal["drop", "assign"] = "drop"
    """What becomes of a row whose window has closed: dropped, or counted in the oldest window that is still open."""


class Range(Strict, frozen=True, kw_only=True):
    """`range = { start, stop, step }`: public integer keys; `stop` is not one of them."""

    start: int
    stop: int
    step: int = 1


class Discover(Strict, frozen=True, kw_only=True):
    """`discover = { delta }`: keys found in the data, released where their noisy distinct units exceed a threshold."""

    delta: float
    """The probability that a key shows which only one unit has: paid for in every window."""
    max_bytes: int = 64
    """Rows with a longer key, in UTF-8, are dropped."""
    weight: float = 1.0
    """The selection's share of the loss, against the vectors'."""


class Partition(Strict, frozen=True, kw_only=True):
    """`[[partition]]`: a column whose keys make the cells."""

    column: str
    values: list[Key] | None = None
    """The public keys, in the order of the cells; `plan.parse_plan` writes out ranges, files and calendars here."""
    range: Range | None = None
    """Public integer keys, by a rule."""
    file: str | None = None
    """A file of public keys, one a line, beside the plan."""
    calendar: Literal["hour", "weekday"] | None = None
    """The hour (0 .. 23) or the ISO weekday (1 is Monday) of a timestamp."""
    timezone: str | None = None
    """Of the calendar; UTC if absent."""
    discover: Discover | None = None
    """In place of public keys."""
    name: str | None = None
    """What answers call it; by default the column, and for a calendar the column and the calendar."""
    other: bool = False
    """Whether null and unlisted keys land in one more cell; if not, their rows are dropped."""

    @property
    def label(self) -> str:
        """Its name in payloads, in the lake and in answers."""
        if self.name is not None:
            return self.name
        return self.column if self.calendar is None else f"{self.column}_{self.calendar}"

    @property
    def public(self) -> list[Key]:
        """The public keys; none where keys are discovered."""
        return self.values or []


class _Metric(Strict, frozen=True, tag_field="kind", kw_only=True):
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

    clip: Literal["row", "unit"] | None = None
    """What the bounds clip: each row's value (the default), or all of a unit's values in one partition, added up."""


class Mean(_Clipped, frozen=True, tag="mean"):
    """Mean of the clipped values: a centred sum, and the count of rows that have a value."""


class Variance(_Clipped, frozen=True, tag="variance"):
    """Population variance of the clipped values: as a mean, and the sum of squares about the centre."""


class _Binned(_Metric, frozen=True, kw_only=True):
    column: str
    edges: list[float] | None = None
    """Public edges, ascending; a value below the first or above the last counts in the bin at that end."""
    lower: float | None = None
    """In place of listed edges: the first."""
    upper: float | None = None
    """The last."""
    bins: int | None = None
    """How many bins lie between them."""
    spacing: Literal["linear", "logarithmic"] | None = None
    """How; linear if absent."""

    @property
    def all_edges(self) -> tuple[float, ...]:
        """Every edge, one more than bins."""
        if self.edges is not None:
            return tuple(self.edges)
        assert self.lower is not None, "rules.py holds this"
        assert self.upper is not None, "rules.py holds this"
        assert self.bins is not None, "rules.py holds this"
        steps = [i / self.bins for i in range(1, self.bins)]
        if self.spacing == "logarithmic":
            # Twelve digits: the last ones are each platform's own.
            inner = [float(f"{self.lower * (self.upper / self.lower) ** step:.12g}") for step in steps]
        else:
            inner = [self.lower + (self.upper - self.lower) * step for step in steps]
        return (self.lower, *inner, self.upper)


class Histogram(_Binned, frozen=True, tag="histogram"):
    """Rows in each bin."""


class Quantiles(_Binned, frozen=True, tag="quantiles"):
    """Quantiles, read from a histogram or a tree of them, whichever predicts the smaller error."""

    quantiles: list[float]
    """Ascending, between 0 and 1."""


class Ratio(_Metric, frozen=True, tag="ratio"):
    """The ratio of two other metrics of the plan, each a count, distinct_units or sum: costs nothing more."""

    numerator: str
    denominator: str


Metric = Count | DistinctUnits | Sum | Mean | Variance | Histogram | Quantiles | Ratio


class Budget(Strict, frozen=True, kw_only=True):
    """`[budget]`: what one window's release costs one unit at one site."""

    mechanism: Literal["gaussian", "laplace"]
    epsilon: float
    delta: float = 0.0


class Plan(Strict, frozen=True, kw_only=True):
    """A whole plan; build it with :func:`plan.parse_plan`, which also checks what types cannot say."""

    plan: Identity
    events: Events
    privacy_unit: PrivacyUnit
    bounds: Bounds
    window: Window
    metric: list[Metric]
    budget: Budget
    partition: list[Partition] = msgspec.field(default_factory=list)
    derive: list[Derivation] = msgspec.field(default_factory=list)
    filter: list[Filter] = msgspec.field(default_factory=list)

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

    @property
    def period(self) -> timedelta | None:
        """The period in which a unit counts in at most `max_windows` windows; None without such a bound."""
        return None if self.bounds.period is None else parse_duration(self.bounds.period)

    @property
    def columns(self) -> dict[str, ColumnType]:
        """Every column that partitions, metrics and filters may name, with its type: read ones, then derived ones."""
        types = dict(self.events.columns)
        for derivation in self.derive:
            kind = derivation.kind(types)
            if kind is not None:
                types[derivation.column] = kind
        return types

    @property
    def public(self) -> Sequence[Partition]:
        """The partitions whose keys are public, in order."""
        return [partition for partition in self.partition if partition.discover is None]

    @property
    def discovered(self) -> Partition | None:
        """The partition whose keys are found in the data; at most one."""
        return next((partition for partition in self.partition if partition.discover is not None), None)
