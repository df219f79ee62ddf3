"""A long run under load: memory flat and under its ceiling, every row either answered as safe or refused.

`make soak` offers 200,000 events a second over HTTP for 20 minutes to an agent with windows of a minute; in the middle
third more pushers than the agent can serve push as fast as they can, so that it must refuse. `--minutes 2` makes it
short. At the end the agent is asked what it took in: all that it had answered, and no more.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.agent.live import as_stream, ask, resident_mb, running
from benchmarks.agent.question import events
from benchmarks.bar import Bar

RATE = 200_000
"""Events offered a second."""
ROWS = 10_000
"""Events of one push."""
UNITS = 100_000
LIMIT_MB = 384
GREEDY = 6
"""Pushers of the crowded third."""
MORE = f"""
[memory]
limit = "{LIMIT_MB}MiB"
[disk]
limit = "1GiB"
"""


@dataclass(slots=True)
class Pushed:
    """What pushers were told, over all threads."""

    rows: Counter[int] = field(default_factory=Counter)
    """Rows by status."""
    offered: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, status: int, rows: int) -> None:
        """One push was answered."""
        with self.lock:
            self.rows[status] += rows


def push(port: int, until: float, pushed: Pushed, *, rate: float | None, seed: int) -> None:
    """Push batches of now, at a rate or as fast as answers come; a refused batch is dropped, and counted as refused."""
    pool = [events(ROWS, UNITS, begin=datetime.now(UTC), seed=seed * 100 + i) for i in range(8)]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    begun, sent = time.monotonic(), 0
    rng = np.random.default_rng(seed)
    while (now := time.monotonic()) < until:
        if rate is not None and sent >= (now - begun) * rate:
            time.sleep(0.002)
            continue
        table = pool[int(rng.integers(len(pool)))]
        moment = pa.array(np.full(ROWS, int(time.time() * 1e6))).cast(table.schema.field(0).type)
        body = as_stream(table.set_column(0, table.schema.field(0), moment))
        connection.request("POST", "/v1/events", body, {"Content-Type": "application/vnd.apache.arrow.stream"})
        answer = connection.getresponse()
        answer.read()
        pushed.note(answer.status, ROWS)
        sent += ROWS
        if answer.status == 429 and rate is None:
            time.sleep(0.05)
    with pushed.lock:
        pushed.offered += sent
    connection.close()


def soak(minutes: float) -> list[Bar]:
    """Run, and say how it went."""
    resident: list[float] = []
    pushed, greedy = Pushed(), Pushed()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        with running("1m", MORE, home) as (process, port, _):
            end = time.monotonic() + minutes * 60
            threads = [
                threading.Thread(target=push, args=(port, end, pushed), kwargs={"rate": RATE / 2, "seed": i})
                for i in range(2)
            ]
            for thread in threads:
                thread.start()
            crowd: list[threading.Thread] = []
            while time.monotonic() < end:
                time.sleep(1.0)
                resident.append(resident_mb(process.pid))
                if not crowd and len(resident) >= minutes * 20:
                    third = min(end, time.monotonic() + minutes * 20)
                    crowd = [
                        threading.Thread(target=push, args=(port, third, greedy), kwargs={"rate": None, "seed": 10 + i})
                        for i in range(GREEDY)
                    ]
                    for thread in crowd:
                        thread.start()
            for thread in (*threads, *crowd):
                thread.join()
            said = ask(home)
    sixths = [f"{np.median(part):.0f}" for part in np.array_split(resident, 6)]
    print(f"resident memory, median of each sixth of the time: {', '.join(sixths)} MB")
    answered = pushed.rows[200] + greedy.rows[200]
    refused = pushed.rows[429] + greedy.rows[429]
    other = sum((pushed.rows + greedy.rows).values()) - answered - refused
    print(f"answered {answered:,} rows, refused {refused:,}, other {other:,}; windows {said['plans']}")
    third = max(1, len(resident) // 3)
    return [
        Bar(name="soak_offered_events_per_s", value=pushed.offered / (minutes * 60), limit=RATE * 0.95, least=True),
        Bar(name="soak_peak_rss_mb", value=max(resident), limit=LIMIT_MB),
        Bar(
            name="soak_rss_growth_mb",
            value=float(np.median(resident[-third // 2 :]) - np.median(resident[-third : -third // 2])),
            limit=20.0,
        ),
        Bar(name="soak_rows_lost", value=float(answered - said["rows"]), limit=0.0),
        Bar(name="soak_rows_neither_answered_nor_429", value=float(other), limit=0.0),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    found = soak(parser.parse_args().minutes)
    for bar in found:
        print(bar)
    sys.exit(0 if all(bar.met for bar in found) else 1)
