"""What waits for what: passes end, calls share them, questions about the past and compaction wait for none.

Not proved here: what a kill or a cut in the middle of it leaves (test_collector_kills, test_lake_cuts).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from cloud_collector import compaction, failpoint, query
from cloud_collector.caller import LOCAL
from cloud_collector.errors import StoreFailed
from cloud_collector.freshness import concerns
from cloud_collector.query import Query
from cloud_collector.question import Question
from cloud_collector.sealing import Turns
from tests.cloud_collector.test_keeping import at_window, collecting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cloud_collector.conftest import Made
    from tests.cloud_collector.test_keeping import Collector

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def land(one: Collector, *made: Made) -> None:
    asyncio.run(one.landing.land([each.pair for each in made]))


# A pass


def passes_end(one: Collector, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Somebody pushes one release more whenever the sealer looks for what waits."""
    land(one, one.make(0))
    more, unsealed = itertools.count(1), one.landing.unsealed

    def pushed_meanwhile(limit: int, *, after: int = 0) -> Any:
        if (n := next(more)) < 40:
            land(one, one.make(n))
        return unsealed(limit, after=after)

    monkeypatch.setattr(one.landing, "unsealed", pushed_meanwhile)
    return one.sealer.seal() == 1


def test_a_pass_ends_however_fast_others_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after it began waits for the next one, which moves it."""
    with collecting(tmp_path / "data") as one:
        assert passes_end(one, monkeypatch)
        monkeypatch.undo()
        assert one.sealer.seal() > 0
        assert one.landing.newest() == 0


def test_mutant_a_pass_that_goes_on_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting(tmp_path / "data") as one:
        monkeypatch.setattr(one.landing, "newest", lambda: 2**62)
        assert not passes_end(one, monkeypatch)


def test_a_pass_moves_no_release_above_what_it_was_asked_for(tmp_path: Path) -> None:
    with collecting(tmp_path / "data") as one:
        land(one, *(one.make(n) for n in range(5)))
        assert one.sealer.seal(upto=3) == 3
        assert [waiting.id for waiting in one.landing.unsealed(10)] == [4, 5]


class Slow:
    """A sealer whose passes take until they are let go; numbers stand for releases."""

    def __init__(self) -> None:
        self.landed, self.sealed = 1, 0
        self.passes: list[int] = []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.fails = False

    def newest(self) -> int:
        """As a sealer does."""
        return self.landed if self.landed > self.sealed else 0

    def seal(self, upto: int) -> int:
        """As a sealer does."""
        self.passes.append(upto)
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if self.fails:
            raise StoreFailed("on purpose")
        moved, self.sealed = upto - self.sealed, upto
        return moved


def calls_wait_for_what_was_there(folder: Path) -> bool:
    """One pass is under way; five calls come, each after another release; what had been sealed when each returned."""
    slow = Slow()
    turns = Turns(slow, folder / "turn")  # type: ignore[arg-type]  # a fake
    found: list[bool] = []

    def call(landed: int) -> None:
        turns.seal()
        found.append(slow.sealed >= landed)

    joined, join = threading.Semaphore(0), turns._join

    def noted(upto: int) -> Any:
        try:
            return join(upto)
        finally:
            joined.release()

    turns._join = noted  # type: ignore[method-assign]  # to know who waits
    threads = []
    for landed in range(1, 7):
        slow.landed = landed
        threads.append(threading.Thread(target=call, args=(landed,)))
        threads[-1].start()
        assert joined.acquire(timeout=10)
        assert landed > 1 or slow.begun.acquire(timeout=10)
    slow.go.release(7)
    for thread in threads:
        thread.join()
    return all(found) and slow.passes == [1, 6]


def test_calls_that_wait_share_one_pass(tmp_path: Path) -> None:
    """Guarantee: each returns once what was there before it is sealed; five at a time cost one pass."""
    assert calls_wait_for_what_was_there(tmp_path)


def test_mutant_a_call_that_joins_a_pass_under_way_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    join = Turns._join

    def joins_any(self: Turns, upto: int) -> Any:
        return join(self, upto if self._under_way is None else 0)

    monkeypatch.setattr(Turns, "_join", joins_any)
    assert not calls_wait_for_what_was_there(tmp_path)


def test_a_call_that_a_pass_under_way_serves_starts_none(tmp_path: Path) -> None:
    slow = Slow()
    turns = Turns(slow, tmp_path / "turn")  # type: ignore[arg-type]  # a fake
    threads = [threading.Thread(target=turns.seal) for _ in range(2)]
    threads[0].start()
    assert slow.begun.acquire(timeout=10)
    threads[1].start()
    slow.go.release(2)
    for thread in threads:
        thread.join()
    assert slow.passes == [1]


def test_a_pass_that_fails_fails_for_all_who_wait_and_the_next_one_runs(tmp_path: Path) -> None:
    slow = Slow()
    turns = Turns(slow, tmp_path / "turn")  # type: ignore[arg-type]  # a fake
    slow.fails = True
    slow.go.release()
    with pytest.raises(StoreFailed):
        turns.seal()
    slow.fails = False
    slow.go.release()
    assert turns.seal() == 1


# Questions


def ask(one: Collector, **asked: Any) -> tuple[Any, int]:
    """What is answered, and how often it had something sealed."""
    sealed: list[int] = []

    def seal() -> None:
        sealed.append(one.sealer.seal())

    room = Query(one.registry, one.lake, seal, rollups=one.rollups, waiting=one.landing.waiting_of)
    question = Question(plan=one.maker.plan.name, metric="departures", **asked)
    return room.estimate(question, LOCAL).to_pylist(), len(sealed)


def test_a_question_about_the_past_waits_for_nothing(tmp_path: Path) -> None:
    """What waits is of other windows; a question that reaches it, or has no end, waits."""
    with collecting(tmp_path / "data") as one:
        one.seal(*(one.make(n, agent, seed=n) for n in range(8) for agent in ("jfk", "lga")))
        land(one, one.make(8), one.make(9))
        past: dict[str, Any] = {"start_us": at_window(0), "end_us": at_window(8)}
        (row,), passes = ask(one, **past)
        assert (passes, row["windows_reporting"]) == (0, 16)
        (row,), passes = ask(one, start_us=at_window(0), end_us=at_window(9))
        assert (passes, row["windows_reporting"]) == (1, 17)
        land(one, one.make(10))
        (row,), passes = ask(one)
        assert (passes, row["windows_reporting"]) == (1, 19)
        assert ask(one)[1] == 0, "nothing waits any more"


WAITS = [
    ("within", 3, "jfk", {"start_us": at_window(2), "end_us": at_window(4)}),
    ("at its start", 2, "jfk", {"start_us": at_window(2), "end_us": at_window(4)}),
    ("a node nobody has seen", 9, "ord", {"start_us": at_window(0), "end_us": at_window(4), "by": ("node",)}),
    ("no start", 9, "jfk", {"end_us": at_window(10)}),
    ("no end", 9, "jfk", {"start_us": at_window(0)}),
]


def says_what_sealing_first_says(one: Collector, window: int, agent: str, asked: dict[str, Any]) -> bool:
    """Whether an answer holds what waits, where it would show."""
    one.seal(*(one.make(n, at) for n in (0, 1, 5) for at in ("jfk", "lga")))
    land(one, one.make(window, agent))
    said, _ = ask(one, **asked)
    one.sealer.seal()
    return bool(said == ask(one, **asked)[0])


@pytest.mark.parametrize(("window", "agent", "asked"), [one[1:] for one in WAITS], ids=[one[0] for one in WAITS])
def test_an_answer_is_what_it_would_be_were_all_sealed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, agent: str, asked: dict[str, Any]
) -> None:
    """Guarantee: every release that was acked before the question is in the answer; without waiting it is not."""
    with collecting(tmp_path / "data") as one:
        assert says_what_sealing_first_says(one, window, agent, asked)
    monkeypatch.setattr(query, "concerns", lambda *_, **__: False)
    with collecting(tmp_path / "mutant") as one:
        assert not says_what_sealing_first_says(one, window, agent, asked)


def test_what_waits_of_another_tenant_concerns_nobody_else() -> None:
    waiting = {("a", "jfk"): (10, 20)}
    question = Question(plan="p", metric="m")
    assert not concerns(question, waiting, [], tenant="b")
    assert concerns(question, waiting, [], tenant="a")
    assert concerns(question, waiting, [], tenant=None)


# Compaction


@contextlib.contextmanager
def at(point: str, work: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do something at an instant, once."""
    todo = [work]

    def armed(name: str) -> None:
        if name == point and todo:
            todo.pop()()

    monkeypatch.setattr(compaction, "MANY_FILES", 3)
    monkeypatch.setattr(failpoint, "armed", armed)
    yield
    assert not todo, f"{point} was not passed"


