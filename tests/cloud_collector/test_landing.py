"""What the landing promises: an ack means fsynced (B1), and a key is taken once, for ever (B2).

What takes `landing` or `where` runs over each database there is; `path` is a file's own.
Each promise comes with a mutant, the rule broken on purpose, that the same check must catch. Not proved here: that the
disk keeps what it acknowledged, and that rooms above the landing ack only what it returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from cloud_collector import chain, landing_file, landing_tables, telemetry
from cloud_collector import landing as room
from cloud_collector.errors import Overloaded, StoreFailed, StoreUnavailable
from cloud_collector.landing import Landing, Verdict
from cloud_collector.landing_server import LandingServer
from edge_agg.contract import codec
from edge_agg.contract.codec import open_sealed, to_us
from edge_agg.contract.release import Link, Release, Sealed, Status
from tests.cloud_collector.conftest import land
from tests.disk import Disk, DiskVfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cloud_collector.config import Database
    from cloud_collector.landing_store import Statements
    from tests.cloud_collector.conftest import Made, Maker

ROOT = Path(__file__).parents[2]
A, D, C, F = Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.FENCED


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "landing.sqlite"


@pytest.fixture
def in_file(path: Path) -> Iterator[Landing]:
    with contextlib.closing(Landing(path)) as one:
        yield one


def sqlite(landing: Landing) -> apsw.Connection:
    """What is below a landing in a file."""
    assert isinstance(landing._db, apsw.Connection)
    return landing._db


def headers(landing: Landing) -> list[bytes]:
    return [one.header for one in landing.unsealed(10**6)]


@contextlib.contextmanager
def writer_held(landing: Landing) -> Iterator[None]:
    """Keep the writer busy, so that whatever is landed meanwhile has to wait."""
    gate = threading.Event()
    landing._writer.submit(gate.wait)
    try:
        yield
    finally:
        gate.set()


def test_what_was_landed_is_read_back_as_the_bytes_that_were_sent(landing: Landing, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(3)] + [maker.make(window=3, status=Status.LOST)]
    assert land(landing, *made) == [A] * 4
    waiting = landing.unsealed(10)
    assert [(one.header, one.payload) for one in waiting] == [(one.sealed.header, one.sealed.payload) for one in made]
    assert [one.id for one in waiting] == sorted({one.id for one in waiting})
    assert landing.unsealed(2) == waiting[:2]
    assert landing.unsealed(2, after=waiting[1].id) == waiting[2:]
    assert land(landing) == []


def test_what_waits_is_told_by_plan_and_node(landing: Landing, maker: Maker) -> None:
    """The first and the last window of each, of one plan, until they are in the lake."""
    made = [maker.make(window=3), maker.make(window=1), maker.make(window=2, agent="lga")]
    assert land(landing, *made) == [A] * 3
    late, early, other = (to_us(one.release.window_start) for one in made)
    assert landing.waiting_of(maker.hash) == {("acme", "jfk"): (early, late), ("acme", "lga"): (other, other)}
    assert landing.waiting_of(b"another") == {}
    landing.mark_sealed({one.id: b"d" * 16 for one in landing.unsealed(10)})
    assert landing.waiting_of(maker.hash) == {}


def test_the_files_are_their_owner_s_alone(in_file: Landing, path: Path, maker: Maker) -> None:
    land(in_file, maker.make())
    assert path.parent.stat().st_mode & 0o777 == 0o700
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys([f"landing.sqlite{end}" for end in ("", "-wal", "-shm", ".turn")], 0o600)


def test_the_id_is_made_once(where: Path | Database, tmp_path: Path) -> None:
    with contextlib.closing(Landing(where)) as first, contextlib.closing(Landing(where)) as again:
        assert first.id == again.id
        assert len(first.id) == 32
    with contextlib.closing(Landing(tmp_path / "other.sqlite")) as other:
        assert other.id != first.id


def test_a_file_of_another_version_is_left_alone(path: Path) -> None:
    Landing(path).close()
    db = apsw.Connection(str(path))
    db.pragma("user_version", 99)
    db.close()
    with pytest.raises(StoreFailed, match="another version"):
        Landing(path)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreFailed):
        Landing(path)


# B1: an ack means committed and fsynced


@pytest.fixture
def disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(path.parent, tmp_path / "kept")
    vfs = DiskVfs(disk)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    vfs.unregister()


def survives_a_power_cut_after_each_ack(path: Path, disk: Disk, maker: Maker, *, synchronous: str) -> bool:
    kept = True
    with contextlib.closing(Landing(path)) as landing:
        assert sqlite(landing).pragma("synchronous") == 2, "FULL"
        sqlite(landing).pragma("synchronous", synchronous)
        for window in range(10):
            made = maker.make(window=window)
            assert land(landing, made) == [A]
            after = disk.kept.parent / f"after-{window}"
            shutil.copytree(disk.kept, after)
            with contextlib.closing(Landing(after / path.name)) as restored:
                kept &= made.sealed.header in headers(restored)
                kept &= len(restored.unsealed(100)) == window + 1
    return kept


def test_an_acked_release_survives_a_power_cut(path: Path, disk: Disk, maker: Maker) -> None:
    """Promise B1: nothing but what was synced before the ack is left, and every acked release is in it."""
    assert survives_a_power_cut_after_each_ack(path, disk, maker, synchronous="full")
    assert disk.syncs >= 10


def test_mutant_a_commit_without_a_sync_is_caught(path: Path, disk: Disk, maker: Maker) -> None:
    assert not survives_a_power_cut_after_each_ack(path, disk, maker, synchronous="normal")


def test_mutant_a_folder_without_a_sync_is_caught(
    path: Path, disk: Disk, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal that SQLite deleted when it turned to WAL would come back, and roll the file back to nothing."""
    monkeypatch.setattr(landing_file, "sync_folder", lambda folder: None)
    assert not survives_a_power_cut_after_each_ack(path, disk, maker, synchronous="full")


