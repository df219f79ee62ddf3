"""The experiments: a plan, the rows of those who are always there, and of the one unit that is there or not.

Place: what the black-box audit asks of the path; written as an analyst writes plans, and as a device writes events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

EPSILON, DELTA, DISCOVERY = 1.0, 1e-2, 1e-2
"""The budget, and what discovery takes of delta. A loose Gaussian shows after thousands of runs at delta 1e-2, but only
after millions at 1e-6; so does a threshold that is off by one."""
CLIPPED = 'column = "x"\nlower = -2.0\nupper = 4.0\nresolution = 0.5'
BINNED = 'column = "x"\nlower = 0.0\nupper = 1.0\nbins = '

METRICS = {
    "count": '[[metric]]\nname = "m"\nkind = "count"',
    "distinct_units": '[[metric]]\nname = "m"\nkind = "distinct_units"',
    "sum": f'[[metric]]\nname = "m"\nkind = "sum"\n{CLIPPED}',
    "sum by unit": f'[[metric]]\nname = "m"\nkind = "sum"\nclip = "unit"\n{CLIPPED}',
    "mean": f'[[metric]]\nname = "m"\nkind = "mean"\n{CLIPPED}',
    "variance": f'[[metric]]\nname = "m"\nkind = "variance"\n{CLIPPED}',
    "histogram": f'[[metric]]\nname = "m"\nkind = "histogram"\n{BINNED}4',
    "quantiles": f'[[metric]]\nname = "m"\nkind = "quantiles"\n{BINNED}{{bins}}\nquantiles = [0.5]',
    "ratio": f'[[metric]]\nname = "n"\nkind = "count"\n[[metric]]\nname = "s"\nkind = "sum"\n{CLIPPED}\n'
    '[[metric]]\nname = "m"\nkind = "ratio"\nnumerator = "s"\ndenominator = "n"',
}
"""Every kind of metric."""
BINS = {"laplace": 58, "gaussian": 14}
"""The fewest bins whose quantiles are read from a tree."""
KINDS = tuple(METRICS)
MECHANISMS = ("laplace", "gaussian")


TWINS = ("u00000", "u09623")
"""Two names that share the last 16 bits of their CRC-32, whatever stands before both: a CRC is linear."""


class Row(NamedTuple):
    """One event of an experiment."""

    unit: str
    key: str
    x: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One plan to audit; it is copied over replicas that share nothing but the plan and the window."""

    kind: str
    mechanism: str
    discovered: bool = False
    max_partitions: int = 1
    max_rows: int = 2
    epsilon: float = EPSILON
    loose: float = DELTA
    """The plan's delta under Gaussian noise, less discovery's."""
    discovery: float = DISCOVERY
    weight: float = 1.0
    """Of the selection of keys."""
    period: str = ""
    """Of the bound on windows, as a line of the plan."""
    event: bool = False
    """Whether every row is its own unit."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The keys of one replica. If they are discovered, only the unit in question has the last."""
        return ("a", "c") if self.kind == "quantiles" else ("a", "b", "c")

    @property
    def delta(self) -> float:
        """What the plan claims."""
        return (0.0 if self.mechanism == "laplace" else self.loose) + (self.discovery if self.discovered else 0.0)

    @property
    def unit(self) -> str:
        """What the account calls the privacy unit."""
        return "event" if self.event else "u"

    def plan(self, replicas: int) -> str:
        """The plan's text, over the keys of every replica."""
        return f"""
[plan]
name = "audit"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "string", k = "string", x = "float" }}
[privacy_unit]
{"event = true" if self.event else 'column = "u"'}
[bounds]
max_partitions = {self.max_partitions}
max_rows_per_partition = {self.max_rows}
{self.period}
[window]
every = "1d"
[[partition]]
column = "k"
{self._keys(replicas)}
{METRICS[self.kind].format(bins=BINS[self.mechanism])}
[budget]
mechanism = "{self.mechanism}"
epsilon = {self.epsilon}
{f"delta = {self.delta}" if self.mechanism == "gaussian" else ""}
"""

    def _keys(self, replicas: int) -> str:
        if self.discovered:
            return f"discover = {{ delta = {self.discovery}, weight = {self.weight} }}"
        return f"values = {[name_of(r, key) for r in range(replicas) for key in self.cells]}"


def name_of(replica: int, name: str) -> str:
    """A replica's own key or unit."""
    return f"r{replica:03d}.{name}"


def others(case: Case) -> list[Row]:
    """Who is always there: so many units in the first keys that a discovered key shows about every third time.

    One unit more makes that likelier by its whole share of epsilon, and then the noisy value tells the rest.
    """
    few = [Row(TWINS[0], "a", 1.0), Row(TWINS[0], "a", 3.0), Row("2", case.cells[1], -1.0), Row("4", "a", None)]
    if not case.discovered:
        return few
    return [Row(f"{key}{i}", key, 0.5) for key in case.cells[:-1] for i in range(_below(case))]


def _below(case: Case) -> int:
    """A little below the threshold, which lies ln(1 / (2 delta)) scales above 1, or 2.3 standard deviations."""
    vectors = {"mean": 2, "variance": 3, "ratio": 2}.get(case.kind, 1)
    share = case.weight / (case.weight + vectors)
    if case.mechanism == "laplace":
        return round(1 + case.max_partitions / (case.epsilon * share) * math.log(1 / (2 * case.discovery)))
    return round(1 + 2.3 * math.sqrt(case.max_partitions / (0.2 * share)))


def at_most(case: Case) -> list[Row]:
    """The unit sends the most it may, always the same: the events that tell most."""
    far = [Row("9", key, math.inf) for key in case.cells[: case.max_partitions] for _ in range(case.max_rows)]
    return far[:1] if case.event else far


def more(case: Case) -> list[Row]:
    """The unit sends ten times what it may, everywhere."""
    return [Row("9", key, math.inf) for key in case.cells for _ in range(10 * case.max_rows)]


def alone(case: Case) -> list[Row]:
    """The unit has a key that nobody else has."""
    return [Row("9", case.cells[-1], math.inf)]


def spread(case: Case) -> list[Row]:
    """The unit has one key more than it may."""
    return [Row("9", key, math.inf) for key in case.cells[: case.max_partitions + 1]]


def namesake(_: Case) -> list[Row]:
    """The unit is one that a short hash takes for somebody who is always there, and has another key."""
    return [Row(TWINS[1], "b", 1.0), Row(TWINS[1], "b", 1.0)]


NEIGHBOURS = {"at most": at_most, "more": more, "alone": alone, "spread": spread, "namesake": namesake}
