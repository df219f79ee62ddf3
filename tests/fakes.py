"""Fakes that the tests share: a virtual clock, a collector in memory, noise that can be told apart, and small plans."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edge_agg.contract import codec
from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.contract.v1 import release_pb2
from edge_agg.ingest.decode import typed_schema
from edge_agg.uplink import HOLD_S
from edge_agg.wire import CallFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from edge_agg.contract.head import Head
    from edge_agg.contract.release import Mechanism, Release, ReleaseKey, Sealed
    from edge_agg.wire import Waiting

MONDAY = datetime(2013, 1, 7, tzinfo=UTC)
"""A week's first instant."""
DAY = timedelta(days=1)
WEEK = timedelta(days=7)
COUNT = 'name = "n"\nkind = "count"'
SUM = 'name = "total"\nkind = "sum"\ncolumn = "x"\nlower = 0.0\nupper = 10000000.0\nresolution = 1.0'
MEAN = 'name = "level"\nkind = "mean"\ncolumn = "x"\nlower = 0.0\nupper = 100.0\nresolution = 0.5'


class FakeClock:
    """Virtual time: it stands still until a test moves it, or (`jumps`) until somebody backs off.

    An idle uplink waits for HOLD_S or for being woken; that wait never makes time jump.
    """

    def __init__(self, now: datetime = MONDAY, *, jumps: bool = False) -> None:
        self.time = now
        """What the wall says; a test that sets it makes the clock jump."""
        self.jumps = jumps
        self.waits: list[float] = []
        """Every wait that was asked for, seconds."""
        self._passed_s = 0.0
        self._asleep: list[tuple[float, int, asyncio.Future[None]]] = []
        self._ids = itertools.count()

    def now(self) -> datetime:
        """The virtual time."""
        return self.time

    def since_boot_s(self) -> float:
        """The virtual time that has passed; a clock that jumps leaves it alone."""
        return self._passed_s

    async def wait(self, seconds: float) -> None:
        """Come back when the virtual time is there."""
        self.waits.append(seconds)
        if self.jumps and seconds < HOLD_S:
            self.time += timedelta(seconds=seconds)
            self._passed_s += seconds
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._asleep, (self._passed_s + seconds, next(self._ids), future))
        await future

    async def advance(self, by: timedelta) -> None:
        """Let time pass, wake who is due, and let everybody run until nothing moves."""
        self.time += by
        self._passed_s += by.total_seconds()
        while self._asleep and self._asleep[0][0] <= self._passed_s:
            future = heapq.heappop(self._asleep)[2]
            if not future.done():
                future.set_result(None)
        await settle()


async def settle(turns: int = 50) -> None:
    """Let every task run until it waits for something."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def rest(patience_s: float = 20.0) -> None:
    """Let every task run, threads included, until all of them wait for something; a busy machine only takes longer."""
    loop = asyncio.get_running_loop()
    until, calm = loop.time() + patience_s, 0
    while calm < 3 and loop.time() < until:
        await settle()
        executor: Any = getattr(loop, "_default_executor", None)
        busy = executor is not None and (
            not executor._work_queue.empty() or executor._idle_semaphore._value < len(executor._threads)
        )
        calm = 0 if busy else calm + 1
        await asyncio.sleep(0.002)


class UniqueNoise:
    """Stands in for `noise.draw`: every answer there ever was is another number, so a double count shows."""

    def __init__(self) -> None:
        self.answers: list[int] = []

    def __call__(self, mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Answer with the next number in every cell."""
        self.answers.append(1_000 + len(self.answers))
        return np.full(exact.shape, self.answers[-1], dtype=np.int64)


