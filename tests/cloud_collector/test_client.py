"""The analyst's face, used as an analyst would, against a collector in this process."""

from __future__ import annotations

import asyncio
import inspect
import socket
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import grpc
import polars as pl
import pytest

import cloud_collector
from cloud_collector import client as room
from cloud_collector.client import Client
from cloud_collector.config import Config, PlanEntry
from cloud_collector.coverage import REASONS
from cloud_collector.errors import CollectorError, CollectorUnreachable, Overloaded, PlanUnknown, QuestionInvalid
from cloud_collector.query import Query
from tests.cloud_collector.front import PLAN_TEXT, push, release, running, week

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A collector that holds four weeks of three airports."""
    folder = tmp_path_factory.mktemp("collector")
    (folder / "flights.toml").write_text(PLAN_TEXT)
    config = Config(
        listen="127.0.0.1:0",
        data=folder / "data",
        seal_every_s=60.0,
        max_message_bytes=2**20,
        max_queued_releases=100,
        max_batch=64,
        plans=(PlanEntry(path=folder / "flights.toml", nodes=("ewr", "jfk", "lga")),),
    )
    with running(config) as address:
        push(address, *(release(node, n, n + 1) for node in ("ewr", "jfk", "lga") for n in range(4)))
        yield address


@pytest.fixture
def c(url: str) -> Iterator[Client]:
    with cloud_collector.connect(url) as client:
        yield client


def test_an_analyst_finds_out_what_can_be_asked(c: Client) -> None:
    """One row a plan and metric, with the loss of a window and what the number means in words."""
    plans = c.plans()
    assert plans["metric"].to_list() == ["departures", "aircraft", "total", "late"]
    assert plans["kind"].to_list() == ["count", "distinct_units", "sum", "mean"]
    assert plans["column"].to_list() == [None, None, "delay", "delay"]
    row = plans.row(1, named=True)
    assert row["by"] == ["carrier", "night"]
    assert row["nodes"] == ["ewr", "jfk", "lga"]
    assert (row["every"], row["epsilon"], row["delta"], row["mechanism"], row["max_nodes"]) == (
        "7d",
        2.0,
        1e-6,
        "gaussian",
        3,
    )
    assert row["reads_as"].startswith("distinct tailnum, counted once per window and site, then added up")
    assert all("clipping" in text for text in plans["reads_as"])
    assert "-30 .. 180" in plans["reads_as"][3]


def test_an_analyst_asks_in_one_line(c: Client) -> None:
    """A Polars frame: value, lo, hi, who reported, status."""
    frame = c.estimate("flights", "departures", by=["carrier"], every="14d")
    assert frame.schema == {
        "start": pl.Datetime("us", "UTC"),
        "end": pl.Datetime("us", "UTC"),
        "carrier": pl.String(),
        "value": pl.Float64(),
        "lo": pl.Float64(),
        "hi": pl.Float64(),
        "nodes_reporting": pl.Int64(),
        "nodes_expected": pl.Int64(),
        "windows_reporting": pl.Int64(),
        "windows_expected": pl.Int64(),
        "absent": pl.Struct(dict.fromkeys(REASONS, pl.Int64())),
        "status": pl.String(),
        "note": pl.String(),
    }
    assert set(frame["note"]) == {"lo .. hi cover noise, not bias"}
    assert frame["value"].sum() == 6 * 3 * (1 + 2 + 3 + 4)
    assert set(frame["status"]) == {"complete"}
    assert c.estimate("flights", "departures", by=["carrier"], every="14d").equals(frame)


def test_an_analyst_narrows_the_question(c: Client) -> None:
    """One value or several, a date, a text or a moment; without a zone it is UTC."""
    every_way: list[date | str] = [
        date(2013, 1, 14),
        "2013-01-14",
        datetime(2013, 1, 14),  # noqa: DTZ001  # naive on purpose
        week(1),
        "2013-01-14T01:00+01:00",
    ]
    frames = [c.estimate("flights", "departures", where={"carrier": "UA"}, start=start) for start in every_way]
    assert all(frame.equals(frames[0]) for frame in frames)
    assert frames[0]["value"].to_list() == [2.0 * 3 * (2 + 3 + 4)]
    narrow = c.estimate(
        "flights", "departures", where={"node": ["jfk", "lga"], "night": "true"}, end=week(1), version=1
    )
    assert narrow["value"].to_list() == [2.0 * 3]
    assert narrow["end"].to_list() == [datetime(2013, 1, 14, tzinfo=UTC)]


def test_a_wider_confidence_is_a_wider_interval(c: Client) -> None:
    """The interval is the asker's choice, the value is not."""
    narrow, wide = (c.estimate("flights", "late", confidence=level) for level in (0.5, 0.999))
    assert narrow["value"].equals(wide["value"])
    assert (wide["hi"] - wide["lo"] > narrow["hi"] - narrow["lo"]).all()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"every": "8d"}, "every: must be a multiple of the plan's window, 7d"),
        ({"every": "9999999d"}, "every: must be a multiple of the plan's window, 7d"),
        ({"every": "99999999999d"}, "every: a duration is a whole number and one of"),
        ({"start": 2013}, "start: must be a date, a datetime, or text"),
        ({"every": "fortnight"}, "every: a duration is a whole number and one of"),
        ({"by": ["dest"]}, "by: the plan has carrier, night, node"),
        ({"where": {"carrier": "ZZ"}}, "where.carrier: the plan's keys are UA, AA, other"),
        ({"start": "yesterday"}, "start: text must be ISO 8601"),
        ({"start": "2013-01-08"}, "start: must lie on the plan's windows"),
        ({"version": -1}, "wrong type, or a number is out of range"),
        ({"by": [3]}, "wrong type, or a number is out of range"),
    ],
)
def test_a_question_that_does_not_fit_says_what_is_wrong(c: Client, more: dict[str, object], expected: str) -> None:
    """Whether the client or the collector notices, it is the same error, without the wire's own in its trace."""
    with pytest.raises(QuestionInvalid) as raised:
        c.estimate("flights", "departures", **more)  # type: ignore[arg-type]  # wrong on purpose
    assert expected in str(raised.value)
    assert raised.value.__suppress_context__


