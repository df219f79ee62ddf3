"""A disk whose power can be cut: it keeps what was synced, and of what was only written any sectors.

A file is as it was at its own last sync, with a random subset of the 512-byte sectors that were written since; a file
that was deleted may be back unless its folder was synced since, one that is new may be gone unless it was. `DiskVfs`
puts SQLite on such a disk, `DiskOs` code that writes through `os`. Not modelled: sectors that are torn themselves, and
disks that lie about a sync.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

SECTOR = 512


class Disk:
    """What a power cut would leave of a folder."""

    def __init__(self, watched: Path, kept: Path) -> None:
        self.watched = watched
        self.kept = kept
        """The folder with what was synced; nothing else would be left for certain."""
        self.broken = False
        """Whether syncs fail."""
        self.syncs = 0
        self.on_write: Callable[[], None] = lambda: None
        """Called before each write and each sync: a moment for a power cut."""
        self._pending: dict[str, list[tuple[int, bytes | None]]] = defaultdict(list)
        """By file, what was written since its last sync: offset and bytes, or a length to cut it to and None."""
        self._nameless: set[str] = set()
        """Files that were synced while their folder was not since they were made."""
        kept.mkdir()

    def keep_all(self) -> None:
        """Begin with what is in the folder, as if it had been synced long ago."""
        shutil.rmtree(self.kept)
        shutil.copytree(self.watched, self.kept)
        self._pending.clear()

    def wrote(self, path: Path, offset: int, data: bytes | None) -> None:
        """Bytes were written to a file; with None, it was cut to that length."""
        if path.parent == self.watched:
            self._pending[path.name].append((offset, data))

    def synced(self, path: Path) -> None:
        """A file was synced."""
        self.syncs += 1
        if path.parent == self.watched:
            _apply(self.kept / path.name, self._pending.pop(path.name, []))

    def synced_folder(self) -> None:
        """The folder was synced: what was made before is there, what was deleted before is not."""
        self._nameless.clear()
        for file in self.kept.iterdir():
            if not (self.watched / file.name).exists():
                file.unlink()
                self._pending.pop(file.name, None)

    def fsync(self, fd: int) -> None:
        """In place of `os.fsync`: the machine's own disk is not waited for."""
        path = _path(fd)
        if path == self.watched:
            self.synced_folder()
        else:
            if path.parent == self.watched and not (self.kept / path.name).exists():
                self._nameless.add(path.name)  # SQLite syncs the folder of a new file by itself
            self.synced(path)

    def cut(self, into: Path, chance: Random) -> Path:
        """Write down what is left if the power is cut now; returns `into`."""
        shutil.copytree(self.kept, into)
        for name, writes in self._pending.items():
            share = chance.choice([0.0, 0.1, 0.5, 0.9, 1.0])
            sectors = [one for write in writes for one in _sectors(*write) if chance.random() < share]
            if sectors:
                _apply(into / name, sectors)
        for file in into.iterdir():
            if (file.name in self._nameless or not (self.watched / file.name).exists()) and chance.random() < 0.5:
                file.unlink()
        return into


def _sectors(offset: int, data: bytes | None) -> list[tuple[int, bytes | None]]:
    if data is None:
        return [(offset, None)]
    first = SECTOR - offset % SECTOR
    cuts = [0, *range(first, len(data), SECTOR), len(data)]
    return [(offset + a, data[a:b]) for a, b in pairwise(cuts)]


def _apply(file: Path, writes: list[tuple[int, bytes | None]]) -> None:
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        for offset, data in writes:
            if data is None:
                os.ftruncate(descriptor, offset)
            else:
                os.pwrite(descriptor, data, offset)
    finally:
        os.close(descriptor)


def _path(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()


class DiskVfs(apsw.VFS):
    """SQLite's way to such a disk; the default one while it is registered."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__("disk", "unix", makedefault=True)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> DiskFile:  # noqa: N802  # apsw's name
        """Open a file that is watched."""
        return DiskFile(name, flags, self.disk)


class DiskFile(apsw.VFSFile):
    """One file of SQLite's on such a disk."""

    def __init__(self, name: str | apsw.URIFilename | None, flags: list[int], disk: Disk) -> None:
        self.path = Path(name.filename() if isinstance(name, apsw.URIFilename) else str(name))
        self.disk = disk
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  # apsw's name
        """Write; it may be lost."""
        self.disk.on_write()
        super().xWrite(data, offset)
        self.disk.wrote(self.path, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802  # apsw's name
        """Cut off; it may be undone."""
        super().xTruncate(newsize)
        self.disk.wrote(self.path, newsize, None)

    def xSync(self, flags: int) -> None:  # noqa: N802  # apsw's name
        """Keep what is now on the disk."""
        self.disk.on_write()
        if self.disk.broken:
            raise apsw.IOError
        self.disk.synced(self.path)


class DiskOs:
    """Stands in for the module `os` in a module that writes to such a disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.room: int | None = None
        """Bytes until the disk is full; None: it never is."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, fd: int, data: memoryview) -> int:
        """Write as much as there is room for; it may be lost."""
        self.disk.on_write()
        if self.room is not None:
            if self.room == 0:
                raise OSError(errno.ENOSPC, "no room")
            data = data[: self.room]
            self.room -= len(data)
        offset = os.fstat(fd).st_size
        n = os.write(fd, data)
        self.disk.wrote(_path(fd), offset, bytes(data[:n]))
        return n

    def ftruncate(self, fd: int, size: int) -> None:
        """Cut off; it may be undone."""
        os.ftruncate(fd, size)
        self.disk.wrote(_path(fd), size, None)

    def fsync(self, fd: int) -> None:
        """Sync, and keep what is then on the disk."""
        self.disk.on_write()
        if self.disk.broken:
            raise OSError(errno.EIO, "broken")
        self.disk.fsync(fd)

    fdatasync = fsync
