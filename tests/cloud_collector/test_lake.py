"""What is in the landing comes to the lake once, whole, and durably before the landing lets go of it.

Not proved here: what a power cut leaves of the lake (`test_lake_cuts.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake

from cloud_collector import backup, deltalog, failpoint, folderstore, telemetry
from cloud_collector import lake as room
from cloud_collector import sealer as sealing
from cloud_collector.deltalog import DeltaLog, Snapshot
from cloud_collector.errors import StoreFailed, StoreUnavailable
from cloud_collector.folderstore import FolderStore
from cloud_collector.lake import Lake
from cloud_collector.lake_rows import table_of, table_schema
from cloud_collector.landing import Landing, Verdict
from cloud_collector.landing_file import LandingFile
from cloud_collector.payload import open_payload
from cloud_collector.sealer import Sealer
from edge_agg.contract.cells import keys
from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.release import Status
from tests.cloud_collector.conftest import MONDAY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edge_agg.contract.plan import Plan, PlanHash
    from tests.cloud_collector.conftest import Made, Maker


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "a lake é" / "tables")


@pytest.fixture
def landing(tmp_path: Path) -> Iterator[Landing]:
    with contextlib.closing(Landing(tmp_path / "landing.sqlite")) as one:
        yield one


def rows_of(made: Sequence[Made]) -> list[tuple[int, Any, Any]]:
    return [(i, one.release, one.values) for i, one in enumerate(made, start=1)]


def read(lake: Lake, maker: Maker) -> list[dict[str, Any]]:
    """Every row of a plan's table, as DuckDB reads it."""
    files = lake.files(maker.plan, maker.hash)
    if not files:
        return []
    with duckdb.connect() as db:
        db.execute("SET TimeZone = 'UTC'")
        table = db.sql("SELECT * FROM read_parquet(?)", params=[files]).to_arrow_table()
    return in_order(table.cast(table_schema(maker.plan)).to_pylist())


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["landing_id"], str(row.get("plane")), str(row.get("carrier"))))


def expected(maker: Maker, made: Sequence[Made]) -> list[dict[str, Any]]:
    """The same rows, straight from what was made."""
    rows = []
    for landing_id, one in enumerate(made, start=1):
        release = one.release
        who = {"tenant": release.tenant, "node": release.agent, "landing_id": landing_id, "status": str(release.status)}
        who |= {"window_start": release.window_start, "window_end": release.window_end}
        columns = [partition.label for partition in maker.plan.partition]
        if release.status is not Status.RELEASED:
            rows.append(dict.fromkeys(table_schema(maker.plan).names) | who)
            continue
        for i, (found, key) in enumerate(itertools.product(one.values.keys or [""], keys(maker.plan))):
            row = who | dict(zip(columns, [*key, found], strict=False))
            row |= {name: int(column[i]) for name, column in one.values.columns.items()}
            rows.append(row | {f"{spec.name}__scale": spec.scale for spec in release.vectors})
    return in_order(rows)


def land(landing: Landing, made: Sequence[Made]) -> None:
    assert asyncio.run(landing.land([one.pair for one in made])) == [Verdict.ACCEPTED] * len(made)


