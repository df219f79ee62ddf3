"""Jupyter over what the demo left behind: serves its store on loopback for as long as the notebook is open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from examples.flights.demo import HOME
from examples.flights.site import collector

NOTEBOOK = Path("notebooks/quickstart.ipynb")


def main() -> None:
    """Open the notebook; `make notebook` runs it."""
    config = HOME / "collector.toml"
    if not config.exists():
        raise SystemExit("no demo has run here yet: make demo")
    with collector(config) as address:
        print(f"the demo's store answers at {address}")
        command = [sys.executable, "-m", "jupyterlab", str(NOTEBOOK)]
        if os.geteuid() == 0:  # in a container; Jupyter wants to be told that this is meant
            command.append("--allow-root")
        subprocess.run(command, env=os.environ | {"COLLECTOR": address}, check=False)


if __name__ == "__main__":
    main()
