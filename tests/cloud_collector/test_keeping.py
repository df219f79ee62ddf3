"""Looking after what is kept: retention, compaction, verification, backup and restore.

Not proved here: cuts in the middle of them (test_lake_cuts), kills (test_collector_kills).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloud_collector import backup as room
from cloud_collector import compaction, deltalog, rollup, upkeep, verify
from cloud_collector.caller import LOCAL
from cloud_collector.deltalog import DeltaLog, Snapshot
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.lake import OWNER, Lake
from cloud_collector.landed import Action, Verdict
from cloud_collector.landing import Landing, store_of
from cloud_collector.objectstore import SyncFailed
from cloud_collector.plans import PlanRegistry
from cloud_collector.query import Query
from cloud_collector.question import Question
from cloud_collector.rollup import Rollups
from cloud_collector.sealer import Sealer
from cloud_collector.sealing import Turns
from cloud_collector.upkeep import Upkeep
from cloud_collector.verify import Stores, differences
from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Link
from tests.cloud_collector.conftest import MONDAY, PLAN, Maker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cloud_collector.objectstore import ObjectStore
    from tests.cloud_collector.conftest import Made

A, D, C, F = Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.FENCED
SIX_HOURLY = PLAN.replace('every = "7d"', 'every = "6h"')
DAY = timedelta(days=1)


class Collector:
    """A landing, a lake, roll-ups, and all that works on them, over one folder."""

    def __init__(
        self,
        data: Path,
        *,
        retention: Mapping[str, timedelta] | None = None,
        store: ObjectStore | None = None,
        nodes: Sequence[str] = ("jfk", "lga"),
    ) -> None:
        self.data, self.maker, self.place = data, Maker(SIX_HOURLY), store or data / "lake"
        self.registry = PlanRegistry(_made(data) / "plans")
        self.registry.add(self.maker.text, nodes, tenant="default")
        self.landing, self.lake = Landing(data / "landing.sqlite"), Lake(self.place)
        self.rollups = Rollups(data / "rollups.sqlite")
        self.sealer = Sealer(self.landing, self.lake, self.maker.plan_of, self.rollups)
        self.plans = [(self.maker.plan, self.maker.hash)]
        self.upkeep = Upkeep(
            lake=self.lake,
            rollups=self.rollups,
            alone=self.sealer.paused,
            plans=lambda: self.plans,
            retention=lambda _: (retention or {}).get(self.maker.plan.name),
        )

    def seal(self, *made: Made) -> list[Verdict]:
        """Land and seal."""
        verdicts = asyncio.run(self.landing.land([one.pair for one in made]))
        self.sealer.seal()
        return verdicts

    def make(self, window: int, agent: str = "jfk", **more: Any) -> Made:
        """One release of the default tenant."""
        return self.maker.make(window=window, agent=agent, tenant="default", **more)

    def answer(self, **asked: Any) -> list[dict[str, Any]]:
        """Ask, and find that the lake and the roll-ups say the same."""
        question = Question(plan=self.maker.plan.name, metric="departures", **asked)
        known, waiting = self.landing.known, self.landing.waiting_of
        quick = Query(self.registry, self.lake, self.sealer.seal, rollups=self.rollups, known=known)
        first = Query(
            self.registry, self.lake, self.sealer.seal, rollups=self.rollups, known=known, waiting=waiting
        ).estimate(question, LOCAL)
        slow = Query(self.registry, self.lake, self.sealer.seal, known=known)
        said = quick.estimate(question, LOCAL)
        assert said.equals(first), "what it did not wait for would not have shown"
        assert said.equals(slow.estimate(question, LOCAL))
        return list(said.to_pylist())

    def differences(self) -> list[str]:
        """What does not fit."""
        landing, lake = store_of(self.data / "landing.sqlite", make=False), Lake(self.place)
        rollups, turns = self.data / "rollups.sqlite", self.data / "sealer.lock"
        stores = Stores(landing=landing, lake=lake, rollups=rollups, turns=turns, plans=self.plans)
        return list(differences(stores))

    def close(self) -> None:
        """Close all files."""
        self.landing.close()
        self.rollups.close()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def collecting(data: Path, **more: Any) -> Iterator[Collector]:
    with contextlib.closing(Collector(data, **more)) as one:
        yield one


# Retention


def at_window(n: int) -> int:
    return to_us(MONDAY) + n * 6 * 3_600_000_000


def data_goes_and_keys_stay(one: Collector) -> bool:
    made = [one.make(n, agent, seed=n) for n in range(12) for agent in ("jfk", "lga")]
    one.seal(*made[:10])
    one.seal(*made[10:])
    one.upkeep.run(MONDAY + 2 * DAY + timedelta(days=400, hours=7))
    left = {one.window_start_us for one in one.lake.stored(*one.plans[0])}
    again = one.seal(*made[:3], one.make(0, seed=99))
    one.upkeep.run(MONDAY + 2 * DAY + timedelta(days=400, hours=7))
    return left == {at_window(n) for n in range(8, 12)} and again == [D, D, D, C] and one.differences() == []


def test_data_goes_by_whole_days_and_keys_stay(tmp_path: Path) -> None:
    """Also out of the roll-ups; what is gone is `expired` in answers, and never a window that could be sent again."""
    with collecting(tmp_path / "data", retention={"flight_delays": timedelta(days=400)}) as one:
        assert data_goes_and_keys_stay(one)
        one.landing.unfence("default", "jfk", who="ada", note="a test")
        rows = one.answer(start_us=at_window(0), every_us=24 * 3_600_000_000)
        assert [row["status"] for row in rows] == ["expired", "expired", "complete"]
        assert [row["windows_reporting"] for row in rows] == [0, 0, 8]


def test_who_reported_is_expected_when_its_data_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody is named, a node that went silent before all that is kept is missed still, with roll-ups or without.

    Mutant: whoever is in the lake is expected, and an answer is complete once a node's last window has gone.
    """
    with collecting(tmp_path / "data", retention={"flight_delays": timedelta(days=1)}, nodes=()) as one:
        one.seal(*(one.make(n, agent) for n in range(12) for agent in ("jfk", "lga") if agent == "jfk" or n < 3))
        one.upkeep.run(MONDAY + 3 * DAY)

        def said() -> tuple[int, int, str]:
            (row,) = one.answer()
            assert row["start"] == MONDAY + 2 * DAY
            return row["nodes_reporting"], row["nodes_expected"], row["status"]

        assert said() == (1, 2, "offline")
        monkeypatch.setattr("cloud_collector.whereabouts.Whereabouts.reported", lambda _: {})
        assert said() == (1, 1, "complete")


