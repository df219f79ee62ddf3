"""Certificates, keys and CAs rotate while the collector runs, and who is shut out is out in time (promise B5)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509

from cloud_collector import listener, server
from cloud_collector.errors import ConfigInvalid
from cloud_collector.tls import ServerFiles
from tests.cloud_collector.fleet import Fleet, pushed, refusal
from tests.cloud_collector.front import release

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def shown(address: str) -> int:
    """The serial of the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=10)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def check_rotation(fleet: Fleet) -> None:
    with fleet.serving() as served:
        for address in (served.address, served.open):
            before, following = shown(address), fleet.server()
            (fleet.folder / "server" / "key.pem").write_bytes(following.key)
            assert shown(address) == before  # half of a rotation changes nothing
            (fleet.folder / "server" / "cert.pem").write_bytes(following.chain)
            assert shown(address) == x509.load_pem_x509_certificate(following.chain).serial_number != before
        events = [event for event, _ in served.events if event.startswith("tls_files")]
        assert events == ["tls_files_unusable", "tls_files_loaded"] * 2
        assert "PRIVATE" not in str(served.events)


def test_a_new_certificate_is_shown_without_a_restart(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """On both ports, from the next connection on; a key without its certificate waits. Mutant: read at start."""
    check_rotation(fleet)
    with monkeypatch.context() as mutant:
        mutant.setattr(ServerFiles, "_refreshed", lambda self: self._current)
        with pytest.raises(AssertionError):
            check_rotation(fleet)


def check_other_ca(fleet: Fleet, other: Fleet, *, age_s: float) -> str:
    """Trust both, then the other alone: ours is out within the bound, on a connection that lives."""
    ca = fleet.folder / "server" / "ca.pem"
    ca.write_bytes(fleet.anchors)
    ours, new = fleet.holder("acme", "jfk"), other.holder("acme", "lga")
    grace_s = 0.2
    with (
        fleet.serving(max_connection_age_s=age_s, max_connection_grace_s=grace_s) as served,
        ours.channel(served.address, fleet.anchors) as channel,
    ):
        with new.channel(served.address, fleet.anchors) as early:
            assert refusal(lambda: pushed(early, release("lga", 0, tenant="acme"))) == "UNAVAILABLE"
        ca.write_bytes(fleet.anchors + other.anchors)
        with new.channel(served.address, fleet.anchors) as late:
            pushed(late, release("lga", 0, tenant="acme"))
        pushed(channel, release("jfk", 0, tenant="acme"))
        ca.write_bytes(other.anchors)
        begun = time.monotonic()
        bound_s = 1.1 * age_s + grace_s  # gRPC spreads ages by a tenth
        with contextlib.suppress(grpc.RpcError):
            while time.monotonic() - begun < 5:
                pushed(channel, release("jfk", 0, tenant="acme"))
        gone_s = time.monotonic() - begun
        assert gone_s < bound_s + 1  # a second for two busy cores
        return f"out after {gone_s:.2f} s, bound {bound_s:.2f} s"


@pytest.mark.slow
def test_who_loses_their_ca_is_out_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """CAs rotate by a file; a connection that was let in before ends within max_connection_age and its grace.

    Mutant: connections have no age.
    """
    (tmp_path / "ours").mkdir()
    (tmp_path / "other").mkdir()
    fleet, other = Fleet(tmp_path / "ours"), Fleet(tmp_path / "other")
    record_property(
        "figure", f"a CA taken away from a connection that lives: {check_other_ca(fleet, other, age_s=1.0)}"
    )
    real = listener._options
    with monkeypatch.context() as mutant:
        mutant.setattr(listener, "_options", lambda config: [one for one in real(config) if "age" not in one[0]])
        with pytest.raises(AssertionError):
            check_other_ca(fleet, other, age_s=1.0)


def resumed(address: str, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession]:
    """Begin HTTP/2 and wait for an answer; whether the session was resumed, and the one that follows."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname=host, session=session) as secured,
    ):
        secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        if not secured.recv(100):
            raise ConnectionResetError
        assert secured.session is not None
        return bool(secured.session_reused), secured.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_not_resumed_past_its_ca(fleet: Fleet, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """A ticket skips the look at the certificate, so it must end with the files that it was made under."""
    (tmp_path / "other").mkdir()
    other, files = Fleet(tmp_path / "other"), fleet.hand_out("jfk", fleet.holder("acme", "jfk"))
    context = ssl.create_default_context(cafile=str(files / "ca.pem"))
    context.load_cert_chain(files / "cert.pem", files / "key.pem")
    context.set_alpn_protocols(["h2"])
    context.maximum_version = version
    with fleet.serving() as served:
        _, session = resumed(served.address, context, None)
        again, session = resumed(served.address, context, session)
        assert again  # as long as nothing changed it is: or this test shows nothing
        (fleet.folder / "server" / "ca.pem").write_bytes(other.anchors)
        with pytest.raises(OSError, match=r"(?i)ssl|reset|eof|^$"):
            resumed(served.address, context, session)


def handshake(address: str, most: ssl.TLSVersion) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, most
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw, context.wrap_socket(raw) as secured:
        return secured.version()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_nothing_below_tls_1_2_is_spoken(fleet: Fleet) -> None:
    """1.2 and 1.3 are; 1.1 and plain text end in the handshake."""
    with fleet.serving() as served:
        assert handshake(served.open, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert handshake(served.open, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        for address in (served.open, served.address):
            with pytest.raises(OSError, match=r"(?i)ssl|reset|eof"):
                handshake(address, ssl.TLSVersion.TLSv1_1)
            with grpc.insecure_channel(address) as channel:
                assert (
                    refusal(lambda channel=channel: pushed(channel, release("jfk", 0, tenant="acme"))) == "UNAVAILABLE"
                )


def test_the_port_for_certificates_takes_nobody_without(fleet: Fleet) -> None:
    """A token opens nothing there: the handshake asks for a certificate."""
    with (
        fleet.serving() as served,
        grpc.secure_channel(served.address, grpc.ssl_channel_credentials(fleet.anchors)) as channel,
    ):
        assert refusal(lambda: pushed(channel, release("jfk", 0, tenant="acme"))) == "UNAVAILABLE"


def test_a_servers_certificate_makes_no_caller_and_an_agents_no_server(fleet: Fleet) -> None:
    """Roles are fixed by extended key usage: a stolen agent's key does not stand in for the collector."""
    with fleet.serving() as served:
        thief = fleet.server()
        with thief.channel(served.address, fleet.anchors) as channel:
            assert refusal(lambda: pushed(channel, release("jfk", 0, tenant="acme"))) == "UNAVAILABLE"
    fleet.hand_out("server", fleet.holder("acme", "jfk"))
    jfk = fleet.holder("acme", "jfk")
    with fleet.serving() as served, jfk.channel(served.address, fleet.anchors) as channel:
        assert refusal(lambda: pushed(channel, release("jfk", 0, tenant="acme"))) == "UNAVAILABLE"


def start(config: Any) -> None:
    asyncio.run(asyncio.wait_for(server.serve(config, stop=asyncio.Event(), ready=lambda _: None), 1))


def test_without_tls_the_server_itself_refuses_every_other_address(fleet: Fleet) -> None:
    """Also where the config was not read from a file, which checks it as well."""
    config = dataclasses.replace(fleet.config(), tls=None, listen="0.0.0.0:0")
    with pytest.raises(ConfigInvalid, match="only a loopback address"):
        start(config)


@pytest.mark.parametrize(
    ("file", "data", "field"),
    [
        ("key.pem", b"", "key_file"),
        ("cert.pem", b"", "cert_file"),
        ("ca.pem", b"", "ca_file"),
        ("key.pem", None, "tls"),
        ("key.pem", "other", "key_file"),
    ],
)
def test_files_that_do_not_fit_stop_the_start(fleet: Fleet, file: str, data: bytes | str | None, field: str) -> None:
    """Before the first call, naming the field."""
    path, config = fleet.folder / "server" / file, fleet.config()
    if data is None:
        path.unlink()
    else:
        path.write_bytes(fleet.server().key if isinstance(data, str) else data)
    with pytest.raises(ConfigInvalid, match=field):
        start(config)


def greeted(address: str) -> tuple[socket.socket, bool]:
    """A connection that begins no handshake, and whether the collector keeps it open."""
    host, _, port = address.rpartition(":")
    held = socket.create_connection((host, int(port)), timeout=10)
    held.settimeout(1.0)
    try:
        return held, held.recv(1) != b""
    except TimeoutError:
        return held, True
    except OSError:
        return held, False


def check_connections(fleet: Fleet, most: int) -> None:
    jfk = fleet.holder("acme", "jfk")
    config = dataclasses.replace(fleet.config(listen_open="127.0.0.1:0"), max_connections=most)
    with pytest.MonkeyPatch.context() as patched, contextlib.ExitStack() as held:
        patched.setattr(fleet, "config", lambda *plans, **more: config)
        with fleet.serving() as served:
            kept = []
            for _ in range(most + 2):
                one, is_open = greeted(served.open)
                held.callback(one.close)
                kept.append(is_open)
            assert kept == [True] * most + [False] * 2
            with jfk.channel(served.address, fleet.anchors) as channel:
                pushed(channel, release("jfk", 0, tenant="acme"))


def test_one_connection_more_than_there_is_room_for_is_closed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a handshake is paid for; those at the open address take no room of agents'. Mutant: no such bound."""
    check_connections(fleet, 3)
    real = listener._options
    monkeypatch.setattr(listener, "_options", lambda config: [one for one in real(config) if "incoming" not in one[0]])
    with pytest.raises(AssertionError):
        check_connections(fleet, 3)
