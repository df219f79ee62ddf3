"""Releases to bytes and back: exact, deterministic, and closed to bytes that are not a release."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_agg.contract import codec
from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.plan import PlanHash
from edge_agg.contract.release import Charge, KeySpec, Link, Mechanism, Release, Status, VectorSpec, Veto
from edge_agg.contract.v1 import release_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parents[2] / "contract" / "golden"
PAYLOAD = b"stands for a payload"
RELEASED = Release(
    tenant="acme",
    agent="jfk",
    link=Link(incarnation="0123456789abcdef" * 2, seq=7, prev_hash=bytes(range(32))),
    plan="flight_delays",
    plan_version=1,
    plan_hash=PlanHash(bytes(range(32, 64))),
    window_start=datetime(2013, 1, 1, tzinfo=UTC),
    window_end=datetime(2013, 1, 8, tzinfo=UTC),
    status=Status.RELEASED,
    account="aircraft",
    charge=Charge(rho=Fraction(96924905893, 2**40)),
    cumulative=Charge(rho=Fraction(7 * 96924905893, 2**40), delta=Fraction(1, 2**80)),
    vectors=(
        VectorSpec(name="departures", mechanism=Mechanism.GAUSSIAN, scale=23.8159, sensitivity=5.0, loss=0.022),
        VectorSpec(name="aircraft", mechanism=Mechanism.LAPLACE, scale=4.75, sensitivity=1.0, loss=0.25),
    ),
    max_partitions=1,
    max_rows_per_partition=5,
    max_nodes=3,
    rows=10,
    payload_sha256=hashlib.sha256(PAYLOAD).digest(),
)
LOST = dataclasses.replace(RELEASED, status=Status.LOST, vectors=(), rows=0, payload_sha256=b"")

SELECTION = KeySpec(
    partition="page",
    mechanism=Mechanism.GAUSSIAN,
    scale=4.75,
    sensitivity=2.5,
    threshold=31,
    loss=0.125,
    delta=9.5e-8,
)
DISCOVERED = dataclasses.replace(RELEASED, selection=SELECTION)
VETOED = dataclasses.replace(LOST, status=Status.VETOED, charge=Charge(), veto=Veto.NOISE)
NOTHING_FOUND = dataclasses.replace(DISCOVERED, rows=0)

names = st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=128)
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
moments = st.integers(-62_135_510_400_000_000, 253_402_214_400_000_000).map(codec.from_us)
rationals = st.builds(Fraction, st.integers(0, 2**90), st.sampled_from([1, 3, 2**40, 2**80]))
charges = st.builds(Charge, rho=rationals, delta=rationals)
specs = st.builds(
    VectorSpec, name=names, mechanism=st.sampled_from(Mechanism), scale=positive, sensitivity=positive, loss=positive
)
selections = st.builds(
    KeySpec,
    partition=names,
    mechanism=st.sampled_from(Mechanism),
    scale=positive,
    sensitivity=positive,
    threshold=st.integers(1, 2**63 - 1),
    loss=positive,
    delta=st.floats(min_value=0, max_value=1, exclude_min=True, exclude_max=True),
)


@st.composite
def releases(draw: st.DrawFn) -> tuple[Release, bytes]:
    """A consistent release and its payload."""
    released = draw(st.booleans())
    payload = draw(st.binary(min_size=1, max_size=100)) if released else b""
    start, seq = draw(moments), draw(st.integers(1, 2**64 - 1))
    status = Status.RELEASED if released else draw(st.sampled_from([Status.LOST, Status.EXHAUSTED, Status.VETOED]))
    drawn = status in {Status.RELEASED, Status.LOST}
    selection = draw(st.none() | selections) if released else None
    charge, more = draw(charges) if drawn else Charge(), draw(charges)
    release = Release(
        tenant=draw(names),
        agent=draw(names),
        link=Link(
            incarnation=draw(st.binary(min_size=16, max_size=16)).hex(),
            seq=seq,
            prev_hash=b"" if seq == 1 else draw(st.binary(min_size=32, max_size=32)),
        ),
        plan=draw(names),
        plan_version=draw(st.integers(0, 2**32 - 1)),
        plan_hash=PlanHash(draw(st.binary(min_size=32, max_size=32))),
        window_start=start,
        window_end=start + timedelta(microseconds=draw(st.integers(1, 86_400_000_000))),
        status=status,
        account=draw(names),
        charge=charge,
        cumulative=charge + more,
        vectors=tuple(draw(st.lists(specs, min_size=1, max_size=4, unique_by=lambda spec: spec.name)))
        if released
        else (),
        max_partitions=draw(st.integers(0, 2**32 - 1)),
        max_rows_per_partition=draw(st.integers(0, 2**32 - 1)),
        max_nodes=draw(st.integers(0, 2**32 - 1)),
        selection=selection,
        rows=draw(st.integers(0 if selection else 1, 2**32 - 1)) if released else 0,
        payload_sha256=hashlib.sha256(payload).digest() if released else b"",
        veto=draw(st.none() | st.sampled_from(Veto)) if status is Status.VETOED else None,
    )
    return release, payload


@settings(max_examples=40)
@given(made=releases())
@example(made=(RELEASED, PAYLOAD))
@example(made=(LOST, b""))
@example(made=(DISCOVERED, PAYLOAD))
@example(made=(NOTHING_FOUND, PAYLOAD))
@example(made=(VETOED, b""))
def test_what_is_sealed_is_opened(made: tuple[Release, bytes]) -> None:
    """Every field comes back exactly: fractions, microseconds, doubles; and the bytes are those that were sealed."""
    release, payload = made
    sealed = codec.seal(release, payload)
    opened, again = codec.open_sealed(sealed.header, sealed.payload)
    assert opened == release
    assert again == sealed
    assert codec.seal(opened, payload) == sealed, "sealing is deterministic"
    assert sealed.hash == hashlib.sha256(sealed.header).digest()
    assert sealed.payload == payload


def test_golden_header() -> None:
    """The header's bytes are the wire: field numbers, types and the spelling of charges never change."""
    header = (GOLDEN / "header.bin").read_bytes()
    assert codec.seal(RELEASED, PAYLOAD).header == header
    assert codec.open_sealed(header, PAYLOAD)[0] == RELEASED


