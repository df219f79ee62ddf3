"""The plan grammar: what parses, what the hash covers, and that every refusal names its field."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract import plan as plan_module
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import (
    MAX_CELLS,
    Count,
    DistinctUnits,
    Mean,
    Metric,
    Plan,
    parse_duration,
    parse_plan,
    plan_hash,
)
from tests.edge_agg.contract.plans import (
    CALENDAR,
    DERIVE,
    DISCOVER,
    EVENT,
    FILE,
    INTEGERS,
    KEYS,
    PERIOD,
    RANGE,
    SECOND_PARTITION,
    Changes,
    more,
    parsed,
    refused_at,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Edit = Callable[..., str]

GOLDEN_HASH = "a4e914cacbc77a1b51b9de914dc0d3f8840c2f55fa0b43c6134c6bf5cd03d79c"

SAME_MEANING: dict[str, Changes] = {
    "comments": (("# L-infinity", "# another remark"), ("# event time", "")),
    "order of columns": (('tailnum = "string"\ncarrier = "string"\n', 'carrier = "string"\ntailnum = "string"\n'),),
    "order of fields": (('name = "flight_delays"\nversion = 1\n', 'version = 1\nname = "flight_delays"\n'),),
    "order of tables": (
        ('[plan]\nname = "flight_delays"\nversion = 1\n', ""),
        ("[[partition]]", '[plan]\nname = "flight_delays"\nversion = 1\n\n[[partition]]'),
    ),
    "unit of every": (('"7d"', '"168h"'),),
    "unit of lateness": (('"1h"', '"3600000ms"'),),
    "integer for a float": (("epsilon = 2.0", "epsilon = 2"), ("lower = -30.0", "lower = -30")),
    "spelling of a float": (("delta = 1e-6", "delta = 0.000001"), ("upper = 180.0", "upper = 1.8e2")),
    "description": (("version = 1", 'version = 1\ndescription = "for people"'),),
    "spelled-out default": (('kind = "count"', 'kind = "count"\nweight = 1.0'),),
}

LISTED = (KEYS, "values = [0, 1, 2, 3, 4, 5, 6, 7, 8]")
HISTOGRAM = 'kind = "histogram"\ncolumn = "dep_delay"\n'

# Changes that make another plan, and changes to that one which do not.
SAME_MEANING_OF: dict[str, tuple[Changes, Changes]] = {
    "unit of the period": (PERIOD, (('"28d"', '"672h"'),)),
    "a range, with its step": (RANGE, (("stop = 9", "stop = 9, step = 1"),)),
    "a range, by its last key": (
        (*RANGE, ("stop = 9", "stop = 9, step = 2")),
        (("stop = 9", "stop = 10"),),
    ),
    "a range, listed": ((*INTEGERS, LISTED), ((LISTED[1], "range = { start = 0, stop = 9 }"),)),
    "a range downwards": (
        (*INTEGERS, (KEYS, "values = [8, 5, 2, -1]")),
        (("values = [8, 5, 2, -1]", "range = { start = 8, stop = -4, step = -3 }"),),
    ),
    "a file": ((), FILE),
    "a file with a byte order mark, carriage returns and empty lines": ((), ((KEYS, 'file = "dos.txt"'),)),
    "a file elsewhere": (FILE, (("keys.txt", "folder/keys.txt"),)),
    "a file of integers": (
        (*INTEGERS, (KEYS, "values = [0, 1, -2]")),
        (("values = [0, 1, -2]", 'file = "numbers.txt"'),),
    ),
    "the name of a partition": ((), (("other = true", 'other = true\nname = "carrier"'),)),
    "the name of a calendar": (CALENDAR, (('calendar = "hour"', 'calendar = "hour"\nname = "time_hour_hour"'),)),
    "UTC": (CALENDAR, (('calendar = "hour"', 'calendar = "hour"\ntimezone = "UTC"'),)),
    "discover": (DISCOVER, (("1e-9", "1e-9, max_bytes = 64, weight = 1.0"),)),
    "clip by rows": (
        (('kind = "mean"', 'kind = "sum"'),),
        (('kind = "sum"', 'kind = "sum"\nclip = "row"'),),
    ),
    "a calendar's UTC": (DERIVE, (('calendar = "hour"', 'calendar = "hour"\ntimezone = "UTC"'),)),
    "buckets with names": (DERIVE, (("15.5, 60]", "15.5, 6e1]\nnumbered = false"),)),
    "the order of a map": (DERIVE, (('aa = "big", ua = "big"', 'ua = "big", aa = "big"'),)),
    "the order of what a filter lists": (DERIVE, (("[9, 10, 11]", "[11, 9, 10]"),)),
    "an integer for a filter's float": (DERIVE, (("at_least = -60", "at_least = -60.0"),)),
    "drop": ((), (('lateness = "1h"', 'lateness = "1h"\nlate = "drop"'),)),
    "linear bins": (
        (more(HISTOGRAM + "lower = 0.0\nupper = 8.0\nbins = 4"),),
        (("bins = 4", 'bins = 4\nspacing = "linear"'),),
    ),
    "integers for edges": ((more(HISTOGRAM + "edges = [0.0, 1.0, 2.0]"),), (("[0.0, 1.0, 2.0]", "[0, 1, 2]"),)),
    "negative zero": ((more(HISTOGRAM + "edges = [0.0, 1.0, 2.0]"),), (("[0.0, 1.0, 2.0]", "[-0.0, 1.0, 2.0]"),)),
}

# Label: the field whose meaning changes.
NEW_MEANING: list[tuple[str, Changes]] = [
    ("plan.name", (('"flight_delays"', '"flight_delay"'),)),
    ("plan.version", (("version = 1", "version = 2"),)),
    ("events.columns", (('dep_delay = "float"', 'dep_delay = "integer"'),)),
    ("events.columns", (('dep_delay = "float"', 'dep_delay = "float"\narr_delay = "float"'),)),
    ("privacy_unit.column", (('column = "tailnum"', 'column = "carrier"'),)),
    ("privacy_unit.max_nodes", (("max_nodes = 3", "max_nodes = 4"),)),
    ("privacy_unit.max_nodes", (("max_nodes = 3", ""),)),
    ("bounds.max_partitions", (("max_partitions = 1", "max_partitions = 2"),)),
    ("bounds.max_rows_per_partition", (("max_rows_per_partition = 5", "max_rows_per_partition = 6"),)),
    ("window.every", (('"7d"', '"8d"'),)),
    ("window.lateness", (('"1h"', '"2h"'),)),
    ("window.lateness", (('lateness = "1h"', ""),)),
    ("partition.column", (('column = "carrier"', 'column = "tailnum"'),)),
    ("partition.values", (('"US", "WN"', '"WN", "US"'),)),
    ("partition.values", ((', "WN"', ""),)),
    ("partition.other", (("other = true", "other = false"),)),
    ("metric.name", (('name = "departures"', 'name = "flights"'),)),
    ("metric.kind", (('kind = "mean"', 'kind = "sum"'),)),
    ("metric.kind", (('kind = "distinct_units"', 'kind = "count"'),)),
    ("metric.weight", (('kind = "count"', 'kind = "count"\nweight = 2.0'),)),
    (
        "metric.column",
        (('column = "dep_delay"', 'column = "n"'), ('dep_delay = "float"', 'dep_delay = "float"\nn = "float"')),
    ),
    ("metric.lower", (("lower = -30.0", "lower = -31.0"),)),
    ("metric.upper", (("upper = 180.0", "upper = 181.0"),)),
    ("metric.resolution", (("resolution = 0.1", "resolution = 0.2"),)),
    ("metric", (('[[metric]]\nname = "aircraft"\nkind = "distinct_units"\n', ""),)),
    ("budget.mechanism", (('"gaussian"', '"laplace"'), ("delta = 1e-6", ""))),
    ("budget.epsilon", (("epsilon = 2.0", "epsilon = 2.5"),)),
    ("budget.delta", (("delta = 1e-6", "delta = 1e-7"),)),
    (
        "events.time",
        (
            ('time = "time_hour"', 'time = "arrived"'),
            ('dep_delay = "float"', 'dep_delay = "float"\narrived = "timestamp"'),
        ),
    ),
]

# The same for fields that the unchanged plan does not use: what makes another plan, and what changes that one.
NEW_MEANING_OF: list[tuple[str, Changes, Changes]] = [
    ("privacy_unit.event", EVENT[1:], EVENT[:1]),
    ("bounds.max_windows", PERIOD, (("max_windows = 2", "max_windows = 3"),)),
    ("bounds.period", PERIOD, (('"28d"', '"35d"'),)),
    ("bounds.period", (), PERIOD),
    ("partition.range", (*INTEGERS, LISTED), ((LISTED[1], "range = { start = 0, stop = 8 }"),)),
    ("range.start", RANGE, (("start = 0", "start = 1"),)),
    ("range.stop", RANGE, (("stop = 9", "stop = 10"),)),
    ("range.step", RANGE, (("stop = 9", "stop = 9, step = 2"),)),
    ("partition.file", (), ((KEYS, 'file = "fewer.txt"'),)),
    ("partition.calendar", CALENDAR, (('"hour"', '"weekday"'),)),
    ("partition.calendar", (), CALENDAR),
    ("partition.timezone", CALENDAR, (('"hour"', '"hour"\ntimezone = "Europe/Paris"'),)),
    ("partition.timezone", CALENDAR, (('"hour"', '"hour"\ntimezone = "Europe/Berlin"'),)),
    ("partition.name", (), (("other = true", 'other = true\nname = "airline"'),)),
    ("partition.name", (), (("other = true", 'other = true\nname = "Carrier"'),)),
    ("partition.discover", (), DISCOVER),
    ("discover.delta", DISCOVER, (("1e-9", "2e-9"),)),
    ("discover.max_bytes", DISCOVER, (("1e-9", "1e-9, max_bytes = 65"),)),
    ("discover.weight", DISCOVER, (("1e-9", "1e-9, weight = 2.0"),)),
    ("partition.values", ((KEYS, 'values = ["1", "0"]'),), (('values = ["1", "0"]', 'values = ["01", "0"]'),)),
    ("partition.values", ((KEYS, 'values = ["1", "0"]'),), (('values = ["1", "0"]', "values = [1, 0]"), *INTEGERS)),
    (
        "partition.values",
        ((KEYS, "values = [1, 0]"), *INTEGERS),
        (("values = [1, 0]", "values = [true, false]"), ('carrier = "integer"', 'carrier = "boolean"')),
    ),
    ("partition.values", ((KEYS, 'values = ["a", "\u00e9"]'),), (('"\u00e9"', '"e\u0301"'),)),
    ("window.late", (), (('lateness = "1h"', 'lateness = "1h"\nlate = "assign"'),)),
    ("derive", (), DERIVE),
    ("derive.column", DERIVE, (('column = "band"', 'column = "delays"'),)),
    ("derive.source", DERIVE, (('from = "small"', 'from = "airline"'),)),
    ("derive.buckets", DERIVE, (("15.5, 60", "15.5, 61"),)),
    ("derive.numbered", DERIVE, (("15.5, 60]", "15.5, 60]\nnumbered = true"),)),
    ("derive.calendar", DERIVE, (('calendar = "hour"', 'calendar = "weekday"'), ("[9, 10, 11]", "[1]"))),
    ("derive.timezone", DERIVE, (('calendar = "hour"', 'calendar = "hour"\ntimezone = "Europe/Paris"'),)),
    ("derive.lower", DERIVE, (("lower = true", "first = 9"),)),
    ("derive.lower", DERIVE, (("lower = true", ""),)),
    ("derive.first", DERIVE, (("first = 2", "first = 3"),)),
    ("derive.map", DERIVE, (('aa = "big"', 'aa = "large"'),)),
    ("derive.otherwise", DERIVE, (('ua = "big" }', 'ua = "big" }\notherwise = "small"'),)),
    ("filter.column", DERIVE, (('column = "dep_delay"\nat_least', 'column = "hour"\nat_least'),)),
    ("filter.equals", DERIVE, (("in = [9, 10, 11]", "equals = 9"),)),
    ("filter.not_equals", DERIVE, (("in = [9, 10, 11]", "not_equals = 9"),)),
    ("filter.within", DERIVE, (("[9, 10, 11]", "[9, 10]"),)),
    ("filter.at_least", DERIVE, (("at_least = -60", "at_least = -61"),)),
    *((f"filter.{name}", DERIVE, (("at_least", name),)) for name in ("above", "at_most", "below")),
]

# A value of each field of each kind of metric, and another one; the same twice where a rule allows no other.
CLIPPED = {
    "column": ('"dep_delay"', '"n"'),
    "lower": ("-30.0", "-31.0"),
    "upper": ("180.0", "181.0"),
    "resolution": ("0.1", "0.2"),
    "weight": ("1.0", "2.0"),
}
LISTED_BINS = {"column": ('"dep_delay"', '"n"'), "edges": ("[0, 1, 2]", "[0, 1, 3]"), "weight": ("1.0", "2.0")}
RULED_BINS = {
    "column": ('"dep_delay"', '"n"'),
    "lower": ("1.0", "2.0"),
    "upper": ("180.0", "181.0"),
    "bins": ("8", "9"),
    "spacing": ("", '"logarithmic"'),
    "weight": ("1.0", "2.0"),
}
KINDS: dict[str, dict[str, tuple[str, str]]] = {
    "count": {"weight": ("1.0", "2.0")},
    "distinct_units": {"weight": ("1.0", "2.0")},
    "sum": CLIPPED | {"clip": ("", '"unit"')},
    "mean": CLIPPED,
    "variance": CLIPPED,
    "histogram": LISTED_BINS,
    "histogram by rule": RULED_BINS,
    "quantiles": LISTED_BINS | {"quantiles": ("[0.5]", "[0.25, 0.5]")},
    "quantiles by rule": RULED_BINS | {"quantiles": ("[0.5]", "[0.25, 0.5]")},
    "ratio": {
        "numerator": ('"departures"', '"flights"'),
        "denominator": ('"aircraft"', '"planes"'),
        "weight": ("1.0", "1.0"),
    },
}

# What the metrics above read.
MORE: Changes = (
    ('tailnum = "string"', 'tailnum = "string"\nn = "float"'),
    ('kind = "count"\n', 'kind = "count"\n[[metric]]\nname = "flights"\nkind = "count"\n'),
    ('kind = "distinct_units"\n', 'kind = "distinct_units"\n[[metric]]\nname = "planes"\nkind = "distinct_units"\n'),
)

# The change, the path, and a word that the message must hold.
WRONG_SHAPE: list[tuple[Changes, str, str]] = [
    ((("version = 1", 'version = "1"'),), "$.plan.version", "int"),
    ((("version = 1", "version = 1.5"),), "$.plan.version", "int"),
    ((("version = 1", "version = true"),), "$.plan.version", "int"),
    ((("version = 1", ""),), "$.plan", "version"),
    ((('"flight_delays"', "7"),), "$.plan.name", "str"),
    ((("max_partitions = 1", "max_partitions = 1.5"),), "$.bounds.max_partitions", "int"),
    ((('"7d"', "7"),), "$.window.every", "str"),
    ((("epsilon = 2.0", 'epsilon = "2"'),), "$.budget.epsilon", "float"),
    ((("lower = -30.0", 'lower = "low"'),), "$.metric[2].lower", "float"),
    ((("lower = -30.0", ""),), "$.metric[2]", "lower"),
    ((('kind = "count"', ""),), "$.metric[0]", "kind"),
    ((('kind = "count"', 'kind = "median"'),), "$.metric[0].kind", "median"),
    ((('"gaussian"', '"cauchy"'),), "$.budget.mechanism", "cauchy"),
    ((("other = true", 'other = "yes"'),), "$.partition[0].other", "bool"),
    ((('["9E"', '[2020-01-01, "9E"'),), "$.partition[0].values[0]", "date"),
    ((('dep_delay = "float"', 'dep_delay = "double"'),), "$.events.columns", "double"),
    ((("[bounds]", "[bound]"),), "$", "bound"),
    ((('[plan]\nname = "flight_delays"\nversion = 1', ""),), "$", "plan"),
    ((("[plan]", "[plan"),), "$", "TOML"),
]

UNKNOWN_FIELD: list[tuple[Changes, str]] = [
    ((("[plan]", "surprise = 1\n[plan]"),), "$"),
    ((("version = 1", "version = 1\nsurprise = 1"),), "$.plan"),
    ((("[events]", "[events]\nsurprise = 1"),), "$.events"),
    ((("[privacy_unit]", "[privacy_unit]\nsurprise = 1"),), "$.privacy_unit"),
    ((("[bounds]", "[bounds]\nsurprise = 1"),), "$.bounds"),
    ((("[window]", "[window]\nsurprise = 1"),), "$.window"),
    ((("[[partition]]", "[[partition]]\nsurprise = 1"),), "$.partition[0]"),
    ((('kind = "count"', 'kind = "count"\nsurprise = 1'),), "$.metric[0]"),
    ((('kind = "distinct_units"', 'kind = "distinct_units"\nsurprise = 1'),), "$.metric[1]"),
    ((('kind = "mean"', 'kind = "mean"\nsurprise = 1'),), "$.metric[2]"),
    ((("epsilon = 2.0", "epsilon = 2.0\nsurprise = 1"),), "$.budget"),
    ((*DERIVE, ("lower = true", "lower = true\nsurprise = 1")), "$.derive[3]"),
    ((*DERIVE, ("at_least = -60", "at_least = -60\nsurprise = 1")), "$.filter[1]"),
]


def test_the_plan_of_the_design_parses(plan_text: str) -> None:
    """Every line of the design's plan is read as it is meant."""
    plan = parse_plan(plan_text)
    assert (plan.name, plan.version) == ("flight_delays", 1)
    assert plan.events.time == "time_hour"
    assert (plan.privacy_unit.column, plan.privacy_unit.max_nodes) == ("tailnum", 3)
    assert (plan.bounds.max_partitions, plan.bounds.max_rows_per_partition) == (1, 5)
    assert (plan.every, plan.lateness) == (timedelta(days=7), timedelta(hours=1))
    assert [partition.column for partition in plan.partition] == ["carrier"]
    assert plan.partition[0].other
    assert [type(metric) for metric in plan.metric] == [Count, DistinctUnits, Mean]
    mean = plan.metric[2]
    assert isinstance(mean, Mean)
    assert mean.grid == (-300, 1800)
    assert (plan.budget.mechanism, plan.budget.epsilon, plan.budget.delta) == ("gaussian", 2.0, 1e-6)


