"""A process that forks collectors, each of which may die at a named instant.

It reads lives from standard input, one JSON object a line, and answers each with how the child ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from cloud_collector import chain, compaction, deltalog, failpoint, upkeep
from cloud_collector.landing import Landing
from cloud_collector.rollup import _RECORD
from tests.cloud_collector.conftest import MONDAY
from tests.cloud_collector.test_keeping import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloud_collector.objectstore import ObjectStore
    from tests.cloud_collector.conftest import Made

RELEASES = 24
KEPT = timedelta(days=400)
NOW = MONDAY + KEPT + timedelta(days=1, hours=1)
"""One day is to be retired by then: the first four windows."""


def releases(one: Collector) -> list[Made]:
    """What two agents send, the same in every life."""
    return [one.make(n // 2, ("jfk", "lga")[n % 2], seed=n) for n in range(RELEASES)]


def note(path: Path, line: str) -> None:
    """Append a line that outlives this process."""
    out = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.write(out, f"{line}\n".encode())
    os.close(out)


def ack_before_commit() -> None:
    """Mutant: the verdict is handed out before the commit."""

    def never_commits(self: Landing, work: Any, point: str = "landing", **more: Any) -> Any:
        assert isinstance(self._db, apsw.Connection)
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        result = work()
        if point == "landing":
            failpoint.failpoint("landing_uncommitted")
        else:
            self._db.execute("COMMIT")
        return result

    Landing._transact = never_commits  # type: ignore[method-assign]  # a mutant


def roll_up_twice() -> None:
    """Mutant: the roll-ups do not know what they have added."""
    from cloud_collector import rollup

    rollup._RECORD = _RECORD.replace("OR IGNORE", "OR REPLACE")


def no_lake_mark() -> None:
    """Mutant: the lake does not look for what it may hold."""
    from cloud_collector import lake

    lake._known = lambda *_: set()


def fork_accepted() -> None:
    """Mutant: chains are not looked at."""
    chain._fault = lambda *_: None


MUTANTS = {one.__name__: one for one in (ack_before_commit, roll_up_twice, no_lake_mark, fork_accepted)}


@contextlib.contextmanager
def sealed_in_between(one: Collector) -> Iterator[None]:
    """Upkeep waits for its turn, and the sealer was first: the table is not as upkeep read it."""
    one.sealer.seal()
    with one.sealer.paused():
        yield


def store_of(home: Path) -> ObjectStore | None:
    """The bucket that a life's lake is in, where a file says so."""
    told = home / "bucket.json"
    if not told.exists():
        return None
    from cloud_collector.bucket import Bucket
    from cloud_collector.s3store import S3Store

    fields: dict[str, Any] = json.loads(told.read_bytes())
    for name in ("access_key_file", "secret_key_file"):
        fields[name] = Path(fields[name])
    return S3Store(Bucket(**fields))


def live(home: Path, point: str | None, hit: int, mutant: str | None) -> None:
    """One life: take what is sent, seal it, keep it up, and die at the n-th pass of a point."""
    passed = 0

    def armed(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed == hit:
            os.kill(os.getpid(), signal.SIGKILL)

    deltalog.CHECKPOINT_EVERY, compaction.MANY_FILES, upkeep.GRACE_S = 4, 3, -1.0
    failpoint.armed = armed
    if mutant:
        MUTANTS[mutant]()
    store = store_of(home)
    with contextlib.closing(Collector(home / "data", retention={"flight_delays": KEPT}, store=store)) as one:
        for n, made in enumerate(releases(one)):
            (verdict,) = asyncio.run(one.landing.land([made.pair]))
            note(home / "acks", f"{n} {verdict}")
            if n % 6 == 5:
                keeping = replace(one.upkeep, alone=partial(sealed_in_between, one))
                keeping.run(NOW if n > 12 else datetime.min.replace(year=2000, tzinfo=UTC))
            if n % 3 == 2:
                one.sealer.seal()
                for plan, plan_hash in one.plans:
                    upkeep.tidy(one.lake, plan, plan_hash, grace_s=-1.0)
    os._exit(0)


def one_life(task: dict[str, Any]) -> str:
    """Fork a child for one life; how it ended."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            live(Path(task["home"]), task.get("point"), task.get("hit", 1), task.get("mutant"))
        os._exit(2)
    status = os.waitpid(pid, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def main() -> None:
    """Live as often as standard input says."""
    print("ready", flush=True)  # noqa: T201  # the answer to the test
    for line in sys.stdin:
        print(one_life(json.loads(line)), flush=True)  # noqa: T201  # the answer to the test


if __name__ == "__main__":
    main()
