"""How little less noise the black-box audit notices: its statistical power, printed.

A factor of 1.5 under Laplace noise, and of 2 under Gaussian noise, it has to notice; what it sees below is printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_agg.contract.plan import parse_plan
from edge_agg.privacy import noise
from edge_agg.privacy.measurement import compile_plan
from tests.privacy.audit import mutants
from tests.privacy.audit.audit import Runs, audit, report
from tests.privacy.audit.cases import DELTA, EPSILON, Case, Row, at_most, others
from tests.privacy.audit.estimate import audited
from tests.privacy.audit.path import sampled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.privacy.audit.estimate import Sample

pytestmark = pytest.mark.slow

FACTORS = {"laplace": (1.1, 1.2, 1.3, 1.5), "gaussian": (1.3, 1.5, 1.75, 2.0)}
RUNS = {"laplace": Runs(25), "gaussian": Runs(50)}


@pytest.mark.parametrize(("mechanism", "sure"), [("laplace", 1.5), ("gaussian", 2.0)])
def test_the_power_of_the_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str, sure: float) -> None:
    """Less noise by the factor that is sure is noticed; the smallest that was is printed."""
    found, runs = {}, RUNS[mechanism]
    for factor in FACTORS[mechanism]:
        with monkeypatch.context() as patch:
            mutants.less_noise(patch, factor)
            case = Case(kind="count", mechanism=mechanism)
            found[factor] = audit(tmp_path / str(factor), case, "at most", runs=runs)["at most"]
    caught = [factor for factor, epsilon in found.items() if epsilon > EPSILON]
    bounds = ", ".join(f"{factor} less: {epsilon:.2f}" for factor, epsilon in found.items())
    report(f"power, count, {mechanism}, {runs.total} runs: a factor of {min(caught)} is noticed ({bounds})")
    assert sure in caught


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_gaussian_plan_at_its_usual_delta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """A plan with delta 1e-6 cannot be audited there; at delta 1e-2 it loses no more than its rho implies.

    The second run is the mutant, half the noise. False-alarm rate: 2e-6.
    """
    case = Case(kind="count", mechanism="gaussian", loose=1e-6)
    claim = noise.epsilon_of(compile_plan(parse_plan(case.plan(1))).charge.rho, DELTA)
    mutants.less_noise(monkeypatch, factor)
    with_it, without = [*others(case), *at_most(case)], others(case)

    def sample(name: str, rows: list[Row]) -> Sample:
        return sampled(tmp_path / name, case, rows, windows=50, replicas=640)

    train, fresh = ((sample(f"with {run}", with_it), sample(f"without {run}", without)) for run in ("train", "fresh"))
    epsilon = audited(train, fresh, DELTA)
    report(f"a plan at delta 1e-6, audited at {DELTA}, {factor} less noise: {epsilon:.2f} of {claim:.2f}, 32000 runs")
    assert (epsilon > claim) == (factor > 1)
