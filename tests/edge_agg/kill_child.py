"""Run agents and kill them: a process that imports once, then forks a child for each life of an agent.

It reads lives from standard input, one JSON object a line, and answers each with how the child ended. A test cannot
fork itself: other tests have started threads in its process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agg import failpoint
from edge_agg.assembly import build
from edge_agg.clock import SystemClock
from edge_agg.config import horizon_of, load
from edge_agg.contract import arrow, codec
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.ingest.source import Frame
from edge_agg.intake import Intake
from edge_agg.journal import Journal
from edge_agg.privacy import noise
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import budget_of
from tests.fakes import MONDAY, WEEK, Row, batch_of, small_plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_agg.agent import Agent
    from edge_agg.contract.head import Head
    from edge_agg.contract.plan import ColumnType
    from edge_agg.contract.release import Link, Sealed
    from edge_agg.ingest.source import Inlet
    from edge_agg.wire import Waiting

PUSHED_ROWS = 5
"""Rows, each of a unit of its own, of a pushed batch."""


def append(path: Path, line: str) -> None:
    """Append a line that outlives this process: one write, then an fsync."""
    out = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.write(out, f"{line}\n".encode())
    os.fsync(out)
    os.close(out)


class FileCollector:
    """A collector whose state outlives the agent: a line for each release that arrives, and what became of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.accepted = {key: digest for key, digest, outcome in map(str.split, lines) if outcome == "accepted"}

    def take(self, sealed: Sealed) -> pb.Receipt:
        """Store a release, or know it again."""
        release, opened = codec.open_sealed(sealed.header, sealed.payload)
        key = f"{release.plan_hash.hex()[:8]}/{codec.to_us(release.window_start)}"
        digest = hashlib.sha256(opened.header + opened.payload).hexdigest()
        before = self.accepted.setdefault(key, digest)
        outcome = "conflict" if before != digest else "accepted"
        append(self.path, f"{key} {digest} {outcome}")
        kept = self.path.parent / "releases" / key.replace("/", "-")
        kept.parent.mkdir(exist_ok=True)
        kept.with_suffix(".header").write_bytes(opened.header)
        kept.with_suffix(".payload").write_bytes(opened.payload)
        return pb.Receipt(
            release_hash=opened.hash,
            outcome=pb.OUTCOME_REFUSED if outcome == "conflict" else pb.OUTCOME_ACCEPTED,
            refusal="conflict" if outcome == "conflict" else "",
        )

    async def close(self) -> None:
        """Nothing to hang up."""

    async def say_head(self, head: Head) -> pb.SayHeadResponse:
        """Know every journal."""
        await asyncio.sleep(0)
        return pb.SayHeadResponse(standing=pb.STANDING_KNOWN)

    async def push(self, batch: Sequence[Waiting]) -> list[pb.Receipt]:
        """Take a batch."""
        await asyncio.sleep(0)
        return [self.take(waiting.sealed) for waiting in batch]


def charge_after_draw(home: Path) -> None:
    """Mutant: T1 comes after the draw."""
    charge, next_link = Journal.charge, Journal.next_link
    owed: list[dict[str, Any]] = []

    def late_charge(self: Journal, **given: Any) -> None:
        owed.append(given)

    def pay(self: Journal) -> Link:
        while owed:
            charge(self, **owed.pop())
        return next_link(self)

    Journal.charge = late_charge  # type: ignore[method-assign]  # a mutant
    Journal.next_link = pay  # type: ignore[method-assign]  # a mutant


def send_before_seal(home: Path) -> None:
    """Mutant: the bytes go out before T2."""
    seal = Journal.seal

    def eager(self: Journal, **given: Any) -> None:
        FileCollector(home / "collector").take(given["sealed"])
        seal(self, **given)

    Journal.seal = eager  # type: ignore[method-assign]  # a mutant


def answer_before_sync(home: Path) -> None:
    """Mutant: a pushed frame is called safe, then written."""
    commit = Intake._commit

    def eager(self: Intake, group: Any) -> bool:
        for offer in group:
            offer.taken.get_loop().call_soon_threadsafe(_answer, offer.taken)
        time.sleep(0.02)
        return commit(self, group)

    Intake._commit = eager  # type: ignore[method-assign]  # a mutant