def frozen_noise(mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Stands in for `noise.draw`: the same released values, whatever the data."""
    return np.arange(exact.size, dtype=np.int64).reshape(exact.shape) * 37 - 5


def recorder(seen: list[list[int]]) -> Callable[[Mechanism, float, npt.NDArray[np.int64]], npt.NDArray[np.int64]]:
    """Stands in for `noise.draw`: it adds nothing and notes what it was given."""

    def draw(mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        seen.append(exact.tolist())
        return exact

    return draw


DROP_REQUEST, DROP_RESPONSE, MISMATCH, REVERSED = "drop_request", "drop_response", "mismatch", "reversed"


@dataclass(slots=True)
class FakeCollector:
    """A collector in memory, and the wire to it: exactly once by key, receipts by hash, faults in a queue."""

    accepted: dict[ReleaseKey, tuple[Release, Sealed]] = field(default_factory=dict)
    faults: deque[str | CallFailed] = field(default_factory=deque)
    """What goes wrong with the next calls, one fault a call."""
    refuse: dict[int, str] = field(default_factory=dict)
    """Refusal codes by seq."""
    presented: list[tuple[ReleaseKey, bytes]] = field(default_factory=list)
    """Every release that arrived, key and hash, also again."""
    requests: list[bytes] = field(default_factory=list)
    """Every request, as its bytes on the wire."""
    batches: list[list[int]] = field(default_factory=list)
    """The seqs of every request."""
    heads: list[Head] = field(default_factory=list)
    """Every head that was said."""
    standings: deque[pb.SayHeadResponse | CallFailed | None] = field(default_factory=deque)
    """What is answered to the next heads; after that, that they are known."""

    async def say_head(self, head: Head) -> pb.SayHeadResponse | None:
        """Hear a head, and answer as the next of `standings` says."""
        self.heads.append(head)
        answer = self.standings.popleft() if self.standings else pb.SayHeadResponse(standing=pb.STANDING_KNOWN)
        if isinstance(answer, CallFailed):
            raise answer
        return answer

    async def close(self) -> None:
        """Nothing to hang up."""

    async def push(self, batch: Sequence[Waiting]) -> list[pb.Receipt]:
        """Take a batch, or fail as the next fault says."""
        request = pb.PushReleasesRequest(
            releases=[release_pb2.SealedRelease(header=w.sealed.header, payload=w.sealed.payload) for w in batch]
        )
        self.requests.append(request.SerializeToString(deterministic=True))
        self.batches.append([w.seq for w in batch])
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, CallFailed):
            raise fault
        if fault == DROP_REQUEST:
            raise unavailable()
        receipts = [self._take(w.sealed) for w in batch]
        if fault == DROP_RESPONSE:
            raise unavailable()
        if fault == MISMATCH:
            receipts[0] = pb.Receipt(release_hash=b"?" * 32, outcome=pb.OUTCOME_ACCEPTED)
        return receipts[::-1] if fault == REVERSED else receipts

    def _take(self, sealed: Sealed) -> pb.Receipt:
        release, opened = codec.open_sealed(sealed.header, sealed.payload)
        self.presented.append((release.key, opened.hash))
        if (code := self.refuse.get(release.link.seq)) is not None:
            return pb.Receipt(release_hash=opened.hash, outcome=pb.OUTCOME_REFUSED, refusal=code)
        before = self.accepted.get(release.key)
        if before is None:
            self.accepted[release.key] = (release, opened)
            return pb.Receipt(release_hash=opened.hash, outcome=pb.OUTCOME_ACCEPTED)
        if before[1].hash != opened.hash:
            return pb.Receipt(release_hash=opened.hash, outcome=pb.OUTCOME_REFUSED, refusal="conflict")
        return pb.Receipt(release_hash=opened.hash, outcome=pb.OUTCOME_DUPLICATE)

    @property
    def releases(self) -> list[Release]:
        """What is stored, in the order of its chain."""
        return sorted((release for release, _ in self.accepted.values()), key=lambda release: release.link.seq)

    @property
    def windows(self) -> list[datetime]:
        """The windows that are stored, in the order of the chain."""
        return [release.window_start for release in self.releases]


def unavailable(pushback_s: float | None = None) -> CallFailed:
    """A call that brought no receipts."""
    return CallFailed("UNAVAILABLE", pushback_s=pushback_s, too_large=False)


def too_large() -> CallFailed:
    """A call whose message was larger than the collector takes."""
    return CallFailed("RESOURCE_EXHAUSTED", pushback_s=None, too_large=True)


def small_plan_text(
    *metrics: str,
    name: str = "small",
    every: str = "7d",
    lateness: str = "1h",
    late: str | None = None,
    unit: str = "string",
    keys: str = '["a", "b"]',
    other: bool = True,
    epsilon: float = 1.0,
    max_partitions: int = 1,
    max_rows: int = 2,
    mechanism: str = "gaussian",
    by: str = "k",
    max_windows: int | None = None,
    period: str = "28d",
    discover: float | None = None,
) -> str:
    """A small plan as people write it: a unit `u`, a time `t`, a key `k`, a reading `x`.

    With `max_windows` a unit counts in so many windows of a period; with `discover`, a delta, the keys are the data's.
    """
    tables = "\n".join(f"[[metric]]\n{metric}" for metric in metrics or (COUNT,))
    delta = "delta = 1e-6" if mechanism == "gaussian" else ""
    bounds = "" if max_windows is None else f'max_windows = {max_windows}\nperiod = "{period}"'
    values = f"values = {keys}\nother = {str(other).lower()}"
    order = f'lateness = "{lateness}"' + ("" if late is None else f'\nlate = "{late}"')
    cells = values if discover is None else f"discover = {{ delta = {discover!r} }}"
    return f"""
[plan]
name = "{name}"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "{unit}", k = "string", x = "float" }}
[privacy_unit]
column = "u"
[bounds]
max_partitions = {max_partitions}
max_rows_per_partition = {max_rows}
{bounds}
[window]
every = "{every}"
{order}
[[partition]]
column = "{by}"
{cells}
{tables}
[budget]
mechanism = "{mechanism}"
epsilon = {epsilon!r}
{delta}
"""


def small_plan(*metrics: str, **changes: Any) -> Plan:
    """The small plan, parsed."""
    return parse_plan(small_plan_text(*metrics, **changes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One event of the small plan."""

    u: str | int | None = "unit-1"
    t: datetime | None = MONDAY
    k: str | None = "a"
    x: float | None = 1.0


