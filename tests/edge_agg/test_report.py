"""What the command line shows: rounded up, in words, within eighty columns, and nothing of the data."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest

from edge_agg import telemetry
from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import parse_plan
from edge_agg.contract.release import Status
from edge_agg.errors import ConfigInvalid
from edge_agg.journal import Journal
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.predict import Figure
from edge_agg.privacy.statement import budget_of
from edge_agg.report import check as check_page
from edge_agg.report.bars import bars
from edge_agg.report.check import _release_bytes, check, error
from edge_agg.series import Account, Series
from edge_agg.telemetry import Event, emit
from edge_agg.window import Span
from tests.fakes import COUNT, DAY, MEAN, MONDAY, small_plan, small_plan_text, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.contract.plan import Plan


def words(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, on one line; no line is wider than a terminal."""
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    return " ".join(out.split())


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of eighty columns."""
    monkeypatch.setenv("COLUMNS", "80")


MANY = "[" + ", ".join(f'"k{i}"' for i in range(30)) + "]"


def released(plan: Plan, rows_a_cell: int, tmp_path: Path) -> int:
    """The bytes of a release, header and payload, over cells that hold so many rows on average."""
    rng = np.random.default_rng(7)
    keys = rng.choice(30, size=30 * rows_a_cell, p=rng.dirichlet(np.ones(30))) if rows_a_cell else np.empty(0, int)
    events = {
        "t": pa.array([MONDAY] * len(keys), pa.timestamp("us", tz="UTC")),
        "u": pa.array(np.arange(len(keys)).astype(str), pa.string()),
        "k": pa.array(np.char.add("k", keys.astype(str)), pa.string()),
        "x": pa.array(rng.uniform(0.0, 100.0, len(keys))),
    }
    with closing(Journal.open(tmp_path / str(rows_a_cell), "node", now=MONDAY)) as journal:
        series = Series(
            tenant="default",
            measurement=compile_plan(plan),
            account=Account(name="people", budget=budget_of(epsilon=1000.0, delta=0.5, horizon=365 * DAY)),
            journal=journal,
            span=Span(start=MONDAY, end=None),
        )
        series.add(pa.record_batch(events))
        assert series.close(MONDAY) is Status.RELEASED
        [waiting] = journal.waiting(1)
    return len(waiting.sealed.header) + len(waiting.sealed.payload)


def test_the_size_is_a_typical_releases_size(tmp_path: Path) -> None:
    """Guarantee: header and payload as they are sent, within a fifth, where cells hold what the page says.

    Mutant: the size of a release of nobody, whose values compress further.
    """
    plan = small_plan(COUNT, MEAN, keys=MANY, max_rows=1, epsilon=30.0)
    said = _release_bytes(compile_plan(plan))
    assert said == pytest.approx(released(plan, 1_000, tmp_path), rel=0.2)
    assert said != pytest.approx(released(plan, 0, tmp_path), rel=0.2)


def test_the_size_of_many_cells_is_reckoned_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: what is drawn to learn a size is bounded; the size is still within a tenth."""
    keys = str([f"k{i}" for i in range(5_999)]).replace("'", '"')
    measurement = compile_plan(small_plan(COUNT, keys=keys))
    assert n_cells(measurement.plan) == 6_000
    reckoned = _release_bytes(measurement)
    monkeypatch.setattr(check_page, "_SIZED_ROWS", 6_000)
    assert reckoned == pytest.approx(_release_bytes(measurement), rel=0.1)


def test_check_says_what_is_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: the loss of a window, of a person, of a year, each with its epsilon and delta; and the errors."""
    text = small_plan_text(COUNT, MEAN, epsilon=2.0).replace('column = "u"\n', 'column = "u"\nmax_nodes = 3\n')
    check(write_config(tmp_path, text, epsilon=100.0), 9)
    out = words(capsys)
    for said in (
        "Whoever sees everything that leaves this site in one window learns at most epsilon",
        "about one u.",
        "one window, this site",
        "one window, up to 3 sites",
        "365 days (53 windows)",
        "an even guess is right",
        "9 sites",
        "level_count",
        "All its plans together, and every window drawn again after a crash: about what one u did in any 365 days,",
        "tells at most epsilon 100 at delta 1e-05; all that leaves 3 sites with such an account, at most ",
        "eekly releases of small last for all of its history",
    ):
        assert said in out
    assert "│ 2.000 │ 1e-06" in out or "│ 1.999 │" in out
    assert "No [history]" not in out


def test_check_says_how_long_an_account_lasts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: until when, and what would make it last; with a plan that is not configured yet, too."""
    config = write_config(tmp_path, small_plan_text(epsilon=4.0), history=None)
    check(config, 1)
    out = words(capsys)
    for said in ("more weekly releases of small, until", "small asks for", "To last for ever: window.every ="):
        assert said in out
    more = tmp_path / "more.toml"
    more.write_text(small_plan_text(epsilon=0.1, name="more", every="1d"))
    check(config, 1, what_if=more, account="people")
    out = words(capsys)
    assert "more daily releases of more" in out
    assert "with more beside the rest" in out
    assert "more v1" in out


