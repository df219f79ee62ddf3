"""Secrets that are given out once and kept as hashes: analysts' bearer tokens, devices' one-time tokens.

Invariants: a secret is 256 random bits, so its sha256 tells nothing: nobody can try them all, and a slow hash, which is
there to protect what people can remember, would only slow down every call.
"""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "eagg_"
"""Lets scanners of repositories and logs find a secret that got lost."""
_BYTES = 32


def new_secret() -> str:
    """A fresh secret, to be shown once."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def hashed(secret: str) -> bytes:
    """What is kept of it."""
    return hashlib.sha256(secret.encode()).digest()
