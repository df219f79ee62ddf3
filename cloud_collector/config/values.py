"""What the config comes to: absolute paths, seconds, sizes.

Place: below the tables, and all that the rest of the collector knows of its config.
Invariant: built by :func:`cloud_collector.config.load`, or by a test that says every field.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from cloud_collector.caller import EVERYTHING, Scopes

if TYPE_CHECKING:
    from pathlib import Path

    from cloud_collector.bucket import Bucket

MAX_WORKERS = 64
"""More processes than this only wait for each other's commits."""

CONNECTIONS = 4096
"""So many at one address, idle, cost a process 330 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """A plan to register at start."""

    path: Path
    """The plan's file, absolute."""
    nodes: tuple[str, ...]
    """The agents that are expected to report."""
    tenant: str = "default"
    """Whose plan it is."""
    retention: timedelta | None = None
    """How long what was released under this tenant's plans of this name is kept; for ever if None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """`[tls]`: how callers prove who they are."""

    cert_file: Path
    """The collector's certificate and its issuers', in PEM."""
    key_file: Path
    ca_file: Path
    """Who may vouch for callers, in PEM."""
    denied_file: Path
    """Certificates that are taken no more."""
    trust_domain: str
    """Ids of other domains are nobody's."""
    listen_open: str | None
    """`host:port` for those who have no certificate: bearer tokens and enrollment; nowhere if None."""
    authority: Path | None
    """The folder of the authority that enrolls devices; without one, none are."""
    authority_passphrase_file: Path | None
    """Holds what opens the authority's `issuer.key`; None: it is not encrypted."""
    max_connection_age_s: float
    """A connection is told to end after this time, seconds."""
    max_connection_grace_s: float
    """And is cut off after this time more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """`[landing]`: a database on a server, which several collectors share."""

    url: str
    """Of PostgreSQL, without a password."""
    password_file: Path | None = None
    """Read at every connection, so a password may change meanwhile; None where the server asks for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything the collector is told; build it with :func:`load`."""

    listen: str
    """`host:port`; port 0 lets the system choose."""
    data: Path
    """The folder of all that is kept, absolute."""
    seal_every_s: float
    """Seconds between two moves from the landing to the lake."""
    max_message_bytes: int
    """The largest request that is read."""
    max_queued_releases: int
    """Releases that may wait for a commit; more are refused as overload."""
    max_batch: int
    """Releases in one request."""
    max_connections: int = CONNECTIONS
    """Of one process, at each of its addresses; one more is closed before its handshake."""
    plans: tuple[PlanEntry, ...]
    """Registered at start."""
    workers: int = 1
    """Processes that take calls on the one address; with more than one, another seals and one looks after them."""
    monitor: str | None = None
    """`host:port` of the page for Prometheus and of liveness and readiness; nowhere if None."""
    traces: str | None = None
    """`http://host:port` of an OTLP collector that spans are sent to; nowhere if None."""
    upkeep_every_s: float = 60.0
    """Seconds between two rounds of retention and compaction."""
    new_incarnation: Literal["accept", "fence"] = "accept"
    """What is done with an agent that comes with a new journal: taken with an alarm, or shut out."""
    grace: timedelta = timedelta(hours=1)
    """How long after a window's end and the plan's lateness its release may take before it is overdue."""
    scopes: Scopes = EVERYTHING
    """Which plans analysts with certificates may ask about."""
    bucket: Bucket | None = None
    """Where the sealed tables are kept; in the data folder if None."""
    tls: Tls | None = None
    """None: loopback only, and whoever calls may do everything."""
    database: Database | None = None
    """Where the landing is, if it is on a server; None: a file in the data folder."""

    @property
    def landing(self) -> Path | Database:
        """Where the landing is."""
        return self.landing_path if self.database is None else self.database

    @property
    def landing_path(self) -> Path:
        """The landing's file."""
        return self.data / "landing.sqlite"

    @property
    def turns_path(self) -> Path:
        """The file that whoever seals holds a lock on."""
        return self.data / "sealer.lock"

    @property
    def figures_path(self) -> Path:
        """The folder where several processes keep their figures."""
        return self.data / "figures"

    @property
    def rollups_path(self) -> Path:
        """The file of the roll-ups."""
        return self.data / "rollups.sqlite"

    @property
    def plans_path(self) -> Path:
        """The folder of registered plans."""
        return self.data / "plans"

    @property
    def tokens_path(self) -> Path:
        """The file of the analysts' tokens."""
        return self.data / "tokens.sqlite"

    @property
    def lake_path(self) -> Path:
        """The folder of the sealed tables, where no bucket keeps them."""
        return self.data / "lake"