def test_a_unit_has_a_name() -> None:
    """An account says whom it protects by this name: a column, or `event`, which no column of units may be called."""
    assert parsed().privacy_unit.label == "tailnum"
    assert parsed(*EVENT).privacy_unit.label == "event"


def test_derived_columns_have_types() -> None:
    """What a derivation makes has the type that its kind says; what a plan reads of an event stays as it was."""
    plan = parsed(*DERIVE)
    derived = {name: kind for name, kind in plan.columns.items() if name not in plan.events.columns}
    kinds = ["string", "string", "integer", "string", "string", "string"]
    assert derived == dict(zip(["airline", "band", "hour", "small", "head", "group"], kinds, strict=True))
    assert plan.derive[1].labels == ["..0", "0..15.5", "15.5..60", "60.."]
    assert parsed(*DERIVE, ("15.5, 60]", "15.5, 60]\nnumbered = true")).columns["band"] == "integer"
    assert parsed().columns == parsed().events.columns


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8, unique=True))
def test_no_two_buckets_are_called_alike(edges: list[float]) -> None:
    """Guarantee: different edges are written differently, so each bucket has a name of its own."""
    labels = plan_module.Derivation(column="c", source="s", buckets=sorted(edges)).labels
    assert len(set(labels)) == len(labels) == len(edges) + 1


