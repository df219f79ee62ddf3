"""Where a run takes place: the machine, the packages, and how busy it is with other work.

Place: beside `run.py`, which stores it with each result; the page reads it from there.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("polars", "duckdb", "pyarrow", "numpy", "opendp")


def surroundings() -> dict[str, Any]:
    """The fields of a result that say where and when it was made."""
    return {
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "load": os.getloadavg()[0],
    }


def machine() -> str:
    """Processor, memory, system and Python."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = next((line.partition(":")[2].strip() for line in cpu.splitlines() if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"
