"""The landing's database on a PostgreSQL server, which collectors on several machines share.

Place: below the landing, one of its stores; needs the extra `postgres`. `landing_tables.py` has the tables.
Invariants:
- A commit is on the server's disk before it returns: `synchronous_commit` is on in every session, and a server that
  runs without fsync is refused.
- Whoever decides about an agent holds its row until the commit, so two collectors judge its releases one after the
  other. What slips through (nothing should) meets a UNIQUE and is judged again.
- Ids are given out before they are committed. Every writer holds the gate shared until its commit, and `settled` closes
  it for a moment: what was given out before is then committed or gone. So the sealer reads in the order of ids and
  leaves nothing behind.
- Who seals holds a lock of a session of its own, which ends with the process, or when the server no longer hears of its
  machine (half a minute).
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cloud_collector import landing_tables
from cloud_collector.errors import ConfigInvalid, StoreFailed, StoreUnavailable
from cloud_collector.landing_session import Session, connected, psycopg
from cloud_collector.landing_store import Broken
from cloud_collector.statuses import say_what_waits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from cloud_collector.config import Database
    from cloud_collector.landing_store import Owned, Statements

T = TypeVar("T")

_TRIES = 5
_BEFORE = 2
"""The version of the tables that is brought up to date."""
_MAKE, _GATE, _SEAL = "make", "gate", "seal"
_KEY = "hashtextextended(current_schema() || '/edge-aggregator/' || %s, 0)"
"""Locks are a server's numbers; ours stand apart by the schema and by what they are for."""
_CLOSING = "5s"
"""How long the gate may take to close, while every writer waits behind it: far less than they wait at most."""
_OTHER_LAKE = (
    "$.lake.url: this landing is sealed into another lake: name that bucket, or on one machine that data folder"
)


