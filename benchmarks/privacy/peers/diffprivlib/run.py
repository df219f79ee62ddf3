"""diffprivlib: noise only; the bounding in front is this benchmark's best DuckDB form, whose time counts.

Its tools protect one row, so each gets epsilon divided by the rows of a unit (group privacy). It cannot discover
categories: no query C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from diffprivlib import tools

from benchmarks.privacy.meter import Answer, serve
from benchmarks.privacy.question import (
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
    from collections.abc import Sequence

_ROW = EPSILON / (MAX_PARTITIONS * MAX_ROWS)
_BOUNDS = (LOWER, UPPER)


def answer(query: Query, pattern: str) -> Answer:
    """Bound in DuckDB, then one call a category."""
    values, units = kept_by_category(pattern)
    figures = [_figures(query, values.get(key, np.empty(0)), units.get(key, 0)) for key in range(PUBLIC)]
    columns = {name: [figure[name] for figure in figures] for name in figures[0]}
    return Answer(columns={"key": [float(key) for key in range(PUBLIC)], **columns})


def _figures(query: Query, values: Sequence[float], units: int) -> dict[str, float]:
    array = np.asarray(values)
    match query:
        case "A":
            return {"n": float(tools.count_nonzero(np.ones(len(array)), epsilon=_ROW))}
        case "B":
            return {"s": float(tools.sum(array, epsilon=_ROW, bounds=_BOUNDS))}
        case "D":
            return {"u": float(tools.count_nonzero(np.ones(units), epsilon=EPSILON / MAX_PARTITIONS))}
        case "E":
            share = _ROW / len(QUANTILES)
            found = {f"p{q * 100:.0f}": tools.quantile(array, q, epsilon=share, bounds=_BOUNDS) for q in QUANTILES}
            return {name: float(value) for name, value in found.items()}
        case _:
            raise NotImplementedError(query)


if __name__ == "__main__":
    serve(answer)
