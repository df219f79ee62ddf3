"""The memory ceiling under load (A12), on a real process over a real socket."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from benchmarks.agent.live import as_stream, ask, post, resident_mb, running
from benchmarks.agent.question import events

LIMIT_MB = 256
UNITS = 50_000


def load(more: str, pushes: int) -> tuple[list[int], list[float], int, int]:
    """Push ever new units; statuses, resident memory after each, rows answered as safe, and rows it says it took."""
    statuses: list[int] = []
    resident: list[float] = []
    with running(more=more) as (process, port, home):
        for i in range(pushes):
            table = events(UNITS, UNITS, begin=datetime.now(UTC), seed=i)
            names = [f"round-{i}-{name}" for name in table.column("unit").to_pylist()]
            statuses.append(post(port, as_stream(table.set_column(1, "unit", [names]))))
            resident.append(resident_mb(process.pid))
        taken = int(ask(home)["rows"])
    return statuses, resident, statuses.count(200) * UNITS, taken


@pytest.mark.slow
def test_over_its_limit_the_agent_refuses_and_does_not_grow() -> None:
    """Guarantee: more people in a window than the limit has room for are refused with 429; memory stays below it.

    Mutant: without the limit the same load takes more memory than it allows.
    """
    statuses, resident, safe, taken = load(f'[memory]\nlimit = "{LIMIT_MB}MiB"', 30)
    assert set(statuses) == {200, 429}
    assert statuses[-1] == 429
    assert max(resident) <= LIMIT_MB
    assert safe == taken
    statuses, resident, _, _ = load('[memory]\nlimit = "8GiB"', 30)
    assert set(statuses) == {200}
    assert max(resident) > LIMIT_MB


BATCHES = """
import resource, sys
import numpy as np
import pyarrow as pa
from edge_agg.ceilings import give_back, resident_bytes, settle_heap
if sys.argv[1] == "settled":
    settle_heap()
def batch():
    arrays = [np.ones(1 << 17) for _ in range(8)]
    return len(arrays), pa.concat_arrays([pa.array(arrays[0])] * 2).nbytes
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    batch()
faults, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident_bytes()
give_back()
print(faults, held - resident_bytes())
"""


@pytest.mark.slow
def test_batches_use_the_same_pages_again_until_a_closing() -> None:
    """Guarantee: in a settled heap a batch takes over most of the last one's pages, and `give_back` returns them.

    Mutant: in a heap as it comes each batch faults its pages in anew.
    """

    def batches(heap: str) -> list[int]:
        said = subprocess.run([sys.executable, "-c", BATCHES, heap], capture_output=True, text=True, check=True)
        return [int(one) for one in said.stdout.split()]

    faults, returned = batches("settled")
    assert returned > 4 << 20
    assert batches("as it comes")[0] > 5 * faults
