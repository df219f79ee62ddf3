"""What a plan must not be able to do: parse, and then fail in the field."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agg.contract import arrow, codec, rules
from edge_agg.contract.arrow import Keys
from edge_agg.contract.codec import MAX_HEADER_BYTES
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import MAX_METRICS, MAX_UNITS, Count, Plan, PlanHash, parse_plan, plan_hash
from edge_agg.contract.release import Charge, KeySpec, Link, Mechanism, Release, Status, VectorSpec
from edge_agg.contract.vectors import max_keys, payload_columns, plan_vectors

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
DISTINCT = '[[metric]]\nname = "m{0}"\nkind = "sum"\ncolumn = "x"\nlower = 0.0\nupper = 1{0}.0\nresolution = 1.0\n'
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
    """A hundred thousand cells are taken with ten columns and refused with eleven; what is shared counts once."""
    cells = '[[partition]]\ncolumn = "k"\nrange = { start = 0, stop = 100_000 }\n'
    metrics = ["".join(DISTINCT.format(i) for i in range(n)) for n in (10, 11)]
    parse_plan(plan(cells + metrics[0]))
    parse_plan(plan(cells + "".join(COUNT.format(i) for i in range(11))))
    with pytest.raises(PlanInvalid, match="cells times columns"):
        parse_plan(plan(cells + metrics[1]))


def clipped(kind: str, lower: float, upper: float, resolution: float) -> str:
    return (
        f'[[metric]]\nname = "v"\nkind = "{kind}"\ncolumn = "x"\nlower = {lower}\nupper = {upper}\n'
        f"resolution = {resolution}\n"
    )


def accepted(text: str) -> Plan | None:
    """The plan; None if it is refused."""
    try:
        return parse_plan(text)
    except PlanInvalid:
        return None


def largest(plan: Plan) -> int:
    """The farthest from 0 that any sum of the plan can come, with as many units as there may be; exact."""
    reach = []
    for vector in plan_vectors(plan):
        if vector.of in {"rows", "bins"}:
            reach.append(plan.bounds.max_rows_per_partition)
        elif vector.of == "units":
            reach.append(1)
        else:
            assert vector.clip is not None
            farthest = max(abs(vector.clip.lower - vector.clip.centre), abs(vector.clip.upper - vector.clip.centre))
            step = farthest**2 if vector.of == "squares" else farthest
            reach.append(step * (1 if vector.of == "totals" else plan.bounds.max_rows_per_partition))
    return MAX_UNITS * max(reach)


BOUNDS = st.integers(-(2**36), 2**36) | st.integers(0, 36).map(lambda bits: 2**bits) | st.just(0)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["sum", "mean", "variance", 'sum"\nclip = "unit']),
    bounds=st.tuples(BOUNDS, BOUNDS).map(sorted),
    resolution=st.sampled_from([1.0, 0.25, 1024.0]),
    rows=st.integers(1, 2**20) | st.just(1),
)
@example(kind="variance", bounds=[0, 2**18 - 4], resolution=1.0, rows=1)
@example(kind="sum", bounds=[0, 2**34 - 1], resolution=1.0, rows=1)
@example(kind='sum"\nclip = "unit', bounds=[0, 2**31 - 1], resolution=1.0, rows=2**20)
def test_no_plan_that_parses_can_overflow(kind: str, bounds: list[int], resolution: float, rows: int) -> None:
    """With 2**28 units at their bounds every sum stays below 2**62, so noise of scale 2**50 has room above it."""
    lower, upper = (bound * resolution for bound in bounds)
    text = plan(clipped(kind, lower, upper, resolution)).replace(
        "max_rows_per_partition = 1", f"max_rows_per_partition = {rows}"
    )
    parsed = accepted(text)
    assert parsed is None or largest(parsed) < 2**62


@pytest.mark.parametrize(
    ("kind", "upper", "fits"),
    [
        ("sum", 2**34 - 1, True),
        ("sum", 2**34, False),
        ("variance", 2**18 - 4, True),
        ("variance", 2**18, False),
        ('sum"\nclip = "unit', 2**31 - 1, True),
        ('sum"\nclip = "unit', 2**31, False),
    ],
)
def test_the_limit_of_a_grid_is_tight(kind: str, upper: int, fits: bool) -> None:  # noqa: FBT001  # a case
    """The finest grid that cannot overflow is taken, the next one is not: no more is refused than must be."""
    assert (accepted(plan(clipped(kind, 0.0, float(upper), 1.0))) is not None) == fits


def test_mutant_squares_that_are_not_looked_at_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no rule knows what a variance is; a plan gets through whose squares wrap."""
    monkeypatch.setattr(rules, "Variance", Count)
    parsed = accepted(plan(clipped("variance", 0.0, 2.0**30, 1.0)))
    assert parsed is not None
    assert largest(parsed) >= 2**63


