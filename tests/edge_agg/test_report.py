"""What the command line shows: rounded up, in words, and nothing of the data but what stays on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_agg import report, telemetry
from edge_agg.config import AccountTable
from edge_agg.contract.plan import plan_hash
from edge_agg.errors import BudgetExhausted
from edge_agg.privacy.ledger import Entry, check_room
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import budget_of
from edge_agg.report import _budget_words, _payload_bytes
from edge_agg.telemetry import Event, emit
from tests.fakes import COUNT, DAY, MEAN, MONDAY, WEEK, small_plan, small_plan_text, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.journal import Journal


def account(epsilon: float = 20.0, horizon: str = "365d") -> AccountTable:
    """An account."""
    return AccountTable(name="people", privacy_unit="u", epsilon=epsilon, delta=1e-5, horizon=horizon)


@pytest.mark.parametrize("closed", [0, 1, 3])
def test_the_budget_in_words_is_what_the_ledger_admits(journal: Journal, closed: int) -> None:
    """Guarantee: "n more weekly releases" is how many a ledger takes one by one, and the date where they end."""
    plan = small_plan(epsilon=4.0)
    measurement = compile_plan(plan)
    for i in range(closed):
        start = MONDAY + i * WEEK
        journal.charge(
            account="people",
            plan_hash=plan_hash(plan),
            name="small",
            text="",
            window_start=start,
            charge=measurement.charge,
        )
    words = _budget_words(journal, account(), measurement)
    budget = budget_of(epsilon=20.0, delta=1e-5, horizon=365 * DAY)
    entries = journal.entries("people")
    left = 0
    # Nothing is sealed, so the words begin at the window that the journal was created in.
    while True:
        entry = Entry(window_start=MONDAY + left * WEEK, charge=measurement.charge)
        try:
            check_room(budget, entries, entry)
        except BudgetExhausted:
            break
        entries.append(entry)
        left += 1
    assert 0 < left < 53
    assert f"{left} more weekly releases of small, until {MONDAY + left * WEEK:%-d %b %Y}" in words
    assert "of 20 spent in 365 days" in words


def test_a_budget_that_never_runs_out_says_so(journal: Journal) -> None:
    """A year of releases that fits, fits for ever."""
    words = _budget_words(journal, account(epsilon=1000.0), compile_plan(small_plan()))
    assert words.endswith("weekly releases of small never run out")
    assert words.startswith("account people: epsilon 0.000 of 1000")


def test_the_size_is_every_releases_size() -> None:
    """Guarantee: a release of nobody is about as long as it will be of everybody: the noise decides it."""
    sizes = {_payload_bytes(compile_plan(small_plan(COUNT, MEAN))) for _ in range(3)}
    assert max(sizes) - min(sizes) < 64


def test_check_says_what_is_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: the loss of a window, of a person, of a year, each with its epsilon and delta; and the errors."""
    report.check(write_config(tmp_path, small_plan_text(COUNT, MEAN, epsilon=2.0)), 9)
    out = " ".join(capsys.readouterr().out.split())
    for words in ("one window, one site", "at up to 1 sites", "(365 days)", "epsilon", "over 9 sites", "level_count"):
        assert words in out
    assert "epsilon 2.000 at delta 1e-06" in out or "epsilon 1.999" in out
    assert "No [history]" not in out


def test_check_warns_where_windows_come_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: what is not protected is said."""
    report.check(write_config(tmp_path, history=None), 1)
    assert "No [history]" in " ".join(capsys.readouterr().out.split())


def test_the_bars_follow_the_events(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every event there is can be shown, and nothing goes to standard output."""
    monkeypatch.setattr(telemetry, "_watchers", [])
    with report.bars():
        emit(Event.PART_READ, source="s", parts=2)
        emit(Event.WINDOWS_DUE, windows=3)
        emit(Event.WINDOW_SEALED, plan="p", window="w", status="released")
        emit(Event.RELEASES_ACKED, releases=1, payload_bytes=10)
        emit(Event.AGENT_STOPPED, agent="a", unacked=0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "windows sealed" in captured.err
