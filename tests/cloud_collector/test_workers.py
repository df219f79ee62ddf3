"""Several processes over one port, one landing and one lake: real processes, over loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import grpc
import pytest

from benchmarks.collector.stage import family, running
from cloud_collector import client, figures, sealing
from cloud_collector.errors import ConfigInvalid
from cloud_collector.figures import FOLDER_VARIABLE
from cloud_collector.landing import Landing
from cloud_collector.sealing import Turns
from cloud_collector.supervisor import SEALER_NICE, _held
from cloud_collector.turns import turn
from edge_agg.contract.v1 import collector_pb2
from tests.cloud_collector.front import PLAN_TEXT, push, release
from tests.cloud_collector.without import CALLS
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.collector.stage import Running
    from edge_agg.contract.release import Sealed

ACCEPTED, DUPLICATE = (collector_pb2.OUTCOME_ACCEPTED, ""), (collector_pb2.OUTCOME_DUPLICATE, "")
CONFIG = """
[collector]
listen = "127.0.0.1:0"
data = "data"
workers = {workers}
seal_every = "200ms"
[monitor]
listen = "127.0.0.1:0"
[[plan]]
path = "flights.toml"
nodes = ["jfk", "lga"]
"""


@contextlib.contextmanager
def collector(folder: Path, workers: int = 2) -> Iterator[Running]:
    with running("cloud_collector", "serve", str(configured(folder, workers)), errors=folder / "log") as server:
        yield server


def configured(folder: Path, workers: int = 2) -> Path:
    (folder / "flights.toml").write_text(PLAN_TEXT)
    (folder / "collector.toml").write_text(CONFIG.format(workers=workers))
    return folder / "collector.toml"


def _has_started(folder: Path, before: int) -> bool:
    """Whether one worker more has started than before."""
    return len(events(folder, "worker_started")) > before


def wait_gone(pids: list[int]) -> list[int]:
    """The processes that still run after a while."""
    alive = pids
    for _ in range(200):
        alive = [pid for pid in alive if runs(pid)]
        if not alive:
            break
        time.sleep(0.1)
    return alive


def runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return bool((Path("/proc") / str(pid) / "cmdline").read_bytes())
    return False


def events(folder: Path, name: str) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == name]


def page(server: Running, path: str) -> str:
    with urllib.request.urlopen(f"http://{server.monitor}{path}", timeout=5) as answer:
        said: str = answer.read().decode()
        return said


def patient(address: str, *releases: Sealed) -> list[tuple[int, str]]:
    """Push as an agent does: again, after a connection that broke."""
    for _ in range(300):
        try:
            return push(address, *releases)
        except grpc.RpcError:
            time.sleep(0.1)
    raise AssertionError("nobody answered")


@pytest.mark.slow
def test_workers_share_one_landing_and_one_lake(tmp_path: Path) -> None:
    """What one worker acked is a duplicate at another and in every worker's answer; the page adds them up."""
    with collector(tmp_path) as server:
        for n in range(20):  # each on a connection of its own, which the kernel deals out
            assert push(server.address, release("jfk", n)) == [ACCEPTED]
        for n in range(20):
            assert push(server.address, release("jfk", n)) == [DUPLICATE]
        pids = {event["pid"] for event in events(tmp_path, "release_accepted")}
        assert len(pids) == 2
        for _ in range(4):
            with client.connect(server.address) as c:
                assert c.estimate("flights", "departures")["value"].to_list() == [20 * 6.0]
        assert page(server, "/ready") == "ready\n"
        said = page(server, "/metrics")
        assert 'collector_releases_total{outcome="accepted"} 20.0' in said
        assert 'collector_releases_total{outcome="duplicate"} 20.0' in said
    assert server.process.returncode == 0


