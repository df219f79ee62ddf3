"""The composition root: builds the collector's parts, runs them, and stops them in order.

Place: around the whole path at the collector, from the socket to the lake; no decision about a release is taken here.

Invariants:
- Start is strict: a plan, certificate, address or store that does not work fails before the first call is taken.
- Every service stands behind one gate; without TLS no address but loopback is listened on, whoever made the config.
- Stop is in order: no new calls, finish those in work, seal, close the landing.
- A disk that fails ends the process, after the call that met it was refused; nothing unacked was promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud_collector.denied import DenyList
from cloud_collector.enrollment import EnrollmentService
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.gate import Gate, Identification, local
from cloud_collector.lake import Lake
from cloud_collector.landing import Landing
from cloud_collector.plans import PlanRegistry
from cloud_collector.query import Query
from cloud_collector.rollup import Rollups
from cloud_collector.sealer import Sealer
from cloud_collector.service import CollectorService, Door, QueryService
from cloud_collector.telemetry import Event, emit
from cloud_collector.tls import ServerFiles
from cloud_collector.tokens import Tokens
from cloud_collector.upkeep import Upkeep
from edge_agg.contract.address import is_loopback
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.v1 import collector_pb2, enrollment_pb2, query_pb2
from edge_agg.contract.v1.collector_pb2_grpc import add_CollectorServiceServicer_to_server
from edge_agg.contract.v1.enrollment_pb2_grpc import add_EnrollmentServiceServicer_to_server
from edge_agg.contract.v1.query_pb2_grpc import add_QueryServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from datetime import timedelta

    from cloud_collector.config import Config
    from cloud_collector.service import Lookup
    from edge_agg.contract.plan import Plan, PlanHash

MAX_PUSHES, MAX_QUESTIONS, MAX_ENROLLMENTS = 64, 16, 8
"""Calls of each kind in work at once; more are refused with a pushback."""
GRACE_S = 10.0
"""How long calls in work may take when the collector stops."""
_SERVICES = (
    collector_pb2.DESCRIPTOR.services_by_name["CollectorService"].full_name,
    query_pb2.DESCRIPTOR.services_by_name["QueryService"].full_name,
    enrollment_pb2.DESCRIPTOR.services_by_name["EnrollmentService"].full_name,
)


async def serve(
    config: Config, *, ready: Callable[[str], None] | None = None, stop: asyncio.Event | None = None
) -> None:
    """Run a collector until it is told to stop.

    Args:
        config: what :func:`cloud_collector.config.load` read.
        ready: is told the address that is listened on, with the port that was bound, once calls are taken.
        stop: ends the collector when set; SIGTERM and SIGINT do if there is none.

    Raises:
        ConfigInvalid: a plan or the address does not work: fix what the text names.
        StoreFailed: the disk failed: look at it, then start again.
    """
    ending = stop if stop is not None else _on_signals()
    broken = asyncio.Event()
    registry, retention = _registry(config)
    opened = Landing(config.landing_path, max_queued=config.max_queued_releases, new_incarnation=config.new_incarnation)
    with (
        contextlib.closing(opened) as landing,
        contextlib.closing(Rollups(config.rollups_path)) as rollups,
    ):
        lake = Lake(config.lake_path)
        sealer = Sealer(landing, lake, _plan_of(registry), rollups)
        upkeep = Upkeep(
            lake=lake,
            rollups=rollups,
            sealer=sealer,
            plans=lambda: [(one.plan, one.hash) for one in registry.list()],
            retention=retention,
        )

        def note_failure() -> None:
            if (
                landing.failed or lake.failed
            ):  # a full disk is refused and waited for; an I/O error is the end of this process
                broken.set()

        with (
            _door(MAX_PUSHES, note_failure) as pushes,
            _door(MAX_QUESTIONS, note_failure) as questions,
            _door(MAX_ENROLLMENTS, note_failure) as enrollments,
            _gate(config) as gate,
        ):
            query = Query(registry, lake, sealer.seal, rollups=rollups, behind=landing.behind)
            services = Services(
                collector=CollectorService(landing, _plan_of(registry), door=pushes, max_batch=config.max_batch),
                query=QueryService(registry, query.answer, door=questions),
                enrollment=_enrollment(config, enrollments),
            )
            async with _listening(config, gate, services) as address:
                emit(Event.COLLECTOR_STARTED, listen=address, plans=len(registry.list()))
                if ready is not None:
                    ready(address)
                waits = [asyncio.create_task(event.wait()) for event in (ending, broken)]
                keeping = asyncio.create_task(_keep_up(waits, upkeep, config.upkeep_every_s, note_failure))
                await _seal_until(waits, sealer, config.seal_every_s, note_failure)
                await keeping
        if not broken.is_set():
            await asyncio.to_thread(sealer.seal)
    emit(Event.COLLECTOR_STOPPED)
    if broken.is_set():
        raise StoreFailed("the disk did not keep what it was given: look at it, then start the collector again")


def _on_signals() -> asyncio.Event:
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return ending


def _registry(config: Config) -> tuple[PlanRegistry, dict[str, timedelta]]:
    """The plans, and by name how long their data is kept: where entries disagree, as long as any of them wants."""
    registry = PlanRegistry(config.plans_path)
    wanted: dict[str, list[timedelta | None]] = {}
    for entry in config.plans:
        try:
            added = registry.add_file(entry.path, entry.nodes, tenant=entry.tenant)
        except PlanInvalid as error:
            raise ConfigInvalid(f"{entry.path.name}: {error}") from None
        wanted.setdefault(added.plan.name, []).append(entry.retention)
    kept = {name: [keep for keep in all_of if keep is not None] for name, all_of in wanted.items()}
    return registry, {name: max(keeps) for name, keeps in kept.items() if len(keeps) == len(wanted[name])}


def _plan_of(registry: PlanRegistry) -> Lookup:
    def plan_of(plan_hash: PlanHash, *, tenant: str | None = None) -> Plan | None:
        registered = registry.get(plan_hash, tenant)
        return None if registered is None else registered.plan

    return plan_of


@contextlib.contextmanager
def _door(max_calls: int, store_failed: Callable[[], None]) -> Iterator[Door]:
    door = Door(max_calls=max_calls, threads=2, store_failed=store_failed)
    try:
        yield door
    finally:
        door.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What stands behind the gate."""

    collector: CollectorService
    query: QueryService
    enrollment: EnrollmentService


