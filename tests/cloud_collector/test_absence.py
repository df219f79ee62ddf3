"""What became of a window: one answer each, what may follow which, and every history of one agent that is short enough.

Not proved here: that the SQL of the roll call says the same (test_roll_call).
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_collector import absence
from cloud_collector.absence import BEGINNING, END, TERMINAL, WAITING, Due, Known, Standing, counted, standing, zones

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WINDOW, ALLOWED = 10, 3
moments = st.integers(-100, 200)
knowns = st.builds(
    Known,
    heard_us=st.none() | moments,
    passed_us=st.none() | moments,
    fenced=st.booleans(),
    behind=st.tuples(moments, moments),
)
dues = st.builds(Due, window_us=st.just(WINDOW), allowed_us=st.integers(0, 25), now_us=moments)


def by_definition(start: int, known: Known, due: Due) -> Standing:
    """The rules for an absent window, one after the other."""
    if known.behind[0] <= start < known.behind[1]:
        return Standing.LOST
    if known.passed_us is not None and start < known.passed_us:
        return Standing.LOST
    if known.fenced or due.now_us < due.overdue_us(start):
        return Standing.LATE
    if known.heard_us is not None and known.heard_us >= due.overdue_us(start):
        return Standing.LATE
    return Standing.OFFLINE


@given(known=knowns, due=dues, start=moments, said=st.none() | st.sampled_from(sorted(TERMINAL)))
def test_every_window_has_exactly_one_standing(known: Known, due: Due, start: int, said: Standing | None) -> None:
    """The zones cut all of time without a gap or an overlap, and say what the rules say, one after the other."""
    cut = sorted(zones(known, due))
    assert (cut[0][0], cut[-1][1]) == (BEGINNING, END)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(cut))
    assert standing(None, start, known, due) is by_definition(start, known, due)
    assert standing(said, start, known, due) is (said or by_definition(start, known, due))


@given(
    known=knowns,
    due=dues,
    first=st.integers(-5, 5),
    length=st.integers(0, 12),
    here=st.sets(st.integers(-6, 18)),
)
def test_a_range_is_counted_as_its_windows_are(known: Known, due: Due, first: int, length: int, here: set[int]) -> None:
    """Counting by zones gives what counting one window after the other gives."""
    windows = [n * WINDOW for n in range(first, first + length)]
    present = sorted(n * WINDOW for n in here)
    found = counted(present, first * WINDOW, (first + length) * WINDOW, known, due)
    assert +found == Counter(standing(None, start, known, due) for start in windows if start not in present)


@dataclass(frozen=True, slots=True)
class World:
    """One agent that closes windows in order and seals each, or passes it in silence; what its collector has seen."""

    chain: tuple[tuple[int, Standing], ...] = ()
    """(window, what its release says), in the order of the chain."""
    window: int = 0
    """The next that it will close."""
    here: frozenset[int] = frozenset()
    """Places of the chain that have arrived."""
    now: int = 0
    heard: int | None = None
    fenced: bool = False

    @property
    def said(self) -> dict[int, Standing]:
        """What arrived."""
        return {window: what for place, (window, what) in enumerate(self.chain) if place in self.here}

    @property
    def known(self) -> Known:
        """What the collector knows: how far the chain has no hole, and who was heard of when."""
        whole = list(itertools.takewhile(self.here.__contains__, range(len(self.chain))))
        passed = self.chain[whole[-1]][0] * WINDOW if whole else None
        return Known(heard_us=self.heard, passed_us=passed, fenced=self.fenced)

    def next(self) -> Iterator[World]:
        """Everything that may happen now."""
        yield replace(self, now=self.now + WINDOW)
        yield replace(self, fenced=not self.fenced)
        if self.window < LAST and (self.window + 1) * WINDOW <= self.now:
            yield replace(self, window=self.window + 1)
            for what in (Standing.RELEASED, Standing.LOST) if self.window else TERMINAL:
                yield replace(self, window=self.window + 1, chain=(*self.chain, (self.window, what)))
        for place in set(range(len(self.chain))) - self.here if not self.fenced else ():
            yield replace(self, here=self.here | {place}, heard=self.now)


LAST, STEPS = 3, 8


def standings(world: World) -> dict[int, Standing]:
    """What became of each window, as the collector would say."""
    due = Due(window_us=WINDOW, allowed_us=ALLOWED, now_us=world.now)
    said = world.said
    return {n: standing(said.get(n), n * WINDOW, world.known, due) for n in range(LAST)}


def explore() -> set[tuple[Standing, Standing]]:
    """Every history of so many steps; each change of a window's standing that was seen."""
    seen: set[tuple[Standing, Standing]] = set()
    worlds = {World()}
    known: set[World] = set()
    for _ in range(STEPS):
        following: set[World] = set()
        for world in worlds:
            before = standings(world)
            for after in world.next():
                now = standings(after)
                seen.update((before[n], now[n]) for n in range(LAST))
                assert all(now[n] is what for n, what in after.said.items())
                following.add(after)
        known |= worlds
        worlds = following - known
    return seen


