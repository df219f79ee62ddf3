"""A measurement: a plan compiled into bound, aggregate, noise, and what it costs.

Place: compiled once when the agent starts; then, for each window, `bounding` takes rows, and `release` aggregates what
was kept and adds the noise, after the ledger has been charged `charge`.
Invariants: a plan compiles to the same scales whatever the data; the charge is the sum of the mechanisms' own maps; of
discovered keys only those above the threshold leave `release`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from edge_agg.contract.arrow import Keys
from edge_agg.contract.cells import n_cells
from edge_agg.contract.release import Charge, KeySpec, Mechanism, VectorSpec
from edge_agg.contract.vectors import Vector, max_keys, plan_vectors, readings_of, totals_of
from edge_agg.errors import PlanRefused
from edge_agg.privacy import noise
from edge_agg.privacy.aggregate import (
    Sensitivity,
    bins_sensitivity,
    count_bins,
    count_rows,
    count_units,
    rows_sensitivity,
    squares_sensitivity,
    sum_sensitivity,
    sum_values,
    totals_sensitivity,
    units_sensitivity,
)
from edge_agg.privacy.bound import Bounded, Bounding

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from edge_agg.contract.plan import Plan

    Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """What may leave the device: noisy columns, and the keys that passed."""

    columns: dict[str, Int64s]
    """int64[n_rows] by payload column, in the payload's order."""
    keys: Keys | None
    """Where keys are discovered: row `i * n_cells + c` is cell c of key i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A compiled plan; build it with :func:`compile_plan`."""

    plan: Plan
    vectors: tuple[Vector, ...]
    specs: tuple[VectorSpec, ...]
    """How each vector is made, in the same order."""
    selection: KeySpec | None
    """How keys are selected, if the plan discovers any."""
    charge: Charge
    """What one draw costs one unit: add it to the ledger before drawing."""

    def bounding(self, salt: bytes) -> Bounding:
        """An empty window under this plan's bounds."""
        bounds = self.plan.bounds
        return Bounding(
            max_partitions=bounds.max_partitions,
            max_rows=bounds.max_rows_per_partition,
            n_cells=n_cells(self.plan),
            readings={name: reading.size for name, reading in readings_of(self.vectors).items()},
            totals=list(totals_of(self.vectors)),
            discover=self.selection is not None,
            salt=salt,
        )

    def release(self, parts: Iterable[Bounded]) -> Noisy:
        """Select keys where they are discovered, aggregate, and add fresh noise: once for each charge.

        Args:
            parts: what was kept, cut between units.

        Guarantee: `charge.rho`-zCDP, approximate with `charge.delta`, under add/remove of all rows of one privacy unit
        in this window at this agent. Given the keys that passed, the vectors have a public shape, so their noise
        composes with the selection's.
        """
        if self.selection is None:
            return Noisy(columns=self.draw(self._added_up(parts)), keys=None)
        held = list(parts)
        found = self._select(self.selection, held)
        keys = Keys(self.selection.partition, [held[0].keys[i] for i in found])
        return Noisy(columns=self.draw(self._added_up(held, found)), keys=keys)

    def _added_up(self, parts: Iterable[Bounded], found: Int64s | None = None) -> dict[str, Int64s]:
        """The exact vectors of all parts together: each unit lies in one part, and vectors add."""
        whole: dict[str, Int64s] = {}
        for part in parts:
            for name, vector in self.exact(part, found).items():
                whole[name] = whole[name] + vector if name in whole else vector
        return whole

    def exact(self, bounded: Bounded, found: Int64s | None = None) -> dict[str, Int64s]:
        """The exact vectors by name: int64[n_rows], and int64[n_rows, nodes] for bins. They never leave the device.

        Args:
            bounded: what was kept.
            found: where keys are discovered, indices into `bounded.keys` of those that passed, in the payload's order.
        """
        cells = n_cells(self.plan)
        if found is None:
            return {vector.name: self._aggregate(vector, bounded, bounded.cell, cells) for vector in self.vectors}
        assert bounded.key is not None, "keys were found"
        place = np.full(len(bounded.keys), -1, dtype=np.int64)
        place[found] = np.arange(len(found))
        at = place.take(bounded.key)
        rows = np.flatnonzero(at >= 0)
        kept, n_rows = bounded.take(rows), len(found) * cells
        cell = at.take(rows) * cells + kept.cell
        return {vector.name: self._aggregate(vector, kept, cell, n_rows) for vector in self.vectors}

    def draw(self, exact: dict[str, Int64s]) -> dict[str, Int64s]:
        """Fresh noise on every vector, as payload columns."""
        columns: dict[str, Int64s] = {}
        for vector, spec in zip(self.vectors, self.specs, strict=True):
            noisy = noise.draw(spec.mechanism, spec.scale, exact[vector.name])
            columns |= zip(vector.columns, noisy.T if noisy.ndim > 1 else [noisy], strict=True)
        return columns

    def _select(self, spec: KeySpec, parts: Sequence[Bounded]) -> Int64s:
        """The keys whose noisy distinct units are strictly above the threshold, ascending by text.

        A key that bounding left without a unit takes no part: one unit can have any number of those, and delta pays for
        no more than it keeps.
        """
        texts = parts[0].keys
        units = np.zeros(len(texts), np.int64)
        for part in parts:
            units += units_of_keys(part)
        held: Int64s = np.flatnonzero(units)
        noisy = noise.draw(spec.mechanism, spec.scale, units[held])
        passed = np.flatnonzero(noisy > spec.threshold).tolist()
        # More than a release can hold: the largest noisy ones, then by text, which is as public as they are.
        passed.sort(key=lambda i: (-noisy[i], texts[int(held[i])]))
        found = held[passed[: max_keys(self.plan)]].tolist()
        return np.array(sorted(found, key=lambda i: texts[i]), dtype=np.int64)

    def _aggregate(self, vector: Vector, bounded: Bounded, cell: Int64s, n_rows: int) -> Int64s:
        if vector.of == "units":
            return count_units(cell, bounded.first, n_rows)
        if vector.of == "totals":
            assert vector.clip is not None, "a total has a grid"
            totals = np.clip(bounded.totals[vector.name][bounded.first], vector.clip.lower, vector.clip.upper)
            return sum_values(cell[bounded.first], totals, n_rows)
        if vector.reading is None:
            return count_rows(cell, n_rows)
        names = {reading: name for name, reading in readings_of(self.vectors).items()}
        code = bounded.readings[names[vector.reading]]
        if code.max(initial=0) >= vector.reading.size:
            valid = np.flatnonzero(code < vector.reading.size)
            cell, code = cell.take(valid), code.take(valid)
        match vector:
            case Vector(of="rows"):
                return count_rows(cell, n_rows)
            case Vector(of="bins", tree=tree) if tree is not None:
                return count_bins(cell, code, n_rows, tree)
            case Vector(of="values" | "squares" as of, clip=clip) if clip is not None:
                values = code + (clip.lower - clip.centre)
                return sum_values(cell, values if of == "values" else values * values, n_rows)
        raise AssertionError("no other vector is read row by row")


