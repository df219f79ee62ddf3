"""What was issued, and the one-time tokens that are out.

Place: beside the authority's keys; the command line and every process of the collector share the file.
On disk: `index.sqlite` (WAL, FULL), mode 0600. `issued` has a row a certificate for ever, `lives` how long each was
asked for (none of what an older version issued), `tokens` a row a one-time token.
Invariants: a token is kept as a hash and used once, whoever asks at the same time; a certificate is on record, durably,
before anybody gets it; one that was revoked stays so.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self

import apsw
from cryptography.hazmat.primitives import hashes

from cloud_collector.errors import RequestInvalid, StoreFailed
from cloud_collector.secret import hashed, new_secret
from cloud_collector.shelf import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography import x509

_SCHEMA = """
CREATE TABLE IF NOT EXISTS issued (
  serial TEXT PRIMARY KEY, subject TEXT NOT NULL, kind TEXT NOT NULL, fingerprint TEXT NOT NULL,
  issued_s INTEGER NOT NULL, ends_s INTEGER NOT NULL, revoked_s INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS issued_to ON issued (subject);
CREATE TABLE IF NOT EXISTS lives (serial TEXT PRIMARY KEY, life_s INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tokens (
  hash BLOB PRIMARY KEY, subject TEXT NOT NULL, made_s INTEGER NOT NULL, ends_s INTEGER NOT NULL, used_s INTEGER
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """One certificate on record."""

    serial: int
    subject: str
    """A SPIFFE id; of a server its hosts, of an authority its name."""
    kind: str
    """`agent`, `analyst`, `server`, `issuer` or `root`."""
    fingerprint: str
    """sha256 of the certificate, in hex."""
    issued: datetime
    ends: datetime
    revoked: datetime | None = None
    life: timedelta | None = None
    """How long it was asked for, which its issuer's end may have cut short; None if that is not on record."""

    @classmethod
    def of(
        cls, made: x509.Certificate, kind: str, subject: str, now: datetime, *, life: timedelta | None = None
    ) -> Self:
        """A certificate that is made now."""
        return cls(
            serial=made.serial_number,
            subject=subject,
            kind=kind,
            fingerprint=made.fingerprint(hashes.SHA256()).hex(),
            issued=now,
            ends=made.not_valid_after_utc,
            life=life,
        )


class Index:
    """The file, open; use it in one thread.

    Args:
        path: made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._db = opened(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """All of the body's changes or none; nobody else changes anything meanwhile."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except apsw.Error:
            raise StoreFailed("the authority's index cannot be written") from None
        try:
            yield
            self._db.execute("COMMIT")
        except apsw.Error:
            self._undo()
            raise StoreFailed("the authority's index cannot be written") from None
        except BaseException:
            self._undo()
            raise

    def note(self, issued: Issued) -> None:
        """Put a certificate on record."""
        row = (
            f"{issued.serial:x}",
            issued.subject,
            issued.kind,
            issued.fingerprint,
            _s(issued.issued),
            _s(issued.ends),
        )
        self._db.execute("INSERT INTO issued VALUES (?, ?, ?, ?, ?, ?, NULL)", row)
        if issued.life is not None:
            self._db.execute("INSERT INTO lives VALUES (?, ?)", (row[0], int(issued.life.total_seconds())))

    def find(self, *, serial: int | None = None, subject: str | None = None) -> list[Issued]:
        """Certificates by date of issue; those of a serial or a subject if one is given."""
        rows = self._db.execute(
            "SELECT serial, subject, kind, fingerprint, issued_s, ends_s, revoked_s, life_s "
            "FROM issued LEFT JOIN lives USING (serial) "
            "WHERE coalesce(serial = ?, true) AND coalesce(subject = ?, true) ORDER BY issued_s, serial",
            (None if serial is None else f"{serial:x}", subject),
        )
        return [_issued(*row) for row in rows]

    def revoke(self, serial: int, now: datetime) -> None:
        """Mark a certificate."""
        self._db.execute(
            "UPDATE issued SET revoked_s = coalesce(revoked_s, ?) WHERE serial = ?", (_s(now), f"{serial:x}")
        )

    def add_token(self, subject: str, *, now: datetime, ends: datetime) -> str:
        """Make a one-time token for a subject; what is returned is kept nowhere."""
        secret = new_secret()
        self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?, NULL)", (hashed(secret), subject, _s(now), _s(ends)))
        return secret

    def use_token(self, secret: str, now: datetime) -> str:
        """Use a token up, for the subject that it stands for; raises RequestInvalid."""
        rows = self._db.execute(
            "UPDATE tokens SET used_s = ?1 WHERE hash = ?2 AND used_s IS NULL AND ends_s > ?1 RETURNING subject",
            (_s(now), hashed(secret)),
        ).fetchall()
        if not rows:
            raise RequestInvalid("no such token, or it is used, or too old")
        return str(rows[0][0])

    def void_tokens(self, subject: str, now: datetime) -> int:
        """Use up whatever tokens of a subject are out; how many."""
        query = "UPDATE tokens SET used_s = ?1 WHERE subject = ?2 AND used_s IS NULL AND ends_s > ?1 RETURNING 1"
        return len(self._db.execute(query, (_s(now), subject)).fetchall())

    def _undo(self) -> None:
        with contextlib.suppress(apsw.Error):
            self._db.execute("ROLLBACK")


def _s(moment: datetime) -> int:
    return int(moment.timestamp())


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _issued(serial: str, subject: str, kind: str, fingerprint: str, *moments: Any) -> Issued:
    issued, ends, revoked, life_s = moments
    return Issued(
        serial=int(serial, 16),
        subject=subject,
        kind=kind,
        fingerprint=fingerprint,
        issued=_at(issued),
        ends=_at(ends),
        revoked=None if revoked is None else _at(revoked),
        life=None if life_s is None else timedelta(seconds=life_s),
    )
