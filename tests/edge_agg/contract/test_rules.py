"""The rules of a plan: each one refuses, at the field that breaks it, and none is there for nothing.

Proved here: every rule in the code has a plan that it alone refuses (the mutant of each rule lets that plan through).
Not proved: that no rule is missing.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import sys
from functools import cache
from typing import TYPE_CHECKING

import pytest

from edge_agg.contract import plan as plan_module
from edge_agg.contract import row_rules, rules
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import parse_plan
from tests.edge_agg.contract.plans import (
    CALENDAR,
    DERIVE,
    DISCOVER,
    EVENT,
    FILE,
    INTEGERS,
    KEYS,
    PARTITION,
    PERIOD,
    RANGE,
    SECOND_PARTITION,
    Changes,
    edited,
    more,
    read,
    refused_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Read = Callable[[str], str]
    Site = tuple[str, int]

CLIP = 'column = "dep_delay"\nlower = -30.0\nupper = 180.0\nresolution = 0.1'
VARIANCE = f'kind = "variance"\n{CLIP}'
TOTAL = f'kind = "sum"\nclip = "unit"\n{CLIP}'
HISTOGRAM = 'kind = "histogram"\ncolumn = "dep_delay"\nedges = [0, 1, 2]'
QUANTILES = 'kind = "quantiles"\ncolumn = "dep_delay"\nlower = 1.0\nupper = 9.0\nbins = 8\nquantiles = [0.5, 0.95]'
LOGARITHMIC = '\nspacing = "logarithmic"'
RATIO = 'kind = "ratio"\nnumerator = "departures"\ndenominator = "aircraft"'
MANY = "".join(f'[[partition]]\ncolumn = "carrier"\nname = "p{i}"\nvalues = ["x"]\n' for i in range(15))

BOOLEAN: Changes = (
    ('column = "dep_delay"\nat_least', 'column = "airline"\nat_least'),
    ('from = "airline"', 'from = "tailnum"'),
    (PARTITION, 'column = "tailnum"\nvalues = ["x"]'),
)


def first(*tables: str) -> tuple[str, str]:
    """Some tables before the first partition."""
    return "[[partition]]", "\n".join((*tables, "[[partition]]"))


# The check that must refuse, the change, and the path its refusal names.
BROKEN_RULES: list[tuple[str, str, Changes]] = [
    ("names", "$.plan.name", (('"flight_delays"', '"Flight-Delays"'),)),
    ("names", "$.plan.name", (('"flight_delays"', '""'),)),
    ("names", "$.plan.name", (('"flight_delays"', '"' + "a" * 64 + '"'),)),
    ("names", "$.plan.name", (('"flight_delays"', '"flight\\n"'),)),
    ("names", "$.metric[0].name", (('"departures"', '"de__partures"'),)),
    ("names", "$.plan.version", (("version = 1", "version = 0"),)),
    ("names", "$.metric[0].name", (('"departures"', '"Departures"'),)),
    ("names", "$.metric[1].name", (('"aircraft"', '"departures"'),)),
    ("names", "$.metric[1].name", (('"aircraft"', '"departures_sum"'),)),
    ("names", "$.metric[2].name", (('"aircraft"', '"delay_count"'),)),
    ("names", "$.metric[0].name", (('"departures"', '"carrier"'),)),
    ("names", "$.metric[0].name", (('"departures"', '"window_start"'),)),
    ("columns", "$.events.columns.dep delay", (('dep_delay = "float"', 'dep_delay = "float"\n"dep delay" = "float"'),)),
    ("columns", "$.events.time", (('time = "time_hour"', 'time = "nowhere"'),)),
    ("columns", "$.events.time", (('time = "time_hour"', 'time = "carrier"'),)),
    ("columns", "$.privacy_unit.column", (('column = "tailnum"', 'column = "nowhere"'),)),
    ("columns", "$.privacy_unit.column", (('column = "tailnum"', 'column = "dep_delay"'),)),
    ("columns", "$.privacy_unit.max_nodes", (("max_nodes = 3", "max_nodes = 0"),)),
    ("columns", "$.privacy_unit.max_nodes", (("max_nodes = 3", "max_nodes = 1048577"),)),
    ("bounds", "$.bounds.max_partitions", (("max_partitions = 1", "max_partitions = 0"),)),
    ("bounds", "$.bounds.max_partitions", (("max_partitions = 1", "max_partitions = 100001"),)),
    ("bounds", "$.bounds.max_rows_per_partition", (("max_rows_per_partition = 5", "max_rows_per_partition = 0"),)),
    ("bounds", "$.bounds.max_rows_per_partition", (("max_rows_per_partition = 5", "max_rows_per_partition = -1"),)),
    (
        "bounds",
        "$.bounds.max_rows_per_partition",
        (("max_rows_per_partition = 5", "max_rows_per_partition = 1048577"), ("resolution = 0.1", "resolution = 30.0")),
    ),
    ("window", "$.window.every", (('"7d"', '"0s"'),)),
    ("window", "$.window.every", (('"7d"', '"999ms"'),)),
    ("window", "$.window.every", (('"7d"', '"367d"'),)),
    ("window", "$.window.every", (('"7d"', '"1w"'),)),
    ("window", "$.window.every", (('"7d"', '"-1d"'),)),
    ("window", "$.window.lateness", (('"1h"', '"1.5h"'),)),
    ("window", "$.window.lateness", (('"1h"', '"367d"'),)),
    ("partitions", "$.partition[0].column", (('column = "carrier"', 'column = "nowhere"'),)),
    ("partitions", "$.partition[0].column", (('column = "carrier"', 'column = "dep_delay"'),)),
    (
        "partitions",
        "$.partition[0].column",
        (('column = "carrier"', 'column = "node"'), ('carrier = "string"', 'node = "string"')),
    ),
    (
        "partitions",
        "$.partition[1].column",
        (('[[metric]]\nname = "departures"', SECOND_PARTITION.replace("tailnum", "carrier")),),
    ),
    (
        "partitions",
        "$.partition[0].column",
        (('column = "carrier"', 'column = "Node"'), ('carrier = "string"', 'Node = "string"')),
    ),
    ("partitions", "$.partition[0].values", (('["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"]', "[]"),)),
    ("partitions", "$.partition[0].values", (('"US", "WN"', '"US", 7'),)),
    ("partitions", "$.partition[0].values", (('"US", "WN"', '"US", true'),)),
    ("partitions", "$.partition[0].values", (('"US", "WN"', '"US", "US"'),)),
    ("partitions", "$.partition[0].values", (('"US", "WN"', '"US", "' + "é" * 129 + '"'),)),
    ("partitions", "$.partition[0].values", (('"US", "WN"', '"US", "other"'),)),
    (
        "partitions",
        "$.partition[0].values",
        (
            (f"{KEYS}\nother = true", "values = [9223372036854775808]"),
            ('carrier = "string"', 'carrier = "integer"'),
        ),
    ),
    (
        "partitions",
        "$.partition",
        (
            ('"US", "WN"', '"US", "WN", ' + ", ".join(f'"{i}"' for i in range(300))),
            (
                '[[metric]]\nname = "departures"',
                SECOND_PARTITION.replace('"x"', ", ".join(f'"{i}"' for i in range(400))),
            ),
        ),
    ),
    ("metrics", "$.metric[0].weight", (('kind = "count"', 'kind = "count"\nweight = 0.0'),)),
    ("metrics", "$.metric[0].weight", (('kind = "count"', 'kind = "count"\nweight = -1.0'),)),
    ("metrics", "$.metric[0].weight", (('kind = "count"', 'kind = "count"\nweight = nan'),)),
    ("metrics", "$.metric[0].weight", (('kind = "count"', 'kind = "count"\nweight = inf'),)),
    ("metrics", "$.metric[2].column", (('column = "dep_delay"', 'column = "nowhere"'),)),
    (
        "metrics",
        "$.metric[2].column",
        (('column = "dep_delay"', 'column = "tailnum" #'), ('tailnum"\nmax', 'carrier"\nmax')),
    ),
    ("metrics", "$.metric[2]", (("lower = -30.0", "lower = -inf"),)),
    ("metrics", "$.metric[2]", (("upper = 180.0", "upper = nan"),)),
    ("metrics", "$.metric[2]", (("resolution = 0.1", "resolution = inf"),)),
    ("metrics", "$.metric[2].resolution", (("resolution = 0.1", "resolution = 0.0"),)),
    ("metrics", "$.metric[2].resolution", (("resolution = 0.1", "resolution = -0.1"),)),
    ("metrics", "$.metric[2].resolution", (("resolution = 0.1", "resolution = 1e-9"),)),
    (
        "metrics",
        "$.metric[2].resolution",
        (("upper = 180.0", "upper = 1e308"), ("resolution = 0.1", "resolution = 5e-324")),
    ),
    ("metrics", "$.metric[2].upper", (("upper = 180.0", "upper = -30.0"),)),
    ("metrics", "$.metric[2].lower", (("lower = -30.0", "lower = -30.05"),)),
    ("metrics", "$.metric[2].upper", (("upper = 180.0", "upper = 180.05"),)),
    ("budget", "$.budget.epsilon", (("epsilon = 2.0", "epsilon = 0.0"),)),
    ("budget", "$.budget.epsilon", (("epsilon = 2.0", "epsilon = 64.5"),)),
    ("budget", "$.budget.epsilon", (("epsilon = 2.0", "epsilon = nan"),)),
    ("budget", "$.budget.delta", (("delta = 1e-6", ""),)),
    ("budget", "$.budget.delta", (("delta = 1e-6", "delta = 1.0"),)),
    ("budget", "$.budget.delta", (("delta = 1e-6", "delta = nan"),)),
    ("budget", "$.budget.delta", (('"gaussian"', '"laplace"'),)),
    # What the wider grammar asks for.
    (
        "names",
        "$.metric",
        (more("".join(f'kind = "count"\n[[metric]]\nname = "m{i}"\n' for i in range(126)) + 'kind = "count"'),),
    ),
    ("names", "$.metric[0].name", (('"departures"', '"bin_lower"'), more(HISTOGRAM))),
    ("names", "$.metric[0].name", (('"departures"', '"time_hour_hour"'), *CALENDAR)),
    ("columns", "$.privacy_unit.column", (('column = "tailnum"', ""),)),
    (
        "columns",
        "$.privacy_unit.column",
        (('tailnum = "string"', 'event = "string"'), ('column = "tailnum"', 'column = "event"')),
    ),
    ("columns", "$.privacy_unit.event", (('column = "tailnum"', "event = false"),)),
    ("columns", "$.privacy_unit.column", (*EVENT, ("event = true", 'event = true\ncolumn = "tailnum"'))),
    ("columns", "$.bounds", (*EVENT, ("max_partitions = 1", "max_partitions = 2"))),
    ("columns", "$.bounds", (*EVENT, ("max_rows_per_partition = 1", "max_rows_per_partition = 2"))),
    (
        "columns",
        "$.bounds.max_windows",
        (*EVENT, ("max_partitions = 1", 'max_partitions = 1\nmax_windows = 1\nperiod = "7d"')),
    ),
    ("columns", "$.privacy_unit.max_nodes", (*EVENT, ("event = true", "event = true\nmax_nodes = 2"))),
    ("period", "$.bounds.period", (*PERIOD, ('period = "28d"', ""))),
    ("period", "$.bounds.period", (*PERIOD, ("max_windows = 2", ""))),
    ("period", "$.bounds.period", (*PERIOD, ('"28d"', '"4w"'))),
    ("period", "$.bounds.period", (*PERIOD, ('"28d"', '"0d"'))),
    ("period", "$.bounds.period", (*PERIOD, ('"28d"', '"27d"'))),
    ("period", "$.bounds.period", (*PERIOD, ('"28d"', '"3661d"'), ('"7d"', '"1d"'))),
    ("period", "$.bounds.period", (*PERIOD, ('"28d"', '"999999999d"'), ('"7d"', '"1d"'))),
    ("period", "$.bounds.max_windows", (*PERIOD, ("max_windows = 2", "max_windows = 0"))),
    ("period", "$.bounds.max_windows", (*PERIOD, ("max_windows = 2", "max_windows = 5"))),
    (
        "sources",
        "$.partition",
        (('[[metric]]\nname = "departures"', SECOND_PARTITION.replace("[[metric]]", MANY + "[[metric]]")),),
    ),
    ("sources", "$.partition[0]", ((KEYS, ""),)),
    ("sources", "$.partition[0]", ((KEYS, KEYS + '\nfile = "keys.txt"'),)),
    ("sources", "$.partition[0]", ((KEYS, KEYS + "\ndiscover = { delta = 1e-9 }"),)),
    ("sources", "$.partition[0]", (*CALENDAR, ('calendar = "hour"', 'calendar = "hour"\nvalues = [7, 8]'))),
    ("sources", "$.partition[0].file", (*FILE, ('"keys.txt"', '"/etc/hostname"'))),
    ("sources", "$.partition[0].file", (*FILE, ('"keys.txt"', '"../keys.txt"'))),
    ("sources", "$.partition[0].file", (*FILE, ('"keys.txt"', '"folder/../../keys.txt"'))),
    ("sources", "$.partition[0].file", (*FILE, ('"keys.txt"', '""'))),
    ("sources", "$.partition[0].file", (*FILE, ('"keys.txt"', '"keys\\u0000.txt"'))),
    ("sources", "$.partition[0].file", (*FILE, ('"keys.txt"', '"https://keys.txt"'))),
    ("sources", "$.partition[0].range.step", (*RANGE, ("stop = 9", "stop = 9, step = 0"))),
    ("sources", "$.partition[0].range", (*RANGE, ("stop = 9", "stop = 200001, step = 2"), ("other = true", ""))),
    ("sources", "$.partition[0].range", (*RANGE, ("stop = 9", "stop = -100001, step = -1"), ("other = true", ""))),
    ("lines", "$.partition[0].file", (*FILE, ("keys.txt", "spaces.txt"))),
    ("lines", "$.partition[0].file", (*FILE, ("keys.txt", "words.txt"), *INTEGERS)),
    ("lines", "$.partition[0].file", (*FILE, ("keys.txt", "loose.txt"), *INTEGERS)),
    ("lines", "$.partition[0].file", (*FILE, ("keys.txt", "other digits.txt"), *INTEGERS)),
    ("partitions", "$.partition[0].file", (*FILE, ("keys.txt", "empty.txt"))),
    ("partitions", "$.partition[0].file", (*FILE, ("keys.txt", "twice.txt"))),
    ("partitions", "$.partition[0].file", (*FILE, ("keys.txt", "many.txt"))),
    ("partitions", "$.partition[0].file", (*FILE, ("keys.txt", "other.txt"))),
    ("partitions", "$.partition[0].file", (*FILE, ('carrier = "string"', 'carrier = "boolean"'))),
    ("partitions", "$.partition[0].range", (*RANGE, ("stop = 9", "stop = 9, step = -1"))),
    ("partitions", "$.partition[0].range", (*RANGE, ("stop = 9", "stop = 0"))),
    (
        "partitions",
        "$.partition[0].range",
        (*RANGE, ("start = 0, stop = 9", "start = 9223372036854775800, stop = 9223372036854775809")),
    ),
    ("partitions", "$.partition[0].range", (*RANGE, ('carrier = "integer"', 'carrier = "string"'))),
    ("partitions", "$.partition[0].range", (*RANGE, ("stop = 9", "stop = 100001"), ("other = true", ""))),
    ("partitions", "$.partition[0].name", (("other = true", 'other = true\nname = "air line"'),)),
    ("partitions", "$.partition[0].name", (("other = true", 'other = true\nname = "\u212aey"'),)),
    ("partitions", "$.partition[0].name", (("other = true", 'other = true\nname = "Status"'),)),
    ("partitions", "$.partition[0].name", (("other = true", 'other = true\nname = "departures__scale"'),)),
    ("partitions", "$.partition[0].name", (("other = true", 'other = true\nname = "departures__7"'),)),
    ("partitions", "$.partition[0].name", (("other = true", 'other = true\nname = "Quantile"'), more(HISTOGRAM))),
    (
        "partitions",
        "$.partition[1].name",
        (('[[metric]]\nname = "departures"', SECOND_PARTITION.replace("values", 'name = "Carrier"\nvalues')),),
    ),
    (
        "partitions",
        "$.partition[0].column",
        (
            ("time_hour = ", "a" * 60 + " = "),
            ('"time_hour"  ', f'"{"a" * 60}"'),
            (PARTITION, f'column = "{"a" * 60}"\ncalendar = "hour"'),
        ),
    ),
    ("partitions", "$.partition[0].timezone", (("other = true", 'timezone = "Europe/Paris"'),)),
    ("partitions", "$.partition[0].column", (*CALENDAR, ('column = "time_hour"\n', 'column = "carrier"\n'))),
    ("partitions", "$.partition[0].other", (*CALENDAR, ('calendar = "hour"', 'calendar = "hour"\nother = true'))),
    *(
        (
            "partitions",
            "$.partition[0].timezone",
            (*CALENDAR, ('calendar = "hour"', f'calendar = "hour"\ntimezone = "{zone}"')),
        )
        for zone in (
            "",
            "Mars/Olympus",
            "localtime",
            "posixrules",
            "Factory",
            "right/UTC",
            "europe/paris",
            "Europe",
            "UTC ",
            "../UTC",
        )
    ),
    ("partitions", "$.partition[0].column", (*DISCOVER, ('column = "carrier"', 'column = "dep_delay"\n'))),
    (
        "partitions",
        "$.partition[0].timezone",
        (*DISCOVER, ('column = "carrier"', 'column = "carrier"\ntimezone = "UTC"')),
    ),
    ("partitions", "$.partition[0].other", (*DISCOVER, ('column = "carrier"', 'column = "carrier"\nother = true'))),
    ("partitions", "$.partition[0].discover.delta", (*DISCOVER, ("1e-9", "0.0"))),
    ("partitions", "$.partition[0].discover.delta", (*DISCOVER, ("1e-9", "1.0"), ("delta = 1e-6", "delta = 0.5"))),
    ("partitions", "$.partition[0].discover.delta", (*DISCOVER, ("1e-9", "nan"))),
    ("partitions", "$.partition[0].discover.max_bytes", (*DISCOVER, ("1e-9", "1e-9, max_bytes = 0"))),
    ("partitions", "$.partition[0].discover.max_bytes", (*DISCOVER, ("1e-9", "1e-9, max_bytes = 257"))),
    ("partitions", "$.partition[0].discover.weight", (*DISCOVER, ("1e-9", "1e-9, weight = 0.0"))),
    ("partitions", "$.partition[0].discover.weight", (*DISCOVER, ("1e-9", "1e-9, weight = inf"))),
    (
        "partitions",
        "$.partition",
        (
            *DISCOVER,
            (
                '[[metric]]\nname = "departures"',
                SECOND_PARTITION.replace('values = ["x"]', "discover = { delta = 1e-9 }"),
            ),
        ),
    ),
    ("metrics", "$.metric[3].resolution", (more(VARIANCE.replace("0.1", "0.00001")),)),
    ("metrics", "$.metric[3].resolution", (more(TOTAL.replace("180.0", f"{2.0**31}").replace("0.1", "1.0")),)),
    ("metrics", "$.metric[3].resolution", (more(TOTAL.replace("180.0", f"{2.0**34}").replace("0.1", "1.0")),)),
    ("metrics", "$.metric[3].lower", (more(TOTAL.replace("-30.0", "30.0")),)),
    ("metrics", "$.metric[3].lower", (more(TOTAL.replace("180.0", "-10.0")),)),
    ("metrics", "$.metric[3].column", (more(HISTOGRAM.replace("dep_delay", "carrier")),)),
    ("metrics", "$.metric[3].column", (more(QUANTILES.replace("dep_delay", "nowhere")),)),
    ("metrics", "$.metric[3].edges", (more(HISTOGRAM.replace("edges = [0, 1, 2]", "")),)),
    ("metrics", "$.metric[3].edges", (more(HISTOGRAM.replace("[0, 1, 2]", "[0]")),)),
    ("metrics", "$.metric[3].edges", (more(HISTOGRAM.replace("[0, 1, 2]", str(list(range(1026))))),)),
    ("metrics", "$.metric[3].edges", (more(HISTOGRAM.replace("[0, 1, 2]", "[0, 1, inf]")),)),
    ("metrics", "$.metric[3].edges", (more(HISTOGRAM + "\nbins = 2"),)),
    ("metrics", "$.metric[3].edges", (more(HISTOGRAM + '\nspacing = "linear"'),)),
    ("metrics", "$.metric[3].edges", (more(QUANTILES.replace("bins = 8", "")),)),
    ("metrics", "$.metric[3].edges", (more(QUANTILES.replace("lower = 1.0", "")),)),
    ("metrics", "$.metric[3]", (more(HISTOGRAM.replace("[0, 1, 2]", "[0, 0.0, 1]")),)),
    ("metrics", "$.metric[3]", (more(HISTOGRAM.replace("[0, 1, 2]", "[1, 0]")),)),
    ("metrics", "$.metric[3]", (more(QUANTILES.replace("upper = 9.0", "upper = 1.0")),)),
    ("metrics", "$.metric[3]", (more(QUANTILES.replace("upper = 9.0", "upper = 1.0000000000000002")),)),
    ("metrics", "$.metric[3]", (more(QUANTILES.replace("lower = 1.0", "lower = -1e308").replace("9.0", "1e308")),)),
    ("metrics", "$.metric[3]", (more(QUANTILES.replace("9.0", "inf")),)),
    ("metrics", "$.metric[3].bins", (more(QUANTILES.replace("bins = 8", "bins = 0")),)),
    ("metrics", "$.metric[3].bins", (more(QUANTILES.replace("bins = 8", "bins = 1025")),)),
    ("metrics", "$.metric[3].lower", (more(QUANTILES.replace("lower = 1.0", "lower = 0.0") + LOGARITHMIC),)),
    ("metrics", "$.metric[3].lower", (more(QUANTILES.replace("upper = 9.0", "upper = -9.0") + LOGARITHMIC),)),
    ("metrics", "$.metric[3]", (more(QUANTILES.replace("lower = 1.0", "lower = 5e-324") + LOGARITHMIC),)),
    ("metrics", "$.metric[3].quantiles", (more(QUANTILES.replace("[0.5, 0.95]", "[]")),)),
    ("metrics", "$.metric[3].quantiles", (more(QUANTILES.replace("[0.5, 0.95]", "[0.0, 0.5]")),)),
    ("metrics", "$.metric[3].quantiles", (more(QUANTILES.replace("[0.5, 0.95]", "[0.5, 1.0]")),)),
    ("metrics", "$.metric[3].quantiles", (more(QUANTILES.replace("[0.5, 0.95]", "[nan]")),)),
    (
        "metrics",
        "$.metric[3].quantiles",
        (more(QUANTILES.replace("[0.5, 0.95]", str([i / 102 for i in range(1, 102)]))),),
    ),
    ("metrics", "$.metric[3].quantiles", (more(QUANTILES.replace("[0.5, 0.95]", "[0.95, 0.5]")),)),
    ("metrics", "$.metric[3].quantiles", (more(QUANTILES.replace("[0.5, 0.95]", "[0.5, 0.5]")),)),
    ("metrics", "$.metric[3].numerator", (more(RATIO.replace("departures", "nothing")),)),
    ("metrics", "$.metric[3].numerator", (more(RATIO.replace("departures", "delay")),)),
    ("metrics", "$.metric[3].numerator", (more(RATIO.replace("departures", "more")),)),
    ("metrics", "$.metric[3].denominator", (more(RATIO.replace("aircraft", "delay")),)),
    ("metrics", "$.metric[3].denominator", (more(RATIO.replace("aircraft", "departures")),)),
    ("metrics", "$.metric[3].weight", (more(RATIO + "\nweight = 2.0"),)),
    ("metrics", "$.metric[3].weight", (more(RATIO + "\nweight = 0.5"),)),
    (
        "size",
        "$.metric",
        tuple(more(HISTOGRAM.replace("[0, 1, 2]", str(list(range(i, 1001 + i)))), f"m{i}") for i in range(5)),
    ),
    (
        "size",
        "$.metric",
        (
            (KEYS, "range = { start = 0, stop = 99999 }"),
            *INTEGERS,
            more(HISTOGRAM.replace("[0, 1, 2]", str(list(range(9))))),
        ),
    ),
    ("budget", "$.budget.delta", (*DISCOVER, ("1e-9", "1e-6"))),
    ("budget", "$.budget.delta", (*DISCOVER, ('"gaussian"', '"laplace"'))),
    # Derivations and filters.
    ("rows", "$.derive", (first(*(f'[[derive]]\ncolumn = "d{i}"\nfrom = "carrier"' for i in range(65))),)),
    ("rows", "$.filter", (first(*['[[filter]]\ncolumn = "carrier"\nequals = "x"'] * 65),)),
    ("rows", "$.derive[0].column", (*DERIVE, ('column = "airline"', 'column = "air line"'))),
    ("rows", "$.derive[1].column", (*DERIVE, ('column = "band"', 'column = "carrier"'))),
    ("rows", "$.derive[1].column", (*DERIVE, ('column = "band"', 'column = "airline"'))),
    ("rows", "$.derive[0].from", (*DERIVE, ('from = "carrier"', 'from = "nowhere"'))),
    ("rows", "$.derive[0].from", (*DERIVE, ('from = "carrier"', 'from = "head"'))),
    ("rows", "$.derive[0].from", (*DERIVE, ('from = "carrier"', 'from = "airline"'))),
    ("rows", "$.derive[3]", (*DERIVE, ("lower = true", "lower = true\nfirst = 2"))),
    ("rows", "$.derive[1].timezone", (*DERIVE, ("60]", '60]\ntimezone = "Europe/Paris"'))),
    ("rows", "$.derive[3].numbered", (*DERIVE, ("lower = true", "lower = true\nnumbered = true"))),
    ("rows", "$.derive[3].otherwise", (*DERIVE, ("lower = true", 'lower = true\notherwise = "x"'))),
    ("rows", "$.derive[1].from", (*DERIVE, ('from = "dep_delay"', 'from = "carrier"'))),
    ("rows", "$.derive[1].buckets", (*DERIVE, ("[0, 15.5, 60]", "[]"))),
    ("rows", "$.derive[1].buckets", (*DERIVE, ("[0, 15.5, 60]", str(list(range(1025)))))),
    ("rows", "$.derive[1].buckets", (*DERIVE, ("[0, 15.5, 60]", "[0, inf]"))),
    ("rows", "$.derive[1].buckets", (*DERIVE, ("[0, 15.5, 60]", "[0, nan]"))),
    ("rows", "$.derive[1].buckets", (*DERIVE, ("[0, 15.5, 60]", "[0, 60, 15]"))),
    ("rows", "$.derive[1].buckets", (*DERIVE, ("[0, 15.5, 60]", "[0, -0.0]"))),
    ("rows", "$.derive[2].from", (*DERIVE, ('from = "time_hour"', 'from = "dep_delay"'))),
    ("rows", "$.derive[2].timezone", (*DERIVE, ('"hour"\n\n', '"hour"\ntimezone = "Mars/Olympus"\n\n'))),
    ("rows", "$.derive[3].from", (*DERIVE, ('from = "airline"', 'from = "hour"'))),
    ("rows", "$.derive[4].from", (*DERIVE, ('from = "small"', 'from = "dep_delay"'))),
    ("rows", "$.derive[3].lower", (*DERIVE, ("lower = true", "lower = false"))),
    ("rows", "$.derive[4].first", (*DERIVE, ("first = 2", "first = 0"))),
    ("rows", "$.derive[4].first", (*DERIVE, ("first = 2", "first = 4097"))),
    ("rows", "$.derive[5].from", (*DERIVE, ('from = "head"', 'from = "dep_delay"'))),
    ("rows", "$.derive[5].map", (*DERIVE, ('{ aa = "big", ua = "big" }', "{}"))),
    (
        "rows",
        "$.derive[5].map",
        (*DERIVE, ('{ aa = "big", ua = "big" }', "{ " + ", ".join(f'a{i} = "x"' for i in range(10_001)) + " }")),
    ),
    *(
        ("rows", "$.derive[5].map", (*DERIVE, ('from = "head"', 'from = "hour"'), ("aa =", f"{key} =")))
        for key in ("aa", "01", "-0", '"+1"', '"1.0"', '"\u0663"', "9223372036854775808", '""', "-")
    ),
    ("rows", "$.derive[5].map", (*DERIVE, ('aa = "big"', f'aa = "{"x" * 257}"'))),
    ("rows", "$.derive[5].map", (*DERIVE, ('"big" }', f'"big" }}\notherwise = "{"x" * 257}"'))),
    ("rows", "$.filter[1]", (*DERIVE, ("at_least = -60", ""))),
    ("rows", "$.filter[1]", (*DERIVE, ("at_least = -60", "at_least = -60\nabove = 7"))),
    ("rows", "$.filter[1].column", (*DERIVE, ('column = "dep_delay"\nat_least', 'column = "nowhere"\nat_least'))),
    ("rows", "$.filter[1].column", (*DERIVE, ('column = "dep_delay"\nat_least', 'column = "time_hour"\nat_least'))),
    ("rows", "$.filter[1].column", (*DERIVE, ('column = "dep_delay"\nat_least', 'column = "carrier"\nat_least'))),
    ("rows", "$.filter[0].in", (*DERIVE, ("[9, 10, 11]", "[]"))),
    ("rows", "$.filter[1].in", (*DERIVE, ("at_least = -60", f"in = {list(range(10_001))}"))),
    (
        "rows",
        "$.filter[1].in",
        (*DERIVE, ('carrier = "string"', 'carrier = "boolean"'), *BOOLEAN, ("at_least = -60", "in = [true]")),
    ),
    ("rows", "$.filter[0].in", (*DERIVE, ("[9, 10, 11]", "[9, true]"))),
    ("rows", "$.filter[0].in", (*DERIVE, ("[9, 10, 11]", "[9, 10.0]"))),
    (
        "rows",
        "$.filter[1].at_least",
        (
            first('[[filter]]\ncolumn = "dep_delay"\nequals = 0'),
            first('[[filter]]\ncolumn = "dep_delay"\nat_least = inf'),
        ),
    ),
    ("rows", "$.filter[1].equals", (*DERIVE, ("at_least = -60", 'equals = "late"'))),
    ("rows", "$.filter[1].equals", (*DERIVE, ("at_least = -60", "equals = nan"))),
    (
        "rows",
        "$.filter[1].at_most",
        (
            *DERIVE,
            ('column = "dep_delay"\nat_least', 'column = "hour"\nat_least'),
            ("at_least = -60", "at_most = 9223372036854775808"),
        ),
    ),
    (
        "rows",
        "$.filter[1].above",
        (*DERIVE, ('column = "dep_delay"\nat_least', 'column = "hour"\nat_least'), ("at_least = -60", "above = 1.5")),
    ),
    ("rows", "$.filter[0].in", (*DERIVE, ("[9, 10, 11]", "[9, 10, 9]"))),
    ("rows", "$.filter[1].in", (*DERIVE, ("at_least = -60", "in = [1, 1.0]"))),
    ("rows", "$.filter[0]", (*DERIVE, ("[9, 10, 11]", "[9, 24]"))),
    (
        "rows",
        "$.filter[1]",
        (
            *DERIVE,
            ('column = "dep_delay"\nat_least', 'column = "band"\nat_least'),
            ("at_least = -60", 'equals = "0..15"'),
        ),
    ),
    ("columns", "$.privacy_unit.column", (*DERIVE, ('column = "tailnum"', 'column = "airline"'))),
    (
        "columns",
        "$.events.time",
        (
            *DERIVE,
            ('from = "carrier"', 'from = "time_hour"'),
            ('time = "time_hour" ', 'time = "airline"'),
            ('from = "airline"', 'from = "carrier"'),
        ),
    ),
    ("partitions", "$.partition[0].values", (*DERIVE, ('column = "carrier"', 'column = "band"'))),
    (
        "partitions",
        "$.partition[0].range",
        (*DERIVE, ('column = "carrier"', 'column = "hour"'), (KEYS, "range = { start = 0, stop = 25 }")),
    ),
]


CHECKS = {
    "sources": (rules, "check_sources"),
    "lines": (plan_module, "_lines"),
    "rows": (row_rules, "check"),
    **{
        name: (rules, f"_check_{name}")
        for name in ("names", "columns", "bounds", "window", "period", "partitions", "metrics", "size", "budget")
    },
}
PARTS = {"clip", "number", "bins", "ratio", "public", "keys", "discovered", "derivation", "buckets", "map", "filter"}


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Take a check out; files of keys are then read as they come."""
    module, function = CHECKS[name]
    lenient = (lambda text, path, *, integers: text.split()) if name == "lines" else (lambda plan: None)
    monkeypatch.setattr(module, function, lenient)


