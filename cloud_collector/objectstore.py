"""What the lake needs of the place that keeps its objects: a folder of this machine, or a bucket.

Place: below the log of a table; `folderstore.py` and `s3store.py` keep what is promised here, and one suite of tests
asks both.
Invariants: an object appears whole or not at all, and is durable when the call returns; of several writers of one new
name at most one is told that it was the one, whatever answers are lost on the way; what was written is read by whoever
looks afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb


class Taken(Exception):
    """There is an object of this name already."""


class Missing(Exception):
    """There is no object of this name."""


class SyncFailed(Exception):
    """The disk did not sync. Never tried again: the kernel may have dropped the pages, and a second sync would lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object of a listing."""

    name: str
    """Without its folder."""
    modified_ms: int
    """When it was written, milliseconds since 1970 by the clock of the store."""


class ObjectStore(Protocol):
    """Objects by name, `folder/folder/name`.

    All calls raise an error of their own, not of these, if the store cannot be reached or refuses: the caller does not
    know what has happened, and looks again.
    """

    @property
    def location(self) -> str:
        """Where the objects are: an absolute path, or a URL."""

    def get(self, name: str) -> bytes:
        """The bytes of an object; raises Missing."""

    def put(self, name: str, data: Any) -> None:
        """Write an object (anything with the buffer protocol), instead of the one of its name if there is one."""

    def put_new(self, name: str, data: bytes) -> None:
        """Write an object unless there is one of its name.

        Args:
            name: of the object.
            data: unlike what any other writer would put there.

        Raises:
            Taken: there is one; nothing was written.
        """

    def list(self, folder: str) -> Sequence[Found]:
        """The objects of a folder, not of folders in it; in no order."""

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""

    def settle(self, folder: str) -> None:
        """Make durable what a process that was killed may have left in a folder."""

    def attach(self, duck: duckdb.DuckDBPyConnection) -> None:
        """Let a connection read the objects at `location/name`."""
