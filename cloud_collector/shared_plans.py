"""Registered plans of collectors on several machines: what one of them is told, all know.

Place: over the registry, where landing and lake are both shared; the commands and the server open whichever registry
the config asks for here. In the bucket: an object a plan and version, `_plans/<tenant>,<plan>,v<version>.json`,
as the registry stores it; every machine keeps a copy in its own folder, which its processes read.
Invariants: a name and version stand for one meaning at all machines, because the first to claim the object says which;
of two who name other agents at one time, the later holds at all of them; a machine that cannot reach the bucket goes on
with what it knows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import msgspec

from cloud_collector.errors import ConfigInvalid, StoreFailed, StoreUnavailable
from cloud_collector.objectstore import Taken
from cloud_collector.plans import TENANT, PlanRegistry, Stored
from cloud_collector.telemetry import Event, emit
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import Plan, parse_plan, plan_hash
from edge_agg.contract.spiffe import is_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cloud_collector.config import Config
    from cloud_collector.objectstore import ObjectStore
    from cloud_collector.plans import RegisteredPlan

FOLDER = "_plans"
EVERY_S = 5.0
"""How often it is looked whether another machine registered something."""


class SharedPlans(PlanRegistry):
    """The plans of a store that several machines share, and this machine's copy of them.

    Args:
        folder: of the copy.
        store: where the plans are.
    """

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        super().__init__(folder)
        self._store = store
        self._read: dict[str, int] = {}
        self._settled: dict[str, int] = {}

    def add(self, text: str, nodes: Sequence[str], *, tenant: str = TENANT) -> RegisteredPlan:
        """Register a plan for all machines; see :meth:`PlanRegistry.add`; raises StoreFailed as well."""
        plan = parse_plan(text)
        if not is_name(tenant):
            return super().add(text, nodes, tenant=tenant)  # which says so
        name = f"{FOLDER}/{tenant},{plan.name},v{plan.version}.json"
        mine = msgspec.json.encode(Stored(text=text, nodes=tuple(nodes)))
        try:
            try:
                self._store.put_new(name, mine)
            except Taken:
                there = self._store.get(name)
                if plan_hash(_parsed(there)[1]) != plan_hash(plan):
                    raise ConfigInvalid(
                        "$.plan.version: stands for another meaning already; raise the version"
                    ) from None
                if there != mine:
                    self._store.put(name, mine)
        except ConfigInvalid:
            raise
        except Exception as error:  # noqa: BLE001  # the stores raise errors of their own
            raise _failed(error) from None
        return super().add(text, nodes, tenant=tenant)

    def share(self) -> None:
        """Register for all machines what only this one's copy holds; raises as :meth:`add`."""
        for one in self.list():
            if f"{one.tenant},{one.plan.name},v{one.plan.version}.json" not in self._read:
                self.add(one.text, one.nodes, tenant=one.tenant)

    def pull(self) -> int:
        """Bring the copy up to date; how many plans were new, or have other agents.

        Raises:
            ConfigInvalid: an object is no plan, or this machine's copy has another meaning for it.
            StoreFailed: the store cannot be read; the copy is as it was.
        """
        changed = 0
        try:
            found = self._store.list(FOLDER)
        except Exception as error:  # noqa: BLE001  # as above
            raise _failed(error) from None
        for one in found:
            if self._settled.get(one.name) == one.modified_ms:
                continue
            try:
                data = self._store.get(f"{FOLDER}/{one.name}")
            except Exception as error:  # noqa: BLE001  # as above
                raise _failed(error) from None
            stored, plan = _parsed(data)
            tenant = one.name.partition(",")[0]
            known = self.get(plan_hash(plan), tenant)
            if known is None or (known.text, known.nodes) != (stored.text, stored.nodes):
                super().add(stored.text, stored.nodes, tenant=tenant)
                changed += 1
            # Stores tell times to the second: what was read once may have been written again within it.
            settled = self._settled if self._read.get(one.name) == one.modified_ms else self._read
            settled[one.name] = one.modified_ms
        return changed


def registry(config: Config, *, pull: bool = True) -> PlanRegistry:
    """The registry that a config asks for.

    Args:
        config: the collector's.
        pull: whether it is brought up to date.

    Raises:
        ConfigInvalid: as :meth:`SharedPlans.pull`.
        StoreFailed: as `pull`.
    """
    if config.database is None or config.bucket is None:
        return PlanRegistry(config.plans_path)
    from cloud_collector.s3store import S3Store  # noqa: PLC0415  # of an extra

    shared = SharedPlans(config.plans_path, S3Store(config.bucket))
    if pull:
        shared.pull()
    return shared


async def pull_until(waits: Sequence[asyncio.Task[Literal[True]]], plans: PlanRegistry) -> None:
    """Look for what other machines registered until one of the waits is over; where nothing is shared do nothing."""
    while isinstance(plans, SharedPlans) and not any(wait.done() for wait in waits):
        try:
            await asyncio.to_thread(plans.pull)
        except (ConfigInvalid, StoreFailed) as error:
            emit(Event.PLANS_UNREAD, cause=type(error).__name__)
        await asyncio.wait(waits, timeout=EVERY_S, return_when=asyncio.FIRST_COMPLETED)


def _parsed(data: bytes) -> tuple[Stored, Plan]:
    try:
        stored = msgspec.json.decode(data, type=Stored)
        return stored, parse_plan(stored.text)
    except (msgspec.DecodeError, PlanInvalid):
        raise ConfigInvalid(
            "$.lake.url: an object of the registered plans is none; remove it and add the plan again"
        ) from None


def _failed(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"the registered plans in the bucket cannot be reached ({type(error).__name__})")
