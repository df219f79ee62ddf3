"""Every sample config under examples/sources is one that the agent takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agg.clock import SystemClock
from edge_agg.config import load
from edge_agg.ingest.kinds import source_of

SAMPLES = sorted((Path(__file__).parents[3] / "examples" / "sources").glob("*.toml"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_builds_its_source(path: Path) -> None:
    """It parses, its plan is there, and its source is of the kind that the file is named after."""
    config, plans = load(path)
    assert plans
    for table in config.source:
        assert source_of(table, clock=SystemClock()).name.startswith(f"{path.stem}:")


def test_there_are_samples() -> None:
    """A pattern that matches nothing would make the test above pass for ever."""
    assert {path.stem for path in SAMPLES} >= {"http", "stdin"}
