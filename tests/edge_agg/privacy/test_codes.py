"""Codes of ids: equal exactly where ids are, whatever a hash says, and however the ids come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.privacy import table
from edge_agg.privacy.bound import Bounding, Rows
from edge_agg.privacy.codes import Codes
from edge_agg.privacy.ids import Integers, Texts
from edge_agg.privacy.permutation import Keying
from edge_agg.privacy.table import ABSENT

if TYPE_CHECKING:
    from collections.abc import Sequence

SALT = b"a salt for tests"
HELD = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]

integers = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=30)
texts = st.lists(st.text(max_size=20) | st.sampled_from(["", "\0", "a\0", "x" * 12, "x" * 13, "x" * 14]), max_size=30)


class Weak(Keying):
    """Keys of texts that collide."""

    def __init__(self, width: int) -> None:
        super().__init__(SALT)
        self.width = np.uint64(width)

    def of_texts(self, ids: Any) -> Any:
        """As before, in fewer bits."""
        return super().of_texts(ids) % self.width


class Chosen(Keying):
    """Keys that the test chooses: each text is `key` or `key/name`."""

    def __init__(self) -> None:
        super().__init__(SALT)

    def of_texts(self, ids: Any) -> Any:
        """The number in front."""
        return np.array([int(one.partition("/")[0]) for one in ids], np.uint64)


def same(codes: Sequence[int], ids: Sequence[object]) -> bool:
    """Whether codes are equal exactly where ids are, and dense."""
    pairs = set(zip(codes, ids, strict=True))
    return len(pairs) == len(set(codes)) == len(set(ids)) and set(codes) == set(range(len(pairs)))


@given(ids=integers, cut=st.integers(0, 30))
def test_codes_of_integers_are_equal_exactly_where_ids_are(ids: list[int], cut: int) -> None:
    """Integers of any size, in two batches; and the ids come back."""
    known = Codes(Keying(SALT))
    codes = np.concatenate([known.encode(pa.array(part, pa.int64()))[0] for part in (ids[:cut], ids[cut:])])
    assert same(codes.tolist(), ids)
    assert known.ids(codes).to_pylist() == ids
    assert len(known) == len(set(ids))


@given(ids=texts, cut=st.integers(0, 30), width=st.sampled_from([1, 2, 2**64 - 1]), held=st.sampled_from(HELD))
def test_codes_of_texts_are_equal_exactly_where_texts_are(ids: list[str], cut: int, width: int, held: Any) -> None:
    """Whatever the hash: good, of one bit, or one for all; and however Arrow holds them; and the texts come back."""
    known, plain = Codes(Weak(width)), pa.array(ids, pa.string())
    array = plain.dictionary_encode() if pa.types.is_dictionary(held) else plain.cast(held)
    codes = np.concatenate([known.encode(part)[0] for part in (array.slice(0, cut), array.slice(cut))])
    assert len(set(codes.tolist())) == len(set(ids))
    assert len(set(zip(codes.tolist(), ids, strict=True))) == len(set(ids))
    assert known.ids(codes).to_pylist() == ids
    assert known.find(array).tolist() == codes.tolist()
    assert set(known.find(pa.array(["never came", "nor did this"]))) == {ABSENT}


def test_a_key_is_the_ids_own() -> None:
    """An id has one key under one salt, whatever came before it, and another under another."""
    ids = pa.array(["a", "b", "thirteen byte"])
    first, second = Codes(Keying(SALT)), Codes(Keying(SALT))
    second.encode(pa.array(["z", "b"]))
    keys = first.encode(ids)[1].tolist()
    assert second.encode(ids)[1].tolist() == keys == first.keys(first.find(ids)).tolist()
    assert not set(Codes(Keying(b"another salt" * 2)).encode(ids)[1].tolist()) & set(keys)


@pytest.mark.parametrize("kind", [int, str])
def test_many_ids_outgrow_the_table(kind: type) -> None:
    """The table grows with its ids, and every id keeps its code."""
    numbers = np.random.default_rng(1).integers(0, 20_000, 50_000)
    ids = pa.array(numbers) if kind is int else pl.Series(numbers).cast(pl.String).to_arrow()
    known = Codes(Keying(SALT))
    codes = np.concatenate([known.encode(ids.slice(start, 5_000))[0] for start in range(0, len(ids), 5_000)])
    assert same(codes.tolist(), numbers.tolist())
    assert known.find(ids).tolist() == codes.tolist()


def test_texts_whose_keys_collide_survive_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that share a key with an earlier one keep their codes when the table is laid out anew."""
    monkeypatch.setattr(table, "_LEAST_SLOTS", 4)
    known, ids = Codes(Weak(64)), [f"unit {i}" for i in range(300)]
    codes = [int(known.encode(pa.array([one]))[0][0]) for one in ids]
    assert codes == list(range(300))
    assert known.find(pa.array(ids)).tolist() == codes


