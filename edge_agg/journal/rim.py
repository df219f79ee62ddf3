"""The errors of SQLite and the disk, as what the agent can do about them: wait for room, or end.

Place: around every touch of the journal's file.
Invariants: an error that waiting can mend (no room, read-only) is told from all others by its code alone; where a sync
failed it is never waited for; no message of SQLite's goes further.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import apsw

from edge_agg.errors import JournalFailed, JournalFull

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What an OSError says where waiting helps."""
_PROBE_BYTES = 1 << 16


@contextmanager
def as_journal_failed(folder: Path) -> Iterator[None]:
    """Let one thing be done in a folder.

    Raises:
        JournalFull: there was no room for it.
        JournalFailed: it failed for another reason.
    """
    try:
        yield
    except (apsw.Error, OSError) as error:
        kind = type(error).__name__
        if _is_full(error) or (_is_write(error) and not _has_room(folder)):
            raise JournalFull(f"the disk has no room for the journal, or is read-only ({kind})") from None
        raise JournalFailed(f"the journal could not be read or written ({kind})") from None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; SQLite syncs what is in its files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_ROOM
    if isinstance(error, apsw.IOError):
        # The index of the log is shared memory that is never synced: SQLite makes it anew from the log.
        return _code(error) == apsw.SQLITE_IOERR_SHMSIZE
    return isinstance(error, apsw.FullError | apsw.ReadOnlyError)


def _is_write(error: Exception) -> bool:
    return isinstance(error, apsw.IOError) and _code(error) == apsw.SQLITE_IOERR_WRITE


def _code(error: apsw.Error) -> int:
    return int(getattr(error, "extendedresult", 0))


def _has_room(folder: Path) -> bool:
    """Whether a small file can be written: SQLite does not tell a quota or a disk gone read-only from a broken one."""
    probe = folder / "probe"
    try:
        descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _PROBE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno not in NO_ROOM
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True
