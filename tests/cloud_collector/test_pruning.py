"""Which files an answer reads: those that may hold what is asked for, and it says the same as if it had read all.

Not proved here: that an answer is right (test_query, test_rollup).
"""

from __future__ import annotations

import contextlib
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_collector import compaction, deltalog
from cloud_collector.caller import LOCAL, Caller, Kind
from cloud_collector.deltalog import DataFile
from cloud_collector.lake import Lake
from cloud_collector.plans import RegisteredPlan
from cloud_collector.query import Query
from cloud_collector.question import Question
from cloud_collector.rollup import Rollups
from edge_agg.contract.codec import to_us
from tests.cloud_collector.conftest import MONDAY, PLAN, Maker
from tests.cloud_collector.front import FakeRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.contract.plan import Plan, PlanHash

MAKER = Maker(PLAN.replace('every = "7d"', 'every = "6h"'))
WINDOW_US = 6 * 3_600_000_000
DAY_US = 4 * WINDOW_US
TENANTS = ("a", "b", "c")


def at_window(n: int) -> int:
    return to_us(MONDAY) + n * WINDOW_US


class Table:
    """A lake of one plan, its roll-ups, and what of its files is read."""

    def __init__(self, folder: Path) -> None:
        self.lake, self.rollups = Lake(folder / "lake"), Rollups(folder / "rollups.sqlite")
        self.about = (MAKER.plan, MAKER.hash)
        plan = RegisteredPlan(plan=MAKER.plan, hash=MAKER.hash, text=MAKER.text, nodes=(), tenant="a")
        self.query = Query(FakeRegistry(plan), self.lake, lambda: None, rollups=self.rollups)  # type: ignore[arg-type]  # a fake
        self.whole = Query(FakeRegistry(plan), self.lake, lambda: None)  # type: ignore[arg-type]  # a fake
        self.landed = 0

    def seal(self, *windows: int, tenants: tuple[str, ...] = TENANTS) -> None:
        """One commit: a release of each tenant a window."""
        made = [MAKER.make(window=n, tenant=tenant, seed=n) for n in windows for tenant in tenants]
        rows = [(self.landed + n, one.release, one.values) for n, one in enumerate(made, start=1)]
        self.landed += len(rows)
        if not self.rollups.covers(MAKER.hash):
            self.rollups.begin(*self.about, self.lake.stored(*self.about))
        self.lake.append(*self.about, rows, app_id="test")
        self.rollups.add(*self.about, rows)

    def ask(self, *, tenant: str | None = None, **asked: Any) -> Any:
        """An answer, read from the lake."""
        asker = LOCAL if tenant is None else Caller(kind=Kind.ANALYST, tenant=tenant, name="x")
        return self.query.estimate(Question(plan=MAKER.plan.name, metric="departures", by=("node",), **asked), asker)


@contextlib.contextmanager
def table(folder: Path) -> Iterator[Table]:
    one = Table(folder)
    with contextlib.closing(one.rollups):
        yield one


def opens_that_day_alone(folder: Path) -> bool:
    """Every file but that of the day that is asked about is torn."""
    with table(folder) as one:
        for day in range(5):
            one.seal(*range(day * 4, day * 4 + 4))
        kept = [name for name, file in one.lake.snapshot(*one.about).files.items() if file.first_us == at_window(8)]
        for file in one.lake.files(*one.about):
            if Path(file).name not in kept:
                Path(file).write_bytes(b"torn")
        try:
            said = one.ask(start_us=at_window(8), end_us=at_window(12)).to_pylist()
        except Exception as error:
            if type(error).__module__ != "_duckdb" and "duckdb" not in type(error).__module__:
                raise
            return False
        return len(kept) == 1 and [row["windows_reporting"] for row in said] == [4, 4, 4]


def _all(lake: Lake, plan: Plan, hashed: PlanHash) -> list[str]:
    return [f"{lake.location(plan, hashed)}/{name}" for name in lake.snapshot(plan, hashed).files]


