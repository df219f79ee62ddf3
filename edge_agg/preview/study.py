"""What a plan's bounds take away from a sample: clipping, rows in a cell, cells of a unit, windows of a period, keys.

Place: between `sample.py`, which adds the rows up, and `choice.py` and `page.py`, which compare.
Invariants: the bounds are put on one after another, so the parts of the bias add up to all of it; the truth is the same
rows by the same path, with bounds that nothing reaches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from edge_agg.contract.plan import MAX_CELLS, Mean, Quantiles, Sum, Variance
from edge_agg.errors import SourceUnreadable
from edge_agg.preview.sample import Kept, Sample, keep, read_sample
from edge_agg.privacy.predict import chances_to_show, values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_agg.contract.plan import Metric, Plan
    from edge_agg.privacy.measurement import Measurement
    from edge_agg.privacy.predict import Floats, Truth

_MAX_ROWS = 2**20
_FINE_BINS = 256
"""In which a quantile's truth is read: edges at the sample's own quantiles, and right behind them for equal values."""
_LARGEST = 2**62
"""No sum of the truth may reach this: a value so large that it could is clipped even there."""
_FARTHEST = 2**33
"""Grid steps from 0 that a row's value may lie, as in the finest plan there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A sample under a plan's bounds, and without them."""

    plan: Plan
    sample: Sample
    far: Plan
    """The plan with bounds that nothing reaches."""
    true: Kept
    """What those leave: everything."""
    loose: Kept
    """Values clipped, nothing else bounded."""
    kept: Kept
    """Under all bounds of the plan."""
    steps: Mapping[str, Mapping[str, float]]
    """By bound, in the order they are put on, what every metric comes to; `truth` stands first."""
    suppressed: float
    """Where keys are discovered, the share of kept rows whose key will not be released at one site."""

    @property
    def truth(self) -> Mapping[str, float]:
        """Every metric, of an average cell, with no bounds at all."""
        return self.steps["truth"]

    @property
    def bounded(self) -> Mapping[str, float]:
        """The same under the plan's bounds: what the noise is added to."""
        return list(self.steps.values())[-1]

    def cell(self) -> Truth:
        """What an average cell holds under the plan's bounds."""
        return average(self.kept, self.loose.places)

    def true_values(self, copies: int) -> Mapping[str, float]:
        """Every metric with no bounds at all, over so many average cells."""
        whole = average(self.true, self.loose.places)
        return values(self.far, {name: total * copies for name, total in whole.items()})

    @property
    def cells(self) -> float:
        """How many cells of a window hold a row, on average."""
        return self.loose.places / len(self.sample.windows)


def study(measurement: Measurement, batches: Sequence[pa.RecordBatch], rejected: int = 0) -> Study:
    """Put a plan's bounds on a sample, one after another.

    Raises:
        SourceUnreadable: no row of the sample has a unit, a time and a cell.
    """
    plan = measurement.plan
    sample = read_sample(plan, batches, rejected)
    if sample.rows == 0:
        raise SourceUnreadable("no row of the sample has a unit, a time and a cell")
    far = _unclipped(plan, batches)
    true = keep(measurement, far, read_sample(far, batches))
    loose = keep(measurement, unbounded(plan), sample)
    bounds = plan.bounds
    few_rows = keep(measurement, rebound(plan, partitions=MAX_CELLS, rows=bounds.max_rows_per_partition), sample)
    few_cells = keep(
        measurement, rebound(plan, partitions=bounds.max_partitions, rows=bounds.max_rows_per_partition), sample
    )
    steps = {
        "truth": (far, true),
        "clipping": (plan, loose),
        "rows in a cell": (plan, few_rows),
        "cells of a unit": (plan, few_cells),
    }
    kept = few_cells
    if bounds.max_windows is not None:
        kept = keep(measurement, plan, sample)
        steps["windows of a period"] = (plan, kept)
    gone = 0.0
    if measurement.selection is not None and kept.rows:
        shown = chances_to_show(measurement.selection, kept.units_of_keys)
        gone = float(((1 - shown) * kept.rows_of_keys).sum() / kept.rows)
    return Study(
        plan=plan,
        sample=sample,
        far=far,
        true=true,
        loose=loose,
        kept=kept,
        steps={name: values(of, average(what, loose.places)) for name, (of, what) in steps.items()},
        suppressed=gone,
    )


def average(kept: Kept, places: int) -> Truth:
    """What is kept, shared out evenly over so many cells."""
    return {name: total / max(1, places) for name, total in kept.truth.items()}


def rebound(plan: Plan, *, partitions: int, rows: int) -> Plan:
    """The plan under other bounds, and without one on the windows of a period."""
    bounds = msgspec.structs.replace(
        plan.bounds, max_partitions=partitions, max_rows_per_partition=rows, max_windows=None, period=None
    )
    return msgspec.structs.replace(plan, bounds=bounds)


def unbounded(plan: Plan) -> Plan:
    """The plan with bounds on a unit's rows that nothing reaches."""
    return rebound(plan, partitions=MAX_CELLS, rows=_MAX_ROWS)


def _unclipped(plan: Plan, batches: Sequence[pa.RecordBatch]) -> Plan:
    """The plan without bounds on rows or values: clips that hold every value of the sample, fine bins for quantiles."""
    metrics = [_wide(metric, batches) for metric in plan.metric]
    return msgspec.structs.replace(unbounded(plan), metric=metrics)


def numbers_of(column: str, batches: Sequence[pa.RecordBatch]) -> Floats:
    """The finite numbers that a column holds."""
    held = pa.chunked_array([batch.column(column) for batch in batches]).cast(pa.float64(), safe=False)
    numbers = np.asarray(pc.drop_null(held))
    return np.asarray(numbers[np.isfinite(numbers)], dtype=np.float64)


def _wide(metric: Metric, batches: Sequence[pa.RecordBatch]) -> Metric:
    if not isinstance(metric, Sum | Mean | Variance | Quantiles):
        return metric
    numbers = numbers_of(metric.column, batches)
    if not len(numbers):
        return metric
    if isinstance(metric, Quantiles):
        at = np.quantile(numbers, np.linspace(0, 1, _FINE_BINS + 1), method="lower")
        edges = np.unique(np.concatenate([at, np.nextafter(at, np.inf)])).tolist()
        return msgspec.structs.replace(metric, edges=edges, lower=None, upper=None, bins=None, spacing=None)
    farthest = _LARGEST // (len(numbers) + 1)
    if isinstance(metric, Sum) and metric.clip == "unit":
        least, most = -farthest, farthest
    else:
        farthest = min(_FARTHEST, math.isqrt(farthest) if isinstance(metric, Variance) else farthest)
        least, most = (math.floor(end / metric.resolution) for end in (numbers.min(), numbers.max()))
    lower, upper = metric.grid
    lower, upper = min(lower, int(max(least, -farthest))), max(upper, int(min(most + 1, farthest)))
    return msgspec.structs.replace(metric, lower=lower * metric.resolution, upper=upper * metric.resolution)
