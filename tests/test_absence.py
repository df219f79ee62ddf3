"""Typed absence, end to end: real agents as processes, a real collector, and what its two faces say of each.

What these tests prove: a veto, an empty account, a kill and a silence are each told as what they are, and what comes
after all takes the place of its absence. What they do not prove: each rule by itself; tests/cloud_collector has those.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from click.testing import CliRunner

import cloud_collector
from cloud_collector.__main__ import cli
from tests.fakes import COUNT, Row, small_plan_text, write_config, write_events
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cloud_collector.client import Client

ROOT = Path(__file__).parents[1]
PLAN = small_plan_text(COUNT, every="2s", lateness="0s", epsilon=0.5)
AGENTS = ("free", "strict", "poor", "tardy")
SAID = ("released", "late", "lost", "vetoed", "offline", "exhausted")


class Agent:
    """An agent in a process of its own, on a folder of its own."""

    def __init__(self, home: Path, name: str, *, port: int, epsilon: float, policy: str | None = None) -> None:
        self.folder = home / name
        self.folder.mkdir()
        write_events(self.folder / "events" / "one.parquet", [Row(u="u")])
        self.config = write_config(self.folder, PLAN, history=None, epsilon=epsilon, port=port)
        text = self.config.read_text().replace('name = "node"', f'name = "{name}"')
        if policy is not None:
            (self.folder / "policy.toml").write_text(policy)
            text = text.replace('state = "state"', 'state = "state"\npolicy = "policy.toml"')
        self.config.write_text(text)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, port: int | None = None) -> None:
        """Run it, with another collector's port if there is one."""
        if port is not None:
            text = self.config.read_text()
            self.config.write_text(text.replace('url = "127.0.0.1:1"', f'url = "127.0.0.1:{port}"'))
        command = [sys.executable, "-m", "edge_agg", "run", str(self.config), "--log", "none"]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def end(self, number: int) -> None:
        """Send a signal and wait."""
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(30)
            self.process = None


@contextlib.contextmanager
def collector(home: Path) -> Iterator[str]:
    """A collector in a process of its own; its address."""
    (home / "plan.toml").write_text(PLAN)
    nodes = json.dumps(list(AGENTS))
    (home / "collector.toml").write_text(
        '[collector]\nlisten = "127.0.0.1:0"\ndata = "data"\nseal_every = "1s"\n[fleet]\ngrace = "3s"\n'
        f'[[plan]]\npath = "plan.toml"\nnodes = {nodes}\n'
    )
    command = [sys.executable, "-m", "cloud_collector", "serve", str(home / "collector.toml")]
    log = (home / "collector.log").open("w")
    with log, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(30)
        assert ended == 0


def asked(client: Client) -> dict[str, dict[str, Any]]:
    """What a notebook is told of each agent, up to now."""
    now = int(datetime.now(UTC).timestamp())
    frame = client.coverage("small", end=datetime.fromtimestamp(now - now % 2, UTC))
    assert (frame["windows_expected"] == frame.select(pl.sum_horizontal(*SAID, "expired")).to_series()).all()
    nothing = {name: dict.fromkeys(SAID, 0) for name in AGENTS}  # before anything has landed
    return nothing | frame.rows_by_key("node", named=True, unique=True)


@pytest.mark.slow
def test_each_absence_is_told_as_what_it_is(tmp_path: Path) -> None:
    """A veto, an empty account, a killed agent and one that comes back: by notebook and by `cloud-collector fleet`."""
    with collector(tmp_path) as address, contextlib.ExitStack() as stack:
        port = int(address.rpartition(":")[2])
        client = stack.enter_context(cloud_collector.connect(address))
        free = Agent(tmp_path, "free", port=port, epsilon=50.0)
        strict = Agent(tmp_path, "strict", port=port, epsilon=50.0, policy="[plans]\nallowed = []")
        poor = Agent(tmp_path, "poor", port=port, epsilon=1.0)
        tardy = Agent(tmp_path, "tardy", port=1, epsilon=50.0)
        for one in (free, strict, poor, tardy):
            stack.callback(one.end, signal.SIGKILL)
            one.start()
        wait_until(lambda: asked(client)["free"]["released"] and asked(client)["poor"]["exhausted"])
        wait_until(lambda: asked(client)["strict"]["vetoed"])
        wait_until(lambda: asked(client)["tardy"]["offline"])  # overdue, and never heard of
        wait_until(lambda: asked(client)["free"]["offline"] == 0)  # a window may come late, but it comes
        found = asked(client)
        assert found["strict"]["released"] == found["free"]["vetoed"] == 0
        assert found["poor"]["released"] > 0
        assert found["tardy"]["last_heard"] is None

        free.end(signal.SIGKILL)
        silent = datetime.now(UTC)
        wait_until(lambda: asked(client)["free"]["offline"] >= 2)
        assert asked(client)["free"]["last_heard"] <= silent
        whole = client.estimate("small", "n", end=client.coverage("small")["end"][0]).row(0, named=True)
        assert whole["absent"]["vetoed"] > 0
        assert whole["absent"]["exhausted"] > 0
        assert whole["windows_reporting"] + sum(whole["absent"].values()) == whole["windows_expected"]

        check = CliRunner().invoke(cli, ["fleet", "--check", "--config", str(tmp_path / "collector.toml")])
        assert check.exit_code == 4, check.output
        said = json.loads(
            CliRunner().invoke(cli, ["fleet", "--json", "--config", str(tmp_path / "collector.toml")]).output
        )
        worst = {one["agent"]: one["windows"] for one in said["worst"]}
        assert set(worst) == set(AGENTS)
        assert worst["tardy"]["offline"] > 0
        assert worst["strict"]["vetoed"] > 0
        assert worst["poor"]["exhausted"] > 0

        before = asked(client)["tardy"]
        tardy.end(signal.SIGTERM)
        tardy.start(port=port)  # its releases have waited, longer than the grace
        wait_until(lambda: asked(client)["tardy"]["released"] >= before["offline"])
        wait_until(lambda: asked(client)["tardy"]["last_heard"] is not None)  # written down after its releases