def test_a_plan_is_frozen(plan_text: str) -> None:
    """What was hashed cannot be changed afterwards."""
    plan = parse_plan(plan_text)
    with pytest.raises(AttributeError):
        plan.budget.epsilon = 64.0  # type: ignore[misc]  # the point of the test


def test_the_golden_hash(plan_text: str) -> None:
    """The hash of the design's plan never changes: fielded agents and stored releases go by it."""
    assert plan_hash(parse_plan(plan_text)).hex() == GOLDEN_HASH


@pytest.mark.parametrize("changes", SAME_MEANING.values(), ids=SAME_MEANING.keys())
def test_a_change_of_spelling_keeps_the_hash(changes: Changes) -> None:
    """Comments, order of tables and fields, spelling of numbers and durations, and the description do not count."""
    assert hashed(*changes) == GOLDEN_HASH


@pytest.mark.parametrize(("base", "changes"), SAME_MEANING_OF.values(), ids=SAME_MEANING_OF.keys())
def test_a_default_that_is_spelled_out_keeps_the_hash(base: Changes, changes: Changes) -> None:
    """The same of what the unchanged plan does not use; and the parsed plans are equal, not only their hashes."""
    assert hashed(*base) == hashed(*base, *changes)
    assert parsed(*base).partition == parsed(*base, *changes).partition
    assert parsed(*base).metric == parsed(*base, *changes).metric
    assert parsed(*base).derive == parsed(*base, *changes).derive
    assert parsed(*base).filter == parsed(*base, *changes).filter


