"""Which units have used up their windows of a period: the journal's tables of participation.

Place: asked when a window closes, before bounding's result is aggregated; written in the journal's T1, with the charge.
Invariants: a unit counts in its first `max_windows` windows of a period; asking again for a window that was recorded,
as after a crash, gives the same answer; periods that are over are forgotten. The ids stay in this file, on the device.
In memory they are columns: as Python objects, of which there is never more than a slice, the ids of a window would
take several times what the window itself takes.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import apsw

SCHEMA = """
CREATE TABLE participation (
  plan_hash BLOB NOT NULL, period_us INTEGER NOT NULL, unit ANY NOT NULL,
  windows INTEGER NOT NULL, last_us INTEGER NOT NULL,
  PRIMARY KEY (plan_hash, period_us, unit)) STRICT, WITHOUT ROWID;
"""


AT_ONCE = 1 << 14
"""Ids that are Python objects at once."""


def spent_units(
    db: apsw.Connection, plan_hash: bytes, *, period_us: int, window_us: int, max_windows: int
) -> Iterator[int | str]:
    """The units that were counted in `max_windows` windows of the period before this one."""
    query = "SELECT unit FROM participation WHERE plan_hash=? AND period_us=? AND windows - (last_us = ?) >= ?"
    return (unit for (unit,) in db.execute(query, (plan_hash, period_us, window_us, max_windows)))


def record_units(
    db: apsw.Connection, plan_hash: bytes, *, period_us: int, window_us: int, units: Iterable[int | str]
) -> None:
    """Note that these units count in a window, within the caller's transaction; a second note changes nothing."""
    db.execute("DELETE FROM participation WHERE plan_hash=? AND period_us<?", (plan_hash, period_us))
    db.executemany(
        "INSERT INTO participation VALUES (?, ?, ?, 1, ?) ON CONFLICT (plan_hash, period_us, unit) DO UPDATE "
        "SET windows = windows + (last_us <> excluded.last_us), last_us = excluded.last_us",
        ((plan_hash, period_us, unit, window_us) for unit in units),
    )


def as_array(units: Iterable[int | str], *, integers: bool) -> pa.Array:
    """Ids as a column, int64 or large_string as the plan has them, which none of them may tell: there may be none."""
    kind, left = pa.int64() if integers else pa.large_string(), iter(units)
    slices = [pa.array([], kind)]
    while taken := list(islice(left, AT_ONCE)):
        slices.append(pa.array(taken, kind))
    return pa.concat_arrays(slices)


def each(units: pa.Array) -> Iterator[int | str]:
    """The ids of a column, one after another."""
    for start in range(0, len(units), AT_ONCE):
        yield from units.slice(start, AT_ONCE).to_pylist()
