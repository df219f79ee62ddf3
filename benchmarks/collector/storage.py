"""What is kept: questions over many stored cells while others push, and the keys of a million agents.

Place: two cases of the benchmark.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np

from benchmarks.bar import Bar
from benchmarks.collector.fleet import HOUR, PLAN, ROWS, START, TENANT, Agent, payloads
from benchmarks.collector.stage import AGENTS, running
from cloud_collector import client, config
from cloud_collector.lake import Lake
from cloud_collector.lake_rows import DIGEST_BYTES
from cloud_collector.landing import Landing
from cloud_collector.payload import open_payload
from cloud_collector.plans import PlanRegistry
from cloud_collector.rollup import Rollups
from edge_agg.contract import codec
from edge_agg.contract.plan import parse_plan, plan_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_agg.contract.release import Sealed

GROUP_BY_S, PLAN_DAY_S, KEYS_MB = 1.5, 0.1, 300.0
INGEST_PER_S = 500.0
"""Summaries a second that others push while the questions are asked."""
_COMMIT, _SEALED = 1000, 256


def fill(settings: config.Config, cells: int) -> int:
    """Write summaries to lake and roll-ups, as the sealer does; how many days of all agents that is."""
    plan, hashed = parse_plan(PLAN), plan_hash(parse_plan(PLAN))
    PlanRegistry(settings.plans_path).add(PLAN, AGENTS, tenant=TENANT)
    lake = Lake(settings.lake_path)
    made = payloads()
    agents = [Agent(f"past-{i:02}", made) for i in range(len(AGENTS))]
    with contextlib.closing(Landing(settings.landing)) as landing:
        landing.bind(lake)
        sealed_by = landing.id
    with contextlib.closing(Rollups(settings.rollups_path)) as rollups:
        rollups.begin(plan, hashed, [])
        for first in range(0, cells // ROWS, _SEALED):
            rows = []
            for n in range(first, min(first + _SEALED, cells // ROWS)):
                sealed = agents[n % len(agents)].seal()
                release = codec.open_sealed(sealed.header, sealed.payload)[0]
                rows.append((n + 1, release, open_payload(release, sealed.payload, plan)))
            lake.append(plan, hashed, rows, app_id=sealed_by)
            rollups.add(plan, hashed, rows)
    return cells // ROWS // len(agents) // 24


def questions(folder: Path, path: Path, cells: int) -> Iterator[Bar]:
    """A full group-by and one plan-day, each the median of five, while others push; and the day from the lake."""
    settings = config.load(path)
    began = time.monotonic()
    days = fill(settings, cells)
    print(f"figure filled cells {cells} in_s {time.monotonic() - began:.1f} days {days}", flush=True)
    home = folder / "analyst"
    with running("cloud_collector", "serve", str(path), errors=folder / "questions.log") as server:
        command = [sys.executable, "-m", "benchmarks.collector.load", server.address, str(folder)]
        rate = ["--seconds", "60", "--rate", f"{INGEST_PER_S}", "--agents", *AGENTS]
        with (
            subprocess.Popen([*command, *rate], stdout=subprocess.DEVNULL) as pushing,
            client.connect(
                server.address, ca=folder / "ca.pem", cert=home / "cert.pem", key=home / "key.pem", timeout_s=120
            ) as asked,
        ):
            time.sleep(3)
            span: dict[str, Any] = {"start": START + days // 2 * 24 * HOUR, "end": START + (days // 2 + 1) * 24 * HOUR}
            whole, day, by_node = [], [], []
            before, since = asked.estimate("load", "events")["windows_reporting"][0], time.monotonic()
            for _ in range(5):
                whole.append(_timed(partial(asked.estimate, "load", "events", by=["kind"])))
                day.append(_timed(partial(asked.estimate, "load", "events", **span)))
                by_node.append(_timed(partial(asked.estimate, "load", "events", by=["node"], **span)))
            after = asked.estimate("load", "events")["windows_reporting"][0]
            print(f"figure pushed_meanwhile_per_s {(after - before) / (time.monotonic() - since):.0f}", flush=True)
            pushing.terminate()
    said = {"group_by_s": whole, "plan_day_s": day, "plan_day_by_node_s": by_node}
    print(f"measured questions: {json.dumps(said)}", flush=True)
    print(f"figure one_plan_day_by_node_s {statistics.median(by_node):.3g}", flush=True)
    yield Bar(name="group_by_all_cells_s", value=statistics.median(whole), limit=GROUP_BY_S)
    yield Bar(name="one_plan_day_s", value=statistics.median(day), limit=PLAN_DAY_S)


def _timed(ask: Callable[[], object]) -> float:
    began = time.monotonic()
    ask()
    return time.monotonic() - began


def keys(folder: Path, agents: int) -> Iterator[Bar]:
    """One release of each of many agents, in no order, sealed: what is left for ever, on disk; and of one more each.

    Pages that are free, because what waited in them has gone, do not grow with the agents and count once.
    """
    path = folder / "landing.sqlite"
    one = Agent("one", payloads(1))
    hours = [one.seal(), one.seal()]
    names = [f"site-{i:07}" for i in range(agents)]
    sizes: list[float] = []

    async def land(sealed: Sealed) -> None:
        release = codec.open_sealed(sealed.header, sealed.payload)[0]
        with contextlib.closing(Landing(path, max_queued=_COMMIT * 4)) as landing:
            for first in range(0, agents, _COMMIT):
                await landing.land([(replace(release, agent=name), sealed) for name in names[first : first + _COMMIT]])
                landing.mark_sealed({one.id: bytes(DIGEST_BYTES) for one in landing.unsealed(_COMMIT)})

    began = time.process_time()
    for n, sealed in enumerate(hours):
        np.random.default_rng(n).shuffle(names)
        asyncio.run(land(sealed))
        with contextlib.closing(apsw.Connection(str(path))) as db:
            pages, free = db.pragma("page_count"), db.pragma("freelist_count")
            sizes.append(db.pragma("page_size") * ((pages - free) * 1_000_000 / agents + free) / 1e6)
    took = time.process_time() - began
    print(f"figure keys agents {agents} cpu_us_each {took / agents / len(hours) * 1e6:.1f}", flush=True)
    print(f"figure keys bytes_of_a_further_release {sizes[1] - sizes[0]:.0f}", flush=True)
    yield Bar(name="dedup_state_mb_for_1M_agents", value=sizes[0], limit=KEYS_MB)
