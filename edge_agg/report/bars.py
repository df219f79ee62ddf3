"""How far a run is: three bars on standard error, which follow the telemetry.

Place: for `edge-agg run` on a terminal.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from edge_agg import telemetry
from edge_agg.telemetry import Event

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def bars() -> Iterator[None]:
    """Show how far a run is, on standard error."""
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        read = progress.add_task("parts read", total=None)
        sealed = progress.add_task("windows sealed", total=None)
        acked = progress.add_task("releases acked", total=None)

        def follow(event: Event, fields: dict[str, str | float]) -> None:
            if event is Event.PART_READ:
                progress.advance(read)
            elif event is Event.WINDOWS_DUE:
                progress.update(read, total=progress.tasks[read].completed)
                for task in (sealed, acked):
                    progress.update(task, total=(progress.tasks[task].total or 0) + int(fields["windows"]))
            elif event is Event.WINDOW_SEALED:
                progress.advance(sealed)
            elif event is Event.RELEASES_ACKED:
                progress.advance(acked, int(fields["releases"]))

        telemetry.watch(follow)
        yield
