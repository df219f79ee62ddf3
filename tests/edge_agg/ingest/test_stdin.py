"""Standard input: what a pipe can do. What all sources share is in tests/conformance."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Literal

import pytest

from edge_agg.config.tables import StdinTable
from edge_agg.errors import SourceUnreadable
from edge_agg.ingest.stdin import StdinSource
from tests.conformance.harness import csv, make_rows, ndjson
from tests.conformance.inlet import COLUMNS, FakeInlet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def drained(pieces: Sequence[bytes], form: Literal["ndjson", "csv"] = "ndjson") -> FakeInlet:
    """What a source hands over of a pipe into which these pieces are written one by one."""
    inlet = FakeInlet()

    async def whole() -> None:
        out, into = os.pipe()
        source = StdinSource(StdinTable(format=form), descriptor=out, gather_s=0.005)
        task = asyncio.create_task(source.deliver(inlet, asyncio.Event(), drain=True))
        for piece in pieces:
            os.write(into, piece)
            await asyncio.sleep(0.02)
        os.close(into)
        async with asyncio.timeout(20):
            await task
        os.close(out)

    asyncio.run(whole())
    return inlet


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_lines_are_whole_wherever_the_pieces_end(form: Literal["ndjson", "csv"]) -> None:
    """A line that comes in pieces is one event, also the last, which has no end; so is a header.

    Mutant: each piece taken for whole lines.
    """
    text = (ndjson if form == "ndjson" else csv)(make_rows(6)).removesuffix(b"\n")
    inlet = drained([text[at : at + 70] for at in range(0, len(text), 70)], form)
    assert [row["n"] for row in inlet.rows] == list(range(6))
    assert inlet.rejected == 0


def test_a_header_that_does_not_fit_rejects_what_follows() -> None:
    """A CSV without the columns asked for: every line is counted, and the source goes on to the end."""
    assert drained([b"a,b\n1,2\n3,4\n"], "csv").rejected == 2
    assert drained([b'a,"b\n1,2\n3,4\n'], "csv").rejected > 0


def test_a_file_is_read_as_a_pipe_is(tmp_path: Path) -> None:
    """`edge-agg run < events.ndjson` works: a file is always ready, and ends."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(ndjson(make_rows(1000)))
    inlet = FakeInlet()
    with path.open("rb") as file:
        source = StdinSource(StdinTable(), descriptor=file.fileno())
        source.check(COLUMNS)
        asyncio.run(source.deliver(inlet, asyncio.Event(), drain=True))
    assert len(inlet.rows) == 1000
    assert inlet.current == [False, True]
    with pytest.raises(SourceUnreadable):
        source.check(COLUMNS)
