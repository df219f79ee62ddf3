"""The gRPC server of one process: its services, its addresses, and what it takes of a connection.

Place: before the gate; built by the server's composition.
Invariants: without TLS no address but loopback is listened on, whoever made the config; connections are bounded in
number, and each in calls, header bytes, pings, age and idle time, before any of our code sees it; the end takes no new
calls and finishes those in work.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cloud_collector.errors import ConfigInvalid
from cloud_collector.telemetry import Event, emit
from cloud_collector.tls import ServerFiles
from cloud_collector.turnstile import Turnstile
from edge_agg.contract.address import is_loopback
from edge_agg.contract.v1 import collector_pb2, enrollment_pb2, query_pb2
from edge_agg.contract.v1.collector_pb2_grpc import add_CollectorServiceServicer_to_server
from edge_agg.contract.v1.enrollment_pb2_grpc import add_EnrollmentServiceServicer_to_server
from edge_agg.contract.v1.query_pb2_grpc import add_QueryServiceServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cloud_collector.config import Config
    from cloud_collector.enrollment import EnrollmentService
    from cloud_collector.gate import Gate
    from cloud_collector.service import CollectorService, QueryService

GRACE_S = 10.0
"""How long calls in work may take when the collector stops."""
_SERVICES = (
    collector_pb2.DESCRIPTOR.services_by_name["CollectorService"].full_name,
    query_pb2.DESCRIPTOR.services_by_name["QueryService"].full_name,
    enrollment_pb2.DESCRIPTOR.services_by_name["EnrollmentService"].full_name,
)
BOUNDS = {
    "grpc.max_concurrent_streams": 64,  # calls of one connection; an agent has one, an analyst a few
    "grpc.max_metadata_size": 8 * 1024,  # beyond it calls are refused ever more likely,
    "grpc.absolute_max_metadata_size": 16 * 1024,  # and beyond this always: a bearer token has 100 bytes
    "grpc.max_connection_idle_ms": 900_000,
    "grpc.server_handshake_timeout_ms": 10_000,  # who connects and says nothing leaves (gRPC's own: two minutes)
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.http2.min_ping_interval_without_data_ms": 10_000,
    "grpc.http2.max_ping_strikes": 2,  # pings above that rate, then the connection goes
}
"""What one connection may ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What stands behind the gate."""

    collector: CollectorService
    query: QueryService
    enrollment: EnrollmentService


@asynccontextmanager
async def listening(config: Config, gate: Gate, services: Services) -> AsyncIterator[str]:
    """Take calls while the body runs, then finish those in work; yields the address.

    Raises:
        ConfigInvalid: an address cannot be listened on, or the certificates do not fit together.
    """
    server = grpc.aio.server(interceptors=[gate, Turnstile()], options=_options(config))
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
        emit(Event.COLLECTOR_DRAINING)
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
    options = {
        **BOUNDS,
        "grpc.max_receive_message_length": config.max_message_bytes,
        "grpc.max_allowed_incoming_connections": config.max_connections,  # at each address: strangers take no agent's
        # One collector to a port: a second one would split the agents' calls. Its own workers are meant to.
        "grpc.so_reuseport": int(config.workers > 1),
    }
    if config.tls is not None:  # who was shut out by another CA, or asks for long, is out after both
        options["grpc.max_connection_age_ms"] = int(config.tls.max_connection_age_s * 1000)
        options["grpc.max_connection_age_grace_ms"] = int(config.tls.max_connection_grace_s * 1000)
    return list(options.items())