def test_mutant_a_key_that_goes_with_its_data_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    retire = upkeep.retire
    path = tmp_path / "data" / "landing.sqlite"

    def keys_too(*given: Any, **more: Any) -> int:
        cutoff = retire(*given, **more)
        with contextlib.closing(apsw.Connection(str(path))) as db:
            db.execute("DELETE FROM releases WHERE window_start_us < ?", (cutoff,))
        return cutoff

    monkeypatch.setattr(upkeep, "retire", keys_too)
    with collecting(tmp_path / "data", retention={"flight_delays": timedelta(days=400)}) as one:
        assert not data_goes_and_keys_stay(one)


def agree_after_a_longer_retention(one: Collector) -> bool:
    """Two days are retired; then one more is to be kept, and releases come late for all of them."""
    one.seal(*(one.make(n, seed=n) for n in range(12)))
    one.upkeep.run(MONDAY + 2 * DAY + timedelta(days=400, hours=7))
    longer = replace(one.upkeep, retention=lambda _: timedelta(days=401))
    one.seal(*(one.make(n, "lga", seed=n) for n in range(0, 12, 2)))
    longer.run(MONDAY + 2 * DAY + timedelta(days=400, hours=7))
    left = {held.window_start_us for held in one.lake.stored(*one.plans[0])}
    return (
        one.differences() == []
        and one.lake.retired_us(*one.plans[0]) == at_window(8)
        and left == {at_window(n) for n in range(8, 12)}
    )


