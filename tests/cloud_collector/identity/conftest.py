"""What the tests of identity share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cloud_collector.fleet import Fleet

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """An authority and a collector that trusts it, not yet running."""
    return Fleet(tmp_path)
