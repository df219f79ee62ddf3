"""The state of an agent, as a page and as JSON: what its journal says, what it says itself, what its policy forbids."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest

from edge_agg.config import load
from edge_agg.contract.release import Status, Veto
from edge_agg.journal import Journal
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import budget_of
from edge_agg.report import state, status
from edge_agg.report.live import Live, LiveClock, LivePlan, LiveSource
from edge_agg.series import Account, Series
from edge_agg.window import Span
from tests.fakes import COUNT, DAY, MONDAY, WEEK, Row, batch_of, small_plan_text, write_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = MONDAY + 2 * WEEK + timedelta(hours=30)


class Clock:
    """It is NOW."""

    def now(self) -> object:
        """The time."""
        return NOW


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An agent that has closed two windows of one plan; a policy file beside it that forbids nothing yet."""
    path = write_config(
        tmp_path, small_plan_text(COUNT), small_plan_text(COUNT, name="other"), history=None, epsilon=4.0
    )
    path.write_text(path.read_text().replace('state = "state"', 'state = "state"\npolicy = "policy.toml"'))
    (tmp_path / "policy.toml").write_text("")
    _, (plan, _) = load(path)
    with closing(Journal.open(tmp_path / "state", "node", now=MONDAY)) as journal:
        series = Series(
            tenant="default",
            measurement=compile_plan(plan),
            account=Account(name="people", budget=budget_of(epsilon=20.0, delta=1e-5, horizon=365 * DAY)),
            journal=journal,
            span=Span(start=MONDAY, end=None),
        )
        series.add(batch_of([Row(u="SECRET-UNIT", k="SECRET-KEY")], plan))
        series.close(MONDAY)
        series.close(MONDAY + WEEK)
        journal.settle(acked=[1], parked=[])
        journal.note([], {"rejected": 31337})
    monkeypatch.setattr(status, "SystemClock", Clock)
    monkeypatch.setenv("COLUMNS", "80")
    return path


def running(monkeypatch: pytest.MonkeyPatch, live: Live | None) -> None:
    """Let an agent run there, and say this."""
    monkeypatch.setattr(state, "holder", lambda _: 4711)
    monkeypatch.setattr(state, "ask", lambda _: live)


LIVE = Live(
    pid=4711,
    uptime_s=90_061.0,
    holding="clock",
    rows=31337,
    memory_bytes=131 << 20,
    memory_limit=512 << 20,
    spool_bytes=5 << 20,
    spool_quota=1 << 30,
    sources=[
        LiveSource(name="file events", current=True, since=NOW - timedelta(minutes=5)),
        LiveSource(name="http", current=False, cause="refused"),
    ],
    plans=[LivePlan(name="small", open=[MONDAY + 2 * WEEK], held_rows=31337)],
    clock=LiveClock(state="held", reason="jumped"),
)


