"""The one table of refusals: what the collector may say no with, and what the agent then does.

Place: admission and the service pick a code, the wire carries it, the uplink looks up what to do.
Invariant: the text is public and constant; no refusal carries anything out of a release.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Verdict = Literal["retry", "hold", "park"]
"""`retry`: the same bytes again after a back-off. `hold`: keep them and try again much later, others may pass.
`park`: for good; a person must look."""

PUSHBACK_KEY = "grpc-retry-pushback-ms"
"""Trailing metadata: how long to wait before the next try, in milliseconds."""
REFUSAL_KEY = "edge-agg-refusal"
"""Trailing metadata: the code of a refusal that concerns a whole call."""


class Refusal(StrEnum):
    """Why something was not taken."""

    OVERLOADED = "overloaded"
    STORE_FAILED = "store_failed"
    INTERNAL = "internal"
    PLAN_UNKNOWN = "plan_unknown"
    TOO_LARGE = "too_large"
    MALFORMED = "malformed"
    PLAN_MISMATCH = "plan_mismatch"
    IDENTITY_MISMATCH = "identity_mismatch"
    CONFLICT = "conflict"
    FENCED = "fenced"
    UNAUTHENTICATED = "unauthenticated"
    REVOKED = "revoked"
    FORBIDDEN = "forbidden"
    ENROLLMENT_REFUSED = "enrollment_refused"
    WINDOW_AHEAD = "window_ahead"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table."""

    status: str
    """The gRPC status, where the refusal concerns a whole call."""
    verdict: Verdict
    """What the agent does."""
    text: str
    """What a person is told."""


RULES: dict[Refusal, Rule] = {
    Refusal.OVERLOADED: Rule(
        "RESOURCE_EXHAUSTED", "retry", "the collector's queue is full; send again after the pushback"
    ),
    Refusal.STORE_FAILED: Rule("UNAVAILABLE", "retry", "the collector could not commit; send again"),
    Refusal.INTERNAL: Rule("INTERNAL", "retry", "the collector failed; its log has the request id"),
    Refusal.PLAN_UNKNOWN: Rule(
        "FAILED_PRECONDITION", "hold", "no registered plan has this hash; run `cloud-collector plans add`"
    ),
    Refusal.TOO_LARGE: Rule("RESOURCE_EXHAUSTED", "park", "larger than the collector takes"),
    Refusal.MALFORMED: Rule("INVALID_ARGUMENT", "park", "the bytes are not a release"),
    Refusal.PLAN_MISMATCH: Rule("INVALID_ARGUMENT", "park", "the release does not fit the plan that its hash names"),
    Refusal.IDENTITY_MISMATCH: Rule("PERMISSION_DENIED", "park", "the release claims another agent than the caller"),
    Refusal.CONFLICT: Rule(
        "ALREADY_EXISTS", "park", "another release was accepted for this window; the agent is fenced"
    ),
    Refusal.FENCED: Rule("PERMISSION_DENIED", "hold", "the agent is fenced; the people who run the fleet must decide"),
    Refusal.UNAUTHENTICATED: Rule(
        "UNAUTHENTICATED", "hold", "no valid certificate or token of this collector's trust domain; enroll, or renew it"
    ),
    Refusal.REVOKED: Rule("UNAUTHENTICATED", "hold", "the certificate was revoked; ask the people who run the fleet"),
    Refusal.FORBIDDEN: Rule("PERMISSION_DENIED", "hold", "this kind of identity may not make this call"),
    Refusal.ENROLLMENT_REFUSED: Rule(
        "PERMISSION_DENIED",
        "park",
        "no such token, or it is used or too old, or the request is no good; ask for a new one",
    ),
    Refusal.WINDOW_AHEAD: Rule(
        "FAILED_PRECONDITION", "hold", "the window begins more than two days from now; look at the device's clock"
    ),
}
