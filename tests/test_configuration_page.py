"""docs/configuration.md names every key that the config files may have, as the tables declare it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from cloud_collector.config.tables import LimitsTable
from docs import configuration

if TYPE_CHECKING:
    import pytest


class Shifted(LimitsTable, frozen=True, kw_only=True):
    """`[limits]`: how much is taken at once."""

    max_batch: int = 65


def short_rows(page: str) -> list[str]:
    """The rows that lack one of their four cells: key, type, default, meaning."""
    rows = re.findall(r"^\| `.*", page, re.MULTILINE)
    assert len(rows) > 80, "the rows are written in a way that is not read here"
    cells = [(row, [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]) for row in rows]
    return [row for row, found in cells if len(found) != 4 or not all(found)]


def test_the_page_is_what_the_tables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is the one that `make config-docs` writes.

    Mutant: a default that changes in the tables alone.
    """
    assert configuration.PAGE.read_text() == configuration.page(), "run `make config-docs`"
    monkeypatch.setattr(configuration, "File", msgspec.defstruct("File", [("limits", Shifted, Shifted())]))
    assert "| `max_batch` | integer | `65` | Releases in one request. |" in configuration.page()
    assert configuration.PAGE.read_text() != configuration.page()


def test_every_key_has_a_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of the page has its key, type, default and meaning.

    Mutant: fields without a string below them.
    """
    assert short_rows(configuration.page()) == []
    monkeypatch.setattr(configuration, "_meanings", lambda _kind: {})
    assert len(short_rows(configuration.page())) > 80
