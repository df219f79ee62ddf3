"""Any bytes are admitted as a release of a known plan, or refused with a code; nothing else can come out."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zstandard

from cloud_collector import admission
from cloud_collector.admission import Refused, admit
from cloud_collector.caller import LOCAL
from cloud_collector.payload import Values
from edge_agg.contract import arrow, codec
from edge_agg.contract.grid import ORIGIN
from edge_agg.contract.refusal import RULES, Refusal
from edge_agg.contract.release import Mechanism, Status
from tests.cloud_collector.conftest import MONDAY, NOW

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_agg.contract.release import Release
    from tests.cloud_collector.conftest import Made, Maker

HOUR, WEEK = timedelta(hours=1), timedelta(days=7)


def refusal_of(made: Made, maker: Maker) -> Refusal | None:
    try:
        admit(made.sealed.header, made.sealed.payload, maker.plan_of, LOCAL.sends_for, NOW)
    except Refused as refused:
        return refused.refusal
    return None


def test_what_fits_its_plan_is_admitted_with_its_values(maker: Maker) -> None:
    made = maker.make(seed=3, window=5)
    admitted = admit(made.sealed.header, made.sealed.payload, maker.plan_of, LOCAL.sends_for, NOW)
    assert (admitted.release, admitted.sealed, admitted.plan) == (made.release, made.sealed, maker.plan)
    assert list(admitted.values.columns) == ["departures", "delay_sum", "delay_count"]
    for name, values in made.values.columns.items():
        assert admitted.values.columns[name].dtype == np.int64
        assert admitted.values.columns[name].tolist() == values.tolist()


@pytest.mark.parametrize("status", [Status.LOST, Status.EXHAUSTED, Status.VETOED])
def test_a_window_without_values_is_admitted_without_values(maker: Maker, status: Status) -> None:
    made = maker.make(status=status)
    assert admit(made.sealed.header, b"", maker.plan_of, LOCAL.sends_for, NOW).values == Values(columns={})


def test_a_window_before_1970_lies_on_the_same_grid(maker: Maker) -> None:
    early = maker.make(window_start=ORIGIN - WEEK, window_end=ORIGIN)
    assert refusal_of(early, maker) is None


def check_ahead(maker: Maker) -> None:
    first = next(n for n in range(2000) if MONDAY + n * WEEK > NOW + timedelta(days=2))
    assert refusal_of(maker.make(window=first - 1), maker) is None
    for window in (first, first + 1000):
        assert refusal_of(maker.make(window=window), maker) is Refusal.WINDOW_AHEAD


def test_a_window_that_is_not_yet_is_kept_by_the_agent(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One device's clock does not move everybody's newest window for good; once it is time, it is taken.

    A window that began may end later: a drain closes it early. Mutant: any window is taken.
    """
    check_ahead(maker)
    assert RULES[Refusal.WINDOW_AHEAD].verdict == "hold"
    monkeypatch.setattr(admission, "MOST_AHEAD", timedelta(days=36_500))
    with pytest.raises(AssertionError):
        check_ahead(maker)


def _changes(made: Made) -> dict[str, tuple[str, dict[str, Any]]]:
    """Crafted releases: the one check that must stop each, and what is wrong with it."""
    release = made.release
    first, *rest = release.vectors
    start, end = release.window_start, release.window_end
    return {
        "another name": ("_fits_identity", {"plan": "flights"}),
        "another version": ("_fits_identity", {"plan_version": 2}),
        "wider bounds": ("_fits_identity", {"max_partitions": 2}),
        "more rows": ("_fits_identity", {"max_rows_per_partition": 6}),
        "more nodes": ("_fits_identity", {"max_nodes": 2}),
        "off the grid": ("_fits_grid", {"window_start": start + HOUR, "window_end": end + HOUR}),
        "off by a microsecond": ("_fits_grid", {"window_start": start - timedelta(microseconds=1)}),
        "too long": ("_fits_grid", {"window_end": end + WEEK}),
        "too short": ("_fits_grid", {"window_end": end - HOUR}),
        "rows": ("_fits_shape", {"rows": release.rows + 1}),
        "order": ("_fits_shape", {"vectors": (*rest, first)}),
        "a vector missing": ("_fits_shape", {"vectors": (first,)}),
        "a vector of another name": ("_fits_shape", {"vectors": (replace(first, name="arrivals"), *rest)}),
        "a vector of another mechanism": (
            "_fits_shape",
            {"vectors": (replace(first, mechanism=Mechanism.LAPLACE), *rest)},
        ),
    }


