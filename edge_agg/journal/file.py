"""The journal's file as its tables share it: one connection, one thing at a time, and an end at the first real error.

Place: beneath `journal.py`; it knows SQLite and no table.
Invariants: a transaction is one commit or leaves nothing; where there was no room the next may be tried; after any
other error nothing is done any more, whatever the disk says by then: a retried fsync can never pass for a good one.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import apsw

from edge_agg.errors import JournalFailed, JournalFull
from edge_agg.journal.rim import as_journal_failed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHECKPOINT_PAGES = 256
"""Pages in the log from which on it is written back to the file: 1 MiB, so that the log stays small on a small disk."""
NAME = "journal.sqlite"


class File:
    """An open SQLite file."""

    def __init__(self, db: apsw.Connection, folder: Path) -> None:
        self.db = db
        self.folder = folder
        self._log_pages = 0
        self._failed = False

    @classmethod
    def to_write(cls, folder: Path) -> Self:
        """Open a folder's file to write to it, every commit synced, everything deleted overwritten."""
        db = apsw.Connection(str(folder / NAME))
        try:
            db.set_busy_timeout(2000)
            # One by one: of several statements in one string, none after the first that returns a row is run.
            for name, value in {"journal_mode": "WAL", "synchronous": "FULL", "secure_delete": "ON"}.items():
                db.pragma(name, value)
        except apsw.Error:
            db.close()
            raise
        file = cls(db, folder)
        db.set_wal_hook(file._note_log)
        return file

    @classmethod
    def to_read(cls, folder: Path) -> Self:
        """Open a folder's file to look at it, also while another process writes to it."""
        db = apsw.Connection(str(folder / NAME), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(2000)
        return cls(db, folder)

    def close(self) -> None:
        """Close the connection."""
        with as_journal_failed(self.folder):
            self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One commit, or nothing of it."""
        with self.guarded():
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.db.execute("COMMIT")
            except BaseException:
                with suppress(apsw.Error):  # after some errors SQLite has rolled back by itself
                    if self.db.in_transaction:
                        self.db.execute("ROLLBACK")
                raise
            self._write_log_back()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Let one thing be done; after the first error that waiting does not mend nothing more is."""
        if self._failed:
            raise JournalFailed("the journal has failed: look at the disk, then start again")
        try:
            with as_journal_failed(self.folder):
                yield
        except JournalFull:
            self._failed = self.db.in_transaction
            raise
        except JournalFailed:
            self._failed = True
            raise

    def all(self, query: str, *values: Any) -> list[Any]:
        """Every row of an answer."""
        with self.guarded():
            return list(self.db.execute(query, values))

    def one(self, query: str, *values: Any) -> Any:
        """The first value of the first row, or None."""
        with self.guarded():
            return self.db.execute(query, values).get

    def _note_log(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._log_pages = pages
        return apsw.SQLITE_OK

    def _write_log_back(self) -> None:
        """Write the log back into the file once it is long. SQLite would do so itself, and say nothing of an error."""
        if self._log_pages < CHECKPOINT_PAGES:
            return
        self._log_pages = 0
        with suppress(JournalFull), as_journal_failed(self.folder):
            self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
