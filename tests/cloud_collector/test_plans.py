"""A registered plan is whole or absent, means one thing for ever, and is seen by every process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloud_collector import lake_rows
from cloud_collector.errors import ConfigInvalid, PlanUnknown
from cloud_collector.plans import PlanRegistry
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import RESERVED, PlanHash, plan_hash
from edge_agg.contract.vectors import plan_vectors

if TYPE_CHECKING:
    from tests.cloud_collector.conftest import Maker


@pytest.fixture
def registry(tmp_path: Path) -> PlanRegistry:
    return PlanRegistry(tmp_path / "plans")


def test_a_plan_is_found_by_hash_and_by_name(registry: PlanRegistry, maker: Maker) -> None:
    added = registry.add(maker.text, ["jfk", "lga"])
    assert added.hash == maker.hash
    assert added.nodes == ("jfk", "lga")
    assert registry.get(maker.hash) == registry.find("flight_delays") == registry.find("flight_delays", 1) == added
    assert registry.list() == [added]


def test_what_nobody_registered_is_unknown(registry: PlanRegistry, maker: Maker) -> None:
    assert registry.get(PlanHash(bytes(32))) is None
    assert registry.get(PlanHash(b"../" * 10)) is None
    registry.add(maker.text, ["jfk"])
    for name, version in (("flights", None), ("flight_delays", 2)):
        with pytest.raises(PlanUnknown):
            registry.find(name, version)


def test_adding_again_changes_nothing_but_the_nodes(registry: PlanRegistry, maker: Maker) -> None:
    """The same meaning in other words is the same plan."""
    registry.add(maker.text, ["jfk"])
    again = registry.add(maker.text.replace('every = "7d"', 'every = "168h"  # a week'), ["jfk", "ewr"])
    assert again.hash == maker.hash
    assert registry.list() == [again]
    assert registry.find("flight_delays").nodes == ("jfk", "ewr")


def test_a_version_stands_for_one_meaning(registry: PlanRegistry, maker: Maker) -> None:
    """Another meaning under a taken version is refused and leaves no trace; a raised version is the newest."""
    changed = maker.text.replace("epsilon = 2.0", "epsilon = 3.0")
    first = registry.add(maker.text, ["jfk"])
    with pytest.raises(ConfigInvalid, match="raise the version"):
        registry.add(changed, ["jfk"])
    assert registry.list() == [first]
    tenth = registry.add(changed.replace("version = 1", "version = 10"), ["jfk"])
    second = registry.add(changed.replace("version = 1", "version = 2"), ["jfk"])
    assert registry.find("flight_delays") == tenth
    assert registry.find("flight_delays", 2) == second
    assert registry.list() == [first, second, tenth]


def test_what_another_process_adds_is_seen_at_once(tmp_path: Path, maker: Maker) -> None:
    here, there = PlanRegistry(tmp_path), PlanRegistry(tmp_path)
    assert here.get(maker.hash) is None
    there.add(maker.text, ["jfk"])
    known = here.get(maker.hash)
    assert known is not None
    there.add(maker.text, ["jfk", "lga"])
    changed = here.get(maker.hash)
    assert changed is not None
    assert (known.nodes, changed.nodes) == (("jfk",), ("jfk", "lga"))
    assert here.get(maker.hash) is changed, "unchanged files are not parsed again"


def test_a_text_that_is_no_plan_is_refused_with_its_path(registry: PlanRegistry, maker: Maker) -> None:
    with pytest.raises(PlanInvalid, match=r"^\$\.budget\.epsilon"):
        registry.add(maker.text.replace("epsilon = 2.0", "epsilon = 0.0"), ["jfk"])
    assert registry.list() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("carrier", "Departures"),  # DuckDB and Delta do not see case
        ("carrier", "landing_id"),
        ("carrier", "delay_sum__scale"),
        ('"departures"', '"delay_sum__scale"'),
    ],
)
def test_no_two_columns_of_the_lake_share_a_name(registry: PlanRegistry, maker: Maker, old: str, new: str) -> None:
    with pytest.raises(PlanInvalid):
        registry.add(maker.text.replace(old, new), ["jfk"])
    assert registry.list() == []


def test_every_column_that_the_lake_adds_is_reserved(maker: Maker) -> None:
    """The grammar and the lake are strangers; this holds their lists together."""
    own = [name for name in lake_rows.table_schema(maker.plan).names if name not in maker.plan.events.columns]
    vectors = [column for v in plan_vectors(maker.plan) for column in (v.name, f"{v.name}__scale")]
    assert set(own) - set(vectors) <= RESERVED


def test_a_crash_while_writing_leaves_the_old_file(
    registry: PlanRegistry, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry.add(maker.text, ["jfk"])
    monkeypatch.setattr(os, "fsync", _crash)
    with pytest.raises(KeyboardInterrupt):
        registry.add(maker.text, ["lga"])
    monkeypatch.undo()
    assert registry.list() == [first]
    assert registry.add(maker.text, ["lga"]).nodes == ("lga",)


def test_the_bytes_are_on_the_disk_before_the_name_is(
    registry: PlanRegistry, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(fd: int) -> None:
        steps.append("fsync")
        fsync(fd)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    registry.add(maker.text, ["jfk"])
    assert steps == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"text": "", "nodes": []}', b"other"])
def test_a_damaged_file_is_named_never_used(
    registry: PlanRegistry, maker: Maker, tmp_path: Path, damage: bytes
) -> None:
    registry.add(maker.text, ["jfk"])
    file = tmp_path / "plans" / f"{maker.hash.hex()}.json"
    other = file.read_bytes().replace(b"epsilon = 2.0", b"epsilon = 3.0")
    file.unlink()
    file.write_bytes(damage if damage != b"other" else other)
    with pytest.raises(ConfigInvalid, match=file.name):
        PlanRegistry(tmp_path / "plans").get(maker.hash)


def test_the_hash_is_the_contract_s(registry: PlanRegistry, other_maker: Maker) -> None:
    assert registry.add(other_maker.text, ["jfk"]).hash == plan_hash(other_maker.plan)


def _crash(_: int) -> None:
    raise KeyboardInterrupt


def test_a_file_of_keys_is_written_out(registry: PlanRegistry, maker: Maker, tmp_path: Path) -> None:
    """What is registered stands alone, and is the same plan as if the keys had been listed."""
    listed = 'values = ["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN"]'
    path = tmp_path / "plan.toml"
    path.write_text(maker.text.replace(listed, 'file = "carriers.txt"'))
    with pytest.raises(ConfigInvalid, match=r"plan\.toml|carriers\.txt"):
        registry.add_file(path, ["jfk"])
    (tmp_path / "carriers.txt").write_text("9E\nAA\nB6\nDL\nEV\nMQ\nUA\nUS\nWN\n")
    assert registry.add_file(path, ["jfk"]).hash == maker.hash
    (tmp_path / "carriers.txt").unlink()
    assert PlanRegistry(tmp_path / "plans").find("flight_delays").hash == maker.hash
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        registry.add_file(tmp_path / "nowhere.toml", [])
