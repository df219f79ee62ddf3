"""Answers from the roll-ups are those from the lake, number for number; a release counts once, whatever happens.

Not proved here: that an answer is right (test_query), nor kills (test_collector_kills).
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import apsw
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_collector import failpoint, rolled, rollup
from cloud_collector.caller import LOCAL, Caller, Kind
from cloud_collector.errors import QuestionInvalid
from cloud_collector.lake import Lake
from cloud_collector.payload import Values
from cloud_collector.plans import RegisteredPlan
from cloud_collector.query import Query
from cloud_collector.question import Question
from cloud_collector.rollup import Rollups, Wide
from edge_agg.contract.cells import n_cells
from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Status
from edge_agg.contract.vectors import payload_columns
from tests.cloud_collector.conftest import MONDAY, PLAN, Maker
from tests.cloud_collector.front import FakeRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cloud_collector.lake_rows import Row

HOUR_US = 3_600_000_000
MAKER = Maker(PLAN.replace('every = "7d"', 'every = "6h"'))
WEEKLY = Maker()
CARRIERS = ["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US", "WN", "other"]
_ids = itertools.count(1)


@pytest.fixture
def rollups(tmp_path: Path) -> Iterator[Rollups]:
    with contextlib.closing(Rollups(tmp_path / "rollups.sqlite")) as one:
        yield one


def row(
    window: int,
    *,
    maker: Maker = MAKER,
    node: str = "jfk",
    tenant: str = "default",
    status: Status = Status.RELEASED,
    scale: float = 1.0,
    seed: int = 0,
) -> Row:
    """A release with values as large as they get, of either sign."""
    made = maker.make(window=window, agent=node, tenant=tenant, status=status)
    random, names, cells = np.random.default_rng(seed), payload_columns(maker.plan), n_cells(maker.plan)
    bound = 2**62 if seed % 3 else 9
    columns = {name: random.integers(-bound, bound, cells) for name in names}
    vectors = tuple(replace(spec, scale=spec.scale * scale) for spec in made.release.vectors)
    release = replace(made.release, vectors=vectors)
    return next(_ids), release, Values(columns=columns if status is Status.RELEASED else {})


class Both:
    """The same releases in a lake with and without roll-ups, and the same question to both."""

    def __init__(self, folder: Path, rollups: Rollups, maker: Maker = MAKER, *, nodes: Sequence[str] = ()) -> None:
        self.lake, self.rollups, self.maker = Lake(folder / "lake"), rollups, maker
        plan = RegisteredPlan(plan=maker.plan, hash=maker.hash, text=maker.text, nodes=tuple(nodes))
        self.quick = Query(FakeRegistry(plan), self.lake, lambda: None, rollups=rollups)  # type: ignore[arg-type]  # a fake
        self.slow = Query(FakeRegistry(plan), self.lake, lambda: None)  # type: ignore[arg-type]  # a fake

    def add(self, rows: Sequence[Row]) -> None:
        """As the sealer does."""
        plan, plan_hash = self.maker.plan, self.maker.hash
        if not self.rollups.covers(plan_hash):
            self.rollups.begin(plan, plan_hash, self.lake.stored(plan, plan_hash))
        self.lake.append(plan, plan_hash, rows, app_id="a")
        self.rollups.add(plan, plan_hash, rows)

    def agree(self, asker: Caller = LOCAL, **asked: Any) -> bool:
        """Whether the two answers are equal, metadata and all."""
        question = Question(plan=self.maker.plan.name, **asked)
        answers = [query.estimate(question, asker) for query in (self.quick, self.slow)]
        return bool(answers[0].equals(answers[1], check_metadata=True))


RELEASES = st.lists(
    st.tuples(
        st.integers(0, 13),
        st.sampled_from(["jfk", "lga", "ewr"]),
        st.sampled_from(["default", "acme"]),
        st.sampled_from([*[Status.RELEASED] * 4, Status.LOST, Status.EXHAUSTED]),
        st.sampled_from([1.0, 2.0]),
        st.integers(0, 50),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda one: one[:3],
)
QUESTIONS = st.fixed_dictionaries(
    {"metric": st.sampled_from(["departures", "delay"]), "by": st.sampled_from([(), ("carrier",)])},
    optional={
        "every_us": st.sampled_from([6, 12, 24, 48, 30, 168]).map(lambda hours: hours * HOUR_US),
        "start_us": st.integers(-4, 6).map(lambda n: to_us(MONDAY) + n * 6 * HOUR_US),
        "end_us": st.integers(7, 20).map(lambda n: to_us(MONDAY) + n * 6 * HOUR_US),
        "where": st.lists(st.sampled_from(CARRIERS), min_size=1, max_size=4).map(
            lambda kept: (("carrier", tuple(kept)),)
        ),
    },
)
ASKERS = st.sampled_from([LOCAL, Caller(kind=Kind.ANALYST, tenant="default", name="ada")])


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RELEASES, st.lists(QUESTIONS, min_size=1, max_size=4), ASKERS, st.integers(0, 25))
def test_answers_are_the_lake_s(
    tmp_path_factory: pytest.TempPathFactory, sent: list[Any], asked: list[Any], asker: Caller, cut: int
) -> None:
    """Property: whatever was released, by whom, in which batches; whatever is asked about all nodes."""
    folder = tmp_path_factory.mktemp("both")
    with contextlib.closing(Rollups(folder / "rollups.sqlite")) as rollups:
        both = Both(folder, rollups, nodes=["jfk", "sfo"])
        rows = [
            row(window, node=node, tenant=tenant, status=status, scale=scale, seed=seed)
            for window, node, tenant, status, scale, seed in sent
        ]
        for part in (rows[:cut], rows[cut:]):
            both.add(part)
        for question in asked:
            assert both.agree(asker, **question)


def test_weekly_windows_have_no_days_and_agree_as_well(tmp_path: Path, rollups: Rollups) -> None:
    both = Both(tmp_path, rollups, WEEKLY)
    both.add([row(n, maker=WEEKLY, node=node, seed=n) for n in range(4) for node in ("jfk", "lga")])
    for asked in ({}, {"by": ("carrier",)}, {"every_us": 168 * HOUR_US}, {"every_us": 336 * HOUR_US}):
        assert both.agree(metric="delay", **asked)


def test_days_are_read_where_they_fit(tmp_path: Path, rollups: Rollups, monkeypatch: pytest.MonkeyPatch) -> None:
    """A month by day is read from its days, its cut edges from windows; a mutant that cuts days amiss is caught."""
    both = Both(tmp_path, rollups)
    both.add([row(n, seed=n) for n in range(4 * 30)])
    start = to_us(MONDAY) + 6 * HOUR_US
    asked: dict[str, Any] = {"every_us": 24 * HOUR_US, "start_us": start, "end_us": start + 29 * 24 * HOUR_US}
    read: list[int] = []
    run = rolled.Rolled._run

    def noted(self: rolled.Rolled, query: str, about: Sequence[Any]) -> Iterator[Any]:
        for one in run(self, query, about):
            read.append("FROM sums" in query)
            yield one

    with monkeypatch.context() as patch:
        patch.setattr(rolled.Rolled, "_run", noted)
        assert both.agree(metric="departures", **asked)
    assert sum(read) == 3 + 28 + 1
    with monkeypatch.context() as mutant:
        mutant.setattr(rolled, "day_of", lambda us: us)
        assert not both.agree(metric="departures", **asked)


def test_questions_about_some_nodes_go_to_the_lake(tmp_path: Path, rollups: Rollups) -> None:
    both = Both(tmp_path, rollups)
    both.add([row(n, node=node, seed=n) for n in range(4) for node in ("jfk", "lga")])
    assert both.agree(metric="delay", by=("node",))
    assert both.agree(metric="delay", where=(("node", ("jfk",)),))
    with pytest.raises(QuestionInvalid):
        both.agree(metric="delay", where=(("node", ("nobody",)),))


def test_plans_that_discover_keys_are_read_from_the_lake(tmp_path: Path, rollups: Rollups, keyed_maker: Maker) -> None:
    """Of the roll-ups an answer takes only who reported when; what a site that released nothing sent counts as well."""
    both = Both(tmp_path, rollups, keyed_maker)
    made = keyed_maker.make(found=["N1", "N2"])
    late = keyed_maker.make(agent="lga", window=3, status=Status.LOST)
    both.add([(1, made.release, made.values), (2, late.release, late.values)])
    with contextlib.closing(apsw.Connection(str(rollups.path))) as db:
        assert db.execute("SELECT (SELECT count(*) FROM sums), (SELECT count(*) FROM records)").get == (0, 2)
    for asked in ({"by": ("plane",)}, {"by": ("node",)}, {"every_us": 7 * 24 * HOUR_US}):
        assert both.agree(metric="departures", **asked)


def added_again_after_a_crash(both: Both, rows: Sequence[Row], monkeypatch: pytest.MonkeyPatch, point: str) -> bool:
    """The process ends at an instant of the roll-ups' commit, and the sealer does the same again."""

    class Crash(BaseException):
        pass

    def armed(name: str) -> None:
        if name == point:
            raise Crash

    both.add(rows[:2])
    with monkeypatch.context() as patch:
        patch.setattr(failpoint, "armed", armed)
        with pytest.raises(Crash):
            both.add(rows[2:])
    both.add(rows[2:])
    return both.agree(metric="departures", by=("carrier",))


