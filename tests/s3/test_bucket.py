"""A collector whose lake is in a bucket does what one with a folder does: seal, answer, keep, verify, back up.

Not proved here: lost answers on the wire (test_faults), what each call of a store promises (test_stores).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable
from obstore.exceptions import PermissionDeniedError

from cloud_collector import backup as room
from cloud_collector import client, compaction, deltalog, failpoint, s3store, server, supervisor, upkeep
from cloud_collector.__main__ import cli
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.folderstore import FolderStore
from cloud_collector.lake import OWNER, Lake
from cloud_collector.lake_rows import table_of, table_schema
from cloud_collector.s3store import S3Store
from edge_agg.contract.release import Status
from tests.cloud_collector.front import push, release, running
from tests.cloud_collector.test_collector_kills import broken_promises, lost_acks
from tests.cloud_collector.test_keeping import collecting, data_goes_and_keys_stay
from tests.cloud_collector.test_server import ACCEPTED, settings
from tests.lives import Lives
from tests.s3.conftest import bucket_at
from tests.s3.server import ACCESS_KEY, REGION, SECRET_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import polars as pl

    from cloud_collector.bucket import Bucket
    from tests.cloud_collector.conftest import Maker
    from tests.s3.server import Server

pytestmark = pytest.mark.slow


def answers(folder: Path, bucket: Bucket | None) -> list[pl.DataFrame]:
    """What a whole collector says over gRPC, from the roll-ups and from the lake."""
    folder.mkdir()
    with running(settings(folder, "jfk", "lga", "ewr", bucket=bucket)) as address, client.connect(address) as c:
        first = [release("jfk", 0, 10), release("jfk", 1, 20), release("lga", 1, status=Status.EXHAUSTED)]
        assert push(address, *first) == [ACCEPTED] * 3
        found = [c.estimate("flights", "departures", by=["carrier"], every="7d")]
        assert push(address, release("lga", 0, -3), release("ewr", 0, 1)) == [ACCEPTED] * 2
        for metric in ("departures", "aircraft", "total", "late"):
            found += [
                c.estimate("flights", metric, by=["carrier"], every="7d"),
                c.estimate("flights", metric, by=["node", "night"], every="7d"),
                c.estimate("flights", metric, where={"node": ["jfk", "ewr"]}),
            ]
    return found


def test_estimates_and_coverage_are_those_of_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    """To the last bit, through the wire, from the roll-ups and from the objects themselves."""
    of_folder, of_bucket = answers(tmp_path / "folder", None), answers(tmp_path / "bucket", bucket)
    assert all(one.equals(other) for one, other in zip(of_folder, of_bucket, strict=True))
    assert not (tmp_path / "bucket" / "data" / "lake").exists()
    assert [one.name for one in S3Store(bucket).list("")] == [OWNER]
    assert sum(len(frame) for frame in of_bucket) > 50


def test_a_bucket_that_cannot_be_used_stops_the_start(bucket: Bucket, tmp_path: Path) -> None:
    """Wrong keys, wrong bucket, nobody there: before the first call is taken, without a key in the text."""
    assert bucket.secret_key_file is not None
    wrongs: list[dict[str, Any]] = [{"name": "no-such-bucket"}, {"endpoint": "http://127.0.0.1:9"}]
    for wrong in wrongs:
        with pytest.raises(StoreFailed, match=r"\$\.lake\.url"):
            _serve(settings(tmp_path, bucket=dataclasses.replace(bucket, **wrong)))
    bucket.secret_key_file.write_text("canary-key")
    with pytest.raises(StoreFailed, match="not usable") as caught:
        _serve(settings(tmp_path, bucket=bucket))
    assert "canary" not in str(caught.value)


def test_several_processes_try_the_store_once_before_they_start(bucket: Bucket, tmp_path: Path) -> None:
    """A worker that is started again while the store is away takes calls: the landing needs no bucket."""
    gone = dataclasses.replace(bucket, endpoint="http://127.0.0.1:9")
    with pytest.raises(StoreFailed, match=r"\$\.lake\.url"):
        asyncio.run(supervisor.serve(settings(tmp_path, bucket=gone, workers=2)))

    async def one_worker() -> None:
        stop = asyncio.Event()
        await server.serve(settings(tmp_path, bucket=gone, workers=2), stop=stop, ready=lambda _: stop.set())

    asyncio.run(one_worker())


def _serve(config: Any) -> None:
    asyncio.run(server.serve(config, stop=asyncio.Event()))


def test_keys_may_be_exchanged_while_we_run(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read again once the old ones are old; nothing is started again."""
    assert bucket.secret_key_file is not None
    monkeypatch.setattr(s3store, "_CREDENTIALS_FOR", timedelta(seconds=-1))
    store = S3Store(bucket)
    store.put("one", b"1")
    good = bucket.secret_key_file.read_text()
    bucket.secret_key_file.write_text("another")
    with pytest.raises(PermissionDeniedError):
        store.put("two", b"2")
    bucket.secret_key_file.write_text(good)
    store.put("two", b"2")


