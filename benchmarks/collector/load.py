"""The load generator: a process apart that pushes summaries as fast as it can, or at a rate, and says how it went.

Place: started by the benchmark; prints one JSON object.
Invariants: with a rate, summaries come on a timetable whatever becomes of those before (open loop), and a latency is
counted from the moment on it, so a slow answer counts as slow for all that wait behind it; an agent has one call at a
time, as the real one; a refusal with a pushback is sent again after it, and counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from benchmarks.collector.fleet import Agent, payloads, request
from edge_agg.contract.v1 import collector_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADS = "heads.json"
"""Where the agents' chains go on in the next run."""
PUSH = "/edge_agg.contract.v1.CollectorService/PushReleases"


class Pusher:
    """One agent and its connection."""

    def __init__(self, agent: Agent, address: str, folder: Path, batch: int) -> None:
        self.agent, self.batch = agent, batch
        self.latencies: list[float] = []
        self.accepted = self.overloaded = self.failed = 0
        self.failures: Counter[str] = Counter()
        home = folder / agent.name
        credentials = grpc.ssl_channel_credentials(
            (folder / "ca.pem").read_bytes(), (home / "key.pem").read_bytes(), (home / "cert.pem").read_bytes()
        )
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self.channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._push: Any = self.channel.unary_unary(PUSH)
        self._turn = asyncio.Lock()

    async def push(self, due: float | None = None) -> None:
        """Push the next batch until it is taken; it is due now, or was at an earlier moment."""
        began = time.perf_counter() if due is None else due
        async with self._turn:
            await self.send(request([self.agent.seal() for _ in range(self.batch)]))
        self.latencies.append(time.perf_counter() - began)

    async def send(self, message: bytes) -> None:
        """Send one request until it is answered otherwise than by a pushback."""
        while True:
            try:
                answer = collector_pb2.PushReleasesResponse.FromString(await self._push(message, timeout=60))
            except grpc.aio.AioRpcError as error:
                trailing = dict(error.trailing_metadata() or ())
                pushback = trailing.get("grpc-retry-pushback-ms")
                if error.code() is grpc.StatusCode.UNAVAILABLE:  # gRPC's own refusal of a stream: an agent retries
                    pushback = "200"
                if pushback is None:
                    self.failed += self.batch
                    self.failures[error.code().name] += 1
                    return
                self.overloaded += 1
                await asyncio.sleep(int(pushback) / 1000)
                continue
            taken = sum(receipt.outcome == collector_pb2.OUTCOME_ACCEPTED for receipt in answer.receipts)
            self.accepted += taken
            self.failed += len(answer.receipts) - taken
            self.failures.update(receipt.refusal for receipt in answer.receipts if receipt.refusal)
            return

    async def keep_pushing(self, until: float) -> None:
        """Push one batch after the other."""
        while time.perf_counter() < until:
            await self.push()


async def run(pushers: Sequence[Pusher], *, seconds: float, rate: float) -> dict[str, float]:
    """Push for a time, one call of each agent after the other; or at a rate, in summaries a second."""
    await asyncio.gather(*(pusher.channel.channel_ready() for pusher in pushers))
    for pusher in pushers:
        await pusher.push()
        pusher.latencies.clear()
        pusher.accepted = 0
    began, cpu = time.perf_counter(), time.process_time()
    if rate:
        await _at_rate(pushers, seconds, rate)
    else:
        await asyncio.gather(*(p.keep_pushing(began + seconds) for p in pushers))
    took = time.perf_counter() - began
    latencies = sorted(one for pusher in pushers for one in pusher.latencies)
    accepted = sum(pusher.accepted for pusher in pushers)
    for pusher in pushers:
        await pusher.channel.close()
    return {
        "summaries": accepted,
        "seconds": took,
        "per_s": accepted / took,
        "failed": sum(pusher.failed for pusher in pushers),
        "overloaded": sum(pusher.overloaded for pusher in pushers),
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1000,
        "max_ms": latencies[-1] * 1000,
        "generator_cpu_s": time.process_time() - cpu,
        **{f"failed_{name}": n for p in pushers for name, n in p.failures.items()},
        "sent": max(pusher.agent.sent for pusher in pushers),
    }


async def _at_rate(pushers: Sequence[Pusher], seconds: float, rate: float) -> None:
    batch = pushers[0].batch
    began = time.perf_counter()
    calls: set[asyncio.Task[None]] = set()
    for i in range(int(seconds * rate / batch)):
        due = began + i * batch / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        call = asyncio.create_task(pushers[i % len(pushers)].push(due))
        calls.add(call)
        call.add_done_callback(calls.discard)
    await asyncio.gather(*calls)


def main() -> None:
    """Read the options, push, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--agents", nargs="+", required=True)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0)
    given = parser.parse_args()
    made = payloads()

    async def go() -> dict[str, float]:
        agents = [Agent(name, made) for name in given.agents]
        heads: dict[str, tuple[int, str]] = {}
        with suppress(FileNotFoundError):
            heads = json.loads((given.folder / HEADS).read_text())
        for agent in agents:
            agent.resume(*heads.get(agent.name, (0, "")))
        pushers = [Pusher(agent, given.address, given.folder, given.batch) for agent in agents]
        said = await run(pushers, seconds=given.seconds, rate=given.rate)
        heads.update({agent.name: (agent.sent, agent.head) for agent in agents})
        (given.folder / HEADS).write_text(json.dumps(heads))
        return said

    print(json.dumps(asyncio.run(go())))


if __name__ == "__main__":
    main()
