"""The plan of the design, whose every line is part of the agreement, and changes to it."""

from __future__ import annotations

from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import MAX_CELLS, Plan, parse_plan

Changes = tuple[tuple[str, str], ...]

PLAN = """\
[plan]
name = "flight_delays"
version = 1

[events]
time = "time_hour"                     # event time
[events.columns]                       # what an event must have; anything else is dropped at the door
time_hour = "timestamp"
tailnum = "string"
carrier = "string"
dep_delay = "float"

[privacy_unit]
column = "tailnum"
max_nodes = 3                          # sites one unit may appear at in one window

[bounds]
max_partitions = 1                     # L0: partitions a unit may touch in one window
max_rows_per_partition = 5             # L-infinity

[window]
every = "7d"
lateness = "1h"

[[partition]]
column = "carrier"
values = ["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"]
other = true                           # everything else lands in one "other" partition

[[metric]]
name = "departures"
kind = "count"

[[metric]]
name = "aircraft"
kind = "distinct_units"

[[metric]]
name = "delay"
kind = "mean"                          # sum, mean, variance, histogram, quantiles likewise
column = "dep_delay"                   # a null leaves the row out of this metric, not out of the others
lower = -30.0
upper = 180.0
resolution = 0.1                       # the fixed-point grid

[budget]                               # what one window's release costs one unit at one site
mechanism = "gaussian"                 # or "laplace"
epsilon = 2.0
delta = 1e-6
"""

KEYS = 'values = ["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"]'
PARTITION = f'column = "carrier"\n{KEYS}\nother = true'
SECOND_PARTITION = '[[partition]]\ncolumn = "tailnum"\nvalues = ["x"]\n\n[[metric]]\nname = "departures"'
FILES = {
    "keys.txt": "9E\nAA\nB6\nDL\nEV\nMQ\nUA\nUS\nWN\n",
    "dos.txt": "\ufeff9E\r\nAA\r\nB6\r\nDL\r\n\r\nEV\r\nMQ\r\nUA\r\nUS\r\nWN",
    "fewer.txt": "9E\nAA\n",
    "twice.txt": "9E\nAA\n9E\n",
    "other.txt": "9E\nother\n",
    "empty.txt": "\n\r\n\n",
    "spaces.txt": "9E\nAA \n",
    "numbers.txt": "0\n1\n-2\n",
    "words.txt": "0\none\n",
    "loose.txt": "0\n1_000\n",
    "other digits.txt": "0\n\u0663\n",
    "many.txt": "\n".join(map(str, range(MAX_CELLS + 1))),
    "folder/keys.txt": "9E\nAA\nB6\nDL\nEV\nMQ\nUA\nUS\nWN\n",
}
INTEGERS: Changes = (('carrier = "string"', 'carrier = "integer"'),)
RANGE: Changes = (*INTEGERS, (KEYS, "range = { start = 0, stop = 9 }"))
FILE: Changes = ((KEYS, 'file = "keys.txt"'),)
CALENDAR: Changes = ((PARTITION, 'column = "time_hour"\ncalendar = "hour"'),)
DISCOVER: Changes = ((f"{KEYS}\nother = true", "discover = { delta = 1e-9 }"),)
EVENT: Changes = (
    ('column = "tailnum"\nmax_nodes = 3 ', "event = true\n"),
    ("max_rows_per_partition = 5", "max_rows_per_partition = 1"),
)
DERIVED = """
[[derive]]
column = "airline"
from = "carrier"

[[derive]]
column = "band"
from = "dep_delay"
buckets = [0, 15.5, 60]

[[derive]]
column = "hour"
from = "time_hour"
calendar = "hour"

[[derive]]
column = "small"
from = "airline"
lower = true

[[derive]]
column = "head"
from = "small"
first = 2

[[derive]]
column = "group"
from = "head"
map = { aa = "big", ua = "big" }

[[filter]]
column = "hour"
in = [9, 10, 11]

[[filter]]
column = "dep_delay"
at_least = -60
"""
DERIVE: Changes = (("\n[[partition]]", f"{DERIVED}\n[[partition]]"),)
"""A derivation of each kind, and two filters."""
PERIOD: Changes = (("max_rows_per_partition = 5", 'max_rows_per_partition = 5\nmax_windows = 2\nperiod = "28d"'),)


def read(name: str) -> str:
    """The text of a file of keys; one that is not in `FILES` holds one key."""
    return FILES.get(name, "9E\n")


def edited(*changes: tuple[str, str]) -> str:
    """The plan with some lines changed; each old text must stand in it exactly once."""
    text = PLAN
    for old, new in changes:
        assert text.count(old) == 1, f"stands {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text


def more(body: str, name: str = "more") -> tuple[str, str]:
    """One more metric, the fourth."""
    return "[budget]", f'[[metric]]\nname = "{name}"\n{body}\n\n[budget]'


def parsed(*changes: tuple[str, str]) -> Plan:
    """The changed plan; its files of keys are `FILES`."""
    return parse_plan(edited(*changes), read=read)


def refused_at(text: str) -> str | None:
    """The path of the refusal; None if the plan parses."""
    try:
        parse_plan(text, read=read)
    except PlanInvalid as invalid:
        return invalid.path if str(invalid) == f"{invalid.path}: {invalid.problem}" else f"not in {invalid}"
    return None
