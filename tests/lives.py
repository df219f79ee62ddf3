"""A process that imports once and forks a child for each life, and the lives that a test asks of it.

A test cannot fork itself: other tests have started threads in its process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Lives:
    """The process that forks children, one a line of its standard input."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def live(self, home: Path, **task: Any) -> str:
        """One life in a folder; how it ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"home": str(home), **task}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        """End the process."""
        end(self._process)


def end(process: subprocess.Popen[str]) -> None:
    """End a process that runs until its standard input ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait(30)
    process.stdout.close()
