"""Waiting for what another process or thread will do: a busy machine takes longer, and is no failure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE_S = 90.0
"""After so long it will not happen any more, seconds."""


def wait_until(holds: Callable[[], object], *, every_s: float = 0.1) -> None:
    """Come back once it holds; fail where it does not in time."""
    ends = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends, "it did not happen in time"
        time.sleep(every_s)
