"""Quantiles out of a noisy histogram with public edges, flat or a tree.

Place: above `tree.py` (which node counts how much) and `combine.py` (how far noise reaches); below the query room.
Invariants:
- The interval is a union of whole bins, so it speaks of the true order statistic and not of where in its bin that lies.
- Nothing is assumed of the data: each edge is tested alone, and a weaker histogram only gives a wider interval.
- The value lies in the interval.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cloud_collector.combine import Interval, check_confidence, critical
from cloud_collector.tree import prefix_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloud_collector.combine import Mix
    from cloud_collector.noise import Noise

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bins:
    """Noisy counts over public edges.

    Raises:
        ValueError: nodes that are not the tree's, or edges that do not ascend.
    """

    nodes: tuple[int, ...]
    """By level from the top; the last level holds the bins, then padding."""
    noise: Noise
    """In each node; the nodes' noises are independent."""
    edges: tuple[float, ...]
    """One more than bins. Values outside were counted in the first and last bin."""
    branching: int
    """Of the tree; as many as bins for a flat histogram."""
    height: int
    """Of the tree; 1 for a flat histogram."""
    logarithmic: bool = False
    """Whether values are spread evenly within a bin on a logarithmic scale."""
    below: Floats = field(init=False, repr=False, compare=False)
    """float64[bins + 1]: the rows below each edge, estimated without bias; the last one is all rows."""

    def __post_init__(self) -> None:
        if not all(low < high for low, high in itertools.pairwise(self.edges)):
            raise ValueError("edges must ascend")
        weights = prefix_weights(*self.shape)
        if len(self.nodes) != weights.shape[1]:
            raise ValueError("the tree has another number of nodes")
        object.__setattr__(self, "below", weights @ np.array(self.nodes, dtype=np.float64))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Bins, branching and height."""
        return len(self.edges) - 1, self.branching, self.height


def quantile(bins: Bins, q: float) -> float | None:
    """Estimate the q-quantile.

    The rows below each edge are estimated without bias by least squares over the tree, and made to ascend by isotonic
    regression; the value is where their share crosses q, interpolated within the bin.

    Args:
        bins: the noisy histogram.
        q: in (0, 1).

    Returns:
        A number within the edges; None where the estimated count of all rows is not positive.

    Raises:
        ValueError: q is not in (0, 1).
    """
    excess = _excess(bins, q)
    if excess[-1] <= excess[0]:
        return None
    rising = _isotonic(excess)
    below, above = int(np.flatnonzero(rising <= 0)[-1]), int(np.flatnonzero(rising >= 0)[0])
    if above <= below:  # level at q over whole bins, or right at an edge: the middle
        return _between(bins, bins.edges[above], bins.edges[below], 0.5)
    share = float(rising[below] / (rising[below] - rising[above]))
    return _between(bins, bins.edges[below], bins.edges[above], share)


def quantile_interval(bins: Bins, q: float, confidence: float = 0.95) -> Interval:
    """Bound the q-quantile of the values that were counted: the least x with a share q of them at or below x.

    The rows below an edge, less q times all rows, are negative at the left edge of the true bin and not negative at its
    right edge. Both are estimated without bias, with noise of a known law. So each edge is tested at half of the chance
    to miss, and a bin is ruled out where the test at either of its edges says so. The true bin survives with
    `confidence` whatever the counts are; where bins are coarse against the noise, with more.

    Args:
        bins: the noisy histogram.
        q: in (0, 1).
        confidence: in (0, 1).

    Returns:
        From the left edge of the first surviving bin to the right edge of the last. It holds the order statistic, and
        whatever interpolation within its bin would make of it.

    Raises:
        ValueError: q or confidence is not in (0, 1).

    Source: intervals for quantiles by inverting sign tests, Thompson, Ann. Math. Stat. 7 (1936); here at fixed points.
    """
    check_confidence(confidence)
    excess = _excess(bins, q)
    inner = range(1, len(bins.edges) - 1)  # at the outer edges the sign is known
    first = next((e for e in inner if not _is_negative(bins, q, confidence, e, excess[e])), len(bins.edges) - 1)
    last = next((e for e in reversed(inner) if not _is_negative(bins, q, confidence, e, -excess[e])), 0)
    return Interval(lo=bins.edges[first - 1], hi=bins.edges[last + 1])


def _excess(bins: Bins, q: float) -> Floats:
    """The estimated rows below each edge, less q times all rows."""
    if not 0 < q < 1:
        raise ValueError("q must lie between 0 and 1")
    excess = bins.below - q * bins.below[-1]
    least = 1e-12 * math.fsum(map(abs, bins.nodes))  # what floats leave of nothing
    return np.where(np.abs(excess) > least, excess, 0.0)


def _is_negative(bins: Bins, q: float, confidence: float, edge: int, excess: float) -> bool:
    """Whether the noise alone would hardly bring this about if the truth were not negative."""
    if excess >= 0:
        return False
    reach = bins.noise.sigma * float(_lengths(*bins.shape, q)[edge])
    if -excess > reach / math.sqrt(1 - confidence):  # Chebyshev: no need for the law
        return True
    return -excess > critical(_mix(bins, q, edge), confidence)


@lru_cache(maxsize=64)
def _lengths(bins: int, branching: int, height: int, q: float) -> Floats:
    """The standard deviation of the excess at each edge, in those of one node."""
    weights = prefix_weights(bins, branching, height)
    return np.asarray(np.sqrt(((weights - q * weights[-1]) ** 2).sum(axis=1)))


def _mix(bins: Bins, q: float, edge: int) -> Mix:
    """The noise in the excess at an edge; nodes of one weight are one part."""
    return tuple((weight, bins.noise.times(count)) for weight, count in _weights(*bins.shape, q, edge))


@lru_cache(maxsize=2**14)
def _weights(bins: int, branching: int, height: int, q: float, edge: int) -> tuple[tuple[float, int], ...]:
    """The distinct weights of the nodes, and how many nodes have each."""
    weights = prefix_weights(bins, branching, height)
    distinct, counts = np.unique(np.abs(weights[edge] - q * weights[-1]).round(12), return_counts=True)
    return tuple((float(weight), int(count)) for weight, count in zip(distinct, counts, strict=True) if weight > 0)


def _isotonic(values: Floats) -> Floats:
    """The ascending sequence that is nearest in squares: pools of neighbours, each at its mean."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        pool = (value, 1)
        while pools and pools[-1][0] >= pool[0]:
            mean, size = pools.pop()
            together = size + pool[1]
            pool = ((mean * size + pool[0] * pool[1]) / together, together)
        pools.append(pool)
    return np.repeat([mean for mean, _ in pools], [size for _, size in pools])


def _between(bins: Bins, low: float, high: float, share: float) -> float:
    if bins.logarithmic and low > 0:
        return float(low * (high / low) ** share)
    return low + (high - low) * share
