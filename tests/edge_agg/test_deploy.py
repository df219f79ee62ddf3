"""What an operator installs says what the program does: the systemd unit, the container file, the rights of its files.

Not proved here: that systemd, or a builder of containers, accepts them; neither is to be had in a test. (The
analyzer of systemd 252 was asked by hand: `verify` had nothing to say, `security` an exposure of 1.1.)
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from edge_agg.__main__ import EXIT_CONFIG, EXIT_FULL, EXIT_JOURNAL, cli
from edge_agg.config import AgentTable, bytes_of
from edge_agg.config.tables import MemoryTable

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "edge-agg.service").read_text()
_CONFIG = ["status", "/etc/edge-agg/agent.toml"]
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "ProtectClock": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectControlGroups": "yes",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
    "LimitCORE": "0",
}
"""A core dump would hold raw events, so there is none."""


def settings(text: str) -> dict[str, list[str]]:
    """A unit's settings, as systemd reads them: a line each, of one or several values."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        if line and line[0] not in "#;[":
            name, separator, value = line.partition("=")
            assert separator, line
            assert re.fullmatch(r"[A-Za-z]+", name), line
            found[name].append(value)
    return found


def seconds(text: str) -> int:
    assert text.isdigit(), "a plain number is seconds"
    return int(text)


def check_unit(text: str) -> None:
    unit = settings(text)
    assert {name: unit[name][-1] for name in HARDENED if unit[name]} == HARDENED
    assert unit["Type"] == ["notify"]
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert 10 <= seconds(*unit["WatchdogSec"]) <= 300
    assert set(unit["RestartPreventExitStatus"][0].split()) == {str(EXIT_CONFIG), str(EXIT_JOURNAL)}
    assert seconds(*unit["TimeoutStopSec"]) > AgentTable(name="a", state="s").stop_s + 10
    assert (unit["StateDirectory"], unit["StateDirectoryMode"]) == (["edge-agg"], ["0700"])
    limit, most = bytes_of(MemoryTable().limit), int(unit["MemoryMax"][0].removesuffix("M")) << 20
    assert limit < most <= 2 * limit, "the agent stops taking events in before the kernel ends it"
    words = unit["ExecStart"][0].split()
    assert words[0].endswith("/edge-agg")
    assert words[1] in cli.commands
    assert "HUP" in unit["ExecReload"][0]


def test_the_unit_says_what_the_agent_does() -> None:
    """Guarantee: readiness, watchdog, restarts for ever but after the exits that need a person, limits, hardening."""
    check_unit(UNIT)


@pytest.mark.parametrize(
    ("line", "mutant"),
    [
        ("NoNewPrivileges=yes", "NoNewPrivileges=no"),
        ("CapabilityBoundingSet=\n", "CapabilityBoundingSet=CAP_NET_ADMIN\n"),
        ("StartLimitIntervalSec=0", "StartLimitIntervalSec=10"),
        ("RestartPreventExitStatus=3 5", "RestartPreventExitStatus=3"),
        ("RestartPreventExitStatus=3 5", f"RestartPreventExitStatus=3 5 {EXIT_FULL}"),
        ("TimeoutStopSec=30", "TimeoutStopSec=10"),
        ("MemoryMax=1280M", "MemoryMax=1024M"),
        ("StateDirectoryMode=0700", "StateDirectoryMode=0750"),
        ("edge-agg run", "edge-agg runs"),
        ("LimitCORE=0", "LimitCORE=infinity"),
    ],
)
def test_a_careless_unit_is_caught(line: str, mutant: str) -> None:
    """Mutants: each rule broken on purpose."""
    assert line in UNIT
    with pytest.raises(AssertionError):
        check_unit(UNIT.replace(line, mutant))


def test_the_container_keeps_its_state_outside() -> None:
    """Guarantee: not root, a volume for the journal, SIGTERM, the same command as the unit's; nothing unpinned."""
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    words = defaultdict(list)
    for line in lines:
        if re.match(r"[A-Z]+ ", line):
            word, _, rest = line.partition(" ")
            words[word].append(rest)
    assert words["USER"] == ["edge-agg"]
    assert words["VOLUME"] == ['["/var/lib/edge-agg"]']
    assert words["STOPSIGNAL"] == ["SIGTERM"]
    assert words["CMD"][-1] == '["run", "/etc/edge-agg/agent.toml", "--log", "json"]'
    assert all(re.search(r":\d", image) for image in words["FROM"])
    assert any("--require-hashes" in line for line in lines)
    (_, asked) = (line for line in lines if "HEALTHCHECK" in line or '"status"' in line)
    assert json.loads(asked.strip().removeprefix("CMD "))[1:] == [*_CONFIG, "--json", "--check"], (
        "a hung one is not well"
    )


def test_what_is_typed_is_complete() -> None:
    """Guarantee: the commands in the heads bring what a config names, and write the certificate where it is renewed.

    Mutants: the config's file alone; a certificate in the folder that one happens to be in.
    """
    for text in (UNIT, (DEPLOY / "Containerfile").read_text()):
        head = " ".join(line.strip("# \\") for line in text.splitlines() if line.startswith("#"))
        enrolling = re.search(r"enroll \S+ (.*?/identity)", head)
        assert enrolling
        known = {name for option in cli.commands["enroll"].params for name in option.opts}
        assert set(re.findall(r"--\S+", enrolling[1])) <= known
        assert enrolling[1].endswith("--out /var/lib/edge-agg/identity")
        assert ":/etc/edge-agg:ro" in head or "plans root.pem /etc/edge-agg/" in head


def test_no_ledger_ever_ages() -> None:
    """Guarantee: of what boot puts in order the state is its owner's alone, and nothing has an age to be removed at."""
    rules = [
        line.split() for line in (DEPLOY / "edge-agg.tmpfiles.conf").read_text().splitlines() if line[:1].isalpha()
    ]
    modes = {path: mode for _, path, mode, *_ in rules}
    assert modes["/var/lib/edge-agg"] == "0700"
    assert {kind for kind, *_ in rules} <= {"d", "z", "Z"}
    assert all(rule[5:] in ([], ["-"]) for rule in rules)