CHILD = """
import asyncio, os, pickle, signal, sys
from pathlib import Path
from cloud_collector.config import Database
from cloud_collector.landing import Landing
from edge_agg.contract import codec
from edge_agg.contract.codec import open_sealed

landing = Landing(Database(url=sys.argv[1]) if "://" in sys.argv[1] else Path(sys.argv[1]))
sealed = [open_sealed(*one) for one in pickle.loads(Path(sys.argv[2]).read_bytes())]
size, acks, mutant = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]

open = False

def never_commits(work, **more):
    global open
    if not open:
        landing._db.execute("BEGIN")
        open = True
    return work()

if mutant == "ack before commit":
    landing._transact = never_commits

async def one(start):
    await landing.land(sealed[start:start + size])
    os.write(1, f"{start} ".encode())
    global acks
    acks -= 1
    if acks == 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    for group in range(0, len(sealed), 4 * size):
        await asyncio.gather(*(one(start) for start in range(group, min(group + 4 * size, len(sealed)), size)))

asyncio.run(main())
"""


class Killed:
    """A process that lands releases, says which were acked, and is killed."""

    def __init__(
        self, folder: Path, where: Path | Database, made: Sequence[Made], *, size: int, acks: int, mutant: str = ""
    ) -> None:
        releases = folder / "releases.pickle"
        releases.write_bytes(pickle.dumps([(one.sealed.header, one.sealed.payload) for one in made]))
        address = str(where) if isinstance(where, Path) else where.url
        arguments = [address, str(releases), str(size), str(acks), mutant]
        self.made, self.size = made, size
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
        )

    def acked(self) -> list[Made]:
        """Wait for the end of the process, then say what it had acked."""
        said, _ = self.process.communicate(timeout=60)
        starts = [int(start) for start in said.split(" ")[:-1]]
        return [one for start in starts for one in self.made[start : start + self.size]]