def test_an_unknown_plan_or_version(c: Client) -> None:
    """It is told from a question that does not fit."""
    for plan, version in (("trains", None), ("flights", 2)):
        with pytest.raises(PlanUnknown):
            c.estimate(plan, "departures", version=version)


def test_by_takes_one_name(c: Client) -> None:
    """A single column may be given bare; its letters are not taken for columns."""
    assert c.estimate("flights", "departures", by="node").height == 3


def test_nobody_there_is_said_at_once() -> None:
    """And what to do about it; a closed port is not waited for."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(CollectorUnreachable, match=f"no collector at 127.0.0.1:{port}: start it with"):
            cloud_collector.connect(f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:http", "10.0.0.1:8815", "example.org:8815", "127.0.0.1", "http://127.0.0.1:8815", "", "8815"]
)
def test_without_tls_only_loopback_is_spoken_to(url: str) -> None:
    """A question and its answer do not cross a network in the clear."""
    with pytest.raises(CollectorUnreachable, match="host:port"):
        cloud_collector.connect(url)


def test_a_collector_that_goes_away(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The error says to start it; closing twice is harmless."""
    folder = tmp_path_factory.mktemp("gone")
    limits = {"seal_every_s": 60.0, "max_message_bytes": 2**20, "max_queued_releases": 10, "max_batch": 10}
    config = Config(listen="127.0.0.1:0", data=folder, plans=(), **limits)  # type: ignore[arg-type]  # numbers all
    with running(config) as address:
        client = cloud_collector.connect(address)
    for ask in (client.plans, lambda: client.estimate("flights", "departures")):
        with pytest.raises(CollectorUnreachable, match="cloud-collector serve"):
            ask()
    client.close()
    client.close()


def test_an_overloaded_or_failing_collector(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overload is worth asking again; what nobody foresaw carries an id for the collector's log, and no more."""

    def answer_with(error: Exception) -> None:
        def fail(self: Query, *asked: object) -> object:
            raise error

        monkeypatch.setattr(Query, "estimate", fail)

    with cloud_collector.connect(url) as client:
        answer_with(Overloaded())
        with pytest.raises(Overloaded):
            client.estimate("flights", "departures")
        answer_with(RuntimeError("canary"))
        with pytest.raises(CollectorError) as raised:
            client.estimate("flights", "departures")
        assert type(raised.value) is CollectorError
        assert "request id" in str(raised.value)
        assert "canary" not in str(raised.value)


def test_a_question_over_the_size_limit_is_not_asked_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of gRPC refuses it with the status of overload, but the same question would be refused again.

    Mutant: the status alone decides.
    """
    large = {"carrier": ["x" * 1000] * 1100}
    with cloud_collector.connect(url) as client:
        with pytest.raises(QuestionInvalid, match="larger than the collector takes"):
            client.estimate("flights", "departures", where=large)
        real = room._mapped

        def by_status(error: grpc.RpcError) -> CollectorError:
            overloaded = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            return Overloaded("ask again") if overloaded else real(error)

        monkeypatch.setattr(room, "_mapped", by_status)
        with pytest.raises(Overloaded):
            client.estimate("flights", "departures", where=large)


def test_the_public_face_is_what_the_readme_shows() -> None:
    """Plan and metric go by position, everything else by name; nothing is a coroutine."""
    parameters = inspect.signature(Client.estimate).parameters
    assert [name for name, one in parameters.items() if one.kind is one.POSITIONAL_OR_KEYWORD] == [
        "self",
        "plan",
        "metric",
    ]
    assert not any(asyncio.iscoroutinefunction(member) for member in vars(Client).values())