@pytest.mark.slow
def test_the_sealer_steps_back_for_those_who_take_calls(tmp_path: Path) -> None:
    """Where processors are short, acks come before the lake: the sealer's priority is the lower one."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with collector(tmp_path):
        given = {who: os.getpriority(os.PRIO_PROCESS, _started(tmp_path, who)) for who in ("0", "1", "sealer")}
    assert given == {"0": ours, "1": ours, "sealer": ours + SEALER_NICE}


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in CALLS, reason="the filter is written for two kinds of machine")
def test_a_sealer_that_may_not_step_back_seals_all_the_same(tmp_path: Path) -> None:
    """Where a service's filter forbids priorities (EPERM) the collector comes up, and its sealer seals.

    Mutant: `os.nice` without its guard; no sealer ever came up.
    """
    config = configured(tmp_path)
    words = ("tests.cloud_collector.without", "setpriority", "serve", str(config))
    with running(*words, errors=tmp_path / "log") as server:
        assert os.getpriority(os.PRIO_PROCESS, _started(tmp_path, "sealer")) == os.getpriority(os.PRIO_PROCESS, 0)
        assert push(server.address, release("jfk", 0)) == [ACCEPTED]
        for _ in range(100):
            if events(tmp_path, "releases_sealed"):
                break
            time.sleep(0.1)
        assert events(tmp_path, "releases_sealed")
        assert page(server, "/ready") == "ready\n"
        assert events(tmp_path, "worker_died") == []


@pytest.mark.slow
def test_a_dead_worker_is_replaced_and_nothing_acked_is_lost(tmp_path: Path) -> None:
    """SIGKILL each worker and the sealer in turn while agents push: all is acked in the end, and in the lake once."""
    with collector(tmp_path) as server:
        for n, who in enumerate(["0", "1", "sealer"]):
            assert patient(server.address, release("jfk", n)) in ([ACCEPTED], [DUPLICATE])
            pid = next(event["pid"] for event in events(tmp_path, "worker_started") if event["worker"] == who)
            assert isinstance(pid, int)
            started = len(events(tmp_path, "worker_started"))
            os.kill(_started(tmp_path, who), signal.SIGKILL)
            assert patient(server.address, release("lga", n)) in ([ACCEPTED], [DUPLICATE])
            wait_until(partial(_has_started, tmp_path, started))
        died = [event["worker"] for event in events(tmp_path, "worker_died")]
        assert died == ["0", "1", "sealer"]
        for _ in range(100):  # a worker that starts has nothing to lose: it is asked until it answers
            with contextlib.suppress(Exception), client.connect(server.address) as c:
                assert c.estimate("flights", "departures")["value"].to_list() == [6 * 6.0]
                break
            time.sleep(0.1)
        else:
            raise AssertionError("nobody answered")


@pytest.mark.slow
def test_a_mistake_that_was_made_since_the_start_ends_nobody_who_runs(tmp_path: Path) -> None:
    """A plan's file is spoilt, and the sealer dies: calls are still acked, and it seals again once the file is right.

    Mutant: exit code 3 of any process ends the collector.
    """
    with collector(tmp_path) as server:
        (tmp_path / "flights.toml").write_text("no plan")
        os.kill(_started(tmp_path, "sealer"), signal.SIGKILL)
        for _ in range(200):
            if [one["exit_code"] for one in events(tmp_path, "worker_died")][1:2] == [3]:
                break
            time.sleep(0.1)
        told = events(tmp_path, "worker_died")[1]
        assert (told["exit_code"], str(told["problem"])[:13]) == (3, "flights.toml:")
        assert push(server.address, release("jfk", 0)) == [ACCEPTED]
        (tmp_path / "flights.toml").write_text(PLAN_TEXT)
        for _ in range(300):
            if events(tmp_path, "releases_sealed"):
                break
            time.sleep(0.1)
        assert events(tmp_path, "releases_sealed")
    assert server.process.returncode == 0


def _started(folder: Path, who: str) -> int:
    """The process id of a worker, as the log has it last."""
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    pids = [line["pid"] for line in lines if line["event"] == "worker_started" and line["worker"] == who]
    return int(pids[-1])


@pytest.mark.slow
def test_sigterm_drains_everything(tmp_path: Path) -> None:
    """Pushed up to the signal: what was acked is in the lake when the last process has gone, and no process stays."""
    acked: list[int] = []
    with collector(tmp_path) as server:
        over = threading.Event()

        def keep_pushing() -> None:
            for n in range(10_000):
                if over.is_set():
                    return
                try:
                    if push(server.address, release("jfk", n)) == [ACCEPTED]:
                        acked.append(n)
                except grpc.RpcError:
                    return

        pushing = threading.Thread(target=keep_pushing)
        pushing.start()
        wait_until(lambda: len(acked) > 10 or not pushing.is_alive())
        pids = family(server.process.pid)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        over.set()
        pushing.join(30)
    assert len(acked) > 10
    assert len(pids) >= 4
    assert wait_gone(pids) == []
    with contextlib.closing(Landing(tmp_path / "data" / "landing.sqlite")) as landing:
        assert landing.unsealed(1) == []
        assert landing.agents()[0].releases >= len(acked)


@pytest.mark.slow
def test_ctrl_c_is_for_the_first_process_alone(tmp_path: Path) -> None:
    """The terminal says it to all: they stop in order all the same, nobody dies of it, and what was acked is sealed.

    Mutant: the children hear it too, and end before they are told to.
    """
    with collector(tmp_path) as server:
        assert push(server.address, release("jfk", 0)) == [ACCEPTED]
        children = family(server.process.pid)[1:]
        for pid in children:
            os.kill(pid, signal.SIGINT)
        time.sleep(1)
        assert [pid for pid in children if not runs(pid)] == []
        for pid in (server.process.pid, *children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        assert server.process.wait(60) == 0
        assert wait_gone(children) == []
    assert events(tmp_path, "worker_died") == []
    with contextlib.closing(Landing(tmp_path / "data" / "landing.sqlite")) as landing:
        assert landing.unsealed(1) == []


@pytest.mark.slow
def test_orphans_stop_by_themselves(tmp_path: Path) -> None:
    """If the process that looks after them is killed, workers and sealer stop in order: no port is held for ever."""
    with collector(tmp_path) as server:
        children = family(server.process.pid)[1:]
        server.process.kill()
        server.process.wait(10)
        assert wait_gone(children) == []


def check_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    program = f"from pathlib import Path; from cloud_collector import figures; figures.share(Path({str(folder)!r}))"
    with subprocess.Popen([sys.executable, "-c", f"{program}; print(); input()"], stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        (folder / "0" / "counter_1.db").touch()
        figures.share(folder)
        assert os.environ[FOLDER_VARIABLE] == str(folder / "1")
        assert (folder / "0" / "counter_1.db").exists()
        other.communicate(b"\n")
    figures.share(folder)
    assert os.environ[FOLDER_VARIABLE] == str(folder / "0")
    assert not (folder / "0" / "counter_1.db").exists()


def test_figures_of_another_that_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is started beside a collector that runs keeps figures of its own; those of one that ended go.

    Mutant: nobody has a part to themselves.
    """
    check_parts(tmp_path / "figures", monkeypatch)
    monkeypatch.setattr(figures, "_taken", lambda part: True)
    with pytest.raises(AssertionError):
        check_parts(tmp_path / "mutant", monkeypatch)


