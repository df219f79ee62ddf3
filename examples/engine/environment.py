"""Set up the engine's own environment, `.tools/engine`, from its pinned, hash-locked requirements.

`python examples/engine/environment.py`; needs Python 3.11 and nothing else. An environment that was made from the same
requirements is left alone. The engine has one of its own because its client insists on pandas, which nothing here does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).parents[2] / ".tools" / "engine"
PYTHON = HOME / "bin" / "python"


def main() -> None:
    """Make a virtual environment and install what is pinned, and nothing else."""
    wanted, stamp = Path(__file__).with_name("requirements.txt"), HOME / "installed.txt"
    if stamp.exists() and stamp.read_bytes() == wanted.read_bytes():
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(HOME)], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    subprocess.run([str(PYTHON), *install, "-r", str(wanted)], check=True)
    stamp.write_bytes(wanted.read_bytes())


if __name__ == "__main__":
    main()
