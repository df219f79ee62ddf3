"""The command line: exit codes that a supervisor can act on, one line of text, nothing of the data."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from edge_agg import telemetry
from edge_agg.__main__ import cli
from edge_agg.journal import Journal
from tests.fakes import MONDAY, WEEK, FakeCollector, Row, small_plan_text, write_config, write_events

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes the log over; the tests want it back."""
    monkeypatch.setattr(telemetry, "configure", lambda **_: None)
    monkeypatch.setattr(telemetry, "_watchers", [])


def edge_agg(*words: object) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="edge-agg")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> FakeCollector:
    """A collector in the place of gRPC; and an agent that lets go of its folder as a process does when it ends."""
    wire = FakeCollector()
    monkeypatch.setattr("edge_agg.agent.GrpcWire", lambda *_, **__: wire)
    opened: list[Journal] = []
    honest = Journal.open

    def tracked(*args: object, **more: object) -> Journal:
        opened.append(honest(*args, **more))  # type: ignore[arg-type]  # handed through
        return opened[-1]

    monkeypatch.setattr(Journal, "open", tracked)
    leave = sys.modules["edge_agg.__main__"]._leave

    def closing(*args: object, **more: object) -> None:
        opened[-1].close()
        leave(*args, **more)

    monkeypatch.setattr(sys.modules["edge_agg.__main__"], "_leave", closing)
    return wire


def drain(config: Path, *more: str) -> Result:
    """`edge-agg run --drain`."""
    return edge_agg("run", config, "--drain", "--log", "none", *more)