class LandingServer:
    """The store of a landing on a server.

    Args:
        database: where.
        make: whether its tables are made when they are missing.

    Raises:
        ConfigInvalid: they are missing, and should not be made; or the library is.
        StoreUnavailable: the server does not answer, or does not let us in.
        StoreFailed: it runs without fsync, or has tables of another version.
    """

    def __init__(self, database: Database, *, make: bool = True) -> None:
        self._database = database
        self.db = Session()
        try:
            self.run(lambda: self._prepare(make=make))
        except Broken as error:
            self.db.drop()
            raise StoreUnavailable(f"the landing's server cannot be used ({error.cause}): look at it") from None
        except BaseException:
            self.db.drop()
            raise

    @property
    def waits(self) -> bool:
        """Each statement is a round trip."""
        return True

    def run(self, work: Callable[[], T]) -> T:
        """Do work, again after another writer was first, or once more over a new connection."""
        tries, lost = 0, False
        while True:
            try:
                if self.db.lost:
                    self.db.use(connected(self._database))
                return work()
            except (
                psycopg.errors.SerializationFailure,
                psycopg.errors.DeadlockDetected,
                psycopg.errors.UniqueViolation,
            ) as error:
                tries += 1
                if tries == _TRIES:
                    raise Broken(type(error).__name__, fatal=False) from None
            except psycopg.Error as error:
                if lost or not self.db.lost:
                    raise Broken(type(error).__name__, fatal=False) from None
                lost = True

    def transact(self, work: Callable[[], T], agents: Collection[tuple[str, str]]) -> T:
        """Do work in one transaction, as the only one that decides about these agents."""
        with self.db.transaction():
            self.db.native(f"SELECT pg_advisory_xact_lock_shared({_KEY})", (_GATE,))
            if agents:
                self._hold(sorted(agents))
            return work()

    def settled(self) -> int:
        """The highest id that was given out, once its writer and all before it are done.

        Raises Broken, within :meth:`run`, if one of them takes too long: what it may still commit cannot be passed.
        """
        with self.db.transaction():
            self.db.native(f"SET LOCAL lock_timeout = '{_CLOSING}'")
            self.db.native(f"SELECT pg_advisory_xact_lock({_KEY})", (_GATE,))
            return int(self.db.execute("SELECT coalesce(max(id), 0) FROM releases").get)

    @contextmanager
    def reading(self) -> Iterator[Statements]:
        """One snapshot, over a connection of its own, row by row, for as long as the body takes.

        Nobody waits for one who reads; the keepalives end the session of a machine that fell silent.
        """
        try:
            session = Session(rowwise=True)
            session.use(connected(self._database))
            with session.closing():
                session.native("SET idle_in_transaction_session_timeout = 0")  # `verify` reads a lake meanwhile
                session.native("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                yield session
        except psycopg.Error as error:
            raise StoreUnavailable(f"the landing cannot be read ({type(error).__name__})") from None

    def damages(self, db: Statements) -> Iterator[str]:
        """Nothing: the server's own tools (`pg_amcheck`, `pg_checksums`) look at its files."""
        del db
        yield from ()

    def bind(self, lake: Owned) -> None:
        """Note in the lake and in the tables that they belong together, if neither belongs to another."""
        self.transact(lambda: self._bind(lake), ())

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the sealer's lock, in a session that is made for it and ends with it."""
        session = Session()
        try:
            session.use(connected(self._database))
            session.native("SET lock_timeout = 0")
            session.native(f"SELECT pg_advisory_lock({_KEY})", (_SEAL,))
        except psycopg.Error as error:
            session.drop()
            raise StoreUnavailable(f"the landing's server does not answer ({type(error).__name__})") from None
        with session.closing():
            yield

    def close(self) -> None:
        """End the session."""
        self.db.drop()

    def _prepare(self, *, make: bool) -> None:
        if self.db.execute("SHOW fsync").get != "on":
            raise StoreFailed("the landing's server runs with fsync = off: an ack would promise nothing")
        with self.db.transaction():
            self.db.native(f"SELECT pg_advisory_xact_lock({_KEY})", (_MAKE,))
            if self.db.execute("SELECT to_regclass('meta') IS NULL").get:
                if not make:
                    raise ConfigInvalid("$.landing.url: no collector has run there yet")
                for one in landing_tables.TABLES:
                    self.db.native(one)
                self.db.execute(
                    "INSERT INTO meta (id, version) VALUES (?, ?)", (secrets.token_hex(16), landing_tables.VERSION)
                )
                return
            version = self.db.execute("SELECT version FROM meta").get
            if version == _BEFORE:
                for one in landing_tables.FROM_2:
                    self.db.native(one)
                say_what_waits(self.db)
                self.db.execute("UPDATE meta SET version = ?", (landing_tables.VERSION,))
            elif version != landing_tables.VERSION:
                raise StoreFailed("the landing was written by another version of the collector: run that version")

    def _hold(self, agents: list[tuple[str, str]]) -> None:
        """Hold the agents' rows, those that are new made now; in one order, so that two seldom wait for each other."""
        names: Any = ([tenant for tenant, _ in agents], [agent for _, agent in agents])
        held = (
            "SELECT tenant, agent FROM agents WHERE (tenant, agent) IN (SELECT * FROM unnest(%s::text[], %s::text[])) "
            "ORDER BY tenant, agent FOR UPDATE"
        )
        if len(self.db.native(held, names).fetchall()) == len(agents):
            return
        made = (
            "INSERT INTO agents (tenant, agent) SELECT * FROM unnest(%s::text[], %s::text[]) AS one (tenant, agent) "
            "WHERE NOT EXISTS (SELECT 1 FROM agents AS old WHERE old.tenant = one.tenant AND old.agent = one.agent) "
            "ON CONFLICT (tenant, agent) DO NOTHING"
        )
        self.db.native(made, names)
        self.db.native(held, names).fetchall()

    def _bind(self, lake: Owned) -> None:
        landing_id, bound = self.db.native("SELECT id, bound FROM meta FOR UPDATE").fetchone() or ("", False)
        if bound and lake.owner() is None:
            raise ConfigInvalid(_OTHER_LAKE)
        if lake.claim(landing_id) != landing_id:
            raise ConfigInvalid("$.landing.url: the lake belongs to another landing")
        if not bound:
            self.db.execute("UPDATE meta SET bound = ?", (True,))