def test_a_longer_retention_brings_nothing_back(tmp_path: Path) -> None:
    """What is gone is gone from lake and roll-ups alike, and what comes late for it goes too."""
    with collecting(tmp_path / "data", retention={"flight_delays": timedelta(days=400)}) as one:
        assert agree_after_a_longer_retention(one)


def test_mutant_a_moment_that_goes_back_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_from", lambda _, cutoff: cutoff)
    with collecting(tmp_path / "data", retention={"flight_delays": timedelta(days=400)}) as one:
        assert not agree_after_a_longer_retention(one)


def test_a_plan_without_retention_is_kept(tmp_path: Path) -> None:
    with collecting(tmp_path / "data", retention={"another": DAY}) as one:
        one.seal(one.make(0))
        one.upkeep.run(datetime(2100, 1, 1, tzinfo=UTC))
        assert len(list(one.lake.stored(*one.plans[0]))) == 1


# Compaction


def test_compaction_changes_no_row_and_no_reader_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers that listed the files before it still find them; the files go after the grace time."""
    monkeypatch.setattr(compaction, "MANY_FILES", 4)
    with collecting(tmp_path / "data") as one:
        for n in range(6):
            one.seal(one.make(5 - n, seed=n))
        before = one.lake.files(*one.plans[0])
        held = sorted(stored.digest for stored in one.lake.stored(*one.plans[0]))
        one.upkeep.run(datetime.now(UTC))
        (after,) = one.lake.files(*one.plans[0])
        assert sorted(stored.digest for stored in one.lake.stored(*one.plans[0])) == held
        assert pq.read_table(before).num_rows == pq.read_table(after).num_rows == 60
        assert one.differences() == []
        for file in before:
            os.utime(file, (0, 0))
        one.upkeep.run(datetime.now(UTC))
        assert len(list(Path(after).parent.glob("*.parquet"))) == 7, "when it was dropped, not when it was written"
        assert upkeep.tidy(Lake(tmp_path / "data" / "lake"), *one.plans[0], grace_s=-1.0) == 6
        assert [str(file) for file in Path(after).parent.glob("*.parquet")] == [after]
        assert one.differences() == []


def test_upkeep_removes_what_was_dropped_once_the_grace_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: the grace time is that of the import, whatever is set later."""
    monkeypatch.setattr(compaction, "MANY_FILES", 2)
    with collecting(tmp_path / "data") as one:
        one.seal(one.make(0))
        one.seal(one.make(1))
        folder = Path(one.lake.location(*one.plans[0]))
        one.upkeep.run(MONDAY)
        assert len(list(folder.glob("*.parquet"))) == 3
        monkeypatch.setattr(upkeep, "GRACE_S", -1.0)
        one.upkeep.run(MONDAY)
        assert [str(file) for file in folder.glob("*.parquet")] == one.lake.files(*one.plans[0])


@pytest.mark.parametrize("mutant", [False, True])
def test_what_was_sealed_while_upkeep_slept_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, mutant: bool
) -> None:
    """The machine sleeps between its look at the log and the listing of files, for longer than a leftover stays.

    Mutant: the time is looked at after the log.
    """
    with collecting(tmp_path / "data") as one:
        one.seal(one.make(0))
        checkpoint, now_s, slept = DeltaLog.checkpoint, upkeep.time.time, [0.0]  # type: ignore[attr-defined]  # a clock

        def asleep(self: DeltaLog) -> bool:
            slept[0] = upkeep.GRACE_S + 60
            other = Lake(tmp_path / "data" / "lake")
            made = one.make(1)
            other.append(*one.plans[0], [(2, made.release, made.values)], app_id="another")
            return checkpoint(self)

        monkeypatch.setattr(DeltaLog, "checkpoint", asleep)
        monkeypatch.setattr(upkeep.time, "time", lambda: now_s() + slept[0])  # type: ignore[attr-defined]  # as above
        if mutant:
            tidied = upkeep._tidy
            monkeypatch.setattr(upkeep, "_tidy", lambda log, now, _: tidied(log, now, now_s() * 1000 + 60_000))
        with contextlib.suppress(StoreFailed):
            one.upkeep.run(MONDAY)
        present = {Path(file).exists() for file in Lake(tmp_path / "data" / "lake").files(*one.plans[0])}
        assert present == ({True, False} if mutant else {True})


