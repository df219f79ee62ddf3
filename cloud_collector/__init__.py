"""The cloud collector, and `connect`, the analyst's way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud_collector.client import Client


def connect(url: str) -> Client:
    """Connect to a collector; see :func:`cloud_collector.client.connect`."""
    from cloud_collector.client import connect as _connect  # noqa: PLC0415  # `import cloud_collector` stays light

    return _connect(url)
