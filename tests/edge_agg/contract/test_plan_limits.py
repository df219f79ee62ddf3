"""What a plan must not be able to do: parse, and then fail in the field."""

from __future__ import annotations

import pytest

from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import MAX_METRICS, parse_plan, plan_hash

PLAN = """
[plan]
name = "p"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "string", k = "integer", x = "float" }}
[privacy_unit]
column = "u"
[bounds]
max_partitions = 1
max_rows_per_partition = 1
[window]
every = "1d"
[budget]
mechanism = "laplace"
epsilon = 1.0
{rest}
"""
COUNT = '[[metric]]\nname = "m{}"\nkind = "count"\n'
SUM = '[[metric]]\nname = "s"\nkind = "sum"\ncolumn = "x"\nlower = {}\nupper = 1.0\nresolution = 1.0\n'


def plan(rest: str) -> str:
    return PLAN.format(rest=rest)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (plan(COUNT.format(0)).replace("version = 1", "version = 4294967296"), "$.plan.version"),
        (plan("".join(COUNT.format(i) for i in range(MAX_METRICS + 1))), "$.metric"),
        (plan(COUNT.format(0)).replace('every = "1d"', 'every = "\u0667d"'), "$.window.every"),
        (plan(COUNT.format(0)).replace("version = 1", "version = " + "1" * 5000), "$"),
        ("x = " + "[" * 5000, "$"),
        (plan(COUNT.format("\ud800")), "$"),
    ],
    ids=["version over 32 bits", "too many metrics", "digits of another script", "huge integer", "deep", "surrogate"],
)
def test_a_plan_that_could_not_run_is_refused(text: str, path: str) -> None:
    """It is refused when it is parsed, as PlanInvalid: no other exception, and no charge for what cannot be sealed."""
    with pytest.raises(PlanInvalid) as refused:
        parse_plan(text)
    assert refused.value.path == path


def test_a_release_is_bounded_by_cells_times_vectors() -> None:
    """A hundred thousand cells are taken with ten vectors and refused with eleven."""
    cells = f'[[partition]]\ncolumn = "k"\nvalues = {list(range(100_000))}\n'
    metrics = ["".join(COUNT.format(i) for i in range(n)) for n in (10, 11)]
    parse_plan(plan(cells + metrics[0]))
    with pytest.raises(PlanInvalid, match="cells times vectors"):
        parse_plan(plan(cells + metrics[1]))


def test_a_negative_zero_means_zero() -> None:
    """Equal meaning, equal hash."""
    assert plan_hash(parse_plan(plan(SUM.format("-0.0")))) == plan_hash(parse_plan(plan(SUM.format("0.0"))))
