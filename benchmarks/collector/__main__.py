"""`make bench-collector`: what one machine takes, a line a bar.

Runs each case against a collector in processes of its own, over mutual TLS on loopback, with the full guard and a
synced commit before each ack; the load generator is a process apart. An ack-only server is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bar import Bar
from benchmarks.collector import storage
from benchmarks.collector.stage import load, prepare, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.collector.stage import Running

BATCHES_PER_S, SINGLES_PER_S, SUSTAINED_PER_S = 5000.0, 1200.0, 1500.0
P99_MS = 100.0
BEHIND_S = 10.0
"""The sealer keeps up if at the end no more waits for it than arrives in this time."""


def throughput(folder: Path, config: Path, seconds: float) -> Iterator[Bar]:
    """Batches of 20 and single summaries, as fast as they go, then at 80 % of what must be reached."""
    acks = {}
    with running("benchmarks.collector.acker", str(folder), "127.0.0.1:0", errors=folder / "acker.log") as acker:
        for batch in (20, 1):
            acks[batch] = load(acker, folder, "--seconds", f"{seconds}", "--batch", f"{batch}")
            say(f"ack-only, batches of {batch}", acks[batch])
    (folder / "heads.json").unlink()
    with running("cloud_collector", "serve", str(config), errors=folder / "collector.log") as server:
        for batch, name, least in ((20, "batches_of_20", BATCHES_PER_S), (1, "singles", SINGLES_PER_S)):
            full = load(server, folder, "--seconds", f"{seconds}", "--batch", f"{batch}")
            say(f"collector, {name}", full)
            yield Bar(name=f"{name}_per_s", value=full["per_s"], limit=least, least=True)
            print(f"ratio {name}_to_ack_only wall {acks[batch]['per_s'] / full['per_s']:.3g}", flush=True)
            print(f"ratio {name}_to_ack_only cpu {full['cpu_us'] / acks[batch]['cpu_us']:.3g}", flush=True)
            wait_sealed(server)
            rate = ("--seconds", f"{seconds}", "--batch", f"{batch}", "--rate", f"{0.8 * least}")
            paced = load(server, folder, *rate)
            say(f"collector, {name} at 80 %", paced)
            yield Bar(name=f"{name}_p99_ms_at_80_percent", value=paced["p99_ms"], limit=P99_MS)
            wait_sealed(server)


def sustained(folder: Path, config: Path, minutes: float) -> Iterator[Bar]:
    """A steady rate for long, and what is left for the sealer at the end."""
    with running("cloud_collector", "serve", str(config), errors=folder / "sustained.log") as server:
        before = figures(server)
        said = load(server, folder, "--seconds", f"{60 * minutes}", "--batch", "20", "--rate", f"{SUSTAINED_PER_S}")
        after = figures(server)
        say("sustained", said)
        sealed = after["collector_releases_sealed_total"] - before["collector_releases_sealed_total"]
        yield Bar(name="sustained_per_s", value=said["per_s"], limit=0.99 * SUSTAINED_PER_S, least=True)
        left = (said["summaries"] - sealed) / SUSTAINED_PER_S
        yield Bar(name="sustained_sealer_behind_s", value=left, limit=BEHIND_S)
        print(f"figure sustained rss_mb {server.rss_mb:.0f}", flush=True)


def figures(server: Running) -> dict[str, float]:
    """The samples of the monitor's page."""
    with urllib.request.urlopen(f"http://{server.monitor}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def wait_sealed(server: Running) -> None:
    """Wait until nothing waits for the sealer, so that one case does not pay for another."""
    for _ in range(600):
        now = figures(server)
        accepted = now.get('collector_releases_total{outcome="accepted"}', 0.0)
        if now["collector_releases_sealed_total"] >= accepted:
            return
        time.sleep(0.5)


def say(case: str, figures: dict[str, float]) -> None:
    """Print what was measured, as one line of JSON."""
    print(f"measured {case}: {json.dumps({name: round(value, 1) for name, value in figures.items()})}", flush=True)


def main() -> None:
    """Read the options, run the cases, print the bars."""
    parser = argparse.ArgumentParser(prog="benchmarks.collector")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each throughput case")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the sustained case")
    parser.add_argument("--cells", type=int, default=10_000_000, help="stored before the questions are asked")
    parser.add_argument("--agents", type=int, default=1_000_000, help="whose keys are kept")
    parser.add_argument("--only", choices=["throughput", "sustained", "questions", "keys"])
    given = parser.parse_args()
    bars: list[Bar] = []

    def collect(some: Iterator[Bar]) -> None:
        for bar in some:
            bars.append(bar)
            print(bar, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        for name in ("throughput", "sustained", "questions", "keys"):
            if given.only not in {None, name}:
                continue
            folder = Path(temporary) / name
            config = prepare(folder, workers=given.workers)
            match name:
                case "throughput":
                    collect(throughput(folder, config, given.seconds))
                case "sustained":
                    collect(sustained(folder, config, given.minutes))
                case "questions":
                    collect(storage.questions(folder, config, given.cells))
                case _:
                    collect(storage.keys(folder, given.agents))
    print()
    for bar in bars:
        print(bar)


if __name__ == "__main__":
    main()
