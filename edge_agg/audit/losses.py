"""What a release's mechanisms lost, recomputed from what it says of them, by the same maps.

Place: asked by `chain.py` for each release.
Invariants: nothing that the release states as a loss is used, only compared; the sum is formed here anew.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from edge_agg.audit.charges import amount
from edge_agg.contract.release import Charge, Mechanism
from edge_agg.contract.v1 import release_pb2 as pb
from edge_agg.privacy import noise
from edge_agg.privacy.measurement import touched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.privacy.measurement import Measurement

_MECHANISM = {Mechanism.GAUSSIAN: pb.MECHANISM_GAUSSIAN, Mechanism.LAPLACE: pb.MECHANISM_LAPLACE}
_MOST = 2**62


def loss_problems(header: pb.ReleaseHeader, measurement: Measurement) -> Iterator[str]:
    """Say in what a release's mechanisms are not those of its plan, or do not lose what is stated and charged."""
    dues = {f"vector {spec.name}": spec.sensitivity for spec in measurement.specs}
    made: dict[str, pb.VectorSpec | pb.Selection] = {f"vector {spec.name}": spec for spec in header.vectors}
    if measurement.selection is not None:
        dues[f"selection of {measurement.selection.partition}"] = measurement.selection.sensitivity
    if header.HasField("selection"):
        made[f"selection of {header.selection.partition}"] = header.selection
    if list(made) != list(dues):
        yield "has other vectors than its plan's"
        return
    for name, spec in made.items():
        if problem := _unlike(spec, measurement, dues[name]):
            yield f"{name}: {problem}"
            return
    yield from _sums(header, made, measurement)


def _sums(
    header: pb.ReleaseHeader, made: dict[str, pb.VectorSpec | pb.Selection], measurement: Measurement
) -> Iterator[str]:
    mechanism = Mechanism(measurement.plan.budget.mechanism)
    spent = delta = Fraction(0)
    for name, spec in made.items():
        loss = noise.loss_of(mechanism, scale=spec.scale, sensitivity=spec.sensitivity)
        spent += Fraction(loss)
        if spec.loss != loss:
            yield f"{name}: states a loss of {spec.loss:g}, the mechanism's map says {loss:g}"
    if header.HasField("selection"):
        keys, scale, threshold = touched(measurement.plan), header.selection.scale, header.selection.threshold
        lost = noise.delta_of(mechanism, scale=scale, cells=keys, threshold=threshold)
        delta = Fraction(lost)
        if header.selection.delta != lost:
            yield f"states a delta of {header.selection.delta:g} for its keys, the mechanism's map says {lost:g}"
    if mechanism is Mechanism.LAPLACE:
        spent = noise.rho_of_pure(math.nextafter(float(spent), math.inf))
    due = Charge.rounded_up(rho=spent, delta=delta)
    if due != measurement.charge:
        yield f"its mechanisms lose {amount(due)}, one draw of its plan costs {amount(measurement.charge)}"


def _unlike(spec: pb.VectorSpec | pb.Selection, measurement: Measurement, due: float) -> str | None:
    """Why a mechanism's map is not worth asking."""
    if spec.mechanism != _MECHANISM[Mechanism(measurement.plan.budget.mechanism)]:
        return "was made by another mechanism than its plan's"
    if not (0 < spec.scale < math.inf and 0 < spec.sensitivity < math.inf):
        return "names a scale or a distance that none could be"
    if spec.sensitivity < due:
        return f"takes one unit to move it by {spec.sensitivity:g}, its plan lets it move by {due:g}"
    if isinstance(spec, pb.Selection) and not 0 <= spec.threshold < _MOST:
        return "names a threshold that none could be"
    return None
