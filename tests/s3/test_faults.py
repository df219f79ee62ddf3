"""Lost answers, late failures and stores that ignore the condition: a version of a table is committed once, or not.

The proxy stands between the client and a real server, so every fault is one that the wire can bring about.
"""

from __future__ import annotations

import itertools
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError

from cloud_collector import s3store
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.lake import Lake
from cloud_collector.objectstore import Taken
from cloud_collector.s3store import S3Store
from tests.s3.conftest import bucket_at
from tests.s3.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cloud_collector.conftest import Made, Maker
    from tests.s3.proxy import Fault
    from tests.s3.server import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A way to the server on which nothing fails yet."""
    with closing(Proxy(server.endpoint, lambda *_: None)) as one:
        yield one


@pytest.fixture
def store(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store behind the proxy, which does not wait long."""
    monkeypatch.setattr(s3store, "_PAUSE_S", 0.01)
    return S3Store(bucket_at(proxy.endpoint, tmp_path))


def breaks(proxy: Proxy, name: str, *faults: Fault) -> None:
    """Let the first puts of a name go wrong, one fault each."""
    left = list(faults)
    proxy.fault = lambda method, path: left.pop(0) if left and method == "PUT" and name in path else None


@pytest.mark.parametrize("faults", [*itertools.product(["lost", "failed", "unsent", "conflict"], repeat=2), ("lost",)])
def test_whoever_was_first_is_told_so_whatever_answers_are_lost(
    proxy: Proxy, store: S3Store, faults: tuple[Fault, ...]
) -> None:
    """And whoever was not is told that, with the other's bytes untouched."""
    breaks(proxy, "mine", *faults)
    store.put_new("mine", b"1")
    assert store.get("mine") == b"1"
    store.put_new("theirs", b"2")
    breaks(proxy, "theirs", *faults)
    with pytest.raises(Taken):
        store.put_new("theirs", b"1")
    assert store.get("theirs") == b"2"


def test_a_put_of_which_nothing_is_ever_heard_is_no_success(proxy: Proxy, store: S3Store) -> None:
    """It fails as what could not be asked does, and not as a name that is taken."""
    breaks(proxy, "mine", *["lost"] * 99)
    with pytest.raises(GenericError):
        store.put_new("mine", b"1")


def test_mutant_a_condition_that_was_not_met_means_another_writer(
    proxy: Proxy, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake that the client would make by itself: 412 on a retry, taken at its word."""

    def at_its_word(self: S3Store, name: str, data: bytes) -> None:
        try:
            self._client.put(self._key(name), data, mode="create")
        except AlreadyExistsError:
            raise Taken from None

    monkeypatch.setattr(S3Store, "put_new", at_its_word)
    with pytest.raises(Taken):
        test_whoever_was_first_is_told_so_whatever_answers_are_lost(proxy, store, ("failed",))


def appended_once(proxy: Proxy, store: S3Store, maker: Maker, *faults: Fault) -> bool:
    """Whether two sealers of the same releases, one of which loses answers of its commits, bring each in once."""
    made: list[Made] = [maker.make(seed=i, window=i) for i in range(6)]
    rows = [(i, one.release, one.values) for i, one in enumerate(made, start=1)]
    ours, theirs = Lake(store), Lake(store)
    for n in range(6):
        breaks(proxy, f"{n:020}.json", *faults)
        try:
            ours.append(maker.plan, maker.hash, rows[: n + 1], app_id="a")
        except StoreFailed:
            breaks(proxy, "nothing")
            theirs.append(maker.plan, maker.hash, rows[: n + 1], app_id="a")
    breaks(proxy, "nothing")
    theirs.append(maker.plan, maker.hash, rows, app_id="a")
    held = [one.landing_id for one in Lake(store).stored(maker.plan, maker.hash)]
    versions = Lake(store).snapshot(maker.plan, maker.hash).version
    return sorted(held) == [1, 2, 3, 4, 5, 6] and versions == 5


@pytest.mark.parametrize("faults", [["lost"], ["failed"], ["unsent", "lost"], ["lost"] * 99, ["failed"] * 99])
def test_a_commit_whose_answer_is_lost_doubles_nothing(
    proxy: Proxy, store: S3Store, maker: Maker, faults: list[Fault]
) -> None:
    assert appended_once(proxy, store, maker, *faults)


def test_mutant_a_commit_that_is_put_blindly_is_caught(
    proxy: Proxy, store: S3Store, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the condition the second writer of a version wins, and what the first brought in is gone."""
    rows = [(i + 1, one.release, one.values) for i, one in enumerate(maker.make(seed=i, window=i) for i in range(2))]

    def meanwhile(self: S3Store, name: str, data: bytes) -> None:
        monkeypatch.setattr(S3Store, "put_new", put_new)
        Lake(store).append(maker.plan, maker.hash, rows[1:], app_id="b")
        put_new(self, name, data)

    def held() -> list[int]:
        put_new_was = S3Store.put_new
        monkeypatch.setattr(S3Store, "put_new", meanwhile)
        Lake(store).append(maker.plan, maker.hash, rows[:1], app_id="a")
        monkeypatch.setattr(S3Store, "put_new", put_new_was)
        return sorted(one.landing_id for one in Lake(store).stored(maker.plan, maker.hash))

    put_new: Any = S3Store.put_new
    assert held() == [1, 2]
    store = S3Store(store._bucket.__class__(**{**_fields(store), "prefix": "tests/blind"}))
    put_new = S3Store.put
    assert held() == [1]


def _fields(store: S3Store) -> dict[str, Any]:
    return {name: getattr(store._bucket, name) for name in store._bucket.__slots__}


def test_a_store_is_tried_before_it_is_trusted(proxy: Proxy, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ignores the condition is refused; so is one that cannot be reached. Nothing is left behind."""
    store.check()
    assert store.list("") == []
    puts = itertools.count()

    def ignored(method: str, path: str) -> Fault | None:
        return "ignored" if method == "PUT" and next(puts) % 2 else None

    proxy.fault = ignored
    with pytest.raises(ConfigInvalid, match="If-None-Match"):
        store.check()
    proxy.fault = lambda *_: "unsent"
    with pytest.raises(StoreFailed, match="not usable"):
        store.check()
