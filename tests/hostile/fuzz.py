"""Coverage-guided bytes against the part of the guard that is Python: framing, flatbuffers, header rules.

Run as `python -m tests.hostile.fuzz -runs=N -seed=S FOLDER`; libFuzzer ends the process with a code other than 0 when
anything but MalformedRelease comes out. The first byte chooses the target.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edge_agg.contract.arrow", "edge_agg.contract.codec"]):
    from edge_agg.contract import arrow, codec
from edge_agg.contract.errors import MalformedRelease
from tests.hostile.flip import honest

ONES = honest()


def framed(data: bytes) -> None:
    """A stream up to the point where pyarrow would see it."""
    wanted = arrow.schema(["departures", "delay__rows", "delay__sum"])
    _, batch = arrow._frame(data)
    arrow._check_batch(batch, wanted, 10)


def opened(data: bytes) -> None:
    """A header without a payload."""
    codec.open_sealed(data, b"")


TARGETS = (framed, opened)


def one_input(data: bytes) -> None:
    """What libFuzzer calls."""
    if not data:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except MalformedRelease:
        return


def main() -> None:
    """Write the honest inputs as a start, then fuzz."""
    folder = Path(sys.argv[-1])
    for i, one in enumerate(ONES):
        (folder / f"stream-{i}").write_bytes(b"\0" + one.stream)
        (folder / f"header-{i}").write_bytes(b"\1" + one.made.sealed.header)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
