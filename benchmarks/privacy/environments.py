"""Set up each peer's own environment from its pinned, hash-locked requirements.

`python -m benchmarks.privacy.environments [PEER ...]`. An environment that was made from the same requirements is left
alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys

from benchmarks.privacy.registry import ENVIRONMENTS, PEERS, SYSTEMS

_PEERS = [system.name for system in SYSTEMS.values() if system.kind == "peer"]


def set_up(peer: str) -> None:
    """Make a virtual environment and install what is pinned, and nothing else."""
    wanted, home = PEERS / peer / "requirements.txt", ENVIRONMENTS / peer
    stamp = home / "installed.txt"
    if stamp.exists() and stamp.read_bytes() == wanted.read_bytes():
        print(f"{peer}: is set up")
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps"]
    subprocess.run([str(home / "bin" / "python"), *install, "-r", str(wanted)], check=True)
    stamp.write_bytes(wanted.read_bytes())
    print(f"{peer}: set up")


def main() -> None:
    """Set up the peers that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(_PEERS))
    for peer in parser.parse_args().peers or _PEERS:
        set_up(peer)
    if shutil.which("java") is None:
        print("tumult: needs Java 17, which is not on the path (Debian: openjdk-17-jre-headless)")


if __name__ == "__main__":
    main()
