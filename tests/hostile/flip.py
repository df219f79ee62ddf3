"""Flips bytes of honest releases and hands them to admission, in forked children, so that a crash is a finding.

Run as `python -m tests.hostile.flip --streams N --seed S`: one thread, nothing started before the forks. A child takes
a batch of seeds; when it dies, the seed that it had written down last is reported and the next child goes on behind it.
Prints one JSON object: how many were refused and admitted, and every finding with its seed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from cloud_collector.admission import Admitted, Refused, admit
from edge_agg.contract import arrow, codec
from tests.cloud_collector.conftest import NOW, PLAN, Maker

if TYPE_CHECKING:
    from collections.abc import Callable

    Target = Callable[[int], bool]

BATCH = 5_000
MEMORY = 4 * 2**30
"""Address space of a child: a bomb that goes off is a MemoryError, and that is a finding."""
SECONDS = 2
"""One stream's time before the child is killed: work is bounded, so that is a finding too."""
KEYED = PLAN.replace(
    "other = true", '[[partition]]\ncolumn = "tailnum"\nname = "plane"\ndiscover = { delta = 1e-7, max_bytes = 8 }'
)


class Honest:
    """One honest release, in the pieces that are flipped."""

    def __init__(self, maker: Maker, found: list[str] | None) -> None:
        self.maker = maker
        self.made = maker.make(found=found)
        self.stream = zstandard.ZstdDecompressor().decompress(self.made.sealed.payload)
        self.pack = zstandard.ZstdCompressor(level=1)


def honest() -> list[Honest]:
    """What is flipped: a release of public cells, and one of discovered keys."""
    return [Honest(Maker(), None), Honest(Maker(KEYED), ["AA", "N1", "N23"])]


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The data with one to four changes: a bit, a byte, a word, a cut, a doubling or a swap."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.randrange(max(1, len(out)))
        match chance.randrange(8):
            case 0 | 1 | 2 if out:
                out[at] ^= 1 << chance.randrange(8)
            case 3 if out:
                out[at] = chance.randrange(256)
            case 4:
                word = chance.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**30))
                out[at & ~3 : (at & ~3) + 4] = struct.pack("<I", word)
            case 5:
                out[at & ~7 : (at & ~7) + 8] = struct.pack("<q", chance.choice((-1, 2**62, 2**63 - 1, -(2**63), 2**40)))
            case 6:
                del out[at : at + chance.randrange(1, 64)]
            case _:
                other = chance.randrange(max(1, len(out)))
                out[at:at] = out[other : other + chance.randrange(1, 64)]
    return bytes(out)


def crafted(one: Honest, chance: random.Random) -> tuple[bytes, bytes]:
    """A release with flipped bytes: in its stream, mostly; or in its frame, or in its header."""
    made = one.made
    kind = chance.randrange(8)
    if kind == 0:
        return flipped(made.sealed.header, chance), made.sealed.payload
    payload = flipped(made.sealed.payload, chance) if kind == 1 else one.pack.compress(flipped(one.stream, chance))
    return codec.seal(replace(made.release, payload_sha256=sha256(payload).digest()), payload).header, payload


def judged(one: Honest, header: bytes, payload: bytes) -> bool:
    """Whether a release is admitted; what is admitted must survive being sealed again, or it is a finding."""
    try:
        admitted: Admitted = admit(header, payload, one.maker.plan_of, lambda tenant, agent: True, NOW)
    except Refused:
        return False
    values = admitted.values
    if values.columns:
        partition, rows = one.maker.plan.discovered, admitted.release.rows
        assert all(column.dtype == np.int64 and len(column) == rows for column in values.columns.values())
        keys = None if partition is None or values.keys is None else arrow.Keys(partition.label, values.keys)
        again = replace(admitted.release, payload_sha256=sha256(payload := arrow.encode(values.columns, keys)).digest())
        sealed = codec.seal(again, payload)
        twice = admit(sealed.header, sealed.payload, one.maker.plan_of, lambda tenant, agent: True, NOW).values
        assert twice.keys == values.keys
        assert all(np.array_equal(twice.columns[name], column) for name, column in values.columns.items())
    return True


def run(streams: int, seed: int, target: Target) -> dict[str, Any]:
    """Try every seed, in children; what was found."""
    shared = mmap.mmap(-1, 24)  # the seed in work, how many were refused, how many admitted
    findings: list[dict[str, object]] = []
    at, end = seed, seed + streams
    while at < end:
        pid = os.fork()
        if pid == 0:
            _child(shared, at, min(at + BATCH, end), target)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            at = min(at + BATCH, end)
        else:
            guilty = struct.unpack_from("<q", shared, 0)[0]
            why = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            findings.append({"seed": guilty, "why": why})
            at = guilty + 1
    _, refused, admitted = struct.unpack("<qqq", shared)
    return {"streams": streams, "refused": refused, "admitted": admitted, "findings": findings}


def _child(shared: mmap.mmap, first: int, end: int, target: Target) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.disable()  # the parent says which seed it was
    code, one = 0, first
    try:
        for one in range(first, end):
            struct.pack_into("<q", shared, 0, one)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            where = 16 if target(one) else 8
            struct.pack_into("<q", shared, where, struct.unpack_from("<q", shared, where)[0] + 1)
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is a finding
        sys.stderr.write(f"seed {one}: {type(error).__name__}\n")
        sys.stderr.flush()
        code = 1
    os._exit(code)


def main() -> None:
    """Read the options, flip, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ones = honest()

    def target(seed: int) -> bool:
        chance = random.Random(seed)
        one = chance.choice(ones)
        return judged(one, *crafted(one, chance))

    sys.stdout.write(json.dumps(run(given.streams, given.seed, target)))


if __name__ == "__main__":
    main()
