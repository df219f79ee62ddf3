"""The journal: three transactions, a chain without gaps, and nothing of it said out loud."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import traceback
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Self

import apsw
import pytest

from edge_agg import failpoint
from edge_agg.contract.codec import to_us
from edge_agg.contract.plan import PlanHash
from edge_agg.contract.refusal import Refusal
from edge_agg.contract.release import Charge, Sealed, Status
from edge_agg.errors import BudgetExhausted, JournalFailed
from edge_agg.journal import SCHEMA_VERSION, Counted, Journal, Position, schema
from edge_agg.journal import file as room
from edge_agg.lock import holder
from edge_agg.privacy.ledger import Budget, Entry, check_room
from tests.fakes import DAY, MONDAY, WEEK

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

PLAN = PlanHash(b"p" * 32)
OTHER = PlanHash(b"q" * 32)
CHARGE = Charge(rho=Fraction(1, 2**40), delta=Fraction(3, 2**80))


class Crash(Exception):
    """The process ends here."""


def crash_at(point: str) -> None:
    """End the process, so to say, at a failpoint."""

    def armed(name: str) -> None:
        if name == point:
            raise Crash

    failpoint.armed = armed


def charge(
    of: Journal,
    start: datetime = MONDAY,
    plan: PlanHash = PLAN,
    account: str = "people",
    *,
    through: datetime | None = None,
    counted: Counted | None = None,
) -> None:
    """T1."""
    entry = Entry(window_start=start, charge=CHARGE, through=through)
    of.charge(account=account, plan_hash=plan, name="plan", text="{}", entry=entry, counted=counted)


def seal(of: Journal, start: datetime = MONDAY, plan: PlanHash = PLAN, *, size: int = 10, **more: Any) -> Sealed:
    """T2, of any bytes."""
    link = of.next_link()
    header = f"header {link.seq} after {link.prev_hash.hex()}".encode()
    sealed = Sealed(header=header, payload=b"x" * size, hash=hashlib.sha256(header).digest())
    of.seal(
        seq=link.seq,
        plan_hash=plan,
        window=(start, start + WEEK),
        status=more.get("status", Status.RELEASED),
        sealed=sealed,
        positions=more.get("positions", ()),
        local_counts=more.get("local_counts", {}),
    )
    return sealed


def position(path: str, latest: datetime, source: str = "files") -> Position:
    """A part that was read."""
    return Position(source=source, path=path, size=10, mtime_ns=5, reach=latest)


def reopened(of: Journal, folder: Path) -> Journal:
    """The same folder after a restart."""
    of.close()
    return Journal.open(folder, "node", now=MONDAY + DAY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the `journal` fixture."""
    return tmp_path / "state"


# T1


def test_every_attempt_is_charged_exactly(journal: Journal) -> None:
    """Guarantee: one charge row an attempt, exact rationals, added by window and by account."""
    charge(journal)
    charge(journal)
    charge(journal, MONDAY + WEEK, OTHER)
    charge(journal, MONDAY, OTHER, account="others")
    assert journal.attempts(PLAN, MONDAY) == 2
    assert journal.window_charge(PLAN, MONDAY) == CHARGE + CHARGE
    assert journal.cumulative("people") == CHARGE + CHARGE + CHARGE
    assert [entry.window_start for entry in journal.entries("people")] == [MONDAY, MONDAY, MONDAY + WEEK]
    assert journal.cumulative("others") == journal.window_charge(OTHER, MONDAY) == CHARGE
    assert journal.cumulative("nobody") == journal.window_charge(PLAN, MONDAY + WEEK) == Charge()


@pytest.mark.parametrize(("point", "charged"), [("charge_uncommitted", 0), ("charge_committed", 1)])
def test_a_charge_is_there_when_it_is_committed(journal: Journal, folder: Path, point: str, charged: int) -> None:
    """Guarantee: T1 is all or nothing."""
    crash_at(point)
    with pytest.raises(Crash):
        charge(journal)
    failpoint.armed = None
    again = reopened(journal, folder)
    assert again.attempts(PLAN, MONDAY) == charged
    again.close()


