"""What the tests of the storage rooms share: the plan of the design, and a maker of sealed releases."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cloud_collector.landing import Landing
from cloud_collector.payload import Values
from edge_agg.contract import arrow, codec
from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import Plan, PlanHash, parse_plan, plan_hash
from edge_agg.contract.release import Charge, KeySpec, Link, Mechanism, Release, Sealed, Status, VectorSpec
from edge_agg.contract.vectors import payload_columns, plan_vectors
from tests.cloud_collector.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from cloud_collector.config import Database
    from cloud_collector.landed import Verdict

MONDAY = datetime(2013, 1, 7, tzinfo=UTC)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
"""When releases arrive where a test says when."""
PLAN = """
[plan]
name = "flight_delays"
version = 1

[events]
time = "time_hour"
[events.columns]
time_hour = "timestamp"
tailnum = "string"
carrier = "string"
dep_delay = "float"

[privacy_unit]
column = "tailnum"
max_nodes = 3

[bounds]
max_partitions = 1
max_rows_per_partition = 5

[window]
every = "7d"
lateness = "1h"

[[partition]]
column = "carrier"
values = ["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"]
other = true

[[metric]]
name = "departures"
kind = "count"

[[metric]]
name = "delay"
kind = "mean"
column = "dep_delay"
lower = -30.0
upper = 180.0
resolution = 0.1

[budget]
mechanism = "gaussian"
epsilon = 2.0
delta = 1e-6
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A release, its bytes, and the values it was made from."""

    release: Release
    sealed: Sealed
    values: Values

    @property
    def pair(self) -> tuple[Release, Sealed]:
        """As the landing takes it."""
        return self.release, self.sealed


class Maker:
    """Makes releases of one plan; every field can be overruled, and the header's bytes follow."""

    def __init__(self, text: str = PLAN) -> None:
        self.text = text
        self.plan: Plan = parse_plan(text)
        self.hash: PlanHash = plan_hash(self.plan)

    def plan_of(self, wanted: PlanHash) -> Plan | None:
        """A lookup that knows this plan only."""
        return self.plan if wanted == self.hash else None

    def values(self, seed: int, found: int = 1) -> dict[str, NDArray[np.int64]]:
        """Random columns of the plan's shape, for so many discovered keys if it discovers any."""
        random = np.random.default_rng(seed)
        rows = n_cells(self.plan) * found
        return {name: random.integers(-(2**40), 2**40, rows) for name in payload_columns(self.plan)}

    def link(self, window: int) -> Link:
        """A place in a chain of this plan's own, with a gap before and after it: no neighbour contradicts it."""
        incarnation = hashlib.sha256(self.hash).hexdigest()[:32]
        return Link(incarnation=incarnation, seq=2 * window + 1, prev_hash=b"p" * 32 if window else b"")

    def make(
        self, *, seed: int = 0, window: int = 0, agent: str = "jfk", found: Sequence[str] | None = None, **changes: Any
    ) -> Made:
        """Make the release of one window, counted from a Monday in 2013, with the keys that were found in it."""
        specs: tuple[VectorSpec, ...] = ()
        payload, values = b"", self.values(seed, 1 if found is None else len(found))
        partition = self.plan.discovered
        keys = None if partition is None else arrow.Keys(partition.label, found or ())
        released = changes.get("status", Status.RELEASED) is Status.RELEASED
        drawn = changes.get("status", Status.RELEASED) in {Status.RELEASED, Status.LOST}
        if released:
            payload = arrow.encode(values, keys)
            specs = tuple(
                VectorSpec(name=vector.name, mechanism=Mechanism.GAUSSIAN, scale=1.5 + i, sensitivity=5.0, loss=0.1)
                for i, vector in enumerate(plan_vectors(self.plan))
            )
        start = MONDAY + window * self.plan.every
        release = Release(
            tenant="acme",
            agent=agent,
            link=self.link(window),
            plan=self.plan.name,
            plan_version=self.plan.version,
            plan_hash=self.hash,
            window_start=start,
            window_end=start + self.plan.every,
            status=Status.RELEASED,
            account="aircraft",
            charge=Charge(rho=Fraction(1, 8)) if drawn else Charge(),
            cumulative=Charge(rho=Fraction(1, 8) * (window + 1)),
            vectors=specs,
            max_partitions=self.plan.bounds.max_partitions,
            max_rows_per_partition=self.plan.bounds.max_rows_per_partition,
            max_nodes=self.plan.privacy_unit.max_nodes,
            selection=None if keys is None or not released else _selection(keys.partition),
            rows=len(next(iter(values.values()))) if released else 0,
            payload_sha256=hashlib.sha256(payload).digest() if released else b"",
        )
        payload = changes.pop("payload", payload)
        release = replace(release, **changes)
        return Made(
            release=release,
            sealed=codec.seal(release, payload),
            values=Values(columns=values if released else {}, keys=found if released else None),
        )


def _selection(partition: str) -> KeySpec:
    return KeySpec(
        partition=partition,
        mechanism=Mechanism.GAUSSIAN,
        scale=2.0,
        sensitivity=1.0,
        threshold=12,
        loss=0.1,
        delta=1e-8,
    )


@pytest.fixture
def keyed_maker() -> Maker:
    """Releases of a plan that discovers keys, beside public ones, and releases bins."""
    text = PLAN.replace("flight_delays", "found_flights").replace(
        "other = true", '[[partition]]\ncolumn = "tailnum"\nname = "plane"\ndiscover = { delta = 1e-7, max_bytes = 8 }'
    )
    bins = (
        '[[metric]]\nname = "spread"\nkind = "histogram"\ncolumn = "dep_delay"\nedges = [0.0, 10.0, 60.0]\n\n[budget]'
    )
    return Maker(text.replace("[budget]", bins))


@pytest.fixture
def maker() -> Maker:
    """Releases of the plan of the design."""
    return Maker()


@pytest.fixture
def other_maker() -> Maker:
    """Releases of another plan: one cell, laplace."""
    text = PLAN.replace("flight_delays", "all_flights").replace('"gaussian"', '"laplace"').replace("delta = 1e-6", "")
    partition = text[text.index("[[partition]]") : text.index("[[metric]]")]
    return Maker(text.replace(partition, ""))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL, for all tests of this process."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["file", "server"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | Database:
    """Where a new landing is: each of the databases that there are in turn."""
    if request.param == "file":
        return tmp_path / "data" / "landing.sqlite"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def landing(where: Path | Database) -> Iterator[Landing]:
    """New, over each of the databases."""
    with contextlib.closing(Landing(where)) as one:
        yield one


def land(landing: Landing, *made: Made) -> list[Verdict]:
    """Commit in one group."""
    return asyncio.run(landing.land([one.pair for one in made]))