def test_no_variable_of_the_environment_changes_where_requests_go(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_BUCKET", "elsewhere")
    S3Store(bucket_at(server.endpoint, tmp_path)).check()


def test_sealing_verifying_compacting_and_retiring(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder: data goes by days, keys stay, everything fits, and only what is dropped is removed."""
    monkeypatch.setattr(compaction, "MANY_FILES", 3)
    monkeypatch.setattr(deltalog, "CHECKPOINT_EVERY", 4)
    store = S3Store(bucket)
    with collecting(tmp_path / "data", retention={"flight_delays": timedelta(days=400)}, store=store) as one:
        assert data_goes_and_keys_stay(one)
        for n in range(20, 26):
            one.seal(one.make(n, seed=n))
            one.upkeep.run(datetime(2013, 1, 8, tzinfo=UTC))
        assert one.differences() == []
        present = {found.name for found in one.lake.log(*one.plans[0]).present()}
        named = set(one.lake.snapshot(*one.plans[0]).files)
        dropped = set(one.lake.snapshot(*one.plans[0]).dropped)
        assert named < present
        assert present - named <= dropped
        assert upkeep.tidy(one.lake, *one.plans[0], grace_s=-60.0) == len(present - named)
        assert {found.name for found in one.lake.log(*one.plans[0]).present()} == named
        assert one.differences() == []
        rows = sum(len(stored.columns.get("departures", ())) for stored in one.lake.stored(*one.plans[0]))
        assert rows == sum(file.rows for file in one.lake.snapshot(*one.plans[0]).files.values())


def test_the_library_reads_the_same_table_from_the_bucket(
    bucket: Bucket, server: Server, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the log's start and from a checkpoint."""
    monkeypatch.setattr(deltalog, "CHECKPOINT_EVERY", 4)
    lake = Lake(S3Store(bucket))
    options = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_ALLOW_HTTP": "true",
    }
    for n in range(1, 11):
        made = maker.make(seed=n, window=n)
        lake.append(maker.plan, maker.hash, [(n, made.release, made.values)], app_id="a")
        lake.write(maker.plan, maker.hash, lambda log, _: log.checkpoint())
        table = DeltaTable(lake.location(maker.plan, maker.hash), storage_options=options)
        assert table.transaction_version("a") == n
        assert table.count() == 10 * n
    fresh = Lake(S3Store(bucket))
    assert fresh.snapshot(maker.plan, maker.hash) == lake.snapshot(maker.plan, maker.hash)
    assert fresh.snapshot(maker.plan, maker.hash).version == 9


def sealed_by_several(bucket: Bucket, maker: Maker) -> bool:
    """Whether four sealers of a landing each, which write to one table, bring every release in once."""

    def seal(landing: int) -> None:
        lake = Lake(S3Store(bucket))
        made = [maker.make(seed=i, window=i, agent=str(landing)) for i in range(3)]
        rows = [(100 * landing + i, one.release, one.values) for i, one in enumerate(made)]
        for end in (1, 2, 3, 3):
            for _ in range(20):
                with contextlib.suppress(StoreFailed):  # outrun too often
                    lake.append(maker.plan, maker.hash, rows[:end], app_id=str(landing))
                    break

    threads = [threading.Thread(target=seal, args=(landing,)) for landing in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Counter(one.landing_id for one in Lake(S3Store(bucket)).stored(maker.plan, maker.hash))
    return found == Counter(100 * landing + i for landing in range(4) for i in range(3))


def test_several_sealers_never_write_the_same_version(bucket: Bucket, maker: Maker) -> None:
    assert sealed_by_several(bucket, maker)


def test_mutant_sealers_without_the_condition_are_caught(
    bucket: Bucket, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3Store, "put_new", S3Store.put)
    assert not sealed_by_several(bucket, maker)


def waits_too_long(bucket: Bucket, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> int:
    """Two hours of sleep between a put and its commit, in which another machine tidies; how many releases are read."""
    made = [maker.make(seed=i, window=i) for i in range(2)]
    slept = [0.0]
    monkeypatch.setattr(deltalog, "_awake_s", lambda: slept[0])
    lake, other = Lake(S3Store(bucket)), Lake(S3Store(bucket))
    other.append(maker.plan, maker.hash, [(1, made[0].release, made[0].values)], app_id="b")

    def asleep(name: str) -> None:
        if name == "file_synced":
            monkeypatch.setattr(failpoint, "armed", None)
            slept[0] += 7200
            assert upkeep.tidy(other, maker.plan, maker.hash, grace_s=-60.0) == 1

    monkeypatch.setattr(failpoint, "armed", asleep)
    lake.append(maker.plan, maker.hash, [(1, made[1].release, made[1].values)], app_id="a")
    return len(list(Lake(S3Store(bucket)).stored(maker.plan, maker.hash)))


def test_a_file_that_waited_too_long_is_written_again(
    bucket: Bucket, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert waits_too_long(bucket, maker, monkeypatch) == 2


def test_mutant_a_commit_that_names_what_may_be_gone_is_caught(
    bucket: Bucket, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log would name a file that is not there, for good."""
    monkeypatch.setattr(deltalog, "MAX_WAIT_S", 1e9)
    with pytest.raises(StoreFailed):
        waits_too_long(bucket, maker, monkeypatch)


def upkeep_sleeps(bucket: Bucket, maker: Maker, monkeypatch: pytest.MonkeyPatch, *, retires: bool) -> list[int]:
    """Upkeep writes, then waits two hours for its turn while another machine tidies; what it did, and what is read."""
    slept = [0.0]
    monkeypatch.setattr(deltalog, "_awake_s", lambda: slept[0])
    monkeypatch.setattr(compaction, "MANY_FILES", 3)
    about, (lake, other) = (maker.plan, maker.hash), (Lake(S3Store(bucket)), Lake(S3Store(bucket)))
    for i in range(4):
        one = maker.make(seed=i, window=i)
        lake.append(*about, [(i + 1, one.release, one.values)], app_id="a")

    @contextlib.contextmanager
    def asleep() -> Iterator[None]:
        slept[0] += 7200
        assert upkeep.tidy(other, *about, grace_s=-60.0) >= 1
        yield

    if not retires:
        done = [compaction.compact(lake, *about, alone=asleep), compaction.compact(lake, *about)]
    else:
        assert compaction.compact(lake, *about) == 4
        (file,) = lake.snapshot(*about).files.values()
        assert file.first_us is not None
        made = upkeep.prepare_retirement(lake, *about, file.first_us + 1)
        with asleep():
            done = [upkeep.retire(lake, *about, file.first_us + 1, made) - file.first_us]
    return [*done, len(list(Lake(S3Store(bucket)).stored(*about)))]


@pytest.mark.parametrize(("retires", "wanted"), [(False, [0, 4, 4]), (True, [1, 3])])
def test_what_upkeep_wrote_is_not_named_once_it_waited_too_long(
    bucket: Bucket, maker: Maker, monkeypatch: pytest.MonkeyPatch, *, retires: bool, wanted: list[int]
) -> None:
    """A compaction waits for the next pass, a retirement is written again; mutant: named, though it may be gone."""
    assert upkeep_sleeps(bucket, maker, monkeypatch, retires=retires) == wanted
    monkeypatch.setattr(deltalog, "MAX_WAIT_S", 1e9)
    elsewhere = dataclasses.replace(bucket, prefix=f"{bucket.prefix}/mutant")
    with pytest.raises(StoreFailed):
        upkeep_sleeps(elsewhere, maker, monkeypatch, retires=retires)


# Kills


def note(home: Path, bucket: Bucket) -> None:
    """Tell a life where its lake is."""
    fields = dataclasses.asdict(bucket)
    (home / "bucket.json").write_text(json.dumps(fields, default=str))


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    """The process that forks collectors."""
    opened = Lives("tests.cloud_collector.kill_child")
    yield opened
    opened.close()


POINTS = {
    "file_synced": 3,
    "log_linked": 3,
    "log_synced": 3,
    "rollup_committed": 3,
    "mark_uncommitted": 3,
    "checkpoint_made": 2,
    "checkpoint_linked": 2,
    "checkpoint_named": 2,
    "log_cleared": 1,
    "compaction_written": 1,
    "compaction_committed": 1,
    "retirement_written": 1,
    "retirement_committed": 1,
    "leftover_removed": 2,
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_instant_nothing_is_lost_or_doubled(
    lives: Lives, bucket: Bucket, tmp_path: Path, point: str
) -> None:
    """Between an object and the log that names it, between the log and the landing, in upkeep."""
    note(tmp_path, bucket)
    assert lives.live(tmp_path, point=point, hit=POINTS[point]) == "killed"
    assert lost_acks(tmp_path) == []
    assert lives.live(tmp_path) == "exit 0"
    assert broken_promises(tmp_path) == []


def test_an_orphan_is_no_part_of_anything_and_goes_in_time(lives: Lives, bucket: Bucket, tmp_path: Path) -> None:
    """An object that was put, and never named, because its writer was killed in between."""
    note(tmp_path, bucket)
    assert lives.live(tmp_path, point="file_synced", hit=1) == "killed"
    with collecting(tmp_path / "data", store=S3Store(bucket)) as one:
        (orphan,) = one.lake.log(*one.plans[0]).present()
        one.sealer.seal()
        assert one.differences() == []
        assert orphan.name not in one.lake.snapshot(*one.plans[0]).files
        assert upkeep.tidy(one.lake, *one.plans[0]) == 0, "its writer may be at work"
        assert upkeep.tidy(one.lake, *one.plans[0], grace_s=-60.0) == 1
        assert one.differences() == []


def test_the_mutant_that_does_not_look_for_what_it_may_hold_is_caught(
    lives: Lives, bucket: Bucket, tmp_path: Path
) -> None:
    note(tmp_path, bucket)
    assert lives.live(tmp_path, point="log_synced", hit=6, mutant="no_lake_mark") == "killed"
    assert lives.live(tmp_path, mutant="no_lake_mark") == "exit 0"
    assert any("is in the lake twice" in text for text in broken_promises(tmp_path))


# Backup and restore


def test_the_commands_find_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    """`verify`, `backup` and `restore`, from the config alone; a restore over tables is refused by its field."""
    lines = ["[collector]", 'data = "data"', "[lake]", f'url = "{bucket.url}"', f'endpoint = "{bucket.endpoint}"']
    lines += [f'{name} = "{getattr(bucket, name)}"' for name in ("access_key_file", "secret_key_file")]
    file, copy = tmp_path / "collector.toml", str(tmp_path / "copy")
    file.write_text("\n".join(lines))
    with collecting(tmp_path / "data", store=S3Store(bucket)) as one:
        one.seal(*(one.make(n, seed=n) for n in range(4)))

    def run(*given: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*given, "--config", str(file)])
        return result.exit_code, result.output

    assert run("verify") == (0, "all fits\n")
    assert run("backup", copy)[0] == 0
    assert list((tmp_path / "copy" / "lake").rglob("*.parquet"))
    (tmp_path / "data").rename(tmp_path / "old")
    code, said = run("restore", copy)
    assert code != 0
    assert "$.lake.url: the place holds tables already" in said
    file.write_text(file.read_text().replace(bucket.url, f"{bucket.url}/again"))
    assert run("restore", copy)[0] == 0
    assert run("verify") == (0, "all fits\n")


def test_a_backup_of_a_bucket_is_restored_to_another_or_to_a_folder(
    bucket: Bucket, server: Server, tmp_path: Path
) -> None:
    """Whole, with its marks; never over tables that are there."""
    source = S3Store(bucket)
    with collecting(tmp_path / "data", store=source) as one:
        made = [one.make(n, agent, seed=n) for n in range(6) for agent in ("jfk", "lga")]
        one.seal(*made[:8])
        room.backup(tmp_path / "data", tmp_path / "copy", Lake(source))
        with pytest.raises(ConfigInvalid, match="holds tables already"):
            room.restore(tmp_path / "copy", tmp_path / "again", who="ada", lake=Lake(source))
        assert not (tmp_path / "again").exists()
    taken = S3Store(bucket_at(server.endpoint, tmp_path))
    Lake(taken).claim("another landing's")
    with pytest.raises(ConfigInvalid, match="belongs to another landing"):
        room.restore(tmp_path / "copy", tmp_path / "again", who="ada", lake=Lake(taken))
    other = S3Store(bucket_at(server.endpoint, tmp_path))
    places = {"bucket": other, "folder": FolderStore(tmp_path / "folder" / "lake")}
    for name, place in places.items():
        room.restore(tmp_path / "copy", tmp_path / name, who="ada", lake=Lake(other) if name == "bucket" else None)
        with collecting(tmp_path / name, store=place) as two:
            assert len(list(two.lake.stored(*two.plans[0]))) == 8
            two.seal(*made)
            assert len(list(two.lake.stored(*two.plans[0]))) == 12
            assert two.differences() == []
    assert not (tmp_path / "bucket" / "lake").exists()


def test_a_compaction_of_a_million_values_is_one_object(bucket: Bucket, maker: Maker) -> None:
    """Larger than what the client puts in one part, were it to cut."""
    made = [maker.make(seed=i, window=i) for i in range(200)]
    rows = [(i, one.release, one.values) for i, one in enumerate(made, start=1)]
    log = Lake(S3Store(bucket)).log(maker.plan, maker.hash)
    table = pa.concat_tables([table_of(maker.plan, rows)] * 100)
    written = log.write(table)
    assert log.rows(written.name).cast(table_schema(maker.plan)).equals(table.cast(table_schema(maker.plan)))