def check(seen: set[tuple[Standing, Standing]]) -> None:
    changes = {(one, other) for one, other in seen if one is not other}
    assert not {(one, other) for one, other in changes if one in TERMINAL}, "what is settled stays so"
    assert {other for _, other in changes} == set(Standing), "each is reached"
    assert {(one, other) for one in WAITING for other in TERMINAL} <= changes, "what is late or offline may become any"


def test_nothing_settled_ever_changes() -> None:
    """Over every history of eight steps: only late and offline change, into anything; all else stays for ever."""
    check(explore())


_zones = absence.zones


def _swapped(**what: Standing) -> Callable[[Known, Due], Iterator[tuple[int, int, Standing]]]:
    return lambda known, due: ((a, b, what.get(one.name, one)) for a, b, one in _zones(known, due))


def _on_holes(known: Known, due: Due) -> Iterator[tuple[int, int, Standing]]:
    """Mutant: whoever was heard of has passed everything before, holes or not."""
    return _zones(replace(known, passed_us=known.heard_us), due)


MUTANTS = {
    "late is not told": _swapped(LATE=Standing.OFFLINE),
    "lost is not concluded": _swapped(LOST=Standing.LATE),
    "offline is not told": _swapped(OFFLINE=Standing.LATE),
    "a hole counts as passed": _on_holes,
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_rules_catch(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer that is concluded, told wrongly, fails a check above: the definition or the histories."""
    monkeypatch.setattr(absence, "zones", MUTANTS[mutant])
    cases: Sequence[tuple[Known, int]] = [
        (Known(passed_us=20), 0),
        (Known(heard_us=50), 0),
        (Known(), 0),
        (Known(heard_us=50, passed_us=10), 20),
    ]
    due = Due(window_us=WINDOW, allowed_us=ALLOWED, now_us=60)
    with pytest.raises(AssertionError):
        assert [standing(None, start, known, due) for known, start in cases] == [
            by_definition(start, known, due) for known, start in cases
        ]
    if mutant == "a hole counts as passed":
        with pytest.raises(AssertionError):
            check(explore())


@pytest.mark.parametrize("what", sorted(TERMINAL))
def test_what_was_said_goes_before_what_is_concluded(what: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that is here is what it says; mutant for each of the four: it is not looked at."""
    known, due = Known(passed_us=20), Due(window_us=WINDOW, allowed_us=ALLOWED, now_us=60)

    def one_place(rule: Callable[..., Standing]) -> None:
        assert rule(what, 30, known, due) is what
        assert rule(what, 30, replace(known, fenced=True, heard_us=60), due) is what

    one_place(standing)
    with pytest.raises(AssertionError):
        one_place(lambda _said, start, known, due: standing(None, start, known, due))
