"""The fleet that pushes: agents of one tenant, each with a certificate and a chain of 1,000-row summaries.

Place: the load generator sends what an agent here seals; the stage registers the plan.
Invariant: every summary is another window with another header, sealed as an agent seals; 64 payloads take turns, which
nothing at the collector can notice, for it keeps no payload in mind.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from edge_agg.contract import arrow, codec
from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import parse_plan, plan_hash
from edge_agg.contract.release import Charge, Link, Mechanism, Release, Sealed, Status, VectorSpec
from edge_agg.contract.v1 import release_pb2
from edge_agg.contract.vectors import payload_columns, plan_vectors

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = 1000
TENANT = "bench"
START = datetime(2020, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLAN = f"""
[plan]
name = "load"
version = 1
[events]
time = "at"
[events.columns]
at = "timestamp"
unit = "string"
kind = "string"
[privacy_unit]
column = "unit"
max_nodes = 3
[bounds]
max_partitions = 1
max_rows_per_partition = 5
[window]
every = "1h"
[[partition]]
column = "kind"
values = [{", ".join(f'"kind-{i:03}"' for i in range(ROWS - 1))}]
other = true
[[metric]]
name = "events"
kind = "count"
[budget]
mechanism = "gaussian"
epsilon = 2.0
delta = 1e-6
"""


def payloads(number: int = 64) -> list[bytes]:
    """Payloads as noise makes them: they hardly compress."""
    random = np.random.default_rng(7)
    names = payload_columns(parse_plan(PLAN))
    return [arrow.encode({name: random.integers(-5000, 5000, ROWS) for name in names}) for _ in range(number)]


@dataclass
class Agent:
    """One agent: its next summary is of its next hour."""

    name: str
    payloads: Sequence[bytes]
    sent: int = 0
    _head: bytes = b""
    _template: release_pb2.ReleaseHeader = field(init=False)
    _hashes: list[bytes] = field(init=False)

    def __post_init__(self) -> None:
        plan = parse_plan(PLAN)
        specs = tuple(
            VectorSpec(name=vector.name, mechanism=Mechanism.GAUSSIAN, scale=3.0, sensitivity=5.0, loss=0.1)
            for vector in plan_vectors(plan)
        )
        release = Release(
            tenant=TENANT,
            agent=self.name,
            link=Link(incarnation=hashlib.sha256(self.name.encode()).hexdigest()[:32], seq=1, prev_hash=b""),
            plan=plan.name,
            plan_version=plan.version,
            plan_hash=plan_hash(plan),
            window_start=START,
            window_end=START + HOUR,
            status=Status.RELEASED,
            account="people",
            charge=Charge(rho=Fraction(1, 10**6)),
            cumulative=Charge(rho=Fraction(1, 10**6)),
            vectors=specs,
            max_partitions=plan.bounds.max_partitions,
            max_rows_per_partition=plan.bounds.max_rows_per_partition,
            max_nodes=plan.privacy_unit.max_nodes,
            rows=n_cells(plan),
            payload_sha256=hashlib.sha256(self.payloads[0]).digest(),
        )
        self._hashes = [hashlib.sha256(payload).digest() for payload in self.payloads]
        self._template = release_pb2.ReleaseHeader.FromString(codec.seal(release, self.payloads[0]).header)

    @property
    def head(self) -> str:
        """The hash of the last summary, in hex."""
        return self._head.hex()

    def resume(self, sent: int, head: str) -> None:
        """Go on where an earlier run of this agent ended."""
        self.sent, self._head = sent, bytes.fromhex(head)

    def seal(self) -> Sealed:
        """The next summary; cheap, because it shares a machine with what it measures."""
        header, at = self._template, self.sent % len(self.payloads)
        header.seq = self.sent + 1
        header.prev_hash = self._head
        start = codec.to_us(START) + self.sent * 3_600_000_000
        header.window_start_us, header.window_end_us = start, start + 3_600_000_000
        header.cumulative.rho = _rho(self.sent + 1)
        header.payload_sha256 = self._hashes[at]
        raw = header.SerializeToString(deterministic=True)
        self._head = hashlib.sha256(raw).digest()
        self.sent += 1
        return Sealed(header=raw, payload=self.payloads[at], hash=self._head)


def _rho(millionths: int) -> str:
    whole = Fraction(millionths, 10**6)
    return f"{whole.numerator}/{whole.denominator}"


def request(batch: Sequence[Sealed]) -> bytes:
    """A PushReleasesRequest, written by hand: copying each payload once is all it should cost."""
    parts = []
    for one in batch:
        body = b"\x0a" + _varint(len(one.header)) + one.header + b"\x12" + _varint(len(one.payload)) + one.payload
        parts.append(b"\x0a" + _varint(len(body)) + body)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
