"""Black-box audit of `max_windows`: over a period nobody loses more than so many windows' loss.

One sample is all releases of one period; the unit sends the most it may in every window of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_agg.contract.plan import parse_plan
from edge_agg.privacy import noise
from edge_agg.privacy.measurement import compile_plan
from tests.privacy.audit import mutants
from tests.privacy.audit.audit import report
from tests.privacy.audit.cases import MECHANISMS, Case, at_most, others
from tests.privacy.audit.estimate import audited
from tests.privacy.audit.path import drained, sampled, table

if TYPE_CHECKING:
    from pathlib import Path

    from tests.privacy.audit.estimate import Sample

pytestmark = pytest.mark.slow

PERIOD, PERIODS, REPLICAS = 4, 25, 256
COUNTED = {"laplace": 2, "gaussian": 1}
"""A Gaussian over four windows in place of two loses the square root of two more: too little to be caught here."""
PART = {"laplace": 0.5, "gaussian": 1.0}
"""Of epsilon, for one window."""


def case_of(mechanism: str) -> Case:
    """One window of four days, or two at half the epsilon each."""
    period = f'max_windows = {COUNTED[mechanism]}\nperiod = "{PERIOD}d"'
    return Case(kind="distinct_units", mechanism=mechanism, max_rows=1, epsilon=PART[mechanism], period=period)


def claim_of(case: Case) -> float:
    """What a period costs: so many windows' pure epsilon, or their rho at the plan's delta."""
    windows = COUNTED[case.mechanism]
    if case.mechanism == "laplace":
        return windows * case.epsilon
    return noise.epsilon_of(compile_plan(parse_plan(case.plan(1))).charge.rho * windows, case.delta)


def found(home: Path, case: Case) -> float:
    """The lower bound on what a period loses."""

    def sample(name: str, *, with_it: bool) -> Sample:
        rows = [*others(case), *(at_most(case) if with_it else [])]
        released = sampled(home / name, case, rows, windows=PERIOD * PERIODS, replicas=REPLICAS)
        apart = released.reshape(PERIODS, PERIOD, REPLICAS, -1)
        return apart.transpose(0, 2, 1, 3).reshape(PERIODS * REPLICAS, -1)

    sides = [(sample(f"with{i}", with_it=True), sample(f"without{i}", with_it=False)) for i in range(2)]
    return audited(sides[0], sides[1], case.delta)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_period_loses_no_more_than_its_windows(tmp_path: Path, mechanism: str) -> None:
    """The lower bound is no more than `max_windows` windows' loss. False-alarm rate: 2e-6."""
    case = case_of(mechanism)
    epsilon = found(tmp_path, case)
    report(f"a period, {mechanism}: {epsilon:.2f} of {claim_of(case):.2f}, {PERIODS * REPLICAS} runs a side")
    assert epsilon <= claim_of(case)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_ledger_pays_for_so_many_windows(tmp_path: Path, mechanism: str) -> None:
    """The claim is what was charged: the releases of each period say `max_windows` charges together, at its first."""
    case = case_of(mechanism)
    windows = drained(tmp_path / "run", case.plan(1), table([], 2 * PERIOD, 1), 2 * PERIOD)
    once = compile_plan(parse_plan(case.plan(1))).charge.rho
    assert [window.release.charge.rho for window in windows] == [COUNTED[mechanism] * once, 0, 0, 0] * 2


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_counting_in_every_window_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    """Mutant: nobody ever runs out of windows."""
    mutants.periods_without_end(monkeypatch)
    case = case_of(mechanism)
    assert found(tmp_path, case) > claim_of(case)
