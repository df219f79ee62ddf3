"""What the privacy tests share: small plans, and the way of plain rows into a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.ingest.decode import typed_schema
from edge_agg.privacy.rows import read_events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_agg.privacy.bound import Rows
    from edge_agg.privacy.measurement import Measurement

# A busy machine is no failure of the code: time is limited by pytest-timeout, not by the example.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

SALT = b"a salt for tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: whose, in which cell, when, its reading (None: null), and its key where keys are discovered."""

    unit: int | str
    cell: int
    time_us: int
    reading: float | None
    key: str = "k"


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Plan]:
    """Build a plan: `plan_of("kind = ...", ..., cells=4, max_rows=3, ...)`; metrics are named m0, m1, ...

    `discover="delta = 1e-7"` adds a column of discovered keys, `more` adds to the bounds.
    """

    def build(
        *metrics: str,
        cells: int = 4,
        max_partitions: int = 2,
        max_rows: int = 3,
        mechanism: str = "gaussian",
        epsilon: float = 1.0,
        delta: float | None = 1e-6,
        discover: str | None = None,
        more: str = "",
    ) -> Plan:
        tables = "\n".join(f'[[metric]]\nname = "m{i}"\n{metric}' for i, metric in enumerate(metrics))
        found = "" if discover is None else f'[[partition]]\ncolumn = "key"\ndiscover = {{ {discover} }}'
        deltas = "" if delta is None or mechanism == "laplace" else f"delta = {delta!r}"
        return parse_plan(f"""
[plan]
name = "p"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", unit = "integer", k = "integer", x = "float", key = "string" }}
[privacy_unit]
column = "unit"
[bounds]
max_partitions = {max_partitions}
max_rows_per_partition = {max_rows}
{more}
[window]
every = "1d"
[[partition]]
column = "k"
values = {list(range(cells))}
{found}
{tables}
[budget]
mechanism = "{mechanism}"
epsilon = {epsilon!r}
{deltas}
""")

    return build


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Measurement, Sequence[Event]], Rows]:
    """Make rows of events as a window does, by the plan's own reading of a batch; a cell is its own key."""

    def build(measurement: Measurement, events: Sequence[Event]) -> Rows:
        columns = measurement.plan.events.columns
        batch = pa.RecordBatch.from_pylist(
            [{"t": e.time_us, "unit": e.unit, "k": e.cell, "x": e.reading, "key": e.key} for e in events],
            typed_schema(columns),
        )
        return read_events(measurement.plan, measurement.vectors, batch).rows

    return build


@pytest.fixture(scope="session")
def salt() -> bytes:
    """A salt of one window."""
    return SALT


@pytest.fixture(scope="session")
def event() -> type[Event]:
    """The type of one event."""
    return Event