def test_golden_header_of_discovered_keys() -> None:
    """The same with a selection; and without one the header is what it was before there were selections."""
    header = (GOLDEN / "header_selection.bin").read_bytes()
    assert codec.seal(DISCOVERED, PAYLOAD).header == header
    assert codec.open_sealed(header, PAYLOAD)[0] == DISCOVERED
    assert header.startswith((GOLDEN / "header.bin").read_bytes())


def test_golden_vetoes() -> None:
    """The numbers of the rules never change; one that this program does not know yet reads as none, and is no error."""
    numbers = {"plan": 1, "column": 2, "unit": 3, "nodes": 4, "window": 5, "epsilon": 6, "horizon": 7, "noise": 8}
    assert {veto.value: number for veto, number in codec._VETO.items()} == numbers
    header = codec.seal(VETOED, b"").header
    assert header.endswith(b"\xa0\x01\x08")  # field 20, a varint, 8
    newer = header[:-1] + b"\x7f"
    assert codec.open_sealed(newer, b"")[0] == dataclasses.replace(VETOED, veto=None)


def test_every_field_is_in_the_header() -> None:
    """The chain's hash covers all that is said: another value in any field is another header."""
    header = codec.seal(RELEASED, PAYLOAD).header
    others = {
        "tenant": "t",
        "agent": "a",
        "link": Link(incarnation="f" * 32, seq=7, prev_hash=bytes(range(32))),
        "plan": "p",
        "plan_version": 2,
        "plan_hash": PlanHash(b"h" * 32),
        "window_start": datetime(2012, 12, 31, tzinfo=UTC),
        "window_end": datetime(2013, 1, 9, tzinfo=UTC),
        "status": Status.LOST,
        "account": "b",
        "charge": Charge(),
        "veto": Veto.PLAN,
        "cumulative": Charge(rho=Fraction(9)),
        "vectors": RELEASED.vectors[:1],
        "max_partitions": 2,
        "max_rows_per_partition": 6,
        "max_nodes": 4,
        "rows": 11,
        "payload_sha256": b"s" * 32,
        "selection": SELECTION,
    }
    assert set(others) == {field.name for field in dataclasses.fields(Release)}
    changed: dict[str, Any]
    for field, value in others.items():
        changed = {field: value}
        assert codec.seal(dataclasses.replace(RELEASED, **changed), PAYLOAD).header != header, field
    for part, link in {
        "seq": dataclasses.replace(RELEASED.link, seq=8),
        "prev_hash": dataclasses.replace(RELEASED.link, prev_hash=b"x" * 32),
    }.items():
        assert codec.seal(dataclasses.replace(RELEASED, link=link), PAYLOAD).header != header, part
    selected = codec.seal(DISCOVERED, PAYLOAD).header
    of_selection: dict[str, Any] = {
        "partition": "path",
        "mechanism": Mechanism.LAPLACE,
        "scale": 5.0,
        "sensitivity": 3.0,
        "threshold": 32,
        "loss": 0.25,
        "delta": 1e-8,
    }
    assert set(of_selection) == {field.name for field in dataclasses.fields(KeySpec)}
    for field, value in of_selection.items():
        changed = {field: value}
        selection = dataclasses.replace(SELECTION, **changed)
        other = dataclasses.replace(DISCOVERED, selection=selection)
        assert codec.seal(other, PAYLOAD).header != selected, field
        assert codec.open_sealed(codec.seal(other, PAYLOAD).header, PAYLOAD)[0].selection == selection


