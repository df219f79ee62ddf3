"""A config without its secrets.

Invariant: what may be shown is listed; a field that is not in the list (a new one, say) is hidden.
"""

from __future__ import annotations

from typing import Any

import msgspec

HIDDEN = "(hidden)"
SHOWN = frozenset(
    {
        *("name", "state", "tenant", "spool", "hold", "policy"),
        *("limit", "spool_age", "max_jump", "settle", "url"),
        *("account", "privacy_unit", "horizon", "start", "end"),
        *("kind", "path", "format", "listen", "max_body", "topics", "version", "signals"),
        *("token_file", "password_file", "ca_file"),
    }
)
"""Fields whose texts may be shown. Files of secrets are named, not read; `username` and `client_id` are not here."""


def redacted(table: Any) -> Any:
    """A table, or a whole config, as plain values, with every text that is not listed hidden."""
    return _redact("", msgspec.to_builtins(table))


def _redact(name: str, value: Any) -> Any:
    match value:
        case dict():
            return {key: _redact(str(key), part) for key, part in value.items()}
        case list():
            return [_redact(name, part) for part in value]
        case str():
            return _without_login(value) if name in SHOWN else HIDDEN
        case _:
            return value


def _without_login(text: str) -> str:
    """An address without what stands before its `@`: people put passwords there."""
    head, separator, tail = text.rpartition("@")
    scheme, slashes, _ = head.partition("://")
    return text if not separator else f"{scheme}{slashes}{HIDDEN}@{tail}" if slashes else f"{HIDDEN}@{tail}"
