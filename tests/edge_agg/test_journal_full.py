"""Promise A10 for the journal: on a full or read-only disk it changes nothing, stays valid, and recovers alone.

At every write of a workload in turn there is no room: SQLite is told so by its file system, and (where mounting is
allowed) by a small tmpfs. Not shown here: that the agent takes no input meanwhile.
"""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from edge_agg.contract.plan import PlanHash
from edge_agg.contract.release import Charge
from edge_agg.errors import JournalFailed, JournalFull
from edge_agg.journal import Counted, Journal, Position, ballast, rim
from edge_agg.privacy.ledger import Entry
from tests.disk import Disk, DiskVfs
from tests.edge_agg.test_journal import seal
from tests.fakes import MONDAY, WEEK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLAN = PlanHash(b"p" * 32)
CHARGE = Charge(rho=Fraction(1, 2**40))
WINDOWS = 4


def acts(journal: Journal) -> list[tuple[str, Callable[[], object]]]:
    """What the agent does with a few windows, one transaction an act."""
    done: list[tuple[str, Callable[[], object]]] = []
    for i in range(WINDOWS):
        start = MONDAY + i * WEEK
        entry = Entry(window_start=start, charge=CHARGE)
        units = Counted(period=MONDAY, units=[f"unit-{n}" for n in range(i, i + 40)])
        at = Position(source="files", path=f"part-{i}", size=1, mtime_ns=1, reach=start)
        done += [
            ("charge", partial(charge, journal, entry, units)),
            ("seal", partial(seal, journal, start, PLAN, size=6000, positions=[at])),
            ("note", partial(journal.note, [at], {"late": 1})),
            ("clock", partial(journal.note_clock, start)),
        ]
        if i % 2:
            done.append(("settle", partial(journal.settle, acked=[i, i + 1], parked=[])))
    return done


def charge(journal: Journal, entry: Entry, counted: Counted) -> None:
    """T1."""
    journal.charge(account="people", plan_hash=PLAN, name="p", text="{}", entry=entry, counted=counted)


TABLES = ["charge", "plan", "participation", "release", "part", "local_count", "clock"]


def contents(journal: Journal) -> list[list[object]]:
    """All that the journal says, the books it keeps in memory included."""
    rows = [list(journal._file.db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")) for table in TABLES]
    return [*rows, [journal.cumulative("people")]]


@contextmanager
def on_disk(tmp_path: Path, name: str) -> Iterator[tuple[Journal, Disk]]:
    """A journal on a disk that can be full."""
    disk = Disk(tmp_path / name, tmp_path / f"{name}-kept")
    vfs = DiskVfs(disk)
    journal = Journal.open(tmp_path / name, "node", now=MONDAY)
    try:
        yield journal, disk
    finally:
        disk.on_write = lambda: None
        journal.close()
        vfs.unregister()


def goes_wrong(tmp_path: Path, *, full_from: int, is_room_in_ballast: bool) -> str | None:
    """Work with no room from some write on, until the first refusal; says what broke a promise."""
    with on_disk(tmp_path, f"full-{full_from}-{is_room_in_ballast}") as (journal, disk):
        left = full_from

        def full() -> None:
            nonlocal left
            left -= 1
            if left < 0 and (journal.has_ballast or not is_room_in_ballast):
                raise apsw.FullError

        disk.on_write = full
        for name, act in acts(journal):
            before = contents(journal)
            try:
                act()
            except JournalFull:
                if contents(journal) != before:
                    return f"{name} was refused and left something"
                if is_room_in_ballast and name in {"seal", "settle"}:
                    return f"{name} did not go through, though there was a ballast"
                left = 10**9
                if not journal.restore_ballast():
                    return "the ballast was not made again"
                act()
            except JournalFailed:
                return f"{name} ended the journal"
        found = contents(journal)
    again = Journal.open(tmp_path / f"full-{full_from}-{is_room_in_ballast}", "node", now=MONDAY)
    kept = contents(again) == found
    again.close()
    if not kept:
        return "a restart found something else"
    return None if len(found[3]) == len(found[0]) == WINDOWS else "not every window was charged and sealed once"


def writes_of_the_workload(tmp_path: Path) -> int:
    """How many writes and syncs it takes."""
    with on_disk(tmp_path, "counted") as (journal, disk):
        n = 0

        def count() -> None:
            nonlocal n
            n += 1

        disk.on_write = count
        for _, act in acts(journal):
            act()
    return n


def what_goes_wrong(tmp_path: Path, *, step: int) -> set[str]:
    """Over every write (or every few) that may be the first without room."""
    writes = writes_of_the_workload(tmp_path)
    found = {
        goes_wrong(tmp_path, full_from=at, is_room_in_ballast=room)
        for at in range(0, writes, step)
        for room in (True, False)
    }
    return {wrong for wrong in found if wrong is not None}


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    """Guarantee (A3, A10): refused as JournalFull, nothing changed, then all of it goes through; seals need no room."""
    assert what_goes_wrong(tmp_path, step=1) == set()


def _all_errors_are_for_good(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rim, "_is_full", lambda error: False)


def _no_ballast_for_seals(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ballast.Ballast, "give_up", lambda self: False)


def _booked_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    real = Journal.charge

    def early(self: Journal, *, account: str, entry: Entry, **rest: object) -> None:
        self.book(account).total += entry.charge
        real(self, account=account, entry=entry, **rest)  # type: ignore[arg-type]
        self.book(account).total = Charge(rho=self.book(account).total.rho - entry.charge.rho)

    patch.setattr(Journal, "charge", early)


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [_all_errors_are_for_good, _no_ballast_for_seals, _booked_before_the_commit])
def test_mutants_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Mutants: a full disk ends the journal; the ballast is kept; the books in memory run ahead of the commits."""
    with monkeypatch.context() as patch:
        mutate(patch)
        assert what_goes_wrong(tmp_path, step=7) != set()


def test_no_window_is_begun_without_the_ballast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what is charged can be sealed: without room for that nothing is charged, and nothing may be drawn."""
    journal = Journal.open(tmp_path / "state", "node", now=MONDAY)
    (tmp_path / "state" / "ballast").unlink()
    assert not journal.has_ballast
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _no_room)
        with pytest.raises(JournalFull):
            acts(journal)[0][1]()
        assert journal.attempts(PLAN, MONDAY) == 0
        assert not journal.restore_ballast()
    acts(journal)[0][1]()
    assert journal.has_ballast
    journal.close()


