"""The command line: exit codes that a supervisor can act on, one line of text, nothing of the data."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from click.testing import CliRunner

from edge_agg import telemetry
from edge_agg.__main__ import EXIT_FULL, EXIT_JOURNAL, cli
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.journal import Journal
from tests.fakes import COUNT, MEAN, MONDAY, WEEK, FakeCollector, Row, small_plan_text, write_config, write_events

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes the log over; the tests want it back."""
    monkeypatch.setattr(telemetry, "configure", lambda **_: None)
    monkeypatch.setattr(telemetry, "_watchers", [])
    monkeypatch.setenv("COLUMNS", "80")


def edge_agg(*words: object) -> Result:
    """Call the command line in this process."""
    return CliRunner().invoke(cli, [str(word) for word in words], prog_name="edge-agg")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> FakeCollector:
    """A collector in the place of gRPC; and an agent that lets go of its folder as a process does when it ends."""
    wire = FakeCollector()
    monkeypatch.setattr("edge_agg.assembly.GrpcWire", lambda *_, **__: wire)
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


@pytest.mark.parametrize(
    "command", [["check"], ["run", "--drain", "--log", "none"], ["status"], ["ledger", "verify"], ["ledger", "export"]]
)
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


DISKS: dict[str, tuple[str, Exception]] = {
    "journal, full": ("edge_agg.journal.journal.File.to_write", apsw.FullError()),
    "journal, read-only": ("edge_agg.journal.journal.File.to_write", apsw.ReadOnlyError()),
    "folder, read-only": ("edge_agg.journal.journal.FolderLock", OSError(errno.EROFS, "")),
    "spool, full": ("edge_agg.spool.spool._sync", OSError(errno.ENOSPC, "")),
    "journal, broken": ("edge_agg.journal.journal.File.to_write", apsw.CorruptError()),
    "spool, broken": ("edge_agg.spool.spool._sync", OSError(errno.EIO, "")),
}


