"""The command line: what it prints, what it leaves with, and how little it loads for `--help`."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloud_collector import verify as room
from cloud_collector.lake import Lake
from cloud_collector.landing import Landing
from tests.cloud_collector.front import PLAN_TEXT, push, release
from tests.cloud_collector.typed import run

ROOT = Path(__file__).parents[2]
HEAVY = {"polars", "pyarrow", "grpc", "duckdb", "deltalake", "numpy", "apsw", "rich", "google.protobuf"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "flights.toml").write_text(PLAN_TEXT)
    path = tmp_path / "collector.toml"
    path.write_text('[collector]\nlisten = "127.0.0.1:0"\ndata = "data"\n')
    return path


def serving(config: Path) -> tuple[subprocess.Popen[str], str]:
    """A collector in a process of its own, and the one line that it prints."""
    command = [sys.executable, "-m", "cloud_collector", "serve", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["fleet", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    """`--help` is instant: it imports no engine."""
    program = (
        "import sys\n"
        "from cloud_collector.__main__ import cli\n"
        f"cli({words!r}, standalone_mode=False)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_documents_the_exit_codes() -> None:
    """Whoever scripts it finds them where they look."""
    for words in (
        [],
        ["plans"],
        ["plans", "add"],
        ["plans", "list"],
        ["serve"],
        ["fleet"],
        ["verify"],
        ["ca"],
        ["token"],
    ):
        assert "5  the store failed" in run(*words, "--help").output
    assert "8  verify: the stores differ" in run("--help").output
    assert "8  verify: the stores differ" in run("verify", "--help").output


def test_the_usual_short_words_are_understood() -> None:
    """`-h` wherever `--help` is, and `--version`, as the agent's command line has them."""
    for words in ([], ["serve"], ["ca"], ["ca", "issue"], ["plans", "add"]):
        done = run(*words, "-h")
        assert (done.exit_code, done.output) == (0, run(*words, "--help").output)
    assert run("--version").exit_code == 0


