"""Files that appear whole or not at all, with their mode from the first byte."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cloud_collector.errors import StoreFailed

if TYPE_CHECKING:
    from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder for its owner alone where there is none; raises StoreFailed."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreFailed(f"{path.name}: the folder cannot be made ({error.strerror})") from None


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a reader, and a crash at any instant, finds the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # an old one might have another mode
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as sink:
            sink.write(data)
            sink.flush()
            os.fsync(sink.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreFailed(f"{path.name}: cannot be written ({error.strerror})") from None
