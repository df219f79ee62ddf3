"""What a person may write: the file's tables and their defaults.

Place: between the file and `files.py`, which checks what types cannot say.
Invariant: strict; a field that no table names is refused.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from cloud_collector.bucket import LakeTable  # noqa: TC001  # msgspec looks it up when it builds `File`
from cloud_collector.config.values import CONNECTIONS


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file, closed to fields it does not name."""


class CollectorTable(_Strict, frozen=True, kw_only=True):
    """`[collector]`: where it listens and keeps things."""

    listen: str = "127.0.0.1:8815"
    data: str = "data"
    seal_every: str = "2s"
    workers: int = 1
    upkeep_every: str = "1m"


class MonitorTable(_Strict, frozen=True, kw_only=True):
    """`[monitor]`: figures, and spans."""

    listen: str | None = None
    traces: str | None = None


class LimitsTable(_Strict, frozen=True, kw_only=True):
    """`[limits]`: how much is taken at once."""

    max_message_bytes: int = 4 * 2**20
    max_queued_releases: int = 2048
    max_batch: int = 64
    max_connections: int = CONNECTIONS


class AnalystTable(_Strict, frozen=True, kw_only=True):
    """`[[analyst]]`: which plans a certificate's holder may ask about; all if none are listed."""

    name: str
    tenant: str = "default"
    plans: list[str] | None = None


class FleetTable(_Strict, frozen=True, kw_only=True):
    """`[fleet]`: what agents are allowed."""

    grace: str = "1h"
    new_incarnation: Literal["accept", "fence"] = "accept"


class LandingTable(_Strict, frozen=True, kw_only=True):
    """`[landing]`: the database that several machines share."""

    url: str
    password_file: str | None = None


class TlsTable(_Strict, frozen=True, kw_only=True):
    """`[tls]`: who the collector is, and whom it believes."""

    cert_file: str
    key_file: str
    ca_file: str
    denied_file: str
    trust_domain: str
    listen_open: str | None = None
    authority: str | None = None
    authority_passphrase_file: str | None = None
    max_connection_age: str = "15m"
    max_connection_grace: str = "1m"
    unlisted_analysts: Literal["all", "none"] = "all"


class PlanEntryTable(_Strict, frozen=True, kw_only=True):
    """`[[plan]]`: a plan that is registered at the start."""

    path: str
    nodes: list[str]
    tenant: str = "default"
    retention: str | None = None


class File(_Strict, frozen=True, kw_only=True):
    """The file."""

    collector: CollectorTable = CollectorTable()
    limits: LimitsTable = LimitsTable()
    monitor: MonitorTable = MonitorTable()
    fleet: FleetTable = FleetTable()
    landing: LandingTable | None = None
    lake: LakeTable | None = None
    tls: TlsTable | None = None
    plan: list[PlanEntryTable] = []
    analyst: list[AnalystTable] = []
