"""One agent to a folder: an advisory lock that the kernel drops when its process ends, however it ends.

Place: taken by the journal before it opens its file; `edge-agg status` looks at it to say whether an agent runs.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, Self

from edge_agg.errors import JournalFailed

if TYPE_CHECKING:
    from pathlib import Path


class FolderLock:
    """The lock on a folder, held from construction to `close`; the file holds the process id of its holder."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            JournalFailed: another agent runs on this folder; stop it first.
            OSError: the disk refused; nobody has the lock.
        """
        self._descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._take()
        except BaseException:
            os.close(self._descriptor)  # an open one would keep the lock, also from the next try of this process
            raise

    def _take(self) -> None:
        # `holder` takes the lock for an instant; whoever still has it after several has come to stay.
        if not (self._try() or self._try(after_s=0.05) or self._try(after_s=0.2)):
            raise JournalFailed("another agent runs on this folder")
        os.truncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())

    def _try(self, *, after_s: float = 0.0) -> bool:
        time.sleep(after_s)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def holder(folder: Path) -> int | None:
    """The process id of the agent that runs on a folder, or None."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 20) or 0) or None
    finally:
        os.close(descriptor)
    return None