def test_a_day_by_node_opens_the_files_of_that_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: neither who was ever seen nor what was released is read from other files; mutants read them."""
    assert opens_that_day_alone(tmp_path / "as it is")
    with monkeypatch.context() as patch:
        patch.setattr(Query, "_rolled", lambda *_: None)
        assert not opens_that_day_alone(tmp_path / "who was seen, from the lake")
    with monkeypatch.context() as patch:
        patch.setattr(Lake, "files", lambda self, plan, hashed, at=None, **_: _all(self, plan, hashed))
        assert not opens_that_day_alone(tmp_path / "every file")


def test_what_the_log_says_of_a_file_outlives_a_checkpoint_and_is_read_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deltalog, "CHECKPOINT_EVERY", 2)
    with table(tmp_path) as one:
        one.seal(0, tenants=("a",))
        one.seal(1, tenants=("b", "c"))
        one.seal(2, tenants=("b",))
        before = one.lake.snapshot(*one.about).files
        one.lake.write(*one.about, lambda log, _: log.checkpoint())
        assert Lake(tmp_path / "lake").snapshot(*one.about).files == before
        folder = Path(one.lake.location(*one.about))
        told = DeltaTable(folder).get_add_actions(flatten=True).to_struct_array().to_pylist()
        spans = sorted((row["min.tenant"], row["max.tenant"], row["null_count.tenant"]) for row in told)
        assert spans == [("a", "a", 0), ("b", "b", 0), ("b", "c", 0)]
        assert len(one.lake.files(*one.about, tenant="c")) == 1
        assert one.lake.files(*one.about, tenant="d") == []


FILES = st.builds(
    DataFile,
    name=st.just("f"),
    size=st.just(0),
    rows=st.just(0),
    first_us=st.none() | st.integers(0, 3),
    last_us=st.none() | st.integers(3, 6),
    tenants=st.none() | st.tuples(st.sampled_from("ab"), st.sampled_from("bc")),
)


@given(FILES, st.none() | st.integers(-1, 8), st.none() | st.integers(-1, 8), st.none() | st.sampled_from("abcd"))
def test_a_file_is_left_out_only_if_nothing_in_it_is_asked_for(
    file: DataFile, start: int | None, end: int | None, tenant: str | None
) -> None:
    """Against every row that it may hold by its own account."""
    moments = range(-1 if file.first_us is None else file.first_us, 9 if file.last_us is None else file.last_us + 1)
    whose = "abcd" if file.tenants is None else [one for one in "abc" if file.tenants[0] <= one <= file.tenants[1]]
    held = any(
        (start is None or moment >= start) and (end is None or moment < end) and tenant in {None, one}
        for moment in moments
        for one in whose
    )
    assert file.may_hold(start, end, tenant) or not held


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_answer_is_the_same_from_some_files_as_from_all(tmp_path: Path, data: st.DataObject) -> None:
    """By tenant and range, before and after a compaction that puts tenants apart."""
    shutil.rmtree(tmp_path / "t", ignore_errors=True)
    with table(tmp_path / "t") as one, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "MANY_FILES", 2)
        patch.setattr(compaction, "SMALL_ROWS", 30)
        windows = data.draw(st.lists(st.integers(0, 11), min_size=2, max_size=8, unique=True))
        for n in windows:
            one.seal(n, tenants=tuple(data.draw(st.sets(st.sampled_from(TENANTS), min_size=1))))
        if data.draw(st.booleans()):
            compaction.compact(one.lake, *one.about)
        first = data.draw(st.integers(0, 11))
        span: dict[str, Any] = {
            "start_us": at_window(first),
            "end_us": at_window(data.draw(st.integers(first + 1, 12))),
        }
        question = Question(plan=MAKER.plan.name, metric="departures", by=("node", "carrier"), **span)
        asker = Caller(kind=Kind.ANALYST, tenant="a", name="x")
        assert one.query.estimate(question, asker).equals(one.whole.estimate(question, asker))


def test_compaction_puts_the_rows_of_a_tenant_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who fills a file has one alone; the others share one, each in one piece; no row changes."""
    monkeypatch.setattr(compaction, "MANY_FILES", 4)
    monkeypatch.setattr(compaction, "SMALL_ROWS", 60)
    with table(tmp_path) as one:
        for n in range(6):
            one.seal(n, tenants=("a", "b", "c") if n % 2 else ("a",))
        held = sorted(stored.digest for stored in one.lake.stored(*one.about))
        assert compaction.compact(one.lake, *one.about) == 6
        tenants = [
            list(dict.fromkeys(pq.read_table(file).column("tenant").to_pylist())) for file in one.lake.files(*one.about)
        ]
        assert sorted(tenants) == [["a"], ["b", "c"]]
        assert sorted(stored.digest for stored in one.lake.stored(*one.about)) == held
        assert len(one.lake.files(*one.about, tenant="b")) == 1


def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader leaves row groups alone that hold none of the windows it wants."""
    monkeypatch.setattr(deltalog, "GROUP_ROWS", 20)
    with table(tmp_path) as one:
        one.seal(*range(8), tenants=("a",))
        (file,) = one.lake.files(*one.about)
        about = pq.read_metadata(file)
        starts = [about.row_group(n).column(2).statistics for n in range(about.num_row_groups)]
        day = timedelta(hours=6)
        assert [one.min for one in starts] == [MONDAY.astimezone(UTC) + 2 * n * day for n in range(4)]
        assert isinstance(starts[0].max, datetime)
