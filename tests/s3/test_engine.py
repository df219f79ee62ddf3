"""A distributed engine reads the same tables, and its answer is DuckDB's and the collector's.

Sail in cluster mode: a driver and workers that exchange data over gRPC, in one process of this machine. Not proved
here: how it scales over machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pytest

from cloud_collector.caller import Caller, Kind
from cloud_collector.config import load
from cloud_collector.errors import QuestionInvalid
from cloud_collector.lake import Lake
from cloud_collector.landing import Landing
from cloud_collector.plans import PlanRegistry
from cloud_collector.query import Query
from cloud_collector.question import Asked, Question
from cloud_collector.sealer import Sealer
from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Status
from examples.engine.__main__ import ask
from examples.engine.environment import PYTHON
from examples.engine.question import DUCKDB, answer, queries
from tests.cloud_collector.conftest import PLAN, Maker

if TYPE_CHECKING:
    from cloud_collector.bucket import Bucket

ROOT = Path(__file__).parents[2]
KINDS = """
[[metric]]
name = "spread"
kind = "histogram"
column = "dep_delay"
edges = [-30.0, 0.0, 60.0, 180.0]

[[metric]]
name = "middle"
kind = "quantiles"
column = "dep_delay"
lower = -30.0
upper = 180.0
bins = 16
quantiles = [0.5, 0.9]

[budget]"""
TEXT = PLAN.replace("[budget]", KINDS)
WEEK = 7 * 86_400_000_000
TENANTS = ("default", "acme")
NOW_US = to_us(datetime(2020, 1, 1, tzinfo=UTC))


def need_engine() -> None:
    """Skip the test if there is no engine, or fail it where there must be one."""
    if not PYTHON.exists():
        text = "no engine: run `make tools`"
        if os.environ.get("REQUIRE_ENGINE"):
            pytest.fail(text)
        pytest.skip(text)


def filled(folder: Path, bucket: Bucket | None = None) -> Path:
    """A collector's data, sealed to a folder or a bucket; the config's path.

    Six weeks with three without a release between them, a week that is exhausted after them, and another tenant's week.
    """
    folder.mkdir(exist_ok=True)
    lines = ["[collector]", 'data = "data"', "[[plan]]", 'path = "plan.toml"', 'nodes = ["jfk", "lga", "ewr"]']
    if bucket is not None:
        lines += ["[lake]", f'url = "{bucket.url}"', f'endpoint = "{bucket.endpoint}"']
        lines += [f'{name} = "{getattr(bucket, name)}"' for name in ("access_key_file", "secret_key_file")]
    (folder / "collector.toml").write_text("\n".join(lines))
    (folder / "plan.toml").write_text(TEXT)
    config, maker = load(folder / "collector.toml"), Maker(TEXT)
    for tenant in TENANTS:
        PlanRegistry(config.plans_path).add_file(folder / "plan.toml", ["jfk", "lga", "ewr"], tenant=tenant)
    weeks = (1, 2, 3, 7, 8, 9)
    made = [maker.make(seed=n, window=weeks[n // 2], agent=("jfk", "lga")[n % 2], tenant="default") for n in range(12)]
    made.append(maker.make(window=10, agent="ewr", tenant="default", status=Status.EXHAUSTED))
    made.append(maker.make(seed=99, window=11, agent="jfk", tenant="acme"))
    with contextlib.closing(Landing(config.landing_path)) as landing:
        for one in made:  # a file each
            asyncio.run(landing.land([one.pair]))
            Sealer(landing, Lake.of(config, writes=True), maker.plan_of).seal()
    return folder / "collector.toml"


QUESTIONS = [
    Question(plan="flight_delays", metric=metric, by=by, every_us=every)
    for metric in ("departures", "delay", "spread", "middle")
    for by, every in (((), None), (("carrier",), 2 * WEEK), (("carrier",), None))
]


def of_duckdb(config: Path, question: Question, tenant: str = "default") -> pl.DataFrame:
    """The same SQL over the same files, by DuckDB."""
    told = load(config)
    plan = PlanRegistry(told.plans_path).find(question.plan, None, tenant)
    lake, asked = Lake.of(told, writes=False), Asked.of(plan.plan, question, home=plan.tenant)
    with duckdb.connect() as db:
        lake.attach(db)
        db.execute(DUCKDB)
        files = ", ".join(f"'{file}'" for file in lake.files(plan.plan, plan.hash))
        db.execute(f"CREATE TEMP VIEW lake AS SELECT * FROM read_parquet([{files}])")
        asks = queries(asked, now_us=NOW_US, quote='"')
        rows: Any = {name: db.execute(sql).fetchall() for name, sql in asks.items()}
    return answer(asked, now_us=NOW_US, **rows)


def of_collector(config: Path, question: Question, tenant: str = "default") -> pl.DataFrame:
    """The collector's own answer to an analyst of a tenant."""
    told = load(config)
    query = Query(PlanRegistry(told.plans_path), Lake.of(told, writes=False), lambda: None, now_us=lambda: NOW_US)
    asker = Caller(kind=Kind.ANALYST, tenant=tenant, name="ada")
    return pl.DataFrame(pl.from_arrow(query.estimate(question, asker)))