def header_with(change: Callable[[pb.ReleaseHeader], object], base: Release = RELEASED) -> bytes:
    """A header that the wire allows and our own types might not."""
    message = pb.ReleaseHeader.FromString(codec.seal(base, PAYLOAD).header)
    change(message)
    return message.SerializeToString(deterministic=True)


def set_(**fields: Any) -> Callable[[pb.ReleaseHeader], None]:
    """Set fields of the header."""

    def change(message: pb.ReleaseHeader) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


def set_vector(**fields: Any) -> Callable[[pb.ReleaseHeader], None]:
    """Set fields of the first vector."""

    def change(message: pb.ReleaseHeader) -> None:
        for name, value in fields.items():
            setattr(message.vectors[0], name, value)

    return change


def set_selection(**fields: Any) -> Callable[[pb.ReleaseHeader], None]:
    """Set fields of the selection, which need not be there."""

    def change(message: pb.ReleaseHeader) -> None:
        message.selection.SetInParent()
        for name, value in fields.items():
            setattr(message.selection, name, value)

    return change


def set_rho(text: str) -> Callable[[pb.ReleaseHeader], None]:
    """Spell the charge in another way."""

    def change(message: pb.ReleaseHeader) -> None:
        message.charge.rho = text

    return change


def set_delta(text: str) -> Callable[[pb.ReleaseHeader], None]:
    """Charge some delta."""

    def change(message: pb.ReleaseHeader) -> None:
        message.charge.delta = text

    return change


SELECTED = pb.ReleaseHeader.FromString(codec.seal(DISCOVERED, PAYLOAD).header).selection

