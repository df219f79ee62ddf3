"""The registered plans: which releases may come in, and which agents are expected to send them.

Place: admission looks a release's plan up here, queries find theirs by name; a person registers it before the first
release arrives. On disk: one JSON file a plan, `<hash>.json`, holding its text and its nodes.
Invariants: a file appears whole or not at all; a name and version stand for one meaning for ever; a plan that is stored
parses and hashes to its file's name.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cloud_collector.errors import ConfigInvalid, PlanUnknown
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import Plan, PlanHash, parse_plan, plan_hash, self_contained

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredPlan:
    """A plan that releases are taken for."""

    plan: Plan
    hash: PlanHash
    text: str
    """The TOML it was registered from."""
    nodes: tuple[str, ...]
    """The agents that are expected to report."""


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One plan's file."""

    text: str
    nodes: tuple[str, ...]


class PlanRegistry:
    """The plans of one folder; another process may add to it at any time.

    Args:
        folder: made when it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cache: dict[PlanHash, tuple[tuple[int, int], RegisteredPlan]] = {}

    def add(self, text: str, nodes: Sequence[str]) -> RegisteredPlan:
        """Register a plan, or the nodes of one that is registered; doing it again changes nothing.

        Raises:
            PlanInvalid: the text is not a plan; fix the field that the message names.
            ConfigInvalid: its version is taken by another meaning.
        """
        plan = parse_plan(text)  # without a file of keys: what is stored stands alone
        registered = RegisteredPlan(plan=plan, hash=plan_hash(plan), text=text, nodes=tuple(nodes))
        with _locked(self._folder) as folder_fd:
            for other in self.list():
                if (other.plan.name, other.plan.version) == (plan.name, plan.version) and other.hash != registered.hash:
                    raise ConfigInvalid("$.plan.version: stands for another meaning already; raise the version")
            stored = _Stored(text=text, nodes=registered.nodes)
            _write(self._file(registered.hash), msgspec.json.encode(stored), folder_fd)
        return registered

    def add_file(self, path: Path, nodes: Sequence[str]) -> RegisteredPlan:
        """Register the plan in a file, with the keys that it reads from files beside it written out.

        Raises:
            PlanInvalid: as :meth:`add`.
            ConfigInvalid: as `add`; or a file cannot be read.
        """
        return self.add(self_contained(_text(path), lambda name: _text(path.parent / name)), nodes)

    def get(self, plan_hash: PlanHash) -> RegisteredPlan | None:
        """The plan of a hash, also if another process registered it a moment ago; None if nobody did."""
        try:
            stat = self._file(plan_hash).stat()
        except FileNotFoundError:
            return None
        stamp = (stat.st_mtime_ns, stat.st_ino)
        cached = self._cache.get(plan_hash)
        if cached is None or cached[0] != stamp:
            cached = self._cache[plan_hash] = (stamp, _read(self._file(plan_hash), plan_hash))
        return cached[1]

    def find(self, name: str, version: int | None = None) -> RegisteredPlan:
        """The plan of a name, its newest version unless one is given.

        Raises:
            PlanUnknown: register it first.
        """
        versions = [one for one in self.list() if one.plan.name == name and version in {None, one.plan.version}]
        if not versions:
            raise PlanUnknown("no registered plan has this name and version; run `cloud-collector plans add`")
        return versions[-1]

    def list(self) -> builtins.list[RegisteredPlan]:
        """Every plan, by name, then version."""
        stems = [file.stem for file in self._folder.glob("*.json")]
        plans = [self.get(PlanHash(bytes.fromhex(stem))) for stem in stems if _is_hash(stem)]
        return sorted((one for one in plans if one is not None), key=lambda one: (one.plan.name, one.plan.version))

    def _file(self, plan_hash: PlanHash) -> Path:
        return self._folder / f"{plan_hash.hex()}.json"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise ConfigInvalid(f"{path.name}: the plan file, or a file of keys beside it, cannot be read") from None


def _is_hash(stem: str) -> bool:
    return len(stem) == 64 and not stem.strip("0123456789abcdef")


def _read(file: Path, expected: PlanHash) -> RegisteredPlan:
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=_Stored)
        plan = parse_plan(stored.text)
    except (OSError, msgspec.DecodeError, PlanInvalid):
        raise ConfigInvalid(
            f"plans/{file.name}: not a registered plan; remove the file and add the plan again"
        ) from None
    if plan_hash(plan) != expected:
        raise ConfigInvalid(
            f"plans/{file.name}: holds another plan than its name says; remove it and add the plan again"
        )
    return RegisteredPlan(plan=plan, hash=expected, text=stored.text, nodes=stored.nodes)


def _write(file: Path, data: bytes, folder_fd: int) -> None:
    """Write a file so that a crash at any instant leaves the old one or the new one."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as sink:
        sink.write(data)
        sink.flush()
        os.fsync(sink.fileno())
    temporary.replace(file)
    os.fsync(folder_fd)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Hold the folder against another process that registers a plan; yields its descriptor."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)