def test_mutant_defaults_that_are_kept_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: what was written is what is hashed; the spellings above are then other plans."""
    monkeypatch.setattr(plan_module, "_plain_partition", lambda partition: partition)
    monkeypatch.setattr(plan_module, "_plain_metric", lambda metric: metric)
    monkeypatch.setattr(plan_module, "_plain_derivation", lambda derivation: derivation)
    monkeypatch.setattr(plan_module, "_plain_filter", lambda each, kind: each)
    told = {name for name, (base, changes) in SAME_MEANING_OF.items() if hashed(*base) != hashed(*base, *changes)}
    assert told == set(SAME_MEANING_OF) - {
        "unit of the period",
        "integers for edges",
        "negative zero",
        "discover",
        "a range, with its step",
        "buckets with names",
        "the order of a map",
        "drop",
    }


def unnoticed() -> list[str]:
    """The changes of meaning after which the hash is still that of the unchanged plan."""
    meanings = [(field, (), changes) for field, changes in NEW_MEANING] + NEW_MEANING_OF
    return [field for field, base, changes in meanings if hashed(*base) == hashed(*base, *changes)]


def hashed(*changes: tuple[str, str]) -> str:
    """The hash of a changed plan."""
    return plan_hash(parsed(*changes)).hex()


def test_every_change_of_meaning_changes_the_hash() -> None:
    """No two plans that measure different things share a hash."""
    assert unnoticed() == []
    plans = {changes for _, changes in NEW_MEANING} | {(*base, *changes) for _, base, changes in NEW_MEANING_OF}
    plans |= {base for _, base, _ in NEW_MEANING_OF}
    first: dict[str, Plan] = {}
    for changes in plans:
        plan = parsed(*changes)
        assert first.setdefault(plan_hash(plan).hex(), plan) == plan
    assert len(first) > 50


def test_the_order_of_partitions_and_metrics_is_meaning(edit: Edit) -> None:
    """Cells and payload columns follow the plan's order, so another order is another plan."""
    first = ('[[metric]]\nname = "departures"', SECOND_PARTITION)
    swapped = (
        edit(first)
        .replace('column = "carrier"', 'column = "swap"')
        .replace('column = "tailnum"\nvalues', 'column = "carrier"\nvalues')
    )
    swapped = swapped.replace('column = "swap"', 'column = "tailnum"')
    assert plan_hash(parse_plan(edit(first))) != plan_hash(parse_plan(swapped))
    count, units = (
        '[[metric]]\nname = "departures"\nkind = "count"\n',
        '[[metric]]\nname = "aircraft"\nkind = "distinct_units"\n',
    )
    reordered = edit((count, ""), (units, units + "\n" + count))
    assert plan_hash(parse_plan(reordered)).hex() != GOLDEN_HASH


