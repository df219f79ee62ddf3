"""Promise A2: a power cut at any write loses no sealed or acked release and leaves no draw uncharged.

300 cuts at random writes and syncs of a workload of charges, draws, seals and settlements, each leaving a random subset
of the sectors that were not synced. Not proved here: that the disk keeps what it says it synced.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

import apsw
import pytest

from edge_agg.contract.plan import PlanHash
from edge_agg.contract.release import Charge, Sealed, Status
from edge_agg.errors import JournalFailed
from edge_agg.journal import Counted, Journal, Position
from edge_agg.journal import file as room
from edge_agg.privacy.ledger import Entry
from tests.disk import Disk, DiskVfs
from tests.edge_agg.test_journal import version_1
from tests.fakes import MONDAY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLANS = [PlanHash(b"p" * 32), PlanHash(b"q" * 32)]
HOUR = timedelta(hours=1)
CHARGE = Charge(rho=Fraction(1, 2**40))
FAR = datetime.max.replace(tzinfo=MONDAY.tzinfo)


@dataclass(slots=True)
class Told:
    """What the journal has said is done: all of it must be there after a cut."""

    draws: Counter[tuple[PlanHash, datetime]] = field(default_factory=Counter)
    offered: dict[int, Sealed] = field(default_factory=dict)
    """What was given to be sealed, answered or not."""
    sealed: int = 0
    acked: set[int] = field(default_factory=set)
    clock: datetime | None = None


def work(journal: Journal, told: Told, chance: random.Random, windows: range) -> None:
    """Charge, draw, seal and settle, as the agent does."""
    for i in windows:
        start = MONDAY + i * HOUR
        for plan in PLANS:
            for _ in range(chance.choice([1, 1, 1, 2])):  # twice: the first draw was lost
                units = [f"unit-{chance.randrange(40)}" for _ in range(chance.randrange(20))]
                counted = Counted(period=MONDAY + i // 6 * 6 * HOUR, units=set(units))
                entry = Entry(window_start=start, charge=CHARGE)
                journal.charge(account="people", plan_hash=plan, name="p", text="{}", entry=entry, counted=counted)
                told.draws[plan, start] += 1
            seal(journal, told, chance, plan, start)
        if chance.random() < 0.4:
            waiting = [one.seq for one in journal.waiting(chance.choice([1, 3, 20]))]
            journal.settle(acked=waiting, parked=[])
            told.acked.update(waiting)
        if chance.random() < 0.2:
            journal.note_clock(start)
            told.clock = start


def seal(journal: Journal, told: Told, chance: random.Random, plan: PlanHash, start: datetime) -> None:
    """T2, of random bytes, with a position and a count that are one commit with it."""
    link = journal.next_link()
    header = chance.randbytes(200) + link.prev_hash
    told.offered[link.seq] = Sealed(
        header=header, payload=chance.randbytes(chance.choice([50, 3000, 20000])), hash=hashlib.sha256(header).digest()
    )
    at = Position(source="tail", path=f"file-{link.seq}", begin=0, size=link.seq, mtime_ns=0, reach=start)
    journal.seal(
        seq=link.seq,
        plan_hash=plan,
        window=(start, start + HOUR),
        status=Status.RELEASED,
        sealed=told.offered[link.seq],
        positions=[at],
        local_counts={"sealed": 1},
    )
    told.sealed = link.seq


def is_kept(left: Path, told: Told, chance: random.Random) -> bool:
    """Whether everything that was said to be done is there, nothing is there by half, and the agent can go on."""
    try:
        return _is_kept(left, told, chance)
    except (JournalFailed, apsw.Error):
        return False


def _is_kept(left: Path, told: Told, chance: random.Random) -> bool:
    journal = Journal.open(left, "node", now=MONDAY)
    db = journal._file.db
    rows = list(db.execute("SELECT seq, header, payload, hash, state FROM release ORDER BY seq"))
    before = [b"", *(hash_ for _, _, _, hash_, _ in rows)]
    good = [
        db.execute("PRAGMA integrity_check").get == "ok",
        all(journal.attempts(plan, start) >= draws for (plan, start), draws in told.draws.items()),
        told.sealed <= len(rows) <= told.sealed + 1,
        [seq for seq, *_ in rows] == list(range(1, len(rows) + 1)),
        all(header.endswith(prev) for (_, header, *_), prev in zip(rows, before, strict=False)),
        journal.local_counts().get("sealed", 0) == len(rows) == len(journal.positions_within("tail", [FAR])),
        told.clock is None or (journal.last_seen or MONDAY) >= told.clock,
    ]
    for seq, header, payload, hash_, state in rows:
        want = told.offered[seq]
        good += [(header, hash_) == (want.header, want.hash), payload == (None if state == "acked" else want.payload)]
        good += [state == "acked" or seq not in told.acked]
    if all(good):
        after = Told(offered=dict(told.offered))
        work(journal, after, chance, range(10_000, 10_002))
        good += [after.sealed == len(rows) + 2 * len(PLANS)]
    journal.close()
    return all(good)


def losses(folder: Path, scratch: Path, disk: Disk, *, cuts: int, seed: int) -> int:
    """Work until the power was cut so often; how many cuts lost something."""
    chance = random.Random(seed)
    told, lost, n = Told(), 0, 0

    def maybe_cut() -> None:
        nonlocal lost, n
        if n < cuts and chance.random() < 0.1:
            n += 1
            disk.on_write = lambda: None
            left = disk.cut(scratch / f"left-{seed}-{n}", chance)
            lost += not is_kept(left, told, random.Random(n))
            disk.on_write = maybe_cut

    journal = Journal.open(folder, "node", now=MONDAY)
    disk.on_write = maybe_cut
    i = 0
    while n < cuts:
        work(journal, told, chance, range(i, i + 1))
        i += 1
    disk.on_write = lambda: None
    journal.close()
    return lost


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """A disk under the folder `state`, whose log is written back often."""
    disk = Disk(tmp_path / "state", tmp_path / "kept")
    vfs = DiskVfs(disk)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.setattr(room, "CHECKPOINT_PAGES", 40)
    yield disk
    vfs.unregister()


@pytest.mark.slow
def test_300_power_cuts_lose_nothing(tmp_path: Path, disk: Disk) -> None:
    """Guarantee (A2): whatever sectors were on the disk, T1, T2 and T3 are there or not at all."""
    assert losses(tmp_path / "state", tmp_path, disk, cuts=300, seed=7) == 0
    assert disk.syncs > 100


@pytest.mark.slow
def test_a_power_cut_in_the_middle_of_an_upgrade_leaves_one_version_or_the_other(tmp_path: Path, disk: Disk) -> None:
    """Guarantee (A3): cut at any write, an older journal still says every charge, and its upgrade is done again."""
    chance = random.Random(3)
    sealed = version_1(tmp_path / "state")
    disk.keep_all()
    lefts: list[Path] = []

    def cut() -> None:
        for _ in range(4):
            lefts.append(disk.cut(tmp_path / f"left-{len(lefts)}", chance))

    disk.on_write = cut
    Journal.open(tmp_path / "state", "node", now=MONDAY).close()
    disk.on_write = lambda: None
    assert len(lefts) > 20
    for left in lefts:
        journal = Journal.open(left, "node", now=MONDAY)
        assert len(journal.entries("people")) == 2
        assert [one.sealed for one in journal.waiting(9)] == [sealed]
        assert journal._file.db.execute("PRAGMA integrity_check").get == "ok"
        journal.close()


def _normal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only write-backs are synced."""
    real = room.File.to_write.__func__  # type: ignore[attr-defined]

    def to_write(cls: type[room.File], folder: Path) -> room.File:
        file: room.File = real(cls, folder)
        file.db.pragma("synchronous", "NORMAL")
        return file

    monkeypatch.setattr(room.File, "to_write", classmethod(to_write))


def _no_sync_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever synced."""
    real = room.File.to_write.__func__  # type: ignore[attr-defined]

    def to_write(cls: type[room.File], folder: Path) -> room.File:
        file: room.File = real(cls, folder)
        file.db.pragma("synchronous", "OFF")
        return file

    monkeypatch.setattr(room.File, "to_write", classmethod(to_write))


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [_normal, _no_sync_of_the_log])
def test_mutants_that_sync_less_are_caught(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Mutants: `synchronous=NORMAL`, which survives any kill; `synchronous=OFF`."""
    with monkeypatch.context() as patch:
        mutate(patch)
        assert losses(tmp_path / "state", tmp_path, disk, cuts=40, seed=8) > 10