UPPER = 7 << 32
near = st.builds(
    lambda upper, lower, slot, name: f"{upper << 32 | lower << 12 | slot}/{name}",
    st.sampled_from([0, 7]),
    st.integers(0, 40),
    st.integers(0, 2),
    st.sampled_from(["a", "b"]),
)


@settings(max_examples=50)
@given(batches=st.lists(st.lists(near, max_size=40), max_size=8))
def test_an_id_keeps_its_code_for_ever(batches: list[list[str]]) -> None:
    """Whatever keys share, halves, slots or all of themselves, and however often the table grows in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_LEAST_SLOTS", 4)
        known, codes = Codes(Chosen()), dict[str, int]()
        for batch in batches:
            for one, code in zip(batch, known.encode(pa.array(batch, pa.string()))[0].tolist(), strict=True):
                assert codes.setdefault(one, code) == code
        assert len(known) == len(codes) == len(set(codes.values()))
        assert known.find(pa.array(list(codes), pa.string())).tolist() == list(codes.values())
        assert known.keys(np.array(list(codes.values()), np.uint64)).tolist() == [
            int(one.partition("/")[0]) for one in codes
        ]


def test_a_key_that_comes_as_the_table_grows_takes_no_slot_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two want one slot; in the larger table the first stands one further, where the third begins.

    Mutant: what the new slots hold is not looked at, and the third, half equal to the first, is written over it.
    """
    monkeypatch.setattr(table, "_LEAST_SLOTS", 8)
    first, second, third = (str((upper << 32) + lower) for upper, lower in ((7, 16), (9, 16), (7, 17)))
    others = [str((3 << 32) + lower) for lower in (21, 25)]
    known, ids = Codes(Chosen()), [first, second, third, *others]
    codes = [code for batch in (ids[:1], ids[1:2], ids[2:]) for code in known.encode(pa.array(batch))[0].tolist()]
    assert same(codes, ids)
    assert known.encode(pa.array(ids))[0].tolist() == codes


def codes_around_a_growth() -> tuple[list[int], list[int], int]:
    """Two ids whose keys differ in bit 12 alone: their codes before the table grows and after, and how many there are.

    The bit is the first that the table takes more of when it has outgrown its 4,096 slots.
    """
    known, two = Codes(Chosen()), pa.array([str(UPPER | 5), str(UPPER | 5 + 4096)])
    before = np.concatenate([known.encode(two.slice(i, 1))[0] for i in range(2)]).tolist()
    known.encode(pa.array([str((i << 32) + i * 7 + 1) for i in range(100, 4_000)]))
    return before, known.encode(two)[0].tolist(), len(known)


def test_keys_that_share_a_half_are_told_apart_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """One id has one code before the table grows and after. Mutant: what is found by half a key is believed."""
    assert codes_around_a_growth() == ([0, 1], [0, 1], 3_902)

    def settle(self: Any, key: int, *, add: bool) -> tuple[int, bool]:
        return int(self.look_up(np.array([key], np.uint64), add=add)[0][0]), False

    monkeypatch.setattr(table.Table, "settle", settle)
    assert codes_around_a_growth() == ([0, 1], [0, 3_902], 3_903)