@pytest.mark.parametrize(
    ("check", "path", "changes"), BROKEN_RULES, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(BROKEN_RULES)]
)
def test_a_broken_rule_is_refused_with_its_path(
    monkeypatch: pytest.MonkeyPatch, check: str, path: str, changes: Changes
) -> None:
    """Each rule that types cannot say refuses at the field that breaks it.

    Mutant: with the checks taken out the same plan parses, so it is this rule that refuses and nothing else.
    """
    text = edited(*changes)
    assert refused_at(text) == path
    for name in CHECKS:
        if name != check:
            without(monkeypatch, name)
    assert refused_at(text) == path
    without(monkeypatch, check)
    if path.endswith("step"):  # what else would refuse it is Python
        with pytest.raises(ValueError, match="must not be zero"):
            refused_at(text)
    else:
        assert refused_at(text) is None


def test_every_check_has_a_case() -> None:
    """The list above leaves no check of the grammar out."""
    there = {name.removeprefix("_check_") for name in (*vars(rules), *vars(row_rules)) if name.startswith("_check_")}
    assert there == set(CHECKS) - {"sources", "lines", "rows"} | PARTS
    assert set(CHECKS) == {check for check, _, _ in BROKEN_RULES}


@cache
def sites() -> dict[Site, range]:
    """Every call of `require`: the module and the line it begins in, and its lines."""
    return dict(_sites())