def forget_before_seal(home: Path) -> None:
    """Mutant: raw events leave the disk when their window is charged, not when it is sealed."""
    charge = Journal.charge

    def hasty(self: Journal, **given: Any) -> None:
        charge(self, **given)
        for segment in (home / "state" / "spool").iterdir():
            segment.unlink()

    Journal.charge = hasty  # type: ignore[method-assign]  # a mutant


def _answer(taken: asyncio.Future[None]) -> None:
    if not taken.done():
        taken.set_result(None)


MUTANTS = {
    "charge_after_draw": charge_after_draw,
    "send_before_seal": send_before_seal,
    "answer_before_sync": answer_before_sync,
    "forget_before_seal": forget_before_seal,
}


@dataclass(slots=True)
class Pusher:
    """A source whose batches are handed over once, a partition key each; it writes down what was called safe."""

    home: Path
    first: int
    count: int
    dies: bool
    """Whether the process ends with the last answer."""
    name: str = "pusher"

    def check(self, columns: Mapping[str, ColumnType]) -> None:
        """All columns are there."""

    async def deliver(self, inlet: Inlet, stop: asyncio.Event, *, drain: bool) -> None:
        """Push every batch; several at once, as clients do."""
        await asyncio.gather(*(self._push(inlet, i) for i in range(self.first, self.first + self.count)))
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        inlet.is_current(True)

    async def _push(self, inlet: Inlet, i: int) -> None:
        await asyncio.sleep(0.002 * (i - self.first))
        rows = [Row(u=f"{i}-{n}", k=f"b{i}", t=MONDAY + (i % 4) * WEEK) for n in range(PUSHED_ROWS)]
        await inlet.take(Frame(part=None, batch=batch_of(rows, small_plan()), rejected=0, last=True))
        append(self.home / "answered", f"{i}")


def live(home: Path, point: str | None, hit: int, mutant: str | None, push: list[int] | None) -> None:
    """One life: drain what is there (or push so many batches from one on), and die at the n-th pass of a point."""
    passed: dict[str, int] = {}

    def armed(name: str) -> None:
        passed[name] = passed.get(name, 0) + 1
        if name == point and passed[name] == hit:
            os.kill(os.getpid(), signal.SIGKILL)

    def draw(mechanism: Any, scale: float, exact: Any) -> Any:
        draws = home / "draws"
        answer = draws.stat().st_size if draws.exists() else 0
        append(draws, f"{answer}")
        if push is not None:
            return exact
        return np.full(exact.shape, answer, dtype=np.int64)

    noise.draw = draw
    failpoint.armed = armed
    if mutant:
        MUTANTS[mutant](home)
    config, plans = load(home / "agent.toml")

    async def drain() -> bool:
        agent: Agent = build(config, plans, clock=SystemClock(), wire=FileCollector(home / "collector"))
        if push is not None:
            agent.sources = [Pusher(home, push[0], push[1], dies=len(push) > 2)]
        return await agent.drain(30.0)

    os._exit(0 if asyncio.run(drain()) else 1)


def one(task: dict[str, Any]) -> str:
    """Fork a child for one life; how it ended."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            live(Path(task["home"]), task.get("point"), task.get("hit", 1), task.get("mutant"), task.get("push"))
        os._exit(2)
    if "after_s" in task:
        time.sleep(task["after_s"])
        os.kill(pid, signal.SIGKILL)  # not yet waited for, so it is still ours
    status = os.waitpid(pid, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def main() -> None:
    """Live as often as standard input says."""
    warm = Path(sys.argv[1])
    config, plans = load(warm / "agent.toml")
    for plan in plans:
        compile_plan(plan)
    for account in config.account:
        budget_of(epsilon=account.epsilon, delta=account.delta, horizon=horizon_of(account))
    arrow.encode({"n": np.zeros(1, dtype=np.int64)})
    print("ready", flush=True)  # noqa: T201  # the answer to the test
    for line in sys.stdin:
        print(one(json.loads(line)), flush=True)  # noqa: T201  # the answer to the test


if __name__ == "__main__":
    main()
