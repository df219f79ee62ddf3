"""Noise and what it costs: the only room that knows OpenDP.

Place: step 6 of an event's way, after the ledger has been charged; and before that, when a plan is compiled.
Invariants: every loss that leaves this module is the map of an OpenDP measurement, rounded up; noise is integer noise
on int64 vectors, so there is no floating-point attack; only `draw` is random.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache, lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import opendp.mod as dp
from opendp import combinators, domains, measurements, metrics

from edge_agg.contract.release import RHO_GRID, Mechanism

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

dp.enable_features("contrib")

MAX_SCALE = 2.0**50
"""A larger scale could carry a sum out of int64; a plan that needs it is refused."""
_LEAST_SCALE = 2.0**-20
_NEAR = (2.0**-49, 2.0**-40)
"""How far, in relation to it, a scale may lie from its formula's: mostly, and where the map rounds more."""
_MAX_THRESHOLD = 2**62
_NEWTONS = 6
_LEAST_RHO = 2.0**-100
_STRIDE = 16
"""A search that begins near its end goes so much farther each time that it has not come past it."""
_CHUNK = 4_096
"""Cells that one thread draws at a time: OpenDP lets go of the GIL while it samples."""


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

    def is_enough(scale: float) -> bool:
        return loss_of(mechanism, scale=scale, sensitivity=sensitivity) <= loss

    # The formulas that the maps round say where to search; only the maps say where the search ends.
    near = sensitivity / (math.sqrt(2 * loss) if mechanism is Mechanism.GAUSSIAN else loss)
    within = [(max(near * (1 - part), _LEAST_SCALE), min(near * (1 + part), MAX_SCALE)) for part in _NEAR]
    bounds = (at for at in within if at[0] < at[1] and not is_enough(at[0]) and is_enough(at[1]))
    scale: float = dp.binary_search(is_enough, bounds=next(bounds, (_LEAST_SCALE, MAX_SCALE)))
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

    def fits(steps: int) -> bool:
        return epsilon_of(Fraction(steps, RHO_GRID), delta) <= epsilon

    high = math.ceil(64 * max(epsilon, 1.0)) * RHO_GRID
    return Fraction(_last(fits, near=int(_rho_near(epsilon, delta) * RHO_GRID), high=high), RHO_GRID)


