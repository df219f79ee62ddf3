"""A sharper black box for Gaussian noise: by how many of its standard deviations does a unit move a release?

Epsilon at a delta hides a factor: zCDP's conversion is loose, so a Gaussian release may lose a quarter more before its
lower bound passes the plan's epsilon. What is calibrated is rho, and Gaussian noise at rho makes every event's
probabilities at most mu = sqrt(2 rho) normal quantiles apart, over all vectors together. Here rho is the textbook's.
Noise on integers is not quite that of reals: at the scales of these cases, 2.6 and more, their tails agree to 1e-9.

False-alarm rate: 2e-6 for each neighbour. Not proved: losses that other noise than a Gaussian would make.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from tests.privacy.audit import mutants
from tests.privacy.audit.audit import Runs, audit, report
from tests.privacy.audit.cases import DELTA, EPSILON, KINDS, Case
from tests.privacy.audit.estimate import mu_hat
from tests.privacy.audit.reference import rho_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

MU = math.sqrt(2 * rho_of(EPSILON, DELTA))
RUNS = Runs(100)
MANY = Runs(100, replicas=640)


def found(home: Path, case: Case, neighbour: str, runs: Runs) -> float:
    """The lower bound on mu, printed."""
    mu = audit(home, case, neighbour, runs=runs, hat=mu_hat)[neighbour]
    report(f"{case.kind}, gaussian: {neighbour} {mu:.3f} of mu {MU:.3f}; {runs.total} runs")
    return mu


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_moves_a_release_farther_than_rho_says(tmp_path: Path, kind: str) -> None:
    """The lower bound on mu is no more than what the plan's epsilon and delta come to."""
    assert found(tmp_path, Case(kind=kind, mechanism="gaussian"), "at most", RUNS) <= MU


def test_nobody_moves_it_farther_by_a_key_too_many(tmp_path: Path) -> None:
    """The same for the neighbour that shows the mutant below."""
    assert found(tmp_path, Case(kind="distinct_units", mechanism="gaussian", max_rows=1), "spread", MANY) <= MU


def test_one_partition_too_many_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a unit keeps L0 + 1 cells: a factor of the root of two, which epsilon does not show."""
    mutants.bounds_of(monkeypatch, max_partitions=1)
    assert found(tmp_path, Case(kind="distinct_units", mechanism="gaussian", max_rows=1), "spread", MANY) > MU


def test_a_third_less_noise_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: two thirds of the scale; epsilon shows a factor of 1.75 and more."""
    mutants.less_noise(monkeypatch, 1.5)
    assert found(tmp_path, Case(kind="count", mechanism="gaussian"), "at most", MANY) > MU
