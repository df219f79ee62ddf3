"""Collectors that share a landing on a server: what one has taken, another knows, whoever dies and whenever.

Over a real PostgreSQL. Each guarantee comes with the mutant that the same check must catch. Not proved here: that the
server's disk keeps what it acknowledged, and that a machine that falls silent loses its locks (keepalives do that).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_collector import failpoint, landing_server, landing_session, landing_tables
from cloud_collector import landing as landed_in
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.folderstore import FolderStore
from cloud_collector.heads import Standing
from cloud_collector.lake import Lake
from cloud_collector.landed import Reason, Verdict
from cloud_collector.landing import Landing, store_of
from cloud_collector.landing_server import LandingServer
from cloud_collector.telemetry import Event
from edge_agg.contract.codec import to_us
from tests.cloud_collector.conftest import land
from tests.cloud_collector.test_chain import MAKER, Journal
from tests.cloud_collector.test_heads import head_of
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloud_collector.config import Database
    from tests.cloud_collector.conftest import Made, Maker
    from tests.cloud_collector.postgres import Postgres

ROOT = Path(__file__).parents[2]
A, D, C, F = Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.FENCED


@pytest.fixture
def database(postgres: Postgres) -> Database:
    return postgres.database()


@pytest.fixture
def two(database: Database) -> Iterator[tuple[Landing, Landing]]:
    """Two collectors' landings."""
    with contextlib.closing(Landing(database)) as one, contextlib.closing(Landing(database)) as other:
        yield one, other


class Held:
    """The first writer that reaches the end of its transaction waits there, with all written and nothing committed."""

    def __init__(self) -> None:
        self.reached, self._go = threading.Event(), threading.Event()

    def __call__(self, name: str) -> None:
        """Pass a named instant."""
        if name == "landing_uncommitted" and not self.reached.is_set():
            self.reached.set()
            assert self._go.wait(30)

    def release(self) -> None:
        """Let the writer go on."""
        self._go.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    one = Held()
    monkeypatch.setattr(failpoint, "armed", one)
    yield one
    one.release()


def at_once(two: tuple[Landing, Landing], held: Held, first: Made, second: Made) -> list[Verdict]:
    """What two collectors say of releases when one comes while the other's is written and not committed."""
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(land, two[0], first)
        assert held.reached.wait(10)
        other = pool.submit(land, two[1], second)
        time.sleep(0.2)
        held.release()
        return [*one.result(20), *other.result(20)]


# Two collectors, one agent


def test_one_release_at_two_collectors_at_once_is_stored_once(
    two: tuple[Landing, Landing], held: Held, maker: Maker
) -> None:
    assert at_once(two, held, maker.make(), maker.make()) == [A, D]
    assert [len(one.unsealed(10)) for one in two] == [1, 1]


def test_of_two_conflicting_releases_at_once_one_wins_and_the_fence_stands(
    two: tuple[Landing, Landing], held: Held, maker: Maker
) -> None:
    """At every collector, in one line of the audit log; what was stored is still a duplicate everywhere."""
    first, clash = maker.make(), maker.make(seed=1)
    assert at_once(two, held, first, clash) == [A, C]
    for one in two:
        assert [seen.fence for seen in one.agents()] == [Reason.CONFLICT]
        assert len(one.audit()) == 1
        assert land(one, first, maker.make(window=5)) == [D, F]


def a_fork_at_two_collectors_is_fenced(two: tuple[Landing, Landing], held: Held) -> bool:
    """No key of a table tells the two apart, only the link between them."""
    journal = Journal(MAKER)
    base = journal.release(0)
    twin = journal.clone(seed=1)
    mine, _, next_of_twin = journal.release(1), twin.release(2), twin.release(3)
    held.reached.set()
    land(two[0], base)
    held.reached.clear()
    return at_once(two, held, mine, next_of_twin) == [A, F]


def test_a_fork_at_two_collectors_at_once_is_fenced(two: tuple[Landing, Landing], held: Held) -> None:
    assert a_fork_at_two_collectors_is_fenced(two, held)


def test_mutant_agents_that_are_not_held_are_caught(
    two: tuple[Landing, Landing], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LandingServer, "_hold", lambda *_: None)
    assert not a_fork_at_two_collectors_is_fenced(two, held)


