"""What is kept of a unit is a fresh uniform sample in every window: seen from outside, by the spread of releases.

Forty windows hold the same units, each in three cells of which one is kept. If the sample is uniform and fresh, each
released count is Binomial(units, 1/3) and noise, independent from window to window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import stats

from tests.privacy.audit import mutants
from tests.privacy.audit.audit import report
from tests.privacy.audit.cases import Case, Row
from tests.privacy.audit.path import sampled

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

pytestmark = pytest.mark.slow

FALSE_ALARM = 1e-6
UNITS, WINDOWS = 600, 40
CASE = Case(kind="count", mechanism="laplace", max_rows=1)
NOISE_VARIANCE = 2 * np.exp(-1) / (1 - np.exp(-1)) ** 2
"""Of discrete Laplace noise of scale 1."""


def released(home: Path) -> npt.NDArray[np.float64]:
    """The released counts: float64[WINDOWS, 3]."""
    rows = [Row(f"u{i}", key) for i in range(UNITS) for key in CASE.cells]
    return sampled(home, CASE, rows, windows=WINDOWS, replicas=1)


def least(counts: npt.NDArray[np.float64]) -> float:
    """The least p-value of mean and variance, by the normal approximation, in each cell; both sides."""
    mean, variance = UNITS / 3, UNITS * 2 / 9 + NOISE_VARIANCE
    off = (counts.mean(axis=0) - mean) / np.sqrt(variance / WINDOWS)
    spread = counts.var(axis=0, ddof=1) * (WINDOWS - 1) / variance
    free = WINDOWS - 1
    tails = np.minimum(stats.chi2.sf(spread, free), stats.chi2.cdf(spread, free))
    return float(np.concatenate([2 * stats.norm.sf(np.abs(off)), 2 * tails]).min())


def test_the_sample_is_uniform_and_fresh_in_every_window(tmp_path: Path) -> None:
    """Guarantee: no cell is favoured; what one window kept of a unit says nothing about the next. Six tests at 1e-6."""
    found = least(released(tmp_path / "run"))
    report(f"sampling: least p-value {found:.2g} of 6 tests")
    assert found > FALSE_ALARM


def test_a_salt_that_repeats_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: one salt for all windows; every window keeps the same of each unit, so counts spread by noise alone."""
    monkeypatch.setattr("edge_agg.series.window_salt", lambda *_: b"the same salt for every window..")
    assert least(released(tmp_path / "run")) < FALSE_ALARM


def test_a_sample_that_favours_a_cell_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: of each unit the cell with the least code is kept."""
    mutants.first_cells(monkeypatch)
    assert least(released(tmp_path / "run")) < FALSE_ALARM