def test_stores_that_differ_have_a_code_of_their_own(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever scripts it tells a difference from a failure to look. Mutant: 1, which is anything unforeseen."""
    with contextlib.closing(Landing(config.parent / "data" / "landing.sqlite")):
        pass
    monkeypatch.setattr(Lake, "of", lambda told, *, writes: None)
    monkeypatch.setattr(room, "differences", lambda stores: iter(()))
    assert run("verify", "--config", config).output == "all fits\n"
    monkeypatch.setattr(room, "differences", lambda stores: iter(["a release of jfk is missing"]))
    done = run("verify", "--config", config)
    assert (done.exit_code, done.stdout) == (8, "a release of jfk is missing\n1 differences\n")
    monkeypatch.setattr(room, "differences", lambda stores: 1 / 0)
    assert run("verify", "--config", config).exit_code == 1


ISSUING = re.compile(r"[` ]ca (init|issue|renew|protect|revoke|list|token) +([^`\n]*)")


def test_a_printed_command_of_the_authority_names_its_folder() -> None:
    """Whoever types what `docs/identity.md` prints gets no usage error. Mutant: one without the folder is found."""

    def without(text: str) -> list[str]:
        return [one[0] for one in ISSUING.finditer(text) if not one[2].startswith("pki ") and one[2] != "pki"]

    text = (ROOT / "docs" / "identity.md").read_text()
    assert without(text) == []
    assert len(ISSUING.findall(text)) > 10
    assert without(text.replace("ca renew pki --root", "ca renew --root"))


def test_a_plan_is_added_and_listed(config: Path) -> None:
    """With the nodes that are expected; adding it again changes nothing."""
    for _ in range(2):
        added = run(
            "plans", "add", config.parent / "flights.toml", "--config", config, "--node", "jfk", "--node", "lga"
        )
        assert added.exit_code == 0, added.output
        assert added.output.startswith("registered flights version 1, ")
    listed = run("plans", "list", "--config", config)
    row = listed.output.splitlines()[1].split()
    assert row.pop(0) == "default"
    assert row[:2] == ["flights", "1"]
    assert row[2] == added.output.split()[-1]
    assert row[3] == "7d"
    assert row[4:] == ["departures,", "aircraft,", "total,", "late", "2"]


def test_an_invalid_plan_or_config_exits_3(config: Path) -> None:
    """One line that names the field; no traceback."""
    plan = config.parent / "flights.toml"
    plan.write_text(PLAN_TEXT.replace("version = 1", "version = 0"))
    for words in (["plans", "add", plan, "--config", config], ["plans", "list", "--config", plan], ["serve", plan]):
        done = run(*words)
        assert done.exit_code == 3, done.output
        assert done.stderr.startswith("error: $")
        assert len(done.stderr.splitlines()) == 1


def test_wrong_usage_exits_2(config: Path) -> None:
    """As every command line does."""
    for words in (["fleet"], ["serve"], ["plans", "list"], ["fleet", "--config", config.parent / "nothing.toml"]):
        assert run(*words).exit_code == 2


def test_a_store_that_fails_exits_5(config: Path) -> None:
    """A file that is not a landing is not taken for one, nor written over."""
    landing = config.parent / "data" / "landing.sqlite"
    landing.parent.mkdir()
    landing.write_bytes(b"this is not a database" * 100)
    for words in (["serve", config], ["fleet", "--config", config]):
        done = run(*words)
        assert done.exit_code == 5, done.output
        assert "error: " in done.stderr
    assert landing.read_bytes().startswith(b"this is not")


def test_asking_for_the_fleet_makes_no_landing(config: Path) -> None:
    """Before a collector has run there is nothing to show, and nothing is created."""
    done = run("fleet", "--config", config)
    assert done.exit_code == 3
    assert not (config.parent / "data").exists()


def test_a_collector_serves_shows_its_fleet_and_stops(config: Path) -> None:
    """One line when it is ready; the fleet is readable beside it; a fence is lifted; SIGTERM ends it with 0."""
    run("plans", "add", config.parent / "flights.toml", "--config", config)
    process, line = serving(config)
    try:
        assert line.startswith("listening on 127.0.0.1:")
        address = line.split()[-1]
        push(address, release("[red]jfk", 0), release("lga", 0), release("lga", 0, 2))
        fleet = run("fleet", "chains", "--config", config)
        assert fleet.exit_code == 0, fleet.output
        rows = [row.split() for row in fleet.output.splitlines()[1:]]
        assert [(row[1], row[-1]) for row in rows] == [("[red]jfk", "00:00Z"), ("lga", "conflict")]
        assert push(address, release("lga", 1))[0][1] == "fenced"
        assert run("fleet", "unfence", "lga", "--reason", "card swapped", "--config", config).output == "unfenced\n"
        assert (
            run("fleet", "unfence", "lga", "--reason", "card swapped", "--config", config).output
            == "no such agent is fenced\n"
        )
        assert push(address, release("lga", 1))[0][1] == ""
        for tenant, noted in (("default", False), ("other", True)):  # a tenant forgotten or mistyped fences nobody
            done = run("fleet", "fence", "lga", "--tenant", tenant, "--reason", "smoke", "--config", config)
            assert (done.stdout, "was ever taken" in done.stderr) == ("fenced\n", noted)
    finally:
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert output == ""
    assert '"event": "collector_stopped"' in errors.splitlines()[-1]
    assert list((config.parent / "data" / "lake" / "flights").glob("*/*.parquet"))  # sealed at the stop at the latest


def test_what_is_kept_is_verified_backed_up_and_restored(config: Path) -> None:
    """Beside a collector that runs; a restore needs an empty folder; the audit log tells of it."""
    run("plans", "add", config.parent / "flights.toml", "--config", config)
    process, line = serving(config)
    copy = config.parent / "copy"
    try:
        push(line.split()[-1], release("jfk", 0), release("lga", 0))
        assert run("verify", "--config", config).output == "all fits\n"
        assert run("backup", copy, "--config", config).exit_code == 0
        assert run("restore", copy, "--config", config).exit_code == 3
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    (config.parent / "data").rename(config.parent / "broken")
    assert "restored the backup" in run("restore", copy, "--config", config).output
    assert run("verify", "--config", config).output == "all fits\n"
    assert "restored" in run("fleet", "list", "--config", config).output
    fenced = run("fleet", "fence", "jfk", "--reason", "stolen", "--by", "ada", "--config", config)
    assert fenced.output == "fenced\n"
    assert "ada" in run("fleet", "list", "jfk", "--config", config).output