def test_every_field_of_the_grammar_is_changed_above() -> None:
    """A field that is added to the grammar must be added to the meanings; those of metrics are looked at below."""
    tables: dict[str, type[Any]] = {
        "plan": plan_module.Identity,
        "events": plan_module.Events,
        "privacy_unit": plan_module.PrivacyUnit,
        "bounds": plan_module.Bounds,
        "window": plan_module.Window,
        "partition": plan_module.Partition,
        "range": plan_module.Range,
        "discover": plan_module.Discover,
        "budget": plan_module.Budget,
        "derive": plan_module.Derivation,
        "filter": plan_module.Filter,
    }
    fields = {f"{table}.{field.name}" for table, type_ in tables.items() for field in msgspec.structs.fields(type_)}
    top = {field.name for field in msgspec.structs.fields(plan_module.Plan)}
    assert top == set(tables) - {"range", "discover"} | {"metric"}
    changed = {field for field, _ in NEW_MEANING} | {field for field, _, _ in NEW_MEANING_OF}
    assert fields - {"plan.description"} <= changed


def body(kind: str, **values: str) -> str:
    """A metric of a kind, with some fields set to something else."""
    fields = {name: first for name, (first, _) in KINDS[kind].items()} | values
    return f'kind = "{kind.split(maxsplit=1)[0]}"\n' + "".join(
        f"{name} = {text}\n" for name, text in fields.items() if text
    )