INCONSISTENT: dict[str, tuple[Callable[[pb.ReleaseHeader], object], Release, bytes]] = {
    "no tenant": (set_(tenant=""), RELEASED, PAYLOAD),
    "no agent": (set_(agent=""), RELEASED, PAYLOAD),
    "no plan": (set_(plan=""), RELEASED, PAYLOAD),
    "no account": (set_(account=""), RELEASED, PAYLOAD),
    "long tenant": (set_(tenant="t" * 129), RELEASED, PAYLOAD),
    "no incarnation": (set_(incarnation=""), RELEASED, PAYLOAD),
    "long incarnation": (set_(incarnation="0" * 33), RELEASED, PAYLOAD),
    "seq 0": (set_(seq=0), RELEASED, PAYLOAD),
    "seq 0 without a predecessor": (set_(seq=0, prev_hash=b""), RELEASED, PAYLOAD),
    "delta over cumulative": (set_delta("1/2"), RELEASED, PAYLOAD),
    "long rho": (set_rho("0" * 128 + "1/99"), RELEASED, PAYLOAD),
    "first with a predecessor": (set_(seq=1), RELEASED, PAYLOAD),
    "second without": (set_(prev_hash=b""), RELEASED, PAYLOAD),
    "short prev_hash": (set_(prev_hash=b"x" * 31), RELEASED, PAYLOAD),
    "short plan_hash": (set_(plan_hash=b"x" * 31), RELEASED, PAYLOAD),
    "empty window": (set_(window_end_us=codec.to_us(RELEASED.window_start)), RELEASED, PAYLOAD),
    "backward window": (set_(window_end_us=0), RELEASED, PAYLOAD),
    "before year 1": (set_(window_start_us=-(2**63)), RELEASED, PAYLOAD),
    "after year 9999": (set_(window_end_us=2**63 - 1), RELEASED, PAYLOAD),
    "unspecified status": (set_(status=0), RELEASED, PAYLOAD),
    "unknown status": (set_(status=99), RELEASED, PAYLOAD),
    "released without payload": (set_(payload_sha256=b""), RELEASED, b""),
    "released with an empty payload": (set_(payload_sha256=hashlib.sha256(b"").digest()), RELEASED, b""),
    "released without vectors": (lambda m: m.ClearField("vectors"), RELEASED, PAYLOAD),
    "lost with payload": (set_(payload_sha256=hashlib.sha256(PAYLOAD).digest()), LOST, PAYLOAD),
    "lost with values": (set_(status=2), RELEASED, PAYLOAD),
    "lost with vectors": (lambda m: m.vectors.add(name="n", mechanism=1, scale=1, sensitivity=1, loss=1), LOST, b""),
    "unspecified mechanism": (set_vector(mechanism=0), RELEASED, PAYLOAD),
    "unknown mechanism": (set_vector(mechanism=9), RELEASED, PAYLOAD),
    "scale 0": (set_vector(scale=0.0), RELEASED, PAYLOAD),
    "negative scale": (set_vector(scale=-1.0), RELEASED, PAYLOAD),
    "scale NaN": (set_vector(scale=float("nan")), RELEASED, PAYLOAD),
    "infinite scale": (set_vector(scale=float("inf")), RELEASED, PAYLOAD),
    "sensitivity 0": (set_vector(sensitivity=0.0), RELEASED, PAYLOAD),
    "sensitivity NaN": (set_vector(sensitivity=float("nan")), RELEASED, PAYLOAD),
    "loss 0": (set_vector(loss=0.0), RELEASED, PAYLOAD),
    "loss NaN": (set_vector(loss=float("nan")), RELEASED, PAYLOAD),
    "infinite loss": (set_vector(loss=float("inf")), RELEASED, PAYLOAD),
    "charge over cumulative": (set_rho("1000/1"), RELEASED, PAYLOAD),
    "no charge": (lambda m: m.ClearField("charge"), RELEASED, PAYLOAD),
    "no cumulative": (lambda m: m.ClearField("cumulative"), RELEASED, PAYLOAD),
    "released without rows": (set_(rows=0), RELEASED, PAYLOAD),
    "lost with rows": (set_(rows=5), LOST, b""),
    "lost with the hash of nothing": (set_(payload_sha256=hashlib.sha256(b"").digest()), LOST, b""),
    "an incarnation that is not hexadecimal": (set_(incarnation="\n" * 32), RELEASED, PAYLOAD),
    "a name with a control character": (set_(agent="a\x1b[2J"), RELEASED, PAYLOAD),
    "a vector without a name": (set_vector(name=""), RELEASED, PAYLOAD),
    "a vector twice": (lambda m: m.vectors.append(m.vectors[0]), RELEASED, PAYLOAD),
    "exhausted with a charge": (set_(status=3), LOST, b""),
    "no rows and no selection": (lambda m: m.ClearField("selection"), NOTHING_FOUND, PAYLOAD),
    "lost with a selection": (lambda m: m.selection.CopyFrom(SELECTED), LOST, b""),
    "vetoed with a selection": (lambda m: m.selection.CopyFrom(SELECTED), VETOED, b""),
    "lost with a veto": (set_(veto=1), LOST, b""),
    "released with a veto": (set_(veto=8), RELEASED, PAYLOAD),
    "a selection and no payload": (set_(payload_sha256=b""), NOTHING_FOUND, b""),
    "a selection and no vectors": (lambda m: m.ClearField("vectors"), NOTHING_FOUND, PAYLOAD),
    "an empty selection": (set_selection(), RELEASED, PAYLOAD),
    **{
        f"selection: {field} is {value}"[:60]: (set_selection(**{field: value}), DISCOVERED, PAYLOAD)
        for field, values in {
            "partition": ("", "p" * 129, "a\x1b[2J"),
            "mechanism": (0, 9),
            "scale": (0.0, -1.0, math.nan, math.inf),
            "sensitivity": (0.0, -1.0, math.nan, math.inf),
            "threshold": (0, -1, -(2**63)),
            "loss": (0.0, -1.0, math.nan, math.inf),
            "delta": (0.0, -1.0, 1.0, math.nan, math.inf),
        }.items()
        for value in values
    },
    "empty header": (lambda m: m.Clear(), RELEASED, b""),
    **{
        f"rho is {text[:12]!r}": (set_rho(text), RELEASED, PAYLOAD)
        for text in (
            "",
            "1",
            "1/0",
            "-1/2",
            "1/-2",
            "1.5/2",
            "1/2/3",
            "1e3/1",
            "/",
            " 1/2",
            "nan/1",
            "٣/٤",
            "1" * 128 + "/1",
        )
    },
}