@pytest.mark.parametrize(
    ("rows", "files", "joined"), [(1_000, 15, 0), (1_000, 16, 16), (62_000, 16, 16), (63_000, 16, 15), (249_999, 5, 4)]
)
def test_small_files_are_joined_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, files: int, joined: int
) -> None:
    """With the numbers of the module: many files, or the rows of one compaction. Mutant: many files alone."""
    with collecting(tmp_path / "data") as one:
        one.seal(one.make(0))
        plan, hashed = one.plans[0]
        log, (real,) = one.lake.log(plan, hashed), one.lake.snapshot(plan, hashed).files.values()
        content = log.rows(real.name)
        monkeypatch.setattr(log, "rows", lambda name: content)
        made = [replace(real, name=f"{n}.parquet", rows=rows) for n in range(files)]
        found = compaction._joined(plan, log, Snapshot(version=0, files={each.name: each for each in made}))
        assert (0 if found is None else len(found.remove)) == joined


@pytest.mark.slow
def test_readers_beside_compaction_see_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MANY_FILES", 2)
    with collecting(tmp_path / "data") as one:
        one.seal(one.make(0))
        seen: list[int] = []
        least, stop = [1], threading.Event()
        reader_lake = Lake(tmp_path / "data" / "lake")

        def read() -> None:
            while not stop.is_set():
                at_least = least[0]
                with duckdb.connect() as db:
                    files = reader_lake.files(*one.plans[0])
                    (count,) = db.execute("SELECT count(*) FROM read_parquet(?)", [files]).fetchone() or (0,)
                assert count >= 10 * at_least
                seen.append(count)

        reader = threading.Thread(target=read)
        reader.start()
        for n in range(1, 25):
            one.seal(one.make(n, seed=n))
            least[0] = n + 1
            one.upkeep.run(datetime.now(UTC))
        stop.set()
        reader.join()
        assert seen


# Verify


def test_what_fits_is_said_to_fit_and_whatever_is_changed_is_named(tmp_path: Path) -> None:
    """A value, a row, a hash, a head, a roll-up: each is noticed, none is printed."""
    with collecting(tmp_path / "data") as one:
        one.seal(*(one.make(n, agent, seed=n) for n in range(4) for agent in ("jfk", "lga")))
        asyncio.run(one.landing.land([one.make(9).pair]))
        assert one.differences() == []
        (file,) = one.lake.files(*one.plans[0])
        good = pq.read_table(file)

        def with_lake(table: pa.Table) -> list[str]:
            pq.write_table(table, file)
            try:
                return one.differences()
            finally:
                pq.write_table(good, file)

        values = good.column("departures").to_pylist()
        place = good.schema.get_field_index("departures")
        other = good.set_column(place, "departures", pa.array([values[0] + 1, *values[1:]], pa.int64()))
        assert any("other values" in text for text in with_lake(other))
        assert any("roll-ups" in text for text in with_lake(other))
        assert any("is not in the lake" in text for text in with_lake(good.slice(10)))
        assert any("twice" in text for text in with_lake(pa.concat_tables([good, good.slice(0, 10)])))
        swapped = pa.concat_tables([good.slice(1, 1), good.slice(0, 1), good.slice(2)])
        assert any("other keys" in text for text in with_lake(swapped))
        assert one.differences() == []
        assert one.lake.claim("another's") == "another's"
        assert any("another landing" in text for text in one.differences())
        (tmp_path / "data" / "lake" / OWNER).unlink()
        one.landing.bind(one.lake)
        assert one.differences() == []

    def with_landing(query: str) -> list[str]:
        with contextlib.closing(apsw.Connection(str(tmp_path / "data" / "landing.sqlite"))) as db:
            db.execute("SAVEPOINT one")
            db.execute(query)
            db.execute("RELEASE one")
        with collecting(tmp_path / "data") as again:
            return again.differences()

    assert any("head says" in text for text in with_landing("UPDATE journals SET head_seq = 99 WHERE agent = 1"))
    changed = "UPDATE releases SET hash = zeroblob(32) WHERE id IN (SELECT id FROM waiting)"
    assert any("another hash" in text for text in with_landing(changed))
    gone = "DELETE FROM releases WHERE id = 1"
    assert any("does not know it" in text for text in with_landing(gone))


