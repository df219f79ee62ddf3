"""What all tests share: figures that a test measured are printed at the end of the run, also when it passes.

A test reports one with `record_property("figure", "audit of count: found 0.81 of 1.00")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from edge_agg import ceilings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.terminal import TerminalReporter

# A busy machine is no failure of the code: time is limited by pytest-timeout, not by Hypothesis' 200 ms an example.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def _memory_of_the_tests_own() -> Iterator[None]:
    """An agent inside the tests' process must not take what all the tests before it hold for its own memory.

    Its limit is then never met, but where a test says how much is resident; real processes are measured as they are.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "resident_bytes", lambda: 0)
        yield


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print every figure, in the order of the tests."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    figures = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.write_line(str(text))
