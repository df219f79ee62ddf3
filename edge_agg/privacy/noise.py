"""Noise and what it costs: the only room that knows OpenDP.

Place: step 6 of an event's way, after the ledger has been charged; and before that, when a plan is compiled.
Invariants: every loss that leaves this module is the map of an OpenDP measurement, rounded up; noise is integer noise
on int64 vectors, so there is no floating-point attack; only `draw` is random.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import opendp.mod as dp
from opendp import combinators, domains, measurements, metrics

from edge_agg.contract.release import RHO_GRID, Mechanism

if TYPE_CHECKING:
    import numpy.typing as npt

dp.enable_features("contrib")

MAX_SCALE = 2.0**50
"""A larger scale could carry a sum out of int64; a plan that needs it is refused."""


def calibrate(mechanism: Mechanism, *, sensitivity: float, loss: float) -> float:
    """The smallest scale, by OpenDP's binary search, at which the mechanism loses at most `loss`.

    Args:
        mechanism: the distribution of the noise.
        sensitivity: distance between neighbours, in grid steps (l2 for Gaussian, l1 for Laplace).
        loss: rho for Gaussian, epsilon for Laplace.

    Raises:
        ValueError: no scale up to 2**50 is large enough; the budget is too small for these bounds.
    """
    if loss_of(mechanism, scale=MAX_SCALE, sensitivity=sensitivity) > loss:
        raise ValueError("no noise scale up to 2**50 fits the budget")
    scale: float = dp.binary_search(
        lambda s: loss_of(mechanism, scale=s, sensitivity=sensitivity) <= loss, bounds=(2.0**-20, MAX_SCALE)
    )
    return scale


def loss_of(mechanism: Mechanism, *, scale: float, sensitivity: float) -> float:
    """The mechanism's own map: rho for Gaussian, epsilon for Laplace."""
    return float(_measurement(mechanism, scale).map(sensitivity))


def rho_of_pure(epsilon: float) -> Fraction:
    """The rho of a pure-epsilon mechanism, by OpenDP's conversion (epsilon**2 / 2, rounded up)."""
    pure = _measurement(Mechanism.LAPLACE, 1.0)
    converted: Any = combinators.make_pureDP_to_zCDP(pure)
    # At scale 1 the Laplace map is the identity, so the distance epsilon has the loss epsilon.
    distance = epsilon
    while pure.map(distance) < epsilon:
        distance = math.nextafter(distance, math.inf)
    return Fraction(converted.map(distance))


@lru_cache(maxsize=4096)
def epsilon_of(rho: Fraction, delta: float) -> float:
    """The epsilon that rho-zCDP implies at `delta`, by OpenDP's conversion, rounded up; 0 where nothing was lost.

    Source: `make_zCDP_to_approxDP` and `make_fix_delta`, on a Gaussian whose loss is no less than rho.
    """
    if rho == 0:
        return 0.0
    gaussian = _measurement(Mechanism.GAUSSIAN, 1.0)
    distance = math.sqrt(2 * float(rho))
    while Fraction(gaussian.map(distance)) < rho:
        distance = math.nextafter(distance, math.inf)
    fixed: Any = combinators.make_fix_delta(combinators.make_zCDP_to_approxDP(gaussian), delta)
    return float(fixed.map(distance)[0])


@cache
def rho_within(epsilon: float, delta: float) -> Fraction:
    """The largest rho, on the charge grid, whose epsilon at `delta` is at most `epsilon`.

    This is how a budget in epsilon becomes a budget in rho, once per plan and per account.
    """
    low, high = 0, math.ceil(64 * max(epsilon, 1.0)) * RHO_GRID
    while high - low > 1:
        middle = (low + high) // 2
        if epsilon_of(Fraction(middle, RHO_GRID), delta) <= epsilon:
            low = middle
        else:
            high = middle
    return Fraction(low, RHO_GRID)


def draw(mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Add fresh noise to every cell.

    Args:
        mechanism: the distribution of the noise.
        scale: in grid steps.
        exact: int64[n_cells].

    Returns:
        int64[n_cells]. Draw once: a second draw of the same vector is a second loss.

    Guarantee: `loss_of` at the vector's sensitivity, under add/remove of one privacy unit.
    Source: Canonne, Kamath, Steinke 2020 (discrete Gaussian and Laplace); OpenDP's `make_gaussian`, `make_laplace`.
    """
    return np.array(_measurement(mechanism, scale)(exact.tolist()), dtype=np.int64)


@lru_cache(maxsize=256)
def _measurement(mechanism: Mechanism, scale: float) -> Any:
    space = domains.vector_domain(domains.atom_domain(T="i64"))
    if mechanism is Mechanism.GAUSSIAN:
        return measurements.make_gaussian(space, metrics.l2_distance(T="f64"), scale)
    return measurements.make_laplace(space, metrics.l1_distance(T="f64"), scale)
