"""The ledger's book: what it keeps adding to answers as adding everything up again does, exactly."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted
from edge_agg.privacy import spans
from edge_agg.privacy.ledger import Book, Budget, Entry, check_room, heaviest, total
from tests.fakes import DAY, MONDAY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

amounts = st.builds(Fraction, st.integers(0, 5), st.sampled_from([1, 2, 3, 2**40, 10**9]))
charges = st.builds(Charge, rho=amounts, delta=amounts)
entries = st.builds(
    lambda start, covers, charge: Entry(
        window_start=MONDAY + start * DAY,
        charge=charge,
        through=None if covers is None else MONDAY + (start + covers) * DAY,
    ),
    st.integers(-30, 30),
    st.none() | st.integers(0, 12),
    charges,
)
horizons = st.integers(1, 40).map(lambda days: timedelta(days=days)) | st.just(timedelta(microseconds=1))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of two steps, so that a few charges fill several."""
    monkeypatch.setattr(spans, "_BLOCK", 2)


def differs(before: Sequence[Entry], added: Sequence[Entry], horizon: timedelta) -> bool:
    """Whether some answer differs from that of adding everything up again."""
    known = list(before)
    book = Book(total(before), lambda: ((to_us(one.window_start), to_us(one.last), one.charge) for one in known))
    for new in added:
        wanted = heaviest(horizon, [*known, new], around=new.window_start, through=new.last)
        if book.heaviest_with(horizon, new) != wanted:
            return True
        for rho in (wanted.rho, wanted.rho - Fraction(1, 10**12)):
            budget = Budget(rho=rho, delta=wanted.delta, horizon=horizon)
            if has_room(budget, book, new) != has_room(budget, known, new):
                return True
        known.append(new)
        book.add(new)
        first, last = min(one.window_start for one in known), max(one.last for one in known)
        if book.total != total(known) or book.heaviest(horizon) != heaviest(horizon, known, around=first, through=last):
            return True
    return False


def has_room(budget: Budget, of: Sequence[Entry] | Book, new: Entry) -> bool:
    """Whether a charge fits."""
    try:
        check_room(budget, of, new)
    except BudgetExhausted:
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(before=st.lists(entries, max_size=8), added=st.lists(entries, min_size=1, max_size=12), horizon=horizons)
def test_a_book_answers_as_the_whole_list_does(before: list[Entry], added: list[Entry], horizon: timedelta) -> None:
    """Guarantee: exactly the same charges find room, in any order, with gaps, periods and any denominators."""
    assert not differs(before, added, horizon)


def _in_order(n: int, charge: Charge) -> list[Entry]:
    return [Entry(window_start=MONDAY + i * DAY, charge=charge) for i in range(n)]


ONE = Charge(rho=Fraction(1, 3), delta=Fraction(1, 2**40))
OTHER = Charge(rho=Fraction(1, 7))


def _right(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mutant."""


def _one_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    real = spans.Spans.__init__
    monkeypatch.setattr(spans.Spans, "__init__", lambda self, length, charges=(): real(self, length + 1, charges))


def _one_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    real = spans.Spans.__init__
    monkeypatch.setattr(spans.Spans, "__init__", lambda self, length, charges=(): real(self, length - 1, charges))


def _never_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans.Spans, "_refine", lambda self, denominator: 1)


def _not_kept_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans.Spans, "add", lambda *_: None)


@pytest.mark.parametrize(
    ("mutate", "caught"),
    [
        (_right, False),
        (_one_too_long, True),
        (_one_too_short, True),
        (_never_refined, True),
        (_not_kept_in_step, True),
    ],
)
def test_mutants_are_caught(
    monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None], *, caught: bool
) -> None:
    """Mutants: spans of another length; amounts in another unit; a book that is not kept in step."""
    mutate(monkeypatch)
    periods = [
        Entry(window_start=MONDAY + 7 * i * DAY, charge=OTHER, through=MONDAY + (7 * i + 5) * DAY) for i in range(6)
    ]
    close = [
        Entry(window_start=MONDAY + 100 * DAY + gap, charge=ONE)
        for gap in (timedelta(0), timedelta(days=7, microseconds=-1), timedelta(days=14, microseconds=-1))
    ]
    assert differs(_in_order(20, ONE), [*_in_order(20, OTHER), *periods, *close], timedelta(days=7)) == caught
