"""What a power cut leaves of the lake: every release that the landing let go of, once and whole.

A cut keeps of a folder the names it had at its last sync, and of a file the bytes it had at its own; of what changed
since, any part: a name or none, the bytes, some of them, or none. Not proved here: SQLite's own files (test_landing).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from cloud_collector import compaction, deltalog, failpoint, folderstore, upkeep
from cloud_collector.errors import StoreFailed
from cloud_collector.lake import Lake
from cloud_collector.landing import Landing, store_of
from cloud_collector.rollup import Rollups
from cloud_collector.sealer import Sealer
from cloud_collector.upkeep import Upkeep
from cloud_collector.verify import Stores, differences
from tests.cloud_collector.conftest import MONDAY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cloud_collector.conftest import Made, Maker


KEPT = timedelta(days=42)
"""Six windows: the first is retired with the eighth, the second with the ninth."""


class Cut(BaseException):
    """The power fails here."""


class Disk:
    """Knows what of a folder is surely on the disk, and what may be."""

    def __init__(self, root: Path) -> None:
        self.root, self.fsync = root, os.fsync
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}

    def sync(self, fd: int) -> None:
        """In place of `os.fsync`."""
        self.fsync(fd)
        inode = os.fstat(fd).st_ino
        path = Path(f"/proc/self/fd/{fd}").resolve()
        if path.is_dir():
            self.names[inode] = {one.name: one.stat().st_ino for one in path.iterdir()}
        elif path.suffix != ".sqlite":
            self.bytes[inode] = path.read_bytes()

    def after_a_cut(self, target: Path, chance: random.Random) -> None:
        """Write what may be left, by chance, to another folder."""
        self._folder(self.root, target, chance)

    def _folder(self, source: Path, target: Path, chance: random.Random) -> None:
        target.mkdir()
        sure = self.names.get(source.stat().st_ino, {})
        now = {one.name: one.stat().st_ino for one in source.iterdir()}
        for name in sorted({*sure, *now}):
            if sure.get(name) != now.get(name) and chance.random() < 0.5:
                continue
            if name not in now:  # removed since: it may be back
                if sure[name] in self.bytes:
                    (target / name).write_bytes(self.bytes[sure[name]])
            elif (source / name).is_dir():
                self._folder(source / name, target / name, chance)
            else:
                (target / name).write_bytes(self._bytes(source / name, chance))

    def _bytes(self, file: Path, chance: random.Random) -> bytes:
        now, sure = file.read_bytes(), self.bytes.get(file.stat().st_ino)
        if now == sure:
            return now
        if sure is not None and chance.random() < 0.5:
            return sure
        return now[: chance.randrange(len(now) + 1)] if chance.random() < 0.7 else now


class Collector:
    """A landing, a lake, roll-ups and their sealer over one folder."""

    def __init__(self, data: Path, maker: Maker) -> None:
        self.maker, self.landing, self.lake = maker, Landing(data / "landing.sqlite"), Lake(data / "lake")
        self.rollups = Rollups(data / "rollups.sqlite")
        self.sealer = Sealer(self.landing, self.lake, maker.plan_of, self.rollups)

    def land(self, *made: Made) -> None:
        """As the service does."""
        asyncio.run(self.landing.land([one.pair for one in made]))

    def keep_up(self, n: int = 8) -> None:
        """Retire and compact, though the sealer is first whenever it may be, and remove leftovers at once."""
        Upkeep(
            lake=self.lake,
            rollups=self.rollups,
            alone=self.sealed_in_between,
            plans=lambda: [(self.maker.plan, self.maker.hash)],
            retention=lambda _: KEPT,
        ).run(MONDAY + n * self.maker.plan.every)

    def go_on(self, n: int) -> None:
        """Seal and keep up; every other time the sealer is in the middle of the compaction."""
        if n % 2 or len(self.lake.files(self.maker.plan, self.maker.hash)) < compaction.MANY_FILES:
            self.sealer.seal()
        self.keep_up(n)

    def differences(self) -> list[str]:
        """What does not fit."""
        data = self.rollups.path.parent
        stores = Stores(
            landing=store_of(data / "landing.sqlite", make=False),
            lake=self.lake,
            rollups=self.rollups.path,
            turns=data / "sealer.lock",
            plans=[(self.maker.plan, self.maker.hash)],
        )
        return list(differences(stores))

    @contextlib.contextmanager
    def sealed_in_between(self) -> Iterator[None]:
        """Upkeep's turn comes after the sealer's."""
        self.sealer.seal()
        yield

    def held(self) -> list[tuple[str, int, bytes]]:
        """Every release of the lake, by digest."""
        found = self.lake.stored(self.maker.plan, self.maker.hash)
        return sorted((one.node, one.window_start_us, one.digest) for one in found)

    def close(self) -> None:
        """Close both files."""
        self.landing.close()
        self.rollups.close()


@contextlib.contextmanager
def collecting(data: Path, maker: Maker) -> Iterator[Collector]:
    with contextlib.closing(Collector(data, maker)) as one:
        yield one


def truth(tmp_path: Path, maker: Maker, made: list[Made]) -> list[tuple[str, int, bytes]]:
    """What the lake should hold in the end: the first two windows are retired by then."""
    with collecting(tmp_path / "truth", maker) as one:
        one.land(*made[2:])
        one.sealer.seal()
        return one.held()


def survives_cuts(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, *, point: str, hit: int, cuts: int
) -> bool:
    """Cut at the n-th pass of a point; whatever is left, a new collector seals the rest, and all is there once."""
    made = [maker.make(seed=i, window=i) for i in range(9)]
    wanted = truth(tmp_path, maker, made)
    data = tmp_path / "data"
    disk = Disk(data)
    passed = 0

    def armed(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed == hit:
            raise Cut

    monkeypatch.setattr(os, "fsync", disk.sync)
    monkeypatch.setattr(deltalog, "CHECKPOINT_EVERY", 3)
    monkeypatch.setattr(compaction, "MANY_FILES", 3)
    monkeypatch.setattr(upkeep, "GRACE_S", -1.0)
    monkeypatch.setattr(failpoint, "armed", armed)
    with collecting(data, maker) as one:
        try:
            for n, release in enumerate(made):
                one.land(release)
                one.go_on(n)
        except Cut:
            pass
        else:
            raise AssertionError(f"{point} was not passed {hit} times")
        monkeypatch.setattr(failpoint, "armed", None)
        kept = tmp_path / "sqlite"
        kept.mkdir()
        for name in ("landing.sqlite", "rollups.sqlite"):  # as at their last commit, which was synced
            source = apsw.Connection(str(data / name), flags=apsw.SQLITE_OPEN_READONLY)
            target = apsw.Connection(str(kept / name))
            with target.backup("main", source, "main") as copy:
                copy.step()
            source.close()
            target.close()
        whole = True
        for seed in range(cuts):
            left = tmp_path / f"left-{seed}"
            disk.after_a_cut(left, random.Random(seed))
            for name in ("landing.sqlite", "rollups.sqlite"):
                for old in left.glob(f"{name}*"):
                    old.unlink()
                shutil.copy(kept / name, left / name)
            whole &= _goes_on(left, maker, made, wanted)
            shutil.rmtree(left)
    return whole


def _goes_on(data: Path, maker: Maker, made: list[Made], wanted: list[tuple[str, int, bytes]]) -> bool:
    try:
        with collecting(data, maker) as one:
            one.land(*made)
            one.sealer.seal()
            one.keep_up()
            folder = Path(one.lake.location(maker.plan, maker.hash))
            files = {Path(uri).name for uri in DeltaTable(folder).file_uris()}
            rows = sum(pq.read_metadata(folder / name).num_rows for name in files)
            return one.held() == wanted and rows == 10 * len(wanted) and one.differences() == []
    except (StoreFailed, OSError, ValueError):
        return False
    except Exception as error:
        if type(error).__module__.startswith(("deltalake", "_internal")):
            return False
        raise


POINTS = {
    "file_written": 4,
    "file_synced": 4,
    "log_written": 4,
    "log_linked": 4,
    "log_synced": 4,
    "rollup_uncommitted": 4,
    "rollup_committed": 4,
    "mark_uncommitted": 4,
    "mark_committed": 4,
    "checkpoint_made": 2,
    "checkpoint_linked": 2,
    "checkpoint_named": 2,
    "log_cleared": 1,
    "compaction_written": 2,
    "compaction_committed": 2,
    "retirement_written": 2,
    "retirement_committed": 2,
    "rollup_retired": 8,
    "leftover_removed": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_power_cut_loses_and_doubles_nothing(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Guarantee: at every named instant, sixteen ways in which what was not synced may be left."""
    assert survives_cuts(tmp_path, maker, monkeypatch, point=point, hit=POINTS[point], cuts=16)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["log_synced", "mark_committed", "retirement_committed"])