def test_check_says_what_the_devices_policy_forbids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: plan and every rule that it breaks, by how much; a vetoed plan takes nothing from its account."""
    config = write_config(tmp_path, small_plan_text(), small_plan_text(name="other"), history=None, epsilon=4.0)
    config.write_text(config.read_text().replace('state = "state"', 'state = "state"\npolicy = "policy.toml"'))
    (tmp_path / "policy.toml").write_text('[plans]\nallowed = ["small"]\n[window]\nepsilon = 1.0\ndelta = 1e-6\n')
    check(config, 1)
    out = words(capsys)
    assert "Vetoed: this device's policy forbids other." in out
    assert "- plans.allowed: names neither other nor sha256:" in out
    assert "forbids small" not in out
    assert "more weekly releases of small, until" in out
    assert "releases of other" not in out
    (tmp_path / "policy.toml").write_text("[window]\nepsilon = 0.9\ndelta = 1e-6\n")
    check(config, 1)
    assert "window.epsilon: one window costs epsilon 1.000 at delta 1e-06, 0.9 is the most" in words(capsys)


def test_check_says_what_becomes_of_a_row_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: derived columns and filters are shown with what they do, whatever of it they have."""
    text = (
        small_plan_text(COUNT)
        + """
[[derive]]
column = "hour"
from = "t"
calendar = "hour"
[[derive]]
column = "name"
from = "k"
[[filter]]
column = "x"
at_least = 0.0
"""
    )
    (tmp_path / "plan.toml").write_text(text)
    check(tmp_path / "plan.toml", 1)
    out = words(capsys)
    assert "makes hour of t: calendar hour" in out
    assert "makes name of k " in out
    assert "keeps rows by x: at least 0.0" in out


def test_what_if_needs_an_account_of_that_population(tmp_path: Path) -> None:
    """Guarantee: a plan is not charged to an account of somebody else's."""
    config, more = write_config(tmp_path), tmp_path / "more.toml"
    more.write_text(small_plan_text(name="more").replace('column = "u"', 'column = "k"'))
    with pytest.raises(ConfigInvalid, match="another privacy unit"):
        check(config, 1, what_if=more, account="people")
    with pytest.raises(ConfigInvalid, match="names none of its accounts"):
        check(config, 1, what_if=more, account="nobody")
    with pytest.raises(ConfigInvalid, match="name its config"):
        check(more, 1, what_if=more, account="people")


def test_check_of_discovered_keys_says_what_a_key_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: how many units a key needs to show half of the time, and nearly always."""
    text = small_plan_text(COUNT).replace(
        'column = "k"\nvalues = ["a", "b"]\nother = true', 'column = "k"\ndiscover = { delta = 1e-7 }'
    )
    (tmp_path / "plan.toml").write_text(text)
    check(tmp_path / "plan.toml", 2)
    out = words(capsys)
    selection = compile_plan(parse_plan(text)).selection
    assert selection is not None
    assert f"A k shows at a site half of the time if it has {selection.threshold + 1} distinct u there" in out
    assert "for each released key" in out
    assert "The delta includes the chance that a discovered key shows" in out


def test_check_warns_where_windows_come_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guarantee: what is not protected is said."""
    check(write_config(tmp_path, history=None), 1)
    assert "No [history]" in words(capsys)


def test_an_error_in_words() -> None:
    """A quantile's rank beside its value; no number where there is none."""
    figure = Figure(metric="m", part="q0.5", value=10.0, error=2.5, rank=0.0123)
    assert error(figure) == "± 2.5 (1.2% of ranks)"
    assert error(Figure(metric="m", part="", value=1.0, error=1234.5)) == "± 1,234"
    assert error(Figure(metric="m", part="", value=1.0, error=float("inf"))) == "lost in noise"


def test_the_bars_follow_the_events(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every event there is can be shown, and nothing goes to standard output."""
    monkeypatch.setattr(telemetry, "_watchers", [])
    with bars():
        emit(Event.PART_READ, source="s")
        emit(Event.WINDOWS_DUE, windows=3)
        emit(Event.WINDOW_SEALED, plan="p", window="w", status="released")
        emit(Event.RELEASES_ACKED, releases=1, payload_bytes=10)
        emit(Event.AGENT_STOPPED, agent="a", unacked=0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "windows sealed" in captured.err
