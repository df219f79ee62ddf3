"""The demo's processes: a collector on loopback, and one agent for each site, as their operators would start them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.flights.events import SITES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import date

PLAN = Path(__file__).parent / "plans" / "flight_delays.toml"

COLLECTOR = """\
[collector]
listen = "127.0.0.1:{port}"
data = "collector"

[[plan]]
path = "plans/flight_delays.toml"
nodes = {nodes}
"""

AGENT = """\
[agent]
name = "{site}"
state = "state/{site}"

[collector]
url = "127.0.0.1:{port}"

[[account]]
name = "aircraft"
privacy_unit = "tailnum"
epsilon = 20.0
delta = 1e-5
horizon = "365d"

[history]
start = {start}
end = {end}

[[source]]
kind = "file"
path = "events/{site}/*.parquet"

[[plan]]
path = "plans/flight_delays.toml"
account = "aircraft"
"""


def lay_out(home: Path, *, port: int, start: date, end: date, uplink_port: int | None = None) -> list[Path]:
    """Write the plan and the configs of a collector and three agents into a folder.

    Args:
        home: the demo's folder.
        port: where the collector listens.
        start: the first day of the history.
        end: the first day after it.
        uplink_port: where the agents send to, if something stands between them and the collector.

    Returns:
        The agents' config files, one a site.
    """
    (home / "plans").mkdir(parents=True, exist_ok=True)
    shutil.copy(PLAN, home / "plans" / PLAN.name)
    nodes = json.dumps([site.lower() for site in SITES])
    (home / "collector.toml").write_text(COLLECTOR.format(port=port, nodes=nodes))
    agents = []
    for site in SITES:
        agents.append(home / f"{site.lower()}.toml")
        text = AGENT.format(site=site, port=uplink_port or port, start=start, end=end)
        agents[-1].write_text(text.replace(f'name = "{site}"', f'name = "{site.lower()}"'))
    return agents


@contextmanager
def collector(config: Path) -> Iterator[str]:
    """Serve while the block runs; yields the address it listens on. Its log is `collector.log` beside the config."""
    with (config.parent / "collector.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloud_collector", "serve", str(config)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if "listening on" not in line:
                raise SystemExit(f"the collector did not start; see {log.name}")
            yield line.rsplit(maxsplit=1)[-1]
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


def run_agents(agents: list[Path], follow: Callable[[str, dict[str, Any]], None]) -> None:
    """Run every agent to the end of its events, side by side; `follow(name, event)` hears what each one logs."""
    processes = [_start(config) for config in agents]
    threads = [
        threading.Thread(target=_listen, args=(config, process, follow))
        for config, process in zip(agents, processes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [config.stem for config, process in zip(agents, processes, strict=True) if process.wait() != 0]
    if failed:
        raise SystemExit(f"agents that failed: {', '.join(failed)}; their logs are beside their configs")


def _start(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edge_agg", "run", str(config), "--drain", "--log", "json"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _listen(config: Path, process: subprocess.Popen[str], follow: Callable[[str, dict[str, Any]], None]) -> None:
    assert process.stderr is not None
    with config.with_suffix(".log").open("a") as log, process.stderr:
        for line in process.stderr:
            log.write(line)
            if line.startswith("{"):
                follow(config.stem, json.loads(line))
