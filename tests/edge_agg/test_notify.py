"""What systemd is told: its words, over its kinds of address; and no ear, however broken, stops the agent."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from edge_agg.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["a path", "an abstract name"])
def ear(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """A supervisor's socket, and its address as systemd writes it."""
    address = str(tmp_path / "notify") if request.param == "a path" else f"@edge-agg-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        listening.setblocking(False)
        yield address, listening


def test_each_word_is_one_datagram(ear: tuple[str, socket.socket]) -> None:
    """Guarantee: the words of sd_notify(3), each as systemd reads it; a line break in a status adds no second word."""
    address, listening = ear
    notifier = Notifier(address=address)
    notifier.starting(180.0)
    assert listening.recv(4096).decode().splitlines()[0] == "EXTEND_TIMEOUT_USEC=180000000"
    notifier.ready()
    notifier.alive()
    notifier.status("3 windows\nREADY=1\n" + "x" * 500)
    notifier.reloading(7)
    notifier.stopping()
    heard = [listening.recv(4096).decode() for _ in range(5)]
    assert heard[:2] == ["READY=1", "WATCHDOG=1"]
    assert heard[2].startswith("STATUS=3 windows READY=1 xxx")
    assert "\n" not in heard[2]
    assert len(heard[2]) <= 207
    assert heard[3:] == ["RELOADING=1\nMONOTONIC_USEC=7", "STOPPING=1"]


def test_the_environment_is_taken() -> None:
    """Guarantee: address and watchdog are read once and removed, so that no child speaks for the agent."""
    environment = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
    assert Notifier.from_environment(environment) == Notifier(address="/run/n", watchdog_s=30.0)
    assert environment == {"A": "b"}
    assert Notifier.from_environment(environment) == Notifier()


@pytest.mark.parametrize(
    "environment",
    [
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": ""},
        {"NOTIFY_SOCKET": "@", "WATCHDOG_USEC": "0"},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "²"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
)
def test_what_is_not_for_us_is_nobody(environment: dict[str, str]) -> None:
    """Guarantee: an address of another kind, a limit that is no number, or another process's watchdog: nothing."""
    assert Notifier.from_environment(environment) == Notifier()


def test_a_deaf_supervisor_stops_nobody(tmp_path: Path) -> None:
    """Guarantee: no socket, a full one, an address that cannot be: the call comes back at once, without an error."""
    for address in (None, str(tmp_path / "gone"), "/" + "x" * 300, "/a\0b", "@" + "y" * 300):
        notifier = Notifier(address=address)
        notifier.ready()
        notifier.status("text")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
        full.bind(str(tmp_path / "full"))
        for _ in range(2_000):  # more than the queue of a socket holds
            Notifier(address=str(tmp_path / "full")).alive()
