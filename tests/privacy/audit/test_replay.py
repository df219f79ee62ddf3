"""Record and replay (promise A4): with the mechanisms' answers frozen, neighbours give the same bytes.

The agent drains a file of strange rows, and the same file with one unit's rows more; what the mechanisms answer does
not depend on what they are asked. Everything that leaves is compared: requests on the wire, events, the outcome.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg import telemetry
from edge_agg.assembly import build
from edge_agg.config import load
from edge_agg.privacy import noise
from edge_agg.series import Series
from tests.fakes import MONDAY, WEEK, FakeClock, FakeCollector, frozen_noise
from tests.privacy.audit import strange
from tests.privacy.audit.path import AGENT
from tests.privacy.audit.strange import Raw, raws

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from edge_agg.contract.release import Mechanism

    Int64s = npt.NDArray[np.int64]

pytestmark = pytest.mark.slow

MINE = "mine"
CLIPPED = 'column = "x"\nlower = -2.0\nupper = 5.0\nresolution = 0.5'
METRICS = f"""
[[metric]]
name = "n"
kind = "count"
[[metric]]
name = "people"
kind = "distinct_units"
[[metric]]
name = "each"
kind = "sum"
clip = "unit"
{CLIPPED}
[[metric]]
name = "spread"
kind = "variance"
{CLIPPED}
[[metric]]
name = "middle"
kind = "quantiles"
column = "x"
lower = 0.0
upper = 1.0
bins = 14
quantiles = [0.5]
"""
PLAN = """
[plan]
name = "replayed"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "string", k = "string", x = "float" }}
[privacy_unit]
column = "u"
[bounds]
max_partitions = 2
max_rows_per_partition = 3
{more}
[window]
every = "1d"
[[partition]]
column = "k"
{keys}
{metrics}
[budget]
mechanism = "gaussian"
epsilon = 1.0
delta = 1e-6
"""
PUBLIC, DISCOVERED = 'values = ["a", "b", "", "é"]\nother = true', "discover = { delta = 1e-7, max_bytes = 3 }"
PERIOD = 'max_windows = 2\nperiod = "4d"'
DERIVED = """
[[derive]]
column = "size"
from = "x"
buckets = [0, 3]
[[filter]]
column = "x"
at_most = 1e30
[[partition]]
column = "size"
values = ["..0", "0..3"]
other = true
[[partition]]
column = "t"
calendar = "hour"
"""
PLANS = {
    "public": PLAN.format(more="", keys=PUBLIC, metrics=METRICS),
    "discovered": PLAN.format(more="", keys=DISCOVERED, metrics=METRICS),
    "periods": PLAN.format(more=PERIOD, keys=PUBLIC, metrics=METRICS),
    "derived and products": PLAN.format(more="", keys=PUBLIC + DERIVED, metrics=METRICS),
}
EVENTS = (
    PLANS["public"]
    .replace('column = "u"\n', "event = true\n")
    .replace("max_partitions = 2\nmax_rows_per_partition = 3", "max_partitions = 1\nmax_rows_per_partition = 1")
)
"""Every row is its own unit."""


class Left(NamedTuple):
    """Everything that left the device."""

    requests: list[bytes]
    events: list[tuple[str, dict[str, str]]]
    drained: bool


def nothing_passes(mechanism: Mechanism, scale: float, exact: Int64s) -> Int64s:
    """Stands in for `noise.draw` where keys are discovered: no key is ever large enough."""
    return np.zeros_like(exact)


def left(plan: str, rows: Sequence[Raw], draw: Callable[..., Int64s]) -> Left:
    """Drain four days of these rows, in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        home, wire, heard = Path(folder), FakeCollector(), []
        fields = {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in Raw._fields}
        pq.write_table(pa.table(fields), home / "events.parquet")
        (home / "plan.toml").write_text(plan)
        unit = "event" if plan == EVENTS else "u"
        (home / "agent.toml").write_text(AGENT.format(unit=unit, start="2013-01-07", end="2013-01-11"))
        patch.setattr(noise, "draw", draw)
        patch.setattr(telemetry, "_watchers", [lambda event, said: heard.append((str(event), said))])
        patch.setattr(secrets, "token_hex", lambda n: "ab" * n)
        patch.setattr(secrets, "token_bytes", lambda n: b"s" * n)
        config, plans = load(home / "agent.toml")

        async def drain() -> bool:
            agent = build(config, plans, clock=FakeClock(MONDAY + WEEK), wire=wire)
            try:
                return await agent.drain(5.0)
            finally:
                await agent.close()

        drained = asyncio.run(drain())
        events = [(name, {key: str(value).replace(folder, "") for key, value in said.items()}) for name, said in heard]
        return Left(wire.requests, events, drained)


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=20)
@given(others=raws(strange.units, 12), mine=raws(st.just(MINE), 14), at=st.integers(0, 12))
def test_nothing_that_leaves_depends_on_one_unit(name: str, others: list[Raw], mine: list[Raw], at: int) -> None:
    """Guarantee (A4): the same bytes, events and outcome with and without any unit's rows."""
    draw = nothing_passes if name == "discovered" else frozen_noise
    assert left(PLANS[name], others, draw) == left(PLANS[name], others[:at] + mine + others[at:], draw)