def test_a_chain_that_does_not_link_is_named(tmp_path: Path) -> None:
    with collecting(tmp_path / "data") as one:
        first = one.make(0, link=Link(incarnation="a" * 32, seq=1, prev_hash=b""))
        second = one.make(1, link=Link(incarnation="a" * 32, seq=2, prev_hash=first.sealed.hash))
        assert one.seal(first, second) == [A, A]
        assert one.differences() == []
        with contextlib.closing(apsw.Connection(str(tmp_path / "data" / "landing.sqlite"))) as db:
            db.execute("UPDATE releases SET prev = zeroblob(32) WHERE seq = 2")
        assert any("does not continue" in text for text in one.differences())


def fits_beside_a_sealer(one: Collector, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Verify looks while the sealer is between lake and roll-ups; while it reads what it found, others seal."""
    one.seal(*(one.make(n) for n in range(3)))
    turns = Turns(one.sealer, one.data / "sealer.lock")
    between, asked, opened = threading.Event(), threading.Event(), threading.Event()
    add, turn, one_state, rows = one.rollups.add, vars(verify)["turn"], verify._one_state, verify._rows
    passes: list[bool] = []

    def late(*given: Any) -> None:
        between.set()
        assert asked.wait(10)
        opened.wait(0.2)  # unless it waits for its turn
        add(*given)

    def asking(path: Path) -> Any:
        asked.set()
        return turn(path)

    @contextlib.contextmanager
    def opening(path: Path) -> Iterator[apsw.Connection]:
        with one_state(path) as db:
            opened.set()
            yield db

    def sealed_meanwhile(*given: Any) -> Any:
        asyncio.run(one.landing.land([one.make(20 + len(passes)).pair]))
        with ThreadPoolExecutor(1) as pool:
            passes.append(bool(wait([pool.submit(one.sealer.seal)], 3.0).done))
        return rows(*given)

    monkeypatch.setattr(one.rollups, "add", late)
    monkeypatch.setattr(verify, "turn", asking)
    monkeypatch.setattr(verify, "_one_state", opening)
    monkeypatch.setattr(verify, "_rows", sealed_meanwhile)
    asyncio.run(one.landing.land([one.make(5).pair]))
    sealing = threading.Thread(target=turns.seal)
    sealing.start()
    assert between.wait(10)
    found = one.differences()
    sealing.join()
    return found == [] and all(passes)


@pytest.mark.slow
def test_verify_beside_a_sealer_finds_nothing_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lake and roll-ups are looked at between two turns."""
    with collecting(tmp_path / "data") as one:
        assert fits_beside_a_sealer(one, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["takes no turn", "writes"])
def test_mutant_a_verify_that_disturbs_or_is_disturbed_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str
) -> None:
    @contextlib.contextmanager
    def writing(rollups: Path) -> Iterator[apsw.Connection]:
        with contextlib.closing(apsw.Connection(str(rollups))) as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    with collecting(tmp_path / "data") as one:
        if mutant == "takes no turn":
            monkeypatch.setattr(verify, "turn", contextlib.nullcontext)
        else:
            monkeypatch.setattr(verify, "_one_state", writing)
        assert not fits_beside_a_sealer(one, monkeypatch)


# Backup and restore


