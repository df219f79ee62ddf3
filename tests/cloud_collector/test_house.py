"""Who is started again, and what ends a collector of several processes: the house with processes that are made up."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections import defaultdict
from dataclasses import dataclass, field
from multiprocessing import Pipe
from typing import TYPE_CHECKING, Any, cast

import pytest

from cloud_collector import supervisor, telemetry
from cloud_collector.errors import ConfigInvalid, StoreFailed, StoreUnavailable
from tests.cloud_collector.front import PLAN_TEXT
from tests.cloud_collector.typed import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cloud_collector.config import Config

INVALID, BROKEN, AWAY = (error.exit_code for error in (ConfigInvalid, StoreFailed, StoreUnavailable))


@dataclass
class Told:
    """What the house needs of a config."""

    workers: int = 2
    listen: str = "127.0.0.1:1"


class Child:
    """A process that is none: it comes up or does not, ends when it is told to, or when the test says so."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pipe, self._theirs = Pipe()
        self.sentinel, self._over = os.pipe()
        self._code = 0

    def say(self, problem: str) -> None:
        """That it is up, or why it cannot be."""
        self._theirs.send(problem)

    def die(self, code: int) -> None:
        """End with an exit code."""
        self._code = code
        self._theirs.close()
        os.write(self._over, b"x")

    def stop(self) -> None:
        """End as it is told to."""
        self.die(0)

    def end(self) -> int:
        """Make sure that it is over; its exit code."""
        self.pipe.close()
        for fd in (self.sentinel, self._over):
            os.close(fd)
        return self._code


@dataclass
class Street:
    """Starts children for the house: each comes up, unless the test says what keeps the next of its name from it."""

    keeps: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    started: dict[str, list[Child]] = field(default_factory=lambda: defaultdict(list))

    def start(self, name: str, config: Config) -> Child:
        """Start one."""
        del config
        child = Child(1000 + sum(map(len, self.started.values())))
        self.started[name].append(child)
        if self.keeps[name]:
            code, problem = self.keeps[name].pop(0)
            child.say(problem)
            child.die(code)
        else:
            child.say("")
        return child


@pytest.fixture
def street(monkeypatch: pytest.MonkeyPatch) -> Street:
    one = Street()
    monkeypatch.setattr(supervisor, "_start", one.start)
    monkeypatch.setattr(supervisor, "PAUSE_S", 0.001)
    return one


async def until(holds: Callable[[], bool]) -> bool:
    for _ in range(500):
        if holds():
            return True
        await asyncio.sleep(0.002)
    return False


async def with_one_that_dies(street: Street, name: str, *then: tuple[int, str]) -> tuple[Any, bool]:
    """The house's failure, and whether it was whole again, after one process died and these kept the next ones out."""
    ending, up = asyncio.Event(), asyncio.Event()
    house: Any = supervisor._House(cast("Any", Told()), ending)
    life = asyncio.create_task(house.run(lambda _: up.set()))
    await asyncio.wait_for(up.wait(), 10)
    street.keeps[name] = list(then)
    street.started[name][-1].die(1)
    whole = await until(lambda: ending.is_set() or (len(street.started[name]) == len(then) + 2 and house.ready()))
    whole = whole and not ending.is_set()
    ending.set()
    await asyncio.wait_for(life, 10)
    return house.failure, whole


@pytest.mark.parametrize("name", ["0", "sealer"])
@pytest.mark.parametrize("code", [INVALID, AWAY, 1])
def test_who_cannot_start_again_at_once_is_tried_again(
    street: Street, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    """Once all were up, a certificate that does not fit yet, or a server that is away, ends nobody but who met it.

    The alarm says what is wrong. Mutant: exit code 3 ends the house at any time.
    """
    telemetry.configure()
    problem = (code, "$.tls.key_file: does not fit")
    assert asyncio.run(with_one_that_dies(street, name, problem, problem)) == (None, True)
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    died = [line for line in said if line["event"] == "worker_died"]
    assert [(line["worker"], line["exit_code"]) for line in died] == [(name, one) for one in (1, code, code)]
    assert [line.get("problem") for line in died] == [None, problem[1], problem[1]]


def test_a_failed_disk_ends_the_house(street: Street) -> None:
    """At any time: what the kernel still shows of it may never have been written, so a person looks first."""
    failure, whole = asyncio.run(with_one_that_dies(street, "1", (BROKEN, "the disk")))
    assert (type(failure), whole) == (StoreFailed, False)


def test_what_keeps_the_first_from_starting_ends_the_house(street: Street) -> None:
    """Start is strict: before all are up, a mistake in what the config names ends the collector and is said."""
    street.keeps["1"] = [(INVALID, "$.tls.key_file: does not fit")]
    house: Any = supervisor._House(cast("Any", Told()), asyncio.Event())
    asyncio.run(asyncio.wait_for(house.run(None), 10))
    assert isinstance(house.failure, ConfigInvalid)
    assert str(house.failure) == "$.tls.key_file: does not fit"


SERVER = '[landing]\nurl = "postgresql://127.0.0.1:{port}/x"\n'
BUCKET = """
[lake]
url = "s3://sums/fleet"
region = "eu-central-1"
endpoint = "http://127.0.0.1:{port}"
access_key_file = "key"
secret_key_file = "key"
"""


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("table", "needs"), [(SERVER, "psycopg"), (BUCKET, "obstore")])
def test_who_boots_before_their_server_is_told_to_try_again(
    tmp_path: Path, workers: int, table: str, needs: str
) -> None:
    """PostgreSQL or the bucket does not answer at the start: exit code 6, and systemd starts the collector again.

    Mutant: the error of a failed disk in its place, whose exit code a person must look at.
    """
    pytest.importorskip(needs)
    (tmp_path / "flights.toml").write_text(PLAN_TEXT)
    (tmp_path / "key").write_text("key")
    (tmp_path / "key").chmod(0o600)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        config = tmp_path / "collector.toml"
        config.write_text(
            f'[collector]\nlisten = "127.0.0.1:0"\nworkers = {workers}\n'
            f'{table.format(port=nobody.getsockname()[1])}[[plan]]\npath = "flights.toml"\nnodes = ["jfk"]\n'
        )
        done = run("serve", config)
    assert done.exit_code == AWAY, done.output
    assert "Traceback" not in done.output
