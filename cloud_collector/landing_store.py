"""What a landing asks of the database below it, whichever that is.

Place: below the landing. `landing_file.py` (SQLite, one machine) and `landing_server.py` (PostgreSQL, for collectors on
several) each have one. What is decided, written and counted is the same statements over both: `chain.py`, `fence.py`,
`register.py`, `roll_call.py`, `landing_rows.py`. A database has its own table definitions, transactions, locks and
failures, nothing else. Statements are in the words that both speak: `?` for a parameter, an explicit target after ON
CONFLICT, RETURNING, CASE for the larger of two, `json_each` over an object for a list of names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

T = TypeVar("T")

LAST_ID = 2**63 - 1
"""No id is above it."""
_NAME = re.compile(r":([a-z_]+)")


class Rows(Protocol):
    """What a statement said."""

    @property
    def get(self) -> Any:
        """The first row, or its value if it has one column; None if there is none."""

    def fetchone(self) -> Any:
        """The next row; None after the last."""

    def fetchall(self) -> list[Any]:
        """The rows that are left."""

    def __iter__(self) -> Iterator[Any]:
        """The rows that are left, one by one."""


class Statements(Protocol):
    """Runs statements: outside of a transaction, each is one of its own."""

    def execute(self, query: str, params: Sequence[Any] = ..., /) -> Rows:
        """Run one."""

    def executemany(self, query: str, rows: Iterable[Sequence[Any]], /) -> object:
        """Run one for each row of parameters."""


class Broken(Exception):
    """The database did not do what it was asked; nothing of it is kept.

    Args:
        cause: the name of what it raised, without its text, which may quote values.
        fatal: whether its state is unknown, so that only a new process may open it again.
    """

    def __init__(self, cause: str, *, fatal: bool) -> None:
        super().__init__(cause)
        self.cause, self.fatal = cause, fatal


def worded(template: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """A statement whose parameters have names, in the words that both speak.

    Args:
        template: has `:name` for each parameter, as often as it is used.
        values: by name. An int is said to be one: a server guesses from where it stands, and may guess a narrower one.

    Returns:
        The statement and its parameters, for :meth:`Statements.execute`.
    """
    params: list[Any] = []

    def put(found: re.Match[str]) -> str:
        params.append(values[found[1]])
        return "CAST(? AS BIGINT)" if isinstance(params[-1], int) else "?"

    return _NAME.sub(put, template), params


class Owned(Protocol):
    """Where a landing's releases go: a lake, which belongs to one landing."""

    def owner(self) -> str | None:
        """The id of the landing that it belongs to; None if nobody has claimed it."""

    def claim(self, landing_id: str) -> str:
        """Note whose it is, unless it is somebody's; whose it is then."""


class Store(Protocol):
    """One database, used by one thread at a time.

    Whoever opens it makes its tables if there are none, and refuses those of another version (StoreFailed).
    """

    @property
    def db(self) -> Statements:
        """Where statements go; the same object for as long as the store is open."""

    @property
    def waits(self) -> bool:
        """Whether a statement waits for another machine: a thread that others need must not run one."""

    def run(self, work: Callable[[], T]) -> T:
        """Do work, perhaps twice: again where another writer or a lost connection undid it.

        Raises:
            Broken: the work is undone.
        """

    def transact(self, work: Callable[[], T], agents: Collection[tuple[str, str]]) -> T:
        """Do work in one transaction; on return what it wrote is on the disk. Only within :meth:`run`.

        Args:
            work: runs statements.
            agents: by tenant and name, those that it decides about: what it reads of them does not change meanwhile.
        """

    def settled(self) -> int:
        """An id such that no release of this id or below is still to be committed. Only within :meth:`run`."""

    def reading(self) -> AbstractContextManager[Statements]:
        """One state of the tables, whatever is written meanwhile; nothing can be changed through it."""

    def damages(self, db: Statements) -> Iterable[str]:
        """What the database itself finds wrong with what it keeps, in words."""

    def bind(self, lake: Owned) -> None:
        """Make sure that a lake is the one this landing is sealed into.

        Raises:
            ConfigInvalid: it is not, or it belongs to another landing: nothing may be sealed.
            StoreFailed: the lake cannot be asked.
        """

    def turn(self) -> AbstractContextManager[None]:
        """Wait until no collector on another machine is in the body; the turn of one that dies ends with it.

        Raises:
            StoreFailed: the database does not answer.
        """

    def close(self) -> None:
        """Let go of it."""
