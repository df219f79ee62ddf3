"""How much memory and disk the agent may use, and whether there is room for more (promises A10 to A12).

Place: beside the intake, which takes nothing in while there is none.
Invariants: what is refused is refused as a whole, before anything of it is kept: no row is dropped for want of room.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa

_PAGE = os.sysconf("SC_PAGE_SIZE")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_OWN_PAGES = 4 << 20
"""What is larger gets pages of its own, and gives them back at once."""
_HELD = 16 << 20
"""What the heap keeps at its end, at most, between two closings."""
_FULL = 0.9
"""The part of the memory limit at which intake stops: what is in flight and a window that closes need some too."""
WAITING_SHARE = 16
"""One part in so many of the memory limit may wait to be taken in."""
JOURNAL_ROOM = 4 << 20
"""Bytes of the disk limit that the spool leaves to the journal beyond what it has now."""

Holding = Literal["memory", "disk", "clock", "source"]


@dataclass(slots=True, kw_only=True)
class Ceilings:
    """The limits of one agent; a reload of its config may set them."""

    memory_bytes: int
    """Resident memory that must not be exceeded."""
    disk_bytes: int
    """What the state folder may hold."""
    state: Path
    """The state folder."""
    disk_full: bool = False
    """Whether the journal or the spool has met the end of the disk, or of its limit."""

    def holding(self) -> Holding | None:
        """What there is no room in, if there is none."""
        if self.disk_full:
            return "disk"
        if resident_bytes() <= self.memory_bytes * _FULL:
            return None
        give_back()
        return "memory" if resident_bytes() > self.memory_bytes * _FULL else None

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of events may wait to be taken in."""
        return self.memory_bytes // WAITING_SHARE

    def spool_quota(self) -> int:
        """What the spool may hold: the limit less all else in the folder, and less room for the journal to grow."""
        return max(0, self.disk_bytes - _folder_bytes(self.state) - JOURNAL_ROOM)


def resident_bytes() -> int:
    """This process's resident memory."""
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[1]) * _PAGE


def _folder_bytes(folder: Path) -> int:
    """The bytes of a folder's own files, without its subfolders (the spool counts for itself)."""
    size = 0
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # SQLite's own files come and go
            size += entry.stat(follow_symlinks=False).st_size if entry.is_file(follow_symlinks=False) else 0
    return size


def give_back() -> None:
    """Return to the system what the allocators hold and do not use."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is not None:
        trim(0)


def settle_heap() -> None:
    """Set the C library's heap up for a process that lives for years and works through batches of one size.

    Threads share heaps, since each keeps what it was given (by default up to eight a core). What a batch gives back
    stays for the next one, Arrow's buffers included: a page that goes to the system and comes back is filled with
    zeros each time, which is a tenth of the work on a batch. `give_back` ends that at each closing.
    """
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is None:
        return
    option(_M_ARENA_MAX, 2)
    option(_M_MMAP_THRESHOLD, _OWN_PAGES)
    option(_M_TRIM_THRESHOLD, _HELD)
    pa.set_memory_pool(pa.system_memory_pool())
