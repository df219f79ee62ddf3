"""Ask a distributed engine about a Delta table: Sail as a cluster of driver and workers, or any Spark Connect server.

Runs in the engine's own environment and knows nothing of this project. Standard input holds one JSON object: `table`
(a path or URL), `queries` (SQL over the view `lake`, by name), `workers`, and `remote` (`sc://host:port`; null starts
Sail here, whose driver and workers talk to each other over gRPC). Each answer becomes `<output>/<name>.arrow`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow as pa


def main() -> None:
    """Answer the queries of standard input into the folder that is named on the command line."""
    asked, output = json.load(sys.stdin), Path(sys.argv[1])
    remote, stop = asked["remote"], None
    if remote is None:
        os.environ["SAIL_MODE"] = "local-cluster"
        os.environ["SAIL_CLUSTER__WORKER_INITIAL_COUNT"] = str(asked["workers"])
        os.environ["SAIL_CLUSTER__WORKER_MAX_COUNT"] = str(asked["workers"])
        from pysail.spark import SparkConnectServer  # noqa: PLC0415  # reads the variables

        server = SparkConnectServer("127.0.0.1", 0)
        server.start(background=True)
        host, port = server.listening_address
        remote, stop = f"sc://{host}:{port}", server.stop
    from pyspark.sql import SparkSession  # noqa: PLC0415  # slow, and of no use before a server is there

    session = SparkSession.builder.remote(remote).getOrCreate()
    session.conf.set("spark.sql.session.timeZone", "UTC")
    session.read.format("delta").load(asked["table"]).createOrReplaceTempView("lake")
    for name, query in asked["queries"].items():
        table = session.sql(query).toArrow()
        with pa.ipc.new_file(str(output / f"{name}.arrow"), table.schema) as sink:
            sink.write_table(table)
    session.stop()
    if stop is not None:
        stop()


if __name__ == "__main__":
    main()
