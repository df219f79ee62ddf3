"""Grey box: how far one unit moves what the noise is added to, never above the declared sensitivity, and tight.

Neighbours are drawn as files hold them, before decoding: strange texts, nulls, NaN, infinities, extreme numbers, values
of the wrong type, duplicates, any order, any cut into batches, a merge after every few rows. One plan asks every kind
of metric at once, so each pair is a pair for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.privacy import aggregate, bound, measurement, noise, packed
from edge_agg.privacy import rows as rows_
from edge_agg.privacy.bound import Bounding
from tests.privacy.audit import mutants, strange
from tests.privacy.audit.cases import TWINS
from tests.privacy.audit.distance import (
    KEYS,
    KINDS,
    MAX_ROWS,
    bounded_state,
    compiled,
    declared,
    moved,
    overruns,
)
from tests.privacy.audit.strange import Raw, raws

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_agg.privacy.aggregate import Sensitivity

pytestmark = pytest.mark.slow

MINE = "mine"
pairs = st.tuples(raws(strange.units, 12), raws(st.just(MINE), 14), st.permutations(range(60)))
cuts = st.tuples(st.sampled_from([1, 2, 5, 100]), st.sampled_from([1, 3, 100]))


def together(others: list[Raw], mine: list[Raw], order: Sequence[int]) -> list[Raw]:
    """Both, mixed."""
    mixed = [*others, *mine]
    return [mixed[i] for i in order if i < len(mixed)] + mixed[len(order) :]


@pytest.fixture(autouse=True)
def _merging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounding truncates after every few rows, and hands them on a few at a time."""
    monkeypatch.setattr(bound, "MERGE_ROWS", 4)
    monkeypatch.setattr(packed, "BLOCK_ROWS", 4)


@pytest.mark.parametrize("keys", KEYS)
@settings(max_examples=400)
@given(pair=pairs, cut=cuts)
def test_no_unit_moves_a_vector_farther_than_declared(keys: str, pair: Any, cut: tuple[int, int]) -> None:
    """Guarantee: in l-infinity, l1 and l2, for every kind of metric and the selection, whatever the unit sends."""
    others, mine, order = pair
    plan = compiled(keys)
    assert overruns(plan, moved(plan, others, together(others, mine, order), cut)) == []


@settings(max_examples=400)
@given(others=raws(strange.numbered, 12, strange.whole), mine=raws(st.just("7"), 14, strange.whole), cut=cuts)
def test_no_numbered_unit_moves_a_vector_farther(others: list[Raw], mine: list[Raw], cut: tuple[int, int]) -> None:
    """The same where units and values are integers, extreme ones and those that are none among them."""
    plan = compiled("public", unit="integer", value="integer")
    assert overruns(plan, moved(plan, others, others[:5] + mine + others[5:], cut)) == []


@pytest.mark.parametrize("keys", ["public", "discovered"])
@settings(max_examples=100)
@given(
    others=raws(strange.units, 12),
    mine=st.builds(Raw, u=strange.units, k=strange.keys, x=strange.values, t=strange.times),
    cut=cuts,
)
def test_no_event_moves_a_vector_farther(keys: str, others: list[Raw], mine: Raw, cut: tuple[int, int]) -> None:
    """The same where every event is its own unit: one row more or less."""
    plan = compiled(keys, event=True)
    assert overruns(plan, moved(plan, others, [mine, *others], cut)) == []


@pytest.mark.parametrize("keys", KEYS)
@settings(max_examples=100)
@given(rows=raws(strange.units | st.just(MINE), 20), order=st.permutations(range(40)), cut=cuts)
def test_order_and_cuts_move_nothing(keys: str, rows: list[Raw], order: list[int], cut: tuple[int, int]) -> None:
    """Guarantee: the same rows in another order and other batches give the same vectors."""
    plan = compiled(keys)
    shuffled = together(rows, [], order)
    assert all(not by.any() for by in moved(plan, rows, shuffled, cut).values())


@settings(max_examples=30)
@given(rows=raws(strange.units, 20))
def test_what_the_noise_is_added_to_is_what_was_measured(rows: list[Raw]) -> None:
    """The windows' way, part by part, adds up to the vectors that the other tests look at."""
    plan = compiled("public")
    state = bounded_state(plan, rows, 7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "draw", lambda mechanism, scale, exact: exact)
        released = plan.release(state.blocks()).columns
    whole = plan.exact(state.kept())
    columns = {vector.name: [released[name] for name in vector.columns] for vector in plan.vectors}
    assert all((np.stack(columns[name], axis=-1).ravel() == whole[name].ravel()).all() for name in whole)


def busiest(x: str) -> list[Raw]:
    """A unit that sends more than it may, of one value, everywhere."""
    return [Raw(MINE, key, x) for key in ["a", "b", "", "é", "z"] for _ in range(MAX_ROWS + 2)]


@pytest.mark.parametrize("keys", ["public", "products", "discovered", "discovered and weekday"])
def test_every_bound_is_attained(keys: str) -> None:
    """No noise is wasted: for each vector some unit moves it as far as declared, in all three norms."""
    plan = compiled(keys)
    attained = set()
    for x in ("inf", "-inf", "0.25"):
        for name, by in moved(plan, [Raw("a", "a", "1")], [Raw("a", "a", "1"), *busiest(x)], (1, 1)).items():
            says = declared(plan)[name]
            square = says.cells * says.levels * says.linf**2
            if (by.max(), by.sum(), (by**2).sum()) == (says.linf, says.l1, square):
                attained.add(name)
    assert attained == set(declared(plan))


