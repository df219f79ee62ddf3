"""The one table of refusals."""

from __future__ import annotations

from typing import get_args

import grpc
import pytest

from edge_agg.contract.refusal import PUSHBACK_KEY, REFUSAL_KEY, RULES, Refusal, Verdict


def test_every_refusal_has_a_rule() -> None:
    """No refusal reaches the wire without a status, a verdict and a text."""
    assert set(RULES) == set(Refusal)


@pytest.mark.parametrize("refusal", Refusal)
def test_a_rule_is_complete(refusal: Refusal) -> None:
    """The status is one of gRPC's, the verdict one that the uplink knows, and the text a public constant."""
    rule = RULES[refusal]
    assert rule.status in grpc.StatusCode.__members__
    assert grpc.StatusCode[rule.status] is not grpc.StatusCode.OK
    assert rule.verdict in get_args(Verdict)
    assert rule.text
    assert not set("{}%") & set(rule.text), "a text is a constant, not a template"


def test_only_the_collectors_own_trouble_is_retried() -> None:
    """Bytes that were refused for what they are would be refused again; only load and failure pass."""
    retried = {refusal for refusal, rule in RULES.items() if rule.verdict == "retry"}
    assert retried == {Refusal.OVERLOADED, Refusal.STORE_FAILED, Refusal.INTERNAL}


@pytest.mark.parametrize("key", [PUSHBACK_KEY, REFUSAL_KEY])
def test_a_metadata_key_is_legal(key: str) -> None:
    """Metadata keys are lower-case ASCII without a `-bin` end, or gRPC refuses the whole answer."""
    assert key == key.lower()
    assert key.isascii()
    assert not key.endswith("-bin")
    assert not key.startswith("grpc-") or key == "grpc-retry-pushback-ms"


def test_wire_codes_are_unique_and_stable() -> None:
    """A code is what old agents in the field know: it may be added, never renamed."""
    assert [str(refusal) for refusal in Refusal] == [
        "overloaded",
        "store_failed",
        "internal",
        "plan_unknown",
        "too_large",
        "malformed",
        "plan_mismatch",
        "identity_mismatch",
        "conflict",
        "fenced",
        "unauthenticated",
        "revoked",
        "forbidden",
        "enrollment_refused",
        "window_ahead",
    ]
