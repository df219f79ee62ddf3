"""Tells systemd how the agent is: starting, ready, alive, stopping; a datagram each, over the socket that it names.

Place: beside the composition root, which says when; without a supervisor that listens nothing is sent.
Invariants: no error of it ever stops or delays the agent (the socket never blocks); what is said holds no value and no
count of the data.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_MAX_STATUS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Notifier:
    """A supervisor's ear, or nobody's."""

    address: str | None = None
    """Of a Unix datagram socket; a leading `@` stands for the abstract namespace."""
    watchdog_s: float | None = None
    """:meth:`alive` must be called at least that often, or the supervisor starts the agent anew; None: never."""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Self:
        """Take what systemd says to this process, out of the environment: children must not speak for the agent."""
        found = os.environ if environment is None else environment
        address = found.pop("NOTIFY_SOCKET", "")
        limit_us, pid = found.pop("WATCHDOG_USEC", ""), found.pop("WATCHDOG_PID", "")
        meant = pid in {"", str(os.getpid())}
        limited = meant and limit_us.isdecimal() and 0 < int(limit_us) < 2**63
        return cls(
            address=address if address[:1] in {"/", "@"} and len(address) > 1 else None,
            watchdog_s=int(limit_us) / 1e6 if limited else None,
        )

    def starting(self, extend_s: float) -> None:
        """The start goes on; the supervisor ends it only if it hears nothing more for `extend_s` seconds."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(extend_s * 1e6)}\nSTATUS=starting: reading raw events back")

    def ready(self) -> None:
        """The agent has started: its journal is open, its sources were looked at."""
        self._send("READY=1")

    def alive(self) -> None:
        """The loop turns."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """A stop was asked for; what is sealed is being sent."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split())[:_MAX_STATUS])

    def reloading(self, monotonic_us: int) -> None:
        """The config is being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_us}")

    def _send(self, text: str) -> None:
        if self.address is None:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.setblocking(False)
            ear.sendto(text.encode("utf-8", "replace"), address)
