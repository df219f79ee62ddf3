"""The registered plans: which releases may come in, and which agents are expected to send them.

Place: admission looks a release's plan up here, queries find theirs by name; a person registers it before the first
release arrives. On disk: one JSON file a plan, `<hash>.json`, holding its text and its nodes; those of a tenant other
than the default one lie in a folder of the tenant's name.
Invariants: what one tenant registers changes nothing of another's, nor is seen there; within a tenant, a file appears
whole or not at all; a name and version stand for one meaning for ever; a plan that is stored parses and hashes to its
file's name.
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
from edge_agg.contract.spiffe import is_name

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator, Sequence
    from pathlib import Path


TENANT = "default"
"""Whose plans lie in the folder itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredPlan:
    """A plan that releases are taken for."""

    plan: Plan
    hash: PlanHash
    text: str
    """The TOML it was registered from."""
    nodes: tuple[str, ...]
    """The agents that are expected to report."""
    tenant: str = TENANT
    """Whose it is."""


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One plan, as it is kept."""

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
        self._cache: dict[tuple[str, PlanHash], tuple[Path, tuple[int, int], RegisteredPlan]] = {}

    def add(self, text: str, nodes: Sequence[str], *, tenant: str = TENANT) -> RegisteredPlan:
        """Register a tenant's plan, or the nodes of one that is registered; doing it again changes nothing.

        Raises:
            PlanInvalid: the text is not a plan; fix the field that the message names.
            ConfigInvalid: its version is taken by another meaning; or the tenant's name is none.
        """
        if not is_name(tenant):
            raise ConfigInvalid("a tenant is letters, digits and _.- only, 63 at most")
        plan = parse_plan(text)  # without a file of keys: what is stored stands alone
        registered = RegisteredPlan(plan=plan, hash=plan_hash(plan), text=text, nodes=tuple(nodes), tenant=tenant)
        folder = self._home(tenant)
        folder.mkdir(mode=0o700, exist_ok=True)
        with _locked(folder) as folder_fd:
            for other in self.list(tenant):
                if (other.plan.name, other.plan.version) == (plan.name, plan.version) and other.hash != registered.hash:
                    raise ConfigInvalid("$.plan.version: stands for another meaning already; raise the version")
            stored = Stored(text=text, nodes=registered.nodes)
            _write(self._file(tenant, registered.hash), msgspec.json.encode(stored), folder_fd)
        return registered

    def add_file(self, path: Path, nodes: Sequence[str], *, tenant: str = TENANT) -> RegisteredPlan:
        """Register the plan in a file, with the keys that it reads from files beside it written out.

        Raises:
            PlanInvalid: as :meth:`add`.
            ConfigInvalid: as `add`; or a file cannot be read.
        """
        return self.add(self_contained(_text(path), lambda name: _text(path.parent / name)), nodes, tenant=tenant)

    def get(self, plan_hash: PlanHash, tenant: str | None = None) -> RegisteredPlan | None:
        """A tenant's plan of a hash, also if another process registered it a moment ago; None if they have none.

        Without a tenant it is anybody's: what the plan means is the same.
        """
        for owner in self._tenants() if tenant is None else [tenant]:
            cached = self._cache.get((owner, plan_hash))
            file = self._file(owner, plan_hash) if cached is None else cached[0]
            try:
                stat = os.stat(file)  # noqa: PTH116  # once a call: Path.stat costs twice as much
            except (FileNotFoundError, NotADirectoryError):
                continue
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if cached is None or cached[1] != stamp:
                cached = self._cache[owner, plan_hash] = (file, stamp, _read(file, plan_hash, owner))
            return cached[2]
        return None

    def find(self, name: str, version: int | None = None, tenant: str | None = None) -> RegisteredPlan:
        """A tenant's plan of a name, its newest version unless one is given.

        Without a tenant, the default one's goes before those of others.

        Raises:
            PlanUnknown: register it first.
        """
        for owner in self._tenants() if tenant is None else [tenant]:
            versions = [
                one for one in self.list(owner) if one.plan.name == name and version in {None, one.plan.version}
            ]
            if versions:
                return versions[-1]
        raise PlanUnknown("no registered plan has this name and version; run `cloud-collector plans add`")

    def list(self, tenant: str | None = None) -> builtins.list[RegisteredPlan]:
        """A tenant's plans, by name, then version; everybody's if none is given."""
        plans = [
            self.get(PlanHash(bytes.fromhex(file.stem)), owner)
            for owner in (self._tenants() if tenant is None else [tenant])
            for file in self._home(owner).glob("*.json")
            if _is_hash(file.stem)
        ]
        return sorted((one for one in plans if one is not None), key=lambda one: (one.plan.name, one.plan.version))

    def _tenants(self) -> builtins.list[str]:
        others = sorted(one.name for one in self._folder.iterdir() if one.is_dir() and is_name(one.name))
        return [TENANT, *(name for name in others if name != TENANT)]

    def _home(self, tenant: str) -> Path:
        assert is_name(tenant)  # a name that is none could lead elsewhere
        return self._folder if tenant == TENANT else self._folder / tenant

    def _file(self, tenant: str, plan_hash: PlanHash) -> Path:
        return self._home(tenant) / f"{plan_hash.hex()}.json"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise ConfigInvalid(f"{path.name}: the plan file, or a file of keys beside it, cannot be read") from None


def _is_hash(stem: str) -> bool:
    return len(stem) == 64 and not stem.strip("0123456789abcdef")


def _read(file: Path, expected: PlanHash, tenant: str) -> RegisteredPlan:
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=Stored)
        plan = parse_plan(stored.text)
    except (OSError, msgspec.DecodeError, PlanInvalid):
        raise ConfigInvalid(
            f"plans/{file.name}: not a registered plan; remove the file and add the plan again"
        ) from None
    if plan_hash(plan) != expected:
        raise ConfigInvalid(
            f"plans/{file.name}: holds another plan than its name says; remove it and add the plan again"
        )
    return RegisteredPlan(plan=plan, hash=expected, text=stored.text, nodes=stored.nodes, tenant=tenant)


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