CRAFTED = (
    *("another name", "another version", "wider bounds", "more rows", "more nodes", "off the grid"),
    *("off by a microsecond", "too long", "too short", "rows", "order", "a vector missing"),
    *("a vector of another name", "a vector of another mechanism"),
)


@pytest.mark.parametrize("name", CRAFTED)
def test_what_does_not_fit_its_plan_is_a_mismatch(maker: Maker, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the mutant without the named check admits it, so that check is what stopped it."""
    check, changes = _changes(maker.make())[name]
    crafted = maker.make(**changes)
    assert refusal_of(crafted, maker) is Refusal.PLAN_MISMATCH
    monkeypatch.setattr(admission, check, lambda release, plan: True)
    assert refusal_of(crafted, maker) is None


def test_every_crafted_release_is_tried(maker: Maker) -> None:
    assert set(CRAFTED) == set(_changes(maker.make()))


def _keyed_changes(made: Made) -> dict[str, dict[str, Any]]:
    release = made.release
    assert release.selection is not None
    return {
        "no selection": {"selection": None},
        "another partition": {"selection": replace(release.selection, partition="carrier")},
        "another mechanism": {"selection": replace(release.selection, mechanism=Mechanism.LAPLACE)},
        "more delta": {"selection": replace(release.selection, delta=1e-6)},
        "half a key": {"rows": release.rows - 1},
        "more keys than fit": {"rows": 9 * (100_000 // 9 + 1)},
    }


@pytest.mark.parametrize(
    "name", ["no selection", "another partition", "another mechanism", "more delta", "half a key", "more keys than fit"]
)
def test_a_selection_that_is_not_the_plan_s_is_a_mismatch(keyed_maker: Maker, name: str) -> None:
    """Keys come by the plan's own discovery, each with all public cells, and no more than fit."""
    made = keyed_maker.make(found=["N1", "N2"])
    assert refusal_of(made, keyed_maker) is None
    crafted = keyed_maker.make(found=["N1", "N2"], **_keyed_changes(made)[name])
    assert refusal_of(crafted, keyed_maker) is Refusal.PLAN_MISMATCH


def test_a_selection_where_the_plan_discovers_nothing_is_a_mismatch(maker: Maker, keyed_maker: Maker) -> None:
    """Its keys could be anything."""
    selection = keyed_maker.make(found=["N1"]).release.selection
    assert refusal_of(maker.make(selection=selection), maker) is Refusal.PLAN_MISMATCH


def test_discovered_keys_are_admitted_with_their_rows(keyed_maker: Maker) -> None:
    """Several keys, or none at all: a window in which nothing passed was released all the same."""
    for found in (["N1", "N2"], []):
        made = keyed_maker.make(found=found)
        values = admit(made.sealed.header, made.sealed.payload, keyed_maker.plan_of, LOCAL.sends_for, NOW).values
        assert list(values.keys or ()) == found
        assert all(column.tolist() == made.values.columns[name].tolist() for name, column in values.columns.items())


@pytest.mark.parametrize(
    "found", [["N2", "N1"], ["N1", "N1"], ["a key that is too long"]], ids=["order", "twice", "long"]
)
def test_keys_that_are_not_canonical_are_malformed(keyed_maker: Maker, found: list[str]) -> None:
    """Distinct, ascending, of bounded length."""
    assert refusal_of(keyed_maker.make(found=found), keyed_maker) is Refusal.MALFORMED


def test_rows_without_values_are_malformed(maker: Maker) -> None:
    assert refusal_of(maker.make(status=Status.LOST, rows=10), maker) is Refusal.MALFORMED


def test_an_unknown_plan_is_held_whatever_else_is_wrong(maker: Maker, other_maker: Maker) -> None:
    """The payload of an unknown plan is not looked into: nothing bounds the work."""
    assert refusal_of(other_maker.make(), maker) is Refusal.PLAN_UNKNOWN
    junk = b"junk"
    crafted = other_maker.make(payload=junk, payload_sha256=hashlib.sha256(junk).digest())
    assert refusal_of(crafted, maker) is Refusal.PLAN_UNKNOWN


def _payloads(maker: Maker) -> dict[str, bytes]:
    values = maker.values(0)
    return {
        "junk": b"junk",
        "a row too many": arrow.encode({name: np.append(vector, 1) for name, vector in values.items()}),
        "a column missing": arrow.encode({"departures": values["departures"]}),
        "other names": arrow.encode({name.upper(): vector for name, vector in values.items()}),
        "trailing bytes": arrow.encode(values) + b"\0",
    }


@pytest.mark.parametrize("name", ["junk", "a row too many", "a column missing", "other names", "trailing bytes"])
def test_a_payload_that_is_not_the_plan_s_is_malformed(maker: Maker, name: str) -> None:
    payload = _payloads(maker)[name]
    crafted = maker.make(payload=payload, payload_sha256=hashlib.sha256(payload).digest())
    assert refusal_of(crafted, maker) is Refusal.MALFORMED


def test_bytes_that_are_no_release_are_malformed(maker: Maker) -> None:
    made = maker.make()
    header, payload = made.sealed.header, made.sealed.payload
    for one, other in (
        (b"", b""),
        (b"junk", payload),
        (header, b""),
        (header, payload + b"\0"),
        (b"", payload),
        (header[:-1], payload),
        (header + bytes(codec.MAX_HEADER_BYTES), payload),
    ):
        with pytest.raises(Refused) as caught:
            admit(one, other, maker.plan_of, LOCAL.sends_for, NOW)
        assert caught.value.refusal is Refusal.MALFORMED


def test_a_refusal_carries_nothing_out_of_the_release(maker: Maker) -> None:
    """Promise A6: neither the text nor the chain of causes holds a canary of the header."""
    crafted = maker.make(plan="canary_plan", account="canary_account")
    with pytest.raises(Refused) as caught:
        admit(crafted.sealed.header, crafted.sealed.payload, maker.plan_of, LOCAL.sends_for, NOW)
    assert "canary" not in repr(caught.value)
    assert str(caught.value) == RULES[Refusal.PLAN_MISMATCH].text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def _damaged(data: bytes, random: np.random.Generator) -> bytes:
    bent = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        bent[int(random.integers(len(bent)))] ^= int(random.integers(1, 256))
    return bytes(bent[: int(random.integers(len(bent)))] if random.random() < 0.1 else bent)


def _flip_header(made: Made, random: np.random.Generator) -> tuple[bytes, bytes]:
    return _damaged(made.sealed.header, random), made.sealed.payload


def _flip_payload(made: Made, random: np.random.Generator) -> tuple[bytes, bytes]:
    """With the damaged payload's own sha256, so that the damage reaches the decoder."""
    payload = _damaged(made.sealed.payload, random) or b"\0"
    release: Release = replace(made.release, payload_sha256=hashlib.sha256(payload).digest())
    return codec.seal(release, payload).header, payload


def _flip_stream(made: Made, random: np.random.Generator) -> tuple[bytes, bytes]:
    """Damage below the compression, in the Arrow stream itself."""
    stream = arrow._inflate(made.sealed.payload, 2**20)
    payload = zstandard.ZstdCompressor().compress(_damaged(stream, random))
    release: Release = replace(made.release, payload_sha256=hashlib.sha256(payload).digest())
    return codec.seal(release, payload).header, payload


@pytest.mark.parametrize("flip", [_flip_header, _flip_payload, _flip_stream])
@pytest.mark.parametrize("tries", [800, pytest.param(100_000, marks=pytest.mark.slow)])
def test_damaged_bytes_are_refused_or_admitted_and_nothing_else(
    maker: Maker, flip: Callable[[Made, np.random.Generator], tuple[bytes, bytes]], tries: int
) -> None:
    """Promise B4. What is admitted all the same has the plan's shape."""
    random = np.random.default_rng(20130107)
    made = maker.make(window=2)
    refused = 0
    for _ in range(tries):
        try:
            admitted = admit(*flip(made, random), maker.plan_of, LOCAL.sends_for, NOW)
        except Refused:
            refused += 1
        else:
            assert all(len(vector) == 10 for vector in admitted.values.columns.values())
    assert refused > tries / 4, "the damage hardly reaches anything"