def _no_room(*_: object) -> None:
    raise OSError(28, "no room")


def test_the_ballast_is_really_there(tmp_path: Path) -> None:
    """Guarantee: its bytes are allocated, private, and counted as there only while all of them are."""
    journal = Journal.open(tmp_path / "state", "node", now=MONDAY)
    path = tmp_path / "state" / "ballast"
    assert path.stat().st_blocks * 512 >= ballast.BALLAST_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    with path.open("wb") as sparse:
        sparse.truncate(ballast.BALLAST_BYTES)
    assert not journal.has_ballast
    assert journal.restore_ballast()
    assert path.stat().st_blocks * 512 >= ballast.BALLAST_BYTES
    journal.close()


@pytest.mark.parametrize(
    ("code", "kind"), [(5, JournalFailed), (28, JournalFull), (30, JournalFull), (122, JournalFull)]
)
def test_errors_of_the_disk_are_told_apart(code: int, kind: type[JournalFailed], tmp_path: Path) -> None:
    """Guarantee: no space, read-only and quota can be waited for; an I/O error cannot."""
    with pytest.raises(JournalFailed) as caught, rim.as_journal_failed(tmp_path):
        raise OSError(code, "N7777777")
    assert type(caught.value) is kind
    assert "N7777777" not in str(caught.value)


# A real one


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False).returncode
    except FileNotFoundError:
        done = 1
    if done:
        pytest.skip("mounting is not allowed here; the tests above need none")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """Use up every byte."""
    waste = place / "waste"
    with waste.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return waste
    raise AssertionError("the disk has no end")


def test_a_window_that_was_charged_is_sealed_on_a_full_disk(small: Path) -> None:
    """Guarantee (A10): T2 and T3 go through in the ballast's room, T1 waits, and all goes on when there is room."""
    journal = Journal.open(small / "state", "node", now=MONDAY)
    todo = acts(journal)
    todo[0][1]()
    waste = fill(small)
    todo[1][1]()
    assert not journal.has_ballast
    journal.settle(acked=[1], parked=[])
    waste.unlink()
    waste = fill(small)
    before = contents(journal)
    for name, act in todo[4:8]:
        if name in {"charge", "note"}:
            with pytest.raises(JournalFull):
                act()
    with pytest.raises(JournalFull):
        seal(journal, MONDAY + 9 * WEEK, PLAN, size=9 << 20)
    assert contents(journal) == before
    waste.unlink()
    assert journal.restore_ballast()
    for _, act in todo[4:]:
        act()
    assert (journal.unacked(), journal.attempts(PLAN, MONDAY + WEEK)) == (0, 1)
    journal.close()


def test_an_agent_that_starts_on_a_full_disk_gives_up_its_ballast(small: Path) -> None:
    """Guarantee: the journal opens, without ballast, and says so; it is not finished by it."""
    journal = Journal.open(small / "state", "node", now=MONDAY)
    acts(journal)[0][1]()
    journal.close()
    waste = fill(small)
    journal = Journal.open(small / "state", "node", now=MONDAY)
    acts(journal)[1][1]()
    with pytest.raises(JournalFull):
        acts(journal)[4][1]()
    waste.unlink()
    acts(journal)[4][1]()
    journal.close()


def test_a_disk_that_is_read_only_is_waited_for(small: Path, tmp_path: Path) -> None:
    """Guarantee (A10): opened read-only, the journal says JournalFull and changes nothing."""
    journal = Journal.open(small / "state", "node", now=MONDAY)
    acts(journal)[0][1]()
    found = contents(journal)
    journal.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    with pytest.raises(JournalFull):
        Journal.open(small / "state", "node", now=MONDAY)
    subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
    journal = Journal.open(small / "state", "node", now=MONDAY)
    assert contents(journal) == found
    journal.close()


class LeavesOpen:
    """Stands in for `os` in the lock: it closes nothing."""

    def __init__(self) -> None:
        self.left: list[int] = []

    def __getattr__(self, name: str) -> Any:
        """All else is as it was."""
        return self.left.append if name == "close" else getattr(os, name)


@pytest.mark.parametrize("mutant", [None, LeavesOpen()])
def test_a_full_disk_at_the_lock_does_not_lock_the_agent_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: LeavesOpen | None
) -> None:
    """Guarantee (A10): where there is no room for the process id the ballast is given up, and the lock is free then.

    Mutant: what was opened for the lock stays open.
    """
    Journal.open(tmp_path, "node", now=MONDAY).close()
    honest = os.write

    def write(descriptor: int, text: bytes) -> int:
        if (tmp_path / "ballast").exists():
            raise OSError(errno.ENOSPC, "")
        return honest(descriptor, text)

    monkeypatch.setattr(os, "write", write)
    if mutant is None:
        Journal.open(tmp_path, "node", now=MONDAY).close()
        return
    monkeypatch.setattr("edge_agg.lock.os", mutant)
    with pytest.raises(JournalFailed, match="another agent"):
        Journal.open(tmp_path, "node", now=MONDAY)
    for descriptor in mutant.left:
        os.close(descriptor)
