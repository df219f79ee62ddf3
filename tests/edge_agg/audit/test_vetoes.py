"""Windows that a device's policy forbade, gone over again: no charge, no values, a rule named only there."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from edge_agg.audit import chain as room
from edge_agg.audit.books import open_books
from edge_agg.audit.recount import recount
from edge_agg.contract.release import Veto
from edge_agg.contract.v1 import release_pb2 as pb
from edge_agg.journal import Journal
from edge_agg.privacy.measurement import compile_plan
from edge_agg.series import Account, Series
from edge_agg.window import Span
from tests.edge_agg.audit.journals import BUDGETS, PROMISED
from tests.fakes import COUNT, MONDAY, WEEK, small_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import pytest


def close_vetoed(folder: Path, weeks: int) -> None:
    """The next windows of a plan that the policy forbids."""
    with closing(Journal.open(folder, "node", now=MONDAY)) as journal:
        series = Series(
            tenant="default",
            measurement=compile_plan(small_plan(COUNT, name="forbidden")),
            account=Account(name="people", budget=BUDGETS["people"]),
            journal=journal,
            span=Span(start=MONDAY, end=None),
            veto=Veto.COLUMN,
        )
        for week in range(weeks):
            series.close(MONDAY + week * WEEK)


def test_vetoed_windows_follow(folder: Path, problems: Callable[[], Sequence[str]]) -> None:
    """Guarantee: they take their places in the chain and charge nobody; and they are counted, though never charged."""
    close_vetoed(folder, 3)
    assert problems() == []
    with open_books(folder) as books:
        ((plan, statuses),) = recount(books, PROMISED).uncharged.items()
    assert plan.startswith("forbidden ")
    assert dict(statuses) == {"vetoed": 3}


def test_a_veto_on_a_released_window_is_found(
    forge: Callable[..., None], problems: Callable[[], Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee: a rule beside another status is a difference. Mutant: without the check nothing is said."""

    def vetoed(header: Any) -> None:
        header.veto = pb.VETO_PLAN

    forge(3, vetoed)
    assert [problem for problem in problems() if "names a veto, and was not vetoed" in problem]
    monkeypatch.setattr(room, "_veto", lambda *_: iter(()))
    assert problems() == []


def test_a_charge_for_a_vetoed_window_is_found(
    folder: Path, spoil: Callable[..., None], problems: Callable[[], Sequence[str]]
) -> None:
    """Guarantee: what was vetoed cannot have cost anything."""
    close_vetoed(folder, 1)
    spoil(
        "INSERT INTO charge SELECT account, (SELECT plan_hash FROM release WHERE status='vetoed'), window_start_us, 1, "
        "rho, delta, NULL FROM charge WHERE rowid=1"
    )
    assert any("is vetoed, and was charged" in problem for problem in problems())