@pytest.mark.parametrize("where", DISKS)
def test_a_disk_without_room_exits_10_and_a_broken_one_5(
    tmp_path: Path, collector: FakeCollector, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Guarantee (A10): a supervisor starts the agent again until there is room; then it does what it would have done.

    Mutant: a disk without room counts as a broken one, after which the agent is not started again.
    """
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config, (place, error) = write_config(tmp_path), DISKS[where]

    def refuse(*_: object, **__: object) -> None:
        raise error

    opened, honest = [], Journal.open

    def tracked(*args: Any, **more: Any) -> Journal:
        opened.append(honest(*args, **more))
        return opened[-1]

    with monkeypatch.context() as patch:
        patch.setattr(place, refuse)
        patch.setattr(Journal, "open", tracked)
        done = drain(config)
    for journal in opened:  # as the end of a process does
        journal.close()
    assert (done.exit_code, "no room" in done.stderr) == (
        EXIT_JOURNAL if "broken" in where else EXIT_FULL,
        "broken" not in where,
    )
    assert drain(config).exit_code == 0
    assert collector.windows == [MONDAY + i * WEEK for i in range(4)]


def test_status_without_a_journal_exits_5(tmp_path: Path) -> None:
    """Nothing has run here yet; looking does not create it."""
    assert edge_agg("status", write_config(tmp_path)).exit_code == 5
    assert not (tmp_path / "state").exists()


def test_a_clock_that_is_not_believed_exits_6(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee (A9): a drain that could do nothing does not pass for done. Mutant: it exits 0."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    journal = Journal.open(tmp_path / "state", "node", now=datetime(2190, 1, 1, tzinfo=UTC))
    journal.close()
    done = drain(write_config(tmp_path))
    assert (done.exit_code, done.stderr.count("\n")) == (6, 1)
    assert "the clock is not believed (unset): nothing was read" in done.stderr
    assert collector.windows == []


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
    """Guarantee: what is promised for a window and a year, before anything is spent."""
    done = edge_agg("check", write_config(tmp_path, small_plan_text(epsilon=0.5)), "--sites", 3)
    said = " ".join(done.output.split())
    assert done.exit_code == 0
    for words in (
        "one window, this site",
        "365 days (53 windows)",
        "3 sites",
        "learns at most epsilon 0.500 at delta 1e-06",
    ):
        assert words in said
    assert not (tmp_path / "state").exists()
    (tmp_path / "plan.toml").write_text(small_plan_text())
    assert edge_agg("check", tmp_path / "plan.toml").exit_code == 0


def test_a_what_if_is_asked_whole(tmp_path: Path) -> None:
    """Guarantee: a plan without an account, or the reverse, is wrong usage."""
    config = write_config(tmp_path)
    assert edge_agg("check", config, "--what-if", config).exit_code == 2
    assert edge_agg("check", config, "--account", "people").exit_code == 2
    assert edge_agg("preview", tmp_path / "plan0.toml", "--agent", config).exit_code == 2
    assert edge_agg("preview", tmp_path / "plan0.toml", "--agent", config, "--account", "people").exit_code == 2


@pytest.mark.slow
def test_a_preview_spends_nothing(tmp_path: Path) -> None:
    """Guarantee: errors by roll-up, and what an accuracy costs, from the plan alone."""
    config = write_config(tmp_path, small_plan_text(COUNT, MEAN), history=None)
    asked = ["--sites", 40, "--want", "n=5%", "--agent", config, "--account", "people"]
    done = edge_agg("preview", tmp_path / "plan0.toml", *asked)
    said = " ".join(done.output.split())
    assert done.exit_code == 0
    for words in (
        "standard error from noise",
        "40 sites",
        "all 3 cells",
        "4 windows",
        "Wanted: n to ± 5 %",
        "It takes epsilon",
    ):
        assert words in said
    assert "for ever" in said
    assert "NOT private" not in said
    assert not (tmp_path / "state").exists()
    assert max(map(len, done.output.splitlines())) <= 80


@pytest.mark.slow
def test_a_preview_of_a_sample_warns_that_it_is_not_private(tmp_path: Path) -> None:
    """Guarantee: the warning stands above every figure that was counted; no unit and no key of the sample is shown."""
    rows = [Row(u=f"SECRET-{i % 50}", x=float(i % 90), k="KEY-1" if i % 2 else "a") for i in range(1_000)]
    write_events(tmp_path / "sample.parquet", rows)
    (tmp_path / "plan.toml").write_text(small_plan_text(COUNT, MEAN))
    done = edge_agg("preview", tmp_path / "plan.toml", "--sample", tmp_path / "*.parquet", "--want", "n=10%")
    assert done.exit_code == 0
    before, _, after = done.output.partition("These figures are NOT private.")
    assert "1,000 rows" in after
    assert not {"rows in", "truth", "bias"} & set(before.split())
    for words in ("what clipping and bounding do", "rows of a u in a cell", "this plan", "Wanted: n"):
        assert words in " ".join(after.split())
    assert "SECRET" not in done.output
    assert "KEY-1" not in done.output
    assert max(map(len, done.output.splitlines())) <= 80


def test_a_preview_without_its_sample_exits_4(tmp_path: Path) -> None:
    """Guarantee: no figure is shown as if there had been a sample."""
    (tmp_path / "plan.toml").write_text(small_plan_text())
    done = edge_agg("preview", tmp_path / "plan.toml", "--sample", tmp_path / "*.parquet")
    assert (done.exit_code, "no file matches" in done.stderr) == (4, True)
    assert edge_agg("preview", tmp_path / "plan.toml", "--want", "x=1%").exit_code == 3


def test_a_ledger_that_follows_exits_0(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: what an agent did is recomputed, in words and for machines."""
    write_events(tmp_path / "events" / "a.parquet", [Row(u="SECRET-UNIT")])
    config = write_config(tmp_path, epsilon=40.0)
    assert drain(config).exit_code == 0
    done = edge_agg("ledger", "verify", config)
    said = " ".join(done.output.split())
    assert (done.exit_code, "SECRET" in said) == (0, False)
    for words in ("4 releases", "account people", "small v1", "lost at most epsilon", "of 40", "Everything follows"):
        assert words in said
    assert max(map(len, done.output.splitlines())) <= 80
    (account,) = (found := json.loads(edge_agg("ledger", "verify", config, "--json").output))["accounts"]
    assert (found["releases"], found["differences"]) == (4, [])
    (plan,) = account["plans"]
    assert (plan["statuses"], plan["charges"], plan["open"]) == ({"released": 4}, 4, 0)
    assert Fraction(account["charged"]["rho"]) == Fraction(plan["charged"]["rho"]) < Fraction(account["budget"]["rho"])
    assert 0 < account["heaviest_epsilon"] < 40


def test_a_ledger_that_differs_exits_8(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: a supervisor hears of it, and a person reads exactly what differs. Mutant: a charge made smaller."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    config = write_config(tmp_path)
    assert drain(config).exit_code == 0
    db = apsw.Connection(str(tmp_path / "state" / "journal.sqlite"))
    db.execute("UPDATE charge SET rho='1/1000000' WHERE rowid=2")
    db.close()
    done = edge_agg("ledger", "verify", config)
    said = " ".join(done.output.split())
    assert done.exit_code == 8
    assert "charge of window 2013-01-14 00:00" in said
    assert "is rho 1e-06 (1/1000000), its plan says rho" in said
    again = edge_agg("ledger", "verify", config, "--json")
    assert again.exit_code == 8
    assert json.loads(again.output)["differences"][0]["problem"].startswith("is rho 1e-06 (1/1000000)")


def test_the_books_are_exported(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: to a file or to standard output, JSON or CSV, with a release for each that was sent."""
    write_events(tmp_path / "events" / "a.parquet", [Row(u="SECRET-UNIT")])
    config = write_config(tmp_path)
    assert drain(config).exit_code == 0
    done = edge_agg("ledger", "export", config)
    assert done.exit_code == 0
    assert len(json.loads(done.output)["releases"]) == len(collector.releases) == 4
    assert "SECRET" not in done.output
    done = edge_agg("ledger", "export", config, "--format", "csv", "-o", tmp_path / "books.csv")
    assert (done.exit_code, done.output) == (0, "")
    assert (tmp_path / "books.csv").read_text().count("\nrelease,") == 4
    assert edge_agg("ledger", "export", config, "-o", tmp_path / "none" / "books").exit_code == 3


def test_doctor_exits_1_where_something_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: a supervisor hears of it, also where the config cannot be read, and the bundle is there to be sent."""
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("[collector]", "[colector]"))
    done = edge_agg("doctor", config, "-o", tmp_path / "support.tar.gz")
    assert (done.exit_code, (tmp_path / "support.tar.gz").exists()) == (1, True)
    assert "colector" in done.output
    monkeypatch.setattr("edge_agg.doctor.page.doctor", lambda *_, **__: True)
    assert edge_agg("doctor", config).exit_code == 0


def test_a_ledger_without_a_journal_exits_5(tmp_path: Path) -> None:
    """Nothing has run here yet, or it was another agent; looking does not create it."""
    config = write_config(tmp_path)
    assert edge_agg("ledger", "verify", config).exit_code == 5
    assert not (tmp_path / "state").exists()
    Journal.open(tmp_path / "state", "other", now=MONDAY).close()
    done = edge_agg("ledger", "verify", config)
    assert (done.exit_code, "another agent" in done.stderr) == (5, True)


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
        "its history, to 4 Feb 2013, is closed: nothing more is charged",
    ):
        assert words in said
    for secret in ("SECRET", "7777777", "7,777,777", "no-such-key"):
        assert secret not in done.output + done.stderr


HEAVY = [
    "polars",
    "pyarrow",
    "opendp",
    "grpc",
    "numpy",
    "rich",
    "apsw",
    "msgspec",
    "google.protobuf",
    "edge_agg.agent",
    "edge_agg.preview",
]
HELP = """
import contextlib, io, sys
from edge_agg.__main__ import EXIT_FULL, EXIT_JOURNAL, cli
groups = [(), *((name,) for name in cli.commands), *(("ledger", name) for name in cli.commands["ledger"].commands)]
for words in [[*group, "--help"] for group in groups]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            cli(words, prog_name="edge-agg")
        except SystemExit as end:
            assert end.code == 0, end.code
    assert "Exit codes" in out.getvalue()
print(sorted(set(sys.argv[1:]) & set(sys.modules)))
"""


def test_a_check_of_an_agent_that_does_not_answer_exits_1(
    tmp_path: Path, collector: FakeCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks after it may start it again: not running, or hung. Without `--check` it only looks.

    Mutant: the exit code of a look, which says nothing of the agent.
    """
    from edge_agg.report import state
    from edge_agg.report.live import Live

    write_events(tmp_path / "events" / "a.parquet", [Row(u="u", k="a")])
    config = write_config(tmp_path, epsilon=4.0)
    assert drain(config).exit_code == 0
    for more in ([], ["--json"]):
        assert edge_agg("status", config, *more).exit_code == 0
        assert edge_agg("status", config, *more, "--check").exit_code == 1
    monkeypatch.setattr(state, "ask", lambda _: Live(pid=1, uptime_s=1.0))
    monkeypatch.setattr(state, "holder", lambda _: 1)
    assert edge_agg("status", config, "--json", "--check").exit_code == 0


def test_help_imports_nothing_heavy() -> None:
    """Guarantee: asking for help costs an import of click and no more."""
    done = subprocess.run([sys.executable, "-c", HELP, *HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_fenced_agent_exits_6_and_says_why(tmp_path: Path, collector: FakeCollector) -> None:
    """Guarantee: nothing is drawn, and whoever started it is told whom to ask."""
    write_events(tmp_path / "events" / "a.parquet", [Row()])
    collector.standings.append(pb.SayHeadResponse(standing=pb.STANDING_FENCED))
    done = drain(write_config(tmp_path))
    assert done.exit_code == 6
    assert "the collector has fenced this agent: no more is drawn" in done.stderr
    assert collector.windows == []
