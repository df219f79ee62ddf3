"""The table of parts that were read: which need not be opened again after a restart, kept small for years.

Place: written in T2 with the windows that were closed; read when a source starts.
Invariants: a part is done when no row of it can be in a window that some plan has open; what is folded or dropped is
done, or is said to reach no less far than each of its stretches: so a fold can have bytes read again, never skipped.

A file that grows has a stretch for each pass. A stretch that continues the last one, read within the same ten minutes,
makes it longer; done stretches that touch become one; done parts that are no longer there are dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_agg.contract.codec import from_us, to_us
from edge_agg.journal.rows import Position

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import apsw

SCHEMA = """
CREATE TABLE part (
  source TEXT NOT NULL, path TEXT NOT NULL, begin_ INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  reach_us INTEGER NOT NULL, PRIMARY KEY (source, path, begin_)) STRICT;
"""
_COPY = "INSERT INTO part SELECT source, path, 0, size, mtime_ns, reach_us FROM whole_part; DROP TABLE whole_part;"
UPGRADE = "ALTER TABLE part RENAME TO whole_part;" + SCHEMA + _COPY
"""From the table that knew whole files alone."""
GRAIN_US = 600 * 1_000_000
"""Stretches whose reaches lie in the same ten minutes are kept as one."""


def note_positions(db: apsw.Connection, positions: Iterable[Position]) -> None:
    """Keep positions, within the caller's transaction; a part that is there already is replaced."""
    for one in positions:
        reach_us = to_us(one.reach)
        if one.mtime_ns == 0 and _prolong(db, one, reach_us):
            continue
        db.execute(
            "INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?, ?)",
            (one.source, one.path, one.begin, one.size, one.mtime_ns, reach_us),
        )


def _prolong(db: apsw.Connection, one: Position, reach_us: int) -> bool:
    query = (
        "SELECT begin_, size, mtime_ns, reach_us FROM part "
        "WHERE source=? AND path=? AND begin_<? ORDER BY begin_ DESC LIMIT 1"
    )
    before = next(iter(db.execute(query, (one.source, one.path, one.begin))), None)
    if before is None:
        return False
    begin, size, mtime_ns, before_us = before
    if (size, mtime_ns) != (one.begin, 0) or before_us // GRAIN_US != reach_us // GRAIN_US:
        return False
    # A stretch that began where this one does was read in an earlier life: this one takes its place.
    db.execute("DELETE FROM part WHERE source=? AND path=? AND begin_=?", (one.source, one.path, one.begin))
    db.execute(
        "UPDATE part SET size=?, reach_us=? WHERE source=? AND path=? AND begin_=?",
        (one.size, max(before_us, reach_us), one.source, one.path, begin),
    )
    return True


def done_positions(db: apsw.Connection, source: str, closed_us: int) -> list[Position]:
    """The parts of a source that reach no further than what is closed."""
    query = (
        "SELECT path, begin_, size, mtime_ns, reach_us FROM part WHERE source=? AND reach_us<=? ORDER BY path, begin_"
    )
    return [
        Position(source=source, path=path, begin=begin, size=size, mtime_ns=mtime_ns, reach=from_us(us))
        for path, begin, size, mtime_ns, us in db.execute(query, (source, closed_us))
    ]


def tidy_positions(db: apsw.Connection, source: str, closed_us: int, present: Collection[str] | None) -> None:
    """Make one of done stretches that touch, and drop done parts that are not present, in the caller's transaction."""
    run: Position | None = None
    for one in done_positions(db, source, closed_us):
        key = (source, one.path, one.begin)
        if present is not None and one.path not in present:
            db.execute("DELETE FROM part WHERE source=? AND path=? AND begin_=?", key)
            continue
        touches = run is not None and run.path == one.path and one.begin <= run.size and one.mtime_ns == 0
        if run is None or not touches:
            run = one if one.mtime_ns == 0 else None
            continue
        run = Position(
            source=source,
            path=run.path,
            begin=run.begin,
            size=max(run.size, one.size),
            mtime_ns=0,
            reach=max(run.reach, one.reach),
        )
        db.execute("DELETE FROM part WHERE source=? AND path=? AND begin_=?", key)
        db.execute(
            "UPDATE part SET size=?, reach_us=? WHERE source=? AND path=? AND begin_=?",
            (run.size, to_us(run.reach), source, run.path, run.begin),
        )
