"""Nobody's data goes earlier than they asked for, though tenants share names of plans, and tables."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from cloud_collector import server
from cloud_collector.config import PlanEntry
from cloud_collector.retention import Retention
from tests.cloud_collector.front import PLAN_TEXT
from tests.cloud_collector.test_server import settings

if TYPE_CHECKING:
    from pathlib import Path

    from cloud_collector.plans import PlanRegistry
    from edge_agg.contract.plan import PlanHash

MONTH, YEAR = timedelta(days=30), timedelta(days=365)
OTHER_TEXT = PLAN_TEXT.replace("max_nodes = 3", "max_nodes = 2")
"""Another meaning, so another table, under the same name and version: another tenant's."""


def entry(folder: Path, text: str, tenant: str, keep: timedelta | None) -> PlanEntry:
    path = folder / f"{tenant}-{abs(hash(text))}.toml"
    path.write_text(text)
    return PlanEntry(path=path, nodes=("jfk",), tenant=tenant, retention=keep)


def told(folder: Path, *entries: PlanEntry) -> tuple[PlanRegistry, Retention]:
    return server.registry_of(settings(folder, plans=entries))


def check_strangers(folder: Path) -> None:
    registry, retention = told(folder, entry(folder, PLAN_TEXT, "a", MONTH))
    theirs = registry.add(OTHER_TEXT, ["jfk"], tenant="b").hash
    (ours,) = registry.list("a")
    assert retention.of(ours.hash) == MONTH
    assert retention.of(theirs) is None


def test_a_tenants_retention_is_not_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan of the same name that another tenant registered without an entry is kept for ever.

    Mutant: by the plan's name alone; another tenant's data goes after a month.
    """

    def by_name(self: Retention, plan_hash: PlanHash) -> timedelta | None:
        name = next(one.plan.name for one in self.registry.list() if one.hash == plan_hash)
        return max((keep for (_, known), all_of in self._wishes.items() if known == name for keep in all_of if keep))

    (tmp_path / "mutant").mkdir()
    check_strangers(tmp_path)
    monkeypatch.setattr(Retention, "of", by_name)
    with pytest.raises(AssertionError):
        check_strangers(tmp_path / "mutant")


def test_a_table_that_tenants_share_is_kept_as_long_as_any_of_them_wants(tmp_path: Path) -> None:
    """The longest wish holds; and for ever once somebody without an entry registers the plan, while it runs."""
    registry, retention = told(tmp_path, *(entry(tmp_path, PLAN_TEXT, *who) for who in (("a", MONTH), ("b", YEAR))))
    shared = registry.list("a")[0].hash
    assert [one.hash for one in registry.list()] == [shared] * 2
    assert retention.of(shared) == YEAR
    registry.add(PLAN_TEXT, ["jfk"], tenant="c")
    assert retention.of(shared) is None


def test_an_entry_is_about_every_version_of_its_plan(tmp_path: Path) -> None:
    """A version that the config no longer names goes as the newest does; where entries disagree, the longest holds."""
    second = PLAN_TEXT.replace("version = 1", "version = 2")
    registry, retention = told(tmp_path, entry(tmp_path, second, "a", MONTH))
    first = registry.add(PLAN_TEXT, ["jfk"], tenant="a").hash
    assert retention.of(first) == MONTH
    _, both = told(tmp_path, entry(tmp_path, second, "a", MONTH), entry(tmp_path, PLAN_TEXT, "a", YEAR))
    assert both.of(first) == YEAR
    _, ever = told(tmp_path, entry(tmp_path, second, "a", MONTH), entry(tmp_path, PLAN_TEXT, "a", None))
    assert ever.of(first) is None
