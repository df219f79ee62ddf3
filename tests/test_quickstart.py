"""The quickstart, as its README tells it: from a file of events to an estimate, by the commands that stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

HOME = Path(__file__).parents[1] / "examples" / "quickstart"
FAR = 70
"""Noise of this scale is farther from the truth once in ten million times."""


def commands() -> list[str]:
    """What a reader types once they are in the folder, without what it says about it."""
    (block,) = re.findall(r"```sh\n(.*?)```", (HOME / "README.md").read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for line in block.splitlines()]
    return lines[lines.index("cd examples/quickstart") + 1 :]


def truth() -> dict[str, int]:
    """What the plan keeps of the file: each visitor in one shop, three times at most."""
    events = pl.read_ndjson(HOME / "events.ndjson")
    kept = events.group_by("visitor", "shop").len().with_columns(pl.col("len").clip(upper_bound=3))
    assert kept.height == events["visitor"].n_unique()
    return dict(kept.group_by("shop").agg(pl.col("len").sum()).rows())


@pytest.mark.slow
def test_the_quickstart_ends_with_an_estimate(tmp_path: Path) -> None:
    """Every command is done, and each shop's estimate lies near what the plan keeps of its visits.

    Mutant: the history is the week before, and every estimate is noise around 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = shutil.copytree(HOME, tmp_path / "quickstart", ignore=shutil.ignore_patterns("state", "data"))
    for path in [*home.glob("*.toml"), home / "ask.py"]:
        path.write_text(path.read_text().replace("127.0.0.1:8815", f"127.0.0.1:{port}"))
    script = "\n".join(["set -e", "trap 'kill %1; wait' EXIT", *commands()])
    bin_first = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    there = {**os.environ, "PATH": bin_first, "PYTHONPATH": str(HOME.parents[1])}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(["bash", "-c", script], cwd=home, env=there, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, err
    found = re.findall(r"│ (\w+) +┆ (-?[\d.]+) ┆ (-?[\d.]+) ┆ (-?[\d.]+) +┆ 1 +┆ 1 +┆ complete", out)
    exact = truth()
    assert [shop for shop, *_ in found] == ["harbour", "market", "station"]
    assert all(abs(float(value) - exact[shop]) < FAR for shop, value, _, _ in found)
    assert all(float(lo) < float(value) < float(hi) for _, value, lo, hi in found)


def test_the_quickstart_says_how_many_lines_there_are() -> None:
    """The README's figure is the file's."""
    lines = len((HOME / "events.ndjson").read_text().splitlines())
    assert f"{lines} lines" in (HOME / "README.md").read_text()
