"""Promise B7 at the socket: rude clients cost bounded memory, and an honest agent is served meanwhile.

Real processes over loopback with mutual TLS; the attackers hold an agent's certificate of the same fleet.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from benchmarks.collector.fleet import Agent, payloads, request
from benchmarks.collector.load import PUSH
from benchmarks.collector.stage import AGENTS, Running, prepare, running
from edge_agg.contract.v1 import collector_pb2
from tests.hostile.rude import ATTACKS, Tally, attack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_RSS_MB = 600.0
"""The ceiling of one collector process under all of these attacks in turn; it has about 165 MB when nobody calls."""
ATTACK_S = 5.0
MOST_ANSWER_S = 5.0
ATTACKERS = 4


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stage")
    prepare(folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def collector(stage: Path) -> Iterator[Running]:
    with running("cloud_collector", "serve", str(stage / "collector.toml"), errors=stage / "log") as server:
        yield server


@pytest.fixture(scope="module")
def agent() -> Agent:
    return Agent(AGENTS[0], payloads(1))


def honest(server: Running, home: Path, agent: Agent) -> float:
    """Push one summary on a connection of its own, as a patient agent does; how long it took."""
    credentials = grpc.ssl_channel_credentials(
        (home / "ca.pem").read_bytes(), (home / "key.pem").read_bytes(), (home / "cert.pem").read_bytes()
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    began = time.monotonic()
    message = request([agent.seal()])
    with grpc.secure_channel(server.address, credentials, options) as channel:
        while True:
            try:
                push: Any = channel.unary_unary(PUSH)
                answer = push(message, timeout=20)
            except grpc.RpcError as error:
                metadata: Any = error.trailing_metadata() or ()
                trailing = dict(metadata)
                if "grpc-retry-pushback-ms" not in trailing:
                    raise
                time.sleep(int(trailing["grpc-retry-pushback-ms"]) / 1000)
                continue
            (receipt,) = collector_pb2.PushReleasesResponse.FromString(answer).receipts
            assert receipt.outcome == collector_pb2.OUTCOME_ACCEPTED
            return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_honest_agent_is_served_during(name: str, collector: Running, stage: Path, agent: Agent) -> None:
    """Four attackers at once for five seconds: RSS under the ceiling, and each honest push answered in five.

    Mutant: messages of 16 MiB, all but their last byte; 800 MB.
    """
    stop = threading.Event()
    tallies = [Tally() for _ in range(ATTACKERS)]
    threads = [
        threading.Thread(target=attack, args=(name, collector.address, stage / AGENTS[1 + i], stop, tally))
        for i, tally in enumerate(tallies)
    ]
    for thread in threads:
        thread.start()
    try:
        end, took, rss = time.monotonic() + ATTACK_S, [], []
        while time.monotonic() < end:
            took.append(honest(collector, stage / AGENTS[0], agent))
            rss.append(collector.rss_mb)
            time.sleep(0.1)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert collector.process.poll() is None
    assert sum(tally.connections for tally in tallies) >= ATTACKERS
    assert max(took) < MOST_ANSWER_S, took
    assert max(rss) < MOST_RSS_MB, rss
    print(f"{name}: slowest {max(took):.2f}s of {len(took)}, rss {max(rss):.0f} MB, {tallies}")  # noqa: T201