def is_kept_exactly_once(where: Path | Database, made: Sequence[Made], acked: Sequence[Made]) -> bool:
    """Everything acked is there; sent again, everything is there once."""
    with contextlib.closing(Landing(where)) as landing:
        found = headers(landing)
        promised = [one.sealed for one in acked]
        kept = all(found.count(one.sealed.header) == 1 for one in acked)
        verdicts = land(landing, *made)
        kept &= all(verdict is D for one, verdict in zip(made, verdicts, strict=True) if one.sealed in promised)
        return kept and sorted(headers(landing)) == sorted(one.sealed.header for one in made)


def test_killed_right_after_an_ack_everything_acked_is_there_once(
    tmp_path: Path, where: Path | Database, maker: Maker
) -> None:
    """Promises B1 and B2, under kill -9."""
    made = [maker.make(seed=i, window=i) for i in range(24)]
    child = Killed(tmp_path, where, made, size=2, acks=7)
    acked = child.acked()
    assert child.process.returncode == -9
    assert len(acked) >= 14
    assert is_kept_exactly_once(where, made, acked)


def test_mutant_an_ack_before_the_commit_is_caught(tmp_path: Path, where: Path | Database, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(24)]
    child = Killed(tmp_path, where, made, size=2, acks=7, mutant="ack before commit")
    acked = child.acked()
    assert child.process.returncode == -9
    assert not is_kept_exactly_once(where, made, acked)


@pytest.mark.slow
def test_killed_at_random_times_everything_acked_is_there_once(tmp_path: Path, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(2000)]
    chance, landed = random.Random(20130107), []
    for turn in range(40):
        path = tmp_path / str(turn) / "landing.sqlite"
        child = Killed(tmp_path, path, made, size=1, acks=0)
        assert child.process.stdout is not None
        child.process.stdout.read(1)  # the first ack, minus its first digit, which is a zero
        time.sleep(chance.random() * 0.15)
        child.process.kill()
        said, _ = child.process.communicate(timeout=60)
        starts = [int(start) for start in ("0" + said).split(" ")[:-1]]
        landed.append(len(starts))
        assert is_kept_exactly_once(path, made, [made[start] for start in starts])
    assert len(set(landed)) > 10, "the kills came at different times"
    assert any(0 < count < len(made) for count in landed)


def test_an_io_error_ends_the_landing_and_is_never_tried_again(path: Path, disk: Disk, maker: Maker) -> None:
    first, second, third = (maker.make(seed=i, window=i) for i in range(3))
    with contextlib.closing(Landing(path)) as landing:
        land(landing, first)
        disk.broken = True
        with pytest.raises(StoreFailed):
            land(landing, second)
        disk.broken = False
        assert landing.failed
        syncs = disk.syncs
        for refused in (
            lambda: land(landing, third),
            lambda: landing.unsealed(1),
            lambda: landing.mark_sealed({1: b""}),
        ):
            with pytest.raises(StoreFailed):
                refused()
        assert disk.syncs == syncs
    with contextlib.closing(Landing(path)) as again:
        assert land(again, first, second, third)[::2] == [D, A], "nothing was promised of the second"
        assert sorted(headers(again)) == sorted(one.sealed.header for one in (first, second, third))


def test_a_full_disk_refuses_and_goes_on_when_there_is_room(in_file: Landing, maker: Maker) -> None:
    land(in_file, maker.make())
    sqlite(in_file).pragma("max_page_count", 1)
    made = [maker.make(seed=i, window=i) for i in range(1, 60)]
    with pytest.raises(StoreFailed):
        land(in_file, *made)
    assert not in_file.failed
    assert len(headers(in_file)) == 1, "the whole group was rolled back"
    sqlite(in_file).pragma("max_page_count", 2**30)
    assert land(in_file, *made) == [A] * 59


