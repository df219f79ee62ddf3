"""Small SQLite files that several processes share: what was issued, and who holds tokens.

Invariants: mode 0600 from their first byte, WAL, and a commit is on the disk when it returns.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import apsw

from cloud_collector.errors import StoreFailed

if TYPE_CHECKING:
    from pathlib import Path


def opened(path: Path, schema: str) -> apsw.Connection:
    """Open a file, made with its tables when it is missing; raises StoreFailed."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = apsw.Connection(str(path))
        db.set_busy_timeout(5_000)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"BEGIN IMMEDIATE; {schema}; COMMIT")
    except (OSError, apsw.Error):
        raise StoreFailed(f"{path.name}: cannot be opened, or is no file of ours") from None
    return db
