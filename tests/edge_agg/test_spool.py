"""The raw spool: what was answered comes back, whole and in order, until it is forgotten.

Not proved here: that a disk keeps what it says it synced.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agg.contract.codec import to_us
from edge_agg.errors import SpoolFailed, SpoolFull
from edge_agg.spool import Record, Spool
from edge_agg.spool import record as records_room
from edge_agg.spool import spool as room
from tests.disk import Disk, DiskOs
from tests.fakes import MONDAY, WEEK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

MIB = 1 << 20
SOON, LATER = MONDAY + WEEK, MONDAY + 2 * WEEK


def record(n: int, expiry: datetime = SOON, *, rows: int = 1) -> Record:
    """A record that can be told from all others."""
    values = pa.record_batch({"n": pa.array([n] * rows, pa.int64()), "u": pa.array([f"unit-{n}"] * rows)})
    return Record(source="http", batch=values, expiry=expiry, floors={"ab" * 32: n})


def number(of: Record) -> int:
    """Which one it is; checks that it is whole."""
    n = int(of.batch.column("n")[0].as_py())
    assert (of.source, dict(of.floors)) == ("http", {"ab" * 32: n})
    assert of.batch.equals(record(n, rows=of.batch.num_rows).batch)
    return n


def numbers(of: Spool) -> list[int]:
    """What would be replayed."""
    return [number(one) for one in of.replay()]


def opened(folder: Path, quota_bytes: int = 64 * MIB) -> Spool:
    """The spool in a folder."""
    return Spool.open(folder, quota_bytes=quota_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the spool is."""
    return tmp_path / "spool"


def files(folder: Path) -> list[Path]:
    """Its segments, by expiry and number."""
    return sorted(folder.iterdir(), key=lambda path: [int(part) for part in path.stem.split("_")[:2]])


# What is kept


def test_what_was_answered_comes_back_in_order_after_a_restart(folder: Path) -> None:
    """Guarantee: over expiries, groups, segments and restarts: every record, once, as it was, as it was appended."""
    for turn in range(3):
        spool = opened(folder)
        for n in range(4):
            first = turn * 12 + n * 3
            spool.append([record(first, SOON), record(first + 1, LATER), record(first + 2, SOON)])
        assert numbers(spool) == list(range(turn * 12 + 12))
        assert {one.expiry for one in spool.replay()} == {SOON, LATER}
        spool.close()
    assert numbers(opened(folder)) == list(range(36))


def test_large_batches_and_all_types_come_back_as_they_were(folder: Path) -> None:
    """Guarantee: compression, slices, nulls and empty batches change nothing."""
    times = pa.array([0, None, 2**50] * 5000, pa.timestamp("us", tz="UTC"))
    batch = pa.record_batch(
        {"t": times, "x": pa.array([0.5, None, -1.0] * 5000), "k": pa.array(["ü", None, ""] * 5000)}
    )
    wanted = [batch, batch.slice(7000, 5), batch.slice(0, 0)]
    spool = opened(folder)
    spool.append([Record(source="s", batch=one, expiry=SOON, floors={}) for one in wanted])
    assert [one.batch for one in spool.replay()] == wanted
    assert spool.size_bytes < batch.nbytes / 4
    spool.close()


def test_nobody_else_can_read_the_files(folder: Path) -> None:
    """Guarantee: folder 0700, segments 0600, whatever the umask."""
    before = os.umask(0)
    try:
        spool = opened(folder)
        spool.append([record(1)])
    finally:
        os.umask(before)
    spool.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


# What is forgotten


def forgets_just_what_expired(folder: Path) -> bool:
    """Segments of an expiry up to the moment go, no other."""
    spool = opened(folder)
    spool.append([record(1, SOON), record(2, LATER)])
    left = []
    for moment in (SOON - timedelta(microseconds=1), SOON, LATER):
        spool.forget(moment)
        left.append(numbers(spool))
    spool.close()
    return left == [[1, 2], [2], []] and not files(folder)


