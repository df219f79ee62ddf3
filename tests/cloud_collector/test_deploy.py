"""What an operator installs says what the collector does: systemd unit, container file, rights of its files.

Not proved here: that systemd, or a builder of containers, accepts them. (The analyzer of systemd 252 was asked by hand:
`verify` had nothing to say, `security` an exposure of 1.4.)
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from cloud_collector.__main__ import cli
from cloud_collector.config import CONNECTIONS
from cloud_collector.config.tables import LimitsTable
from cloud_collector.errors import ConfigInvalid, StoreFailed, StoreUnavailable
from cloud_collector.listener import GRACE_S
from cloud_collector.notify import Notifier
from cloud_collector.supervisor import DRAIN_S
from cloud_collector.turnstile import MAX_CALLS
from tests.cloud_collector.front import PLAN_TEXT
from tests.edge_agg.test_deploy import HARDENED, seconds, settings
from tests.hostile.test_hostile_wire import MOST_RSS_MB

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "cloud-collector.service").read_text()
CONTAINER = (DEPLOY / "collector.Containerfile").read_text()


WORKERS = 2
"""What the unit says that its memory is for."""
SEALER_BYTES = int(MOST_RSS_MB * 1e6)
IDLE_BYTES = 165_000_000
"""What the process that looks after them needs."""


def bytes_of(size: str) -> int:
    """A size as systemd writes it."""
    return int(size[:-1]) << {"M": 20, "G": 30}[size[-1]]


def worker_bytes(largest: int) -> int:
    """What a worker may need: its ceiling under attack, and beside it as many largest messages as it takes calls."""
    return int(MOST_RSS_MB * 1e6) + MAX_CALLS * largest


def check_unit(text: str, largest: int = LimitsTable().max_message_bytes) -> None:
    unit = settings(text)
    assert {name: unit[name][-1] for name in HARDENED if unit[name]} == HARDENED
    assert (unit["Type"], unit["Restart"], unit["StartLimitIntervalSec"]) == (["notify"], ["always"], ["0"])
    ends = {str(error.exit_code) for error in (ConfigInvalid, StoreFailed)}
    assert set(unit["RestartPreventExitStatus"][0].split()) == ends
    assert str(StoreUnavailable.exit_code) not in ends, "who boots before their server is tried again"
    assert seconds(*unit["TimeoutStopSec"]) > 2 * DRAIN_S + GRACE_S
    assert 10 <= seconds(*unit["WatchdogSec"]) <= 300
    assert (unit["StateDirectory"], unit["StateDirectoryMode"]) == (["cloud-collector"], ["0700"])
    needed = WORKERS * worker_bytes(largest) + SEALER_BYTES + IDLE_BYTES
    high, most = (bytes_of(unit[name][0]) for name in ("MemoryHigh", "MemoryMax"))
    assert most > high >= needed, "each worker attacked, and full of largest messages; above the first all are slowed"
    assert int(unit["LimitNOFILE"][0]) > 2 * CONNECTIONS
    words = unit["ExecStart"][0].split()
    assert words[0].endswith("/cloud-collector")
    assert words[1] in cli.commands


def test_the_unit_says_what_the_collector_does() -> None:
    """Guarantee: readiness, watchdog, restarts but after the exits that need a person, a drain's time, hardening."""
    check_unit(UNIT)


@pytest.mark.parametrize(
    ("line", "mutant"),
    [
        ("NoNewPrivileges=yes", "NoNewPrivileges=no"),
        ("Type=notify", "Type=simple"),
        ("RestartPreventExitStatus=3 5", "RestartPreventExitStatus=3"),
        ("RestartPreventExitStatus=3 5", "RestartPreventExitStatus=3 5 6"),
        ("TimeoutStopSec=90", "TimeoutStopSec=30"),
        ("MemoryMax=3G", "MemoryMax=2G"),
        ("MemoryHigh=2560M", "MemoryHigh=2G"),
        ("StateDirectoryMode=0700", "StateDirectoryMode=0750"),
        ("LimitNOFILE=16384", "LimitNOFILE=1024"),
        ("cloud-collector serve", "cloud-collector run"),
        ("LimitCORE=0", "LimitCORE=infinity"),
    ],
)
def test_a_careless_unit_is_caught(line: str, mutant: str) -> None:
    """Mutants: each rule broken on purpose."""
    assert line in UNIT
    with pytest.raises(AssertionError):
        check_unit(UNIT.replace(line, mutant))


NEEDED = {"os.nice": {"getpriority", "setpriority"}}
"""Of what the code asks for that a service may be refused: the system calls behind it."""


def asked_for() -> set[str]:
    """The names of `os` in NEEDED's kind that our code calls: priorities and limits of the process itself."""
    kinds = re.compile(r"\b(?:os\.(?:nice|setpriority|sched_set\w+|set[a-z]*[gu]id)|resource\.\w*rlimit)\b")
    room = DEPLOY.parent / "cloud_collector"
    return {name for file in room.rglob("*.py") for name in kinds.findall(file.read_text())}