@pytest.mark.parametrize(("change", "base", "payload"), INCONSISTENT.values(), ids=INCONSISTENT.keys())
def test_an_inconsistent_header_is_refused(
    change: Callable[[pb.ReleaseHeader], object], base: Release, payload: bytes
) -> None:
    """A header that contradicts itself is refused, with a message that holds none of its values (A6)."""
    with pytest.raises(MalformedRelease) as refused:
        codec.open_sealed(header_with(change, base), payload)
    assert refused.value.__cause__ is None
    assert not any(character.isdigit() for character in str(refused.value).replace("sha256", ""))


def test_mutant_a_header_that_is_not_checked_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: what parses is taken; each rule of the check is then missed by some case above."""
    monkeypatch.setattr(codec, "_check", lambda release, payload: None)
    through = set()
    for name, (change, base, payload) in INCONSISTENT.items():
        try:
            codec.open_sealed(header_with(change, base), payload)
        except MalformedRelease:
            continue
        through.add(name)
    assert through >= {
        "no tenant",
        "long tenant",
        "no incarnation",
        "seq 0",
        "first with a predecessor",
        "second without",
        "short plan_hash",
        "empty window",
        "released without payload",
        "lost with payload",
        "lost with vectors",
        "scale NaN",
        "loss 0",
        "charge over cumulative",
        "no rows and no selection",
        "lost with a selection",
        *(name for name in INCONSISTENT if name.startswith("selection: ") and "mechanism" not in name),
    }


def test_mutant_a_selection_that_could_not_be_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: whatever is said of the selection is taken; only what belongs to the other rules is still refused."""
    monkeypatch.setattr(codec, "_could_be", lambda spec: True)
    for name, (change, base, payload) in INCONSISTENT.items():
        if name.startswith("selection: ") and "mechanism" not in name:
            codec.open_sealed(header_with(change, base), payload)


def test_nothing_was_found_is_a_release() -> None:
    """With a selection a release may have no rows: that no key passed is said as any other release is."""
    opened, _ = codec.open_sealed(codec.seal(NOTHING_FOUND, PAYLOAD).header, PAYLOAD)
    assert (opened.status, opened.rows, opened.selection) == (Status.RELEASED, 0, SELECTION)


@pytest.mark.parametrize("payload", [b"", PAYLOAD[:-1], PAYLOAD + b"\0", b"another payload"])
def test_a_payload_that_is_not_the_headers_is_refused(payload: bytes) -> None:
    """The header names its payload by sha256: no other payload passes under it."""
    with pytest.raises(MalformedRelease, match="sha256"):
        codec.open_sealed(codec.seal(RELEASED, PAYLOAD).header, payload)


