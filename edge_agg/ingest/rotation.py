"""Which generation is in which file, while files are renamed, copied, cut, removed and made anew.

Place: step 1, between the listing of a folder and `tail.py`, which reads what is due here.
Invariants: every byte of a generation is read out of one file, however many hold it; a file that shrank, or whose known
bytes changed, holds another generation from its first byte on.

| what happens | what is seen | what follows |
|---|---|---|
| renamed, and made anew | the known file has another name, or none | it is read to its end, then the new one |
| copied, then cut | a new file that begins with the same bytes | it waits; once the other is cut, it has the rest |
| cut | the known file is shorter, or has other bytes | a new generation |
| removed | no name | the open file is read until it has been quiet for `LINGER` |
"""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge_agg.ingest.generation import HEAD_BYTES, Generation, Key, Past
from edge_agg.ingest.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

LINGER = timedelta(minutes=1)
"""How long a file without a name is followed after its last growth: a writer goes on until it opens the new one."""
IDLE = timedelta(minutes=10)
"""A file that did not change for so long is closed, and opened again when it does."""
OPEN_FILES = 256
"""Where more files are followed, none is kept open between two looks: the journal needs descriptors too."""
RESTING = 1000
"""Generations that are remembered after their file is gone, so that a copy that comes late is not read again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A file as the listing found it."""

    path: str
    size: int
    mtime_ns: int


