"""Where several processes keep their figures for one page: said before the library that keeps them is imported."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The library's own name for the folder; processes that are started later inherit it."""


def share(folder: Path) -> None:
    """Have this process and those it starts keep their figures in a folder, without those of an earlier run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink()
    os.environ[FOLDER_VARIABLE] = str(folder)
