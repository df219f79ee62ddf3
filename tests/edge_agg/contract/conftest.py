"""What the contract's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.edge_agg.contract.plans import PLAN, edited

if TYPE_CHECKING:
    from collections.abc import Callable

# A busy machine is no failure of the code: time is limited by pytest-timeout, not by the example.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def plan_text() -> str:
    """The plan of the design, as people write it."""
    return PLAN


@pytest.fixture(scope="session")
def edit() -> Callable[..., str]:
    """Change lines of the plan: `edit((old, new), ...)`, where each `old` must stand in the text exactly once."""
    return edited