def test_the_longest_header_fits() -> None:
    """The most vectors that a plan may have, under the longest names, fit the header's limit with every other field."""
    columns = ", ".join(f'x{i} = "float"' for i in range(MAX_METRICS))
    metrics = "".join(
        clipped("variance", -1.0, 1.0, 0.25).replace('"v"', f'"{f"m{i:03}".ljust(63, "x")}"').replace('"x"', f'"x{i}"')
        for i in range(MAX_METRICS)
    )
    widest = parse_plan(plan(metrics).replace('x = "float"', columns))
    vectors = plan_vectors(widest)
    assert len(vectors) == 3 * MAX_METRICS
    specs = tuple(
        VectorSpec(name=vector.name, mechanism=Mechanism.LAPLACE, scale=0.1, sensitivity=0.1, loss=0.1)
        for vector in vectors
    )
    long = "n" * 128
    charge = Charge(rho=Fraction(2**60 - 1, 2**40), delta=Fraction(2**80 - 1, 2**80))
    release = Release(
        tenant=long,
        agent=long,
        link=Link(incarnation="0" * 32, seq=2**63, prev_hash=b"x" * 32),
        plan=long,
        plan_version=2**31 - 1,
        plan_hash=PlanHash(b"x" * 32),
        window_start=datetime(9000, 1, 1, tzinfo=UTC),
        window_end=datetime(9001, 1, 1, tzinfo=UTC),
        status=Status.RELEASED,
        account=long,
        charge=charge,
        cumulative=charge,
        vectors=specs,
        max_partitions=2**31,
        max_rows_per_partition=2**31,
        max_nodes=2**31,
        selection=KeySpec(
            partition=long,
            mechanism=Mechanism.LAPLACE,
            scale=0.1,
            sensitivity=0.1,
            threshold=2**62,
            loss=0.1,
            delta=0.1,
        ),
        rows=2**31,
        payload_sha256=hashlib.sha256(b"x").digest(),
    )
    assert len(codec.seal(release, b"x").header) < MAX_HEADER_BYTES
    codec.open_sealed(codec.seal(release, b"x").header, b"x")


@pytest.mark.slow
def test_the_largest_release_of_discovered_keys_fits_a_message() -> None:
    """As many keys as a plan may find, each as long as may be, with values that no compression helps: under 16 MiB."""
    found = '[[partition]]\ncolumn = "u"\ndiscover = {{ delta = 1e-9, max_bytes = {} }}\n'
    chance = np.random.default_rng(1)
    for max_bytes, metrics in ((64, 10), (256, 10), (256, 30)):
        widest = parse_plan(plan(found.format(max_bytes) + "".join(DISTINCT.format(i) for i in range(metrics))))
        rows = max_keys(widest)
        texts = sorted(chance.bytes(max_bytes // 2).hex() for _ in range(rows))
        columns = {
            name: chance.integers(-(2**62), 2**62, size=rows, dtype=np.int64) for name in payload_columns(widest)
        }
        assert rows * (max_bytes + 8 * metrics) < 2**24
        payload = arrow.encode(columns, Keys("u", texts))
        assert len(payload) < 2**24 - 2**16
        arrow.decode_keyed(payload, "u", list(columns), rows, cells=1, max_bytes=max_bytes)


def test_a_negative_zero_means_zero() -> None:
    """Equal meaning, equal hash."""
    assert plan_hash(parse_plan(plan(SUM.format("-0.0")))) == plan_hash(parse_plan(plan(SUM.format("0.0"))))
