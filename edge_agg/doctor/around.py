"""What is around the agent: its clock, its collector, its sources, its files of secrets and certificates, its process.

Invariants: nothing is taken from a source and nothing is sent but the question whether the collector serves; each look
ends within seconds; of a file of a secret no byte is read.
"""

from __future__ import annotations

import ctypes
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from edge_agg.clock import SystemClock
from edge_agg.doctor.finding import Finding, fine, odd, wrong
from edge_agg.errors import ConfigInvalid, EdgeError
from edge_agg.identity import files as disk
from edge_agg.identity.credentials import check_named, lifetime_of
from edge_agg.identity.files import IdentityFiles
from edge_agg.ingest.kinds import source_of
from edge_agg.journal import Journal
from edge_agg.lock import holder
from edge_agg.report.live import ask
from edge_agg.report.status import HOLDING
from edge_agg.timekeeper import PLAUSIBLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_agg.config import Config
    from edge_agg.contract.plan import Plan

DEADLINE_S = 3.0
"""How long the collector may take to say that it serves."""
SOON = timedelta(days=30)
"""How long before its end a certificate is worth a word."""
_UNSYNCHRONISED = 5
"""TIME_ERROR of adjtimex(2)."""
_SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}."""


def examine_clock(config: Config, *, now: datetime) -> Finding:
    """Whether the time is one that this agent can have, and whether anything sets the clock."""
    about = "clock"
    set_it = "Set the clock, and let NTP keep it: the agent holds while it does not believe the time."
    if now < PLAUSIBLE:
        return wrong(about, f"shows {now:%Y-%m-%d}: it was never set", set_it)
    created, seen = _known_times(config)
    if created is not None and now < created:
        return wrong(about, f"shows {now:%Y-%m-%d}, and the journal was made on {created:%Y-%m-%d}", set_it)
    if seen is not None and now < seen - timedelta(minutes=5):
        return wrong(about, f"is behind {seen:%Y-%m-%d %H:%M}, which the agent saw before", set_it)
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is not None and adjtimex(ctypes.create_string_buffer(512)) == _UNSYNCHRONISED:
        return odd(about, f"shows {now:%Y-%m-%d %H:%M} UTC; the kernel says that nothing sets it", "Run an NTP client.")
    return fine(about, f"shows {now:%Y-%m-%d %H:%M} UTC")


def _known_times(config: Config) -> tuple[datetime | None, datetime | None]:
    """When the journal was made, and the latest time that was noted in it."""
    try:
        journal = Journal.read(Path(config.agent.state), config.agent.name)
        times = journal.created, journal.last_seen
        journal.close()
    except EdgeError:
        return None, None  # the journal has its own line
    return times


def examine_collector(config: Config) -> Finding:
    """Whether the collector can be reached, and says that it serves."""
    about, url = "collector", config.collector.url
    remedy = "Look whether it runs, and at the tunnel or firewall on the way. Nothing is lost meanwhile: releases wait."
    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(url, options=options) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
        )
        try:
            answer = check(b"", timeout=DEADLINE_S)
        except grpc.RpcError as error:
            status = error.code() if isinstance(error, grpc.Call) else None
            if status is grpc.StatusCode.UNIMPLEMENTED:
                return fine(about, f"{url} answers")
            said = "says nothing" if status is None else f"says {status.name}"
            return wrong(about, f"{url} {said}", remedy)
    return fine(about, f"{url} serves") if answer == _SERVING else wrong(about, f"{url} does not serve", remedy)


def examine_sources(config: Config, plans: Sequence[Plan]) -> Iterator[Finding]:
    """Whether each source is there and can give the plans' columns, as far as that shows without taking anything."""
    columns = {name: kind for plan in plans for name, kind in plan.events.columns.items()}
    for i, table in enumerate(config.source):
        about = f"source {i}"
        try:
            source = source_of(table, clock=SystemClock())
            source.check(columns)
        except EdgeError as error:
            yield wrong(about, str(error), "Correct the source, or the plan's [events].")
        except Exception as error:  # noqa: BLE001  # a library's text may quote what it read
            yield wrong(about, f"cannot be looked at ({type(error).__name__})", "See the agent's log.")
        else:
            yield fine(about, source.name)


