"""The whole path, as an outsider sees it: a file of events goes in, decoded releases come out.

Place: drives the agent as `edge-agg run --drain` does, over its public interfaces alone (plan, config, file, wire).
Method: one drain closes many daily windows, each with its own salt and noise, and each window holds many replicas of
one small experiment: own units, own keys. So a drain of W windows with R replicas gives W * R samples of a release.
Limit: replicas of one window share its salt and its release; what couples them (one draw for two cells, two units taken
for one) is looked for elsewhere, in `test_noise.py`, `test_sample.py` and by the mutants of a unit's identity.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edge_agg.assembly import build
from edge_agg.config import load
from edge_agg.contract import arrow
from edge_agg.contract.release import Release, Status
from edge_agg.contract.vectors import payload_columns
from tests.fakes import DAY, MONDAY, FakeClock, FakeCollector
from tests.privacy.audit.cases import Case, Row, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from edge_agg.contract.plan import Plan
    from tests.privacy.audit.estimate import Sample

AGENT = """
[agent]
name = "audited"
state = "state"
[collector]
url = "127.0.0.1:1"
batch = 64
leave_every = "0s"
[[account]]
name = "people"
privacy_unit = "{unit}"
epsilon = 1000.0
delta = 0.5
horizon = "1d"
[history]
start = {start}
end = {end}
[[source]]
kind = "file"
path = "events.parquet"
[[plan]]
path = "plan.toml"
account = "people"
"""


class Opened(NamedTuple):
    """One window's release as the collector reads it."""

    release: Release
    keys: Sequence[str] | None
    """The discovered keys that passed; None where keys are public."""
    columns: dict[str, npt.NDArray[np.int64]]


def sampled(home: Path, case: Case, rows: Iterable[Row], *, windows: int, replicas: int) -> Sample:
    """Samples of one replica's release: float64[windows * replicas, columns * cells], NaN where a key is not released.

    Args:
        home: an empty folder for this drain.
        case: the experiment.
        rows: of one replica in one window.
        windows: days.
        replicas: in each window.
    """
    drain = drained(home, case.plan(replicas), table(rows, windows, replicas), windows, unit=case.unit)
    names = [name_of(r, key) for r in range(replicas) for key in case.cells]
    return np.concatenate([by_replica(opened, names, replicas) for opened in drain])


def by_replica(opened: Opened, names: Sequence[str], replicas: int) -> Sample:
    """float64[replicas, columns * cells]; a discovered key finds its place by its name."""
    place = {name: i for i, name in enumerate(names)}
    at = [place[key] for key in opened.keys] if opened.keys is not None else slice(None)
    out = []
    for values in opened.columns.values():
        column = np.full(len(names), np.nan)
        column[at] = values
        out.append(column.reshape(replicas, -1))
    return np.concatenate(out, axis=1)


def table(rows: Iterable[Row], windows: int, replicas: int) -> pa.Table:
    """The rows of every replica in every window, as a file holds them."""
    base = list(rows)
    seconds = np.tile(np.arange(len(base), dtype=np.int64), replicas)
    first = int(MONDAY.timestamp())
    times = [(first + window * 86_400 + seconds) * 1_000_000 for window in range(windows)]
    units = [name_of(r, row.unit) for r in range(replicas) for row in base]
    keys = [name_of(r, row.key) for r in range(replicas) for row in base]
    return pa.table(
        {
            "t": pa.array(np.concatenate(times)).cast(pa.timestamp("us", tz="UTC")),
            "u": pa.array(units * windows, pa.string()),
            "k": pa.array(keys * windows, pa.string()),
            "x": pa.array([row.x for row in base] * replicas * windows, pa.float64()),
        }
    )


def drained(home: Path, plan: str, events: pa.Table, windows: int, *, unit: str = "u") -> list[Opened]:
    """Run the agent over a file of events and so many days; every window's release, oldest first."""
    home.mkdir(parents=True)
    pq.write_table(events, home / "events.parquet")
    (home / "plan.toml").write_text(plan)
    end = MONDAY + windows * DAY
    (home / "agent.toml").write_text(AGENT.format(unit=unit, start=MONDAY.date(), end=end.date()))
    config, plans = load(home / "agent.toml")
    collector = FakeCollector()

    async def drain() -> None:
        agent = build(config, plans, clock=FakeClock(end + timedelta(days=2)), wire=collector)
        try:
            assert await agent.drain(5.0)
        finally:
            await agent.close()

    asyncio.run(drain())
    assert [release.status for release in collector.releases] == [Status.RELEASED] * windows
    accepted = sorted(collector.accepted.values(), key=lambda pair: pair[0].window_start)
    return [opened(release, sealed.payload, plans[0]) for release, sealed in accepted]


def opened(release: Release, payload: bytes, plan: Plan) -> Opened:
    """Decode a payload as the collector does."""
    names = payload_columns(plan)
    if release.selection is None:
        return Opened(release, None, arrow.decode(payload, names, release.rows))
    key = release.selection.partition
    keys, columns = arrow.decode_keyed(payload, key, names, release.rows, cells=1, max_bytes=64)
    return Opened(release, list(keys[1]), columns)
