"""A live agent in a process of its own, fed over HTTP, and how much memory it holds."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from benchmarks.agent.question import events, plan_text
from benchmarks.bar import Bar

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIG = """
[agent]
name = "bench"
state = "state"
[collector]
url = "127.0.0.1:{nobody}"
[[account]]
name = "people"
privacy_unit = "unit"
epsilon = 20.0
delta = 1e-5
horizon = "365d"
[[source]]
kind = "http"
listen = "127.0.0.1:{port}"
[[plan]]
path = "plan.toml"
account = "people"
{more}
"""
UNITS = 100_000


def idle_bars() -> Iterator[Bar]:
    """Resident memory at rest, and with 100,000 units in the open window."""
    with running() as (process, port, _):
        time.sleep(3.0)
        yield Bar(name="idle_rss_mb", value=resident_mb(process.pid), limit=130.0)
        body = as_stream(events(UNITS, UNITS, begin=datetime.now(UTC)))
        status = post(port, body)
        if status not in {200, 202, 204}:
            raise RuntimeError(f"the agent answered {status}")
        time.sleep(3.0)
        yield Bar(name="rss_100k_units_mb", value=resident_mb(process.pid), limit=250.0)


@contextmanager
def running(
    every: str = "1d", more: str = "", folder: Path | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int, Path]]:
    """An agent that listens, in a folder of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        home = folder or Path(temporary)
        port, nobody = free_port(), free_port()
        (home / "plan.toml").write_text(plan_text(every))
        (home / "agent.toml").write_text(_CONFIG.format(port=port, nobody=nobody, more=more))
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_agg", "run", str(home / "agent.toml"), "--log", "none"],
        )
        try:
            wait_listening(port)
            yield process, port, home
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ask(home: Path) -> dict[str, Any]:
    """What the agent says of itself over its own door."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(10)
        asked.connect(str(home / "state" / "agent.sock"))
        asked.sendall(b"status\n")
        said = b"".join(iter(lambda: asked.recv(1 << 16), b""))
    answer: dict[str, Any] = json.loads(said)
    return answer


def wait_listening(port: int, patience_s: float = 30.0) -> None:
    """Come back once somebody listens."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nobody listens at {port}")


def as_stream(table: pa.Table) -> bytes:
    """An Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def post(port: int, body: bytes, kind: str = "application/vnd.apache.arrow.stream") -> int:
    """Push a batch; the answer's status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v1/events", body, {"Content-Type": kind})
        return connection.getresponse().status
    finally:
        connection.close()


def resident_mb(pid: int) -> float:
    """A process's resident memory, in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    if found is None:
        raise ProcessLookupError(pid)
    return int(found[1]) / 1024
