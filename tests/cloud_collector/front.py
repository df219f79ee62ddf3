"""What the tests of the front rooms share: a plan, releases of it, and a lake of plain Parquet files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cloud_collector.deltalog import Snapshot
from cloud_collector.plans import RegisteredPlan
from edge_agg.contract import arrow, codec
from edge_agg.contract.cells import keys, n_cells
from edge_agg.contract.plan import Plan, PlanHash, parse_plan, plan_hash
from edge_agg.contract.release import Charge, Link, Mechanism, Release, Sealed, Status, VectorSpec
from edge_agg.contract.v1 import collector_pb2
from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceStub
from edge_agg.contract.v1.release_pb2 import SealedRelease
from edge_agg.contract.vectors import plan_vectors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from cloud_collector.config import Config

MONDAY = datetime(2013, 1, 7, tzinfo=UTC)
SCALE = 0.05  # so little noise that every draw is 0: half widths are 0

PLAN_TEXT = """
[plan]
name = "flights"
version = 1

[events]
time = "at"
[events.columns]
at = "timestamp"
tailnum = "string"
carrier = "string"
night = "boolean"
delay = "float"

[privacy_unit]
column = "tailnum"
max_nodes = 3

[bounds]
max_partitions = 1
max_rows_per_partition = 5

[window]
every = "7d"

[[partition]]
column = "carrier"
values = ["UA", "AA"]
other = true

[[partition]]
column = "night"
values = [false, true]

[[metric]]
name = "departures"
kind = "count"

[[metric]]
name = "aircraft"
kind = "distinct_units"

[[metric]]
name = "total"
kind = "sum"
column = "delay"
lower = -30.0
upper = 180.0
resolution = 0.5

[[metric]]
name = "late"
kind = "mean"
column = "delay"
lower = -30.0
upper = 180.0
resolution = 0.5

[budget]
mechanism = "gaussian"
epsilon = 2.0
delta = 1e-6
"""
PLAN = parse_plan(PLAN_TEXT)


def week(n: int) -> datetime:
    """The start of the n-th week of 2013 that begins on a Monday."""
    return MONDAY + timedelta(days=7 * n)


def registered(*nodes: str, plan: Plan = PLAN) -> RegisteredPlan:
    """A registered plan."""
    return RegisteredPlan(plan=plan, hash=plan_hash(plan), text=PLAN_TEXT, nodes=nodes)


def release(
    node: str,
    n: int,
    values: Mapping[str, Sequence[int]] | int = 1,
    *,
    status: Status = Status.RELEASED,
    tenant: str = "default",
    plan: Plan = PLAN,
    scale: float = SCALE,
) -> Sealed:
    """Seal what a node says about its n-th week; a number fills every cell of every vector."""
    names = [vector.name for vector in plan_vectors(plan)]
    released = status is Status.RELEASED
    vectors = {
        name: np.full(n_cells(plan), values) if isinstance(values, int) else np.array(values[name]) for name in names
    }
    payload = arrow.encode(vectors) if released else b""
    specs = [
        VectorSpec(name=name, mechanism=Mechanism.GAUSSIAN, scale=scale, sensitivity=1.0, loss=0.5) for name in names
    ]
    header = Release(
        tenant=tenant,
        agent=node,
        link=Link(incarnation=plan_hash(plan).hex()[:32], seq=2 * n + 1, prev_hash=b"\0" * 32 if n else b""),
        plan=plan.name,
        plan_version=plan.version,
        plan_hash=plan_hash(plan),
        window_start=week(n),
        window_end=week(n + 1),
        status=status,
        account="aircraft",
        charge=Charge(),
        cumulative=Charge(),
        vectors=tuple(specs) if released else (),
        max_partitions=plan.bounds.max_partitions,
        max_rows_per_partition=plan.bounds.max_rows_per_partition,
        max_nodes=plan.privacy_unit.max_nodes,
        rows=n_cells(plan) if released else 0,
        payload_sha256=hashlib.sha256(payload).digest() if released else b"",
    )
    return codec.seal(header, payload)


def request(*releases: Sealed) -> collector_pb2.PushReleasesRequest:
    """One call's batch."""
    sealed = [SealedRelease(header=one.header, payload=one.payload) for one in releases]
    return collector_pb2.PushReleasesRequest(releases=sealed)


