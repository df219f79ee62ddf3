"""Objects as files of a folder: what was written survives a power cut.

Place: below the lake of a collector that keeps its tables on this machine.
Invariants: a file's bytes are on the disk before its name appears, by a rename, or by a link that fails where another
writer was first; the name is on the disk when the call returns. A sync that fails is never tried again.
"""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_collector.failpoint import failpoint
from cloud_collector.objectstore import Found, Missing, SyncFailed, Taken

if TYPE_CHECKING:
    from collections.abc import Sequence

    import duckdb

_DRAFT = ".tmp"
_DEAD_DRAFT_S = 3600.0
"""A draft that is older was left by a process that was killed."""


class FolderStore:
    """Files below a folder.

    Args:
        root: made with the first object, for its owner only.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    @property
    def location(self) -> str:
        """The folder, absolute."""
        return str(self._root)

    def get(self, name: str) -> bytes:
        """Read a file; raises Missing."""
        try:
            return (self._root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Missing from None

    def put(self, name: str, data: Any) -> None:
        """Write a file instead of the one of its name, if there is one."""
        path = self._root / name
        draft = self._draft(path, data, "file_written")
        draft.replace(path)
        sync(path.parent)

    def put_new(self, name: str, data: bytes) -> None:
        """Write a file unless there is one of its name; raises Taken."""
        path = self._root / name
        draft = self._draft(path, data, "log_written")
        try:
            os.link(draft, path)
        except FileExistsError:
            raise Taken from None
        finally:
            draft.unlink(missing_ok=True)
        failpoint("log_linked")
        sync(path.parent)

    def list(self, folder: str) -> Sequence[Found]:
        """The files of a folder, without drafts."""
        try:
            entries = list(os.scandir(self._root / folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = []
        for one in entries:
            with suppress(FileNotFoundError):  # removed since
                if one.is_file() and not one.name.endswith(_DRAFT):
                    found.append(Found(name=one.name, modified_ms=one.stat().st_mtime_ns // 10**6))
        return found

    def delete(self, name: str) -> None:
        """Remove a file; a power cut may bring it back."""
        (self._root / name).unlink(missing_ok=True)

    def settle(self, folder: str) -> None:
        """Bring the files of a folder and their names to the disk, and remove drafts of the dead."""
        place = self._root / folder
        if not place.is_dir():
            return
        for current, _, names in os.walk(place):
            for name in names:
                path = Path(current) / name
                with suppress(FileNotFoundError):
                    if not name.endswith(_DRAFT):
                        sync(path)
                    elif path.stat().st_mtime < time.time() - _DEAD_DRAFT_S:
                        path.unlink()
            sync(Path(current))
        self._sync_above(place)

    def attach(self, duck: duckdb.DuckDBPyConnection) -> None:
        """Nothing to do: they are files."""

    def _draft(self, path: Path, data: Any, point: str) -> Path:
        if not path.parent.is_dir():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync(path.parent)
            self._sync_above(path.parent)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_DRAFT}")
        with draft.open("xb") as sink:
            sink.write(data)
            sink.flush()
            failpoint(point)
            _fsync(sink.fileno())
        return draft

    def _sync_above(self, place: Path) -> None:
        """The names of the folders on the way, up to that of the root."""
        while place != self._root.parent:
            place = place.parent
            sync(place)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk; raises SyncFailed."""
    fd = os.open(path, os.O_RDONLY)
    try:
        _fsync(fd)
    finally:
        os.close(fd)


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError:
        raise SyncFailed from None