def test_what_expired_is_unlinked_and_nothing_else(folder: Path) -> None:
    """Guarantee: raw rows are gone once their windows are closed, not before; an empty spool has no files."""
    assert forgets_just_what_expired(folder)


def test_mutant_forgetting_too_early_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a record expires when the first of its windows is closed."""
    monkeypatch.setattr(room, "to_us", lambda moment: to_us(moment if moment == SOON else moment - WEEK))
    assert not forgets_just_what_expired(folder)


def test_what_was_received_long_ago_goes_whatever_its_expiry(folder: Path) -> None:
    """Guarantee: the age limit takes segments by the time they were last written."""
    spool = opened(folder)
    spool.append([record(1, SOON), record(2, LATER)])
    old, new = files(folder)
    os.utime(old, times=(MONDAY.timestamp(),) * 2)
    os.utime(new, times=((MONDAY + WEEK).timestamp(),) * 2)
    assert spool.forget(MONDAY, received_before=MONDAY) == 0
    assert spool.forget(MONDAY, received_before=MONDAY + WEEK) == 1
    assert numbers(spool) == [2]
    spool.append([record(3, SOON)])
    assert numbers(spool) == [2, 3]
    spool.close()


def test_what_is_forgotten_while_it_is_replayed_is_left_out(folder: Path) -> None:
    """Guarantee: closing windows during a replay neither stops it nor brings their rows back."""
    spool = opened(folder)
    spool.append([record(n, SOON if n < 3 else LATER) for n in range(6)])
    replay = spool.replay()
    assert number(next(replay)) == 0
    spool.forget(SOON)
    assert [number(one) for one in replay][-3:] == [3, 4, 5]
    spool.close()


# Quota and bounds


def test_the_quota_counts_bytes_on_disk_and_refuses_before_anything_is_written(folder: Path) -> None:
    """Guarantee: never beyond the quota; what was refused left nothing; room that is made can be used."""
    spool = opened(folder, quota_bytes=64 * 1024)
    kept = 0
    with suppress(SpoolFull):
        while True:
            spool.append([record(kept, rows=100)])
            kept += 1
    assert kept > 10
    on_disk = sum(path.stat().st_size for path in folder.iterdir())
    assert on_disk <= spool.size_bytes <= 64 * 1024
    assert numbers(spool) == list(range(kept))
    spool.quota_bytes += 4096 * 2
    spool.append([record(kept, rows=100)])
    spool.forget(SOON)
    assert spool.size_bytes == 0
    spool.close()


def test_segments_are_rolled_and_the_files_that_are_open_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: segments stay about as large as they should, and many expiries do not use up the descriptors."""
    monkeypatch.setattr(room, "SEGMENT_BYTES", 8192)
    spool = opened(folder)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for n in range(100):
        spool.append([record(n, SOON + timedelta(hours=n % 40), rows=10)])
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + room.MAX_OPEN
    for n in range(100, 130):
        spool.append([record(n, LATER, rows=10)])
    assert max(path.stat().st_size for path in folder.iterdir()) <= 8192
    assert sum(path.name.startswith(str(to_us(LATER))) for path in folder.iterdir()) > 1
    assert numbers(spool) == list(range(130))
    spool.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
    assert numbers(opened(folder)) == list(range(130))


# Torn and damaged files


def ends(path: Path) -> list[int]:
    """Where the records of a segment end."""
    return [found.end for found in records_room.scan(path, bytes.fromhex(path.stem.split("_")[2]), path.stat().st_size)]


def comes_back_from_every_torn_tail(folder: Path) -> bool:
    """Cut the file at every byte: the records before the cut are there, the spool can be used."""
    spool = opened(folder)
    spool.append([record(n) for n in range(4)])
    spool.close()
    (path,) = files(folder)
    whole, stops = path.read_bytes(), ends(path)
    good = True
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        spool = opened(folder)
        kept = sum(stop <= size for stop in stops)
        good &= numbers(spool) == list(range(kept)) and spool.damaged == 0
        good &= (path.stat().st_size if path.exists() else 0) == ([0, *stops][kept])
        spool.append([record(9)])
        good &= numbers(spool) == [*range(kept), 9]
        spool.forget(LATER)
        spool.close()
    return good