def test_a_backup_made_while_releases_come_in_holds_all_that_was_acked_before(tmp_path: Path) -> None:
    """Sealed, unsealed, or between: restored and sealed again, each release is there once."""
    with collecting(tmp_path / "data") as one:
        made = [one.make(n, agent, seed=n) for n in range(20) for agent in ("jfk", "lga")]
        one.seal(*made[:10])
        asyncio.run(one.landing.land([one.pair for one in made[10:16]]))
        acked = list(made[:16])
        going = threading.Thread(target=lambda: [one.seal(each) for each in made[16:]])
        going.start()
        room.backup(tmp_path / "data", tmp_path / "copy")
        going.join()
        with pytest.raises(ConfigInvalid):
            room.backup(tmp_path / "data", tmp_path / "copy")
        with pytest.raises(ConfigInvalid):
            room.restore(tmp_path / "copy", tmp_path / "data", who="ada")
    room.restore(tmp_path / "copy", tmp_path / "again", who="ada")
    with collecting(tmp_path / "again") as two:
        assert set(asyncio.run(two.landing.land([each.pair for each in acked]))) == {D}
        two.seal(*made)
        assert len(list(two.lake.stored(*two.plans[0]))) == len(made)
        assert two.differences() == []
        assert two.landing.audit()[0].action is Action.RESTORED


def test_a_backup_and_a_restore_may_take_longer_than_a_file_may_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tidies what they write to. Mutant: `DeltaLog.keep` notes since when a file waits."""
    with collecting(tmp_path / "data") as one:
        for n in range(3):
            one.seal(one.make(n, seed=n))
        held = [stored.digest for stored in one.lake.stored(*one.plans[0])]
        monkeypatch.setattr(deltalog, "_awake_s", partial(next, itertools.count(0.0, deltalog.MAX_WAIT_S + 1)))
        room.backup(tmp_path / "data", tmp_path / "copy")
    elsewhere = Lake(tmp_path / "elsewhere")
    room.restore(tmp_path / "copy", tmp_path / "again", who="ada", lake=elsewhere)
    assert [stored.digest for stored in elsewhere.stored(*one.plans[0])] == held


@pytest.mark.parametrize("copied_by", ["this version", "an earlier one"])
def test_what_came_while_a_backup_was_made_counts_alike_in_every_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied_by: str
) -> None:
    """Landed after the landing was copied, sealed before the lake is: nobody sends it again. Mutant: roll-ups are kept.

    An earlier version copied them before the lake; they are not brought back.
    """
    with collecting(tmp_path / "data") as one:
        one.seal(*(one.make(n, agent, seed=n) for n in range(3) for agent in ("jfk", "lga")))
        copy_table = room._copy_table

        def meanwhile(*given: Any) -> None:
            one.seal(one.make(3), one.make(3, "ord"))
            copy_table(*given)

        monkeypatch.setattr(room, "_copy_table", meanwhile)
        if copied_by == "an earlier one":
            monkeypatch.setattr(room, "_SQLITE", ("landing.sqlite", "rollups.sqlite"))
        room.backup(tmp_path / "data", tmp_path / "copy")
    monkeypatch.undo()
    room.restore(tmp_path / "copy", tmp_path / "again", who="ada")
    with collecting(tmp_path / "again") as two:
        for _ in range(2):
            (row,) = two.answer(start_us=at_window(0), end_us=at_window(4))
            assert row["windows_reporting"] == 8
            rows = two.answer(start_us=at_window(3), end_us=at_window(4), by=("node",))
            assert {each["node"]: each["windows_reporting"] for each in rows} == {"jfk": 1, "lga": 0, "ord": 1}
            assert two.differences() == []
            two.seal(two.make(4, "lga"))
            assert two.rollups.covers(two.maker.hash)


class OutOfReach(Exception):
    """As the bucket's client would say it, of nobody's family."""


@pytest.mark.parametrize("error", [OutOfReach, SyncFailed, OSError, KeyboardInterrupt])
def test_a_copy_that_fails_leaves_nothing_and_says_no_more_than_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Whatever fails, also by the operator's hand. Mutant: only the errors of disk and database are looked for."""
    with collecting(tmp_path / "data") as one:
        one.seal(one.make(0))
        room.backup(tmp_path / "data", tmp_path / "copy")

        def fails(self: DeltaLog, name: str, data: Any) -> None:
            raise error("canary/key")

        monkeypatch.setattr(DeltaLog, "keep", fails)
        for copy in (
            lambda: room.backup(tmp_path / "data", tmp_path / "another"),
            lambda: room.restore(tmp_path / "copy", tmp_path / "again", who="ada", lake=Lake(tmp_path / "elsewhere")),
        ):
            with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else StoreFailed) as caught:
                copy()
            assert error is KeyboardInterrupt or "canary" not in str(caught.value)
        assert {each.name for each in tmp_path.iterdir()} == {"data", "copy", "elsewhere"}


