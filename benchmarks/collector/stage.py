"""What the benchmark runs on: a folder with an authority, certificates and a config, and the processes to measure.

Place: below the benchmark's cases. Everything listens on loopback, with mutual TLS.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.collector.fleet import PLAN, TENANT
from cloud_collector.authority.certificate import new_key
from cloud_collector.authority.folder import Authority

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FLEET = [f"site-{i:02}" for i in range(64)]
"""Who pushes, each one call at a time; as many as one worker takes calls at once, wherever the kernel deals them."""
AGENTS = FLEET[:16]
"""Who pushes where the questions are what is measured."""
_DAY = timedelta(days=1)
_TICKS = os.sysconf("SC_CLK_TCK")
_CONFIG = """
[collector]
listen = "127.0.0.1:0"
data = "data"
workers = {workers}

[limits]
max_queued_releases = 2048

[monitor]
listen = "127.0.0.1:0"

[tls]
cert_file = "server/cert.pem"
key_file = "server/key.pem"
ca_file = "ca.pem"
denied_file = "denied"
trust_domain = "bench.example"

[[plan]]
path = "load.toml"
nodes = {nodes}
tenant = "bench"
"""


def prepare(folder: Path, *, workers: int) -> Path:
    """Write what a collector needs; the config's path."""
    folder.mkdir(parents=True, exist_ok=True)
    Authority.init(folder / "ca", "bench.example", now=datetime.now(UTC))
    with Authority.opened(folder / "ca") as authority:
        key = new_key()
        chain = authority.issue_server(["127.0.0.1"], key.public_key(), _DAY)
        authority.hand_out(folder / "server", key, chain)
        for name, analyst in [*((agent, False) for agent in FLEET), ("analyst", True)]:
            key = new_key()
            spiffe_id = authority.id_of(TENANT, name, analyst=analyst)
            authority.hand_out(folder / name, key, authority.issue_client(spiffe_id, key.public_key(), _DAY))
    (folder / "ca.pem").write_bytes((folder / "server" / "ca.pem").read_bytes())
    (folder / "denied").touch()
    (folder / "load.toml").write_text(PLAN)
    config = folder / "collector.toml"
    config.write_text(_CONFIG.format(workers=workers, nodes=json.dumps(FLEET)))
    return config


@dataclass
class Running:
    """A server under test, and its processes."""

    process: subprocess.Popen[str]
    address: str
    monitor: str = ""

    @property
    def cpu_s(self) -> float:
        """CPU seconds of the process and all its children so far."""
        return sum(_cpu_s(pid) for pid in family(self.process.pid))

    @property
    def rss_mb(self) -> float:
        """Resident megabytes of all its processes together."""
        return sum(_rss_mb(pid) for pid in family(self.process.pid))


@contextlib.contextmanager
def running(*command: str, errors: Path) -> Iterator[Running]:
    """Start a server in a process of its own, and stop it in order."""
    with errors.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=log, text=True, cwd=Path.cwd()
        )
        assert process.stdout is not None, "it is a pipe"
        try:
            said = {}
            for line in process.stdout:
                what, _, address = line.strip().partition(" on ")
                said[what] = address
                if what == "listening":
                    break
            else:
                raise RuntimeError(f"it did not start: {errors.read_text()[-1000:]}")
            yield Running(process, said["listening"], said.get("monitored", ""))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            finally:
                process.stdout.close()


def load(server: Running, folder: Path, *options: str, agents: Sequence[str] = FLEET) -> dict[str, float]:
    """Run the load generator; what it says, and `cpu_us`, the server's CPU microseconds for a summary."""
    before = server.cpu_s
    command = [sys.executable, "-m", "benchmarks.collector.load", server.address, str(folder), *options]
    done = subprocess.run([*command, "--agents", *agents], capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    said["cpu_us"] = (server.cpu_s - before) / max(1, said["summaries"]) * 1e6
    return said


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int(_stat(int(entry.name))[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue[0])
        queue += children.get(queue.pop(0), [])
    return found


def _stat(pid: int) -> list[str]:
    return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        fields = _stat(pid)
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def _rss_mb(pid: int) -> float:
    with contextlib.suppress(OSError):
        return int((Path("/proc") / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0
