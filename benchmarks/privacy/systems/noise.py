"""Noise alone: 50,000 public cells x 2 vectors, drawn as the agent draws them; it reads no events."""

from __future__ import annotations

import numpy as np

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import DISCOVERED, Query
from benchmarks.privacy.systems.ours import plan_of
from edge_agg.privacy.measurement import compile_plan

MEASUREMENT = compile_plan(plan_of("C", "integer", public=DISCOVERED))
ZEROS = {vector.name: np.zeros(DISCOVERED, dtype=np.int64) for vector in MEASUREMENT.vectors}


def answer(query: Query, pattern: str) -> Answer:  # noqa: ARG001  # the signature of every system
    """Draw."""
    drawn = MEASUREMENT.draw(ZEROS)
    return Answer(columns={}, notes={"values": float(sum(len(vector) for vector in drawn.values()))})


if __name__ == "__main__":
    serve(answer)