# T2


def test_the_chain_has_no_gaps_and_links_by_hash(journal: Journal, folder: Path) -> None:
    """Guarantee: seq counts from 1, prev_hash is the sha256 of the header before, also over a restart."""
    assert (journal.next_link().seq, journal.next_link().prev_hash) == (1, b"")
    before = b""
    for i in range(3):
        link = journal.next_link()
        assert (link.seq, link.prev_hash, link.incarnation) == (i + 1, before, journal.incarnation)
        before = hashlib.sha256(seal(journal, MONDAY + i * WEEK).header).digest()
    incarnation, secret = journal.incarnation, journal.secret
    again = reopened(journal, folder)
    assert (again.next_link().seq, again.next_link().prev_hash) == (4, before)
    assert (again.incarnation, again.secret, again.created) == (incarnation, secret, MONDAY)
    assert (len(incarnation), len(secret)) == (32, 32)
    again.close()


def test_acked_releases_stay_in_the_chain(journal: Journal) -> None:
    """Guarantee: what was acked is still the head that the next release links to."""
    sealed = seal(journal)
    journal.settle(acked=[1], parked=[])
    assert journal.next_link().prev_hash == sealed.hash


def test_a_window_is_sealed_once(journal: Journal) -> None:
    """Guarantee: no second release of a window, and no second release at a place in the chain, can be stored."""
    seal(journal)
    with pytest.raises(JournalFailed):
        seal(journal)
    with pytest.raises(JournalFailed):
        journal.seal(
            seq=1,
            plan_hash=PLAN,
            window=(MONDAY + WEEK, MONDAY + 2 * WEEK),
            status=Status.LOST,
            sealed=Sealed(header=b"h", payload=b"", hash=b"h"),
            positions=(),
            local_counts={},
        )


@pytest.mark.parametrize(("point", "sealed"), [("seal_uncommitted", 0), ("seal_committed", 1)])
def test_release_position_and_counts_are_one_commit(journal: Journal, folder: Path, point: str, sealed: int) -> None:
    """Guarantee: T2 is all or nothing."""
    crash_at(point)
    with pytest.raises(Crash):
        seal(journal, positions=[position("a", MONDAY)], local_counts={"late": 2})
    failpoint.armed = None
    again = reopened(journal, folder)
    assert again.unacked() == sealed
    assert len(again.positions_within("files", [MONDAY + WEEK])) == sealed
    assert again.local_counts() == ({"late": 2} if sealed else {})
    assert again.closed_before(PLAN) == (MONDAY + WEEK if sealed else None)
    again.close()


def test_the_high_water_mark_is_the_plans_own(journal: Journal) -> None:
    """Guarantee: the end of the last sealed window, whatever its status, for each plan by itself."""
    seal(journal, MONDAY, status=Status.EXHAUSTED)
    seal(journal, MONDAY + WEEK, status=Status.LOST)
    assert (journal.closed_before(PLAN), journal.closed_before(OTHER)) == (MONDAY + 2 * WEEK, None)
    assert journal.statuses(PLAN) == {"exhausted": 1, "lost": 1}


def test_a_part_is_done_when_every_plan_has_closed_all_its_rows(journal: Journal) -> None:
    """Guarantee: a part is skipped only if its rows cannot reach beyond every plan's high-water mark."""
    journal.note([position("old", MONDAY + DAY), position("new", MONDAY + WEEK + DAY)], {})
    journal.note([position("elsewhere", MONDAY, source="others")], {})

    def done(*closed: datetime | None) -> list[str]:
        return [part.path for part in journal.positions_within("files", closed)]

    assert done(MONDAY + WEEK, MONDAY + 2 * WEEK) == ["old"]
    assert done(MONDAY + 2 * WEEK) == ["new", "old"]
    assert done(MONDAY) == done(MONDAY + WEEK, None) == done() == []


