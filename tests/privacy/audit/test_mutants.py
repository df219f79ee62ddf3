"""The black-box audit catches what it is for: rules broken on purpose, one at a time, seen from the releases alone.

Under Gaussian noise a mutant that only doubles the square of a distance does not show in epsilon, whose conversion is
loose: one partition more shows in `test_gaussian.py`. A short hash does so in half of the windows alone, and is shown
under Laplace noise here; bounding does not know the mechanism. The grey box catches all of them in every norm
(`tests/edge_agg/privacy/test_distance.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.privacy.audit import mutants
from tests.privacy.audit.audit import RUNS, Runs, audit, report, summary
from tests.privacy.audit.cases import EPSILON, KINDS, MECHANISMS, Case

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def bound_on(home: Path, case: Case, neighbour: str, *, times: int = 1) -> float:
    """The lower bound on epsilon, printed; `times` the usual runs."""
    runs = Runs(RUNS[case.mechanism].windows * times)
    found = audit(home, case, neighbour, runs=runs)
    report(f"mutant: {summary(case, found, runs)}")
    return found[neighbour]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", KINDS)
def test_half_the_noise_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mechanism: str) -> None:
    """Mutant: half the scale, for every kind."""
    mutants.less_noise(monkeypatch, 2.0)
    assert bound_on(tmp_path, Case(kind=kind, mechanism=mechanism), "at most") > EPSILON


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", KINDS)
def test_half_the_noise_on_discovered_keys_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mechanism: str
) -> None:
    """Mutant: half the scale, of the selection as well as of the vectors, for every kind."""
    mutants.less_noise(monkeypatch, 2.0)
    assert bound_on(tmp_path, Case(kind=kind, mechanism=mechanism, discovered=True), "at most", times=3) > EPSILON


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", ["count", "sum", "histogram"])
def test_no_bound_on_rows_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, mechanism: str) -> None:
    """Mutant: every row of a unit in a cell is kept."""
    mutants.bounds_of(monkeypatch, max_rows=mutants.NO_BOUND)
    assert bound_on(tmp_path, Case(kind=kind, mechanism=mechanism), "more") > EPSILON


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_bound_on_partitions_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    """Mutant: every cell of a unit is kept, three in place of one."""
    mutants.bounds_of(monkeypatch, max_partitions=mutants.NO_BOUND)
    case = Case(kind="distinct_units", mechanism=mechanism, max_rows=1)
    assert bound_on(tmp_path, case, "more", times=2) > EPSILON


@pytest.mark.parametrize("discovered", [False, True], ids=["public", "discovered"])
def test_one_partition_too_many_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, discovered: bool) -> None:
    """Mutant: a unit keeps L0 + 1 cells."""
    mutants.bounds_of(monkeypatch, max_partitions=1)
    case = Case(kind="distinct_units", mechanism="laplace", discovered=discovered, max_rows=1)
    assert bound_on(tmp_path, case, "spread", times=4 if discovered else 1) > EPSILON


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_clipping_after_the_sum_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    """Mutant: what a unit adds to a cell is not clipped before it meets the others'."""
    mutants.clipped_after_the_sum(monkeypatch)
    assert bound_on(tmp_path, Case(kind="sum by unit", mechanism=mechanism), "more") > EPSILON


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_released_twice_and_charged_once_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    """Mutant: what one unit is shows in three vectors, each made as if it were the only one."""
    mutants.charged_once_released_twice(monkeypatch)
    assert bound_on(tmp_path, Case(kind="variance", mechanism=mechanism), "at most", times=3) > EPSILON


def test_units_told_apart_by_16_bits_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: one unit takes another's place, so two cells move where one may."""
    mutants.units_by_16_bits(monkeypatch)
    assert bound_on(tmp_path, Case(kind="count", mechanism="laplace"), "namesake", times=4) > EPSILON
