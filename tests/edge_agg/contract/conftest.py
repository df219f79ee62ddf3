"""What the contract's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.edge_agg.contract.plans import PLAN, edited

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def plan_text() -> str:
    """The plan of the design, as people write it."""
    return PLAN


@pytest.fixture(scope="session")
def edit() -> Callable[..., str]:
    """Change lines of the plan: `edit((old, new), ...)`, where each `old` must stand in the text exactly once."""
    return edited