def test_mutant_a_hash_that_is_not_compared_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: every payload hashes to what the header says; another payload then passes."""

    class Agreeable:
        def digest(self) -> bytes:
            return RELEASED.payload_sha256

    monkeypatch.setattr(hashlib, "sha256", lambda data: Agreeable())
    with pytest.raises(pytest.fail.Exception):
        test_a_payload_that_is_not_the_headers_is_refused(b"another payload")


def test_a_header_over_the_limit_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The size is looked at before anything is parsed; the limit itself still passes."""
    header = codec.seal(RELEASED, PAYLOAD).header
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", len(header))
    codec.open_sealed(header, PAYLOAD)
    monkeypatch.setattr(codec, "MAX_HEADER_BYTES", len(header) - 1)
    monkeypatch.setattr(codec, "pb", None)
    with pytest.raises(MalformedRelease, match="too large"):
        codec.open_sealed(header, PAYLOAD)


@settings(max_examples=300)
@given(header=st.binary(max_size=300), payload=st.binary(max_size=20))
def test_random_bytes_are_refused(header: bytes, payload: bytes) -> None:
    """Noise is never a release, and never another exception than MalformedRelease."""
    with pytest.raises(MalformedRelease):
        codec.open_sealed(header, payload)


def test_every_truncation_is_refused_or_consistent() -> None:
    """A header that ends early is refused, or is that of a release without a selection; none passes as the whole."""
    header = codec.seal(DISCOVERED, PAYLOAD).header
    public = len(codec.seal(RELEASED, PAYLOAD).header)
    for at in range(len(header)):
        if at != public:  # there it says nothing of a selection, which a plan that discovers keys does not admit
            with pytest.raises(MalformedRelease):
                codec.open_sealed(header[:at], PAYLOAD)


def flipped(times: int, seed: int) -> int:
    """Flip bits of a sealed release that many times; how many results opened, each consistent in itself."""
    chance = random.Random(seed)
    both = [codec.seal(RELEASED, PAYLOAD), codec.seal(DISCOVERED, PAYLOAD)]
    opened = 0
    for i in range(times):
        sealed = both[i % 2]
        header = bytearray(sealed.header)
        for _ in range(chance.choice((1, 1, 2, 4))):
            header[chance.randrange(len(header))] ^= 1 << chance.randrange(8)
        try:
            release, again = codec.open_sealed(bytes(header), PAYLOAD)
        except MalformedRelease:
            continue
        opened += 1
        assert again.header == bytes(header)
        assert again.hash != sealed.hash or bytes(header) == sealed.header
        assert codec.open_sealed(codec.seal(release, PAYLOAD).header, PAYLOAD)[0] == release
    return opened


def test_flipped_bits_are_refused_or_consistent() -> None:
    """3,000 mutations: MalformedRelease, or a release that survives another round trip."""
    assert 0 < flipped(3_000, seed=1) < 3_000


@pytest.mark.slow
def test_many_flipped_bits_are_refused_or_consistent() -> None:
    """The same for 100,000 mutations."""
    assert 0 < flipped(100_000, seed=2) < 100_000


@given(us=st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999))
def test_microseconds_are_exact(us: int) -> None:
    """Every microsecond of the years 1 to 9999 survives the wire."""
    assert codec.to_us(codec.from_us(us)) == us


def test_a_moment_of_another_zone_is_the_same_moment() -> None:
    """What counts is the instant, not the clock on the wall."""
    there = RELEASED.window_start.astimezone(timezone(timedelta(hours=-5)))
    assert codec.to_us(there) == codec.to_us(RELEASED.window_start) == 1_356_998_400_000_000


def test_statuses_and_mechanisms_map_one_to_one() -> None:
    """Every status and mechanism has a number on the wire, never the unspecified one, and no two share one."""
    assert set(codec._STATUS) == set(Status)
    assert set(codec._MECHANISM) == set(Mechanism)
    assert len(set(codec._STATUS.values()) - {0}) == len(Status)
    assert len(set(codec._MECHANISM.values()) - {0}) == len(Mechanism)
