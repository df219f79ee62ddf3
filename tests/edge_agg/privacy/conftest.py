"""What the privacy tests share: small plans, and the way of plain rows into a measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.privacy.aggregate import to_grid
from edge_agg.privacy.bound import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from edge_agg.privacy.measurement import Measurement

# A busy machine is no failure of the code: time is limited by pytest-timeout, not by the example.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

SALT = b"a salt for tests"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event: whose, in which cell, when, and its reading (None: null)."""

    unit: int | str
    cell: int
    time_us: int
    reading: float | None


@pytest.fixture(scope="session")
def plan_of() -> Callable[..., Plan]:
    """Build a plan: `plan_of("kind = ...", ..., cells=4, max_rows=3, ...)`; metrics are named m0, m1, ..."""

    def build(
        *metrics: str,
        cells: int = 4,
        max_partitions: int = 2,
        max_rows: int = 3,
        mechanism: str = "gaussian",
        epsilon: float = 1.0,
        delta: float | None = 1e-6,
    ) -> Plan:
        tables = "\n".join(f'[[metric]]\nname = "m{i}"\n{metric}' for i, metric in enumerate(metrics))
        deltas = "" if delta is None or mechanism == "laplace" else f"delta = {delta!r}"
        return parse_plan(f"""
[plan]
name = "p"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", unit = "integer", k = "integer", x = "float" }}
[privacy_unit]
column = "unit"
[bounds]
max_partitions = {max_partitions}
max_rows_per_partition = {max_rows}
[window]
every = "1d"
[[partition]]
column = "k"
values = {list(range(cells))}
{tables}
[budget]
mechanism = "{mechanism}"
epsilon = {epsilon!r}
{deltas}
""")

    return build


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Measurement, Sequence[Event]], Rows]:
    """Make rows of events as a window does: readings on each vector's grid."""

    def build(measurement: Measurement, events: Sequence[Event]) -> Rows:
        readings = np.array([np.nan if e.reading is None else e.reading for e in events], dtype=np.float64)
        valid = ~np.isnan(readings)
        values: dict[str, npt.NDArray[np.int64]] = {}
        for vector in measurement.vectors:
            if vector.clip is not None:
                lower, upper = (bound * vector.clip.resolution for bound in (vector.clip.lower, vector.clip.upper))
                values[vector.name] = to_grid(readings, valid, lower=lower, upper=upper, clip=vector.clip)
            elif vector.column is not None:
                values[vector.name] = valid.astype(np.int64)
        return Rows(
            unit=pa.array([e.unit for e in events]),
            cell=np.array([e.cell for e in events], dtype=np.int64),
            time_us=np.array([e.time_us for e in events], dtype=np.int64),
            values=values,
        )

    return build


@pytest.fixture(scope="session")
def salt() -> bytes:
    """A salt of one window."""
    return SALT


@pytest.fixture(scope="session")
def event() -> type[Event]:
    """The type of one event."""
    return Event
