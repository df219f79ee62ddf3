"""Black-box audit of the threshold: how often does a key show that only one unit has?

Issue 2922 of opendp/opendp: the library's threshold mechanisms release at the threshold and account for what lies
strictly above it. Here the plan's delta is made just the map's at its threshold, so that this one step shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_agg.contract.plan import parse_plan
from edge_agg.privacy.measurement import compile_plan
from tests.privacy.audit import mutants
from tests.privacy.audit.audit import Runs, audit, report
from tests.privacy.audit.cases import EPSILON, MECHANISMS, Case, Row, alone
from tests.privacy.audit.estimate import clopper_pearson
from tests.privacy.audit.path import drained, sampled, table

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

RUNS = Runs(100, replicas=400)


def tight(mechanism: str) -> Case:
    """Nearly all of the loss for the selection, and a delta that is just the map's at the threshold."""
    wide = Case(kind="distinct_units", mechanism=mechanism, discovered=True, max_rows=1, weight=9.0)
    selection = compile_plan(parse_plan(wide.plan(1))).selection
    assert selection is not None
    return replace(wide, discovery=selection.delta * (1 + 1e-9))


def rate(home: Path, case: Case) -> tuple[float, float]:
    """Clopper-Pearson bounds on how often a lone unit's key shows; each wrong with probability 5e-7 at most."""
    sample = sampled(home, case, alone(case), windows=RUNS.windows, replicas=RUNS.replicas)
    hits = int((~np.isnan(sample[:, -1])).sum())
    low, up = clopper_pearson(hits, len(sample))
    bounds = f"{low:.4f} .. {up:.4f} of {case.discovery:.4f}"
    report(f"{case.mechanism}: a lone key showed {hits} times in {len(sample)}: {bounds}")
    return low, up


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_key_of_ones_own_shows_no_more_often_than_delta(tmp_path: Path, mechanism: str) -> None:
    """The rate is within delta; under Laplace noise, whose map is exact, it is delta. False-alarm rate: 1e-6."""
    case = tight(mechanism)
    low, up = rate(tmp_path / "run", case)
    assert low <= case.discovery
    assert mechanism == "gaussian" or up >= case.discovery


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_releasing_at_the_threshold_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    """Mutant: `>=` in place of `>`, the bug of issue 2922."""
    case = tight(mechanism)
    mutants.released_at_or_above(monkeypatch)
    assert rate(tmp_path / "run", case)[0] > case.discovery


def shown(home: Path, case: Case) -> tuple[float, float]:
    """Bounds on how often any key shows of a unit that has fifty of its own, where it may touch one."""
    rows = [Row("9", f"own{i}") for i in range(50)]
    windows = drained(home, case.plan(1), table(rows, RUNS.windows, RUNS.replicas), RUNS.windows)
    hits = sum(len({key.partition(".")[0] for key in window.keys or ()}) for window in windows)
    low, up = clopper_pearson(hits, RUNS.total)
    report(f"one of fifty own keys showed {hits} times in {RUNS.total}: {low:.4f} .. {up:.4f} of {case.discovery:.4f}")
    return low, up


def test_a_unit_with_many_keys_shows_none_of_them_more_often(tmp_path: Path) -> None:
    """Delta is for all keys of a unit together, also for those that bounding drops. False-alarm rate: 1e-6."""
    case = tight("laplace")
    assert shown(tmp_path / "run", case)[0] <= case.discovery


def test_delta_for_one_key_of_many_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a unit keeps ten keys, and delta is that of one."""
    case = tight("laplace")
    mutants.bounds_of(monkeypatch, max_partitions=9)
    assert shown(tmp_path / "run", case)[0] > case.discovery


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_threshold_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    """Mutant: a key is released as soon as its noisy units are more than one; epsilon shows it as well."""
    mutants.no_threshold(monkeypatch)
    case = Case(kind="count", mechanism=mechanism, discovered=True)
    assert audit(tmp_path, case, "alone", runs=Runs(10))["alone"] > EPSILON
