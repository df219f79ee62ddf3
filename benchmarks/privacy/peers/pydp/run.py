"""PyDP: noise and partition selection only, behind this benchmark's best bounding in DuckDB, whose time counts.

A `Percentile` knows no contribution bounds, so it gets epsilon divided by the rows of a unit (group privacy) and by the
number of quantiles. Query C spends a third of epsilon, and all of delta, on which categories to keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydp.algorithms.laplacian import BoundedMean, BoundedSum, Count, Percentile
from pydp.algorithms.partition_selection import create_laplace_partition_strategy

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import (
    DELTA,
    EPSILON,
    LOWER,
    MAX_PARTITIONS,
    MAX_ROWS,
    PUBLIC,
    QUANTILES,
    UPPER,
    Query,
)
from benchmarks.privacy.systems.bounded_duckdb import kept_by_category

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_L0_LINF = {"l0_sensitivity": MAX_PARTITIONS, "linf_sensitivity": MAX_ROWS}
_CLIP = {"lower_bound": LOWER, "upper_bound": UPPER, "dtype": "float"}


def answer(query: Query, pattern: str) -> Answer:
    """Bound in DuckDB, then one algorithm a category."""
    values, units = kept_by_category(pattern)
    if query == "C":
        return _discovered(values, units)
    columns: dict[str, list[float]] = {"key": [float(key) for key in range(PUBLIC)]}
    for name, figure in _FIGURES[query].items():
        columns[name] = [figure(values.get(key, ()), units.get(key, 0)) for key in range(PUBLIC)]
    return Answer(columns=columns)


def _discovered(values: Mapping[int, Sequence[float]], units: Mapping[int, int]) -> Answer:
    share = EPSILON / 3
    strategy = create_laplace_partition_strategy(share, DELTA, MAX_PARTITIONS)
    keys = [key for key, number in units.items() if strategy.should_keep(number)]
    return Answer(
        columns={
            "key": [float(key) for key in keys],
            "n": [_count(values[key], share) for key in keys],
            "mean": [float(_fed(BoundedMean(epsilon=share, **_L0_LINF, **_CLIP), values[key])) for key in keys],
        }
    )


def _count(values: Sequence[float], epsilon: float) -> float:
    return float(_fed(Count(epsilon=epsilon, dtype="float", **_L0_LINF), values))


def _distinct(units: int) -> float:
    return float(_fed(Count(epsilon=EPSILON, dtype="int", l0_sensitivity=MAX_PARTITIONS), [1] * units))


def _quantile(values: Sequence[float], q: float) -> float:
    epsilon = EPSILON / (MAX_PARTITIONS * MAX_ROWS * len(QUANTILES))
    return float(_fed(Percentile(epsilon=epsilon, percentile=q, **_CLIP), values))


def _fed(algorithm: object, values: Sequence[float]) -> float:
    algorithm.add_entries(list(values))
    return algorithm.result()


_FIGURES: dict[Query, dict[str, Callable[[Sequence[float], int], float]]] = {
    "A": {"n": lambda values, _: _count(values, EPSILON)},
    "B": {"s": lambda values, _: float(_fed(BoundedSum(epsilon=EPSILON, **_L0_LINF, **_CLIP), values))},
    "D": {"u": lambda _, units: _distinct(units)},
    "E": {f"p{q * 100:.0f}": lambda values, _, q=q: _quantile(values, q) for q in QUANTILES},
}


if __name__ == "__main__":
    serve(answer)
