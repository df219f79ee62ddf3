"""A real Mosquitto for tests, on a port of its own; it can be killed and started again.

`sh tests/conformance/mosquitto.sh` fetches it. Without it the tests are skipped, unless `REQUIRE_BROKER` is set, as
`.ci/run` does.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.publish
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from paho.mqtt.publish import MessageDict

_UNPACKED = Path(__file__).parents[2] / ".tools" / "mosquitto"
_PLACES = [shutil.which("mosquitto"), "/usr/sbin/mosquitto", str(_UNPACKED / "usr/sbin/mosquitto")]
BINARY = next((place for place in _PLACES if place is not None and Path(place).exists()), None)

SETTINGS = """\
user {user}
persistence true
persistence_location {home}/
autosave_interval 0
max_queued_messages 0
max_inflight_messages 20
"""
"""What docs/sources.md tells people to set; it writes to disk when a test says so."""


def need_broker() -> None:
    """Skip the test if there is no Mosquitto, or fail it where there must be one."""
    if BINARY is None:
        text = "no mosquitto: run `sh tests/conformance/mosquitto.sh`"
        if os.environ.get("REQUIRE_BROKER"):
            pytest.fail(text)
        pytest.skip(text)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Broker:
    """One broker process."""

    def __init__(self, home: Path, *, listener: str = "", passwords: Mapping[str, str] | None = None) -> None:
        need_broker()
        self.port = free_port()
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        home.mkdir(parents=True, exist_ok=True)
        text = SETTINGS.format(home=home, user=getpass.getuser())
        if passwords is None:
            text += "allow_anonymous true\n"
        else:
            text += f"password_file {self._hashed(passwords)}\n"
        (home / "mosquitto.conf").write_text(f"listener {self.port} 127.0.0.1\n{listener}\n{text}")

    async def start(self) -> None:
        """Start it, and come back once it listens."""
        self._process = self._spawn()
        async with asyncio.timeout(20):
            while True:
                assert self._process.poll() is None, (self._home / "log").read_text()
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    await writer.wait_closed()
                    return
                await asyncio.sleep(0.02)

    def _spawn(self) -> subprocess.Popen[bytes]:
        assert BINARY is not None
        folders = {str(path.parent) for path in _UNPACKED.rglob("lib*.so*")}
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(
                [BINARY, "-c", str(self._home / "mosquitto.conf")],
                env={**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(folders))},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def _hashed(self, passwords: Mapping[str, str]) -> Path:
        """Write a file of users, as Mosquitto wants it."""
        assert BINARY is not None
        tool = Path(BINARY).parents[1] / "bin" / "mosquitto_passwd"
        file = self._home / "passwords"
        file.write_text("".join(f"{user}:{password}\n" for user, password in passwords.items()))
        subprocess.run([tool, "-U", file], check=True, capture_output=True)
        return file

    async def save(self) -> None:
        """Let it write what it keeps to disk now: it acknowledges first, and writes some time later."""
        assert self._process is not None
        kept = self._home / "mosquitto.db"  # written beside it, and renamed into place
        before = kept.stat().st_ino if kept.exists() else None
        self._process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(20):
            while (kept.stat().st_ino if kept.exists() else None) == before:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """Kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def publish(self, topic: str, payloads: Iterable[bytes], *, qos: int = 1, retain: bool = False) -> None:
        """Publish, and come back once the broker has acknowledged every message."""
        messages: list[MessageDict | tuple[str, Any, int, bool]] = [
            {"topic": topic, "payload": payload, "qos": qos, "retain": retain} for payload in payloads
        ]
        await asyncio.to_thread(paho.mqtt.publish.multiple, messages, hostname="127.0.0.1", port=self.port)
