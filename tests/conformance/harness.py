"""How the suite talks to a kind of source: what each kind's harness does, and where harnesses are found.

A kind joins the suite with a module `harness_<kind>.py` beside this one that has `HARNESSES: dict[str, type]`; each
class takes a folder of its own and does what `Harness` says.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_agg.ingest.source import Source

Rows = list[dict[str, Any]]
CANARY = "Karina-Canary"
"""Stands in hostile input, and must never be seen again."""
START = datetime(2013, 1, 7, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client was told."""

    kind: Literal["ok", "wait", "refused", "silent"]
    """`silent`: this kind of source answers nobody, or did not answer."""
    text: str = ""
    """Every word of the answer; no value of a row is among them."""


SILENT = Answer(kind="silent")


class Harness(Protocol):
    """One kind of source, and the client that feeds it."""

    tells: ClassVar[bool]
    """Whether the client is answered: only then is `feed` more than silent."""
    keeps: ClassVar[bool]
    """Whether rows that were not yet safe come again by themselves after a restart (files, a broker)."""
    finite: ClassVar[bool]
    """Whether a drain hands over what was fed before it (files, a pipe); if not, a drain has nothing to read."""
    slow: ClassVar[bool]
    """Whether the kind needs so much that it belongs to the slow tests."""

    def __init__(self, folder: Path) -> None:
        """Use this folder and nothing outside it."""

    async def start(self) -> None:
        """Make ready what is there before any source: a broker, a folder, a pipe."""

    async def close(self) -> None:
        """End what `start` and `feed` began."""

    def source(self) -> Source:
        """A source as the agent builds it; called again, what a restarted agent has."""

    async def feed(self, rows: Rows) -> Answer:
        """Hand rows over as the kind's own client does, once; wait for the source to listen, and for its answer."""

    async def feed_raw(self, data: bytes) -> Answer:
        """Hand over bytes as if they were rows: a body, a message, a file."""

    async def end(self) -> None:
        """Say that nothing more comes, where the kind can say it (a pipe is closed)."""

    def spoiled(self) -> list[Source]:
        """Sources whose check refuses what they find, with the canary in it; none where it can look at nothing."""

    def hostile(self) -> list[bytes]:
        """What else this kind must survive, for `feed_raw`, beside :func:`hostile_text`; each holds the canary."""


def found() -> Iterator[tuple[str, Callable[[Path], Harness]]]:
    """Every harness there is, by name."""
    for path in sorted(Path(__file__).parent.glob("harness_*.py")):
        module = importlib.import_module(f"tests.conformance.{path.stem}")
        yield from module.HARNESSES.items()


def make_rows(count: int, *, first: int = 0) -> Rows:
    """Rows that can be told apart by `n`; each third misses what may be missing."""
    rows: Rows = []
    for n in range(first, first + count):
        row = {"t": START + timedelta(seconds=n), "who": f"{CANARY}-é-{n}", "x": n / 4, "n": n, "ok": n % 2 == 0}
        if n % 3 == 2:
            row |= {"x": None, "ok": None}
        rows.append(row)
    return rows


def ndjson(rows: Rows) -> bytes:
    """Rows as lines of JSON, without what is null."""
    lines = []
    for row in rows:
        plain = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items() if v is not None}
        lines.append(json.dumps(plain, ensure_ascii=False).encode() + b"\n")
    return b"".join(lines)


def csv(rows: Rows) -> bytes:
    """Rows as lines of CSV, the header first."""
    cells = [["" if row[k] is None else row[k].isoformat() if k == "t" else str(row[k]) for k in row] for row in rows]
    return b"".join(",".join(line).encode() + b"\n" for line in [list(rows[0]), *cells])


def hostile_text() -> list[bytes]:
    """Bytes that are no events, each with the canary in it: none may stop a source or be heard of again."""
    canary = CANARY.encode()
    return [
        canary,
        b"\xff\xfe" + canary,
        b"\x00" * 100 + canary,
        b'{"who": "' + canary,
        b'{"who": ["' + canary + b'"]}',
        b'{"n": 1e999, "who": "' + canary + b'"}',
        b'{"n": ' + b"9" * 400 + b', "who": "' + canary + b'"}',
        b'{"who": "' + canary + b'\xff"}',
        b'{"who": "\\ud800' + canary + b'"}',
        b'{"t": "' + canary + b'", "n": "' + canary + b'"}',
        b'{"who": "' + canary * 400 + b'"}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "who": "' + canary + b'"}',
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + canary,
        b'{"who": "' + canary * 90_000 + b'"}',
        b'"' + canary + b'"\n[1, 2]\nnull\n',
        b"\r\r\r" + canary + b"\r",
        b"\n" * 10_000 + canary,
    ]