def units_of_keys(bounded: Bounded) -> Int64s:
    """Distinct units of each discovered key, int64[n_keys]: a unit counts once for a key, in however many cells."""
    assert bounded.key is not None, "the plan discovers keys"
    if not bounded.cell.any():  # one cell: a unit has one first row under each of its keys
        return count_units(bounded.key, bounded.first, len(bounded.keys))
    n_keys = max(1, len(bounded.keys))
    # A unit's rows lie together, so its number in that order tells it apart.
    number = np.zeros(len(bounded.unit), dtype=np.int64)
    np.cumsum(bounded.unit[1:] != bounded.unit[:-1], out=number[1:] if len(number) else None)
    pairs = (number * n_keys + bounded.key)[bounded.first]
    pairs.sort()
    distinct = pairs[np.flatnonzero(np.diff(pairs, prepend=-1))]
    return np.bincount(distinct % n_keys, minlength=len(bounded.keys)).astype(np.int64)[: len(bounded.keys)]


def compile_plan(plan: Plan) -> Measurement:
    """Calibrate a plan.

    The window's loss is split over the vectors, and the selection of keys, by weight: rho under Gaussian noise, epsilon
    under Laplace noise. The delta of discovery is a part of a Gaussian plan's delta.

    Raises:
        PlanRefused: no noise scale, or no threshold, fits the budget.
    """
    vectors, mechanism = plan_vectors(plan), Mechanism(plan.budget.mechanism)
    discover = plan.discovered.discover if plan.discovered is not None else None
    # What discovery leaves of delta, rounded down: the conversion of rho has no more than that.
    kept = plan.budget.delta if discover is None else math.nextafter(plan.budget.delta - discover.delta, 0.0)
    loss = (
        noise.rho_within(plan.budget.epsilon, kept)
        if mechanism is Mechanism.GAUSSIAN
        else Fraction(plan.budget.epsilon)
    )
    weights = sum((Fraction(vector.weight) for vector in vectors), Fraction(0))
    weights += Fraction(0 if discover is None else discover.weight)
    specs = tuple(_spec(plan, vector, mechanism, loss * Fraction(vector.weight) / weights) for vector in vectors)
    selection = None if discover is None else _selection(plan, mechanism, loss * Fraction(discover.weight) / weights)
    spent = sum((Fraction(spec.loss) for spec in specs), Fraction(0))
    spent += 0 if selection is None else Fraction(selection.loss)
    rho = spent if mechanism is Mechanism.GAUSSIAN else noise.rho_of_pure(math.nextafter(float(spent), math.inf))
    lost = Fraction(0) if selection is None else Fraction(selection.delta)
    charge = Charge.rounded_up(rho=rho, delta=lost)
    return Measurement(plan=plan, vectors=vectors, specs=specs, selection=selection, charge=charge)


