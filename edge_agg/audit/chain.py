"""Each release against its place in the chain, its plan, and the charges that stand behind it.

Place: between `charges.py` and `recount.py`.
Invariants: one pass in the order of the chain; headers are read field by field, not by the code that wrote them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from edge_agg.audit.charges import Charged, Difference, amount, moment
from edge_agg.audit.losses import loss_problems
from edge_agg.contract.cells import n_cells
from edge_agg.contract.release import Charge, Status
from edge_agg.contract.v1 import release_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_agg.audit.books import Books, ReleaseRow
    from edge_agg.privacy.measurement import Measurement

_STATUS = {
    pb.STATUS_RELEASED: Status.RELEASED,
    pb.STATUS_LOST: Status.LOST,
    pb.STATUS_EXHAUSTED: Status.EXHAUSTED,
    pb.STATUS_VETOED: Status.VETOED,
}


@dataclass(slots=True, kw_only=True)
class Chain:
    """What was found along the chain."""

    releases: int = 0
    head: bytes = b""
    statuses: dict[bytes, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By plan, how many windows were sealed with each status."""
    names: dict[bytes, str] = field(default_factory=dict)
    """By plan, what its releases call it."""
    last: dict[bytes, int] = field(default_factory=dict)
    """By plan, the start of the last window that was sealed."""
    sealed: set[tuple[bytes, int]] = field(default_factory=set)
    """Plan and window of every release."""


def check_chain(
    books: Books,
    charges: Sequence[Charged],
    measurements: Mapping[bytes, Measurement],
    differences: list[Difference],
) -> Chain:
    """Go along the chain once."""
    chain, ledger = Chain(), _Ledger(charges)
    for row in books.releases:
        problems = [*_links(books, chain, row), *_matches(row, measurements.get(row.plan_hash), ledger)]
        earlier = chain.last.get(row.plan_hash)
        if earlier is not None and row.start_us <= earlier:
            problems.append("is for a window that was closed before")
        label = f"release {row.seq}, window {moment(row.start_us)}"
        differences += [Difference(where=label, problem=problem) for problem in problems]
        chain.releases, chain.head = row.seq, row.hash
        chain.statuses[row.plan_hash][row.status] += 1
        if row.plan_hash not in chain.names and (header := _header(row)) is not None:
            chain.names[row.plan_hash] = header.plan
        chain.last[row.plan_hash] = row.start_us
        chain.sealed.add((row.plan_hash, row.start_us))
    return chain


class _Ledger:
    """The charges, by window and by account, in the order of their commits."""

    def __init__(self, charges: Sequence[Charged]) -> None:
        self.of_window: dict[tuple[bytes, int], list[Charged]] = defaultdict(list)
        self._sums: dict[str, list[tuple[int, Charge]]] = defaultdict(lambda: [(-1, Charge())])
        self._reached = -1
        for charged in charges:
            row = charged.row
            self.of_window[row.plan_hash, row.window_us].append(charged)
            sums = self._sums[row.account]
            sums.append((row.place, sums[-1][1] + charged.charge))

    def could_be(self, account: str, cumulative: Charge, own: Sequence[Charged], *, drawn: bool) -> bool:
        """Whether an account's sum was this when a window was sealed: after its own charges and all sealed before.

        A window that was drawn is sealed before anything else is charged. One that was not (lost, exhausted) may be
        sealed after charges of windows that were cut off, and are sealed later or never.
        """
        self._reached = max([self._reached, *(charged.row.place for charged in own)])
        sums = self._sums[account]
        at = bisect_right(sums, self._reached, key=lambda one: one[0]) - 1
        return cumulative == sums[at][1] or (not drawn and any(cumulative == sum_ for _, sum_ in sums[at + 1 :]))


def _links(books: Books, chain: Chain, row: ReleaseRow) -> Iterable[str]:
    if row.seq != chain.releases + 1:
        yield f"should be number {chain.releases + 1}: the chain has a gap"
    if hashlib.sha256(row.header).digest() != row.hash:
        yield "has another hash than its header"
    header = _header(row)
    if header is None:
        return
    if (header.incarnation, header.agent) != (books.incarnation, books.agent):
        yield "says another journal or agent"
    if header.seq != row.seq:
        yield "says another number in the chain"
    if header.prev_hash != chain.head:
        yield "does not follow the release before it"


