"""Who somebody is, as a SPIFFE id.

An agent is `spiffe://DOMAIN/TENANT/AGENT`, an analyst `spiffe://DOMAIN/TENANT/analyst/NAME`.
Place: both ends read the id out of a certificate here, and the issuer writes it.
Invariants: pure; a text is an id in exactly one way, so two texts that differ name two callers; no error repeats the
text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from edge_agg.contract.errors import IdentityInvalid

_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ANALYST = "analyst"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpiffeId:
    """An id that is well formed."""

    domain: str
    """The trust domain."""
    tenant: str
    name: str
    """The agent's or the analyst's."""
    analyst: bool = False

    def __post_init__(self) -> None:
        if not is_domain(self.domain):
            raise IdentityInvalid("a trust domain is lower case letters, digits and ._-")
        if not (is_name(self.tenant) and is_name(self.name)):
            raise IdentityInvalid("a tenant, agent or analyst is letters, digits and _.- only, 63 at most")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an id; raises IdentityInvalid."""
        scheme, _, rest = text.partition("://")
        match rest.split("/"):
            case [domain, tenant, name] if scheme == "spiffe":
                return cls(domain=domain, tenant=tenant, name=name)
            case [domain, tenant, kind, name] if (scheme, kind) == ("spiffe", _ANALYST):
                return cls(domain=domain, tenant=tenant, name=name, analyst=True)
        raise IdentityInvalid("an id is spiffe://DOMAIN/TENANT/AGENT or spiffe://DOMAIN/TENANT/analyst/NAME")

    def __str__(self) -> str:
        kind = f"{_ANALYST}/" if self.analyst else ""
        return f"spiffe://{self.domain}/{self.tenant}/{kind}{self.name}"


def is_domain(text: str) -> bool:
    """Whether a text is a trust domain."""
    return _DOMAIN.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a text may name a tenant, an agent or an analyst in an id."""
    return _NAME.fullmatch(text) is not None