# Mutants: each breaks one rule; the busiest units show it.


def caught(keys: str = "public", *, only: str | None = None) -> list[str]:
    """The vectors on which some unit overruns."""
    plan = compiled.__wrapped__(keys, only=only)
    others = [Raw("a", "a", "1"), Raw("b", "é", "2")]
    found = {
        name
        for x in ("inf", "-inf", "0.25", "-50")
        for name in overruns(plan, moved(plan, others, [*others, *busiest(x)], (3, 3)))
    }
    return sorted(found)


@pytest.mark.parametrize("keys", ["public", "discovered"])
def test_as_it_is_nothing_is_caught(keys: str) -> None:
    """The check itself is quiet."""
    assert caught(keys) == []


@pytest.mark.parametrize("changed", [{"max_partitions": 1}, {"max_rows": 1}, {"max_rows": 10**6}])
@pytest.mark.parametrize("keys", ["public", "discovered"])
def test_other_bounds_are_caught(monkeypatch: pytest.MonkeyPatch, keys: str, changed: dict[str, int]) -> None:
    """Mutants: L0 + 1; L-infinity + 1; no bound on rows. Totals and distinct units do not care about rows."""
    honest = Bounding.__init__

    def loose(self: Bounding, **options: Any) -> None:
        honest(self, **{**options, **{name: options[name] + by for name, by in changed.items()}})

    monkeypatch.setattr(Bounding, "__init__", loose)
    says = declared(compiled(keys))
    careless = {"m1", "m3", "selection"} if "max_rows" in changed else set()
    assert set(caught(keys)) == set(says) - careless


@pytest.mark.parametrize(
    ("rule", "vectors"),
    [
        ("units_sensitivity", ["m1"]),
        ("rows_sensitivity", ["m0", "m4_count"]),
        ("sum_sensitivity", ["m2", "m4_sum"]),
        ("squares_sensitivity", ["m5_squares"]),
        ("totals_sensitivity", ["m3"]),
        ("bins_sensitivity", ["m6", "m7"]),
    ],
)
def test_a_sensitivity_one_too_small_is_caught(monkeypatch: pytest.MonkeyPatch, rule: str, vectors: list[str]) -> None:
    """Mutants: each rule of `aggregate` claims one grid step less; that of units, whose step is 1, one cell less."""
    honest = getattr(aggregate, rule)

    def less(*args: Any) -> Sensitivity:
        says: Sensitivity = honest(*args)
        return replace(says, linf=says.linf - 1) if says.linf > 1 else replace(says, cells=says.cells - 1)

    monkeypatch.setattr(measurement, rule, less)
    assert caught() == vectors


def test_a_tree_whose_levels_are_not_paid_for_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: l1 and l2 of a tree as if it were flat."""
    honest = aggregate.bins_sensitivity
    monkeypatch.setattr(measurement, "bins_sensitivity", lambda cells, rows, _: honest(cells, rows, 1))
    assert caught() == ["m7"]


@pytest.mark.parametrize(("x", "step"), [(str(2**63 - 1), 10), (str(2**62), 10), (str(-(2**63)), -4)])
def test_an_extreme_integer_is_clipped_and_not_wrapped(monkeypatch: pytest.MonkeyPatch, x: str, step: int) -> None:
    """Guarantee: the largest integers move a sum as far as the clip bounds allow. Mutant: int64 before the clip."""
    plan = compiled("public", unit="integer", value="integer", only=KINDS[2])
    rows = [Raw("7", "a", x) for _ in range(MAX_ROWS + 2)]
    assert moved(plan, [], rows, (1, 2))["m0"].max() == MAX_ROWS * abs(step)

    def wraps(values: Any, *, lower: int, upper: int, resolution: float) -> Any:
        return np.clip((values.astype(np.uint64) * round(1 / resolution)).astype(np.int64), lower, upper) - lower

    monkeypatch.setattr(rows_, "to_grid", wraps)
    if step > 0:
        with np.errstate(invalid="ignore", over="ignore"):
            assert moved(plan, [], rows, (1, 2))["m0"].max() != MAX_ROWS * step


def test_clipping_after_the_sum_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a unit's total meets the others' before it is clipped."""
    mutants.clipped_after_the_sum(monkeypatch)
    assert caught(only=KINDS[3]) == ["m0"]


def test_a_value_beyond_its_clip_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: values reach twice as far as the bounds that were declared."""
    monkeypatch.setattr(measurement, "sum_values", lambda cell, values, n: aggregate.sum_values(cell, values * 2, n))
    assert caught(only=KINDS[2]) == ["m0"]


def test_a_unit_hash_of_16_bits_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: units are told apart by 16 bits alone; of two that share them, one takes the other's place.

    Twenty salts: under each, two cells of the four that they have together are kept in place of all.
    """
    plan = compiled("public", only=KINDS[0])
    less, twin = (
        [Raw(name, key, "1") for key in keys for _ in range(MAX_ROWS)]
        for name, keys in zip(TWINS, ("ab", ["", "é"]), strict=True)
    )

    def overrun() -> bool:
        salts = [f"a salt for tests {i}".encode() for i in range(20)]
        return any(overruns(plan, moved(plan, less, [*less, *twin], (3, 3), salt)) for salt in salts)

    assert not overrun()
    mutants.units_by_16_bits(monkeypatch)
    assert overrun()