def sealing_goes_on(one: Collector, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Land, seal and ask while a compaction has written its file and not named it."""
    for n in range(4):
        one.seal(one.make(n))
    answers: list[int] = []

    def meanwhile() -> None:
        if one.sealer._lock.locked():
            return
        one.seal(one.make(4))
        answers.append(one.answer()[0]["windows_reporting"])

    with at("compaction_written", meanwhile, monkeypatch):
        one.upkeep.run(NOW)
    return answers == [5] and len(one.lake.files(*one.plans[0])) == 2 and one.differences() == []


def test_sealing_and_answers_go_on_while_files_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting(tmp_path / "data") as one:
        assert sealing_goes_on(one, monkeypatch)


def test_mutant_a_compaction_in_the_sealer_s_turn_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloud_collector import upkeep

    def all_alone(*given: Any, alone: Any) -> int:
        with alone():
            return compaction.compact(*given)

    monkeypatch.setattr(upkeep, "compact", all_alone)
    with collecting(tmp_path / "data") as one:
        assert not sealing_goes_on(one, monkeypatch)


def files_that_went_stay_gone(one: Collector, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Another writer drops a file while a compaction that took it is under way: its rows must not come back."""
    from cloud_collector import upkeep

    for n in range(6):
        one.seal(one.make(n))

    def drop() -> None:
        plan, hashed = one.plans[0]
        upkeep.retire(one.lake, plan, hashed, at_window(4))
        one.rollups.retire(plan, hashed, before_us=at_window(4))

    with at("compaction_written", drop, monkeypatch):
        joined = compaction.compact(one.lake, *one.plans[0])
    left = sorted(stored.window_start_us for stored in one.lake.stored(*one.plans[0]))
    return joined == 0 and left == [at_window(4), at_window(5)] and one.differences() == []


def test_files_that_went_meanwhile_do_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting(tmp_path / "data") as one:
        assert files_that_went_stay_gone(one, monkeypatch)
        assert compaction.compact(one.lake, *one.plans[0]) == 0, "two files are not many"


def test_mutant_a_compaction_that_does_not_look_again_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction.Rewrite, "fits", lambda *_: True)
    with collecting(tmp_path / "data") as one:
        assert not files_that_went_stay_gone(one, monkeypatch)


def test_what_was_sealed_while_old_data_was_set_aside_goes_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late release of an old day, between the two steps of a retirement: lake and roll-ups still agree."""
    with collecting(tmp_path / "data") as one:
        one.seal(*(one.make(n) for n in range(8)))
        plan, hashed = one.plans[0]

        def alone() -> Any:
            one.seal(one.make(1, "lga"))
            return one.sealer.paused()

        keeping = replace(one.upkeep, alone=alone)
        keeping._retire(plan, hashed, at_window(4))
        assert {stored.window_start_us for stored in one.lake.stored(plan, hashed)} == {*map(at_window, range(4, 8))}
        assert one.differences() == []
