"""Room that is set aside beside the journal, so that what was begun can be finished on a full disk.

Place: given up when a write that must go through finds no room; made again before the next window is charged.
Invariants: the room is allocated, not only asked for; making it never fails for want of room, it says so instead.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from edge_agg.journal.rim import NO_ROOM, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

BALLAST_BYTES = 1 << 20
"""Enough to seal a few hundred windows, or to write down the acks of several thousand."""
_UNIT = 512
"""Bytes in a block as `stat` counts them."""


class Ballast:
    """The ballast file of a folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ballast"

    @property
    def is_there(self) -> bool:
        """Whether all of it is allocated."""
        try:
            return self._path.stat().st_blocks * _UNIT >= BALLAST_BYTES
        except FileNotFoundError:
            return False

    def make(self) -> bool:
        """Set the room aside, if there is so much; returns whether it is there."""
        if self.is_there:
            return True
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(self._path.parent)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self.give_up()
            return False
        return True

    def give_up(self) -> bool:
        """Let others have the room; returns whether that made any."""
        try:
            self._path.unlink()
            sync_folder(self._path.parent)
        except OSError:
            return False
        return True