def _sites() -> Iterator[tuple[Site, range]]:
    for module in (rules, row_rules, plan_module):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "require":
                assert node.end_lineno is not None
                yield (module.__name__, node.lineno), range(node.lineno, node.end_lineno + 1)


def refusing(
    monkeypatch: pytest.MonkeyPatch, text: str, reader: Read | None, muted: Site | None = None
) -> tuple[Site, str] | None:
    """The rule that refuses a plan and its text; None if no rule does."""
    known, refused = sites(), []

    def require(path: str, holds: bool, problem: str) -> None:  # noqa: FBT001  # as the one it stands in for
        frame = sys._getframe(1)
        name, line = frame.f_globals["__name__"], frame.f_lineno
        site = next(one for one, lines in known.items() if one[0] == name and line in lines)
        if not holds and site != muted:
            refused.append((site, f"{path}: {problem}"))
            raise PlanInvalid(path, problem)

    with monkeypatch.context() as patch:
        patch.setattr(rules, "require", require)
        with contextlib.suppress(Exception):  # what leans on a muted rule fails in its own way: that is noticed too
            parse_plan(text, read=reader)
    return refused[0] if refused else None


@pytest.mark.slow
def test_every_rule_has_a_plan_that_it_alone_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each rule in the code there is a plan above that, with this rule muted, is not refused in the same words.

    So a rule that is dropped, or that says what another says already, fails here.
    """
    cases: list[tuple[Changes, Read | None]] = [(changes, read) for _, _, changes in BROKEN_RULES]
    alone = set()
    for changes, reader in [*cases, (FILE, None)]:
        text = edited(*changes)
        found = refusing(monkeypatch, text, reader)
        if found is None:  # a duration that does not read, which is no rule of a table
            continue
        again = refusing(monkeypatch, text, reader, muted=found[0])
        if again is None or again[1] != found[1]:
            alone.add(found[0])
    assert sorted(set(sites()) - alone) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "count"', 'kind = "cout"', "a kind is one of count, distinct_units, sum, mean, variance, histogram, "),
        (
            'column = "carrier"',
            'column = "carier"',
            "names no column of the plan: there are time_hour, tailnum, carrier",
        ),
        ('time = "time_hour"', 'time = "time"', "names no column of the plan: there are time_hour, tailnum"),
        ('column = "tailnum"', "", "stands here, or `event = true` does"),
        ('column = "tailnum"', 'column = "tail"', "names no column of the plan: there are time_hour, tailnum"),
        ('column = "dep_delay"', 'column = "delay"', "names no column of the plan: there are time_hour, tailnum"),
        ("[window]", "[window", "(at line "),
        (
            "max_partitions = 1",
            'max_partitions = 1\nmax_windows = 5\nperiod = "28d"',
            "must lie in 1 .. 4, the windows of a period",
        ),
    ],
)
def test_a_refusal_says_what_would_do(plan_text: str, old: str, new: str, said: str) -> None:
    """Guarantee: whoever misspells a name is told the names there are, and whoever breaks the file, where."""
    assert old in plan_text
    with pytest.raises(PlanInvalid) as refused:
        parse_plan(plan_text.replace(old, new, 1))
    assert said in str(refused.value)