def _matches(row: ReleaseRow, measurement: Measurement | None, ledger: _Ledger) -> Iterable[str]:
    header = _header(row)
    if header is None:
        yield "has a header that does not parse"
        return
    status = _STATUS.get(header.status)
    said = (header.plan_hash, header.window_start_us, header.window_end_us, status)
    if said != (row.plan_hash, row.start_us, row.end_us, row.status):
        yield "says another plan, window or status than its row"
    yield from _veto(row, header)
    yield from _payload(row, header)
    own = ledger.of_window.get((row.plan_hash, row.start_us), [])
    yield from _charged(row, header, own, ledger)
    if measurement is not None:
        yield from _as_planned(row, header, measurement)
    elif own:
        return  # said with the charge
    else:
        yield from _without_text(header)


def _veto(row: ReleaseRow, header: pb.ReleaseHeader) -> Iterable[str]:
    if header.veto != pb.VETO_UNSPECIFIED and row.status != Status.VETOED:
        yield "names a veto, and was not vetoed"


def _payload(row: ReleaseRow, header: pb.ReleaseHeader) -> Iterable[str]:
    released = row.status == Status.RELEASED
    if released != bool(header.payload_sha256) or released != bool(header.vectors):
        yield "has values without being released, or the reverse"
    if released and row.payload is None and row.state != "acked":
        yield "has lost its payload before it was acked"
    if row.payload and hashlib.sha256(row.payload).digest() != header.payload_sha256:
        yield "has another payload than its header says"


def _charged(row: ReleaseRow, header: pb.ReleaseHeader, own: Sequence[Charged], ledger: _Ledger) -> Iterable[str]:
    if row.status == Status.RELEASED and not own:
        yield "was released, and nothing was charged for it"
    if row.status == Status.LOST and not own:
        yield "is lost, and no attempt was charged"
    if row.status in {Status.EXHAUSTED, Status.VETOED} and own:
        yield f"is {row.status}, and was charged"
    if any(charged.row.account != header.account for charged in own):
        yield "says another account than the one that was charged"
    stated, cumulative = _charge(header.charge), _charge(header.cumulative)
    spent = sum((charged.charge for charged in own), Charge())
    if stated is None or cumulative is None:
        yield "states a charge that is no amount"
        return
    if stated != spent:
        yield f"states a charge of {amount(stated)}, and {amount(spent)} was charged"
    if not ledger.could_be(header.account, cumulative, own, drawn=row.status == Status.RELEASED):
        yield f"states {amount(cumulative)} for the account so far, which the charges never came to by then"


def _as_planned(row: ReleaseRow, header: pb.ReleaseHeader, measurement: Measurement) -> Iterable[str]:
    plan = measurement.plan
    if (header.plan, header.plan_version) != (plan.name, plan.version):
        yield "says another plan or version"
    if row.end_us - row.start_us != plan.every.total_seconds() * 1_000_000:
        yield "says a window of another length than its plan's"
    bounds = (header.bounds.max_partitions, header.bounds.max_rows_per_partition, header.bounds.max_nodes)
    if bounds != (plan.bounds.max_partitions, plan.bounds.max_rows_per_partition, plan.privacy_unit.max_nodes):
        yield "says other bounds than its plan's"
    if row.status != Status.RELEASED:
        return
    cells = n_cells(plan)
    if header.rows != cells if measurement.selection is None else header.rows % cells:
        yield "has other cells than its plan's"
    yield from loss_problems(header, measurement)


def _without_text(header: pb.ReleaseHeader) -> Iterable[str]:
    """A plan whose every window was exhausted was never charged, so there is no text of it."""
    if header.status == pb.STATUS_RELEASED:
        yield "was released by a plan of which there is no text"


def _header(row: ReleaseRow) -> pb.ReleaseHeader | None:
    try:
        return pb.ReleaseHeader.FromString(row.header)
    except DecodeError:
        return None


def _charge(message: pb.Charge) -> Charge | None:
    try:
        parts = [Fraction(*(int(part) for part in text.split("/"))) for text in (message.rho, message.delta)]
        return Charge(rho=parts[0], delta=parts[1])
    except (ValueError, TypeError, ZeroDivisionError):
        return None