def touched(plan: Plan) -> int:
    """Cells that one unit can move: its partitions, or all there are."""
    return plan.bounds.max_partitions if plan.discovered else min(plan.bounds.max_partitions, n_cells(plan))


def sensitivity_of(plan: Plan, vector: Vector) -> Sensitivity:
    """How far one unit can move this vector after bounding."""
    cells, rows = touched(plan), plan.bounds.max_rows_per_partition
    match vector.of:
        case "units":
            return units_sensitivity(cells)
        case "rows":
            return rows_sensitivity(cells, rows)
        case "bins":
            assert vector.tree is not None, "bins have a tree"
            return bins_sensitivity(cells, rows, vector.tree.height)
        case of:
            assert vector.clip is not None, "a sum has a grid"
            if of == "totals":
                return totals_sensitivity(cells, vector.clip)
            return (sum_sensitivity if of == "values" else squares_sensitivity)(cells, rows, vector.clip)


def _spec(plan: Plan, vector: Vector, mechanism: Mechanism, share: Fraction) -> VectorSpec:
    distance = _distance(sensitivity_of(plan, vector), mechanism)
    try:
        scale = noise.calibrate(mechanism, sensitivity=distance, loss=math.nextafter(float(share), 0.0))
    except ValueError as error:
        raise PlanRefused(f"vector {vector.name}: {error}") from None
    loss = noise.loss_of(mechanism, scale=scale, sensitivity=distance)
    return VectorSpec(name=vector.name, mechanism=mechanism, scale=scale, sensitivity=distance, loss=loss)


def _selection(plan: Plan, mechanism: Mechanism, share: Fraction) -> KeySpec:
    partition = plan.discovered
    assert partition is not None, "asked by the caller"
    assert partition.discover is not None, "asked by the caller"
    distance = _distance(units_sensitivity(touched(plan)), mechanism)
    try:
        scale = noise.calibrate(mechanism, sensitivity=distance, loss=math.nextafter(float(share), 0.0))
        delta = partition.discover.delta
        threshold, lost = noise.threshold_of(mechanism, scale=scale, cells=touched(plan), delta=delta)
    except ValueError as error:
        raise PlanRefused(f"partition {partition.label}: {error}") from None
    return KeySpec(
        partition=partition.label,
        mechanism=mechanism,
        scale=scale,
        sensitivity=distance,
        threshold=threshold,
        loss=noise.loss_of(mechanism, scale=scale, sensitivity=distance),
        delta=lost,
    )


def _distance(moves: Sensitivity, mechanism: Mechanism) -> float:
    return moves.l2 if mechanism is Mechanism.GAUSSIAN else float(moves.l1)
