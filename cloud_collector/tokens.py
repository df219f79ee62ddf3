"""Analysts' bearer tokens: read-only, of one tenant, for some plans or all of them, until a date.

Place: the gate looks a token up once a call; the command line issues, lists and revokes.
On disk: `tokens.sqlite`, mode 0600, a row a token for ever.
Invariants: what is stored lets nobody in; a token that is revoked or over is unknown from the next call on.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import apsw

from cloud_collector.caller import Caller, Kind
from cloud_collector.errors import RequestInvalid, StoreFailed
from cloud_collector.secret import hashed, new_secret
from cloud_collector.shelf import opened
from edge_agg.contract.spiffe import is_name

if TYPE_CHECKING:
    import builtins
    from collections.abc import Sequence
    from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
  id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, tenant TEXT NOT NULL, name TEXT NOT NULL, plans TEXT,
  made_s INTEGER NOT NULL, ends_s INTEGER NOT NULL, revoked_s INTEGER
) STRICT;
"""
_COLUMNS = "id, tenant, name, plans, made_s, ends_s, revoked_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is known of a token."""

    id: str
    """What a person revokes it by; lets nobody in."""
    tenant: str
    name: str
    """The analyst's."""
    plans: tuple[str, ...] | None
    """The plans it may ask about; all of the tenant's if None."""
    made: datetime
    ends: datetime
    revoked: datetime | None


class Tokens:
    """The tokens of one collector; use it in one thread.

    Args:
        path: made when it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._db = opened(path, _SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def issue(
        self, tenant: str, name: str, *, plans: Sequence[str] | None, now: datetime, ends: datetime
    ) -> tuple[str, str]:
        """Make a token; its id, and the secret, which is kept nowhere. Raises RequestInvalid."""
        if not (is_name(tenant) and is_name(name)):
            raise RequestInvalid("a tenant or analyst is letters, digits and _.- only, 63 at most")
        token_id, secret = secrets.token_hex(4), new_secret()
        scope = None if plans is None else json.dumps(sorted(set(plans)))
        row = (token_id, hashed(secret), tenant, name, scope, _s(now), _s(ends))
        self._run("INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", row)
        return token_id, secret

    def caller(self, secret: str, now: datetime) -> Caller | None:
        """Who a secret lets in; None if it lets nobody in any more, or never did."""
        rows = self._run(
            f"SELECT {_COLUMNS} FROM tokens WHERE hash = ? AND revoked_s IS NULL AND ends_s > ?",  # noqa: S608  # constant
            (hashed(secret), _s(now)),
        )
        if not rows:
            return None
        token = _token(rows[0])
        plans = None if token.plans is None else frozenset(token.plans)
        return Caller(kind=Kind.ANALYST, tenant=token.tenant, name=token.name, plans=plans)

    def list(self) -> builtins.list[Token]:
        """Every token there ever was, the oldest first."""
        rows = self._run(f"SELECT {_COLUMNS} FROM tokens ORDER BY made_s, id", ())  # noqa: S608  # constant
        return [_token(row) for row in rows]

    def revoke(self, token_id: str, now: datetime) -> bool:
        """Let a token in no more; whether there was one that was let in."""
        return bool(
            self._run(
                "UPDATE tokens SET revoked_s = ? WHERE id = ? AND revoked_s IS NULL RETURNING 1", (_s(now), token_id)
            )
        )

    def _run(self, sql: str, params: tuple[apsw.SQLiteValue, ...]) -> builtins.list[tuple[apsw.SQLiteValue, ...]]:
        try:
            return self._db.execute(sql, params).fetchall()
        except apsw.Error:
            raise StoreFailed("tokens.sqlite: cannot be read or written") from None


def _s(moment: datetime) -> int:
    return int(moment.timestamp())


def _token(row: Sequence[apsw.SQLiteValue]) -> Token:
    token_id, tenant, name, plans, *moments = row
    made, ends, revoked = (None if one is None else datetime.fromtimestamp(int(str(one)), UTC) for one in moments)
    assert made is not None
    assert ends is not None
    scope = None if plans is None else tuple(json.loads(str(plans)))
    return Token(
        id=str(token_id),
        tenant=str(tenant),
        name=str(name),
        plans=scope,
        made=made,
        ends=ends,
        revoked=revoked,
    )
