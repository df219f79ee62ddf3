"""Collectors over one landing on a server, as people run them: processes, the config file, the command line.

Over a real PostgreSQL and loopback, the collectors on one machine, which may share a data folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from benchmarks.collector.stage import family, running
from cloud_collector import client
from cloud_collector import config as settings
from cloud_collector.config import Database
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.landing import Landing
from edge_agg.contract.codec import from_us
from edge_agg.contract.v1 import collector_pb2
from tests.cloud_collector.front import PLAN_TEXT, push, release
from tests.cloud_collector.typed import run
from tests.waiting import wait_until

if TYPE_CHECKING:
    from benchmarks.collector.stage import Running
    from edge_agg.contract.release import Sealed
    from tests.cloud_collector.conftest import Made, Maker
    from tests.cloud_collector.postgres import Postgres

ROOT = Path(__file__).parents[2]
ACCEPTED, DUPLICATE = (collector_pb2.OUTCOME_ACCEPTED, ""), (collector_pb2.OUTCOME_DUPLICATE, "")
CONFIG = """
[collector]
listen = "127.0.0.1:0"
data = "data"
seal_every = "100ms"
workers = {workers}
[landing]
url = "{url}"
[[plan]]
path = "flights.toml"
nodes = ["jfk", "lga"]
"""


def configured(folder: Path, database: Database, *, workers: int = 1) -> Path:
    (folder / "flights.toml").write_text(PLAN_TEXT)
    path = folder / "collector.toml"
    path.write_text(CONFIG.format(url=database.url, workers=workers))
    return path


def land(where: Database, *made: Made) -> list[str]:
    with contextlib.closing(Landing(where)) as landing:
        return list(asyncio.run(landing.land([one.pair for one in made])))


def wait_sealed(database: Database) -> None:
    """Come back once everything is in the lake, though nobody asks a question."""
    with contextlib.closing(Landing(database)) as landing:
        wait_until(lambda: not landing.unsealed(1))


def patient(collectors: list[Running], made: Sealed) -> list[tuple[int, str]]:
    """Push as an agent with two addresses does: to the first that answers."""
    for _ in range(100):
        for one in collectors:
            with contextlib.suppress(grpc.RpcError):
                return push(one.address, made)
        time.sleep(0.05)
    raise AssertionError("nobody answered")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_two_collectors_serve_one_fleet_and_one_takes_over(postgres: Postgres, tmp_path: Path, workers: int) -> None:
    """Every agent pushes everything to both; one is killed half-way; the answer is exact, and all fits together."""
    database = postgres.database()
    config = configured(tmp_path, database, workers=workers)
    outcomes: dict[tuple[str, int], list[tuple[int, str]]] = {}
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(running("cloud_collector", "serve", str(config), errors=tmp_path / name))
            for name in "ab"
        ]

        def push_all(agent: str, *, weeks: range, collectors: list[Running]) -> None:
            for n in weeks:
                outcomes.setdefault((agent, n), []).extend(patient(collectors, release(agent, n)))

        def fleet(weeks: range, orders: list[list[Running]]) -> None:
            threads = [
                threading.Thread(target=push_all, args=(agent,), kwargs={"weeks": weeks, "collectors": order})
                for agent in ("jfk", "lga")
                for order in orders
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

        fleet(range(15), [both, both[::-1]])
        for said in outcomes.values():
            assert sorted(said) == [ACCEPTED, DUPLICATE]
        for one in both:
            with client.connect(one.address) as c:
                assert c.estimate("flights", "departures")["value"].to_list() == [30 * 6.0]
        kill(both[0])
        fleet(range(15, 30), [both, both[::-1]])
        assert all(ACCEPTED in said for said in outcomes.values())
        wait_sealed(database)  # the other one seals
        with client.connect(both[1].address) as c:
            assert c.estimate("flights", "departures")["value"].to_list() == [60 * 6.0]
    found = run("verify", "--config", config)
    assert (found.output, found.exit_code) == ("all fits\n", 0)


def kill(collector: Running) -> None:
    """Kill -9 every process of a collector."""
    for pid in family(collector.process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    collector.process.wait(10)


@pytest.mark.slow
def test_while_the_server_is_down_agents_are_told_to_come_back(postgres: Postgres, tmp_path: Path) -> None:
    """UNAVAILABLE, nothing else; the same collector goes on once the server is back, and what was acked is known."""
    config = configured(tmp_path, postgres.database())
    with running("cloud_collector", "serve", str(config), errors=tmp_path / "log") as collector:
        assert push(collector.address, release("jfk", 0)) == [ACCEPTED]
        postgres.crash()
        try:
            with pytest.raises(grpc.RpcError) as refused:
                push(collector.address, release("jfk", 1))
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            time.sleep(0.5)  # the sealer meets it as well
            assert collector.process.poll() is None
        finally:
            postgres.start()
        assert patient([collector], release("jfk", 1)) == [ACCEPTED]
        assert push(collector.address, release("jfk", 0)) == [DUPLICATE]
        with client.connect(collector.address) as c:
            assert c.estimate("flights", "departures")["value"].to_list() == [2 * 6.0]
    assert collector.process.returncode == 0


def test_verify_sees_what_does_not_fit(postgres: Postgres, tmp_path: Path, maker: Maker) -> None:
    """As in a file: heads, hashes of what waits, charges."""
    database = postgres.database()
    config = configured(tmp_path, database)
    assert run("verify", "--config", config).exit_code != 0, "no collector has run there yet"
    land(database, maker.make(), maker.make(window=1))
    assert run("verify", "--config", config).output == "all fits\n"
    for change, words in {
        "UPDATE journals SET head_seq = head_seq + 1": "the head says",
        "UPDATE releases SET hash = sha256(hash) WHERE seq = 1": "has another hash than it had",
        "UPDATE waiting SET header = payload": "no longer what was sent",
        "UPDATE accounts SET seq = 77": "the charges of an account were told by a release that is not there",
    }.items():
        postgres.run(change, at=database)
        after = run("verify", "--config", config)
        assert (after.exit_code, words in after.output) == (8, True), change


def test_fences_by_the_command_line_hold_at_every_collector(postgres: Postgres, tmp_path: Path, maker: Maker) -> None:
    database = postgres.database()
    config = configured(tmp_path, database)
    land(database, maker.make())
    of_acme = ("--tenant", "acme", "--reason", "lent", "--config", config)
    assert run("fleet", "fence", "jfk", *of_acme).output == "fenced\n"
    assert land(database, maker.make(window=1)) == ["fenced"]
    assert "FENCED: person" in run("fleet", "chains", "--config", config).output
    assert run("fleet", "unfence", "jfk", *of_acme).output == "unfenced\n"
    assert land(database, maker.make(window=1)) == ["accepted"]


def test_backup_and_restore_name_what_does_it_instead(postgres: Postgres, tmp_path: Path) -> None:
    config = configured(tmp_path, postgres.database())
    for words, tool in ((("backup", tmp_path / "copy"), "pg_dump"), (("restore", tmp_path), "pg_restore")):
        refused = run(*words, "--config", config)
        assert (refused.exit_code, tool in refused.output) == (3, True)


@pytest.mark.slow
def test_a_dump_that_was_brought_back_says_what_it_may_lack(postgres: Postgres, tmp_path: Path, maker: Maker) -> None:
    """Its keys refuse what they knew; where an agent goes on further along, what lies between is lost, and said so."""
    database, dump = postgres.database(), str(tmp_path / "landing.dump")
    config = configured(tmp_path, database)
    (tmp_path / "plan.toml").write_text(maker.text)
    assert run("plans", "add", tmp_path / "plan.toml", "--tenant", "acme", "--config", config).exit_code == 0
    made = [maker.make(window=window) for window in range(6)]
    land(database, *made[:2])
    schema = postgres.run("SELECT current_schema()", at=database)[0][0]
    postgres.tool("pg_dump", "--format=custom", f"--schema={schema}", f"--file={dump}", database.url)
    assert land(database, *made[2:4]) == ["accepted"] * 2
    postgres.tool("pg_restore", "--clean", "--if-exists", f"--dbname={database.url}", dump)
    noted = run("mark-restored", "--config", config)
    assert noted.exit_code == 0, noted.output
    assert land(database, made[1], maker.make(window=0, seed=9), made[5]) == ["duplicate", "conflict", "fenced"]
    assert run("fleet", "unfence", "jfk", "--tenant", "acme", "--reason", "mine", "--config", config).exit_code == 0
    assert land(database, made[5]) == ["accepted"]
    with (
        contextlib.closing(Landing(database)) as landing,
        landing.known(maker.hash, maker.plan.name, "acme") as facts,
    ):
        lost = facts.of([("acme", "jfk")])["acme", "jfk"].behind
    assert [from_us(one) for one in lost] == [made[2].release.window_start, made[5].release.window_start]
    assert "restored: behind" in run("fleet", "chains", "--config", config).output


def test_a_password_comes_from_its_file(postgres: Postgres, tmp_path: Path, maker: Maker) -> None:
    """Over TCP, where the server asks for one; a wrong one, or none, opens nothing."""
    (tmp_path / "password").write_text("vq7 m'2\n")
    postgres.run("CREATE ROLE remote LOGIN SUPERUSER PASSWORD 'vq7 m''2'")
    url = f"postgresql://remote@127.0.0.1:{postgres.port}/postgres"
    schema = postgres.database().url.rpartition("options=")[2]
    config = tmp_path / "collector.toml"
    config.write_text(f'[landing]\nurl = "{url}?options={schema}"\npassword_file = "password"\n')
    told = settings.load(config).landing
    assert isinstance(told, Database)
    assert land(told, maker.make()) == ["accepted"]
    (tmp_path / "password").write_text("wrong")
    for one in (told, Database(url=told.url)):
        with pytest.raises(StoreFailed):
            Landing(one)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('url = "mysql://db/x"', "must be postgresql://"),
        ('url = "postgresql://"', "must be postgresql://"),
        ('url = "postgresql://me:secret@localhost/x"', "holds a password"),
        ('url = "postgresql://localhost/x?password=secret"', "holds a password"),
        ('url = "postgresql://db.example/x"', "verify-full"),
        ('url = "postgresql://localhost,db.example:5433/x"', "verify-full"),
        ('url = "postgresql:///x?host=db.example"', "verify-full"),
        ('url = "postgresql://localhost/x?hostaddr=192.0.2.1"', "verify-full"),
        ('url = "postgresql://db.example/x?sslmode=verify-full&sslmode=disable"', "verify-full"),
        ('url = "postgresql://localhost/x"\npassword_file = "nowhere"', "no such file"),
        ('url = "postgresql://localhost/x"\nport = 1', "port"),
    ],
)
def test_a_wrong_address_is_refused_by_its_path(tmp_path: Path, table: str, said: str) -> None:
    """Before anything is opened; no password is repeated."""
    (tmp_path / "collector.toml").write_text(f"[landing]\n{table}\n")
    with pytest.raises(ConfigInvalid, match=said) as refused:
        settings.load(tmp_path / "collector.toml")
    assert str(refused.value).startswith("$.landing")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://localhost/x",
        "postgresql://me@[::1]:5433/x",
        "postgresql:///x?host=/run/postgresql",
        "postgresql://me@db.example:5433/x?sslmode=verify-full",
    ],
)
def test_an_address_is_taken(tmp_path: Path, url: str) -> None:
    (tmp_path / "collector.toml").write_text(f'[landing]\nurl = "{url}"\n')
    assert settings.load(tmp_path / "collector.toml").landing == Database(url=url)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve {}", "verify --config {}", "fleet --config {}"])
def test_without_the_library_the_extra_is_named(tmp_path: Path, command: str) -> None:
    """One line and the exit code of a config that cannot work."""
    config = configured(tmp_path, Database(url="postgresql://localhost/x"))
    program = "import sys; sys.modules['psycopg'] = None; from cloud_collector.__main__ import main; main()"
    words = command.format(config).split()
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "install edge-aggregator[postgres]" in done.stderr
    assert "Traceback" not in done.stderr