def test_a_drain_that_is_done_exits_0(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: 0 means that the collector has everything."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    done = drain(write_config(tmp_path))
    assert (done.exit_code, done.output) == (0, "")
    assert collector.windows == [MONDAY + i * WEEK for i in range(4)]


@pytest.mark.parametrize("command", [["check"], ["run", "--drain", "--log", "none"], ["status"]])
def test_a_bad_plan_exits_3_and_is_named(tmp_path: Path, command: list[str]) -> None:
    """Guarantee: the file, the path in it, and what is wrong, on one line."""
    config = write_config(tmp_path, small_plan_text(max_rows=0))
    done = edge_agg(*command, config)
    assert done.exit_code == 3
    assert done.stderr.startswith(f"edge-agg: {tmp_path / 'plan0.toml'}: $.bounds.max_rows_per_partition: ")
    assert done.stderr.count("\n") == 1


def test_a_plan_that_no_noise_fits_exits_3(tmp_path: Path) -> None:
    """A budget too small for any noise is an error of the plan."""
    (tmp_path / "plan.toml").write_text(small_plan_text(epsilon=1e-12, max_rows=2**20, mechanism="laplace"))
    done = edge_agg("check", tmp_path / "plan.toml")
    assert (done.exit_code, "no noise scale" in done.stderr) == (3, True)


def test_a_file_that_is_no_toml_exits_3(tmp_path: Path) -> None:
    """One line, no traceback."""
    (tmp_path / "x.toml").write_text("[agent")
    assert edge_agg("check", tmp_path / "x.toml").exit_code == 3
    assert edge_agg("run", tmp_path / "x.toml").exit_code == 3


def test_wrong_usage_exits_2(tmp_path: Path) -> None:
    """A file that is not there is wrong usage."""
    assert edge_agg("run", tmp_path / "none.toml").exit_code == 2


def test_a_missing_source_exits_4(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: no file matches: said with the pattern; nothing was sent."""
    done = drain(write_config(tmp_path))
    assert done.exit_code == 4
    assert "no file matches" in done.stderr
    assert collector.requests == []


def test_a_locked_journal_exits_5(tmp_path: Path) -> None:
    """Guarantee: a second agent on one folder goes away."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config = write_config(tmp_path)
    held = Journal.open(tmp_path / "state", "node", now=MONDAY)
    done = drain(config)
    held.close()
    assert (done.exit_code, done.stderr) == (5, "edge-agg: another agent runs on this folder\n")


def test_status_without_a_journal_exits_5(tmp_path: Path) -> None:
    """Nothing has run here yet; looking does not create it."""
    assert edge_agg("status", write_config(tmp_path)).exit_code == 5
    assert not (tmp_path / "state").exists()


def test_a_collector_that_is_down_exits_6(tmp_path: Path) -> None:
    """Guarantee: over real gRPC to a port where nobody listens: after the patience, 6, and the releases wait."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config = write_config(tmp_path, port=1)
    url = 'url = "127.0.0.1:1"'
    config.write_text(config.read_text().replace(url, f"{url}\nretry_first_s = 0.05\nretry_limit_s = 0.1"))
    command = [sys.executable, "-m", "edge_agg", "run", str(config), "--drain", "--patience", "0.3", "--log", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    *events, last = done.stderr.splitlines()
    assert last == "the collector did not take everything; nothing is lost, run again"
    names = [json.loads(line)["event"] for line in events]
    assert names[0] == "agent_started"
    assert names.count("window_sealed") == 4
    assert "send_failed" in names
    assert names[-1] == "agent_stopped"


def test_a_release_that_is_refused_for_good_exits_7(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: a supervisor hears that a person must look."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    collector.refuse[2] = "plan_mismatch"
    config = write_config(tmp_path)
    done = drain(config)
    assert (done.exit_code, done.stderr) == (7, "1 releases were refused for good; see `edge-agg status`\n")
    assert "refused for good: seq 2, window 2013-01-14: plan_mismatch" in edge_agg("status", config).output


def test_check_says_the_composed_loss_and_the_errors(tmp_path: Path) -> None:
    """Guarantee: what is promised for a window, a person and a year, before anything is spent."""
    done = edge_agg("check", write_config(tmp_path, small_plan_text(epsilon=0.5)), "--sites", 3)
    said = " ".join(done.output.split())
    assert done.exit_code == 0
    for words in ("one u, one window, one site", "53 windows (365 days)", "over 3 sites", "whose rows are hidden"):
        assert words in said
    assert "epsilon 0.500 at delta 1e-06" in said
    assert not (tmp_path / "state").exists()
    (tmp_path / "plan.toml").write_text(small_plan_text())
    assert edge_agg("check", tmp_path / "plan.toml").exit_code == 0


def test_status_after_a_drain(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: windows, queue and budget in words; no unit id, no value, no key."""
    rows = [Row(u="SECRET-UNIT", x=7_777_777.0, k="a"), Row(u="SECRET-UNIT", k="no-such-key")]
    write_events(tmp_path / "events" / "a.parquet", rows)
    config = write_config(tmp_path, epsilon=4.0)
    assert drain(config).exit_code == 0
    done = edge_agg("status", config)
    said = " ".join(done.output.split())
    assert done.exit_code == 0
    for words in (
        "node not running",
        "small v1",
        "2013-02-04 00:00",
        "0 releases wait",
        "more weekly releases of small",
    ):
        assert words in said
    for secret in ("SECRET", "7777777", "7,777,777", "no-such-key"):
        assert secret not in done.output + done.stderr


HEAVY = ["polars", "pyarrow", "opendp", "grpc", "numpy", "rich", "apsw", "msgspec", "google.protobuf", "edge_agg.agent"]
HELP = """
import contextlib, io, sys
from edge_agg.__main__ import cli
for words in (["--help"], ["run", "--help"], ["check", "-h"], ["status", "--help"]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            cli(words, prog_name="edge-agg")
        except SystemExit as end:
            assert end.code == 0, end.code
    assert "Exit codes" in out.getvalue()
print(sorted(set(sys.argv[1:]) & set(sys.modules)))
"""


def test_help_imports_nothing_heavy() -> None:
    """Guarantee: asking for help costs an import of click and no more."""
    done = subprocess.run([sys.executable, "-c", HELP, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
