"""A real PostgreSQL for tests, on a port and in a folder of its own; it can crash and be started again.

`sh tests/cloud_collector/postgres.sh` fetches it. Without it the tests are skipped, unless `REQUIRE_POSTGRES` is set,
as `.ci/run` does. It refuses to run as root, so for root it runs as `nobody`.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from cloud_collector.config import Database
from tests.conformance.broker import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNPACKED = Path(__file__).parents[2] / ".tools" / "postgresql"
_PLACES = [*_UNPACKED.glob("usr/lib/postgresql/*/bin"), *Path("/usr/lib/postgresql").glob("*/bin")]
BINARIES = next((place for place in _PLACES if (place / "initdb").exists() and (place / "postgres").exists()), None)
SETTINGS = """
fsync = on
wal_writer_delay = 10s
shared_buffers = 32MB
max_connections = 60
unix_socket_directories = '{home}'
listen_addresses = '127.0.0.1'
port = {port}
"""
ACCESS = """
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""
_PR_SET_PDEATHSIG = 1


def need_postgres() -> Path:
    """Skip the test if there is no PostgreSQL, or fail it where there must be one; where its programs are."""
    if BINARIES is None:
        text = "no PostgreSQL: run `sh tests/cloud_collector/postgres.sh`"
        if os.environ.get("REQUIRE_POSTGRES"):
            pytest.fail(text)
        pytest.skip(text)
    return BINARIES


class Postgres:
    """One server, in a new folder that goes with it."""

    def __init__(self) -> None:
        self._binaries = need_postgres()
        self._home = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        self._schemas = 0
        self._process: subprocess.Popen[bytes] | None = None
        if os.geteuid() == 0:
            shutil.chown(self._home, "nobody")
        initdb = ["initdb", "--pgdata", str(self._home / "data"), "--no-sync", "--username", "collector"]
        self._spawn([*initdb, "--encoding", "UTF8", "--locale", "C.UTF-8"]).wait(60)
        (self._home / "data" / "postgresql.conf").write_text(SETTINGS.format(home=self._home, port=self.port))
        (self._home / "data" / "pg_hba.conf").write_text(ACCESS)

    def start(self) -> None:
        """Start it, and come back once it takes connections; it ends with the thread that calls this."""
        import psycopg

        self._process = self._spawn(["postgres", "-D", str(self._home / "data")])
        for _ in range(600):
            assert self._process.poll() is None, (self._home / "log").read_text()
            with suppress(psycopg.OperationalError):
                psycopg.connect(self._url()).close()
                return
            time.sleep(0.05)
        raise AssertionError("PostgreSQL does not come up")

    def crash(self) -> None:
        """End it without a checkpoint, as a power cut of the machine does to what it has not synced."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def close(self) -> None:
        """Stop it, and remove what it kept."""
        if self._process is not None and self._process.poll() is None:
            self.crash()
        shutil.rmtree(self._home, ignore_errors=True)

    def database(self, *settings: str) -> Database:
        """A schema that nobody has used; each of its sessions begins with these settings."""
        self._schemas += 1
        schema = f"landing_{self._schemas}"
        self.run(f"CREATE SCHEMA {schema}")
        return Database(url=self._url(schema, *settings))

    def tool(self, name: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs."""
        home = {"LD_LIBRARY_PATH": _libraries(), "PATH": os.environ["PATH"]}
        subprocess.run([str(self._binaries / name), *arguments], env=home, check=True, capture_output=True)

    def run(self, query: str, params: Sequence[Any] = (), *, at: Database | None = None) -> list[Any]:
        """Run one statement, by the way."""
        import psycopg

        with psycopg.connect(self._url() if at is None else at.url, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def _url(self, schema: str = "public", *settings: str) -> str:
        options = quote(" ".join(f"-c{one}" for one in (f"search_path={schema}", *settings)), safe="")
        return f"postgresql:///postgres?host={self._home}&port={self.port}&user=collector&options={options}"

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        root = os.geteuid() == 0
        prctl = ctypes.CDLL(None).prctl
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._binaries / command[0]), *command[1:]],
                cwd=self._home,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LD_LIBRARY_PATH": _libraries()},
                stdout=subprocess.DEVNULL,
                stderr=log,
                user="nobody" if root else None,
                group=pwd.getpwnam("nobody").pw_gid if root else None,
                extra_groups=[] if root else None,
                start_new_session=True,
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGINT),  # noqa: PLW1509  # it ends with the tests
            )


def _libraries() -> str:
    return ":".join(sorted({str(path.parent) for path in _UNPACKED.rglob("lib*.so*")}))