def push(address: str, *releases: Sealed) -> list[tuple[int, str]]:
    """Send one batch as an agent would; (outcome, refusal) of each."""
    with grpc.insecure_channel(address) as channel:
        answer = CollectorServiceStub(channel).PushReleases(request(*releases), timeout=20)
    return [(receipt.outcome, receipt.refusal) for receipt in answer.receipts]


@dataclass
class FakeRegistry:
    """Holds one plan."""

    one: RegisteredPlan

    def find(self, name: str, version: int | None = None, tenant: str | None = None) -> RegisteredPlan:
        """Whatever is asked for, this plan."""
        return self.one

    def list(self, tenant: str | None = None) -> list[RegisteredPlan]:
        """The one plan."""
        return [self.one]


@dataclass
class FakeLake:
    """Parquet files with the lake's columns, one a release."""

    folder: Path
    written: list[str] = field(default_factory=list)

    def snapshot(self, plan: Plan, plan_hash: PlanHash) -> Snapshot:
        """There is one version."""
        return Snapshot(version=0)

    def files(self, plan: Plan, plan_hash: PlanHash, at: Snapshot | None = None, **asked: object) -> list[str]:
        """All of them: nothing is known of what they hold."""
        return list(self.written)

    def attach(self, duck: object) -> None:
        """They are files."""

    def retired_us(self, plan: Plan, plan_hash: PlanHash) -> int | None:
        """Nothing was."""
        return None

    def write(
        self,
        node: str,
        n: int,
        values: Mapping[str, Sequence[int]] | int = 1,
        *,
        status: str = "released",
        tenant: str = "default",
        plan: Plan = PLAN,
        scale: float = SCALE,
    ) -> None:
        """Add one release."""
        cells = list(keys(plan)) if status == "released" else [(None,) * len(plan.partition)]
        rows = len(cells)
        moment = pa.timestamp("us", tz="UTC")
        columns: dict[str, pa.Array] = {
            "tenant": pa.array([tenant] * rows),
            "node": pa.array([node] * rows),
            "window_start": pa.array([week(n)] * rows, moment),
            "window_end": pa.array([week(n + 1)] * rows, moment),
            "status": pa.array([status] * rows),
            "landing_id": pa.array(range(rows), pa.int64()),
        }
        for i, partition in enumerate(plan.partition):
            columns[partition.label] = pa.array([cell[i] for cell in cells], pa.string())
        for vector in plan_vectors(plan):
            for name in vector.columns:
                filled = [values] * rows if isinstance(values, int) else list(values[name])
                columns[name] = pa.array(filled if status == "released" else [None], pa.int64())
            columns[f"{vector.name}__scale"] = pa.array(
                [scale] * rows if status == "released" else [None], pa.float64()
            )
        path = self.folder / f"{len(self.written)}.parquet"
        pq.write_table(pa.table(columns), path)
        self.written.append(str(path))


@contextlib.contextmanager
def running(config: Config) -> Iterator[str]:
    """A collector in a thread of this process; yields its address, and stops it in order."""
    from cloud_collector.server import serve

    addresses: list[str] = []
    failures: list[BaseException] = []
    up = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def note(address: str) -> None:
        addresses.append(address)
        up.set()

    def run() -> None:
        try:
            loop.run_until_complete(serve(config, ready=note, stop=stop))
        except BaseException as error:  # noqa: BLE001  # it is raised again in the test's own thread
            failures.append(error)
        finally:
            loop.close()
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert up.wait(20)
        if addresses:
            yield addresses[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
    if failures:
        raise failures[0]
