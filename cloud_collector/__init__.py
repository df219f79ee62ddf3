"""The cloud collector, and `connect`, the analyst's way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cloud_collector.client import Client


def connect(
    url: str,
    *,
    ca: str | Path | None = None,
    token: str | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    timeout_s: float = 30.0,
) -> Client:
    """Connect to a collector; see :func:`cloud_collector.client.connect`."""
    from cloud_collector.client import connect as _connect  # noqa: PLC0415  # `import cloud_collector` stays light

    return _connect(url, ca=ca, token=token, cert=cert, key=key, timeout_s=timeout_s)
