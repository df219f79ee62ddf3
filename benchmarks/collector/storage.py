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
from typing import TYPE_CHECKING

from benchmarks.bar import Bar
from benchmarks.collector.fleet import HOUR, PLAN, ROWS, START, TENANT, Agent, payloads
from benchmarks.collector.stage import AGENTS, running
from cloud_collector import client, config
from cloud_collector.lake import Lake
from cloud_collector.landing import Landing
from cloud_collector.payload import open_payload
from cloud_collector.plans import PlanRegistry
from edge_agg.contract import codec
from edge_agg.contract.plan import parse_plan, plan_hash

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GROUP_BY_S, PLAN_DAY_S, KEYS_MB = 1.5, 0.1, 300.0
INGEST_PER_S = 500.0
"""Summaries a second that others push while the questions are asked."""
_COMMIT = 1000


def fill(settings: config.Config, cells: int) -> int:
    """Write summaries straight to the lake, as the sealer does; how many days of all agents that is."""
    plan, hashed = parse_plan(PLAN), plan_hash(parse_plan(PLAN))
    PlanRegistry(settings.plans_path).add(PLAN, AGENTS, tenant=TENANT)
    lake = Lake(settings.lake_path)
    made = payloads()
    agents = [Agent(f"past-{i:02}", made) for i in range(len(AGENTS))]
    rows = []
    for n in range(cells // ROWS):
        sealed = agents[n % len(agents)].seal()
        release = codec.open_sealed(sealed.header, sealed.payload)[0]
        rows.append((n + 1, release, open_payload(release, sealed.payload, plan)))
        if len(rows) == _COMMIT:
            lake.append(plan, hashed, rows, app_id="benchmark")
            rows = []
    lake.append(plan, hashed, rows, app_id="benchmark")
    return cells // ROWS // len(agents) // 24


def questions(folder: Path, path: Path, cells: int) -> Iterator[Bar]:
    """A full group-by and one plan-day, each the median of five, while others push."""
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
            whole, day = [], []
            for _ in range(5):
                began = time.monotonic()
                asked.estimate("load", "events", by=["kind"])
                whole.append(time.monotonic() - began)
                began = time.monotonic()
                asked.estimate(
                    "load", "events", start=START + days // 2 * 24 * HOUR, end=START + (days // 2 + 1) * 24 * HOUR
                )
                day.append(time.monotonic() - began)
            pushing.terminate()
    print(f"measured questions: {json.dumps({'group_by_s': whole, 'plan_day_s': day})}", flush=True)
    yield Bar(name="group_by_all_cells_s", value=statistics.median(whole), limit=GROUP_BY_S)
    yield Bar(name="one_plan_day_s", value=statistics.median(day), limit=PLAN_DAY_S)


def keys(folder: Path, agents: int) -> Iterator[Bar]:
    """One release of each of many agents, sealed: what is left for ever, on disk."""
    path = folder / "landing.sqlite"
    sealed = Agent("one", payloads(1)).seal()
    release = codec.open_sealed(sealed.header, sealed.payload)[0]

    async def land() -> None:
        with contextlib.closing(Landing(path, max_queued=_COMMIT * 4)) as landing:
            for first in range(0, agents, _COMMIT):
                some = range(first, min(first + _COMMIT, agents))
                await landing.land([(replace(release, agent=f"site-{i:07}"), sealed) for i in some])
                landing.mark_sealed({one.id: bytes(32) for one in landing.unsealed(_COMMIT)})

    began = time.process_time()
    asyncio.run(land())
    took = time.process_time() - began
    size = sum(file.stat().st_size for file in folder.glob("landing.sqlite*")) / 1e6
    print(f"figure keys agents {agents} cpu_us_each {took / agents * 1e6:.1f}", flush=True)
    yield Bar(name="dedup_state_mb_for_1M_agents", value=size * 1_000_000 / agents, limit=KEYS_MB)
