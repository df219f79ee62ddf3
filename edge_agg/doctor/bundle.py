"""The support bundle: what helps somebody far away, and nothing of the data.

Place: written by `edge-agg doctor -o`.
Invariants: it is put together out of what is named here, never by copying a file; of the journal only the tables of
plans, charges and releases are read, and of those neither payloads nor headers; sizes are rounded up, to tenths of
their limits or to powers of two, for an exact one would count the units that the journal keeps.

| file | holds |
|---|---|
| findings.json | what doctor found |
| versions.json | of this program, what it stands on, and the machine |
| config.json, policy.json | without secrets |
| plans/NAME.json | each plan as it was read |
| journal.json | its version and tables, windows by plan and status, what waits, what was refused, charges by account |
| status.json | what `edge-agg status --json` says |
| state.json | the state folder's files with their sizes, roughly |
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import sys
import tarfile
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from edge_agg.clock import SystemClock
from edge_agg.contract.codec import from_us
from edge_agg.contract.plan import plan_hash
from edge_agg.doctor.redact import redacted
from edge_agg.errors import ConfigInvalid, EdgeError
from edge_agg.policy import load_policy
from edge_agg.report.state import look
from edge_agg.report.status import as_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edge_agg.config import Config
    from edge_agg.contract.plan import Plan
    from edge_agg.doctor.examine import Examined

STANDS_ON = ("apsw", "click", "grpcio", "msgspec", "numpy", "opendp", "polars", "protobuf", "pyarrow", "rich")


def write_bundle(output: Path, found: Examined) -> None:
    """Write the bundle, for its owner alone; the name is there only once the file is whole.

    Raises:
        ConfigInvalid: it cannot be written there.
    """
    part = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in contents(found):
                data = json.dumps(content, indent=2, default=str).encode()
                entry = tarfile.TarInfo(f"edge-agg-support/{name}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, SystemClock().now().timestamp()
                archive.addfile(entry, io.BytesIO(data))
        part.rename(output)
    except OSError as error:
        raise ConfigInvalid(f"{output}: cannot be written ({error.strerror})") from None
    finally:
        part.unlink(missing_ok=True)


def contents(found: Examined) -> Iterator[tuple[str, Any]]:
    """Each file's name and what it holds."""
    yield "findings.json", [asdict(finding) for finding in found.findings]
    yield "versions.json", _versions()
    if found.config is None:
        return
    yield "config.json", redacted(found.config)
    for plan in found.plans:
        yield f"plans/{plan.name}.json", {"hash": plan_hash(plan).hex(), **msgspec.to_builtins(plan)}
    for name, part in (("policy", _policy), ("journal", _journal), ("status", _status), ("state", _state)):
        try:
            yield f"{name}.json", part(found.config, found.plans)
        except (EdgeError, OSError, apsw.Error) as error:
            yield f"{name}.json", {"unreadable": type(error).__name__}


def _versions() -> dict[str, Any]:
    def of(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    machine = os.uname()
    return {
        "edge-aggregator": of("edge-aggregator"),
        "packages": {package: of(package) for package in STANDS_ON},
        "sqlite": apsw.sqlite_lib_version(),
        "python": sys.version,
        "libc": " ".join(platform.libc_ver()),
        "system": {"name": machine.sysname, "release": machine.release, "machine": machine.machine},
        "processors": os.cpu_count(),
    }


def _policy(config: Config, _: Sequence[Plan]) -> Any:
    return None if config.agent.policy is None else msgspec.to_builtins(load_policy(Path(config.agent.policy)))


def _status(config: Config, plans: Sequence[Plan]) -> dict[str, Any]:
    return as_json(look(config, plans, now=SystemClock().now()))


def _state(config: Config, _: Sequence[Plan]) -> dict[str, Any]:
    folder = Path(config.agent.state)
    files = {}
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        found = entry.stat(follow_symlinks=False)
        # Only the folder's own entries: the names of the spool's segments say which windows have events.
        files[entry.name] = {"mode": f"{found.st_mode:o}", "uid": found.st_uid, "at_most": _rough(found.st_size)}
    return files


def _journal(config: Config, _: Sequence[Plan]) -> dict[str, Any]:
    db = apsw.Connection(str(Path(config.agent.state) / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        db.set_busy_timeout(2000)
        db.execute("BEGIN")
        incarnation, created_us = next(iter(db.execute("SELECT incarnation, created_us FROM journal")))
        head = next(iter(db.execute("SELECT seq, hex(hash) FROM release ORDER BY seq DESC LIMIT 1")), None)
        windows = db.execute(
            "SELECT hex(plan_hash), status, state, count(*), min(window_start_us), max(window_end_us) FROM release "
            "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
        )
        parked = db.execute("SELECT seq, refusal FROM release WHERE state='parked' ORDER BY seq")
        return {
            "version": db.execute("PRAGMA user_version").get,
            "journal_mode": db.execute("PRAGMA journal_mode").get,
            "page_size": db.execute("PRAGMA page_size").get,
            "schema": [
                sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name")
            ],
            "incarnation": incarnation,
            "created": from_us(created_us).isoformat(),
            "head": head,
            "windows": [
                (plan, status, state, n, from_us(first).isoformat(), from_us(last).isoformat())
                for plan, status, state, n, first, last in windows
            ],
            "refused": list(parked),
            "charged": _charged(db),
        }
    finally:
        db.close()


def _charged(db: apsw.Connection) -> dict[str, dict[str, float]]:
    """What each account was charged, for a glance: the exact amounts are in `edge-agg ledger export`."""
    sums: dict[str, list[Fraction]] = {}
    for account, rho, delta in db.execute("SELECT account, rho, delta FROM charge"):
        total = sums.setdefault(account, [Fraction(0), Fraction(0)])
        total[0] += Fraction(rho)
        total[1] += Fraction(delta)
    return {account: {"rho": float(rho), "delta": float(delta)} for account, (rho, delta) in sums.items()}


def _rough(size: int) -> int:
    """The next power of two."""
    return 1 << max(0, size - 1).bit_length()
