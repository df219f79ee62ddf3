"""How far two inputs lie apart before noise: what the grey box measures.

Place: drives decoding, reading, bounding and aggregation as a window does, over a plan that asks every kind of metric.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from edge_agg.contract.cells import n_cells
from edge_agg.contract.plan import parse_plan
from edge_agg.ingest.decode import decode
from edge_agg.privacy import measurement
from edge_agg.privacy.aggregate import Sensitivity, units_sensitivity
from edge_agg.privacy.measurement import Measurement, compile_plan, sensitivity_of, units_of_keys
from edge_agg.privacy.rows import read_events
from tests.privacy.audit.strange import Raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from edge_agg.privacy.bound import Bounded, Bounding

    Int64s = npt.NDArray[np.int64]

SALT = b"a salt for tests"
MAX_PARTITIONS, MAX_ROWS = 2, 3
CLIPPED = 'column = "x"\nlower = -2.0\nupper = 5.0\nresolution = 0.5'
BINNED = 'column = "x"\nlower = 0.0\nupper = 1.0\nbins = 58\nquantiles = [0.5]'
KINDS = [
    'kind = "count"',
    'kind = "distinct_units"',
    f'kind = "sum"\n{CLIPPED}',
    f'kind = "sum"\nclip = "unit"\n{CLIPPED}',
    f'kind = "mean"\n{CLIPPED}',
    f'kind = "variance"\n{CLIPPED}',
    'kind = "histogram"\ncolumn = "x"\nedges = [-1.0, 0.0, 2.5, 1e6]',
    f'kind = "quantiles"\n{BINNED}',
]
PUBLIC = '[[partition]]\ncolumn = "k"\nvalues = ["a", "b", "", "é"]\nother = true'
DISCOVERED = '[[partition]]\ncolumn = "k"\ndiscover = { delta = 1e-7, max_bytes = 3 }'
WEEKDAYS = '[[partition]]\ncolumn = "t"\ncalendar = "weekday"\ntimezone = "Europe/Paris"'
HOURS = '[[partition]]\ncolumn = "t"\ncalendar = "hour"'
DERIVED = """
[[derive]]
column = "size"
from = "x"
buckets = [0, 3]
[[filter]]
column = "x"
at_most = 1e30
[[partition]]
column = "size"
values = ["..0", "0..3"]
other = true
"""
KEYS = {
    "public": PUBLIC,
    "products": f"{PUBLIC}\n{WEEKDAYS}\n{HOURS}",
    "derived and products": f"{PUBLIC}\n{DERIVED}",
    "discovered": DISCOVERED,
    "discovered and weekday": f"{DISCOVERED}\n{WEEKDAYS}",
}


@cache
def compiled(
    keys: str, *, unit: str = "string", value: str = "float", event: bool = False, only: str | None = None
) -> Measurement:
    """A plan of every kind of metric, or of one."""
    kinds = KINDS if only is None else [only]
    metrics = "\n".join(f'[[metric]]\nname = "m{i}"\n{kind}' for i, kind in enumerate(kinds))
    bounds = (1, 1) if event else (MAX_PARTITIONS, MAX_ROWS)
    return compile_plan(
        parse_plan(f"""
[plan]
name = "p"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "{unit}", k = "string", x = "{value}" }}
[privacy_unit]
{"event = true" if event else 'column = "u"'}
[bounds]
max_partitions = {bounds[0]}
max_rows_per_partition = {bounds[1]}
[window]
every = "1d"
{KEYS[keys]}
{metrics}
[budget]
mechanism = "laplace"
epsilon = 1.0
""")
    )


def batches(rows: Sequence[Raw], cut: int) -> Iterator[pa.RecordBatch]:
    """The rows in batches of so many, as a file brings them."""
    fields = {name: pa.array([getattr(row, name) for row in rows], pa.string()) for name in Raw._fields}
    raw = pa.RecordBatch.from_pydict(fields)
    for start in range(0, len(rows), cut):
        yield raw.slice(start, cut)


def bounded_state(compiled_: Measurement, rows: Sequence[Raw], cut: int, salt: bytes = SALT) -> Bounding:
    """A window's state after rows that came in such batches."""
    state = compiled_.bounding(salt)
    for batch in batches(rows, cut):
        typed, _ = decode(batch, compiled_.plan.events.columns)
        state.add(read_events(compiled_.plan, compiled_.vectors, typed).rows)
    return state


def exact(compiled_: Measurement, bounded: Bounded, keys: Sequence[str]) -> dict[str, Int64s]:
    """The exact vectors over these keys, all of them passing; a key that nobody has counts zero."""
    if compiled_.selection is None:
        return compiled_.exact(bounded)
    vectors = compiled_.exact(bounded, np.arange(len(bounded.keys), dtype=np.int64))
    vectors["selection"] = units_of_keys(bounded)
    place = [keys.index(key) for key in bounded.keys]
    out = {}
    for name, vector in vectors.items():
        shape = (1 if name == "selection" else n_cells(compiled_.plan), *vector.shape[1:])
        out[name] = np.zeros((len(keys), *shape), np.int64)
        out[name][place] = vector.reshape(len(place), *shape)
    return out


def declared(compiled_: Measurement) -> dict[str, Sensitivity]:
    """What the room says of each vector, and of the selection of keys."""
    says = {vector.name: sensitivity_of(compiled_.plan, vector) for vector in compiled_.vectors}
    if compiled_.selection is not None:
        says["selection"] = units_sensitivity(measurement.touched(compiled_.plan))
    return says


def moved(
    compiled_: Measurement, less: Sequence[Raw], more: Sequence[Raw], cuts: tuple[int, int], salt: bytes = SALT
) -> dict[str, Int64s]:
    """How far each value of each vector moves between two inputs."""
    one = bounded_state(compiled_, less, cuts[0], salt).kept()
    other = bounded_state(compiled_, more, cuts[1], salt).kept()
    keys = sorted({*one.keys, *other.keys})
    before, after = exact(compiled_, one, keys), exact(compiled_, other, keys)
    return {name: np.abs(after[name] - before[name]) for name in before}


def overruns(compiled_: Measurement, moves: dict[str, Int64s]) -> list[str]:
    """The vectors that moved farther than declared, in one value, in the sum, or in the root of squares."""
    too_far = []
    for name, says in declared(compiled_).items():
        by = moves[name].astype(object).ravel()
        if by.size and (
            by.max() > says.linf or by.sum() > says.l1 or (by * by).sum() > says.cells * says.levels * says.linf**2
        ):
            too_far.append(name)
    return too_far
