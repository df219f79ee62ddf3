"""The landing's file: a SQLite database on one machine, its tables, how it is made, opened and brought up to date.

Place: below the landing, one of its stores. `releases` holds a row per key for ever, `waiting` its header and payload
until the lake has them; what stays of 1,000 values is a digest. They are two tables so that the rows which
stay lie close together. `agents`, `journals` and `accounts` hold the heads: who was seen, how far each chain is, how
much each account was charged. `fences` says who is shut out, `audit` who decided so; `behind` holds, after a restore,
the windows of which an acked release may be lost; `meta` is one row about the file. `contacts` says when an agent last
called and when its certificate ends, `expected` who should report and from when until when.
Names stand once and rows carry numbers, so that the keys of a million agents stay small.
"""

from __future__ import annotations

import errno
import os
import secrets
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import apsw

from cloud_collector.errors import ConfigInvalid, StoreFailed, StoreUnavailable
from cloud_collector.landing_store import LAST_ID, Broken
from cloud_collector.statuses import say_what_waits
from cloud_collector.turns import turn

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cloud_collector.landing_store import Owned, Statements

T = TypeVar("T")

SCHEMA_VERSION = 3
SCHEMA = """
CREATE TABLE agents (
  no INTEGER PRIMARY KEY, tenant TEXT NOT NULL, agent TEXT NOT NULL,
  journal INTEGER NOT NULL DEFAULT 0, journals INTEGER NOT NULL DEFAULT 0,
  releases INTEGER NOT NULL DEFAULT 0, last_window_end_us INTEGER NOT NULL DEFAULT 0,
  UNIQUE (tenant, agent)
) STRICT;
CREATE TABLE journals (
  agent INTEGER NOT NULL, journal INTEGER NOT NULL, incarnation BLOB NOT NULL,
  head_seq INTEGER NOT NULL DEFAULT 0, releases INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (agent, journal)
) STRICT, WITHOUT ROWID;
CREATE TABLE accounts (
  agent INTEGER NOT NULL, journal INTEGER NOT NULL, account TEXT NOT NULL,
  seq INTEGER NOT NULL, rho TEXT NOT NULL, delta TEXT NOT NULL,
  PRIMARY KEY (agent, journal, account)
) STRICT, WITHOUT ROWID;
CREATE TABLE plans (no INTEGER PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE) STRICT;
CREATE TABLE releases (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  agent INTEGER NOT NULL, plan INTEGER NOT NULL, window_start_us INTEGER NOT NULL,
  journal INTEGER, seq INTEGER,
  hash BLOB NOT NULL, prev BLOB, digest BLOB, status TEXT,
  UNIQUE (agent, plan, window_start_us),
  UNIQUE (agent, journal, seq)
) STRICT;
CREATE TABLE waiting (id INTEGER PRIMARY KEY, header BLOB NOT NULL, payload BLOB NOT NULL) STRICT;
CREATE TABLE fences (
  agent INTEGER PRIMARY KEY, reason TEXT NOT NULL, incarnation BLOB
) STRICT;
CREATE TABLE audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT, at_us INTEGER NOT NULL, tenant TEXT NOT NULL, agent TEXT NOT NULL,
  action TEXT NOT NULL, reason TEXT NOT NULL, who TEXT NOT NULL, note TEXT NOT NULL
) STRICT;
CREATE TABLE behind (
  agent INTEGER NOT NULL, plan INTEGER NOT NULL, journal INTEGER NOT NULL, from_us INTEGER NOT NULL, until_us INTEGER,
  PRIMARY KEY (agent, plan)
) STRICT, WITHOUT ROWID;
CREATE TABLE meta (id TEXT NOT NULL, restored_us INTEGER) STRICT;
"""
_ROLL = """
CREATE TABLE contacts (
  agent INTEGER PRIMARY KEY, heard_us INTEGER NOT NULL, certificate_ends_us INTEGER
) STRICT;
CREATE TABLE expected (
  tenant TEXT NOT NULL, plan TEXT NOT NULL, agent TEXT NOT NULL, since_us INTEGER NOT NULL, until_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, plan, agent)
) STRICT, WITHOUT ROWID;
CREATE INDEX told ON releases (agent, plan, status, window_start_us) WHERE status IS NOT NULL;
"""
"""What came with version 3. A status is kept where a release has no values; the others were released."""
_FROM_2 = "ALTER TABLE releases ADD COLUMN status TEXT;"
_FROM_1 = """
ALTER TABLE releases RENAME TO releases_1;
ALTER TABLE agents RENAME TO agents_1;
ALTER TABLE fences RENAME TO fences_1;
ALTER TABLE meta RENAME TO meta_1;
DROP INDEX unsealed;
"""
_AFTER_1 = """
INSERT INTO meta SELECT id, NULL FROM meta_1;
INSERT INTO agents (tenant, agent, journals, releases, last_window_end_us)
  SELECT tenant, agent, 1, releases, last_window_end_us FROM agents_1;
INSERT INTO journals SELECT no, 0, unhex(incarnation), last_seq, old.releases
  FROM agents JOIN agents_1 AS old USING (tenant, agent);
INSERT OR IGNORE INTO plans (name, hash) SELECT plan, plan_hash FROM releases_1;
INSERT INTO waiting SELECT id, header, payload FROM releases_1 WHERE header IS NOT NULL;
INSERT INTO releases (id, agent, plan, window_start_us, hash)
  SELECT id, agents.no, plans.no, window_start_us, old.hash
  FROM releases_1 AS old JOIN agents USING (tenant, agent) JOIN plans ON plans.hash = plan_hash;
INSERT OR IGNORE INTO sqlite_sequence SELECT 'releases', 0;
UPDATE sqlite_sequence SET seq = max(seq, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'releases_1'), 0))
  WHERE name = 'releases';
INSERT INTO fences SELECT no, 'conflict', NULL FROM agents JOIN fences_1 USING (tenant, agent);
DROP TABLE releases_1; DROP TABLE agents_1; DROP TABLE fences_1; DROP TABLE meta_1;
"""
"""Version 1 kept no chains: its releases stay without a place in one, and their agents' heads without charges."""