@pytest.mark.parametrize("point", ["rollup_uncommitted", "rollup_committed", "log_synced"])
def test_a_release_counts_once_whenever_the_sealer_dies(
    tmp_path: Path, rollups: Rollups, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    rows = [row(n // 2, node="jl"[n % 2], seed=n) for n in range(6)]
    assert added_again_after_a_crash(Both(tmp_path, rollups), rows, monkeypatch, point)


def test_mutant_a_roll_up_counted_twice_is_caught(
    tmp_path: Path, rollups: Rollups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the record that says a release was added, the crash adds it again."""
    rows = [row(n // 2, node="jl"[n % 2], seed=n) for n in range(6)]
    monkeypatch.setattr(rollup, "_RECORD", rollup._RECORD.replace("OR IGNORE", "OR REPLACE"))
    assert not added_again_after_a_crash(Both(tmp_path, rollups), rows, monkeypatch, "rollup_committed")


def test_roll_ups_that_were_lost_are_made_again_from_the_lake(tmp_path: Path, rollups: Rollups) -> None:
    both = Both(tmp_path, rollups)
    rows = [row(n // 2, node="jl"[n % 2], seed=n, status=Status.LOST if n == 3 else Status.RELEASED) for n in range(8)]
    both.add(rows[:6])
    rollups.forget(MAKER.hash)
    assert not rollups.covers(MAKER.hash)
    both.add(rows[6:])
    assert both.agree(metric="delay", by=("carrier",), every_us=24 * HOUR_US)


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2), min_size=1, max_size=40))
def test_wide_sums_are_exact(columns: list[list[int]]) -> None:
    """As Python's own integers, through any number of packings."""
    total = Wide.of(np.zeros(2, np.int64))
    for one in columns:
        total = Wide.unpack((total + Wide.of(np.array(one, np.int64))).pack(), 2)
    read = [(int(high) << 32) + int(low) for high, low in zip(total.high, total.low, strict=True)]
    assert read == [sum(column) for column in zip(*columns, strict=True)]
