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
    """`host:port` of calls; port 0 lets the system choose; without `[tls]` loopback only."""
    data: str = "data"
    """The folder of all that is kept on this machine."""
    seal_every: str = "2s"
    """Time between two moves from the landing to the lake."""
    workers: int = 1
    """Processes that take calls on the one address, 64 at most; with more than one, another seals."""
    upkeep_every: str = "1m"
    """Time between two rounds of retention and compaction."""


class MonitorTable(_Strict, frozen=True, kw_only=True):
    """`[monitor]`: where figures are read, and where spans are sent."""

    listen: str | None = None
    """`host:port` of `/metrics`, `/live` and `/ready`; nowhere if absent."""
    traces: str | None = None
    """URL of an OTLP collector that spans are sent to; nowhere if absent."""


class LimitsTable(_Strict, frozen=True, kw_only=True):
    """`[limits]`: how much is taken at once."""

    max_message_bytes: int = 4 * 2**20
    """The largest request that is read."""
    max_queued_releases: int = 2048
    """Releases that may wait for a commit; more are refused as overload."""
    max_batch: int = 64
    """Releases in one request."""
    max_connections: int = CONNECTIONS
    """Connections of one process, at each of its addresses; one more is closed before its handshake."""


class AnalystTable(_Strict, frozen=True, kw_only=True):
    """`[[analyst]]`: which plans a certificate's holder may ask about."""

    name: str
    """As it stands in the certificate."""
    tenant: str = "default"
    """Whose analyst it is."""
    plans: list[str] | None = None
    """Names of plans; all if absent, none if empty."""


class FleetTable(_Strict, frozen=True, kw_only=True):
    """`[fleet]`: what agents are allowed."""

    grace: str = "1h"
    """How long after a window's end and the plan's lateness its release may take before it is overdue."""
    new_incarnation: Literal["accept", "fence"] = "accept"
    """What becomes of a known agent with a new journal: taken with an alarm, or shut out."""


class LandingTable(_Strict, frozen=True, kw_only=True):
    """`[landing]`: the database that several machines share."""

    url: str
    """`postgresql://...`, without a password; `sslmode=verify-full` off loopback."""
    password_file: str | None = None
    """Holds the password; read at every connection."""


class TlsTable(_Strict, frozen=True, kw_only=True):
    """`[tls]`: who the collector is, and whom it trusts."""

    cert_file: str
    """The collector's certificate and its issuers', in PEM."""
    key_file: str
    """The certificate's key."""
    ca_file: str
    """Who may vouch for callers, in PEM."""
    denied_file: str
    """Certificates that are taken no more; see the page of identity."""
    trust_domain: str
    """Ids of other domains are nobody's."""
    listen_open: str | None = None
    """`host:port` for callers without a certificate: bearer tokens, enrollment; nowhere if absent."""
    authority: str | None = None
    """The folder of the authority that enrolls devices; none are enrolled if absent."""
    authority_passphrase_file: str | None = None
    """Holds what opens the authority's `issuer.key`, where that is encrypted."""
    max_connection_age: str = "15m"
    """A connection is told to end after this time."""
    max_connection_grace: str = "1m"
    """And is cut off after this time more."""
    unlisted_analysts: Literal["all", "none"] = "all"
    """Which plans those analysts may ask about whom no `[[analyst]]` names."""


class PlanEntryTable(_Strict, frozen=True, kw_only=True):
    """`[[plan]]`: a plan that is registered at the start."""

    path: str
    """The plan's file."""
    nodes: list[str]
    """The agents that are expected to report, at least one."""
    tenant: str = "default"
    """Whose plan it is."""
    retention: str | None = None
    """How long what was released under this tenant's plans of this name is kept; for ever if absent."""


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