def test_what_is_read_is_what_was_appended(lake: Lake, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i // 2, agent="jfk" if i % 2 else "lga") for i in range(6)]
    made.insert(3, maker.make(window=9, status=Status.LOST))
    lake.append(maker.plan, maker.hash, rows_of(made)[:3], app_id="a")
    lake.append(maker.plan, maker.hash, rows_of(made)[3:], app_id="a")
    assert read(lake, maker) == expected(maker, made)
    assert len(read(lake, maker)) == 6 * 10 + 1


def test_discovered_keys_and_bins_are_columns_like_others(lake: Lake, keyed_maker: Maker) -> None:
    """Each key has a row a public cell; a release without any has one row, which keeps it on record."""
    found: list[list[str]] = [["N1", "N2", "größe"], ["N2"]]
    made = [keyed_maker.make(seed=i, window=i, found=keys) for i, keys in enumerate(found)]
    made.append(keyed_maker.make(window=2, status=Status.EXHAUSTED))
    empty = keyed_maker.make(window=3, found=[])
    lake.append(keyed_maker.plan, keyed_maker.hash, rows_of([*made, empty]), app_id="a")
    *filled, last = read(lake, keyed_maker)
    assert filled == expected(keyed_maker, made)
    assert len(filled) == (3 + 1) * 9 + 1
    assert (last["status"], last["plane"], last["carrier"], last["spread__0"]) == ("released", None, None, None)
    assert last["spread__scale"] == 4.5


def test_a_plan_without_partitions_has_one_row_a_release(lake: Lake, other_maker: Maker) -> None:
    made = [other_maker.make(seed=i, window=i) for i in range(3)]
    lake.append(other_maker.plan, other_maker.hash, rows_of(made), app_id="a")
    assert read(lake, other_maker) == expected(other_maker, made)
    assert len(read(lake, other_maker)) == 3


def test_a_table_of_windows_without_values_only_can_be_read(lake: Lake, maker: Maker) -> None:
    made = [maker.make(window=i, status=status) for i, status in enumerate((Status.EXHAUSTED, Status.VETOED))]
    lake.append(maker.plan, maker.hash, rows_of(made), app_id="a")
    assert read(lake, maker) == expected(maker, made)


def test_each_plan_hash_has_its_own_table(lake: Lake, maker: Maker, other_maker: Maker) -> None:
    assert lake.files(maker.plan, maker.hash) == []
    lake.append(maker.plan, maker.hash, rows_of([maker.make()]), app_id="a")
    assert lake.files(other_maker.plan, other_maker.hash) == []
    folder = Path(lake.files(maker.plan, maker.hash)[0]).parent
    assert folder.name == f"v1-{maker.hash.hex()[:12]}"
    assert folder.parent.name == "flight_delays"


def test_a_table_that_was_never_committed_is_empty(lake: Lake, maker: Maker, tmp_path: Path) -> None:
    """A process killed at the right instant leaves the folders of a table and no table."""
    lake.append(maker.plan, maker.hash, [], app_id="a")
    (tmp_path / "a lake é" / "tables" / "flight_delays" / f"v1-{maker.hash.hex()[:12]}" / "_delta_log").mkdir(
        parents=True
    )
    assert lake.files(maker.plan, maker.hash) == []
    lake.append(maker.plan, maker.hash, rows_of([maker.make()]), app_id="a")
    assert len(read(lake, maker)) == 10


def test_a_table_that_cannot_be_read_says_so_without_a_value(lake: Lake, maker: Maker, tmp_path: Path) -> None:
    lake.append(maker.plan, maker.hash, rows_of([maker.make()]), app_id="a")
    for entry in (Path(lake.files(maker.plan, maker.hash)[0]).parent / "_delta_log").iterdir():
        entry.write_text('{"canary": ')
    fresh = Lake(tmp_path / "a lake é" / "tables")
    for act in (
        lambda: fresh.files(maker.plan, maker.hash),
        lambda: fresh.append(maker.plan, maker.hash, rows_of([maker.make()]), app_id="a"),
    ):
        with pytest.raises(StoreFailed) as caught:
            act()
        assert "canary" not in str(caught.value)
        assert caught.value.__cause__ is None


# Sealing


def test_sealing_moves_everything_once(landing: Landing, lake: Lake, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(5)]
    sealer = Sealer(landing, lake, maker.plan_of)
    assert sealer.seal() == 0
    land(landing, made[:3])
    assert sealer.seal() == 3
    land(landing, made[3:])
    assert sealer.seal() == 2
    assert sealer.seal() == 0
    assert landing.unsealed(10) == []
    assert read(lake, maker) == expected(maker, made)


def test_large_batches_are_cut_without_loss(
    landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_CHUNK", 7)
    monkeypatch.setattr(sealing, "MAX_VALUES", 90)  # of 10 cells x 3 columns each
    made = [maker.make(seed=i, window=i) for i in range(16)]
    land(landing, made)
    assert Sealer(landing, lake, maker.plan_of).seal() == 16
    assert read(lake, maker) == expected(maker, made)
    assert len(lake.files(maker.plan, maker.hash)) == 7, "chunks of 7, 7 and 2 in commits of 3"


def reads(landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many releases the sealer held at a time."""
    held: list[int] = []
    unsealed = landing.unsealed

    def noted(limit: int, *, after: int = 0) -> Any:
        found = unsealed(limit, after=after)
        held.append(len(found))
        return found

    monkeypatch.setattr(landing, "unsealed", noted)
    Sealer(landing, lake, maker.plan_of).seal()
    return [n for n in held if n]


@pytest.mark.parametrize("bounded", [True, False])
def test_small_releases_are_read_many_at_a_time_and_large_ones_are_not(
    landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch, *, bounded: bool
) -> None:
    """What is read at a time is bounded in bytes; a sealer that looks at numbers only is caught."""
    monkeypatch.setattr(sealing, "_LEAST_CHUNK", 2)
    land(landing, [maker.make(seed=i, window=i) for i in range(20)])
    size = sum(len(one.payload) for one in landing.unsealed(20)) // 20
    monkeypatch.setattr(sealing, "_CHUNK_BYTES", 5 * size)
    if not bounded:  # the mutant
        monkeypatch.setattr(sealing, "_next_limit", lambda _: sealing._CHUNK)
    held = reads(landing, lake, maker, monkeypatch)
    assert sum(held) == 20
    assert held[0] == 2
    assert held[1] > 2, "small ones are read many at a time"
    assert (max(held) <= 6) is bounded


class Crash(BaseException):
    """The process ends here."""


def seal_again_after_a_crash(landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> int:
    """Crash between the lake's commit and `mark_sealed`, start again; how many rows there are too many."""
    made = [maker.make(seed=i, window=i) for i in range(4)]
    land(landing, made[:3])
    with monkeypatch.context() as patch:
        patch.setattr(Landing, "mark_sealed", _crash)
        with pytest.raises(Crash):
            Sealer(landing, lake, maker.plan_of).seal()
    assert len(landing.unsealed(10)) == 3
    land(landing, made[3:])
    assert Sealer(landing, lake, maker.plan_of).seal() == 4
    assert landing.unsealed(10) == []
    return len(read(lake, maker)) - len(expected(maker, made))


def _crash(*_: object) -> None:
    raise Crash


def test_a_crash_before_the_landing_was_told_doubles_nothing(
    landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seal_again_after_a_crash(landing, lake, maker, monkeypatch) == 0


def test_mutant_without_the_transaction_s_mark_rows_double(
    landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_known", lambda *_: set())
    assert seal_again_after_a_crash(landing, lake, maker, monkeypatch) == 30


def test_a_crash_after_half_of_a_batch_doubles_nothing(
    landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases below the mark that wait beside others above it."""
    made = [maker.make(seed=i, window=i) for i in range(6)]
    land(landing, made)
    lake.append(maker.plan, maker.hash, rows_of(made)[:4], app_id=landing.id)
    assert Sealer(landing, lake, maker.plan_of).seal() == 6
    assert read(lake, maker) == expected(maker, made)


def seal_after_a_restore(tmp_path: Path, lake: Lake, maker: Maker) -> list[tuple[int, Any]]:
    """Ids start again where the copy was made and mean other releases; what is in the lake in the end: id, window.

    Of five releases that were sealed two are sent again: below the mark that the lake kept, and above it.
    """
    made = [maker.make(seed=i, window=i) for i in range(9)]
    path = tmp_path / "landing.sqlite"
    Landing(path).close()
    copy = path.read_bytes()
    with contextlib.closing(Landing(path)) as landing:
        land(landing, made[:5])
        Sealer(landing, lake, maker.plan_of).seal()
    path.write_bytes(copy)
    with contextlib.closing(LandingFile(path)) as store:
        backup.mark_restored(store, [], who="ada")
    with contextlib.closing(Landing(path)) as landing:
        for n in (5, 1, 6, 7, 8, 2):
            land(landing, [made[n]])
            Sealer(landing, lake, maker.plan_of).seal()
    return sorted({(row["window_start"], row["landing_id"]) for row in read(lake, maker)})


def test_a_restored_landing_loses_nothing_and_doubles_nothing(tmp_path: Path, lake: Lake, maker: Maker) -> None:
    """The mark would skip what is new below it, and let in twice what was forgotten above it."""
    found = seal_after_a_restore(tmp_path, lake, maker)
    assert [start for start, _ in found] == [MONDAY + n * maker.plan.every for n in range(9)]


def test_mutant_only_ids_up_to_the_mark_are_doubtful(
    tmp_path: Path, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Landing, "restored", False)
    starts = [start for start, _ in seal_after_a_restore(tmp_path, lake, maker)]
    assert sorted({start for start in starts if starts.count(start) > 1}) == [MONDAY + 2 * maker.plan.every]


def test_two_sealers_at_once_double_nothing(landing: Landing, lake: Lake, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(40)]
    land(landing, made)
    sealer, moved = Sealer(landing, lake, maker.plan_of), []
    threads = [threading.Thread(target=lambda: moved.append(sealer.seal())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(moved) == 40
    assert read(lake, maker) == expected(maker, made)


def test_a_release_of_an_unknown_plan_stays_and_holds_nobody_up(
    landing: Landing, lake: Lake, maker: Maker, other_maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_CHUNK", 2)
    strangers = [other_maker.make(seed=i, window=i) for i in range(3)]
    known = [maker.make(seed=i, window=i) for i in range(3)]
    land(landing, [*strangers, *known])
    assert Sealer(landing, lake, maker.plan_of).seal() == 3
    assert [one.header for one in landing.unsealed(10)] == [one.sealed.header for one in strangers]
    assert Sealer(landing, lake, other_maker.plan_of).seal() == 3
    assert read(lake, other_maker) == expected(other_maker, strangers)


def test_a_plan_that_turns_up_during_a_pass_waits_for_the_next(
    landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise later releases would carry the mark past the ones that were left behind."""
    monkeypatch.setattr(sealing, "_CHUNK", 2)
    made = [maker.make(seed=i, window=i) for i in range(6)]
    land(landing, made)
    asked: list[PlanHash] = []

    def registered_meanwhile(plan_hash: PlanHash) -> Plan | None:
        asked.append(plan_hash)
        return maker.plan if len(asked) > 1 else None

    sealer = Sealer(landing, lake, registered_meanwhile)
    assert (sealer.seal(), sealer.seal()) == (0, 6)
    assert read(lake, maker) == expected(maker, made)


def test_a_table_that_fails_keeps_its_releases_waiting_and_no_others(
    landing: Landing, lake: Lake, maker: Maker, other_maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_CHUNK", 2)
    plans = {maker.hash: maker.plan, other_maker.hash: other_maker.plan}
    bad = [maker.make(seed=i, window=i) for i in range(3)]
    good = [other_maker.make(seed=i, window=i) for i in range(3)]
    land(landing, [one for pair in zip(bad, good, strict=True) for one in pair])
    commit, failures = DeltaLog.commit, ["once"]

    def full(self: DeltaLog, *given: Any, **more: Any) -> None:
        if self.table.startswith(f"{maker.plan.name}/") and failures:
            failures.pop()
            raise OSError
        commit(self, *given, **more)

    monkeypatch.setattr(DeltaLog, "commit", full)
    sealer = Sealer(landing, lake, plans.get)
    with pytest.raises(StoreFailed):
        sealer.seal()
    assert [one.header for one in landing.unsealed(10)] == [one.sealed.header for one in bad]
    assert len(read(lake, other_maker)) == 3
    assert sealer.seal() == 3
    assert len(read(lake, maker)) == 30


DAMAGES = {
    "header": "UPDATE waiting SET header = substr(header, 2) WHERE id = 3",
    "payload": "UPDATE waiting SET payload = zeroblob(9) WHERE id = 3",
    "values": "",
}


@pytest.mark.parametrize("damaged", DAMAGES)
def test_a_release_that_is_damaged_stays_and_holds_nobody_up(  # noqa: PLR0917  # pytest's fixtures
    landing: Landing, lake: Lake, maker: Maker, other_maker: Maker, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    """The others of its plan and of other plans are sealed, each pass says so, one line names it; mended, it follows.

    Mutant: the first damaged release ends the pass.
    """
    monkeypatch.setattr(sealing, "_CHUNK", 2)
    events: list[tuple[telemetry.Event, Any]] = []
    monkeypatch.setattr(sealing, "emit", lambda event, **fields: events.append((event, fields)))
    makers = [maker, other_maker]
    made = [makers[i % 2].make(seed=i, window=i) for i in range(8)]
    land(landing, made)
    good = landing.unsealed(8)[2]
    opened = open_payload

    def opened_but_one(release: Any, payload: bytes, plan: Plan) -> Any:
        if release == made[2].release:
            raise MalformedRelease
        return opened(release, payload, plan)

    with monkeypatch.context() as patch:
        landing._db.execute(DAMAGES[damaged])
        if damaged == "values":
            patch.setattr(sealing, "open_payload", opened_but_one)
        sealer = Sealer(landing, lake, {one.hash: one.plan for one in makers}.get)
        for _ in range(2):
            with pytest.raises(StoreFailed, match="no longer what it was"):
                sealer.seal()
            assert [one.id for one in landing.unsealed(10)] == [3]
    assert [fields for event, fields in events if event is telemetry.Event.SEAL_FAILED] == [
        {"cause": "ReleaseDamaged", "release": 3}
    ]
    assert (len(read(lake, maker)), len(read(lake, other_maker))) == (30, 4)
    landing._db.execute("UPDATE waiting SET header = ?, payload = ? WHERE id = 3", (good.header, good.payload))
    assert sealer.seal() == 1
    assert len(read(lake, maker)) == 40


# Durability


def unsynced_when_marked(
    landing: Landing, lake: Lake, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """Files and folders of the lake that had not been fsynced since they changed when the landing let go."""
    synced: set[int] = set()
    missing: set[str] = set()
    fsync, mark_sealed = os.fsync, Landing.mark_sealed

    def mark(self: Landing, digests: Mapping[int, bytes]) -> None:
        places = [tmp_path / "a lake é", *(tmp_path / "a lake é").rglob("*")]
        missing.update(place.name for place in places if place.stat().st_ino not in synced)
        mark_sealed(self, digests)

    def noted(fd: int) -> None:
        fsync(fd)
        synced.add(os.fstat(fd).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Landing, "mark_sealed", mark)
    sealer = Sealer(landing, lake, maker.plan_of)
    for window in range(3):
        land(landing, [maker.make(seed=window, window=window)])
        sealer.seal()
    return missing


def test_the_lake_is_on_the_disk_before_the_landing_lets_go(
    landing: Landing, lake: Lake, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unsynced_when_marked(landing, lake, maker, tmp_path, monkeypatch) == set()


def test_mutant_a_commit_without_a_sync_is_caught(
    landing: Landing, lake: Lake, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folderstore, "_fsync", lambda fd: None)
    missing = unsynced_when_marked(landing, lake, maker, tmp_path, monkeypatch)
    assert "00000000000000000002.json" in missing
    assert sum(name.endswith(".parquet") for name in missing) == 3


def test_a_failed_sync_is_never_tried_again(
    landing: Landing, lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(landing, [maker.make()])

    def broken(fd: int) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(StoreFailed):
            Sealer(landing, lake, maker.plan_of).seal()
    assert lake.failed
    with pytest.raises(StoreFailed, match="start again"):
        Sealer(landing, lake, maker.plan_of).seal()
    assert len(landing.unsealed(10)) == 1


def syncs_noted(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of what is synced from now on."""
    synced: set[str] = set()
    sync = folderstore.sync

    def noted(path: Path) -> None:
        sync(path)
        synced.add(path.name)

    monkeypatch.setattr(folderstore, "sync", noted)
    return synced


def test_what_a_killed_process_left_unsynced_is_synced_by_the_next(
    landing: Landing, lake: Lake, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(landing, [maker.make()])
    with monkeypatch.context() as patch:
        patch.setattr(failpoint, "armed", lambda name: _crash() if name == "log_linked" else None)
        with pytest.raises(Crash):
            Sealer(landing, lake, maker.plan_of).seal()
    assert len(read(lake, maker)) == 10
    fresh = Lake(tmp_path / "a lake é" / "tables")
    synced = syncs_noted(monkeypatch)
    assert Sealer(landing, fresh, maker.plan_of).seal() == 1
    assert {Path(file).name for file in fresh.files(maker.plan, maker.hash)} | {"_delta_log"} <= synced
    assert len(read(fresh, maker)) == 10


@pytest.mark.parametrize("mutant", [False, True])
def test_what_another_process_left_unsynced_is_synced_by_one_that_runs(
    landing: Landing, lake: Lake, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, mutant: bool
) -> None:
    """It had settled the table before; it finds the releases there and lets go of them. Mutant: it settles once."""
    land(landing, [maker.make()])
    sealer = Sealer(landing, lake, maker.plan_of)
    assert sealer.seal() == 1
    land(landing, [maker.make(window=1)])
    with monkeypatch.context() as patch:
        patch.setattr(failpoint, "armed", lambda name: _crash() if name == "log_linked" else None)
        with pytest.raises(Crash):
            Sealer(landing, Lake(tmp_path / "a lake é" / "tables"), maker.plan_of).seal()
    synced = syncs_noted(monkeypatch)
    if mutant:
        monkeypatch.setattr(DeltaLog, "settle", lambda _: None)
    assert sealer.seal() == 1
    assert len(read(lake, maker)) == 20
    assert ("_delta_log" in synced) is not mutant


# The log


def test_other_engines_read_the_same_table(lake: Lake, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library, from the log's start and from a checkpoint, sees the files and marks that we see."""
    monkeypatch.setattr(deltalog, "CHECKPOINT_EVERY", 4)
    rows = rows_of([maker.make(seed=i, window=i) for i in range(11)])
    checkpoints = 0
    for row in rows:
        lake.append(maker.plan, maker.hash, [row], app_id="a")
        folder = Path(lake.location(maker.plan, maker.hash))
        checkpoints += lake.write(maker.plan, maker.hash, lambda log, _: log.checkpoint())
        table = DeltaTable(folder)
        assert table.transaction_version("a") == row[0]
        assert sorted(Path(uri).name for uri in table.file_uris()) == sorted(
            lake.snapshot(maker.plan, maker.hash).files
        )
        assert table.count() == 10 * row[0]
    assert checkpoints == 2
    assert not (folder / "_delta_log" / f"{0:020}.json").exists(), "what two checkpoints cover is gone"
    fresh = Lake(folder.parents[1])
    assert fresh.snapshot(maker.plan, maker.hash) == lake.snapshot(maker.plan, maker.hash)


def test_a_table_that_the_library_wrote_is_continued(lake: Lake, maker: Maker) -> None:
    made = [maker.make(seed=i, window=i) for i in range(3)]
    folder = Path(lake.location(maker.plan, maker.hash))
    folder.mkdir(parents=True)
    marks = CommitProperties(app_transactions=[Transaction(app_id="a", version=2)])
    write_deltalake(folder, table_of(maker.plan, rows_of(made)[:2]), commit_properties=marks)
    lake.append(maker.plan, maker.hash, rows_of(made), app_id="a")
    assert read(lake, maker) == expected(maker, made)


def test_a_writer_that_was_outrun_looks_again(
    lake: Lake, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes seal the same releases at once: one is outrun, finds them there, and adds nothing."""
    rows = rows_of([maker.make(seed=i, window=i) for i in range(2)])
    other = Lake(tmp_path / "a lake é" / "tables")

    def meanwhile(name: str) -> None:
        if name == "file_synced":
            monkeypatch.setattr(failpoint, "armed", None)
            other.append(maker.plan, maker.hash, rows, app_id="a")

    monkeypatch.setattr(failpoint, "armed", meanwhile)
    lake.append(maker.plan, maker.hash, rows, app_id="a")
    assert len(read(lake, maker)) == 20
    assert lake.snapshot(maker.plan, maker.hash).version == 0


def reads_what_was_there(folder: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a read, begun or gone on with, holds every commit that came before it, whenever a writer overtakes.

    The writer makes eight commits and four checkpoints between two of the reader's requests, and clears what is behind.
    """
    writer = Lake(folder)
    rows = iter(rows_of([maker.make(seed=i, window=i) for i in range(400)]))

    def commit(times: int) -> None:
        for _ in range(times):
            writer.append(maker.plan, maker.hash, [next(rows)], app_id="a")
            writer.write(maker.plan, maker.hash, lambda log, _: log.checkpoint())

    class Overtaken(FolderStore):
        left = -1

        def get(self, name: str) -> bytes:
            self.left -= 1
            if self.left == 0:
                commit(8)
            return super().get(name)

    with monkeypatch.context() as patch:
        patch.setattr(deltalog, "CHECKPOINT_EVERY", 2)
        commit(3)
        for turn in range(1, 7):
            for seen in (False, True):
                reader = Lake(store := Overtaken(folder))
                if seen:
                    reader.snapshot(maker.plan, maker.hash)
                commit(3)
                before = writer.snapshot(maker.plan, maker.hash).version
                store.left = turn
                try:
                    found = reader.snapshot(maker.plan, maker.hash)
                except StoreFailed:
                    return False
                if found.version < before or len(found.files) != found.version + 1:
                    return False
    return True


@pytest.mark.slow
def test_a_read_is_no_older_than_its_beginning(tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the entries that it goes on from, or the checkpoint that it was told of, are removed meanwhile."""
    assert reads_what_was_there(tmp_path, maker, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["a checkpoint is for those who begin", "a checkpoint is looked for once"])
def test_mutant_reads_that_a_writer_may_overtake_are_caught(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    summed_up = DeltaLog._summed_up

    def once(self: DeltaLog, known: Snapshot) -> Snapshot:
        if mutant == "a checkpoint is for those who begin":
            return summed_up(self, known) if known.version < 0 else known
        told = self._newest_checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(self, "_newest_checkpoint", lambda: told)
            return summed_up(self, known)

    monkeypatch.setattr(DeltaLog, "_summed_up", once)
    assert not reads_what_was_there(tmp_path, maker, monkeypatch)


def turns_back(folder: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A writer falls silent before it names its checkpoint, while another names two; whether readers are led back."""
    monkeypatch.setattr(deltalog, "CHECKPOINT_EVERY", 2)
    one, other = Lake(folder), Lake(folder)
    rows = iter(rows_of([maker.make(seed=i, window=i) for i in range(20)]))

    def commit(lake: Lake, times: int) -> None:
        for _ in range(times):
            lake.append(maker.plan, maker.hash, [next(rows)], app_id="a")
            lake.write(maker.plan, maker.hash, lambda log, _: log.checkpoint())

    def silent(name: str) -> None:
        if name == "checkpoint_linked":
            monkeypatch.setattr(failpoint, "armed", None)
            commit(other, 4)

    commit(one, 3)
    before = other.log(maker.plan, maker.hash)._newest_checkpoint()
    monkeypatch.setattr(failpoint, "armed", silent)
    commit(one, 2)
    monkeypatch.setattr(failpoint, "armed", None)
    assert (other.log(maker.plan, maker.hash)._newest_checkpoint() or 0) > (before or 0)
    try:
        return len(Lake(folder).snapshot(maker.plan, maker.hash).files) != 9
    except StoreFailed:
        return True


def test_a_checkpoint_of_one_that_was_silent_is_not_named(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was made behind is gone by then. Mutant: it is named whatever happened meanwhile."""
    assert not turns_back(tmp_path, maker, monkeypatch)


class Away:
    """A bucket that does not answer."""

    location = "s3://away"

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(name)


@pytest.mark.parametrize("bucket", [True, False])
def test_a_bucket_that_does_not_answer_is_no_failed_disk(maker: Maker, tmp_path: Path, *, bucket: bool) -> None:
    """The exit code says to try again, and of a folder to look at the disk. Mutant: the other's word for it."""
    away: Any = Away()
    lake, one = Lake(away if bucket else tmp_path), maker.make()
    if not bucket:
        (tmp_path / maker.plan.name).write_text("where a folder should be")
    with pytest.raises(StoreFailed) as caught:
        lake.append(maker.plan, maker.hash, [(1, one.release, one.values)], app_id="a landing")
    assert type(caught.value) is (StoreUnavailable if bucket else StoreFailed)
    if bucket:
        with pytest.raises(StoreUnavailable):
            lake.snapshot(maker.plan, maker.hash)