@pytest.mark.slow
def test_a_file_that_was_cut_at_any_byte_gives_what_was_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: exactly the records before the cut come back, and the torn rest is gone from the disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of them show nothing here
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    assert comes_back_from_every_torn_tail(folder)


def survives_a_flip_of_any_byte(folder: Path) -> bool:
    """Flip each byte in turn: no record comes back changed, and those of other bytes come back all."""
    spool = opened(folder)
    spool.append([record(n) for n in range(3)])
    spool.close()
    (path,) = files(folder)
    whole, stops = path.read_bytes(), ends(path)
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        spool = opened(folder)
        hit = sum(stop <= place for stop in stops)
        try:
            found = numbers(spool)
        except (AssertionError, pa.ArrowException, ValueError):
            return False
        if found != [n for n in range(3) if n != hit] or spool.damaged != (hit < 2):
            return False
        spool.close()
    return True


@pytest.mark.slow
def test_a_damaged_record_takes_no_other_along(folder: Path) -> None:
    """Guarantee: a flipped bit is never replayed as data; the records after it come back, and the gap is counted."""
    assert survives_a_flip_of_any_byte(folder)


@pytest.mark.slow
def test_mutant_no_checksum_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: whatever has the right lengths is a record."""
    monkeypatch.setattr(records_room, "zlib", SimpleNamespace(crc32=lambda *_: 0))
    assert not survives_a_flip_of_any_byte(folder)


def test_an_event_cannot_forge_a_record(folder: Path) -> None:
    """Guarantee: bytes of a segment inside an event are no record, even when the record around them is damaged."""
    spool = opened(folder)
    spool.append([record(1)])
    (path,) = files(folder)
    inner = path.read_bytes()
    spool.forget(SOON)
    holder = pa.record_batch({"b": pa.array([inner, inner], pa.binary())})
    spool.append([Record(source="http", batch=holder, expiry=SOON, floors={}), record(2)])
    spool.close()
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    spool = opened(folder)
    assert numbers(spool) == [2]
    spool.close()


# Full disks and failing ones


@contextmanager
def os_of(monkeypatch: pytest.MonkeyPatch, folder: Path, kept: Path) -> Iterator[DiskOs]:
    """A disk under the spool that can be full, broken or cut off."""
    with monkeypatch.context() as patch:
        layer = DiskOs(Disk(folder, kept))
        patch.setattr(room, "os", layer)
        yield layer


def test_a_full_disk_refuses_leaves_nothing_and_recovers_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee (A10): at any number of bytes left: nothing of a refused group stays; with room it goes on."""
    with os_of(monkeypatch, folder, tmp_path / "kept") as layer:
        spool = opened(folder)
        spool.append([record(0, SOON)])
        one = files(folder)[0].stat().st_size
        for n, room_left in enumerate(range(0, 2 * one, 37), start=1):
            layer.room = room_left
            with pytest.raises(SpoolFull):
                spool.append([record(100, SOON), record(101, LATER)])
            layer.room = None
            assert numbers(spool) == list(range(n))
            spool.append([record(n, SOON)])
            spool.forget(MONDAY)
        left = layer.disk.cut(tmp_path / "left", random.Random(1))
        spool.close()
    assert set(range(n + 1)) == set(numbers(opened(left)))


LIMITED = """
import resource, sys
from pathlib import Path
from tests.edge_agg.test_spool import opened, record, numbers
from edge_agg.errors import SpoolFull
spool = opened(Path(sys.argv[1]))
spool.append([record(0)])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    for n in range(1, 50):
        spool.append([record(n)])
except SpoolFull:
    print(n, numbers(spool) == list(range(n)))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
spool.append([record(n)])
print(numbers(spool) == list(range(n + 1)))
"""