@settings(max_examples=20)
@given(
    others=raws(strange.units, 12),
    mine=st.builds(Raw, u=strange.units, k=strange.keys, x=strange.values, t=strange.times),
    at=st.integers(0, 12),
)
def test_nothing_that_leaves_depends_on_one_event(others: list[Raw], mine: Raw, at: int) -> None:
    """Guarantee (A4): the same where every event is its own unit, with and without any one row."""
    assert left(EVENTS, others, frozen_noise) == left(EVENTS, [*others[:at], mine, *others[at:]], frozen_noise)


def test_a_key_that_passes_says_no_more_than_that_it_passed() -> None:
    """Guarantee: keys that pass on both sides give the same bytes, though one unit has a key and rows of its own."""

    def first_two_pass(mechanism: Mechanism, scale: float, exact: Int64s) -> Int64s:
        frozen = frozen_noise(mechanism, scale, exact)
        if exact.ndim == 1 and len(exact) in {2, 3}:  # the selection: keys in the order of their text
            frozen = np.array([10**6, 10**6, -(10**6)], np.int64)[: len(exact)]
        return frozen

    others = [Raw(f"u{i}", "ab"[i % 2], "1", "2013-01-07") for i in range(8)]
    mine = [Raw(MINE, key, "-inf", "2013-01-07") for key in ("a", "zzz") for _ in range(5)]
    one, other = (left(PLANS["discovered"], rows, first_two_pass) for rows in (others, [*mine, *others]))
    assert one == other
    assert len(one.requests) > 0


# Mutants: one of each thing that could leave.

ORDINARY = [Raw(f"u{i}", "ab"[i % 2], "1", "2013-01-07") for i in range(6)]
BUSY = [Raw(MINE, "b", "3", f"2013-01-{day:02}") for day in (7, 8, 9) for _ in range(4)]


def _tells_a_row_count(patch: pytest.MonkeyPatch) -> None:
    honest = Series.add

    def add(self: Series, batch: Any) -> None:
        telemetry.emit(telemetry.Event.PART_READ, rows=batch.num_rows)
        honest(self, batch)

    patch.setattr(Series, "add", add)


def _skips_empty_windows(patch: pytest.MonkeyPatch) -> None:
    honest = Series.due
    patch.setattr(Series, "due", lambda self, watermark: [s for s in honest(self, watermark) if s in self._open])


@pytest.mark.parametrize("mutant", [_tells_a_row_count, _skips_empty_windows])
def test_what_depends_on_the_data_is_seen(
    monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Mutants: a row count in an event; no release for an empty window."""
    plan = PLANS["public"]
    assert left(plan, ORDINARY, frozen_noise) == left(plan, [*ORDINARY, *BUSY], frozen_noise)
    mutant(monkeypatch)
    assert left(plan, ORDINARY, frozen_noise) != left(plan, [*ORDINARY, *BUSY], frozen_noise)


def test_a_vector_without_noise_is_seen() -> None:
    """Mutant: one vector, the one of bins, is released as it is."""

    def draw(mechanism: Mechanism, scale: float, exact: Int64s) -> Int64s:
        return exact if exact.ndim > 1 else frozen_noise(mechanism, scale, exact)

    assert left(PLANS["public"], ORDINARY, draw) != left(PLANS["public"], [*ORDINARY, *BUSY], draw)
