"""Rules of the privacy room broken on purpose, each at one seam; the audit must catch every one.

Place: applied by the tests with monkeypatch, never anywhere else.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from edge_agg.contract.vectors import plan_vectors
from edge_agg.privacy import aggregate, measurement, noise
from edge_agg.privacy.bound import Bounding
from edge_agg.privacy.permutation import Permutation

if TYPE_CHECKING:
    import pytest

NO_BOUND = 10**6


def less_noise(patch: pytest.MonkeyPatch, factor: float) -> None:
    """The noise is drawn at a smaller scale than was calibrated."""
    honest = noise.draw
    patch.setattr(noise, "draw", lambda mechanism, scale, exact: honest(mechanism, scale / factor, exact))


def bounds_of(patch: pytest.MonkeyPatch, **changed: int) -> None:
    """Bounding keeps to other bounds than the plan's; a change is added to the plan's own, or stands in place of it."""
    honest = Bounding.__init__

    def loose(self: Bounding, **options: Any) -> None:
        wrong = {name: NO_BOUND if by == NO_BOUND else options[name] + by for name, by in changed.items()}
        honest(self, **{**options, **wrong})

    patch.setattr(Bounding, "__init__", loose)


def released_at_or_above(patch: pytest.MonkeyPatch) -> None:
    """A key is released where its noisy units are no less than the threshold, but delta is that of strictly above."""
    honest = noise.threshold_of

    def lower(*args: Any, **options: Any) -> tuple[int, float]:
        threshold, delta = honest(*args, **options)
        return threshold - 1, delta

    patch.setattr(noise, "threshold_of", lower)


def no_threshold(patch: pytest.MonkeyPatch) -> None:
    """Every key is released whose noisy units are more than one."""
    patch.setattr(noise, "threshold_of", lambda *_, **options: (1, options["delta"]))


def charged_once_released_twice(patch: pytest.MonkeyPatch) -> None:
    """Each vector is made as if it were the plan's only one: what stands in two is released twice and paid for once."""
    honest = measurement._spec

    def whole(plan: Any, vector: Any, mechanism: Any, share: Any) -> Any:
        return honest(plan, vector, mechanism, share * len(plan_vectors(plan)))

    patch.setattr(measurement, "_spec", whole)


def clipped_after_the_sum(patch: pytest.MonkeyPatch) -> None:
    """Units' totals are added up as they are, and the sum is clipped."""
    honest = measurement.Measurement._aggregate

    def late(self: Any, vector: Any, bounded: Any, cell: Any, n_rows: int) -> Any:
        if vector.of != "totals":
            return honest(self, vector, bounded, cell, n_rows)
        total = aggregate.sum_values(cell[bounded.first], bounded.totals[vector.name][bounded.first], n_rows)
        return total.clip(-(2**40), 2**40)

    patch.setattr(measurement.Measurement, "_aggregate", late)


def periods_without_end(patch: pytest.MonkeyPatch) -> None:
    """A unit counts in every window of a period, however many it has used up."""
    patch.setattr("edge_agg.journal.journal.spent_units", lambda *_, **__: [])


def units_by_16_bits(patch: pytest.MonkeyPatch) -> None:
    """A unit is its id's checksum of 16 bits, and nobody looks at the id again."""
    honest = Bounding.add

    def short(self: Bounding, rows: Any) -> None:
        checksums = [zlib.crc32(text.encode()) & 0xFFFF for text in rows.unit.to_pylist()]
        honest(self, replace(rows, unit=pa.array(checksums, pa.int64())))

    patch.setattr(Bounding, "add", short)


def first_cells(patch: pytest.MonkeyPatch) -> None:
    """Of each unit the cells with the least codes are kept."""
    patch.setattr(Permutation, "place", lambda self, cell, key: cell.astype(np.uint32))
    patch.setattr(Permutation, "cell", lambda self, place, key: place)
