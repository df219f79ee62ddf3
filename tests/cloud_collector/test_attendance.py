"""What a notebook is told of who reported: every window once, of everybody who is expected for that time."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from cloud_collector.absence import END, Known
from cloud_collector.attendance import Attendance
from cloud_collector.caller import LOCAL
from cloud_collector.coverage import Told
from cloud_collector.query import Query
from edge_agg.contract.codec import to_us
from tests.cloud_collector.front import FakeLake, FakeRegistry, registered, week

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

WEEK_US = to_us(week(1)) - to_us(week(0))


@pytest.fixture
def lake(tmp_path: Path) -> FakeLake:
    """Empty."""
    return FakeLake(tmp_path)


def ask(
    lake: FakeLake, known: Mapping[tuple[str, str], Known], *, nodes: Sequence[str] = ("a", "b"), **more: Any
) -> list[dict[str, Any]]:
    """About the first five weeks, seen from week 5 and two hours."""
    asked: dict[str, Any] = {"version": None, "nodes": more.pop("where", ()), "every_us": None, "total": False}
    asked |= {"start_us": to_us(week(0)), "end_us": to_us(week(5)), **more}
    query = Query(
        FakeRegistry(registered(*nodes)),  # type: ignore[arg-type]  # a fake
        lake,  # type: ignore[arg-type]  # a fake
        lambda: None,
        known=lambda *_: contextlib.nullcontext(Told(known=known)),
        now_us=lambda: to_us(week(5)) + 7_200_000_000,
    )
    return list(query.coverage(Attendance(plan="flights", **asked), LOCAL).to_pylist())


def test_every_window_is_counted_once(lake: FakeLake) -> None:
    """What is here, what the chain passed, what is overdue: by node, by window, and in sum."""
    for n in (0, 2):
        lake.write("a", n)
    lake.write("a", 3, status="vetoed")
    known = {("default", "a"): Known(passed_us=to_us(week(3)), heard_us=to_us(week(4)))}
    first, other = ask(lake, known)
    about = {key: first[key] for key in ("node", "windows_expected", "released", "lost", "vetoed", "offline", "late")}
    assert about == {
        "node": "a", "windows_expected": 5, "released": 2, "lost": 1, "vetoed": 1, "offline": 1, "late": 0
    }  # fmt: skip
    assert (first["last_heard"], first["fenced"]) == (week(4), False)
    assert (other["offline"], other["last_heard"]) == (5, None)
    by_week = ask(lake, known, every_us=WEEK_US, nodes=("a",))
    said = [next(what for what in ("released", "lost", "vetoed", "offline") if row[what]) for row in by_week]
    assert said == ["released", "lost", "released", "vetoed", "offline"]
    (whole,) = ask(lake, known, total=True)
    sums = Counter({what: first[what] + other[what] for what in ("released", "lost", "vetoed", "offline")})
    assert {what: whole[what] for what in sums} == sums
    assert "node" not in whole


def test_who_is_named_is_expected_for_that_time(lake: FakeLake) -> None:
    """From a window on and until another, beside those that are registered; another tenant's are not."""
    lake.write("a", 0)
    known = {
        ("default", "c"): Known(since_us=to_us(week(1)), until_us=to_us(week(3))),
        ("globex", "d"): Known(since_us=to_us(week(1)), until_us=END),
    }
    found = {row["node"]: row["windows_expected"] for row in ask(lake, known)}
    assert found == {"a": 5, "b": 5, "c": 2}


def test_that_one_is_expected_no_longer_names_nobody(lake: FakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the roster is learned, whoever reported stays expected beside one whose span has ended.

    Mutant: a span that ends names somebody, and a silent fleet is complete.
    """
    for node in ("gone", "silent"):
        lake.write(node, 1)
    known = {("default", "gone"): Known(since_us=to_us(week(1)), until_us=to_us(week(2)))}

    def expected() -> dict[str, int]:
        return {row["node"]: row["windows_expected"] for row in ask(lake, known, nodes=())}

    assert expected() == {"gone": 1, "silent": 4}
    monkeypatch.setattr("cloud_collector.attendance.END", to_us(week(2)))
    assert expected() == {"gone": 1, "silent": 1}


class Watched(Told):
    """Facts that remember whom they were asked about."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def of(self, nodes: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], Known]:
        """As told."""
        self.asked.extend(nodes)
        return self.known


def test_who_lacks_nothing_is_not_looked_up(lake: FakeLake, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer reads chains of those alone that lack a window of its range, and are in it at all."""
    for n in range(5):
        lake.write("a", n)
    lake.write("b", 1)
    monkeypatch.setattr("tests.cloud_collector.test_attendance.Told", Watched)
    known = {("default", "b"): Known(passed_us=to_us(week(1)))}
    for where, looked_up in (((), ["b"]), (("a",), [])):
        Watched.asked.clear()
        ask(lake, known, total=True, where=where)
        assert [node for _, node in Watched.asked] == looked_up
