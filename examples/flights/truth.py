"""The exact bounded values behind a demo's releases. Only a demo may show them: they never leave a real device.

They are found the way the agent finds them, with the salts out of the agent's own journal, and without the noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from edge_agg.config import FileTable, load, span_of
from edge_agg.contract.cells import keys
from edge_agg.contract.plan import plan_hash
from edge_agg.ingest.file import FileSource
from edge_agg.journal import Journal
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.rows import read_events
from edge_agg.series import window_salt
from edge_agg.window import Span, split

if TYPE_CHECKING:
    from datetime import datetime

    from edge_agg.privacy.bound import Bounding


def bounded_truth(config_path: Path) -> pl.DataFrame:
    """The exact vectors of an agent's first plan: node, start, the partition columns, one int64 column a vector."""
    config, (plan, *_) = load(config_path)
    measurement, plan_id = compile_plan(plan), plan_hash(plan)
    journal = Journal.read(Path(config.agent.state), config.agent.name)
    start, end = span_of(config.history)
    span = Span(start=start, end=end)
    windows: dict[datetime, Bounding] = {}
    for source in config.source:
        assert isinstance(source, FileTable), "the demo reads files"
        for frame in FileSource(source.path).frames(plan.events.columns):
            events = read_events(plan, measurement.vectors, frame.batch)
            parts = split(events.time_us, every=plan.every, closed_before=None, span=span)
            for start, index in parts.windows.items():
                if start not in windows:
                    windows[start] = measurement.bounding(window_salt(journal.secret, plan_id, start))
                windows[start].add(events.take(index))
    journal.close()
    names = [partition.column for partition in plan.partition]
    cells = pl.DataFrame(list(keys(plan)), schema=names, orient="row")
    return pl.concat(
        cells.with_columns(pl.lit(config.agent.name).alias("node"), pl.lit(start).alias("start")).with_columns(
            pl.Series(name, vector) for name, vector in measurement.exact(bounding.kept()).items()
        )
        for start, bounding in sorted(windows.items())
    )