def test_a_group_that_was_in_another_s_way_is_judged_again(database: Database, maker: Maker) -> None:
    """Many collectors, the same agents in every group, in another order each: all are answered, each key once."""
    made = [maker.make(window=window, agent=f"a{agent}") for agent in range(6) for window in range(3)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        landings = [stack.enter_context(contextlib.closing(Landing(database))) for _ in range(4)]
        orders = [made[i:] + made[:i] for i in (0, 5, 9, 14)]
        said = list(pool.map(lambda one: land(one[0], *one[1]), zip(landings, orders, strict=True)))
        assert sorted(verdict for verdicts in said for verdict in verdicts) == sorted([A] * 18 + [D] * 54)
        assert len(landings[0].unsealed(100)) == 18


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_honest_agent_is_never_fenced_at_any_collector(postgres: Postgres, data: st.DataObject) -> None:
    """Whichever collector each release comes to, in whatever order, however often."""
    first, second = Journal(MAKER), Journal(MAKER, "b" * 32, seed=1)
    made = first.releases(range(4)) + second.releases(range(4, 7))
    order = data.draw(st.permutations([*made, *data.draw(st.lists(st.sampled_from(made), max_size=4))]))
    cut = data.draw(st.integers(0, len(order)))
    database = postgres.database()
    with contextlib.closing(Landing(database)) as one, contextlib.closing(Landing(database)) as other:
        verdicts = land(one, *order[:cut]) + land(other, *order[cut:])
        assert (set(verdicts) <= {A, D}, verdicts.count(A)) == (True, len(made))
        (seen,) = one.agents()
        assert (seen.fence, seen.missing, seen.journals) == (None, 0, 2)


# What the sealer reads


def the_sealer_reads_in_the_order_of_ids(two: tuple[Landing, Landing], held: Held, maker: Maker) -> bool:
    """One writer has an id and has not committed it; another commits a later one; the sealer comes."""
    held.reached.set()
    land(two[0], maker.make())  # whoever brings a plan's first release holds up others of that plan until the commit
    held.reached.clear()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(land, two[0], maker.make(agent="slow"))
        assert held.reached.wait(10)
        assert land(two[1], maker.make(agent="quick")) == [A]
        reading: Future[Any] = pool.submit(two[1].unsealed, 10)
        time.sleep(0.2)
        held.release()
        assert slow.result(20) == [A]
        read = [one.id for one in reading.result(20)]
    every = [one.id for one in two[0].unsealed(10)]
    assert len(every) == 3
    return read == every[: len(read)]


def test_the_sealer_never_passes_a_release_that_is_still_to_be_committed(
    two: tuple[Landing, Landing], held: Held, maker: Maker
) -> None:
    assert the_sealer_reads_in_the_order_of_ids(two, held, maker)


def test_mutant_a_sealer_that_does_not_wait_for_writers_is_caught(
    two: tuple[Landing, Landing], held: Held, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LandingServer, "settled", lambda _: 2**62)
    assert not the_sealer_reads_in_the_order_of_ids(two, held, maker)


def pushes_go_on_beside_a_lost_writer(two: tuple[Landing, Landing], database: Database, maker: Maker) -> bool:
    """A machine fell silent in its commit, and the sealer waits for it: whether others commit meanwhile."""
    gone = LandingServer(database)
    with contextlib.closing(gone), ThreadPoolExecutor(2) as pool:
        with gone.db.transaction():
            gone.db.native(f"SELECT pg_advisory_xact_lock_shared({landing_server._KEY})", (landing_server._GATE,))
            reading: Future[Any] = pool.submit(two[0].unsealed, 10)
            wait([reading], 0.1)
            pushed = pool.submit(land, two[1], maker.make())
            done = bool(wait([pushed], 4).done)
            assert not done or isinstance(reading.exception(4), StoreFailed)
        assert pushed.result(20) == [A]
        assert len(two[0].unsealed(10)) == 1
    return done


@pytest.mark.slow
@pytest.mark.parametrize("closing", ["300ms", "15s"])
def test_pushes_go_on_though_a_machine_is_lost_in_its_commit(
    two: tuple[Landing, Landing], database: Database, maker: Maker, monkeypatch: pytest.MonkeyPatch, closing: str
) -> None:
    """Mutant: the sealer waits at the gate for as long as for any other lock, and everybody behind it."""
    monkeypatch.setattr(landing_server, "_CLOSING", closing)
    assert pushes_go_on_beside_a_lost_writer(two, database, maker) is (closing == "300ms")


def most_in_turn(turns: list[Callable[[], contextlib.AbstractContextManager[None]]]) -> int:
    inside: list[int] = []
    most: list[int] = []

    def take(turn: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        with turn():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.05)
            inside.pop()

    with ThreadPoolExecutor(len(turns)) as pool:
        list(pool.map(take, turns))
    return max(most)


def test_one_of_all_collectors_seals(two: tuple[Landing, Landing]) -> None:
    assert most_in_turn([one.turn for one in two] * 2) == 1
    assert most_in_turn([contextlib.nullcontext] * 4) > 1, "the mutant: no lock"


def test_landings_of_two_schemas_are_strangers(postgres: Postgres, two: tuple[Landing, Landing], maker: Maker) -> None:
    """Neither their rows nor their locks meet."""
    with contextlib.closing(Landing(postgres.database())) as other, other.turn(), two[0].turn():
        assert land(two[0], maker.make()) == land(other, maker.make()) == [A]
        assert other.id != two[0].id == two[1].id


CHILD = """
import asyncio, os, pickle, signal, sys
from pathlib import Path
from cloud_collector import failpoint
from cloud_collector.config import Database
from cloud_collector.landing import Landing
from edge_agg.contract.codec import open_sealed

landing, point = Landing(Database(url=sys.argv[1])), sys.argv[2]
if point == "turn":
    with landing.turn():
        os.kill(os.getpid(), signal.SIGKILL)
failpoint.armed = lambda name: name == point and os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(landing.land([open_sealed(*one) for one in pickle.loads(Path(sys.argv[3]).read_bytes())]))
"""


def killed_at(point: str, database: Database, folder: Path, *made: Made) -> None:
    """A collector lands releases, and is killed at a named instant, or in its turn to seal."""
    import pickle

    (folder / "releases").write_bytes(pickle.dumps([(one.sealed.header, one.sealed.payload) for one in made]))
    child = [sys.executable, "-c", CHILD, database.url, point, str(folder / "releases")]
    ended = subprocess.run(child, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=False)
    assert ended.returncode == -9


@pytest.mark.slow
@pytest.mark.parametrize(("point", "verdict"), [("landing_uncommitted", A), ("landing_committed", D)])
def test_a_collector_killed_at_its_commit_leaves_all_or_nothing(
    database: Database, tmp_path: Path, maker: Maker, point: str, verdict: Verdict
) -> None:
    """And holds up nobody: another collector takes the same releases at once, and all of them are there once."""
    made = [maker.make(window=window) for window in range(4)]
    killed_at(point, database, tmp_path, *made)
    with contextlib.closing(Landing(database)) as landing:
        assert len(landing.unsealed(10)) == (0 if verdict is A else 4)
        assert land(landing, *made) == [verdict] * 4
        assert [one.header for one in landing.unsealed(10)] == [one.sealed.header for one in made]


@pytest.mark.slow
def test_the_turn_of_a_killed_collector_is_free(database: Database, tmp_path: Path) -> None:
    killed_at("turn", database, tmp_path)
    with contextlib.closing(Landing(database)) as landing, landing.turn():
        pass


# A server that crashes


def what_was_acked_outlives_a_crash(postgres: Postgres, maker: Maker) -> bool:
    """Meanwhile nothing is promised; then the same landing goes on. The sessions' own setting asks for no sync."""
    acked = [maker.make(window=window) for window in range(6)]
    database = postgres.database("synchronous_commit=off")
    with contextlib.closing(Landing(database)) as landing:
        postgres.run("CHECKPOINT")
        assert land(landing, *acked[:3]) == [A] * 3
        assert land(landing, *acked[3:]) == [A] * 3
        postgres.crash()
        try:
            with pytest.raises(StoreFailed):
                land(landing, maker.make(window=9))
            assert not landing.failed
        finally:
            postgres.start()
        assert land(landing, maker.make(window=9)) == [A]
        return land(landing, *acked) == [D] * 6


@pytest.mark.slow
def test_what_was_acked_outlives_a_crash_of_the_server(postgres: Postgres, maker: Maker) -> None:
    assert what_was_acked_outlives_a_crash(postgres, maker)


@pytest.mark.slow
def test_mutant_a_commit_that_does_not_wait_for_the_disk_is_caught(
    postgres: Postgres, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = landing_session.connected

    def careless(database: Database) -> Any:
        connection = connected(database)
        connection.execute("SET synchronous_commit = off")
        return connection

    monkeypatch.setattr("cloud_collector.landing_server.connected", careless)
    assert not what_was_acked_outlives_a_crash(postgres, maker)


def patient(landing: Landing, made: Made) -> tuple[list[Verdict], int]:
    """Send as agents do: what was not acked again, until it is; and how often that was."""
    for refused in range(1000):
        try:
            return land(landing, made), refused
        except StoreFailed:
            time.sleep(0.02)
    raise AssertionError("nobody answered")


@pytest.mark.slow
def test_pushed_through_a_restart_nothing_acked_is_lost(postgres: Postgres, maker: Maker) -> None:
    """A collector keeps pushing while its server crashes and comes back; in the end everything is there once."""
    made = [maker.make(window=window % 40, agent=f"a{window // 40}") for window in range(400)]
    crashed, acked = threading.Event(), []
    with contextlib.closing(Landing(postgres.database())) as landing, ThreadPoolExecutor(1) as pool:

        def push_all() -> int:
            refusals = 0
            for n, one in enumerate(made):
                if n == 200:
                    assert crashed.wait(30), "half of it comes while the server is down, or later"
                said, refused = patient(landing, one)
                assert said in ([A], [D])
                acked.append(one)
                refusals += refused
            return refusals

        pushing = pool.submit(push_all)
        wait_until(lambda: len(acked) >= 20, every_s=0.01)
        postgres.crash()
        crashed.set()
        time.sleep(0.1)
        postgres.start()
        assert pushing.result(60) > 0, "somebody was refused meanwhile"
        assert [one.header for one in landing.unsealed(500)] == [one.sealed.header for one in made]
        assert land(landing, *made) == [D] * 400


def test_a_session_that_the_server_ended_is_made_anew(database: Database, postgres: Postgres, maker: Maker) -> None:
    """Nobody is refused for it: the group is tried once more over a new connection."""
    with contextlib.closing(Landing(database)) as landing:
        assert land(landing, maker.make()) == [A]
        postgres.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cloud-collector'"
        )
        assert land(landing, maker.make(), maker.make(window=1)) == [D, A]


def alarms_though_answers_are_lost(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each commit of two journals' faults holds, and its answer is lost; what is said of them."""
    said: list[Any] = []
    monkeypatch.setattr(landed_in, "emit", lambda event, **fields: said.append((event, fields.get("reason"))))
    transact = LandingServer.transact

    def unheard(self: LandingServer, work: Any, agents: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(LandingServer, "transact", transact)
            transact(self, work, agents)
        self.db.drop()
        monkeypatch.setattr(LandingServer, "transact", transact)
        raise landing_session.psycopg.OperationalError

    with contextlib.closing(Landing(database)) as landing:
        first, second = Journal(MAKER), Journal(MAKER, "b" * 32)
        land(landing, first.release(0), first.release(1))
        for _ in range(2):
            monkeypatch.setattr(LandingServer, "transact", unheard)
            land(landing, second.release(2 + second.seq))
        monkeypatch.setattr(LandingServer, "transact", unheard)
        assert land(landing, MAKER.make(seed=9)) == [C]
        landing.unfence("acme", "jfk", who="ada", note="a test")
        monkeypatch.setattr(LandingServer, "transact", unheard)
        heard = landing.hear(head_of(first, places=((1, b"x" * 32),)))
        assert (heard.standing, heard.alarm) == (Standing.FENCED, None)
    monkeypatch.undo()
    alarms = {Event.AGENT_FENCED, Event.AGENT_REINSTALLED, Event.AGENT_BEHIND}
    return [one for one in said if one[0] in alarms]


def test_an_alarm_is_given_though_the_answer_of_its_commit_was_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each. Mutant: what the last try says is all that is said."""
    assert alarms_though_answers_are_lost(database, monkeypatch) == [
        (Event.AGENT_REINSTALLED, None),
        (Event.AGENT_FENCED, Reason.CONFLICT),
        (Event.AGENT_FENCED, Reason.ROLLBACK),
    ]


def test_who_reads_may_be_silent_for_as_long_as_the_lake_takes(database: Database) -> None:
    """And who writes may not. Mutant: a limit of ten minutes, at which the server ends `verify`."""
    store = LandingServer(database)
    with contextlib.closing(store), store.reading() as db:
        limit = "SHOW idle_in_transaction_session_timeout"
        assert (db.execute("SELECT current_setting(?)", (limit[5:],)).get, store.db.execute(limit).get) == ("0", "1min")


def test_a_server_without_fsync_is_refused(postgres: Postgres) -> None:
    """An ack from it would promise nothing."""
    database = postgres.database()
    postgres.run("ALTER SYSTEM SET fsync = off")
    try:
        postgres.run("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.run("SHOW fsync") == [("off",)])
        with pytest.raises(StoreFailed, match="fsync"):
            Landing(database)
    finally:
        postgres.run("ALTER SYSTEM RESET fsync")
        postgres.run("SELECT pg_reload_conf()")
        wait_until(lambda: postgres.run("SHOW fsync") == [("on",)])


def test_a_question_hears_what_waits_from_either_database(database: Database, tmp_path: Path, maker: Maker) -> None:
    """The same statement, over both: first and last window by tenant and agent, of this plan alone."""
    made, said = [maker.make(window=window) for window in range(3)], []
    for where in (database, tmp_path / "landing.sqlite"):
        with contextlib.closing(Landing(where)) as landing:
            land(landing, *made)
            said.append((landing.waiting_of(maker.hash), landing.waiting_of(b"another")))
    windows = to_us(made[0].release.window_start), to_us(made[2].release.window_start)
    assert said == [({("acme", "jfk"): windows}, {})] * 2


# What belongs together


def test_a_landing_is_sealed_into_one_lake(database: Database, tmp_path: Path, maker: Maker) -> None:
    """From whichever machine: another lake is refused, and so is one that belongs to another landing, of any kind."""
    shared, other, own = (Lake(tmp_path / name) for name in ("shared", "other", "own"))
    with contextlib.closing(Landing(tmp_path / "landing.sqlite")) as landing:
        land(landing, maker.make())
        landing.bind(own)
        landing.bind(own)
    with contextlib.closing(Landing(database)) as one, contextlib.closing(Landing(database)) as two:
        with pytest.raises(ConfigInvalid, match=r"\$\.landing\.url: .* another landing"):
            two.bind(own)
        for landing in (one, two, one):
            landing.bind(shared)
        with pytest.raises(ConfigInvalid, match=r"\$\.lake\.url: .* another lake"):
            two.bind(other)
        with pytest.raises(ConfigInvalid, match=r"another l"):
            two.bind(own)
    with (
        contextlib.closing(Landing(tmp_path / "a second.sqlite")) as landing,
        pytest.raises(ConfigInvalid, match=r"\$\.collector\.data: .* another landing"),
    ):
        landing.bind(shared)
    assert other.owner() is None


def both_get_it(folder: Path, first: Database, monkeypatch: pytest.MonkeyPatch) -> bool:
    """One landing comes between the other's look at a lake and its mark; whether both may seal into it."""
    bound = []
    with contextlib.closing(Landing(first)) as one, contextlib.closing(Landing(folder / "landing.sqlite")) as two:
        claimed = FolderStore.put_new

        def late(self: FolderStore, name: str, data: bytes) -> None:
            monkeypatch.setattr(FolderStore, "put_new", claimed)
            two.bind(Lake(folder / "lake"))
            bound.append(two)
            claimed(self, name, data)

        monkeypatch.setattr(FolderStore, "put_new", late)
        with contextlib.suppress(ConfigInvalid):
            one.bind(Lake(folder / "lake"))
            bound.append(one)
    return len(bound) == 2


def test_of_two_landings_that_come_at_once_one_gets_the_lake(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: a mark that is put over another's."""
    assert not both_get_it(tmp_path / "as it is", postgres.database(), monkeypatch)
    monkeypatch.setattr(FolderStore, "put_new", FolderStore.put)
    assert both_get_it(tmp_path / "mutant", postgres.database(), monkeypatch)


def test_both_databases_have_the_same_columns(database: Database, postgres: Postgres, tmp_path: Path) -> None:
    with contextlib.closing(Landing(database)), contextlib.closing(Landing(tmp_path / "landing.sqlite")) as in_file:
        query = "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema()"
        server = set(postgres.run(query, at=database))
        db = in_file._db
        assert isinstance(db, apsw.Connection)
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        file = {(name, column[1]) for name in tables for column in db.execute(f"PRAGMA table_info({name})")}
    assert server - {("meta", "version"), ("meta", "bound")} == {one for one in file if one[0] != "sqlite_sequence"}


def test_tables_of_another_version_are_left_alone(
    database: Database, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigInvalid, match="no collector has run there yet"):
        store_of(database, make=False)
    Landing(database).close()
    monkeypatch.setattr(landing_tables, "VERSION", 99)
    with pytest.raises(StoreFailed, match="another version"):
        Landing(database)
    assert len(postgres.run("SELECT 1 FROM meta", at=database)) == 1
