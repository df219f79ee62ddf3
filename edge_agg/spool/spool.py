"""The folder of segments: append with one sync, replay, forget.

Place: between a push source's frame and its answer: what `append` came back for may be answered.
Invariants: nothing is answered before it is synced; a failed sync is never tried again (SpoolFailed ends the process);
what was answered comes back from `replay`, whole and in order, until it is forgotten; raw rows lie nowhere else.

    state/spool/                       0700
      EXPIRY_FIRST_TAG.segment         0600: records of one expiry (us since 1970), from number FIRST on

A segment is written by one process and never by the next; it is rolled at 8 MiB, and forgotten as a whole by its name.
What a process was writing when it ended was not answered: a torn tail is cut off, and of an unanswered group any record
may come back. A segment has no sync of its own: one group costs one sync for each expiry in it, which is mostly one.
"""

from __future__ import annotations

import errno
import heapq
import os
import secrets
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, NoReturn, Self

from edge_agg.contract.codec import from_us, to_us
from edge_agg.errors import SpoolFailed, SpoolFull
from edge_agg.spool.record import TAG_BYTES, Found, Record, encode, scan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

SEGMENT_BYTES = 8 << 20
MAX_OPEN = 16
"""Segments that are open for writing at once; for one more, the one that was idle longest is closed."""
_BLOCK = 4096
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What an OSError says where waiting helps; all else is a failure."""


@dataclass(slots=True, kw_only=True)
class _Segment:
    path: Path
    expiry_us: int
    first: int
    tag: bytes = field(repr=False)
    size: int = 0
    """Bytes of whole records."""
    descriptor: int | None = None
    """While it is open for writing."""

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return _stored(self.size)

    def shut(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Spool:
    """The open spool of one agent. Any thread may call; one call does its work at a time."""

    def __init__(self, folder: Path, *, quota_bytes: int) -> None:
        self._folder = folder
        self.quota_bytes = quota_bytes
        """Bytes on disk that `append` stays within; may be set anew at any time."""
        self.damaged = 0
        """Places where bytes were passed over that are no record, with records after them: something may be lost."""
        self._segments: dict[Path, _Segment] = {}
        self._open: OrderedDict[int, _Segment] = OrderedDict()
        """By expiry, the segments that are written to; the one that was idle longest first."""
        self._next = 1
        self._failed = False
        self._lock = Lock()

    @classmethod
    def open(cls, folder: Path, *, quota_bytes: int, going_on: Callable[[], None] = lambda: None) -> Self:
        """Open the spool in a folder, or create it. The journal's lock on the folder above keeps others out.

        Args:
            folder: where its segments are.
            quota_bytes: what it may hold.
            going_on: called before each segment is read through.

        Raises:
            SpoolFull: the disk has no room, or is read-only; try again later.
            SpoolFailed: the disk refused.
        """
        spool = cls(folder, quota_bytes=quota_bytes)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in folder.glob("*.segment"):
                going_on()
                spool._recover(path)
            _sync(folder)
            _sync(folder.parent)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise SpoolFull("the spool's disk has no room, or is read-only") from None
            spool._fail("opened", error)
        return spool

    @property
    def size_bytes(self) -> int:
        """Bytes on disk; does not wait for a call that is at work."""
        return sum(segment.stored for segment in list(self._segments.values()))

    def append(self, records: Sequence[Record]) -> None:
        """Keep records; comes back once all of them are durable.

        Raises:
            SpoolFull: quota or disk; nothing of it was kept. Take less input, and offer it again later.
            SpoolFailed: the process must end.
        """
        with self._lock:
            self._check()
            groups: dict[int, list[bytes]] = {}
            for i, record in enumerate(records):
                groups.setdefault(to_us(record.expiry), []).append(encode(record, self._next + i))
            wanted = sum(_stored(sum(TAG_BYTES + len(one) for one in group)) for group in groups.values())
            if self.size_bytes + wanted > self.quota_bytes:
                raise SpoolFull("the spool's quota is used up")
            before: list[tuple[_Segment, int]] = []
            try:
                for expiry_us, group in groups.items():
                    self._write(expiry_us, group, before)
            except OSError as error:
                self._roll_back(before)
                if error.errno in _NO_ROOM:
                    raise SpoolFull("the spool's disk has no room") from None
                self._fail("written", error)
            try:
                self._sync_all(before)
            except OSError as error:
                self._fail("synced", error)
            self._next += len(records)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1].shut()

    def replay(self) -> Iterator[Record]:
        """Every record that was not forgotten, in the order they were appended; one an expiry in memory at a time.

        Raises:
            SpoolFailed: the disk refused.
        """
        with self._lock:
            self._check()
            chains: dict[int, list[tuple[_Segment, int]]] = {}
            for segment in sorted(self._segments.values(), key=lambda one: one.first):
                chains.setdefault(segment.expiry_us, []).append((segment, segment.size))
        found = (_chain(expiry_us, chain) for expiry_us, chain in chains.items())
        try:
            for expiry_us, one in heapq.merge(*found, key=lambda pair: pair[1].number):
                record = one.record(from_us(expiry_us))
                if record is None:
                    self.damaged += 1
                else:
                    yield record
        except OSError as error:
            self._fail("read", error)

    def forget(self, before: datetime, *, received_before: datetime | None = None) -> int:
        """Unlink the segments whose records all expire at or before a moment. A disk without room keeps them longer.

        Args:
            before: the moment that every plan has closed its windows up to.
            received_before: if given, a segment that was last written before it goes too, expired or not.

        Returns:
            How many segments went.

        Raises:
            SpoolFailed: the process must end.
        """
        gone = 0
        with self._lock:
            self._check()
            try:
                for segment in list(self._segments.values()):
                    if segment.expiry_us <= to_us(before) or (
                        received_before is not None and segment.path.stat().st_mtime < received_before.timestamp()
                    ):
                        self._drop(segment)
                        gone += 1
                if gone:
                    _sync(self._folder)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    self._fail("emptied", error)
        return gone

    def close(self) -> None:
        """Let go of the files; what was answered is durable already."""
        with self._lock:
            for segment in self._open.values():
                segment.shut()
            self._open.clear()

    def _check(self) -> None:
        if self._failed:
            raise SpoolFailed("the spool has failed: look at the disk, then start again")

    def _fail(self, what: str, error: OSError) -> NoReturn:
        self._failed = True
        raise SpoolFailed(f"the spool could not be {what} ({type(error).__name__})") from None

    def _recover(self, path: Path) -> None:
        """Take over a segment of an earlier process: cut a torn tail off, never write to it again."""
        try:
            expiry_us, first, tag = path.stem.split("_")
            segment = _Segment(path=path, expiry_us=int(expiry_us), first=int(first), tag=bytes.fromhex(tag))
        except ValueError:
            return
        for found in scan(path, segment.tag, end := path.stat().st_size):
            segment.size = found.end
            self._next = max(self._next, found.number + 1)
            self.damaged += found.after_damage
        if not segment.size:
            path.unlink()
            return
        if segment.size < end:
            _cut(path, segment.size)
        self._segments[path] = segment

    def _write(self, expiry_us: int, group: Sequence[bytes], before: list[tuple[_Segment, int]]) -> None:
        segment = self._open.get(expiry_us)
        if segment is None or segment.size + sum(TAG_BYTES + len(one) for one in group) > SEGMENT_BYTES:
            segment = self._begin(expiry_us)
        self._open.move_to_end(expiry_us)
        before.append((segment, segment.size))
        rest = memoryview(b"".join(segment.tag + one for one in group))
        while rest:
            assert segment.descriptor is not None, "it is open"
            n = os.write(segment.descriptor, rest)
            segment.size += n
            rest = rest[n:]

    def _begin(self, expiry_us: int) -> _Segment:
        tag = secrets.token_bytes(TAG_BYTES)
        path = self._folder / f"{expiry_us}_{self._next}_{tag.hex()}.segment"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        segment = _Segment(path=path, expiry_us=expiry_us, first=self._next, tag=tag, descriptor=descriptor)
        if expiry_us in self._open:
            self._open.pop(expiry_us).shut()
        self._open[expiry_us] = self._segments[path] = segment
        return segment

    def _sync_all(self, before: Sequence[tuple[_Segment, int]]) -> None:
        for segment, _ in before:
            assert segment.descriptor is not None, "it is open"
            os.fdatasync(segment.descriptor)
        if any(size == 0 for _, size in before):
            _sync(self._folder)

    def _roll_back(self, before: Sequence[tuple[_Segment, int]]) -> None:
        """Take back what was written and not answered, durably: a power cut may not bring it back later."""
        try:
            for segment, size in before:
                if size == 0:
                    self._drop(segment)
                elif segment.size > size:
                    _cut(segment.path, size)
                    segment.size = size
            if any(size == 0 for _, size in before):
                _sync(self._folder)
        except OSError as error:
            self._fail("rolled back", error)

    def _drop(self, segment: _Segment) -> None:
        with suppress(FileNotFoundError):
            segment.path.unlink()
        del self._segments[segment.path]
        if self._open.get(segment.expiry_us) is segment:
            del self._open[segment.expiry_us]
        segment.shut()


def _chain(expiry_us: int, chain: Sequence[tuple[_Segment, int]]) -> Iterator[tuple[int, Found]]:
    """What was written under one expiry, in its order; what is forgotten meanwhile is left out."""
    for segment, size in chain:
        with suppress(FileNotFoundError):
            for found in scan(segment.path, segment.tag, size):
                yield expiry_us, found


def _stored(size: int) -> int:
    """What a file of so many bytes takes on disk, in blocks."""
    return -(-size // _BLOCK) * _BLOCK


def _cut(path: Path, size: int) -> None:
    """Cut a file off, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
