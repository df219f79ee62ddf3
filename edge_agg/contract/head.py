"""How far an agent's journal is, as the agent says it and the collector reads it.

Place: between the journal and the wire on the device, between the wire and the landing at the collector.
Invariants: nothing in it depends on events: places, hashes of sealed bytes, and charges that the plans declare; of
whatever bytes came, what is read has names, places and charges that could be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from edge_agg.contract.codec import INCARNATION, read_charge, write_charge
from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.v1 import collector_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_agg.contract.release import Charge

MAX_PLACES = 2
MAX_SPENT = 64
"""Accounts of which the charges are said; nothing is wrong with those beyond."""
_MAX_SEQ = 2**63 - 2  # the wire has 64 bits, the databases 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """How far a journal is."""

    tenant: str
    agent: str
    incarnation: str
    """The journal's random name."""
    places: tuple[tuple[int, bytes], ...] = ()
    """Places of the chain, and the hash of the release at each; the last place last. Empty if nothing was sealed."""
    spent: Mapping[str, Charge]
    """By account, all that it was charged."""
    confirmed: bool = False
    """Whether the agent knows how far the collector is, and has not got that far."""

    @property
    def seq(self) -> int:
        """The last place; 0 if nothing was sealed."""
        return self.places[-1][0] if self.places else 0

    def confirm(self) -> Self:
        """The same, said again by an agent that knows how far the collector is."""
        return replace(self, confirmed=True)

    def message(self) -> pb.SayHeadRequest:
        """As it is sent."""
        spent = sorted(self.spent.items())[:MAX_SPENT]
        return pb.SayHeadRequest(
            tenant=self.tenant,
            agent=self.agent,
            incarnation=self.incarnation,
            places=[pb.Place(seq=seq, hash=digest) for seq, digest in self.places],
            spent=[pb.Spent(account=name, cumulative=write_charge(charge)) for name, charge in spent],
            confirmed=self.confirmed,
        )

    @classmethod
    def read(cls, message: pb.SayHeadRequest) -> Self:
        """As it came, from whomever.

        Raises:
            MalformedRelease: no journal could say this.
        """
        try:
            head = cls(
                tenant=message.tenant,
                agent=message.agent,
                incarnation=message.incarnation,
                places=tuple([(one.seq, one.hash) for one in message.places[: MAX_PLACES + 1]]),
                spent={
                    one.account: read_charge(one.cumulative.rho, one.cumulative.delta)
                    for one in message.spent[: MAX_SPENT + 1]
                },
                confirmed=message.confirmed,
            )
        except (ValueError, ZeroDivisionError):
            raise MalformedRelease("a charge does not parse") from None
        seqs = [seq for seq, _ in head.places]
        names = (head.tenant, head.agent, *head.spent)
        if (
            not all(0 < len(name) <= 128 and name.isprintable() for name in names)
            or INCARNATION.fullmatch(head.incarnation) is None
            or len(seqs) > MAX_PLACES
            or len(head.spent) > MAX_SPENT
            or seqs != sorted(set(seqs))
            or not all(1 <= seq <= _MAX_SEQ and len(digest) == 32 for seq, digest in head.places)
        ):
            raise MalformedRelease("no journal has such a head")
        return head
