"""The suite catches sources that break what every source promises."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from edge_agg.errors import SourceUnreadable
from edge_agg.ingest import file, stdin
from edge_agg.ingest.http_events import Desk, Reply
from edge_agg.ingest.source import InletFull
from tests.conformance import inlet, test_sources
from tests.conformance.harness_file import FileHarness
from tests.conformance.harness_http import UnixHarness
from tests.conformance.harness_stdin import StdinHarness

if TYPE_CHECKING:
    from edge_agg.ingest.source import Frame, Inlet


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never comes is not waited for long."""
    monkeypatch.setattr(inlet, "PATIENCE_S", 1.0)
    monkeypatch.setattr(test_sources, "PATIENCE_S", 1.0)


def _fails(check: Any, harness: Any) -> bool:
    try:
        check(harness, test_sources.runner(harness))
    except (AssertionError, pytest.fail.Exception, TimeoutError, msgspec.MsgspecError):
        return True
    return False


@pytest.mark.slow
def test_an_answer_before_it_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says ok and hands over later is caught."""
    check = test_sources.test_nobody_hears_ok_before_the_rows_are_safe
    tasks = set()

    async def hasty(desk: Desk, frame: Frame, reply: Reply) -> Reply:
        tasks.add(asyncio.create_task(desk.inlet.take(frame)))
        return reply

    assert not _fails(check, UnixHarness(tmp_path))
    monkeypatch.setattr(Desk, "_take", hasty)
    assert _fails(check, UnixHarness(tmp_path))


@pytest.mark.slow
def test_a_refusal_that_is_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that drop what a full inlet refuses are caught: a pushed one, and one that reads."""
    check = test_sources.test_a_full_agent_makes_the_client_wait_and_loses_nothing

    async def careless(desk: Desk, frame: Frame, reply: Reply) -> Reply:
        with suppress(InletFull):
            await desk.inlet.take(frame)
        return reply

    async def once(inlet: Inlet, frame: Frame, _: asyncio.Event) -> bool:
        with suppress(InletFull):
            await inlet.take(frame)
        return True

    assert not _fails(check, StdinHarness(tmp_path))
    monkeypatch.setattr(Desk, "_take", careless)
    monkeypatch.setattr(stdin, "_take", once)
    assert _fails(check, UnixHarness(tmp_path))
    assert _fails(check, StdinHarness(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["repeats", "forgets rejects"])
def test_a_source_that(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows handed over twice, rejects that are not counted: each is caught by the test of that name."""
    right = stdin._Text.frame

    def wrong(text: stdin._Text, gathered: list[bytes], *, ended: bool) -> Frame:
        if what == "repeats":
            return right(text, gathered * 2, ended=ended)
        return replace(right(text, gathered, ended=ended), rejected=0)

    checks = {
        "repeats": test_sources.test_rows_arrive_once_each_and_typed,
        "forgets rejects": test_sources.test_a_bad_row_costs_no_other_and_is_counted,
    }
    monkeypatch.setattr(stdin._Text, "frame", wrong)
    assert _fails(checks[what], StdinHarness(tmp_path))


def test_a_source_that_is_stopped_by_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder whose error gets through is caught."""
    monkeypatch.setattr("edge_agg.ingest.lines.BAD_LINE", ())
    monkeypatch.setattr("edge_agg.ingest.push.guarded", lambda make: make())
    assert _fails(test_sources.test_no_input_stops_a_source_or_is_heard_of_again, StdinHarness(tmp_path))


def test_a_check_that_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that lets a reader's own words out, or refuses nothing, is caught."""
    check = test_sources.test_a_check_says_nothing_of_rows

    def quoting(path: str, columns: Any) -> None:
        raise SourceUnreadable(Path(path).read_bytes().decode(errors="replace"))

    assert not _fails(check, FileHarness(tmp_path))
    for careless in (quoting, lambda path, columns: None):
        monkeypatch.setattr(file, "_check_file", careless)
        assert _fails(check, FileHarness(tmp_path))