def test_mutant_no_sync_at_all_is_caught(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setattr(folderstore, "_fsync", lambda fd: None)
    assert not survives_cuts(tmp_path, maker, monkeypatch, point=point, hit=POINTS[point], cuts=16)


@pytest.mark.slow
def test_mutant_a_retirement_that_is_not_noted_is_caught(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is gone would be missing."""
    commit = deltalog.DeltaLog.commit

    def unnoted(self: deltalog.DeltaLog, *given: Any, transactions: Any = None, **more: Any) -> None:
        commit(self, *given, transactions=None if more["operation"] == "DELETE" else transactions, **more)

    monkeypatch.setattr(deltalog.DeltaLog, "commit", unnoted)
    assert not survives_cuts(tmp_path, maker, monkeypatch, point="rollup_retired", hit=8, cuts=2)


@pytest.mark.slow
def test_mutant_a_commit_that_is_synced_after_its_name_appeared_is_caught(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the library would do it: a cut in between leaves a log that is torn, or names a torn file."""
    written = folderstore._fsync

    def late(fd: int) -> None:
        if not Path(f"/proc/self/fd/{fd}").resolve().name.endswith((".tmp", ".parquet")):
            written(fd)

    monkeypatch.setattr(folderstore, "_fsync", late)
    assert not survives_cuts(tmp_path, maker, monkeypatch, point="log_linked", hit=4, cuts=16)


def test_a_cut_at_the_log_s_name_in_short(tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The known hole, in the fast tests: between the commit and its sync."""
    assert survives_cuts(tmp_path, maker, monkeypatch, point="log_linked", hit=2, cuts=4)
