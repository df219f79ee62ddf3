"""What a bucket costs beside a folder: a commit, a look for news, a group-by over 1 M rows.

`python -m benchmarks.collector.bucket`; against the tests' S3 server on this machine, so without a network's latency:
wall figures of a real store are these plus a round trip a request (two a commit, two a look, a few a file).
"""

from __future__ import annotations

import resource
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from cloud_collector.lake import Lake
from cloud_collector.lake_rows import table_of, table_schema
from cloud_collector.s3store import S3Store
from tests.cloud_collector.conftest import Maker
from tests.s3.conftest import bucket_at
from tests.s3.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMITS, _LOOKS, _COPIES, _LARGE = 60, 50, 400, 4


def main() -> None:
    """Print a line a figure and place."""
    with closing(Server()) as server, tempfile.TemporaryDirectory() as folder:
        for name, lake in (
            ("folder", Lake(Path(folder) / "lake")),
            ("bucket", Lake(S3Store(bucket_at(server.endpoint, Path(folder))))),
        ):
            _measure(name, lake)


def _measure(name: str, lake: Lake) -> None:
    maker = Maker()
    about = maker.plan, maker.hash
    made = [maker.make(seed=i, window=i) for i in range(_COMMITS)]
    rows = [(i, one.release, one.values) for i, one in enumerate(made, start=1)]
    _say(name, "commit", _COMMITS, lambda i: lake.append(*about, [rows[i]], app_id="a"))
    _say(name, "look for news", _LOOKS, lambda _: lake.snapshot(*about))
    large, log = pa.concat_tables([table_of(maker.plan, rows)] * _COPIES), lake.log(*about)
    for _ in range(_LARGE):
        log.commit(log.read(), schema=table_schema(maker.plan), operation="WRITE", add=[log.write(large)])
    files = lake.files(*about)
    ask = "SELECT carrier, count(*), sum(departures) FROM read_parquet(?) GROUP BY ALL"

    def group_by(_: int) -> None:
        with duckdb.connect(config={"autoinstall_known_extensions": False}) as db:
            lake.attach(db)
            db.execute(ask, [files]).fetchall()

    _say(name, f"group-by of {len(large) * _LARGE + 10 * _COMMITS} rows in {len(files)} files", 3, group_by)


def _say(place: str, what: str, times: int, work: Callable[[int], object]) -> None:
    used, wall = _cpu_s(), time.monotonic()
    for i in range(times):
        work(i)
    wall, used = time.monotonic() - wall, _cpu_s() - used
    print(f"{place}: {what}: {wall / times * 1e3:.1f} ms, {used / times * 1e3:.1f} ms of CPU")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
