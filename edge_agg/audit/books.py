"""The journal's rows as an auditor reads them: raw, in one snapshot, also while the agent runs.

Place: below all of the audit; it shares no code with `journal.py`, so that a mistake there does not hide itself here.
Invariants: read-only, one transaction; nothing is believed: numbers come as text, headers as bytes.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import apsw

from edge_agg.errors import JournalFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCHEMA_VERSIONS = (2, 3, 4)
"""Of the journals that this auditor can read: those whose plans, charges and releases stand in these columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """A plan that was charged."""

    hash: bytes
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRow:
    """One attempt at one window."""

    place: int
    """In the order of their commits."""
    account: str
    plan_hash: bytes
    window_us: int
    attempt: int
    rho: str
    delta: str
    through_us: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRow:
    """One sealed release."""

    seq: int
    plan_hash: bytes
    start_us: int
    end_us: int
    status: str
    header: bytes = field(repr=False)
    payload: bytes | None = field(repr=False)
    """None once it is acked."""
    hash: bytes
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """An open snapshot of a journal."""

    incarnation: str
    agent: str
    plans: list[PlanRow]
    charges: list[ChargeRow]
    releases: Iterator[ReleaseRow]
    """Ascending by seq; read while the books are open."""


@contextmanager
def open_books(folder: Path) -> Iterator[Books]:
    """Open the journal in a folder.

    Raises:
        JournalFailed: there is none, it cannot be read, or it has another version.
    """
    try:
        db = apsw.Connection(str(folder / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(2000)
        try:
            db.execute("BEGIN")
            yield _books(db)
        finally:
            db.close()
    except apsw.Error as error:
        raise JournalFailed(f"the journal could not be read ({type(error).__name__})") from None


def _books(db: apsw.Connection) -> Books:
    version = db.execute("PRAGMA user_version").get
    if version not in SCHEMA_VERSIONS:
        known = ", ".join(map(str, SCHEMA_VERSIONS))
        raise JournalFailed(f"the journal has version {version}, this program reads {known}")
    incarnation, agent = next(iter(db.execute("SELECT incarnation, agent FROM journal")))
    plans = db.execute("SELECT plan_hash, name, text FROM plan ORDER BY name, plan_hash")
    charges = db.execute(
        "SELECT rowid, account, plan_hash, window_start_us, attempt, rho, delta, through_us FROM charge ORDER BY rowid"
    )
    releases = db.execute(
        "SELECT seq, plan_hash, window_start_us, window_end_us, status, header, payload, hash, state "
        "FROM release ORDER BY seq"
    )
    return Books(
        incarnation=incarnation,
        agent=agent,
        plans=[PlanRow(hash=hash_, name=name, text=text) for hash_, name, text in plans],
        charges=[
            ChargeRow(
                place=i,
                account=account,
                plan_hash=plan_hash,
                window_us=window_us,
                attempt=attempt,
                rho=rho,
                delta=delta,
                through_us=through_us,
            )
            for i, (_, account, plan_hash, window_us, attempt, rho, delta, through_us) in enumerate(charges)
        ],
        releases=(
            ReleaseRow(
                seq=seq,
                plan_hash=plan_hash,
                start_us=start_us,
                end_us=end_us,
                status=status,
                header=header,
                payload=payload,
                hash=hash_,
                state=state,
            )
            for seq, plan_hash, start_us, end_us, status, header, payload, hash_, state in releases
        ),
    )