def batch_of(rows: Iterable[Row], plan: Plan) -> pa.RecordBatch:
    """The rows as `ingest.decode` types them."""
    columns = plan.events.columns
    return pa.RecordBatch.from_pylist(
        [{name: getattr(row, name) for name in columns} for row in rows], typed_schema(columns)
    )


def write_events(path: Path, rows: Iterable[Row]) -> Path:
    """Write rows of the small plan to a parquet file."""
    columns = [("t", pa.timestamp("us", tz="UTC")), ("u", pa.string()), ("k", pa.string()), ("x", pa.float64())]
    table = pa.Table.from_pylist(
        [{name: getattr(row, name) for name, _ in columns} for row in rows], pa.schema(columns)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


AGENT = """\
[agent]
name = "node"
state = "state"

[collector]
url = "127.0.0.1:{port}"
leave_every = "0s"

[[account]]
name = "people"
privacy_unit = "u"
epsilon = {epsilon}
delta = 1e-5{discovery}
horizon = "365d"
{history}
[[source]]
kind = "file"
path = "events/*.parquet"
{plans}
"""


def write_config(
    home: Path,
    *plans: str,
    history: tuple[str, str] | None = ("2013-01-07", "2013-02-04"),
    epsilon: float = 20.0,
    port: int = 1,
    discovery: float | None = None,
) -> Path:
    """Write plans and an agent's config into a folder; returns the config's path."""
    tables = []
    for i, text in enumerate(plans or (small_plan_text(),)):
        (home / f"plan{i}.toml").write_text(text)
        tables.append(f'[[plan]]\npath = "plan{i}.toml"\naccount = "people"\n')
    span = f"\n[history]\nstart = {history[0]}\nend = {history[1]}\n" if history else ""
    path = home / "agent.toml"
    kept = "" if discovery is None else f"\ndiscovery = {discovery!r}"
    path.write_text(AGENT.format(history=span, plans="\n".join(tables), epsilon=epsilon, port=port, discovery=kept))
    return path
