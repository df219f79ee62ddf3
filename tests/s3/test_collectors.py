"""Collectors on machines that share nothing but a database and a bucket, as people run them.

Over a real PostgreSQL and a real S3 server, each collector in a folder of its own, all on one machine. Not proved here:
a machine that falls silent without dying (its sessions end by keepalives, half a minute later).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from benchmarks.collector.stage import family, running
from cloud_collector import client
from cloud_collector.bucket import Bucket
from edge_agg.contract.plan import parse_plan
from tests.cloud_collector.front import PLAN_TEXT, push, release
from tests.cloud_collector.test_shared_collectors import ACCEPTED, DUPLICATE, kill, patient, wait_sealed
from tests.cloud_collector.typed import run
from tests.s3.conftest import bucket_at
from tests.s3.server import Server

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from benchmarks.collector.stage import Running
    from cloud_collector.config import Database
    from tests.cloud_collector.postgres import Postgres

pytestmark = pytest.mark.slow

CONFIG = """
[collector]
listen = "127.0.0.1:0"
data = "data"
seal_every = "{seal_every}"
workers = {workers}
[landing]
url = "{database}"
[lake]
url = "{bucket.url}"
region = "{bucket.region}"
endpoint = "{bucket.endpoint}"
access_key_file = "{bucket.access_key_file}"
secret_key_file = "{bucket.secret_key_file}"
"""
NODES = 'nodes = ["jfk", "lga"]'
SECOND = PLAN_TEXT.replace("version = 1", "version = 2")
_SEALS = """
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
AND ((classid::bigint << 32) | objid::bigint) = hashtextextended(current_schema() || '/edge-aggregator/seal', 0)
"""


def machine(folder: Path, database: Database, bucket: Bucket, *, workers: int, seal_every: str, plan: bool) -> Path:
    """The config of a collector in a folder of its own; only one of them is told the plan."""
    folder.mkdir()
    text = CONFIG.format(database=database.url, bucket=bucket, workers=workers, seal_every=seal_every)
    (folder / "flights.toml").write_text(PLAN_TEXT)
    (folder / "collector.toml").write_text(text + (f'[[plan]]\npath = "flights.toml"\n{NODES}\n' if plan else ""))
    return folder / "collector.toml"


def serving(config: Path, name: str = "log") -> contextlib.AbstractContextManager[Running]:
    return running("cloud_collector", "serve", str(config), errors=config.with_name(name))


@dataclass
class Fleet:
    """Two agents with two addresses each: every release goes to both, by threads of their own."""

    collectors: list[Running]
    outcomes: dict[tuple[str, int], list[tuple[int, str]]] = field(default_factory=dict)

    def push(self, weeks: range) -> list[threading.Thread]:
        """Begin."""
        orders = [self.collectors, self.collectors[::-1]]
        threads = [
            threading.Thread(target=self._push, args=(agent, weeks, order))
            for agent in ("jfk", "lga")
            for order in orders
        ]
        for thread in threads:
            thread.start()
        return threads

    def _push(self, agent: str, weeks: range, order: list[Running]) -> None:
        for n in weeks:
            self.outcomes.setdefault((agent, n), []).extend(patient(order, release(agent, n)))


def answers(collector: Running) -> list[pl.DataFrame]:
    """What a collector says, in several ways."""
    with client.connect(collector.address) as c:
        return [
            c.estimate("flights", "departures", version=1),
            c.estimate("flights", "late", version=1, by=["carrier"], every="7d"),
            c.estimate("flights", "total", version=1, by=["node", "night"], every="28d"),
            c.estimate("flights", "departures", version=1, where={"node": ["jfk"]}, every="7d"),
        ]


def kill_while_it_seals(collector: Running, postgres: Postgres, database: Database) -> None:
    """Stop it, look whether it holds the sealer's lock, and kill it if so; else let it go on and try again."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        members = family(collector.process.pid)
        for pid in members:
            os.kill(pid, signal.SIGSTOP)
        if postgres.run(_SEALS, at=database) == [(1,)]:
            kill(collector)
            return
        for pid in members:
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.013)
    raise AssertionError("it never seals")


def kept(config: Path) -> set[str]:
    """What a machine has of its own."""
    return {path.name for path in (config.parent / "data").iterdir()} - {"figures"}


