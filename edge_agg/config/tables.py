"""The tables of an agent's config: what a person may write, as frozen types closed to fields they do not name."""

from __future__ import annotations

from datetime import date  # noqa: TC003 - msgspec reads the annotations
from typing import Literal

import msgspec


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the config."""


class AgentTable(_Strict, frozen=True, kw_only=True):
    """`[agent]`: who the agent is, and what it waits for."""

    name: str
    """The node's name at the collector."""
    state: str
    """The folder of the journal; only this agent may use it."""
    tenant: str = "default"
    """Whose agent it is, at the collector; its certificate says the same."""
    spool: Literal["disk", "memory"] = "disk"
    """Whether events that were handed over wait on disk until their window is sealed; see the page of sources."""
    hold: str = "10m"
    """How long windows wait, at most, for a source that is not current."""
    stop_s: float = 10.0
    """How long a stop may take to send what is sealed."""
    unheard: Literal["wait", "draw"] = "wait"
    """Windows from before a restart, while the collector cannot be told how far the journal is."""
    policy: str | None = None
    """The device's own policy, which no plan overrides."""


class MemoryTable(_Strict, frozen=True, kw_only=True):
    """`[memory]`: the ceiling on what the agent holds in memory."""

    limit: str = "1GiB"
    """Resident memory at which nothing more is taken in."""


class DiskTable(_Strict, frozen=True, kw_only=True):
    """`[disk]`: the ceiling on the state folder, and how long raw events may lie there."""

    limit: str = "4GiB"
    """What the state folder may hold: the spool has what the journal and its reserve leave."""
    spool_age: str = "35d"
    """How long a raw event may lie on disk, whatever becomes of its window."""


class ClockTable(_Strict, frozen=True, kw_only=True):
    """`[clock]`: when the machine's clock is believed."""

    max_jump: str = "5m"
    """How far wall time may move against time since boot before the agent holds."""
    settle: str = "1h"
    """How long a clock must run steadily after a jump before it is believed."""


class CollectorTable(_Strict, frozen=True, kw_only=True):
    """`[collector]`: where releases go, and when."""

    url: str
    """`host:port`; without the three files below only loopback."""
    ca_file: str | None = None
    """Who may vouch for the collector, in PEM."""
    cert_file: str | None = None
    """The agent's certificate, as `edge-agg enroll` wrote it."""
    key_file: str | None = None
    """The certificate's key."""
    batch: int = 20
    """Releases in one call."""
    deadline_s: float = 20.0
    """How long one call may take."""
    leave_every: str = "1s"
    """Releases leave at whole multiples of this, so that the moment does not tell how long the noise took."""
    retry_first_s: float = 0.5
    """The first back-off."""
    retry_limit_s: float = 60.0
    """The longest back-off."""


class AccountTable(_Strict, frozen=True, kw_only=True):
    """`[[account]]`: one population's budget."""

    name: str
    """What `[[plan]].account` calls it."""
    privacy_unit: str
    """The column that identifies the population's units in every plan of the account."""
    epsilon: float
    """The loss of one unit at this site in any horizon, 1000 at most."""
    delta: float
    """The delta that goes with it, between 0 and 1."""
    horizon: str
    """The span of event time that the budget is for, `1d` to `36525d`."""
    discovery: float | None = None
    """The part of delta that key discovery may use in a horizon; half of it if absent and a plan discovers keys."""


class _Source(_Strict, frozen=True, tag_field="kind", kw_only=True):
    """`[[source]]`."""


class FileTable(_Source, frozen=True, tag="file"):
    """Whole files that are renamed into place."""

    path: str
    """A glob pattern of parquet, ndjson, csv or arrow files."""


class TailTable(_Source, frozen=True, tag="tail"):
    """Files that grow, a line an event; rotated and truncated as logs are."""

    path: str
    """A glob pattern."""
    format: Literal["ndjson", "csv"] = "ndjson"
    """How a line is read; CSV has a header."""


class HttpTable(_Source, frozen=True, tag="http"):
    """`POST /v1/events`: NDJSON or an Arrow IPC stream."""

    listen: str
    """`host:port` on loopback, or `unix:PATH`."""
    token_file: str | None = None
    """A file with the bearer token that callers must show."""
    max_body: str = "16MiB"
    """The longest body, decompressed."""


class MqttTable(_Source, frozen=True, tag="mqtt"):
    """Subscribed topics of a broker, at least once (QoS 1), a JSON object a message or lines of them."""

    url: str
    """`mqtt://host:port`, or `mqtts://host:port`."""
    topics: list[str]
    """Topic filters, at least one."""
    client_id: str
    """Stable: the broker keeps what this client has not acknowledged under it."""
    version: Literal["3.1.1", "5"] = "5"
    """The protocol's version."""
    username: str | None = None
    """Shown to the broker."""
    password_file: str | None = None
    """Holds the password that goes with it."""
    ca_file: str | None = None
    """Who may vouch for the broker, in PEM; absent: the machine's authorities."""


class OtlpTable(_Source, frozen=True, tag="otlp"):
    """Logs and traces of OpenTelemetry, over gRPC; attributes become columns."""

    listen: str
    """`host:port` on loopback, or `unix:PATH`."""
    signals: list[Literal["logs", "traces"]] = msgspec.field(default_factory=lambda: ["logs", "traces"])
    """What is taken."""


class StdinTable(_Source, frozen=True, tag="stdin"):
    """Standard input, a line an event."""

    format: Literal["ndjson", "csv"] = "ndjson"
    """How a line is read; CSV has a header."""


SourceTable = FileTable | TailTable | HttpTable | MqttTable | OtlpTable | StdinTable


class PlanTable(_Strict, frozen=True, kw_only=True):
    """`[[plan]]`: a plan that this agent runs."""

    path: str
    """The plan's file."""
    account: str
    """The account that pays for it."""


class HistoryTable(_Strict, frozen=True, kw_only=True):
    """`[history]`: the public span of a backfill, so that which windows exist does not depend on the data."""

    start: date
    """The first day, from midnight UTC."""
    end: date
    """The first day after it."""


class Config(_Strict, frozen=True, kw_only=True):
    """A whole agent config; build it with :func:`load`."""

    agent: AgentTable
    collector: CollectorTable
    account: list[AccountTable]
    source: list[SourceTable]
    plan: list[PlanTable]
    history: HistoryTable | None = None
    memory: MemoryTable = MemoryTable()
    disk: DiskTable = DiskTable()
    clock: ClockTable = ClockTable()
