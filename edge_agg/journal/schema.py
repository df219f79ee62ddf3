"""The journal's tables, and the way from an older version to this one.

Place: when the file is opened.
Invariants: a new file is made, and an old one brought here, in one commit; what was charged and released stays as it
is; whatever way a file came here, it has the same tables.

| table | one row is |
|---|---|
| journal | this file's incarnation and secret |
| plan | a plan that was ever charged, as written, so that an auditor can recompute |
| charge | one attempt at one window (T1); `through_us` is the last window that it covers, if it covers more |
| participation | where a plan bounds windows: the windows that each unit counted in (T1) |
| release | one sealed release (T2); its payload goes once it is acked (T3) |
| part | one file, or stretch of one, that was read to its end, and how far its rows can reach |
| clock | one row: the wall time when somebody last looked |
| first_run | a plan that ran on live data, and since when: no windows before (an empty hash: `carry_first_runs`) |
| local_count | what the agent knows about its own data; it stays on the device |
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import apsw

from edge_agg.contract.codec import to_us
from edge_agg.errors import JournalFailed
from edge_agg.journal.file import File
from edge_agg.journal.positions import SCHEMA as PARTS
from edge_agg.journal.positions import UPGRADE as STRETCHES
from edge_agg.participation import SCHEMA as PARTICIPATION

if TYPE_CHECKING:
    from datetime import datetime

SCHEMA_VERSION = 4
_CLOCK = """
CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), wall_us INTEGER NOT NULL) STRICT;
"""
_FIRST_RUN = """
CREATE TABLE first_run (plan_hash BLOB PRIMARY KEY, since_us INTEGER NOT NULL) STRICT;
"""
_RUN_BEFORE = """
INSERT INTO first_run SELECT plan_hash, created_us FROM journal,
  (SELECT plan_hash FROM charge UNION SELECT plan_hash FROM release);
INSERT INTO first_run SELECT x'', created_us FROM journal WHERE NOT EXISTS (SELECT 1 FROM first_run);
"""
_COVERS = """
CREATE INDEX charge_covers ON charge (plan_hash, through_us) WHERE through_us IS NOT NULL;
"""
_SCHEMA = f"""
CREATE TABLE journal (
  incarnation TEXT NOT NULL, secret BLOB NOT NULL, agent TEXT NOT NULL, created_us INTEGER NOT NULL) STRICT;
CREATE TABLE plan (plan_hash BLOB PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL) STRICT;
CREATE TABLE charge (
  account TEXT NOT NULL, plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL, attempt INTEGER NOT NULL,
  rho TEXT NOT NULL, delta TEXT NOT NULL, through_us INTEGER,
  PRIMARY KEY (plan_hash, window_start_us, attempt)) STRICT;
{_COVERS}
CREATE TABLE release (
  seq INTEGER PRIMARY KEY, plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL, window_end_us INTEGER NOT NULL,
  status TEXT NOT NULL, header BLOB NOT NULL, payload BLOB, hash BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('sealed', 'acked', 'parked')), refusal TEXT,
  UNIQUE (plan_hash, window_start_us)) STRICT;
CREATE INDEX release_waiting ON release (seq) WHERE state = 'sealed';
CREATE TABLE local_count (name TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT;
{PARTS}{_CLOCK}{_FIRST_RUN}{PARTICIPATION}"""
_UPGRADES = {
    1: "ALTER TABLE charge ADD COLUMN through_us INTEGER;" + PARTICIPATION,
    2: STRETCHES + _CLOCK + _COVERS,
    3: _FIRST_RUN + _RUN_BEFORE,
}
"""What brings a journal from a version to the next."""


def prepare(file: File, agent: str, *, now: datetime) -> bool:
    """Make the tables of a new file, or bring an older one to this version; whether it was new.

    Raises:
        JournalFailed: it is another agent's or a newer version's; nothing was changed.
    """
    if version_of(file) == 0:
        with file.transaction():
            file.db.execute(_SCHEMA)
            file.db.execute(
                "INSERT INTO journal VALUES (?, ?, ?, ?)",
                (secrets.token_hex(16), secrets.token_bytes(32), agent, to_us(now)),
            )
            file.db.pragma("user_version", SCHEMA_VERSION)
        return True
    check(file, agent)
    upgrade(file)
    return False


def upgrade(file: File) -> None:
    """Bring an older file to this version, in one commit."""
    if version_of(file) == SCHEMA_VERSION:
        return
    with file.transaction():
        while (version := version_of(file)) < SCHEMA_VERSION:
            file.db.execute(_UPGRADES[version])
            file.db.pragma("user_version", version + 1)


def as_of_now(file: File) -> File:
    """The same journal in this version: itself, or a copy in memory that was brought here."""
    if version_of(file) == SCHEMA_VERSION:
        return file
    copy = apsw.Connection(":memory:")
    with copy.backup("main", file.db, "main") as backup:
        backup.step()
    file.close()
    brought = File(copy, file.folder)
    upgrade(brought)
    return brought


def check(file: File, agent: str) -> None:
    """Refuse a journal that is not this agent's or not known, before anything is written to it.

    Raises:
        JournalFailed: it is another agent's or a newer version's.
    """
    version = version_of(file)
    if version not in range(1, SCHEMA_VERSION + 1):
        raise JournalFailed(f"the journal has version {version}, this program writes {SCHEMA_VERSION}")
    if file.one("SELECT agent FROM journal") != agent:
        raise JournalFailed("the journal in this folder belongs to another agent")


def version_of(file: File) -> int:
    """The version of the program that wrote a file; 0 if it is empty."""
    return int(file.one("PRAGMA user_version"))