@dataclass(slots=True, kw_only=True)
class Rotation:
    """The generations of all files of a pattern."""

    past: Past
    heard: Callable[[Trouble], None]
    followed: list[Generation] = field(default_factory=list)
    _resting: deque[Generation] = field(default_factory=lambda: deque(maxlen=RESTING))
    _holder: dict[Key, Generation] = field(default_factory=dict)
    """What each file holds that is listed or followed."""
    _seen: dict[Key, Listed] = field(default_factory=dict)
    """Each file as the listing found it when it was last looked into."""
    _quiet: dict[Generation, datetime] = field(default_factory=dict)
    """Since when a file without a name has not grown."""
    _unreadable: set[Key] = field(default_factory=set)

    def due(self, listed: Mapping[Key, Listed], now: datetime) -> Iterator[Generation]:
        """What there is to read, each to be read to its end before the next is asked for: the oldest first."""
        for generation in sorted(self.followed, key=lambda g: _mtime(listed.get(g.key))):
            yield from self._guarded(partial(self._look, generation, listed, now), generation.key)
            self._close_idle(generation, listed, now)
        for key, file in sorted(listed.items(), key=lambda item: (item[1].mtime_ns, item[1].path)):
            known = self._holder.get(key)
            if known is not None and (known.key == key or file == self._seen.get(key)):
                continue
            descriptor = self._open(key, file)
            if descriptor is not None:
                self._seen[key] = file
                yield from self._guarded(partial(self._assign, key, _folder(file), descriptor), key)
                self._close_idle(self._holder.get(key), listed, now)
        self._forget(listed)

    def close(self) -> None:
        """Close every file; what is known of it stays."""
        for generation in self.followed:
            generation.close()

    def _guarded(self, look: Callable[[], list[Generation]], key: Key) -> list[Generation]:
        """One file's trouble is not another's: it is said, once, and the file is looked into again next time."""
        try:
            return look()
        except OSError:
            self._seen.pop(key, None)
            self._complain(key)
            return []

    def _complain(self, key: Key) -> None:
        if key not in self._unreadable:
            self._unreadable.add(key)
            self.heard(Trouble.FILE_UNREADABLE)

    def _close_idle(self, generation: Generation | None, listed: Mapping[Key, Listed], now: datetime) -> None:
        if generation is None or _unread(generation) or (file := listed.get(generation.key)) is None:
            return
        if self._is_idle(file, now):
            generation.close()

    def _is_idle(self, file: Listed, now: datetime) -> bool:
        return len(self.followed) > OPEN_FILES or file.mtime_ns < (now - IDLE).timestamp() * 1e9

    def _look(self, generation: Generation, listed: Mapping[Key, Listed], now: datetime) -> list[Generation]:
        """Look into a file that is known; the answer, here and below, is what there is to read."""
        file = listed.get(generation.key)
        if file is not None and file == self._seen.get(generation.key) and not _unread(generation):
            if generation.descriptor is None and not self._is_idle(file, now):
                generation.descriptor = self._open(generation.key, file)
            return []
        if file is not None and generation.descriptor is None:
            generation.descriptor = self._open(generation.key, file)
        elif generation.descriptor is None:
            due = self._give_up(generation, listed)
            if _unread(generation) and generation.descriptor is None:
                self.heard(Trouble.FILE_VANISHED)
            return due
        return [] if generation.descriptor is None else self._look_inside(generation, listed, now)

    def _look_inside(self, generation: Generation, listed: Mapping[Key, Listed], now: datetime) -> list[Generation]:
        file = listed.get(generation.key)
        if file is not None:
            self._seen[generation.key] = file
        behind, before = _unread(generation), generation.size
        if not generation.look():
            return self._cut(generation, listed, behind=behind)
        if file is not None or _unread(generation) or generation.size != before:
            self._quiet.pop(generation, None)
        elif now - self._quiet.setdefault(generation, now) >= LINGER:
            return self._give_up(generation, listed)
        return _due(generation)

    def _cut(self, generation: Generation, listed: Mapping[Key, Listed], *, behind: bool) -> list[Generation]:
        """Where a file holds other bytes than before: its old generation may live on in a copy."""
        key, descriptor = generation.key, generation.descriptor
        assert descriptor is not None
        generation.descriptor = None
        fresh = [file for at, file in listed.items() if at not in self._holder and _folder(file) == generation.folder]
        due = self._give_up(generation, listed)
        if behind and generation.descriptor is None and not fresh:
            self.heard(Trouble.FILE_VANISHED)
        return due + self._assign(key, generation.folder, descriptor, cut=generation)

    def _give_up(self, generation: Generation, listed: Mapping[Key, Listed]) -> list[Generation]:
        """Follow a copy instead of a file that is gone, or rest."""
        generation.close()
        self._quiet.pop(generation, None)
        if self._holder.get(generation.key) is generation:
            del self._holder[generation.key]
        copies = [(file.size, key) for key in generation.copies if (file := listed.get(key)) is not None]
        for _, key in sorted(copies, reverse=True):
            descriptor = self._open(key, listed[key])
            if descriptor is not None and _ask(descriptor, generation.is_in):
                return self._follow(generation, key, descriptor)
            if descriptor is not None:
                os.close(descriptor)
        self.followed.remove(generation)
        self._resting.append(generation)
        return []

    def _assign(self, key: Key, folder: str, descriptor: int, *, cut: Generation | None = None) -> list[Generation]:
        """Say what a file holds that is new, that was cut, or that was taken for a copy and has changed."""
        if (before := self._holder.pop(key, None)) is not None:
            before.copies.discard(key)
        head = _ask(descriptor, lambda file: os.pread(file, HEAD_BYTES, 0))
        for known in [*self.followed, *reversed(self._resting)]:
            near = known is not cut and (known.folder == folder or known.key == key)
            if near and _ask(descriptor, partial(known.begins, head=head)):
                return self._add_copy(known, key, descriptor)
        generation = Generation(key=key, folder=folder, descriptor=descriptor)
        self.followed.append(generation)
        self._holder[key] = generation
        position = self.past.position(key, head)
        if position and os.pread(descriptor, 1, position - 1) == b"\n":
            generation.advance(position, b"")
        return _due(generation) if generation.look() else []

    def _add_copy(self, generation: Generation, key: Key, descriptor: int) -> list[Generation]:
        """Of all files that hold a generation the longest is followed."""
        resting = generation in self._resting
        if generation.is_in(descriptor) and (resting or os.fstat(descriptor).st_size > generation.size):
            generation.close()
            if resting:
                self._resting.remove(generation)
                self.followed.append(generation)
            else:
                generation.copies.add(generation.key)
            return self._follow(generation, key, descriptor)
        generation.copies.add(key)
        self._holder[key] = generation
        os.close(descriptor)
        return []

    def _follow(self, generation: Generation, key: Key, descriptor: int) -> list[Generation]:
        generation.key, generation.descriptor = key, descriptor
        generation.copies.discard(key)
        self._holder[key] = generation
        return _due(generation) if generation.look() else []

    def _open(self, key: Key, file: Listed) -> int | None:
        """Open a file, if it is still the one that was listed."""
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError:
            self._complain(key)
            return None
        now = os.fstat(descriptor)
        if stat.S_ISREG(now.st_mode) and (now.st_dev, now.st_ino) == key:
            return descriptor
        os.close(descriptor)
        return None

    def _forget(self, listed: Mapping[Key, Listed]) -> None:
        """Let nothing grow with the files that are gone."""
        followed = {generation.key for generation in self.followed}
        for key in (self._seen.keys() | self._holder.keys()) - listed.keys() - followed:
            self._seen.pop(key, None)
            generation = self._holder.pop(key, None)
            if generation is not None:
                generation.copies.discard(key)
        self._unreadable &= listed.keys()


def _ask(descriptor: int, question: Callable[[int], T]) -> T:
    """Ask about an open file that nobody holds yet; if that fails, it is closed."""
    try:
        return question(descriptor)
    except OSError:
        os.close(descriptor)
        raise


def _unread(generation: Generation) -> bool:
    return generation.size > max(generation.position, generation.searched)


def _due(generation: Generation) -> list[Generation]:
    return [generation] if _unread(generation) else []


def _mtime(file: Listed | None) -> int:
    return -1 if file is None else file.mtime_ns


def _folder(file: Listed) -> str:
    return str(Path(file.path).parent)
