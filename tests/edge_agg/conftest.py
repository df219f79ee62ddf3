"""What the tests of the agent's rooms share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from edge_agg import failpoint, telemetry
from edge_agg.journal import Journal
from tests.fakes import MONDAY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_agg.telemetry import Event

# A busy machine is no failure of the code: time is limited by pytest-timeout, not by the example.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A fresh journal, open."""
    opened = Journal.open(tmp_path / "state", "node", now=MONDAY)
    yield opened
    opened.close()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Event, dict[str, str | int | float]]]:
    """Every event that is emitted from now on."""
    heard: list[tuple[Event, dict[str, str | int | float]]] = []
    monkeypatch.setattr(telemetry, "_watchers", [lambda event, fields: heard.append((event, fields))])
    return heard


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    """No test leaves a failpoint armed."""
    yield
    failpoint.armed = None
