"""Who makes a call, and what that lets them do.

Place: the gate works it out once a call; admission and the query room ask it.
Invariants: pure; a caller is of one tenant, but for the local one, and never widens after it was made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from edge_agg.contract.spiffe import SpiffeId


class Kind(StrEnum):
    """What a caller is."""

    LOCAL = "local"
    """A process on this machine, where the collector listens on loopback without TLS."""
    AGENT = "agent"
    ANALYST = "analyst"
    STRANGER = "stranger"
    """Somebody over TLS with neither certificate nor token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody who makes a call."""

    kind: Kind
    tenant: str | None = None
    """Whose agent or analyst this is; the local one and strangers belong to nobody."""
    name: str = ""
    plans: frozenset[str] | None = None
    """The names of the plans an analyst may ask about; all of the tenant's if None."""
    serial: int | None = None
    """Of the certificate, if there was one."""
    fingerprints: tuple[str, ...] = ()
    """sha256 of that certificate in hex, in every form that it can be written in."""
    ends: datetime | None = None
    """When that certificate does."""

    @classmethod
    def of(
        cls,
        spiffe_id: SpiffeId,
        *,
        serial: int,
        fingerprints: tuple[str, ...] = (),
        ends: datetime | None = None,
        plans: frozenset[str] | None = None,
    ) -> Caller:
        """The caller that a certificate names; an agent may ask about nothing, whatever the plans."""
        kind = Kind.ANALYST if spiffe_id.analyst else Kind.AGENT
        return cls(
            kind=kind,
            tenant=spiffe_id.tenant,
            name=spiffe_id.name,
            serial=serial,
            fingerprints=fingerprints,
            ends=ends,
            plans=plans,
        )

    def sends_for(self, tenant: str, agent: str) -> bool:
        """Whether a release that claims this tenant and agent may be theirs."""
        return self.kind is Kind.LOCAL or (self.kind, self.tenant, self.name) == (Kind.AGENT, tenant, agent)

    def may_ask(self, tenant: str, plan: str) -> bool:
        """Whether a tenant's plan of this name is there, as far as they may know."""
        if self.kind is Kind.LOCAL:
            return True
        return (self.kind, self.tenant) == (Kind.ANALYST, tenant) and (self.plans is None or plan in self.plans)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scopes:
    """Which plans analysts with certificates may ask about."""

    listed: Mapping[tuple[str, str], frozenset[str] | None] = field(default_factory=dict)
    """By tenant and name, the names of plans; all of the tenant's if None."""
    others: frozenset[str] | None = None
    """What an analyst may ask about who is not listed; all of their tenant's if None."""

    def plans(self, tenant: str, name: str) -> frozenset[str] | None:
        """The names of the plans that an analyst may ask about; all of the tenant's if None."""
        return self.listed.get((tenant, name), self.others)


EVERYTHING = Scopes()
"""Every analyst may ask about all plans of their tenant."""
LOCAL = Caller(kind=Kind.LOCAL)
"""Whoever calls over loopback without TLS."""
