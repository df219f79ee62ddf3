"""What durability costs: the spool's append, and closing a window after years of charges.

    python -m benchmarks.durable [FOLDER]

Prints CPU milliseconds (and wall, which is the disk's) for each; FOLDER is on the disk to be measured.
"""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import pyarrow as pa

from edge_agg.contract.codec import to_us
from edge_agg.contract.plan import PlanHash
from edge_agg.contract.release import Charge, Sealed, Status
from edge_agg.journal import Journal
from edge_agg.privacy.ledger import Budget, Entry, check_room
from edge_agg.spool import Record, Spool

START = datetime(2013, 1, 7, tzinfo=UTC)
FIVE_MINUTES = timedelta(minutes=5)
PLAN = PlanHash(b"p" * 32)
CHARGE = Charge(rho=Fraction(3, 2**40))
BUDGET = Budget(rho=Fraction(1), delta=Fraction(0), horizon=timedelta(days=365))


def batch(rows: int) -> pa.RecordBatch:
    """Events as a site has them: a time, a unit, a key, a reading."""
    chance = random.Random(1)  # noqa: S311 - test data
    times = pa.array(range(to_us(START), to_us(START) + rows * 1000, 1000)).cast(pa.timestamp("us", tz="UTC"))
    units = pa.array([f"user-{chance.randrange(100_000)}" for _ in range(rows)])
    keys = pa.array([chance.choice(["alpha", "beta", "gamma"]) for _ in range(rows)])
    return pa.record_batch({"t": times, "u": units, "k": keys, "x": [chance.random() for _ in range(rows)]})


def measure_spool(folder: Path) -> None:
    """Append groups of several sizes, then replay them."""
    for rows, times in ((1, 300), (100, 300), (10_000, 100)):
        spool = Spool.open(folder / f"spool-{rows}", quota_bytes=1 << 40)
        one = Record(source="http", batch=batch(rows), expiry=START, floors={"ab" * 32: 1})
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(times):
            spool.append([one])
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        stored = spool.size_bytes / times / rows
        read = time.process_time()
        assert sum(record.batch.num_rows for record in spool.replay()) == rows * times
        read = time.process_time() - read
        spool.close()
        print(
            f"spool, {rows:6} rows a group: {cpu / times * 1e3:7.3f} ms CPU, {wall / times * 1e3:7.3f} ms wall "
            f"({rows * times / cpu / 1e3:8.0f}k rows/s CPU, {times / wall:6.0f} syncs/s), "
            f"{stored:6.1f} B/row on disk, replay {rows * times / read / 1e3:8.0f}k rows/s"
        )


def measure_journal(folder: Path) -> None:
    """Close windows after more and more charges."""
    journal = Journal.open(folder / "state", "node", now=START)
    held = 0
    for n in (0, 2_000, 20_000, 100_000):
        rows = [
            ("people", PLAN, to_us(START + i * FIVE_MINUTES), 1, str(CHARGE.rho), "0", None) for i in range(held, n)
        ]
        with journal._file.transaction():  # noqa: SLF001 - years of charges at once
            journal._file.db.executemany("INSERT INTO charge VALUES (?, ?, ?, ?, ?, ?, ?)", rows)  # noqa: SLF001
        journal.close()
        journal = Journal.open(folder / "state", "node", now=START)
        held = max(n, held)
        rss, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        check_room(BUDGET, journal.book("people"), Entry(window_start=START, charge=CHARGE))
        first = time.process_time() - cpu
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss
        cpu, wall = time.process_time(), time.perf_counter()
        for i in range(held, held + 200):
            _close(journal, START + i * FIVE_MINUTES)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        held += 200
        print(
            f"journal, {n:6} charges: {cpu / 200 * 1e3:6.3f} ms CPU a window, {wall / 200 * 1e3:6.3f} ms wall; "
            f"the first after a start {first * 1e3:6.1f} ms more and {grown / 1024:5.1f} MiB"
        )
    journal.close()


def _close(journal: Journal, start: datetime) -> None:
    """What a series asks and writes for a window."""
    entry = Entry(window_start=start, charge=CHARGE)
    assert journal.attempts(PLAN, start) == 0
    assert not journal.is_covered("people", PLAN, start)
    check_room(BUDGET, journal.book("people"), entry)
    journal.charge(account="people", plan_hash=PLAN, name="p", text="{}", entry=entry)
    link = journal.next_link()
    journal.window_charge(PLAN, start)
    journal.cumulative("people")
    journal.seal(
        seq=link.seq,
        plan_hash=PLAN,
        window=(start, start + FIVE_MINUTES),
        status=Status.RELEASED,
        sealed=Sealed(header=b"h" * 700, payload=b"p" * 1000, hash=start.isoformat().encode()),
        positions=(),
        local_counts={"late": 1},
    )
    journal.settle(acked=[link.seq], parked=[])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        measure_spool(Path(name))
        measure_journal(Path(name))
