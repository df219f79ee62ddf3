"""Plans that several machines share: each knows what any was told, and no name and version has two meanings.

Over a folder as the store; what a bucket adds (lost answers) is `tests/s3/test_stores.py`'s.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from cloud_collector import shared_plans
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.folderstore import FolderStore
from cloud_collector.plans import PlanRegistry
from cloud_collector.shared_plans import FOLDER, SharedPlans
from cloud_collector.telemetry import Event
from tests.cloud_collector.front import PLAN_TEXT

if TYPE_CHECKING:
    from pathlib import Path

    from cloud_collector.objectstore import Found

OTHER = PLAN_TEXT.replace("max_nodes = 3", "max_nodes = 4")
"""The same name and version, with another meaning."""


def machine(home: Path, name: str, store: FolderStore | None = None) -> SharedPlans:
    return SharedPlans(home / name, store or FolderStore(home / "bucket"))


def nodes_of(plans: PlanRegistry, tenant: str = "default") -> list[tuple[str, ...]]:
    return [one.nodes for one in plans.list(tenant)]


def test_what_one_machine_is_told_all_know(tmp_path: Path) -> None:
    """Also a worker that reads a machine's folder, a machine that comes later, and of each tenant."""
    one, other = machine(tmp_path, "one"), machine(tmp_path, "other")
    registered = one.add(PLAN_TEXT, ["jfk"])
    theirs = one.add(OTHER, ["ewr"], tenant="acme")
    assert other.pull() == 2
    for plans in (other, PlanRegistry(tmp_path / "other")):
        assert plans.get(registered.hash, "default") == registered
        assert plans.get(theirs.hash, "acme") == theirs
        assert plans.get(theirs.hash, "default") is None
    late = machine(tmp_path, "late")
    assert (late.pull(), late.pull(), late.pull()) == (2, 0, 0)


def test_agents_that_were_named_later_hold_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the store tells one time for both; mutant: what was read once is not read again."""

    def told_twice_in_a_second(home: Path) -> list[tuple[str, ...]]:
        class Coarse(FolderStore):
            def list(self, folder: str) -> list[Found]:
                return [replace(one, modified_ms=0) for one in super().list(folder)]

        one, other = machine(home, "one"), machine(home, "other", Coarse(home / "bucket"))
        one.add(PLAN_TEXT, ["jfk"])
        other.pull()
        one.add(PLAN_TEXT, ["jfk", "lga"])
        other.pull()
        return nodes_of(other)

    assert told_twice_in_a_second(tmp_path / "as it is") == [("jfk", "lga")]
    get = SharedPlans.pull

    def once(self: SharedPlans) -> int:
        changed = get(self)
        self._settled.update(self._read)
        return changed

    monkeypatch.setattr(SharedPlans, "pull", once)
    assert told_twice_in_a_second(tmp_path / "mutant") == [("jfk",)]


def meanings(home: Path) -> set[bytes]:
    """What one name and version stand for, after two machines that know nothing of each other were told."""
    plans = [machine(home, "one"), machine(home, "other")]
    found = set()
    for one, text in zip(plans, (PLAN_TEXT, OTHER), strict=True):
        try:
            found.add(bytes(one.add(text, []).hash))
        except ConfigInvalid as refused:
            assert "another meaning" in str(refused)  # noqa: PT017  # a mutant does not raise
    return found


def test_a_version_has_one_meaning_at_all_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: who comes second writes over it."""
    assert len(meanings(tmp_path / "as it is")) == 1
    assert len(PlanRegistry(tmp_path / "as it is" / "other").list()) == 0
    monkeypatch.setattr(FolderStore, "put_new", FolderStore.put)
    assert len(meanings(tmp_path / "mutant")) == 2


def test_what_a_machine_knew_before_is_shared_once(tmp_path: Path) -> None:
    PlanRegistry(tmp_path / "one").add(PLAN_TEXT, ["jfk"])
    one, other = machine(tmp_path, "one"), machine(tmp_path, "other")
    one.pull()
    one.share()
    other.pull()
    assert nodes_of(other) == [("jfk",)]
    PlanRegistry(tmp_path / "third").add(OTHER, [])
    with pytest.raises(ConfigInvalid, match="another meaning"):
        machine(tmp_path, "third").pull()


def test_what_is_no_plan_is_refused_and_named(tmp_path: Path) -> None:
    one = machine(tmp_path, "one")
    FolderStore(tmp_path / "bucket").put(f"{FOLDER}/default,flights,v1.json", b"{}")
    for act in (one.pull, lambda: one.add(PLAN_TEXT, [])):
        with pytest.raises(ConfigInvalid, match="registered plans"):
            act()


def test_a_store_that_is_away_takes_no_plan_and_keeps_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and looked for again."""
    one = machine(tmp_path, "one")
    registered = one.add(PLAN_TEXT, ["jfk"])
    said: list[tuple[Event, dict[str, Any]]] = []
    monkeypatch.setattr(shared_plans, "emit", lambda event, **fields: said.append((event, fields)))
    monkeypatch.setattr(shared_plans, "EVERY_S", 0.01)

    def away(*_: object) -> None:
        raise OSError

    async def a_while() -> None:
        waits = [asyncio.create_task(asyncio.sleep(0.2, result=True))]
        await shared_plans.pull_until(waits, one)  # type: ignore[arg-type]

    for name in ("list", "put_new"):
        monkeypatch.setattr(FolderStore, name, away)
    asyncio.run(a_while())
    assert len(said) > 1
    assert said[0] == (Event.PLANS_UNREAD, {"cause": "StoreUnavailable"})
    with pytest.raises(StoreFailed):
        one.add(OTHER.replace("version = 1", "version = 2"), [])
    assert one.list() == [registered]
