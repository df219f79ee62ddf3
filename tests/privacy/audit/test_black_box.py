"""Black-box audit of the whole path, file to decoded release: does anybody lose more than the plan says?

Every kind of metric, under both mechanisms, with public and with discovered keys; the unit sends the most it may, or
ten times as much, or has a key of its own. The audit's lower bound must not exceed epsilon 1 at the plan's delta: 0 for
Laplace noise, 1e-2 for Gaussian noise, and 1e-2 more where keys are discovered.

False-alarm rate: 2e-6 for each neighbour of each case, 2e-4 for the file.
Not proved: the claim itself; a mechanism can lose more than its audit finds. See docs/audit.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.privacy.audit.audit import audit, report, summary
from tests.privacy.audit.cases import EPSILON, KINDS, MECHANISMS, Case

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("discovered", [False, True], ids=["public", "discovered"])
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_loses_more_than_the_plan_says(tmp_path: Path, kind: str, mechanism: str, *, discovered: bool) -> None:
    """The lower bound on epsilon is no more than the plan's epsilon, for every neighbour."""
    case = Case(kind=kind, mechanism=mechanism, discovered=discovered)
    found = audit(tmp_path, case, "at most", "more", *(["alone"] if discovered else []))
    report(summary(case, found))
    assert max(found.values()) <= EPSILON


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", ["count", "histogram"])
def test_nobody_loses_more_over_two_partitions(tmp_path: Path, kind: str, mechanism: str) -> None:
    """The same where a unit may touch two of three cells, with three rows each."""
    case = Case(kind=kind, mechanism=mechanism, max_partitions=2, max_rows=3)
    found = audit(tmp_path, case, "at most", "more")
    report(summary(case, found))
    assert max(found.values()) <= EPSILON


@pytest.mark.parametrize("neighbour", ["spread", "namesake"])
def test_nobody_loses_more_by_one_key_too_many_or_a_similar_name(tmp_path: Path, neighbour: str) -> None:
    """The same for the neighbours that show two of the mutants, under the noise that shows them."""
    case = Case(kind="count", mechanism="laplace")
    found = audit(tmp_path, case, neighbour)
    report(summary(case, found))
    assert max(found.values()) <= EPSILON


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_event_loses_more(tmp_path: Path, mechanism: str) -> None:
    """The same where every event is its own unit: one row more or less."""
    case = Case(kind="mean", mechanism=mechanism, max_rows=1, event=True)
    found = audit(tmp_path, case, "at most")
    report(summary(case, found))
    assert max(found.values()) <= EPSILON