@pytest.mark.parametrize("workers", [1, 2])
def test_collectors_share_a_database_and_a_bucket_and_nothing_else(
    postgres: Postgres, bucket: Bucket, tmp_path: Path, workers: int
) -> None:
    """The one that seals is killed while it does; the other takes over; both say the same, exact; all fits together.

    Guarantee: once from ack to lake, whoever took it, whoever seals and whoever answers; a plan is told to one machine.
    """
    database = postgres.database()
    one = machine(tmp_path / "one", database, bucket, workers=workers, seal_every="100ms", plan=True)
    other = machine(tmp_path / "other", database, bucket, workers=workers, seal_every="5s", plan=False)
    with contextlib.ExitStack() as stack:
        fleet = Fleet([stack.enter_context(serving(config)) for config in (one, other)])
        for thread in fleet.push(range(15)):
            thread.join()
        assert all(sorted(said) == [ACCEPTED, DUPLICATE] for said in fleet.outcomes.values())
        first = [answers(collector) for collector in fleet.collectors]
        assert all(mine.equals(theirs) for mine, theirs in zip(*first, strict=True))
        assert first[0][0]["value"].to_list() == [30 * 6.0]

        pushing = fleet.push(range(15, 45))
        kill_while_it_seals(fleet.collectors[0], postgres, database)
        for thread in pushing:
            thread.join()
        assert all(ACCEPTED in said or DUPLICATE in said for said in fleet.outcomes.values())
        assert len(fleet.outcomes) == 90
        wait_sealed(database)  # the other one seals, though nobody asks
        again = stack.enter_context(serving(one, "again"))
        second = [answers(collector) for collector in (again, fleet.collectors[1])]
        assert all(mine.equals(theirs) for mine, theirs in zip(*second, strict=True))
        assert second[0][0]["value"].to_list() == [90 * 6.0]
        assert second[0][0]["status"].to_list() == ["complete"]

        told = run("plans", "add", _second(tmp_path), "--node", "ewr", "--config", other)
        assert told.exit_code == 0, told.output
        assert until_taken(again) == ACCEPTED
    for config in (one, other):
        found = run("verify", "--config", config)
        assert (found.output, found.exit_code) == ("all fits\n", 0)
        assert kept(config) <= {"plans", "sealer.lock", "workers.lock"}, kept(config)


def _second(folder: Path) -> Path:
    path = folder / "second.toml"
    path.write_text(SECOND)
    return path


def until_taken(collector: Running) -> tuple[int, str]:
    """What a collector says to a release of a plan that another machine was told, at last."""
    said = (0, "")
    for _ in range(200):
        (said,) = push(collector.address, release("ewr", 0, plan=parse_plan(SECOND)))
        if said == ACCEPTED:
            break
        time.sleep(0.1)
    return said


def test_processes_that_are_started_again_need_no_bucket(postgres: Postgres, tmp_path: Path) -> None:
    """While the bucket is away releases are acked, also by workers, and a sealer, that came meanwhile."""
    database = postgres.database()
    with contextlib.closing(Server()) as away:
        config = machine(
            tmp_path / "one",
            database,
            bucket_at(away.endpoint, tmp_path),
            workers=2,
            seal_every="200ms",
            plan=True,
        )
        with serving(config) as collector:
            assert push(collector.address, release("jfk", 0)) == [ACCEPTED]
            away.close()
            for pid in started(config):
                os.kill(pid, signal.SIGKILL)
            assert patient([collector], release("jfk", 1)) == [ACCEPTED]
            deadline = time.monotonic() + 20
            while len(started(config)) < 6 and time.monotonic() < deadline:
                time.sleep(0.1)
            assert len(started(config)) == 6, "each once more, and no more than that"
            assert [push(collector.address, release("jfk", n)) for n in range(2, 12)] == [[ACCEPTED]] * 10
            assert collector.process.poll() is None


def started(config: Path) -> list[int]:
    """The processes that a collector has started."""
    lines = [json.loads(line) for line in (config.parent / "log").read_text().splitlines() if line.startswith("{")]
    return [line["pid"] for line in lines if line["event"] == "worker_started"]


def test_two_that_name_another_bucket_are_not_one(postgres: Postgres, bucket: Bucket, tmp_path: Path) -> None:
    """Half of the fleet would be in each lake: the second is refused before it takes a call."""
    database = postgres.database()
    one = machine(tmp_path / "one", database, bucket, workers=1, seal_every="1s", plan=True)
    with serving(one):
        pass
    elsewhere = Bucket(**{name: getattr(bucket, name) for name in Bucket.__slots__} | {"prefix": "elsewhere"})
    other = machine(tmp_path / "other", database, elsewhere, workers=1, seal_every="1s", plan=True)
    refused = run("serve", other)
    assert refused.exit_code == 3
    assert "$.lake.url: this landing is sealed into another lake" in refused.output
