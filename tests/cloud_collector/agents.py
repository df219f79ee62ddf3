"""An agent in miniature: events of one window through the edge's own privacy room, sealed as an agent seals them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pyarrow as pa

from edge_agg.contract import arrow, codec
from edge_agg.contract.plan import plan_hash
from edge_agg.contract.release import Link, Release, Status
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.rows import read_events
from tests.cloud_collector.front import week

if TYPE_CHECKING:
    import polars as pl

    from edge_agg.contract.plan import Plan
    from edge_agg.contract.release import Sealed

_TYPES = {
    "timestamp": pa.timestamp("us", tz="UTC"),
    "string": pa.string(),
    "float": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
}


def released(plan: Plan, node: str, n: int, events: pl.DataFrame) -> Sealed:
    """What a node says about its n-th week, with fresh noise.

    Args:
        plan: the plan, with windows of a week.
        node: the node's name.
        n: the week.
        events: the plan's columns.
    """
    measurement = compile_plan(plan)
    bounding = measurement.bounding(bytes(16))
    typed = [pa.array(events[name].to_list(), _TYPES[kind]) for name, kind in plan.events.columns.items()]
    batch = pa.record_batch(typed, names=list(plan.events.columns))
    bounding.add(read_events(plan, measurement.vectors, batch).rows)
    noisy = measurement.release([bounding.kept()])
    payload = arrow.encode(noisy.columns, noisy.keys)
    header = Release(
        tenant="default",
        agent=node,
        link=Link(incarnation=plan_hash(plan).hex()[:32], seq=2 * n + 1, prev_hash=b"\0" * 32 if n else b""),
        plan=plan.name,
        plan_version=plan.version,
        plan_hash=plan_hash(plan),
        window_start=week(n),
        window_end=week(n + 1),
        status=Status.RELEASED,
        account="people",
        charge=measurement.charge,
        cumulative=measurement.charge * (n + 1),
        vectors=measurement.specs,
        max_partitions=plan.bounds.max_partitions,
        max_rows_per_partition=plan.bounds.max_rows_per_partition,
        max_nodes=plan.privacy_unit.max_nodes,
        selection=measurement.selection,
        rows=len(next(iter(noisy.columns.values()))),
        payload_sha256=hashlib.sha256(payload).digest(),
    )
    return codec.seal(header, payload)