def test_a_part_is_known_by_its_last_state(journal: Journal) -> None:
    """A file that was written again takes the place of what it was."""
    journal.note([position("a", MONDAY)], {"late": 1, "none": 0})
    journal.note([position("a", MONDAY + WEEK)], {"late": 2})
    assert journal.positions_within("files", [MONDAY + DAY]) == []
    assert journal.local_counts() == {"late": 3}


def test_the_time_that_was_noted_last_outlives_the_process(journal: Journal, folder: Path) -> None:
    """Guarantee: as it was noted, also if it went back: what to make of it is the clock's business."""
    assert journal.last_seen is None
    for now in (MONDAY + WEEK, MONDAY):
        journal.note_clock(now)
        assert journal.last_seen == now
    again = reopened(journal, folder)
    assert again.last_seen == MONDAY
    again.close()


def test_when_a_plan_first_ran_outlives_the_process(journal: Journal, folder: Path) -> None:
    """Guarantee: each plan for itself; said anew where the clock had been wrong; the journal's own age stays."""
    assert journal.first_run(PLAN) is None
    journal.note_first_run(PLAN, MONDAY + DAY)
    journal.note_first_run(PLAN, MONDAY + WEEK)
    again = reopened(journal, folder)
    assert (again.first_run(PLAN), again.first_run(OTHER), again.created) == (MONDAY + WEEK, None, MONDAY)
    again.close()


def test_what_is_used_on_disk_goes_down_when_payloads_go(journal: Journal) -> None:
    """Guarantee: a backlog that was delivered counts no longer, though the file keeps its length."""
    journal.note([position("a", MONDAY)], {})
    least = journal.bytes_used
    for i in range(20):
        seal(journal, MONDAY + i * WEEK, size=100_000)
    assert journal.bytes_used > least + 2_000_000
    journal.settle(acked=list(range(1, 21)), parked=[])
    assert journal.bytes_used < least + 200_000


def test_the_books_in_memory_are_those_on_disk(journal: Journal, folder: Path) -> None:
    """Guarantee (A3): a commit adds to both, a failed one to neither, and a restart finds the same."""
    charge(journal, MONDAY)
    limit = Budget(rho=CHARGE.rho * 3, delta=CHARGE.delta * 3, horizon=2 * WEEK)
    new = Entry(window_start=MONDAY + WEEK, charge=CHARGE)
    check_room(limit, journal.book("people"), new)
    crash_at("charge_uncommitted")
    with pytest.raises(Crash):
        charge(journal, MONDAY + WEEK)
    failpoint.armed = None
    assert journal.cumulative("people") == CHARGE
    charge(journal, MONDAY + WEEK)
    check_room(limit, journal.book("people"), new)
    charge(journal, MONDAY + WEEK, OTHER)
    for opened in (journal, reopened(journal, folder)):
        if opened is not journal:
            assert opened.cumulative("people") == CHARGE * 3
        with pytest.raises(BudgetExhausted):
            check_room(limit, opened.book("people"), new)
    opened.close()


# T3