@pytest.mark.slow
def test_the_kernels_own_limit_is_a_full_disk(folder: Path) -> None:
    """Guarantee: a write that the kernel takes in part (RLIMIT_FSIZE) is rolled back, and the process lives."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(folder)], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert (first.split()[1], second) == ("True", "True")
    assert int(first.split()[0]) >= 1


def ends_at_a_failed_sync(spool: Spool, layer: DiskOs) -> bool:
    """After a failed sync nothing is done any more, whatever the disk says by then."""
    spool.append([record(1)])
    layer.disk.broken = True
    refused = []
    for act in (
        lambda: spool.append([record(2)]),
        lambda: spool.append([record(3)]),
        lambda: spool.forget(LATER),
        lambda: list(spool.replay()),
    ):
        try:
            act()
            refused.append(False)
        except SpoolFailed:
            refused.append(True)
        layer.disk.broken = False
    return all(refused)


def test_a_failed_sync_ends_the_spool(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: fsync is never tried again; after a restart what was answered is there."""
    with os_of(monkeypatch, folder, tmp_path / "kept") as layer:
        assert ends_at_a_failed_sync(opened(folder), layer)
    spool = opened(folder)
    assert numbers(spool)[:1] == [1]
    spool.close()


def test_mutant_trying_the_sync_again_is_caught(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the next append may succeed."""
    monkeypatch.setattr(Spool, "_check", lambda self: None)
    with os_of(monkeypatch, folder, tmp_path / "kept") as layer:
        assert not ends_at_a_failed_sync(opened(folder), layer)


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_an_error_of_the_disk_ends_the_spool(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Guarantee: only a lack of room is waited for; the message holds no value."""

    def fails(fd: int, data: object) -> int:
        raise OSError(code, "unit-7")

    spool = opened(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        with pytest.raises(SpoolFailed) as caught:
            spool.append([record(7)])
    assert "unit-7" not in str(caught.value)
    with pytest.raises(SpoolFailed):
        spool.append([record(8)])


# Power cuts


def survives_power_cuts(folder: Path, scratch: Path, layer: DiskOs, *, cuts: int, seed: int) -> bool:
    """Cut the power at random writes and syncs: every answered record that was not forgotten comes back, in order."""
    chance = random.Random(seed)
    answered: dict[int, datetime] = {}
    offered: set[int] = set()
    closed_to = MONDAY
    good: list[bool] = []

    def maybe_cut() -> None:
        if chance.random() < 0.3:
            left = layer.disk.cut(scratch / f"{seed}-{len(good)}", chance)
            good.append(is_kept(left, {n for n, expiry in answered.items() if expiry > closed_to}, offered))

    layer.disk.on_write = maybe_cut
    spool = opened(folder)
    n = 0
    while len(good) < cuts:
        group = [
            record(
                n + i,
                MONDAY + chance.choice([1, 2, 3]) * timedelta(days=1) + timedelta(days=n // 25),
                rows=chance.choice([1, 60]),
            )
            for i in range(chance.choice([1, 1, 4]))
        ]
        offered |= {number(one) for one in group}
        spool.append(group)
        answered |= {number(one): one.expiry for one in group}
        maybe_cut()
        n += len(group)
        if chance.random() < 0.1:
            closed_to = MONDAY + timedelta(days=n // 25)
            spool.forget(closed_to)
            maybe_cut()
    layer.disk.on_write = lambda: None
    spool.close()
    return all(good)


def is_kept(left: Path, answered: set[int], offered: set[int]) -> bool:
    """Whether what a power cut left has every answered record, in order, and nothing that was never offered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "os", os)
        patch.setattr(os, "fsync", lambda _: None)
        spool = opened(left)
        found = numbers(spool)
        spool.close()
    return answered <= set(found) <= offered and found == sorted(set(found))


@pytest.mark.slow
def test_300_power_cuts_lose_nothing_that_was_answered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: A2 for the spool: whatever sectors of what was not synced are on the disk."""
    with os_of(monkeypatch, folder, tmp_path / "kept") as layer:
        assert survives_power_cuts(folder, tmp_path, layer, cuts=300, seed=1)
        assert layer.disk.syncs > 30


def _answers_at_once(self: Spool, before: Sequence[Any]) -> None:
    """A mutant: the page cache will do."""


def _forgets_the_folder(folder: Path) -> None:
    """A mutant: the names in the folder are not synced."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("holder", "name", "mutant"), [(Spool, "_sync_all", _answers_at_once), (room, "_sync", _forgets_the_folder)]
)
def test_mutants_that_answer_before_the_sync_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: object, name: str, mutant: Callable[..., None]
) -> None:
    """Mutants: no sync of the file; no sync of the folder."""
    with os_of(monkeypatch, tmp_path / "spool", tmp_path / "kept") as layer:
        monkeypatch.setattr(holder, name, mutant)
        assert not survives_power_cuts(tmp_path / "spool", tmp_path, layer, cuts=60, seed=2)


# The model


class SpoolModel(RuleBasedStateMachine):
    """A spool against a list: append, restart, crash in the middle of an append, replay, forget."""

    @initialize()
    def begin(self) -> None:
        """An empty spool, on a disk that is not waited for."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(os, "fsync", lambda _: None)
        self.patch.setattr(os, "fdatasync", lambda _: None)
        self.home = tempfile.TemporaryDirectory()
        self.folder = Path(self.home.name) / "spool"
        self.kept: list[tuple[int, datetime]] = []
        self.next = 0
        self.spool = opened(self.folder, quota_bytes=MIB)

    expiries = st.integers(1, 4).map(lambda days: MONDAY + timedelta(days=days))

    @rule(expiries=st.lists(expiries, min_size=1, max_size=4), rows=st.sampled_from([1, 50]))
    def append(self, expiries: list[datetime], rows: int) -> None:
        """A group that is answered."""
        group = [record(self.next + i, expiry, rows=rows) for i, expiry in enumerate(expiries)]
        self.spool.append(group)
        self.kept += [(self.next + i, expiry) for i, expiry in enumerate(expiries)]
        self.next += len(group)

    @rule()
    def refused(self) -> None:
        """A group that finds no room."""
        self.spool.quota_bytes = self.spool.size_bytes
        with pytest.raises(SpoolFull):
            self.spool.append([record(self.next, MONDAY + timedelta(days=9))])
        self.spool.quota_bytes = MIB

    @rule(end=st.sampled_from(["clean", "killed"]))
    def restart(self, end: str) -> None:
        """A new process, after a clean end or none."""
        if end == "clean":
            self.spool.close()
        self.spool = opened(self.folder, quota_bytes=MIB)

    @rule(expiry=expiries, share=st.floats(0, 1, exclude_max=True))
    def crash_while_appending(self, expiry: datetime, share: float) -> None:
        """The process ends in the middle of a group that is never answered."""
        before = {path: path.stat().st_size for path in self.folder.iterdir()}
        self.spool.append([record(self.next, expiry)])
        self.next += 1
        for path in self.folder.iterdir():
            old, new = before.get(path, 0), path.stat().st_size
            if new > old:
                os.truncate(path, old + int((new - old) * share))
        self.spool = opened(self.folder, quota_bytes=MIB)

    @rule(moment=expiries)
    def forget(self, moment: datetime) -> None:
        """Windows were closed."""
        self.spool.forget(moment)
        self.kept = [(n, expiry) for n, expiry in self.kept if expiry > moment]

    @invariant()
    def is_what_was_kept(self) -> None:
        """The spool is the list."""
        found = [(number(one), one.expiry) for one in self.spool.replay()]
        assert found == self.kept
        stored = [path.stat().st_size for path in self.folder.iterdir()]
        assert sum(stored) <= self.spool.size_bytes <= sum(size + 4096 for size in stored)
        assert self.spool.damaged == 0

    def teardown(self) -> None:
        """Nothing is left behind."""
        if hasattr(self, "spool"):
            self.spool.close()
            self.home.cleanup()
            self.patch.undo()


SpoolModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestSpoolModel = pytest.mark.slow(SpoolModel.TestCase)
