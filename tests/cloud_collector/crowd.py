"""A landing with a large fleet in it, written as rows: what a release costs to land is measured elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloud_collector import landing_file
from tests.cloud_collector.rolls import MAKER, WEEK_US, start_us

if TYPE_CHECKING:
    from pathlib import Path


def write_crowd(path: Path, agents: int, *, windows: int = 10) -> None:
    """Agents that report, but each 10th is silent half-way, each 25th skips a window, each 1000th is fenced."""
    db = landing_file.opened(path)
    db.execute("BEGIN")
    db.execute("INSERT INTO plans VALUES (1, ?, ?)", (MAKER.plan.name, bytes(MAKER.hash)))
    everybody = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1) "
    db.execute(everybody + "INSERT INTO agents SELECT n, 'acme', 'a' || n, 0, 1, 0, 0 FROM n", (agents,))
    db.execute(
        "WITH RECURSIVE w (w) AS (SELECT 0 UNION ALL SELECT w + 1 FROM w WHERE w + 1 < ?1) "
        "INSERT INTO releases (agent, plan, window_start_us, journal, seq, hash, status) "
        "SELECT no, 1, ?2 + w * ?3, 0, row_number() OVER (PARTITION BY no ORDER BY w), zeroblob(32), "
        "iif(no % 50 = 7 AND w = 3, 'vetoed', NULL) FROM w CROSS JOIN agents "
        "WHERE NOT (no % 10 = 0 AND w >= ?1 / 2) AND NOT (no % 25 = 3 AND w = 2) ORDER BY w, no",
        (windows, start_us(0), WEEK_US),
    )
    db.execute("INSERT INTO journals SELECT agent, 0, randomblob(16), count(*), count(*) FROM releases GROUP BY agent")
    heard = "INSERT INTO contacts SELECT no, iif(no % 10 = 0, ?1, ?2), NULL FROM agents"
    db.execute(heard, (start_us(windows // 2), start_us(windows + 1)))
    db.execute("INSERT INTO fences SELECT no, 'fork', NULL FROM agents WHERE no % 1000 = 1")
    db.execute("COMMIT")
    db.close()


if __name__ == "__main__":
    import sys
    from pathlib import Path

    write_crowd(Path(sys.argv[1]), int(sys.argv[2]))
