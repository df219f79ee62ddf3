"""Which parts are done: never bytes that an open window still needs, and never a table that grows for ever."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.codec import from_us, to_us
from edge_agg.journal import Position, positions
from tests.fakes import DAY, MONDAY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from edge_agg.journal import Journal

MINUTE = timedelta(minutes=1)
Pass = tuple[int, int, int]
"""A stretch that was read: where it begins, how long it is, minutes until its reach."""


def stretch(begin: int, end: int, reach: datetime, path: str = "1:2:ab") -> Position:
    """A stretch of a file that grows."""
    return Position(source="tail", path=path, begin=begin, size=end, mtime_ns=0, reach=reach)


def opened() -> apsw.Connection:
    """An empty table, in memory."""
    db = apsw.Connection(":memory:")
    db.execute(positions.SCHEMA)
    return db


def count(db: apsw.Connection) -> int:
    """Rows in it."""
    return int(db.execute("SELECT count(*) FROM part").get)


def bytes_done(db: apsw.Connection, closed: int) -> set[int]:
    """Every byte that is said to need no reading."""
    done = positions.done_positions(db, "tail", to_us(MONDAY + closed * MINUTE))
    return {byte for one in done for byte in range(one.begin, one.size)}


passes = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10), st.integers(0, 8)), min_size=1, max_size=25)


def is_wrong(read: Sequence[Pass], tidied: Sequence[int]) -> bool:
    """Read stretches, in any order, some of them again; whether a byte is ever done that was never read so early."""
    db = opened()
    reach = 0
    earliest: dict[int, int] = {}
    for i, (begin, length, later) in enumerate(read):
        reach += later
        positions.note_positions(db, [stretch(begin, begin + length, MONDAY + reach * MINUTE)])
        for byte in range(begin, begin + length):
            earliest.setdefault(byte, reach)
        if i in tidied:
            positions.tidy_positions(db, "tail", to_us(MONDAY + (reach - 15) * MINUTE), None)
        for closed in range(0, reach + 20, 4):
            if any(earliest.get(byte, 10**9) > closed for byte in bytes_done(db, closed)):
                return True
    return False


@settings(max_examples=150, deadline=None)
@given(read=passes, tidied=st.lists(st.integers(0, 24), max_size=6))
def test_no_byte_is_done_before_all_its_windows_are_closed(read: list[Pass], tidied: list[int]) -> None:
    """Guarantee: whatever is merged, dropped or read again: what is done was read, and reaches no further."""
    assert not is_wrong(read, tidied)


GROWING: list[Pass] = [(i * 10, 10, 1) for i in range(30)]


def _by_the_first(db: apsw.Connection, one: Position, reach_us: int) -> bool:
    """A mutant: a longer stretch keeps the reach of its first."""
    changed = db.execute(
        "UPDATE part SET size=? WHERE size=? AND path=? RETURNING 1", (one.size, one.begin, one.path)
    ).fetchall()
    return bool(changed)


def _with_gaps(db: apsw.Connection, one: Position, reach_us: int) -> bool:
    """A mutant: a stretch makes the one before it longer, whether they touch or not."""
    changed = db.execute(
        "UPDATE part SET size=?, reach_us=? WHERE begin_<? RETURNING 1", (one.size, reach_us, one.begin)
    ).fetchall()
    return bool(changed)


@pytest.mark.parametrize(
    ("mutant", "read"), [(_by_the_first, GROWING), (_with_gaps, [(0, 5, 0), (20, 5, 0), (30, 5, 0)])]
)
def test_mutants_are_caught(monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., bool], read: Sequence[Pass]) -> None:
    """Mutants: a merged stretch reaches no further than its first part; gaps are swallowed."""
    assert not is_wrong(read, [20])
    monkeypatch.setattr(positions, "_prolong", mutant)
    assert is_wrong(read, [20])


def test_a_file_that_grows_takes_a_row_for_ten_minutes_and_one_in_all_once_its_windows_are_closed() -> None:
    """Guarantee: a pass every five seconds for a day is 144 rows at most, and one row once it is over."""
    db = opened()
    for i in range(24 * 720):
        positions.note_positions(db, [stretch(i * 100, i * 100 + 100, MONDAY + i * timedelta(seconds=5))])
    assert count(db) <= 145
    positions.tidy_positions(db, "tail", to_us(MONDAY + DAY / 2), None)
    assert count(db) <= 74
    positions.tidy_positions(db, "tail", to_us(MONDAY + DAY), None)
    assert positions.done_positions(db, "tail", to_us(MONDAY + DAY)) == [
        stretch(0, 24 * 72000, MONDAY + DAY - timedelta(seconds=5))
    ]


def test_whole_files_are_never_made_one(journal: Journal) -> None:
    """Guarantee: a file is known by its size and time; two that happen to fit are two."""
    whole = [
        Position(source="files", path=path, size=10, mtime_ns=7, reach=MONDAY) for path in ("a.parquet", "b.parquet")
    ]
    journal.note(whole, {})
    journal.tidy_positions("files", [MONDAY])
    assert journal.positions_within("files", [MONDAY]) == whole


def test_done_parts_that_are_gone_are_forgotten_and_no_others(journal: Journal) -> None:
    """Guarantee: a folder that was empty for a moment costs reading again, never a row twice."""
    old, gone, late = (
        Position(source="files", path=path, size=1, mtime_ns=1, reach=reach)
        for path, reach in (("old", MONDAY), ("gone", MONDAY), ("late", MONDAY + DAY))
    )
    other = Position(source="others", path="gone", size=1, mtime_ns=1, reach=MONDAY)
    journal.note([old, gone, late, other], {})
    journal.tidy_positions("files", [MONDAY, None], present=["old"])
    assert len(journal.positions_within("files", [MONDAY])) == 2
    journal.tidy_positions("files", [MONDAY, MONDAY + DAY], present=["old"])
    assert journal.positions_within("files", [MONDAY + DAY]) == [late, old]
    assert journal.positions_within("others", [MONDAY]) == [other]


def test_a_stretch_that_is_read_again_takes_the_place_of_what_it_was() -> None:
    """Guarantee: after a restart the same bytes may come in other stretches; the last to be read counts."""
    db = opened()
    positions.note_positions(db, [stretch(0, 50, MONDAY), stretch(50, 90, MONDAY + DAY)])
    positions.note_positions(db, [stretch(0, 70, MONDAY + 2 * DAY)])
    done = positions.done_positions(db, "tail", to_us(from_us(to_us(MONDAY + DAY))))
    assert done == [stretch(50, 90, MONDAY + DAY)]