def crowd(path: Path, maker: Maker) -> list[object]:
    """What two landings of one file say to 20 groups each at once, where SQLite does not wait for its lock."""
    said: list[object] = []

    def push(one: Landing, windows: range) -> None:
        for window in windows:
            try:
                said.extend(land(one, maker.make(window=window)))
            except StoreFailed as failed:
                said.append(failed)

    with contextlib.closing(Landing(path)) as first, contextlib.closing(Landing(path)) as second:
        for one in (first, second):
            sqlite(one).set_busy_timeout(0)
        threads = [
            threading.Thread(target=push, args=(first, range(20))),
            threading.Thread(target=push, args=(second, range(20, 40))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return said


def test_writers_of_one_file_take_turns(path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is refused for another's sake, and none sleeps while it is free."""
    made = {window: maker.make(window=window) for window in range(40)}
    monkeypatch.setattr(maker, "make", lambda *, window: made[window])
    assert crowd(path, maker) == [A] * 40
    monkeypatch.setattr("cloud_collector.landing_file.turn", contextlib.nullcontext)  # mutant: nobody waits
    assert any(isinstance(said, StoreFailed) for _ in range(20) for said in crowd(path, maker))


def judges(landing: Landing, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The threads that a group is judged by."""
    seen, decide = set(), chain.decide

    def noting(*args: Any, **more: Any) -> chain.Judged:
        seen.add(threading.get_ident())
        return decide(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(chain, "decide", noting)
        assert land(landing, maker.make(), maker.make(window=1)) == [A, A]
    return seen


def test_a_group_is_judged_by_the_loop_that_waits_for_it(
    landing: Landing, maker: Maker, other_maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer's thread keeps what blocks and nothing else: over a file, the sync; over a server, every statement."""
    assert (judges(landing, maker, monkeypatch) == {threading.get_ident()}) is not landing._store.waits
    monkeypatch.setattr("cloud_collector.landing.handed_over", lambda loop, work: work())
    monkeypatch.setattr(type(landing._store), "waits", property(lambda store: not isinstance(store, LandingServer)))
    judged_here = judges(landing, other_maker, monkeypatch) == {threading.get_ident()}
    assert not judged_here  # mutant: it does all by itself


def test_a_bug_in_one_commit_leaves_nothing_and_stops_nobody(
    landing: Landing, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an error that nobody foresaw leaves a caller waiting, a transaction open or half a group behind."""
    insert, first, second = chain._insert, maker.make(), maker.make(window=1)

    def fails(db: Any, at: Any, release: Release, sealed: Sealed) -> None:
        insert(db, at, release, sealed)
        if release == second.release:
            raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(chain, "_insert", fails)
        with pytest.raises(ZeroDivisionError):
            land(landing, first, second)
    assert headers(landing) == []
    assert land(landing, first, second) == [A, A]


def test_calls_that_wait_share_one_commit(landing: Landing, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [maker.make(seed=i, window=i) for i in range(50)]
    commits: list[int] = []
    transact = landing._store.transact

    def counted(work: Any, agents: Any) -> Any:
        result = transact(work, agents)
        commits.append(1)
        return result

    monkeypatch.setattr(landing._store, "transact", counted)

    async def scenario() -> list[list[Verdict]]:
        with writer_held(landing):
            calls = [asyncio.ensure_future(landing.land([one.pair])) for one in made]
            await asyncio.sleep(0.01)
            assert not any(call.done() for call in calls), "the loop runs while the writer is busy"
        return await asyncio.gather(*calls)

    assert asyncio.run(scenario()) == [[A]] * 50
    assert len(commits) == 1


# B2: exactly once, for ever


def test_a_key_is_taken_once(landing: Landing, maker: Maker, other_maker: Maker) -> None:
    """Another window, agent, tenant or plan is another key; the same bytes again are a duplicate."""
    made = [maker.make(), maker.make(window=1), maker.make(agent="lga"), maker.make(tenant="b"), other_maker.make()]
    assert land(landing, *made) == [A] * 5
    assert land(landing, *made) == [D] * 5
    assert len(headers(landing)) == 5


def conflicts_are_refused(landing: Landing, maker: Maker) -> bool:
    """The first release of a key stays; another one is refused whether later, in one batch or in one group."""
    first, later, lga, lga_later, ewr, ewr_later = (
        maker.make(seed=i, agent=agent) for i, agent in enumerate(["jfk", "jfk", "lga", "lga", "ewr", "ewr"])
    )

    async def in_one_group() -> list[list[Verdict]]:
        with writer_held(landing):
            calls = [asyncio.ensure_future(landing.land([one.pair])) for one in (ewr, ewr, ewr_later, ewr)]
            await asyncio.sleep(0)
        return await asyncio.gather(*calls)

    answers = [
        [land(landing, first), land(landing, later)] == [[A], [C]],
        land(landing, lga, lga, lga_later, lga) == [A, D, C, D],
        asyncio.run(in_one_group()) == [[A], [D], [C], [D]],
        headers(landing) == [first.sealed.header, lga.sealed.header, ewr.sealed.header],
    ]
    return all(answers)


def test_a_conflict_is_refused(landing: Landing, maker: Maker) -> None:
    assert conflicts_are_refused(landing, maker)


def without_keys(monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    """Tables that are made from now on lack these, in every database."""
    for key in keys:
        assert key in landing_file.SCHEMA
        monkeypatch.setattr(landing_file, "SCHEMA", landing_file.SCHEMA.replace(key, "UNIQUE (id)"))
        tables = [one.replace(key, "UNIQUE (id)") for one in landing_tables.TABLES]
        assert tables != list(landing_tables.TABLES)
        monkeypatch.setattr(landing_tables, "TABLES", tables)


def test_mutant_the_hash_as_part_of_the_key_is_caught(
    where: Path | Database, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_keys(monkeypatch, "UNIQUE (agent, plan, window_start_us)", "UNIQUE (agent, journal, seq)")
    monkeypatch.setattr(chain, "_held", _held_by_hash)
    monkeypatch.setattr(chain, "_fault", lambda *_: None)
    with contextlib.closing(Landing(where)) as landing:
        assert not conflicts_are_refused(landing, maker)


def _held_by_hash(db: Statements, agent: int, release: Release) -> tuple[int | None, bytes | None]:
    del agent
    found: bytes | None = db.execute("SELECT hash FROM releases WHERE hash = ?", (_hash(release),)).get
    return None, found


def _hash(release: Release) -> bytes:
    return hashlib.sha256(codec._header(release).SerializeToString(deterministic=True)).digest()


def test_a_conflict_fences_the_agent_until_a_person_lifts_it(where: Path | Database, maker: Maker) -> None:
    """Fenced: new releases are refused, also after a restart; what was accepted is still a duplicate."""
    first, clash, new = maker.make(), maker.make(seed=1), maker.make(window=1)
    with contextlib.closing(Landing(where)) as landing:
        assert land(landing, first, clash, new, first, maker.make(agent="lga")) == [A, C, F, D, A]
    with contextlib.closing(Landing(where)) as landing:
        assert land(landing, new, first, clash) == [F, D, C]
        assert [(one.agent, one.fenced) for one in landing.agents()] == [("jfk", True), ("lga", False)]
        assert landing.unfence("acme", "jfk", who="ada", note="looked")
        assert not landing.unfence("acme", "jfk", who="ada", note="looked")
        assert not landing.unfence("acme", "nobody", who="ada", note="looked")
        assert land(landing, new) == [A]
        assert not any(one.fenced for one in landing.agents())


CANARY = "canary-7f3a"


@contextlib.contextmanager
def logged() -> Iterator[io.StringIO]:
    """The JSON lines of what happens meanwhile."""
    logger, log = logging.getLogger("cloud_collector"), io.StringIO()
    before = (logger.handlers[:], logger.level, logger.propagate)
    telemetry.configure(log)
    try:
        yield log
    finally:
        logger.handlers[:], logger.level, logger.propagate = before


def traces_of_a_conflict(landing: Landing, folder: Path, maker: Maker) -> set[str]:
    """Where anything of a refused release can be found: files of the landing, or the log."""
    clash = maker.make(seed=1, account=CANARY)
    with logged() as log:
        assert land(landing, maker.make(), clash) == [A, C]
        landing.agents()  # its turn at the writer comes after the log's
    needles = (CANARY.encode(), clash.sealed.header, clash.sealed.payload, clash.sealed.hash)
    traces = {file.name for file in folder.iterdir() if any(needle in file.read_bytes() for needle in needles)}
    events = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["release_accepted", "agent_fenced"]
    assert (events[1]["tenant"], events[1]["agent"], events[1]["level"]) == ("acme", "jfk", "error")
    return traces | ({"log"} if CANARY in log.getvalue() else set())


def test_nothing_of_a_conflicting_release_is_stored_or_logged(in_file: Landing, path: Path, maker: Maker) -> None:
    assert traces_of_a_conflict(in_file, path.parent, maker) == set()


def test_mutant_a_stored_conflict_is_caught(
    in_file: Landing, path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = chain.decide

    def keeps_evidence(db: Statements, release: Release, sealed: Sealed, **more: Any) -> chain.Judged:
        judged = decide(db, release, sealed, **more)
        if judged.verdict is C:
            db.execute("UPDATE audit SET note = ?", (release.account,))
        return judged

    monkeypatch.setattr(chain, "decide", keeps_evidence)
    assert traces_of_a_conflict(in_file, path.parent, maker) == {"landing.sqlite-wal"}


def test_keys_outlive_their_data(where: Path | Database, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(3)]
    with contextlib.closing(Landing(where)) as landing:
        land(landing, *made)
        ids = [one.id for one in landing.unsealed(10)]
        landing.mark_sealed(dict.fromkeys(ids[:2], b"d"))
        assert [one.id for one in landing.unsealed(10)] == ids[2:]
        landing.mark_sealed(dict.fromkeys(ids, b"d"))
    with contextlib.closing(Landing(where)) as landing:
        assert landing.unsealed(10) == []
        assert land(landing, *made) == [D] * 3
        assert land(landing, maker.make(seed=9)) == [C]
        assert land(landing, maker.make(agent="lga")) == [A]
        assert landing.unsealed(10)[0].id > ids[-1], "an id is never used twice"


def test_a_lie_about_the_seq_stops_nobody(landing: Landing, maker: Maker) -> None:
    """The wire carries 64 bits, SQLite 63: one such release must not roll back the group it is in."""
    liar = maker.make(agent="liar", link=Link(incarnation="b" * 32, seq=2**64 - 1, prev_hash=b"p" * 32))
    assert open_sealed(liar.sealed.header, liar.sealed.payload)[0] == liar.release
    assert land(landing, maker.make(), liar) == [A, A]


def test_agents_are_known_by_what_was_accepted(landing: Landing, maker: Maker) -> None:
    reborn = Link(incarnation="b" * 32, seq=1, prev_hash=b"")
    land(landing, maker.make(window=4), maker.make(window=2), maker.make(agent="ewr"), maker.make(window=4))
    ewr, jfk = landing.agents()
    assert (ewr.agent, ewr.releases, ewr.last_seq) == ("ewr", 1, 1)
    assert (jfk.tenant, jfk.agent, jfk.incarnation, jfk.last_seq, jfk.releases) == (
        "acme",
        "jfk",
        maker.link(0).incarnation,
        9,
        2,
    )
    assert jfk.last_window_end == maker.make(window=4).release.window_end
    land(landing, maker.make(window=3, link=reborn))
    jfk = landing.agents()[1]
    assert (jfk.incarnation, jfk.last_seq, jfk.releases) == ("b" * 32, 1, 3)
    assert jfk.last_window_end == maker.make(window=4).release.window_end


# Overload and shutdown


def test_overload_refuses_before_it_queues_and_loses_nothing(where: Path | Database, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(12)]

    async def scenario(landing: Landing) -> None:
        with writer_held(landing):
            calls = [asyncio.ensure_future(landing.land([one.pair for one in made[i : i + 3]])) for i in (0, 3)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await landing.land([one.pair for one in made[6:11]])
            calls.append(asyncio.ensure_future(landing.land([one.pair for one in made[6:10]])))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await landing.land([made[10].pair])
        assert await asyncio.gather(*calls) == [[A] * 3, [A] * 3, [A] * 4]
        assert await landing.land([one.pair for one in made[10:]]) == [A, A]

    with contextlib.closing(Landing(where, max_queued=10)) as landing:
        asyncio.run(scenario(landing))
        assert headers(landing) == [one.sealed.header for one in made]
        assert (landing._queued, landing._queued_bytes) == (0, 0)


def test_large_releases_fill_the_queue_by_their_bytes(
    landing: Landing, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = maker.make()
    monkeypatch.setattr(room, "MAX_QUEUED_BYTES", len(made.sealed.header) + len(made.sealed.payload))
    assert land(landing, made) == [A]
    with pytest.raises(Overloaded):
        land(landing, made, made)


def test_a_caller_that_left_takes_nothing_along(landing: Landing, maker: Maker) -> None:
    """A cancelled call frees its place; the others of its group are committed."""
    stays, leaves = maker.make(), maker.make(window=1)

    async def scenario() -> None:
        with writer_held(landing):
            calls = [asyncio.ensure_future(landing.land([one.pair])) for one in (leaves, stays)]
            await asyncio.sleep(0)
            calls[0].cancel()
            await asyncio.sleep(0)
        assert await calls[1] == [A]

    asyncio.run(scenario())
    assert headers(landing) == [stays.sealed.header]
    assert landing._queued == 0


def test_close_commits_what_waits_and_then_refuses(where: Path | Database, maker: Maker) -> None:
    landing = Landing(where)

    async def scenario() -> list[Verdict]:
        with writer_held(landing):
            call = asyncio.ensure_future(landing.land([maker.make().pair]))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(asyncio.to_thread(landing.close))
            await asyncio.sleep(0.01)
        await closing
        return await call

    assert asyncio.run(scenario()) == [A]
    landing.close()
    with pytest.raises(StoreFailed):
        land(landing, maker.make(window=1))
    if isinstance(where, Path):
        assert not where.with_name("landing.sqlite-wal").exists(), "a clean close leaves one file"
    with contextlib.closing(Landing(where)) as again:
        assert land(again, maker.make()) == [D]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (apsw.FullError("full"), StoreUnavailable),
        (apsw.BusyError("held"), StoreUnavailable),
        (OSError(errno.ENOSPC, "full"), StoreUnavailable),
        (apsw.CorruptError("damaged"), StoreFailed),
        (OSError(errno.EIO, "broken"), StoreFailed),
    ],
)
def test_a_file_that_cannot_be_opened_for_want_of_room_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[StoreFailed]
) -> None:
    """The exit code tells a full disk, which passes, from one that failed. Mutant: both are failures."""

    def prepare(_: apsw.Connection) -> None:
        raise error

    monkeypatch.setattr(landing_file, "_prepare", prepare)
    with pytest.raises(StoreFailed) as caught:
        Landing(path)
    assert type(caught.value) is kind
    monkeypatch.setattr(landing_file, "_passes", lambda _: False)
    with pytest.raises(StoreFailed) as caught:
        Landing(path)
    assert type(caught.value) is StoreFailed