def _enrollment(config: Config, door: Door) -> EnrollmentService:
    if config.tls is None:
        return EnrollmentService(None, None, door=door)
    return EnrollmentService(config.tls.authority, config.tls.ca_file, door=door)


@contextlib.contextmanager
def _gate(config: Config) -> Iterator[Gate]:
    if config.tls is None:
        yield Gate(local)
        return
    denied = DenyList(config.tls.denied_file)
    with contextlib.closing(Tokens(config.tokens_path)) as tokens:
        yield Gate(
            Identification(domain=config.tls.trust_domain, denied=denied, tokens=tokens, now=lambda: datetime.now(UTC))
        )


@contextlib.asynccontextmanager
async def _listening(config: Config, gate: Gate, services: Services) -> AsyncIterator[str]:
    """Take calls while the body runs, then finish those in work; yields the address."""
    server = grpc.aio.server(interceptors=[gate], options=_options(config))
    add_CollectorServiceServicer_to_server(services.collector, server)
    add_QueryServiceServicer_to_server(services.query, server)
    add_EnrollmentServiceServicer_to_server(services.enrollment, server)
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    address = _bind(server, config)
    await server.start()
    for name in ("", *_SERVICES):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield address
    finally:
        await status.enter_graceful_shutdown()
        await server.stop(GRACE_S)


def _bind(server: grpc.aio.Server, config: Config) -> str:
    """Take the config's addresses; where callers with certificates are listened to."""
    if config.tls is None:
        if not is_loopback(config.listen):
            raise ConfigInvalid("$.collector.listen: without [tls], only a loopback address is listened on")
        return _bound(config.listen, "$.collector.listen", server.add_insecure_port)
    tls = config.tls
    files = ServerFiles(cert_file=tls.cert_file, key_file=tls.key_file, ca_file=tls.ca_file)
    if tls.listen_open is not None:
        without = files.credentials(certificates=False)
        at = _bound(tls.listen_open, "$.tls.listen_open", lambda at: server.add_secure_port(at, without))
        emit(Event.DOOR_OPENED, listen=at)
    shown = files.credentials(certificates=True)
    return _bound(config.listen, "$.collector.listen", lambda at: server.add_secure_port(at, shown))


def _bound(listen: str, field: str, bind: Callable[[str], int]) -> str:
    try:
        port = bind(listen)
    except RuntimeError:
        raise ConfigInvalid(f"{field}: the address is taken or is not this machine's") from None
    return f"{listen.rpartition(':')[0]}:{port}"


def _options(config: Config) -> list[tuple[str, int]]:
    ages: list[tuple[str, int]] = []
    if config.tls is not None:  # who was shut out by another CA, or asks for long, is out after both
        ages = [
            ("grpc.max_connection_age_ms", int(config.tls.max_connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", int(config.tls.max_connection_grace_s * 1000)),
        ]
    return [
        *ages,
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", 128),  # of one connection; the doors bound what is in work
        ("grpc.so_reuseport", 0),  # a second collector on one port would split the agents' calls
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


async def _keep_up(
    waits: Sequence[asyncio.Task[Literal[True]]], upkeep: Upkeep, every_s: float, store_failed: Callable[[], None]
) -> None:
    """Look after the lake at intervals until one of the waits is over."""
    while not any(wait.done() for wait in waits):
        try:
            await asyncio.to_thread(upkeep.run, datetime.now(UTC))
        except Exception as error:  # noqa: BLE001  # nothing that was promised depends on it
            emit(Event.UPKEEP_FAILED, cause=type(error).__name__)
            store_failed()
        await asyncio.wait(waits, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)


async def _seal_until(
    waits: Sequence[asyncio.Task[Literal[True]]], sealer: Sealer, every_s: float, store_failed: Callable[[], None]
) -> None:
    """Seal at intervals until one of the waits is over: the collector is told to stop, or its disk fails."""
    try:
        while not any(wait.done() for wait in waits):
            try:
                await asyncio.to_thread(sealer.seal)
            except StoreFailed:  # the sealer has said so; what was not moved is safe in the landing
                store_failed()
            except Exception as error:  # noqa: BLE001  # as above, but nobody has said so
                emit(Event.SEAL_FAILED, cause=type(error).__name__)
            await asyncio.wait(waits, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
