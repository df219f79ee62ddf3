"""A session with a PostgreSQL server that takes the landing's statements.

Place: below `landing_server.py`; the only importer of psycopg.
Invariants: every session waits for the server's disk at a commit, and neither side waits for a dead other for more than
half a minute; an error's text, which may quote values, goes nowhere.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from cloud_collector.errors import ConfigInvalid, StoreUnavailable

try:
    import psycopg
except ImportError:  # what `serve` says of it names the extra
    raise ConfigInvalid("$.landing.url: needs PostgreSQL's library: install edge-aggregator[postgres]") from None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cloud_collector.config import Database

    Connection = psycopg.Connection[tuple[Any, ...]]
    Cursor = psycopg.Cursor[tuple[Any, ...]] | psycopg.ServerCursor[tuple[Any, ...]]

__all__ = ["Session", "connected", "psycopg"]

_LIMITS = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "cloud-collector",
}
_SETTINGS = """
SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 30000; SET idle_in_transaction_session_timeout = '60s'; SET lock_timeout = '15s';
SET client_min_messages = error; SET jit = off;
"""
"""The server's half: a machine that fell silent loses its locks, and a lock that does not come is an error.

Statements are many short index ranges: compiling the roll call of 20,000 agents took 3 s, running it takes 1 s.
"""


def connected(database: Database) -> Connection:
    """A new connection; raises StoreUnavailable if the password cannot be read, and psycopg's errors."""
    password = {}
    if database.password_file is not None:
        try:
            password = {"password": database.password_file.read_text(encoding="utf-8").rstrip("\r\n")}
        except (OSError, ValueError):
            raise StoreUnavailable("the password of the landing's server cannot be read") from None
    connection = psycopg.connect(database.url, autocommit=True, **_LIMITS, **password)  # type: ignore[arg-type]  # libpq's words
    try:
        connection.execute(_SETTINGS)
        if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
            connection.execute("SET synchronous_commit = on")
    except BaseException:
        connection.close()
        raise
    return connection


class Session:
    """Statements over a connection that may be exchanged for another.

    Args:
        rowwise: whether rows are fetched as they are read; such a session only reads, in one transaction.
    """

    def __init__(self, *, rowwise: bool = False) -> None:
        self._connection: Connection | None = None
        self._rowwise = rowwise
        self._open: list[psycopg.ServerCursor[tuple[Any, ...]]] = []

    @property
    def lost(self) -> bool:
        """Whether there is no connection, or none any more."""
        return self._connection is None or self._connection.closed

    def use(self, connection: Connection) -> None:
        """Go on over this connection."""
        self.drop()
        self._connection = connection

    def drop(self) -> None:
        """End the connection, if there is one."""
        for cursor in self._open:
            with suppress(psycopg.Error):
                cursor.close()
        self._open.clear()
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    @contextmanager
    def closing(self) -> Iterator[None]:
        """End the connection after the body."""
        try:
            yield
        finally:
            self.drop()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction, whose statements are not waited for until something is read."""
        connection = self._current
        with connection.transaction(), connection.pipeline():
            yield

    def execute(self, query: str, params: Sequence[Any] = (), /) -> Result:
        """Run one of the landing's statements."""
        return Result(self._run(_native(query), params))

    def executemany(self, query: str, rows: Iterable[Sequence[Any]], /) -> None:
        """Run one of the landing's statements for each row."""
        with self._current.cursor() as cursor:
            cursor.executemany(_native(query), rows)

    def native(self, query: str, params: Sequence[Any] | None = None) -> Cursor:
        """Run a statement in psycopg's own words."""
        return self._current.execute(query, params)

    @property
    def _current(self) -> Connection:
        if self._connection is None:
            raise psycopg.OperationalError
        return self._connection

    def _run(self, query: str, params: Sequence[Any]) -> Cursor:
        if not self._rowwise:
            return self._current.execute(query, params)
        cursor = self._current.cursor(f"rows_{len(self._open)}")
        self._open.append(cursor)
        return cursor.execute(query, params)


class Result:
    """What a statement said, in the landing's words."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    @property
    def get(self) -> Any:
        """The first row, or its value if it has one column; None if there is none."""
        row = self._cursor.fetchone()
        return row[0] if row is not None and len(row) == 1 else row

    def fetchone(self) -> Any:
        """The next row."""
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        """The rows that are left."""
        return self._cursor.fetchall()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


@cache
def _native(query: str) -> str:
    """A statement with psycopg's sign for a parameter."""
    return query.replace("?", "%s")