def examine_files(config: Config, *, now: datetime) -> Iterator[Finding]:
    """The files of secrets and certificates that the config names."""
    if config.collector.cert_file is not None:
        yield _own_certificate(config, now)
    for i, table in enumerate(config.source):
        for field in ("token_file", "password_file"):
            if (name := getattr(table, field, None)) is not None:
                yield _secret(f"source {i}, {field}", Path(name))
        if (name := getattr(table, "ca_file", None)) is not None:
            yield _certificates(f"source {i}, ca_file", Path(name), now)
    if config.agent.policy is not None:
        yield _policy_file(Path(config.agent.policy))


def examine_process(config: Config) -> Finding:
    """Whether the agent runs, answers, and takes events in."""
    about, folder = "agent", Path(config.agent.state)
    pid = holder(folder)
    if pid is None:
        return odd(about, "does not run", "Start it: `systemctl start edge-agg`, or `edge-agg run`.")
    live = ask(folder)
    if live is None:
        return odd(about, f"runs (pid {pid}) and does not answer", "See its log; a drain does not answer either.")
    if live.holding == "fenced":
        remedy = "Ask the people who run the fleet; `cloud-collector fleet list` tells them why. Keep the state folder."
        return wrong(about, f"runs (pid {pid}) and draws nothing: the collector has fenced it", remedy)
    if live.holding is not None:
        return odd(about, f"runs (pid {pid}) and holds: {live.holding}", f"{HOLDING.get(live.holding, 'See its log')}.")
    return fine(about, f"runs (pid {pid})")


def _secret(about: str, path: Path) -> Finding:
    try:
        found = path.stat()
    except OSError as error:
        return wrong(about, f"{path} cannot be read ({error.strerror})", "Write the secret there, for its owner alone.")
    if found.st_mode & 0o077:
        return wrong(about, f"{path} may be read by others", f"chmod go= {path}, and change the secret.")
    return (
        fine(about, "its owner's alone")
        if found.st_size
        else wrong(about, f"{path} is empty", "Write the secret there.")
    )


def _policy_file(path: Path) -> Finding:
    about = "policy file"
    try:
        loose = path.stat().st_mode & 0o022 or path.parent.stat().st_mode & 0o002
    except OSError as error:
        return wrong(about, f"{path} cannot be read ({error.strerror})", "The agent does not start without it.")
    if loose:
        return wrong(about, f"{path} may be changed by others", "Only the device's owner decides: chmod go-w it.")
    return fine(about, "its owner's to change")


def _own_certificate(config: Config, now: datetime) -> Finding:
    """The agent's own: it warns and renews at two thirds of its life, and so does this."""
    about, held = "certificate", lifetime_of(config.collector)
    again = "Enroll again with a new one-time token: `edge-agg enroll --replace`. What is sealed is kept."
    if held is None:
        return wrong(about, f"{config.collector.cert_file} cannot be read", again)
    table = config.collector
    files = IdentityFiles(ca=Path(str(table.ca_file)), cert=Path(str(table.cert_file)), key=Path(str(table.key_file)))
    try:
        disk.read(files)
        check_named(files, tenant=config.agent.tenant, agent=config.agent.name)
    except ConfigInvalid as error:
        return wrong(about, str(error), again)
    if now >= held.ends:
        return wrong(about, f"ended on {held.ends:%Y-%m-%d %H:%M}", again)
    if now < held.begins:
        return wrong(about, f"is not good before {held.begins:%Y-%m-%d %H:%M}", "Look at the device's clock.")
    if now >= held.due:
        remedy = "The agent asks for another every hour: see `renewal_failed` in its log, or enroll again."
        return odd(about, f"ends on {held.ends:%Y-%m-%d %H:%M}, and was to be renewed on {held.due:%Y-%m-%d}", remedy)
    return fine(about, f"good until {held.ends:%Y-%m-%d %H:%M}")


def _certificates(about: str, path: Path, now: datetime) -> Finding:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError):
        return wrong(about, f"{path} holds no certificate that can be read", "Put the broker's CA there, as PEM.")
    ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
    if not ends:
        return wrong(about, f"{path} holds no certificate of a CA", "Put the broker's CA there, as PEM.")
    end = datetime.fromtimestamp(min(ends), UTC)
    if end < now:
        return wrong(about, f"a certificate ended on {end:%Y-%m-%d}", f"Put the new one into {path}.")
    if end < now + SOON:
        return odd(about, f"a certificate ends on {end:%Y-%m-%d}", f"Put the new one into {path} before.")
    return fine(about, f"good until {end:%Y-%m-%d}")
