"""What the tests of the audit share: a journal, and ways to spoil it."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from edge_agg.audit import charges
from edge_agg.audit.books import open_books
from edge_agg.audit.recount import Recount, recount
from edge_agg.contract.v1 import release_pb2 as pb
from tests.edge_agg.audit.journals import PROMISED, write_journal
from tests.edge_agg.compiled import compiled_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a journal that nobody spoils."""
    folder = tmp_path_factory.mktemp("audit") / "state"
    write_journal(folder)
    return folder


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred audits need not search for a plan's scales again."""
    monkeypatch.setattr(charges, "compile_plan", compiled_once)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return shutil.copytree(whole, tmp_path / "state")


@pytest.fixture
def spoil(folder: Path) -> Iterator[Callable[..., None]]:
    """Write to the journal's file behind the agent's back."""
    db = apsw.Connection(str(folder / "journal.sqlite"))

    def write(statement: str, *values: Any) -> None:
        db.execute(statement, values)

    yield write
    db.close()


@pytest.fixture
def forge(folder: Path, spoil: Callable[..., None]) -> Callable[..., None]:
    """Change a header, and seal it and all that follow anew: as somebody would who knows how the chain is made."""

    def sealed_anew(seq: int, change: Callable[[Any], None]) -> None:
        with open_books(folder) as books:
            rows = list(books.releases)
        before = b""
        for row in rows:
            header = pb.ReleaseHeader.FromString(row.header)
            header.prev_hash = before
            if row.seq == seq:
                change(header)
            text = header.SerializeToString(deterministic=True)
            before = hashlib.sha256(text).digest()
            spoil("UPDATE release SET header=?, hash=? WHERE seq=?", text, before, row.seq)

    return sealed_anew


@pytest.fixture
def found(folder: Path) -> Callable[[], Recount]:
    """Go over the journal as it is now."""

    def again() -> Recount:
        with open_books(folder) as books:
            return recount(books, PROMISED)

    return again


@pytest.fixture
def problems(found: Callable[[], Recount]) -> Callable[[], Sequence[str]]:
    """What is wrong with it now."""
    return lambda: [f"{one.where}: {one.problem}" for one in found().differences]