def chained(one: Collector, windows: Sequence[int]) -> list[Made]:
    """Releases of one journal."""
    made: list[Made] = []
    for seq, window in enumerate(windows, start=1):
        prev = made[-1].sealed.hash if made else b""
        made.append(one.make(window, seed=seq, link=Link(incarnation="a" * 32, seq=seq, prev_hash=prev)))
    return made


def test_what_was_acked_after_the_backup_is_lost_and_said_to_be(tmp_path: Path) -> None:
    """The agent goes on; the windows between are `lost`, those after it are here, and conflicts stay conflicts."""
    with collecting(tmp_path / "data") as one:
        made = chained(one, range(8))
        one.seal(*made[:3])
        room.backup(tmp_path / "data", tmp_path / "copy")
        one.seal(*made[3:6])
    room.restore(tmp_path / "copy", tmp_path / "again", who="ada")
    with collecting(tmp_path / "again") as two:
        (before,) = two.landing.agents()
        assert (before.behind, before.missing, before.last_seq) == (False, 0, 3)
        assert two.seal(*made[6:], made[0], two.make(1, seed=77)) == [A, A, D, C]
        (after,) = two.landing.agents()
        assert (after.behind, after.missing, after.last_seq) == (True, 3, 8)
        rows = two.answer(every_us=6 * 3_600_000_000, start_us=at_window(0), end_us=at_window(8))
        jfk_missing = [row["status"] for row in rows]
        assert jfk_missing[3:6] == ["lost"] * 3
        assert set(jfk_missing[:3] + jfk_missing[6:]) == {"offline"}, "of lga, which never sent anything"
        actions = [each.action for each in two.landing.audit()]
        assert actions == [Action.RESTORED, Action.BEHIND, Action.FENCED]
        assert two.differences() == []


def test_what_was_only_on_its_way_is_not_lost(tmp_path: Path) -> None:
    """Releases that nobody acked come late, in any order, and leave nothing lost behind."""
    with collecting(tmp_path / "data") as one:
        made = chained(one, range(6))
        one.seal(*made[:3])
        room.backup(tmp_path / "data", tmp_path / "copy")
    room.restore(tmp_path / "copy", tmp_path / "again", who="ada")
    with collecting(tmp_path / "again") as two:
        two.seal(made[5])
        assert two.landing.agents()[0].behind
        two.seal(made[4], made[3])
        assert (two.landing.agents()[0].behind, two.landing.agents()[0].missing) == (False, 0)


def test_a_backup_that_was_changed_is_not_restored(tmp_path: Path) -> None:
    with collecting(tmp_path / "data") as one:
        one.seal(one.make(0))
        room.backup(tmp_path / "data", tmp_path / "copy")
    (file,) = (tmp_path / "copy" / "lake").rglob("*.parquet")
    good = file.read_bytes()
    for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:]):
        file.write_bytes(bad)
        with pytest.raises(StoreFailed, match="not what was backed up"):
            room.restore(tmp_path / "copy", tmp_path / "again", who="ada")
    file.unlink()
    with pytest.raises(StoreFailed, match="other files"):
        room.restore(tmp_path / "copy", tmp_path / "again", who="ada")
    assert not (tmp_path / "again").exists()


def test_mutant_a_restore_that_does_not_say_so_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_mark_restored", lambda data, who: None)
    with pytest.raises(AssertionError):
        test_what_was_acked_after_the_backup_is_lost_and_said_to_be(tmp_path)


def test_a_day_of_the_roll_ups_is_gone_as_a_whole() -> None:
    assert rollup.day_of(at_window(5)) == at_window(4)
