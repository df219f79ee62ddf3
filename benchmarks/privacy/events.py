"""The events: one day, a row an event, seeded, as Parquet files that Polars writes with its defaults and zstd.

Place: before every run; a case's files are made once and kept under `.bench/` until `drop`.
Invariants: activity over units and popularity of categories follow Zipf laws with the exponents below, independent of
each other; ids are dealt at random, so that a unit's rank cannot be read from its id; a file has ten million rows at
most.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    import numpy.typing as npt

    from benchmarks.privacy.question import Case

FOLDER = Path(".bench/events")
UNIT_EXPONENT = 1.0
FLAT_EXPONENT = 0.5
CATEGORY_EXPONENT = 1.0
SEED = 20_130_107
FILE_ROWS = 10_000_000
_DAY_US = 86_400_000_000
_START_US = 1_357_516_800_000_000


def event_files(case: Case, categories: int) -> str:
    """The pattern that matches a case's files; they are written if they are not there.

    Columns: `t` (timestamp, microseconds, UTC, ascending), `unit` (int64, or a string such as `user-0000123`),
    `category` (int64, on which the plain group-by is cheapest, so ratios to it are strictest), `amount` (float64, two
    decimals).
    """
    folder = FOLDER / f"{case.name}-{categories}"
    if not folder.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for i, start in enumerate(range(0, case.events, FILE_ROWS)):
            rows = min(FILE_ROWS, case.events - start)
            span = (start / case.events, (start + rows) / case.events)
            _frame(case, categories, rows, span, seed=i).write_parquet(part / f"{i:03}.parquet", compression="zstd")
        part.rename(folder)
    return f"{folder}/*.parquet"


def drop(case: Case, categories: int) -> None:
    """Remove a case's files."""
    shutil.rmtree(FOLDER / f"{case.name}-{categories}", ignore_errors=True)


def _frame(case: Case, categories: int, rows: int, span: tuple[float, float], *, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng([SEED, seed])
    ids = np.random.default_rng(SEED).permutation(case.units)
    unit = pl.Series("unit", ids[_zipf(rng, rows, case.units, FLAT_EXPONENT if case.flat else UNIT_EXPONENT)])
    if case.ids == "string":
        unit = pl.select(pl.format("user-{}", unit.cast(pl.String).str.zfill(7)).alias("unit")).to_series()
    low, high = (_START_US + int(part * _DAY_US) for part in span)
    return pl.DataFrame(
        {
            "t": pl.Series(np.sort(rng.integers(low, high, rows))).cast(pl.Datetime("us", "UTC")),
            "unit": unit,
            "category": _zipf(rng, rows, categories, CATEGORY_EXPONENT),
            "amount": np.round(rng.gamma(2.0, 20.0, rows), 2),
        }
    )


def _zipf(rng: np.random.Generator, rows: int, values: int, exponent: float) -> npt.NDArray[np.int64]:
    """Ranks 0 .. values - 1, rank r with weight (r + 1) ** -exponent, int64[rows]."""
    weights = np.cumsum(np.arange(1, values + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(weights, np.sort(rng.random(rows)) * weights[-1]).astype(np.int64)
    return rng.permutation(ranks)