def _last(holds: Callable[[int], bool], *, near: int, high: int) -> int:
    """The last number, from 0 to below `high`, of which something holds that holds of 0 and of all up to there.

    What is near is only where to look: the search ends where the maps say.
    """
    low, reach = min(max(near, 0), high - 1), 1
    while low > 0 and not holds(low):
        high, low, reach = low, max(low - reach, 0), reach * _STRIDE
    reach = 1
    while low + reach < high and holds(low + reach):
        low, reach = low + reach, reach * _STRIDE
    high = min(low + reach, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _rho_near(epsilon: float, delta: float) -> float:
    """About the rho whose epsilon at `delta` is this, by the formula that the conversion rounds.

    Source: Canonne, Kamath, Steinke 2020: ln(delta) is the least, over a > 1, of
    `(a - 1) * (a * rho - epsilon) + a * ln(1 - 1 / a) - ln(a - 1)`, which is convex in a; what it is at its least is
    concave in rho, so Newton's steps end.
    """
    wanted = math.log(delta)
    rho = max((epsilon / (math.sqrt(epsilon - wanted) + math.sqrt(-wanted))) ** 2, _LEAST_RHO)
    for _ in range(_NEWTONS):
        low, high = 1.0, (epsilon + 1) / (2 * rho) + 2
        while low < (a := (low + high) / 2) < high:
            low, high = (a, high) if (2 * a - 1) * rho - epsilon + math.log1p(-1 / a) < 0 else (low, a)
        at = (high - 1) * (high * rho - epsilon) + high * math.log1p(-1 / high) - math.log(high - 1)
        rho = max(rho - (at - wanted) / ((high - 1) * high), rho / 2)
    return rho


def threshold_of(mechanism: Mechanism, *, scale: float, cells: int, delta: float) -> tuple[int, float]:
    """The smallest threshold at which a key that only one unit has shows with probability at most `delta`.

    Args:
        mechanism: the distribution of the noise on each key's distinct units.
        scale: of that noise.
        cells: keys that one unit may have, each with itself as the only unit.
        delta: the probability, over all of those keys together.

    Returns:
        The threshold, and the delta that the mechanism's map gives for it. A key is released where its noisy units are
        *strictly above* the threshold: the map accounts for `>`, though the library's own mechanism releases at `>=`
        (https://github.com/opendp/opendp/issues/2922), so that mechanism is never invoked.

    Raises:
        ValueError: no threshold is high enough; the delta is too small.

    Source: Rogers 2023 (unknown domains); OpenDP's `make_gaussian_threshold`, `make_laplace_threshold`.
    """
    if delta_of(mechanism, scale=scale, cells=cells, threshold=_MAX_THRESHOLD) > delta:
        raise ValueError("no threshold fits the delta of discovery")
    spread = -NormalDist().inv_cdf(delta / cells) if mechanism is Mechanism.GAUSSIAN else math.log(cells / delta / 2)

    def is_low(threshold: int) -> bool:
        return delta_of(mechanism, scale=scale, cells=cells, threshold=threshold) > delta

    high = 1 + _last(is_low, near=int(1 + scale * spread), high=_MAX_THRESHOLD)
    return high, delta_of(mechanism, scale=scale, cells=cells, threshold=high)


def delta_of(mechanism: Mechanism, *, scale: float, cells: int, threshold: int) -> float:
    """The threshold mechanism's own map: the delta for up to `cells` keys that one unit has alone."""
    space = domains.map_domain(domains.atom_domain(T="i64"), domains.atom_domain(T="i64"))
    if mechanism is Mechanism.GAUSSIAN:
        l2 = math.nextafter(math.sqrt(cells), math.inf)
        metric = metrics.l02inf_distance(metrics.absolute_distance(T="f64"))
        gaussian: Any = measurements.make_gaussian_threshold(space, metric, scale, threshold)
        return float(gaussian.map((cells, l2, 1.0))[1])
    metric = metrics.l01inf_distance(metrics.absolute_distance(T="i64"))
    laplace: Any = measurements.make_laplace_threshold(space, metric, scale, threshold)
    return float(laplace.map((cells, cells, 1))[1])


def draw(mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Add fresh, independent noise to every value.

    Args:
        mechanism: the distribution of the noise.
        scale: in grid steps.
        exact: int64, of any shape.

    Returns:
        int64, of the same shape. Draw once: a second draw of the same vector is a second loss.

    Guarantee: `loss_of` at the vector's sensitivity, under add/remove of one privacy unit.
    Source: Canonne, Kamath, Steinke 2020 (discrete Gaussian and Laplace); OpenDP's `make_gaussian`, `make_laplace`.
    """
    flat = exact.ravel()
    chunks = [flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK)]
    if len(chunks) <= 1:
        return _drawn(mechanism, scale, flat).reshape(exact.shape)
    with ThreadPoolExecutor() as threads:
        drawn = list(threads.map(lambda chunk: _drawn(mechanism, scale, chunk), chunks))
    return np.concatenate(drawn).reshape(exact.shape)


def _drawn(mechanism: Mechanism, scale: float, exact: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.array(_measurement(mechanism, scale)(exact.tolist()), dtype=np.int64)


@lru_cache(maxsize=256)
def _measurement(mechanism: Mechanism, scale: float) -> Any:
    space = domains.vector_domain(domains.atom_domain(T="i64"))
    if mechanism is Mechanism.GAUSSIAN:
        return measurements.make_gaussian(space, metrics.l2_distance(T="f64"), scale)
    return measurements.make_laplace(space, metrics.l1_distance(T="f64"), scale)
