"""One suite for every store: a folder of this machine and a bucket promise the same.

Not proved here: what a power cut leaves of a folder (test_lake_cuts); what a bucket's keeper promises about durability.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from cloud_collector.folderstore import FolderStore
from cloud_collector.objectstore import Missing, Taken
from cloud_collector.s3store import S3Store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cloud_collector.objectstore import ObjectStore


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], ObjectStore]:
    """Opens the same store again, as another process would."""
    if request.param == "folder":
        return lambda: FolderStore(tmp_path / "é objects")
    bucket = request.getfixturevalue("bucket")
    return lambda: S3Store(bucket)


@pytest.fixture
def store(opened: Callable[[], ObjectStore]) -> ObjectStore:
    """An empty store."""
    return opened()


def test_what_was_written_is_read_by_whoever_looks_afterwards(
    store: ObjectStore, opened: Callable[[], ObjectStore]
) -> None:
    store.put("a/b/one", b"1")
    store.put("a/b/one", memoryview(b"22"))
    store.put_new("a/b/two", b"")
    assert (opened().get("a/b/one"), opened().get("a/b/two")) == (b"22", b"")


def test_what_is_not_there_is_missing(store: ObjectStore) -> None:
    store.put("a/one", b"1")
    for name in ("two", "a", "a/one/two", "b/one"):
        with pytest.raises(Missing):
            store.get(name)
    store.delete("a/one")
    store.delete("a/one")
    with pytest.raises(Missing):
        store.get("a/one")


def test_a_name_is_given_once(store: ObjectStore, opened: Callable[[], ObjectStore]) -> None:
    """Also to the same bytes, and also after a put that was no claim."""
    store.put_new("a/one", b"1")
    store.put("a/two", b"1")
    for name, data in (("a/one", b"2"), ("a/one", b"1"), ("a/two", b"2")):
        with pytest.raises(Taken):
            opened().put_new(name, data)
        assert store.get(name) == b"1"
    store.delete("a/one")
    store.put_new("a/one", b"3")
    assert store.get("a/one") == b"3"


def losers_and_winners(opened: Callable[[], ObjectStore], races: int) -> bool:
    """Whether, of eight writers of one name, one is told that it was first, and its bytes are there."""
    stores = [opened() for _ in range(8)]
    for race in range(races):
        told: dict[int, bool] = {}

        def claim(writer: int, race: int = race, told: dict[int, bool] = told) -> None:
            try:
                stores[writer].put_new(f"races/{race}", str(writer).encode())
                told[writer] = True
            except Taken:
                told[writer] = False

        threads = [threading.Thread(target=claim, args=(writer,)) for writer in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        first = [writer for writer, won in told.items() if won]
        if Counter(told.values()) != Counter({True: 1, False: 7}):
            return False
        if stores[0].get(f"races/{race}") != str(first[0]).encode():
            return False
    return True


@pytest.mark.slow
def test_of_several_writers_of_a_name_one_is_first(opened: Callable[[], ObjectStore]) -> None:
    assert losers_and_winners(opened, races=10)


def test_mutant_look_then_put_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a store without a conditional put would have it done."""

    def looks(self: FolderStore, name: str, data: bytes) -> None:
        try:
            self.get(name)
        except Missing:
            time.sleep(0.01)
            self.put(name, data)
            return
        raise Taken

    monkeypatch.setattr(FolderStore, "put_new", looks)
    assert not losers_and_winners(lambda: FolderStore(tmp_path), races=5)


def test_a_listing_has_the_objects_of_a_folder_and_when_they_were_written(store: ObjectStore) -> None:
    before = time.time()
    for name in ("a/one", "a/two", "a/b/three", "ab/four", "five"):
        store.put(name, b"1")
    found = {one.name: one.modified_ms for one in store.list("a")}
    assert set(found) == {"one", "two"}
    assert all(before * 1000 - 2000 <= at <= time.time() * 1000 + 2000 for at in found.values())
    assert store.list("nothing") == []


@pytest.mark.slow
def test_a_listing_is_whole(store: ObjectStore) -> None:
    """Also beyond the thousand objects of a page."""
    for n in range(1001):
        store.put(f"many/{n}", b"")
    assert {one.name for one in store.list("many")} == {str(n) for n in range(1001)}


def test_what_is_settled_is_as_it_was(store: ObjectStore) -> None:
    store.put("a/one", b"1")
    store.settle("a")
    store.settle("nothing")
    assert store.get("a/one") == b"1"


def test_duckdb_reads_the_same_bytes(store: ObjectStore, tmp_path: Path) -> None:
    """Larger than one request fetches, by `location/name`."""
    import duckdb
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = np.random.default_rng(1).integers(0, 2**40, 400_000)
    pq.write_table(pa.table({"n": numbers, "m": numbers[::-1]}), tmp_path / "file", row_group_size=50_000)
    names = ["t/part-1.parquet", "t/part-2.parquet"]
    for name in names:
        store.put(name, (tmp_path / "file").read_bytes())
    settings: Any = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    with duckdb.connect(config=settings) as db:
        store.attach(db)
        files = [f"{store.location}/{name}" for name in names]
        rows = db.cursor().execute("SELECT count(*), sum(n) FROM read_parquet(?)", [files]).fetchall()
    assert rows == [(800_000, 2 * int(numbers.sum()))]