@pytest.mark.slow
def test_a_second_one_started_by_mistake_blinds_nobody(tmp_path: Path) -> None:
    """The config of a collector that runs is served again: refused for its port, and the page says what it said."""
    with collector(tmp_path) as server:
        assert push(server.address, release("jfk", 0)) == [ACCEPTED]
        config = (tmp_path / "collector.toml").read_text().replace("127.0.0.1:0", server.address, 1)
        (tmp_path / "again.toml").write_text(config)
        words = [sys.executable, "-m", "cloud_collector", "serve", str(tmp_path / "again.toml")]
        again = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (again.returncode, "$.collector.listen" in again.stderr) == (3, True)
        assert push(server.address, release("jfk", 1)) == [ACCEPTED]
        assert 'collector_releases_total{outcome="accepted"} 2.0' in page(server, "/metrics")


def test_a_port_that_somebody_listens_on_is_not_shared() -> None:
    """A second collector on the port is refused, although both would allow sharing it."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        at = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigInvalid, match="field"), _held(at, "field"):
            pass


def check_one_sealer(folder: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    class Busy:
        def newest(self) -> int:
            return 1

        def seal(self, upto: int) -> int:
            del upto
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()
            return 0

    sealers = [Turns(Busy(), folder / "lock") for _ in range(4)]  # type: ignore[arg-type]  # a fake
    threads = [threading.Thread(target=one.seal) for one in sealers for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_only_one_seals_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask, in however many processes, there is one sealer at any instant."""
    check_one_sealer(tmp_path)
    monkeypatch.setattr(sealing, "turn", lambda path: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        check_one_sealer(tmp_path)


def test_the_turn_of_the_dead_is_free(tmp_path: Path) -> None:
    """A sealer that was killed in its turn does not keep the others out."""
    pid = os.fork()
    if pid == 0:
        with turn(tmp_path / "lock"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with turn(tmp_path / "lock"):
        pass


def test_writers_of_one_landing_wait_for_each_other(tmp_path: Path) -> None:
    """Two landings on one file, as two workers have: all commits succeed, and a key is accepted once."""
    from edge_agg.contract import codec

    made = [release("jfk", n) for n in range(60)]
    pairs = [(codec.open_sealed(one.header, one.payload)[0], one) for one in made]

    async def land_all(landing: Landing) -> list[str]:
        return [verdict for pair in pairs for verdict in await landing.land([pair])]

    async def run() -> list[list[str]]:
        with contextlib.ExitStack() as stack:
            landings = [stack.enter_context(contextlib.closing(Landing(tmp_path / "l.sqlite"))) for _ in range(2)]
            return await asyncio.gather(*map(land_all, landings))

    for one, other in zip(*asyncio.run(run()), strict=True):
        assert sorted([one, other]) == ["accepted", "duplicate"]