@pytest.fixture
def shown(config: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The page, on one line; no line of it is wider than a terminal."""

    def read() -> str:
        status.status(config, machine=False)
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80
        return " ".join(out.split())

    return read


def test_without_an_agent_the_journal_is_asked(shown: Callable[[], str]) -> None:
    """Guarantee: windows, the queue and its age, the budget in words with its end, the disk; no unit and no key."""
    page = shown()
    for words in (
        "node not running",
        "small v1 │ 2 │ 0 │ 0 │ 0 │ - │ 2013-01-21 00:00",
        "1 releases wait to be acked, the oldest for the window that ended 2013-01-21 00:00, 1 d 6 h ago",
        "account people: epsilon",
        "more weekly releases of other, until ",
        "of 4.0 GiB;",
        "rejected: 31,337",
    ):
        assert words in page, words
    assert "SECRET" not in page
    assert "vetoed:" not in page


def test_a_running_agent_says_the_rest(shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: memory against its limit, raw events on disk, clock, what it holds for, sources, open windows."""
    running(monkeypatch, LIVE)
    page = shown()
    for words in (
        "running (pid 4711, for 1 d 1 h)",
        "memory 131 MiB of 512 MiB",
        "5.0 MiB of it raw events",
        "clock held (jumped)",
        "holds: the clock is not believed",
        "source file events: current for 5 min",
        "source http: behind: the other end refuses this agent",
        "small v1 │ 2 │ 0 │ 0 │ 0 │ 1 │",
        "small.open: 31,337",
    ):
        assert words in page, words


def test_an_agent_that_does_not_answer(shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: it is said, and the page is the journal's."""
    running(monkeypatch, None)
    assert "running (pid 4711) it does not answer: what follows is what its journal says" in shown()


def test_a_veto_is_shown_with_its_rule(config: Path, shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: plan, rule and reason; and what is forbidden takes nothing from the account's future."""
    before = shown()
    (config.parent / "policy.toml").write_text('[plans]\nallowed = ["small"]\n')
    page = shown()
    assert "vetoed: other, by this device's policy, plans.allowed: names neither other nor sha256:" in page
    assert "more weekly releases of other" in before
    assert "weekly releases of other" not in page


def test_machines_get_nothing_that_only_the_device_may_know(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guarantee: the same facts in JSON, but for counts of the device's own data. Mutant: the page's numbers in it."""
    running(monkeypatch, LIVE)
    (config.parent / "policy.toml").write_text("[columns]\ndenied = ['x']\n")

    def as_json() -> str:
        status.status(config, machine=True)
        return capsys.readouterr().out

    text = as_json()
    found = json.loads(text)
    assert (found["pid"], found["holding"], found["clock"]["reason"]) == (4711, "clock", "jumped")
    assert found["queue"]["releases"] == 1
    assert found["plans"][0]["windows"]["released"] == 2
    assert found["plans"][0]["veto"]["reason"] == "column"
    assert [(source["current"], source["cause"]) for source in found["sources"]] == [(True, None), (False, "refused")]
    for secret in ("31337", "31,337", "SECRET", "2013-01-28"):
        assert secret not in text
    honest = status.as_json
    monkeypatch.setattr(status, "as_json", lambda said: honest(said) | {"counts": dict(said.local_counts)})
    assert "31337" in as_json()


def test_machines_get_sizes_in_tenths_of_their_limits(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a raw event more on the disk, or in memory, is not in the JSON. Mutant: sizes to the byte."""

    def as_json(spool: int, memory: int) -> dict[str, object]:
        (config.parent / "state" / "spool").mkdir(exist_ok=True)
        (config.parent / "state" / "spool" / "segment").write_bytes(b"e" * spool)
        running(monkeypatch, msgspec.structs.replace(LIVE, memory_bytes=memory))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(10 << 30) - spool))
        return status.as_json(state.look(*load(config), now=NOW))

    one, other = as_json(100, 131 << 20), as_json(1 << 20, (131 << 20) + 4096)
    assert one == other
    assert (one["memory_bytes"], one["disk_bytes"], one["disk_free"]) == (
        2 * ((1 << 30) // 10),
        (4 << 30) // 10,
        24 * ((4 << 30) // 10),
    )
    monkeypatch.setattr(status, "_tenths", lambda count, _limit: count)
    assert as_json(100, 131 << 20) != as_json(1 << 20, (131 << 20) + 4096)


def test_windows_that_the_policy_forbade_are_counted(config: Path, shown: Callable[[], str]) -> None:
    """Guarantee: a vetoed window stands in its own column, whatever the policy says by now."""
    loaded, (_, plan) = load(config)
    with closing(Journal.open(config.parent / "state", loaded.agent.name, now=MONDAY)) as journal:
        series = Series(
            tenant="default",
            measurement=compile_plan(plan),
            account=Account(name="people", budget=budget_of(epsilon=20.0, delta=1e-5, horizon=365 * DAY)),
            journal=journal,
            span=Span(start=MONDAY, end=None),
            veto=Veto.PLAN,
        )
        assert series.close(MONDAY) is Status.VETOED
    assert "other v1 │ 0 │ 0 │ 0 │ 1 │ - │ 2013-01-14 00:00" in shown()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3_661, "1 h 1 min"),
        (90_061, "1 d 1 h"),
        (86_405, "1 d"),
        (-60, "-1 min"),
    ],
)
def test_how_long_in_words(seconds: float, said: str) -> None:
    """The largest unit and the next one, unless that is nothing."""
    assert status._lasting(seconds) == said


def test_sizes_in_words() -> None:
    """Three digits, in the unit that fits."""
    assert [status._size(n) for n in (0, 1023, 1 << 20, 150 << 20, 1 << 42)] == [
        "0 B",
        "1023 B",
        "1.0 MiB",
        "150 MiB",
        "4.0 TiB",
    ]
