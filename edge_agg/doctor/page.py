"""What `edge-agg doctor` shows: a line for everything that was looked at, and what to do about what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agg.doctor.bundle import write_bundle
from edge_agg.doctor.examine import examine
from edge_agg.doctor.finding import Health

if TYPE_CHECKING:
    from pathlib import Path

_COLOUR = {Health.OK: "green", Health.WARN: "yellow", Health.FAIL: "bold red"}


def doctor(path: Path, *, output: Path | None) -> bool:
    """Look at everything, print what was found, and write a support bundle where one is asked for.

    Returns:
        Whether nothing is wrong; what only deserves a look does not count.

    Raises:
        ConfigInvalid: the bundle cannot be written.
    """
    found = examine(path)
    console = Console()
    table = Table("", "looked at", "found")
    for finding in found.findings:
        colour = _COLOUR[finding.health]
        table.add_row(f"[{colour}]{finding.health}[/]", escape(finding.about), escape(finding.said))
    console.print(table)
    for finding in found.findings:
        if finding.remedy:
            colour = _COLOUR[finding.health]
            console.print(f"[{colour}]{escape(finding.about)}[/]: {escape(finding.remedy)}", highlight=False)
    if output is not None:
        write_bundle(output, found)
        console.print(f"{escape(str(output))} holds what helps from afar, and nothing of the data: look inside.")
    return all(finding.health is not Health.FAIL for finding in found.findings)