def test_every_field_of_every_kind_of_metric_changes_the_hash() -> None:
    """Each kind's fields are listed above, and another value in any one of them is another plan."""
    listed: dict[str, set[str]] = {}
    for kind, fields in KINDS.items():
        listed.setdefault(kind.split()[0], {"name"}).update(fields)
    types = {str(kind.__struct_config__.tag): kind for kind in get_args(Metric)}
    assert listed == {tag: {field.name for field in msgspec.structs.fields(kind)} for tag, kind in types.items()}
    for kind, fields in KINDS.items():
        plans = [
            body(kind),
            *(body(kind, **{name: other}) for name, (first, other) in fields.items() if first != other),
        ]
        assert len({hashed(*MORE, more(text)) for text in plans}) == len(plans), kind


@settings(max_examples=15)
@given(data=st.data())
def test_hashes_are_equal_exactly_where_plans_are(data: st.DataObject) -> None:
    """Of two plans drawn from the grammar, either both the values and the hashes are equal, or neither is."""

    def draw() -> Plan:
        kind = data.draw(st.sampled_from(list(KINDS)))
        chosen = {name: data.draw(st.sampled_from(values)) for name, values in KINDS[kind].items()}
        changes = data.draw(st.sampled_from([(), FILE, CALENDAR, DISCOVER, PERIOD, DERIVE, (*RANGE,)]))
        return parsed(*changes, *MORE, more(body(kind, **chosen)))

    one, other = draw(), draw()
    assert (plan_hash(one) == plan_hash(other)) == (one == other)