def check(config: Path, question: Question, found: pl.DataFrame, tenant: str = "default") -> None:
    """The engine's answer is DuckDB's, and, in every column that both have, the collector's."""
    assert found.equals(of_duckdb(config, question, tenant))
    collector = of_collector(config, question, tenant)
    assert len(found) == len(collector) > 0
    for column in found.columns:
        assert found[column].to_list() == collector[column].to_list(), column
    assert found["lo"].null_count() == found.filter(windows_reporting=0).height


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS, ids=lambda one: f"{one.metric}-{len(one.by)}-{one.every_us}")
def test_the_sql_says_in_duckdb_what_the_collector_says(tmp_path: Path, question: Question) -> None:
    """So what an engine is asked is the right question; every kind of metric, with its interval."""
    config = filled(tmp_path)
    check(config, question, of_duckdb(config, question))
    found = of_duckdb(config, question, "acme")
    check(config, question, found, "acme")
    assert set(found["windows_reporting"]) == {1}


@pytest.mark.slow
def test_what_the_sql_says_is_of_the_range_and_of_one_tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weeks without a release have their rows, the first and the last bucket are cut, what lies after now is left out.

    Mutant: everybody's rows are added up.
    """
    config, question = filled(tmp_path), Question(plan="flight_delays", metric="departures", every_us=2 * WEEK)
    found = of_duckdb(config, question)
    assert (found["end"] - found["start"]).dt.total_days().to_list() == [7, 14, 14, 14, 14, 7]
    assert found["windows_reporting"].to_list() == [2, 4, 0, 2, 4, 0]
    with monkeypatch.context() as earlier:
        earlier.setitem(globals(), "NOW_US", to_us(datetime(2013, 2, 27, tzinfo=UTC)))
        found = of_duckdb(config, question)
        check(config, question, found)
        assert found["windows_reporting"].to_list() == [2, 4, 0, 2]
    monkeypatch.setattr("examples.engine.question._literal", lambda _: "tenant")
    with pytest.raises(AssertionError):
        check(config, question, of_duckdb(config, question))


def test_what_the_sql_does_not_say_is_refused(tmp_path: Path) -> None:
    plan = Maker(TEXT).plan
    asked = Asked.of(plan, Question(plan=plan.name, metric="departures", by=("node",)))
    with pytest.raises(QuestionInvalid, match="ask the collector"):
        queries(asked, now_us=NOW_US)
    with pytest.raises(QuestionInvalid, match="tenant"):
        queries(Asked.of(plan, QUESTIONS[0], home="x' OR '1' = '1"), now_us=NOW_US)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_distributed_engine_says_what_duckdb_and_the_collector_say(
    request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    """Value, interval and coverage, to the last bit, over a Delta table of fourteen files."""
    need_engine()
    bucket = request.getfixturevalue("bucket") if place == "bucket" else None
    config = filled(tmp_path / "collector", bucket)
    for question in QUESTIONS[1 :: 3 if place == "bucket" else 1]:
        check(config, question, ask(config, question, workers=2))
    check(config, QUESTIONS[1], ask(config, QUESTIONS[1], tenant="acme", workers=2), "acme")


@pytest.mark.slow
def test_mutant_an_engine_that_misses_a_file_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_engine()
    config = filled(tmp_path)
    found = ask(config, QUESTIONS[1], workers=2)
    files = Lake.files
    monkeypatch.setattr(Lake, "files", lambda *given: files(*given)[1:])
    with pytest.raises(AssertionError):
        check(config, QUESTIONS[1], found)


@pytest.mark.slow
def test_the_documented_command_prints_the_answer(tmp_path: Path) -> None:
    """A row a carrier, and a refusal in words for what is not there."""
    need_engine()
    config = filled(tmp_path)
    command = [sys.executable, "-m", "examples.engine", "--config", str(config), "flight_delays"]
    said = subprocess.run(
        [*command, "departures", "--by", "carrier"], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert said.returncode == 0, said.stderr
    assert "windows_reporting" in said.stdout
    refused = subprocess.run([*command, "arrivals"], check=False, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 1
    assert "metric: the plan has" in refused.stderr