def test_mutant_a_table_that_believes_its_keys_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: texts are never compared; two that share a key get one code."""
    monkeypatch.setattr(Texts, "differ", lambda self, codes, asked: np.zeros(len(asked), np.bool_))
    assert not same(Codes(Weak(2)).encode(pa.array(["a", "b", "c"]))[0].tolist(), ["a", "b", "c"])


def test_mutant_a_table_that_probes_one_slot_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: whoever holds the slot is taken for the id."""

    def probe(self: Any, keys: Any) -> Any:
        slots = (keys & np.uint64(len(self._slots) - 1)).astype(np.intp)
        return self._slots.take(slots) & ABSENT, slots

    monkeypatch.setattr(table, "_LEAST_SLOTS", 1 << 9)
    ids = list(range(-100, 100))
    assert same(Codes(Keying(SALT)).encode(pa.array(ids))[0].tolist(), ids)
    monkeypatch.setattr(table.Table, "_probe", probe)
    monkeypatch.setattr(Integers, "differ", lambda self, codes, asked: np.zeros(len(asked), np.bool_))
    assert not same(Codes(Keying(SALT)).encode(pa.array(ids))[0].tolist(), ids)


@pytest.mark.slow
def test_a_window_may_hold_more_text_than_a_string_array_can() -> None:
    """More than 2 GiB of ids, in one batch of large strings: each is still told from every other."""
    count, length = 540_000, 4_096
    text = np.full((count, length), ord("x"), np.uint8)
    text[:, -4:] = np.arange(count)[:, None] // [128**3, 128**2, 128, 1] % 128
    offsets = np.arange(count + 1, dtype=np.int64) * length
    unit = pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))
    zero = np.zeros(count, np.int64)
    state = Bounding(max_partitions=1, max_rows=1, n_cells=1, readings={}, totals=[], discover=False, salt=SALT)
    for _ in range(2):
        state.add(Rows(unit=unit, cell=zero, key=None, time_us=zero, readings={}, totals={}))
    assert len(state.kept().cell) == count
    last = unit.slice(count - 1)
    assert len(state.kept(without=last).cell) == count - 1


def coded(dictionaries: Sequence[Sequence[str]], rows: Sequence[tuple[int, int]]) -> tuple[list[int], list[str]]:
    """Codes of arrays that share dictionaries, and their texts: row i is a text of one of them."""
    held = [pa.array(list(texts), pa.string()) for texts in dictionaries]
    known, codes, wanted = Codes(Keying(SALT)), list[int](), list[str]()
    for which, at in rows:
        texts = held[which % len(held)]
        array = pa.DictionaryArray.from_arrays(pa.array([at % len(texts)], pa.int32()), texts)
        codes += known.encode(array)[0].tolist()
        wanted += array.to_pylist()
    return codes, wanted


@given(
    dictionaries=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=6), min_size=1, max_size=3),
    rows=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20),
)
def test_codes_of_shared_dictionaries_are_equal_exactly_where_texts_are(
    dictionaries: list[list[str]], rows: list[tuple[int, int]]
) -> None:
    """In whatever turn dictionaries come, also such as hold a text twice or are too long for one row."""
    codes, texts = coded(dictionaries, rows)
    assert len(set(zip(codes, texts, strict=True))) == len(set(codes)) == len(set(texts))


def test_a_dictionary_taken_for_another_of_its_length_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: where a dictionary lies is not looked at."""
    codes, _ = coded(["ab", "cd"], [(0, 0), (1, 0)])
    assert codes[0] != codes[1]
    monkeypatch.setattr("edge_agg.privacy.codes._place_of", len)
    codes, _ = coded(["ab", "cd"], [(0, 0), (1, 0)])
    assert codes[0] == codes[1]
