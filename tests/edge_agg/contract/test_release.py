"""The values of a release: exact charges, and keys that say what a release is about."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.plan import PlanHash
from edge_agg.contract.release import DELTA_GRID, RHO_GRID, Charge, Link, Release, Sealed, Status

LOSSES = st.builds(Fraction, st.integers(0, 2**50), st.integers(1, 2**50))
START = datetime(2013, 1, 1, tzinfo=UTC)


@given(rho=LOSSES, delta=st.fractions(min_value=0, max_value=1))
def test_rounding_is_up_and_by_less_than_a_step(rho: Fraction, delta: Fraction) -> None:
    """A charge on the grid is never less than the loss, and less than one step more."""
    charge = Charge.rounded_up(rho=rho, delta=delta)
    assert 0 <= charge.rho - rho < Fraction(1, RHO_GRID)
    assert 0 <= charge.delta - delta < Fraction(1, DELTA_GRID)
    assert (charge.rho * RHO_GRID).denominator == (charge.delta * DELTA_GRID).denominator == 1


@settings(max_examples=50)
@given(charges=st.lists(st.tuples(LOSSES, LOSSES), max_size=6))
def test_charges_add_up_exactly(charges: list[tuple[Fraction, Fraction]]) -> None:
    """Sums of charges are exact, part by part: nothing is lost to rounding."""
    total = sum((Charge(rho=rho, delta=delta) for rho, delta in charges), Charge())
    assert total == Charge(
        rho=sum((rho for rho, _ in charges), Fraction(0)), delta=sum((delta for _, delta in charges), Fraction(0))
    )


@given(rho=LOSSES, delta=LOSSES, times=st.integers(0, 1000))
def test_a_charge_times_a_number_is_that_many_charges(rho: Fraction, delta: Fraction, times: int) -> None:
    """What a period costs is exactly its windows' charges, part by part; none of them is a refund."""
    charge = Charge(rho=rho, delta=delta)
    assert charge * times == Charge(rho=rho * times, delta=delta * times)
    assert charge * 3 == charge + charge + charge
    if rho or delta:
        with pytest.raises(ValueError, match="never negative"):
            charge * -1


@pytest.mark.parametrize(("rho", "delta"), [(Fraction(-1, 10**30), Fraction(0)), (Fraction(0), Fraction(-1, 10**30))])
def test_a_charge_is_never_negative(rho: Fraction, delta: Fraction) -> None:
    """No charge can give budget back."""
    with pytest.raises(ValueError, match="never negative"):
        Charge(rho=rho, delta=delta)


def a_release() -> Release:
    """A release of one window."""
    return Release(
        tenant="t",
        agent="jfk",
        link=Link(incarnation="0" * 32, seq=1, prev_hash=b""),
        plan="p",
        plan_version=1,
        plan_hash=PlanHash(b"h" * 32),
        window_start=START,
        window_end=START + timedelta(days=7),
        status=Status.LOST,
        account="a",
        charge=Charge(),
        cumulative=Charge(),
        max_partitions=1,
        max_rows_per_partition=5,
        max_nodes=3,
    )


def test_the_key_says_what_a_release_is_about() -> None:
    """What was said about a window is not part of which window it is about."""
    release = a_release()
    again = dataclasses.replace(
        release, status=Status.VETOED, link=Link(incarnation="1" * 32, seq=9, prev_hash=b"x" * 32)
    )
    assert again.key == release.key
    others = [
        dataclasses.replace(release, tenant="u"),
        dataclasses.replace(release, agent="lga"),
        dataclasses.replace(release, plan="q"),
        dataclasses.replace(release, plan_hash=PlanHash(b"i" * 32)),
        dataclasses.replace(release, window_start=START - timedelta(days=7)),
    ]
    assert len({release.key, *(other.key for other in others)}) == 6


def test_a_sealed_release_does_not_print_its_bytes() -> None:
    """Neither header nor payload reaches a log by way of `repr` (A6)."""
    shown = repr(Sealed(header=b"CANARY", payload=b"CANARY", hash=b"\0" * 32))
    assert "CANARY" not in shown


def test_values_are_frozen() -> None:
    """What was sealed cannot be changed afterwards."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        a_release().rows = 1  # type: ignore[misc]  # the point of the test
