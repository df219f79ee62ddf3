"""What the tests of the preview share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge_agg.preview.samples import events

if TYPE_CHECKING:
    from tests.fakes import Row


@pytest.fixture
def rows() -> list[Row]:
    """The sample's rows."""
    return events()