@pytest.mark.parametrize(
    "table", ["events", "privacy_unit", "bounds", "partition", "metric", "budget", "derive", "filter"]
)
def test_mutant_a_hash_that_forgets_a_table_is_caught(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Mutant: the hash leaves one table out; the list of meanings notices."""
    original = msgspec.to_builtins

    def forgetful(plan: object) -> Any:
        return {key: type(value)() if key == table else value for key, value in original(plan).items()}

    monkeypatch.setattr(msgspec, "to_builtins", forgetful)
    assert table in {field.partition(".")[0] for field in unnoticed()}


@pytest.mark.parametrize(("changes", "path", "word"), WRONG_SHAPE)
def test_a_wrong_type_is_refused_with_its_path(edit: Edit, changes: Changes, path: str, word: str) -> None:
    """A field of the wrong type, or one that is missing, is refused where it stands."""
    with pytest.raises(PlanInvalid) as refused:
        parse_plan(edit(*changes))
    assert refused.value.path.removesuffix("[...]") == path
    assert word in str(refused.value)


@pytest.mark.parametrize(("changes", "table"), UNKNOWN_FIELD, ids=[table for _, table in UNKNOWN_FIELD])
def test_an_unknown_field_is_refused_by_name(edit: Edit, changes: Changes, table: str) -> None:
    """A misspelt option never goes unnoticed: the refusal names the field and the table it stands in."""
    with pytest.raises(PlanInvalid) as refused:
        parse_plan(edit(*changes))
    assert refused.value.path.startswith(table)
    assert "surprise" in str(refused.value)


def test_no_plan_at_all_is_refused() -> None:
    """An empty text lacks its tables; a plan without metrics would release nothing."""
    assert refused_at("") == "$"


def test_a_plan_without_metrics_is_refused(plan_text: str) -> None:
    """A plan releases something, or is refused."""
    before, _, rest = plan_text.partition("[[metric]]")
    text = "metric = []\n" + before + rest[rest.index("[budget]") :]
    assert refused_at(text) == "$.metric"


def test_the_largest_product_of_cells_is_allowed(edit: Edit) -> None:
    """The limit itself is allowed: 250 x 400 cells."""
    rows = ", ".join(f'"{i}"' for i in range(250))
    columns = ", ".join(f'"{i}"' for i in range(MAX_CELLS // 250))
    text = edit(
        ('"9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"', rows),
        ("other = true", "other = false"),
        ('[[metric]]\nname = "departures"', SECOND_PARTITION.replace('"x"', columns)),
    )
    assert refused_at(text) is None
    assert refused_at(text.replace("other = false", "other = true")) == "$.partition"


@given(text=st.text(max_size=200))
def test_any_text_is_a_plan_or_is_invalid(text: str) -> None:
    """Whatever is typed, the only refusal is PlanInvalid."""
    assert refused_at(text) is not None


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("7d", timedelta(days=7)),
        ("1h", timedelta(hours=1)),
        ("30m", timedelta(minutes=30)),
        ("10s", timedelta(seconds=10)),
        ("250ms", timedelta(milliseconds=250)),
        ("5us", timedelta(microseconds=5)),
        ("0s", timedelta(0)),
    ],
)
def test_a_duration_reads_exactly(text: str, length: timedelta) -> None:
    """A duration is a whole number of one unit, without rounding."""
    assert parse_duration(text) == length


@pytest.mark.parametrize("text", ["", "7", "d", "7 d", "7D", "-7d", "1.5h", "7d1h", "1000000000s", "7d\n", "1y"])
def test_anything_else_is_no_duration(text: str) -> None:
    """A duration that could be misread is refused."""
    with pytest.raises(ValueError, match="a duration is"):
        parse_duration(text)
