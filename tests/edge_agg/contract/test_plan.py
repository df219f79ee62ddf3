"""The plan grammar: what parses, what the hash covers, and that every refusal names its field."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.contract import plan as plan_module
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import MAX_CELLS, Count, DistinctUnits, Mean, Sum, parse_duration, parse_plan, plan_hash

if TYPE_CHECKING:
    from collections.abc import Callable

    Edit = Callable[..., str]

Changes = tuple[tuple[str, str], ...]

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

SECOND_PARTITION = '[[partition]]\ncolumn = "tailnum"\nvalues = ["x"]\n\n[[metric]]\nname = "departures"'

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
            ('["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"]', "[9223372036854775808]"),
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
]
CHECKS = ("names", "columns", "bounds", "window", "partitions", "metrics", "budget")

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


def test_a_plan_is_frozen(plan_text: str) -> None:
    """What was hashed cannot be changed afterwards."""
    plan = parse_plan(plan_text)
    with pytest.raises(AttributeError):
        plan.budget.epsilon = 64.0  # type: ignore[misc]  # the point of the test


def test_the_golden_hash(plan_text: str) -> None:
    """The hash of the design's plan never changes: fielded agents and stored releases go by it."""
    assert plan_hash(parse_plan(plan_text)).hex() == GOLDEN_HASH


@pytest.mark.parametrize("changes", SAME_MEANING.values(), ids=SAME_MEANING.keys())
def test_a_change_of_spelling_keeps_the_hash(edit: Edit, changes: Changes) -> None:
    """Comments, order of tables and fields, spelling of numbers and durations, and the description do not count."""
    assert plan_hash(parse_plan(edit(*changes))).hex() == GOLDEN_HASH


def unnoticed(edit: Edit) -> list[str]:
    """The changes of meaning after which the hash is still that of the unchanged plan."""
    base = plan_hash(parse_plan(edit()))
    return [field for field, changes in NEW_MEANING if plan_hash(parse_plan(edit(*changes))) == base]


def test_every_change_of_meaning_changes_the_hash(edit: Edit) -> None:
    """No two plans that measure different things share a hash."""
    assert unnoticed(edit) == []
    hashes = {bytes(plan_hash(parse_plan(edit(*changes)))) for _, changes in NEW_MEANING}
    assert len(hashes) == len(NEW_MEANING)


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
    """A field that is added to the grammar must be added to the list of meanings."""
    tables: dict[str, type[Any]] = {
        "plan": plan_module.Identity,
        "events": plan_module.Events,
        "privacy_unit": plan_module.PrivacyUnit,
        "bounds": plan_module.Bounds,
        "window": plan_module.Window,
        "partition": plan_module.Partition,
        "budget": plan_module.Budget,
    }
    fields = {f"{table}.{field.name}" for table, type_ in tables.items() for field in msgspec.structs.fields(type_)}
    for type_ in (Count, DistinctUnits, Sum, Mean):
        fields |= {f"metric.{field.name}" for field in msgspec.structs.fields(type_)}
    top = {field.name for field in msgspec.structs.fields(plan_module.Plan)}
    assert top == {*tables, "metric"}
    assert fields - {"plan.description"} <= {field for field, _ in NEW_MEANING}


@pytest.mark.parametrize("table", ["events", "privacy_unit", "bounds", "partition", "metric", "budget"])
def test_mutant_a_hash_that_forgets_a_table_is_caught(edit: Edit, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Mutant: the hash leaves one table out; the list of meanings notices."""
    original = msgspec.to_builtins

    def forgetful(plan: object) -> Any:
        return {key: value for key, value in original(plan).items() if key != table}

    monkeypatch.setattr(msgspec, "to_builtins", forgetful)
    assert table in {field.partition(".")[0] for field in unnoticed(edit)}


def refused_at(text: str) -> str | None:
    """The path of the refusal; None if the plan parses."""
    try:
        parse_plan(text)
    except PlanInvalid as invalid:
        return invalid.path if str(invalid) == f"{invalid.path}: {invalid.problem}" else f"not in {invalid}"
    return None


@pytest.mark.parametrize(
    ("check", "path", "changes"), BROKEN_RULES, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(BROKEN_RULES)]
)
def test_a_broken_rule_is_refused_with_its_path(
    edit: Edit, monkeypatch: pytest.MonkeyPatch, check: str, path: str, changes: Changes
) -> None:
    """Each rule that types cannot say refuses at the field that breaks it.

    Mutant: with the checks taken out the same plan parses, so it is this rule that refuses and nothing else.
    """
    text = edit(*changes)
    assert refused_at(text) == path
    for name in CHECKS:
        if name != check:
            monkeypatch.setattr(plan_module, f"_check_{name}", lambda plan: None)
    assert refused_at(text) == path
    monkeypatch.setattr(plan_module, f"_check_{check}", lambda plan: None)
    assert refused_at(text) is None


def test_every_check_has_a_case() -> None:
    """The list above leaves no check of the grammar out."""
    there = {name.removeprefix("_check_") for name in vars(plan_module) if name.startswith("_check_")} - {"clip"}
    assert there == set(CHECKS) == {check for check, _, _ in BROKEN_RULES}


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