def test_acked_payloads_go_and_parked_ones_stay(journal: Journal, folder: Path) -> None:
    """Guarantee: after the ack the payload is dropped; what was refused for good is kept, and why."""
    for i in range(3):
        seal(journal, MONDAY + i * WEEK)
    journal.settle(acked=[1], parked=[(2, Refusal.CONFLICT)])
    assert [w.seq for w in journal.waiting(10)] == [3]
    assert journal.unacked() == 1
    assert journal.oldest_waiting() == MONDAY + 3 * WEEK
    parked = journal.parked()
    assert [(p.seq, p.window_start, p.refusal) for p in parked] == [(2, MONDAY + WEEK, Refusal.CONFLICT)]
    look = apsw.Connection(str(folder / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    assert list(look.execute("SELECT seq, payload IS NULL, header IS NULL FROM release ORDER BY seq")) == [
        (1, 1, 0),
        (2, 0, 0),
        (3, 0, 0),
    ]
    look.close()


@pytest.mark.parametrize(("point", "left"), [("ack_uncommitted", 1), ("ack_committed", 0)])
def test_an_ack_is_there_when_it_is_committed(journal: Journal, folder: Path, point: str, left: int) -> None:
    """Guarantee: T3 is all or nothing."""
    seal(journal)
    crash_at(point)
    with pytest.raises(Crash):
        journal.settle(acked=[1], parked=[])
    failpoint.armed = None
    again = reopened(journal, folder)
    assert again.unacked() == left
    again.close()


def test_what_waits_comes_oldest_first_and_as_it_was_sealed(journal: Journal) -> None:
    """Guarantee: by seq, no more than the limits, the first whatever its size, without what is to be skipped."""
    sealed = [seal(journal, MONDAY + i * WEEK, size=100) for i in range(5)]
    assert [w.sealed for w in journal.waiting(10)] == sealed
    assert [w.seq for w in journal.waiting(2)] == [1, 2]
    assert [w.seq for w in journal.waiting(2, skip={1, 3})] == [2, 4]
    assert [w.seq for w in journal.waiting(10, max_bytes=1)] == [1]
    assert [w.seq for w in journal.waiting(10, max_bytes=sum(len(s.header) + 100 for s in sealed[:2]))] == [1, 2]


# The folder


def test_nobody_else_can_read_the_files(tmp_path: Path) -> None:
    """Guarantee: folder 0700, every file in it 0600, also the log and the shared memory beside it."""
    before = os.umask(0)
    try:
        opened = Journal.open(tmp_path / "state", "node", now=MONDAY)
        seal(opened)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
        opened.close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert {"journal.sqlite", "journal.sqlite-wal", "lock"} <= set(modes)
    assert set(modes.values()) == {0o600}


OPEN = """
import sys
from pathlib import Path
from datetime import UTC, datetime
from edge_agg.errors import JournalFailed
from edge_agg.journal import Journal
from edge_agg.lock import holder
folder = Path(sys.argv[1])
try:
    Journal.open(folder, "node", now=datetime.now(UTC))
except JournalFailed as error:
    print("refused:", error)
print(holder(folder), Journal.read(folder, "node").unacked())
"""


def test_one_process_at_a_time(journal: Journal, folder: Path) -> None:
    """Guarantee: a second process cannot open the folder, but it can look at it and sees who runs."""
    seal(journal)
    done = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused: another agent runs on this folder", f"{os.getpid()} 1"]
    assert holder(folder) == os.getpid()


def test_a_closed_folder_is_free(journal: Journal, folder: Path) -> None:
    """Closing gives the folder back."""
    journal.close()
    assert holder(folder) is None
    Journal.open(folder, "node", now=MONDAY).close()


def test_a_folder_without_a_journal_is_nobodys(tmp_path: Path) -> None:
    """Looking creates nothing."""
    assert holder(tmp_path) is None
    with pytest.raises(JournalFailed):
        Journal.read(tmp_path, "node")
    assert list(tmp_path.iterdir()) == []


def test_another_agents_journal_is_refused(journal: Journal, folder: Path) -> None:
    """Guarantee: two configs that name one folder do not share its chain or its budget."""
    with pytest.raises(JournalFailed, match="another agent"):
        Journal.read(folder, "other")
    journal.close()
    with pytest.raises(JournalFailed, match="belongs to another agent"):
        Journal.open(folder, "other", now=MONDAY)


def test_a_refused_open_leaves_the_folder_free(journal: Journal, folder: Path) -> None:
    """Guarantee: a journal that was refused keeps no lock, so the right agent can start."""
    journal.close()
    with pytest.raises(JournalFailed):
        Journal.open(folder, "other", now=MONDAY)
    Journal.open(folder, "node", now=MONDAY).close()


def test_a_newer_journal_is_refused(journal: Journal, folder: Path) -> None:
    """Guarantee (A3): an older program does not touch what a newer one wrote."""
    charge(journal)
    journal.close()
    newer = apsw.Connection(str(folder / "journal.sqlite"))
    newer.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    newer.close()
    with pytest.raises(JournalFailed, match=f"version {SCHEMA_VERSION + 1}"):
        Journal.open(folder, "node", now=MONDAY)
    with pytest.raises(JournalFailed, match=f"version {SCHEMA_VERSION + 1}"):
        Journal.read(folder, "node")


# A journal of version 1, as the program before this one wrote it

VERSION_1 = """
CREATE TABLE journal (
  incarnation TEXT NOT NULL, secret BLOB NOT NULL, agent TEXT NOT NULL, created_us INTEGER NOT NULL) STRICT;
CREATE TABLE plan (plan_hash BLOB PRIMARY KEY, name TEXT NOT NULL, text TEXT NOT NULL) STRICT;
CREATE TABLE charge (
  account TEXT NOT NULL, plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL, attempt INTEGER NOT NULL,
  rho TEXT NOT NULL, delta TEXT NOT NULL, PRIMARY KEY (plan_hash, window_start_us, attempt)) STRICT;
CREATE TABLE release (
  seq INTEGER PRIMARY KEY, plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL, window_end_us INTEGER NOT NULL,
  status TEXT NOT NULL, header BLOB NOT NULL, payload BLOB, hash BLOB NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('sealed', 'acked', 'parked')), refusal TEXT,
  UNIQUE (plan_hash, window_start_us)) STRICT;
CREATE INDEX release_waiting ON release (seq) WHERE state = 'sealed';
CREATE TABLE part (
  source TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  reach_us INTEGER NOT NULL, PRIMARY KEY (source, path)) STRICT;
CREATE TABLE local_count (name TEXT PRIMARY KEY, n INTEGER NOT NULL) STRICT;
"""


def version_1(folder: Path) -> Sealed:
    """Write a journal of version 1: two charged windows, of which one was sealed; returns that."""
    folder.mkdir(mode=0o700)
    header = b"header 1 after "
    sealed = Sealed(header=header, payload=b"x", hash=hashlib.sha256(header).digest())
    db = apsw.Connection(str(folder / "journal.sqlite"))
    db.execute("PRAGMA journal_mode=WAL")
    with db:
        db.execute(VERSION_1)
        db.execute("INSERT INTO journal VALUES (?, ?, 'node', ?)", ("ab" * 16, b"s" * 32, to_us(MONDAY)))
        for start in (MONDAY, MONDAY + WEEK):
            spent = ("people", PLAN, to_us(start), 1, str(CHARGE.rho), str(CHARGE.delta))
            db.execute("INSERT INTO charge VALUES (?, ?, ?, ?, ?, ?)", spent)
        row = (1, PLAN, to_us(MONDAY), to_us(MONDAY + WEEK), "released", header, b"x", sealed.hash)
        db.execute("INSERT INTO release VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'sealed', NULL)", row)
        db.execute("PRAGMA user_version=1")
    db.close()
    return sealed


def test_an_older_journal_keeps_all_that_it_says(folder: Path) -> None:
    """Guarantee (A3): an upgrade loses no charge, no release and no link of the chain, and is done once."""
    sealed = version_1(folder)
    for _ in range(2):
        opened = Journal.open(folder, "node", now=MONDAY + 2 * WEEK)
        assert opened.entries("people") == [
            Entry(window_start=start, charge=CHARGE) for start in (MONDAY, MONDAY + WEEK)
        ]
        assert opened.cumulative("people") == CHARGE + CHARGE
        assert [(w.seq, w.sealed) for w in opened.waiting(10)] == [(1, sealed)]
        assert (opened.next_link().seq, opened.next_link().prev_hash) == (2, sealed.hash)
        assert (opened.incarnation, opened.secret, opened.created) == ("ab" * 16, b"s" * 32, MONDAY)
        assert opened.closed_before(PLAN) == MONDAY + WEEK
        assert not opened.is_covered("people", PLAN, MONDAY + WEEK)
        opened.close()
    opened = Journal.open(folder, "node", now=MONDAY)
    charge(opened, MONDAY + WEEK)
    charge(opened, MONDAY + 2 * WEEK, through=MONDAY + 3 * WEEK, counted=Counted(period=MONDAY, units=["u"]))
    assert opened.attempts(PLAN, MONDAY + WEEK) == 2
    assert opened.is_covered("people", PLAN, MONDAY + 3 * WEEK)
    opened.close()


def version_2(folder: Path) -> Sealed:
    """Write a journal of version 2: that of version 1, a charge that covers a period, and a file that was read."""
    sealed = version_1(folder)
    db = apsw.Connection(str(folder / "journal.sqlite"))
    with db:
        db.execute(schema._UPGRADES[1])
        spent = ("people", OTHER, to_us(MONDAY), 1, str(CHARGE.rho), str(CHARGE.delta), to_us(MONDAY + WEEK))
        db.execute("INSERT INTO charge VALUES (?, ?, ?, ?, ?, ?, ?)", spent)
        db.execute("INSERT INTO part VALUES ('files', 'a.parquet', 10, 5, ?)", (to_us(MONDAY),))
        db.execute("PRAGMA user_version=2")
    db.close()
    return sealed


def test_a_journal_of_the_version_before_keeps_its_periods_and_its_parts(folder: Path) -> None:
    """Guarantee (A3): charges, covers, chain and positions are as they were; whole files begin at 0."""
    sealed = version_2(folder)
    opened = Journal.open(folder, "node", now=MONDAY)
    assert opened.is_covered("people", OTHER, MONDAY + WEEK)
    assert opened.cumulative("people") == CHARGE * 3
    assert opened.next_link().prev_hash == sealed.hash
    assert opened.positions_within("files", [MONDAY]) == [position("a.parquet", MONDAY)]
    assert opened.last_seen is None
    opened.close()


def version_3(folder: Path) -> Sealed:
    """Write a journal of version 3: that of version 2, with the time and parts of files."""
    sealed = version_2(folder)
    db = apsw.Connection(str(folder / "journal.sqlite"))
    with db:
        db.execute(schema._UPGRADES[2])
        db.execute("INSERT INTO clock VALUES (1, ?)", (to_us(MONDAY + DAY),))
        db.execute("PRAGMA user_version=3")
    db.close()
    return sealed


def test_plans_of_an_older_journal_began_with_it_and_new_ones_did_not(folder: Path) -> None:
    """Guarantee: an upgrade moves no plan's first window; a plan that the journal never charged has none yet."""
    version_3(folder)
    opened = Journal.open(folder, "node", now=MONDAY + 4 * WEEK)
    assert [opened.first_run(plan) for plan in (PLAN, OTHER, PlanHash(b"n" * 32))] == [MONDAY, MONDAY, None]
    assert opened.last_seen == MONDAY + DAY
    opened.close()


def test_plans_of_an_older_journal_that_had_closed_nothing_begin_with_it_once(folder: Path) -> None:
    """Guarantee: their rows wait in the spool; what is added in a later life begins then. Mutant: carried in each."""
    version_3(folder)
    db = apsw.Connection(str(folder / "journal.sqlite"))
    db.execute("DELETE FROM charge; DELETE FROM release")
    db.close()
    later = PlanHash(b"n" * 32)
    for plans, first in (((PLAN,), None), ((PLAN, later), None)):
        opened = Journal.open(folder, "node", now=MONDAY + 4 * WEEK)
        opened.carry_first_runs(plans)
        assert [opened.first_run(plan) for plan in (PLAN, later)] == [MONDAY, first]
        opened.close()


@pytest.mark.parametrize("write", [version_1, version_2, version_3])
def test_an_older_journal_can_be_looked_at_before_it_is_upgraded(folder: Path, write: Callable[[Path], Sealed]) -> None:
    """Guarantee: what a person asks after an upgrade is answered, and the file stays as it was until the agent runs."""
    sealed = write(folder)
    before = (folder / "journal.sqlite").read_bytes()
    look = Journal.read(folder, "node")
    assert look.cumulative("people") == CHARGE * len(look.entries("people"))
    assert [w.sealed for w in look.waiting(9)] == [sealed]
    assert look.closed_before(PLAN) == MONDAY + WEEK
    look.close()
    assert (folder / "journal.sqlite").read_bytes() == before


@pytest.mark.parametrize("write", [version_1, version_2, version_3])
def test_an_upgraded_journal_has_the_schema_of_a_new_one(
    tmp_path: Path, folder: Path, write: Callable[[Path], Sealed]
) -> None:
    """Guarantee: whatever way a journal came to this version, it is the same file to the program."""
    write(folder)
    Journal.open(folder, "node", now=MONDAY).close()
    Journal.open(tmp_path / "new", "node", now=MONDAY).close()
    found = []
    for place in (folder, tmp_path / "new"):
        db = apsw.Connection(str(place / "journal.sqlite"))
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type='table' ORDER BY name")]
        shape = {name: list(db.execute(f"SELECT * FROM pragma_table_info('{name}')")) for name in tables}
        found.append((shape, list(db.execute("SELECT name FROM sqlite_schema WHERE type='index' ORDER BY name"))))
        db.close()
    assert found[0] == found[1]


def test_an_upgrade_that_fails_halfway_is_begun_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: an upgrade is one commit: half of one leaves version 1, as it was."""
    version_1(folder)
    with monkeypatch.context() as patch:
        halfway = schema._UPGRADES | {2: schema._UPGRADES[2] + "INSERT INTO nowhere VALUES (1);"}
        patch.setattr(schema, "_UPGRADES", halfway)
        with pytest.raises(JournalFailed):
            Journal.open(folder, "node", now=MONDAY)
    opened = Journal.open(folder, "node", now=MONDAY)
    assert opened.cumulative("people") == CHARGE + CHARGE
    opened.close()


def test_another_agents_older_journal_is_left_as_it_is(folder: Path) -> None:
    """Guarantee: check, then apply: a config that names the wrong folder upgrades nothing there."""
    version_1(folder)
    with pytest.raises(JournalFailed, match="belongs to another agent"):
        Journal.open(folder, "other", now=MONDAY)
    db = apsw.Connection(str(folder / "journal.sqlite"))
    assert db.execute("PRAGMA user_version").get == 1
    db.close()


# Charges that cover a period


def test_a_charge_covers_the_windows_up_to_its_last_and_of_its_plan_and_account_alone(journal: Journal) -> None:
    """Guarantee: the windows after the one that paid, to the last, not itself, not another plan's or account's."""
    charge(journal, MONDAY + WEEK, through=MONDAY + 3 * WEEK)
    covered = [journal.is_covered("people", PLAN, MONDAY + i * WEEK) for i in range(6)]
    assert covered == [False, False, True, True, False, False]
    assert not journal.is_covered("people", OTHER, MONDAY + 2 * WEEK)
    assert not journal.is_covered("others", PLAN, MONDAY + 2 * WEEK)
    assert journal.entries("people")[0].last == MONDAY + 3 * WEEK
    charge(journal, MONDAY + 5 * WEEK)
    assert not journal.is_covered("people", PLAN, MONDAY + 6 * WEEK)


@pytest.mark.parametrize(("point", "noted"), [("charge_uncommitted", []), ("charge_committed", ["u"])])
def test_who_is_counted_is_one_commit_with_the_charge(
    journal: Journal, folder: Path, point: str, noted: list[str]
) -> None:
    """Guarantee: nobody is noted for a window that was not charged, and everybody for one that was."""
    crash_at(point)
    with pytest.raises(Crash):
        charge(journal, counted=Counted(period=MONDAY, units=["u"]))
    failpoint.armed = None
    again = reopened(journal, folder)
    found = again.spent_units(PLAN, period=MONDAY, window_start=MONDAY + WEEK, max_windows=1, integers=False)
    assert found.to_pylist() == noted
    assert again.attempts(PLAN, MONDAY) == len(noted)
    again.close()


def test_who_is_counted_does_not_show_in_a_repr() -> None:
    """Guarantee (A6): what a debugger or a log prints of it holds no id."""
    assert "N7777777" not in repr(Counted(period=MONDAY, units=["N7777777"]))


def test_reading_writes_nothing(journal: Journal, folder: Path) -> None:
    """Guarantee: `read` works while the agent runs, sees what is committed, and cannot write."""
    look = Journal.read(folder, "node")
    seal(journal)
    assert look.unacked() == 1
    with pytest.raises(JournalFailed):
        charge(look)
    look.close()
    assert journal.attempts(PLAN, MONDAY) == 0


def test_the_settings_that_durability_rests_on(journal: Journal) -> None:
    """WAL, synchronous=FULL: every commit is synced; what is deleted is overwritten."""
    assert journal._file.db.execute("PRAGMA journal_mode").get == "wal"
    assert journal._file.db.execute("PRAGMA synchronous").get == 2
    assert journal._file.db.execute("PRAGMA secure_delete").get == 1


# Errors

SECRET = "N7777777"
CALLS: list[Callable[[Journal], object]] = [
    charge,
    lambda j: charge(j, counted=Counted(period=MONDAY, units=[SECRET])),
    lambda j: j.spent_units(PLAN, period=MONDAY, window_start=MONDAY, max_windows=1, integers=False),
    lambda j: j.is_covered("people", PLAN, MONDAY),
    lambda j: seal(j, positions=[position(f"/home/{SECRET}", MONDAY)], local_counts={SECRET: 1}),
    lambda j: j.note([position(f"/home/{SECRET}", MONDAY)], {}),
    lambda j: j.settle(acked=[1], parked=[(2, Refusal.FENCED)]),
    lambda j: j.entries(SECRET),
    lambda j: j.waiting(1),
    lambda j: j.unacked(),
    lambda j: j.next_link(),
]


def trouble(error: Exception) -> Callable[..., Any]:
    """A cursor that fails whatever it is asked."""

    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


class BrokenDb:
    """A connection on which everything fails with a text that must not get out."""

    def __init__(self, error: Exception) -> None:
        self.execute = self.executemany = trouble(error)
        self.in_transaction = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "error", [apsw.FullError(f"INSERT {SECRET}"), apsw.IOError(f"/var/{SECRET}"), OSError(5, "no", f"/var/{SECRET}")]
)
def test_any_trouble_is_journal_failed_and_says_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, call: Callable[[Journal], object], error: Exception
) -> None:
    """Guarantee (A6): the kind of error and nothing else: no path, no value, no SQL, also in a traceback."""
    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "db", BrokenDb(error))
        with pytest.raises(JournalFailed) as caught:
            call(journal)
    shown = "".join(traceback.format_exception_only(caught.value)) + str(caught.value)
    assert type(error).__name__ in shown
    for leak in (SECRET, "INSERT", "SELECT", "/var", "charge (", "release"):
        assert leak not in shown
    assert caught.value.__suppress_context__


def test_an_unmapped_error_would_be_caught(monkeypatch: pytest.MonkeyPatch, journal: Journal) -> None:
    """Mutant: the map at the rim is gone, and the database's own words come out."""

    class NoMap:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(room, "as_journal_failed", lambda _: NoMap())
    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "db", BrokenDb(apsw.FullError(SECRET)))
        with pytest.raises(apsw.FullError, match=SECRET):
            journal.unacked()


def test_after_an_error_the_journal_is_finished(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee (A2): one error ends the journal; a later commit can never make it look good."""
    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "db", BrokenDb(apsw.IOError("fsync")))
        with pytest.raises(JournalFailed):
            journal.settle(acked=[], parked=[])
    with pytest.raises(JournalFailed):
        charge(journal)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "state").write_text("")
    with pytest.raises(JournalFailed) as caught:
        Journal.open(tmp_path / "state", "node", now=MONDAY)
    assert str(tmp_path) not in str(caught.value)


def test_bytes_that_are_no_journal(tmp_path: Path) -> None:
    """Somebody else's file is refused."""
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, but long enough to look at" * 50)
    with pytest.raises(JournalFailed, match="NotADBError"):
        Journal.open(tmp_path, "node", now=MONDAY)
