"""Taking turns between processes: a lock that the system gives back when its holder dies, however it dies.

Place: whoever seals, in whichever process, takes its turn here first; so does the one collector of a folder.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cloud_collector.errors import StoreFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait until nobody else, in this process or another, is in the body; the file is made when it is missing.

    Raises:
        StoreFailed: the file cannot be made.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        raise StoreFailed(f"{path.name}: cannot be opened: look at the disk") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
