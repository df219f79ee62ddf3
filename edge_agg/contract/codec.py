"""Releases to bytes and back.

Place: the agent seals once, before the journal's commit; the collector opens what it was sent, before admission.
Invariants: the bytes that were sealed are the bytes that are stored, hashed and sent; opening untrusted bytes raises
MalformedRelease or returns a consistent Release, and its work is linear in the size of the message.
"""

from __future__ import annotations

import hashlib
import math
import re
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache

from google.protobuf.message import DecodeError

from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.plan import PlanHash
from edge_agg.contract.release import Charge, KeySpec, Link, Mechanism, Release, Sealed, Status, VectorSpec, Veto
from edge_agg.contract.v1 import release_pb2 as pb

MAX_HEADER_BYTES = 64 * 1024
"""A header larger than this is refused unread."""
INCARNATION = re.compile(r"[0-9a-f]{32}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_STATUS = {
    Status.RELEASED: pb.STATUS_RELEASED,
    Status.LOST: pb.STATUS_LOST,
    Status.EXHAUSTED: pb.STATUS_EXHAUSTED,
    Status.VETOED: pb.STATUS_VETOED,
}
_MECHANISM = {Mechanism.GAUSSIAN: pb.MECHANISM_GAUSSIAN, Mechanism.LAPLACE: pb.MECHANISM_LAPLACE}
_VETO = {veto: pb.Veto.Value(f"VETO_{veto.name}") for veto in Veto}
_STATUS_BACK = {number: status for status, number in _STATUS.items()}
_MECHANISM_BACK = {number: mechanism for mechanism, number in _MECHANISM.items()}
_VETO_BACK = {number: veto for veto, number in _VETO.items()}


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The UTC moment that many microseconds after 1970.

    Raises:
        OverflowError: outside the years 1 to 9999.
    """
    return _EPOCH + timedelta(microseconds=us)


def seal(release: Release, payload: bytes) -> Sealed:
    """Turn a release into the bytes that stand for it from now on.

    Args:
        release: the header; its `payload_sha256` is the payload's.
        payload: what `arrow.encode` made; empty unless the status is released.
    """
    header = _header(release).SerializeToString(deterministic=True)
    return Sealed(header=header, payload=payload, hash=hashlib.sha256(header).digest())


def open_sealed(header: bytes, payload: bytes) -> tuple[Release, Sealed]:
    """Read a release of unknown origin and check that it is consistent in itself (size, then sha256, then fields).

    Raises:
        MalformedRelease: give up on these bytes.
    """
    if len(header) > MAX_HEADER_BYTES:
        raise MalformedRelease("the header is too large")
    try:
        message = pb.ReleaseHeader.FromString(header)
        if hashlib.sha256(payload).digest() != message.payload_sha256 and (payload or message.payload_sha256):
            raise MalformedRelease("the payload's sha256 is not the header's")
        release = _release(message)
    except (DecodeError, ValueError, KeyError, OverflowError, ZeroDivisionError, UnicodeDecodeError):
        raise MalformedRelease("the header does not parse") from None
    _check(release, payload)
    return release, Sealed(header=header, payload=payload, hash=hashlib.sha256(header).digest())


def _header(release: Release) -> pb.ReleaseHeader:
    return pb.ReleaseHeader(
        tenant=release.tenant,
        agent=release.agent,
        incarnation=release.link.incarnation,
        seq=release.link.seq,
        prev_hash=release.link.prev_hash,
        plan=release.plan,
        plan_version=release.plan_version,
        plan_hash=release.plan_hash,
        window_start_us=to_us(release.window_start),
        window_end_us=to_us(release.window_end),
        status=_STATUS[release.status],
        account=release.account,
        charge=write_charge(release.charge),
        cumulative=write_charge(release.cumulative),
        vectors=[
            pb.VectorSpec(
                name=spec.name,
                mechanism=_MECHANISM[spec.mechanism],
                scale=spec.scale,
                sensitivity=spec.sensitivity,
                loss=spec.loss,
            )
            for spec in release.vectors
        ],
        bounds=pb.Bounds(
            max_partitions=release.max_partitions,
            max_rows_per_partition=release.max_rows_per_partition,
            max_nodes=release.max_nodes,
        ),
        rows=release.rows,
        payload_sha256=release.payload_sha256,
        selection=None if release.selection is None else _selection(release.selection),
        veto=pb.VETO_UNSPECIFIED if release.veto is None else _VETO[release.veto],
    )


def _selection(spec: KeySpec) -> pb.Selection:
    return pb.Selection(
        partition=spec.partition,
        mechanism=_MECHANISM[spec.mechanism],
        scale=spec.scale,
        sensitivity=spec.sensitivity,
        threshold=spec.threshold,
        loss=spec.loss,
        delta=spec.delta,
    )


def write_charge(charge: Charge) -> pb.Charge:
    """A charge as the wire has it."""
    return pb.Charge(rho=_rational(charge.rho), delta=_rational(charge.delta))


def _rational(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def _release(message: pb.ReleaseHeader) -> Release:
    return Release(
        tenant=message.tenant,
        agent=message.agent,
        link=Link(incarnation=message.incarnation, seq=message.seq, prev_hash=message.prev_hash),
        plan=message.plan,
        plan_version=message.plan_version,
        plan_hash=PlanHash(message.plan_hash),
        window_start=from_us(message.window_start_us),
        window_end=from_us(message.window_end_us),
        status=_STATUS_BACK[message.status],
        account=message.account,
        charge=read_charge(message.charge.rho, message.charge.delta),
        cumulative=read_charge(message.cumulative.rho, message.cumulative.delta),
        vectors=tuple(
            [_read_vector(one.name, one.mechanism, one.scale, one.sensitivity, one.loss) for one in message.vectors]
        ),
        max_partitions=message.bounds.max_partitions,
        max_rows_per_partition=message.bounds.max_rows_per_partition,
        max_nodes=message.bounds.max_nodes,
        rows=message.rows,
        payload_sha256=message.payload_sha256,
        selection=_read_selection(message.selection) if message.HasField("selection") else None,
        veto=_VETO_BACK.get(message.veto),  # a rule that this program does not know yet is none it could name
    )


def _read_selection(spec: pb.Selection) -> KeySpec:
    return KeySpec(
        partition=spec.partition,
        mechanism=_MECHANISM_BACK[spec.mechanism],
        scale=spec.scale,
        sensitivity=spec.sensitivity,
        threshold=spec.threshold,
        loss=spec.loss,
        delta=spec.delta,
    )


@lru_cache(maxsize=1024)  # a plan's releases all say the same here
def _read_vector(
    name: str, mechanism: pb.Mechanism.ValueType, scale: float, sensitivity: float, loss: float
) -> VectorSpec:
    return VectorSpec(name=name, mechanism=_MECHANISM_BACK[mechanism], scale=scale, sensitivity=sensitivity, loss=loss)


@lru_cache(maxsize=1024)  # most windows are charged the same
def read_charge(rho: str, delta: str) -> Charge:
    """A charge out of what the wire has; raises ValueError or ZeroDivisionError."""
    return Charge(rho=_read_rational(rho), delta=_read_rational(delta))


@lru_cache(maxsize=1024)
def _read_rational(text: str) -> Fraction:
    above, slash, below = text.partition("/")
    if not (slash and above.isascii() and above.isdigit() and below.isascii() and below.isdigit() and len(text) <= 128):
        raise ValueError("not a rational")
    return Fraction(int(above), int(below))


def _check(release: Release, payload: bytes) -> None:
    link, vectors = release.link, release.vectors
    released = release.status is Status.RELEASED
    names = (release.tenant, release.agent, release.plan, release.account)
    rules = {
        "a name is missing or too long": all(0 < len(name) <= 128 for name in names),
        "a name is not printable": "".join(names).isprintable(),
        "the chain link is broken": INCARNATION.fullmatch(link.incarnation) is not None
        and link.seq >= 1
        and len(link.prev_hash) == 32 * (link.seq > 1),
        "the plan hash is not a sha256": len(release.plan_hash) == 32,
        "the window is empty": release.window_start < release.window_end,
        "values without the status released, or the reverse": released == bool(payload) == bool(vectors),
        "rows or sha256 without the status released, or the reverse": released
        == (release.rows > 0 or release.selection is not None)
        == bool(release.payload_sha256),
        "a vector's name is missing or stands twice": len({s.name for s in vectors} - {""}) == len(vectors),
        "a charge without a draw": release.status not in {Status.EXHAUSTED, Status.VETOED}
        or release.charge == Charge(),
        "a veto without the status vetoed": release.veto is None or release.status is Status.VETOED,
        "a scale or a loss is not positive": all(
            0 < s.scale < math.inf and 0 < s.sensitivity < math.inf and 0 < s.loss < math.inf for s in vectors
        ),
        "the selection of keys is not one that could be": release.selection is None or _could_be(release.selection),
        "more was charged for this window than in all": _at_most(release.charge.rho, release.cumulative.rho)
        and _at_most(release.charge.delta, release.cumulative.delta),
    }
    if not all(rules.values()):
        raise MalformedRelease(next(problem for problem, holds in rules.items() if not holds))


def _at_most(one: Fraction, other: Fraction) -> bool:
    """What `<=` says, at a fifth of its cost."""
    return one.numerator * other.denominator <= other.numerator * one.denominator


def _could_be(spec: KeySpec) -> bool:
    numbers = (spec.scale, spec.sensitivity, spec.loss, spec.delta)
    named = 0 < len(spec.partition) <= 128 and spec.partition.isprintable()
    return named and spec.threshold > 0 and spec.delta < 1 and all(0 < number < math.inf for number in numbers)