def members(name: str) -> set[str]:
    """The system calls of a set of systemd's; of a call, itself."""
    if not name.startswith("@"):
        return {name}
    said = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    words = [line.strip() for line in said.stdout.splitlines()[1:] if not line.strip().startswith("#")]
    return set().union(*(members(word) for word in words if word))


def allowed(text: str) -> set[str]:
    """What a unit's filter lets through: the first line says of which kind it is, later ones add and take away."""
    calls: set[str] = set()
    for value in settings(text)["SystemCallFilter"]:
        named = set().union(*(members(word) for word in value.removeprefix("~").split()))
        calls = calls - named if value.startswith("~") else calls | named
    return calls


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd's own sets are wanted")
def test_the_unit_lets_the_code_do_what_it_does() -> None:
    """Guarantee: what the code asks of the kernel that filters commonly forbid is let through by the unit's.

    Mutant: the unit without the line of its own for the sealer's priority.
    """
    assert asked_for() == set(NEEDED), "say which system calls that takes"
    needed = set().union(*NEEDED.values())
    assert needed <= allowed(UNIT)
    assert not allowed(UNIT) & {"sched_setscheduler", "setrlimit", "setuid", "chroot", "reboot"}
    assert not needed <= allowed(UNIT.replace("SystemCallFilter=setpriority nice\n", ""))


def test_the_unit_has_room_for_the_largest_messages() -> None:
    """Guarantee: the default `max_message_bytes`, taken as often as there are calls, fits what the unit allows.

    Mutant: 16 MiB, of which 64 are a gigabyte.
    """
    assert f"`workers = {WORKERS}`" in UNIT
    with pytest.raises(AssertionError):
        check_unit(UNIT, 16 * 2**20)


def test_the_container_keeps_its_state_outside() -> None:
    """Guarantee: not root, a volume for what is kept, SIGTERM, the unit's command, a health check; nothing unpinned."""
    words = defaultdict(list)
    for line in CONTAINER.splitlines():
        if re.match(r"[A-Z]+ ", line):
            word, _, rest = line.partition(" ")
            words[word].append(rest)
    assert words["USER"] == ["cloud-collector"]
    assert words["VOLUME"] == ['["/var/lib/cloud-collector"]']
    assert words["STOPSIGNAL"] == ["SIGTERM"]
    assert words["CMD"][-1] == '["serve", "/etc/cloud-collector/collector.toml"]'
    assert "/ready" in CONTAINER
    assert all(re.search(r":\d", image) for image in words["FROM"])
    assert "--require-hashes" in CONTAINER


def test_nothing_that_is_kept_ever_ages() -> None:
    """Guarantee: what boot puts in order is its owner's alone, and nothing has an age to be removed at."""
    text = (DEPLOY / "cloud-collector.tmpfiles.conf").read_text()
    rules = [line.split() for line in text.splitlines() if line[:1].isalpha()]
    assert {path: mode for _, path, mode, *_ in rules}["/var/lib/cloud-collector"] == "0700"
    assert {kind for kind, *_ in rules} <= {"d", "z"}
    assert all(rule[5:] == ["-"] for rule in rules)


def heard(ear: socket.socket, wanted: str, within_s: float = 60.0) -> str:
    """The first that is heard of it."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        said = ear.recv(4096).decode()
        if wanted in said:
            return said
    raise AssertionError(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_supervisor_hears_of_it(tmp_path: Path, workers: int) -> None:
    """Guarantee: ready with the address, then signs of life, then the drain; of one process, whatever it started."""
    (tmp_path / "flights.toml").write_text(PLAN_TEXT)
    config = tmp_path / "collector.toml"
    entry = '[[plan]]\npath = "flights.toml"\nnodes = ["jfk"]\n'
    config.write_text(f'[collector]\nlisten = "127.0.0.1:0"\nworkers = {workers}\n{entry}')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "ear"))
        ear.settimeout(60)
        process = subprocess.Popen(
            [sys.executable, "-m", "cloud_collector", "serve", str(config)],
            env={
                "NOTIFY_SOCKET": str(tmp_path / "ear"),
                "WATCHDOG_USEC": "900000",
                "PYTHONPATH": str(DEPLOY.parent),
                "HOME": str(tmp_path),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert "STATUS=listening on 127.0.0.1:" in heard(ear, "READY=1")
            heard(ear, "WATCHDOG=1", 5)
            process.send_signal(signal.SIGTERM)
            heard(ear, "STOPPING=1")
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize("address", ["", "relative", "@", "/nowhere/at/all"])
def test_a_supervisor_that_does_not_listen_is_nobody(address: str) -> None:
    """Guarantee: nothing that is said can fail; and what was said to this process is not passed on."""
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "junk", "WATCHDOG_PID": "1"}
    notifier = Notifier.from_environment(environment)
    assert (environment, notifier.watchdog_s) == ({}, None)
    notifier.ready("127.0.0.1:1")
