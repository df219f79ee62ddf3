"""Where several processes keep their figures for one page: said before the library that keeps them is imported."""

from __future__ import annotations

import fcntl
import os
from itertools import count
from typing import TYPE_CHECKING

from cloud_collector.errors import StoreFailed

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The library's own name for the folder; processes that are started later inherit it."""


def share(folder: Path) -> None:
    """Have this process and those it starts keep their figures below a folder, without those of an earlier run.

    They get a part of it that no other collector has: whoever is started beside one that runs, if only by mistake, must
    not take the figures from under it. The lock of a part ends with this process.

    Raises:
        StoreFailed: the folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = next(part for n in count() if _taken(part := folder / f"{n}"))
        part.mkdir(mode=0o700, exist_ok=True)
        for file in part.glob("*.db"):
            file.unlink()
    except OSError as error:
        raise StoreFailed(f"{folder.name}: the folder of the figures cannot be used ({error.strerror})") from None
    os.environ[FOLDER_VARIABLE] = str(part)


def _taken(part: Path) -> bool:
    """Take a part for this process, as long as it lives, unless another has it."""
    lock = os.open(part.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True