class LandingFile:
    """The store of a landing in a file; every process of the machine may have it open.

    Args:
        path: the file.
        make: whether it is made when it is missing.

    Raises:
        ConfigInvalid: it is missing, and should not be made.
        StoreFailed: it cannot be opened, or was written by a newer collector.
    """

    def __init__(self, path: Path, *, make: bool = True) -> None:
        if not (make or path.exists()):
            raise ConfigInvalid("$.collector.data: no collector has run here yet")
        self._path, self._turn = path, path.with_name(path.name + ".turn")

    @cached_property
    def db(self) -> apsw.Connection:
        """The connection that writes, opened when it is first asked for: whoever only reads changes nothing."""
        return opened(self._path)

    @property
    def waits(self) -> bool:
        """A statement costs microseconds."""
        return False

    def run(self, work: Callable[[], T]) -> T:
        """Do work."""
        try:
            return work()
        except (apsw.Error, OSError) as error:
            # What else SQLite may raise (a full disk, a lock) leaves nothing behind: it rolled back and can go on.
            fatal = isinstance(error, apsw.IOError | apsw.CorruptError | apsw.NotADBError | OSError)
            raise Broken(type(error).__name__, fatal=fatal) from None

    def transact(self, work: Callable[[], T], agents: Collection[tuple[str, str]]) -> T:
        """Do work in one transaction; there is one writer at a time, so nothing changes under it."""
        del agents
        with turn(self._turn):  # woken when it is free: SQLite would sleep and look again, for 100 ms at last
            self.db.execute("BEGIN IMMEDIATE")
            try:
                result = work()
                self.db.execute("COMMIT")
            except BaseException:
                with suppress(apsw.Error):  # SQLite may have rolled back by itself; the first error is the one to tell
                    self.db.execute("ROLLBACK")
                raise
            return result

    def settled(self) -> int:
        """Every id: they are given out and committed by one writer at a time."""
        return LAST_ID

    @contextmanager
    def reading(self) -> Iterator[Statements]:
        """One state of the file, over a connection of its own."""
        try:
            with closing(apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
                db.set_busy_timeout(5_000)
                db.execute("BEGIN")
                yield db
        except apsw.Error as error:
            raise StoreFailed(f"the landing cannot be read ({type(error).__name__})") from None

    def damages(self, db: Statements) -> Iterator[str]:
        """What SQLite finds wrong with the file."""
        yield from (f"landing.sqlite: {row[0]}" for row in db.execute("PRAGMA quick_check") if row[0] != "ok")

    def bind(self, lake: Owned) -> None:
        """Refuse a lake whose releases are known to a landing elsewhere: here each would be taken again."""
        landing_id = str(self.db.execute("SELECT id FROM meta").get)
        if lake.claim(landing_id) != landing_id:
            raise ConfigInvalid(
                "$.collector.data: the lake belongs to another landing, on a server or in another data folder"
            )

    def turn(self) -> AbstractContextManager[None]:
        """No other machine has the file."""
        return nullcontext()

    def close(self) -> None:
        """Close the file."""
        if "db" in self.__dict__:
            self.db.close()


def opened(path: Path) -> apsw.Connection:
    """Open a landing, made for its owner alone when it is missing.

    Raises:
        StoreUnavailable: the disk has no room, or another process holds the file: try again.
        StoreFailed: the file cannot be opened, or was written by a newer collector.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite gives the WAL the same mode
        sync_folder(path.parent.parent)
        db = apsw.Connection(str(path))
        _prepare(db)
        sync_folder(path.parent)
    except (apsw.Error, OSError) as error:
        kind = StoreUnavailable if _passes(error) else StoreFailed
        raise kind("the landing cannot be opened: look at the disk and the file's owner") from None
    return db


def _passes(error: apsw.Error | OSError) -> bool:
    """Whether it is for want of room, or of a turn."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    no_shared_memory = getattr(error, "extendedresult", None) == apsw.SQLITE_IOERR_SHMSIZE
    return no_shared_memory or isinstance(error, apsw.FullError | apsw.BusyError)


def sync_folder(folder: Path) -> None:
    """Make names durable: SQLite syncs what is in its files, and at FULL not that a journal was deleted."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _prepare(db: apsw.Connection) -> None:
    db.set_busy_timeout(5_000)
    db.pragma("journal_mode", "wal")
    db.pragma("synchronous", "full")
    if db.pragma("user_version") not in {0, 1, 2, SCHEMA_VERSION}:
        raise StoreFailed("the landing was written by another version of the collector: run that version")
    if db.pragma("user_version") == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")  # and look again: another process may have been first
    try:
        before = db.pragma("user_version")
        if before == 0:
            db.execute(SCHEMA + _ROLL)
            db.execute("INSERT INTO meta (id) VALUES (?)", (secrets.token_hex(16),))
        elif before == 1:
            db.execute(_FROM_1 + SCHEMA + _AFTER_1 + _ROLL)
            say_what_waits(db)
        elif before == 2:
            db.execute(_FROM_2 + _ROLL)
            say_what_waits(db)
        db.pragma("user_version", SCHEMA_VERSION)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
