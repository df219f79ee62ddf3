"""Have a distributed engine answer a question from the collector's tables, in a folder or a bucket.

`python -m examples.engine --config collector.toml flight_delays departures --by carrier --every 7d` prints CSV. The
engine reads the Delta tables itself; the collector need not run, and what still waits in its landing is not in the
answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pyarrow as pa

from cloud_collector.config import load
from cloud_collector.errors import ConfigInvalid, PlanUnknown, QuestionInvalid, StoreFailed
from cloud_collector.lake import Lake
from cloud_collector.question import TENANT, Asked, Question
from cloud_collector.shared_plans import registry
from edge_agg.contract.plan import parse_duration
from examples.engine.environment import PYTHON
from examples.engine.question import answer, queries

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from cloud_collector.bucket import Bucket


def ask(
    config: Path, question: Question, *, tenant: str = TENANT, remote: str | None = None, workers: int = 4
) -> pl.DataFrame:
    """Ask the engine as an analyst of a tenant would ask the collector.

    Args:
        config: the collector's.
        question: of a metric of a registered plan with public keys.
        tenant: whose plan it is; of others' releases nothing is added.
        remote: `sc://host:port` of a Spark Connect server that reaches the tables; Sail is started here if None.
        workers: how many Sail starts.
    """
    told = load(config)
    registered = registry(told).find(question.plan, question.version, tenant)
    asked = Asked.of(registered.plan, question, home=registered.tenant)
    now_us = time.time_ns() // 1000
    table = Lake.of(told, writes=False).location(registered.plan, registered.hash)
    asks = queries(asked, now_us=now_us)
    with tempfile.TemporaryDirectory() as folder:
        request = {"table": table, "queries": asks, "remote": remote, "workers": workers}
        command = [str(PYTHON), "-W", "ignore", str(Path(__file__).with_name("run.py")), folder]
        subprocess.run(
            command, input=json.dumps(request), text=True, check=True, env={**os.environ, **_variables(told.bucket)}
        )
        rows = {name: _rows(Path(folder) / f"{name}.arrow") for name in asks}
    return answer(asked, now_us=now_us, **rows)


def _rows(file: Path) -> list[tuple[object, ...]]:
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _variables(bucket: Bucket | None) -> dict[str, str]:
    """What the engine is told of a bucket: by variables, so that no key stands on a command line."""
    quiet = {"RUST_LOG": os.environ.get("RUST_LOG", "error")}
    if bucket is None:
        return quiet
    told = quiet | {"AWS_REGION": bucket.region, "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false"}
    if bucket.endpoint is not None:
        told |= {"AWS_ENDPOINT": bucket.endpoint, "AWS_ENDPOINT_URL_S3": bucket.endpoint}
        told |= {"AWS_ALLOW_HTTP": str(bucket.is_local).lower()}
    if bucket.access_key_file is not None and bucket.secret_key_file is not None:
        told |= {"AWS_ACCESS_KEY_ID": bucket.access_key_file.read_text().strip()}
        told |= {"AWS_SECRET_ACCESS_KEY": bucket.secret_key_file.read_text().strip()}
    return told


@click.command()
@click.option("--config", type=click.Path(exists=True, path_type=Path), required=True, help="The collector's config.")
@click.argument("plan")
@click.argument("metric")
@click.option("--tenant", default=TENANT, show_default=True, help="Whose plan it is.")
@click.option("--by", multiple=True, help="A partition column; may be given more than once.")
@click.option("--every", help="Bucket length, a multiple of the plan's window; one bucket without it.")
@click.option("--remote", help="sc://host:port of a Spark Connect server; without it Sail is started here.")
@click.option("--workers", default=4, show_default=True, help="Workers of the Sail that is started here.")
def main(config: Path, plan: str, metric: str, by: Sequence[str], every: str | None, **how: Any) -> None:
    """Print METRIC of PLAN, added up by a distributed engine."""
    if not PYTHON.exists():
        sys.exit("no engine: run `make tools`")
    try:
        every_us = None if every is None else parse_duration(every) // timedelta(microseconds=1)
        question = Question(plan=plan, metric=metric, by=tuple(by), every_us=every_us)
        found = ask(config, question, **how)
    except (ConfigInvalid, PlanUnknown, QuestionInvalid, StoreFailed, ValueError) as error:
        sys.exit(str(error))
    print(found.write_csv(), end="")


if __name__ == "__main__":
    main()
