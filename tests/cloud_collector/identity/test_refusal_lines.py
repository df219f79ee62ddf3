"""What the people who run a collector read of a refusal: which, whose, and the id that its caller was told."""

from __future__ import annotations

import contextlib
from contextvars import Context
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from cloud_collector import client, gate, service
from edge_agg.contract.v1 import enrollment_pb2, query_pb2
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceStub
from edge_agg.contract.v1.query_pb2_grpc import QueryServiceStub
from tests.cloud_collector.fleet import DOMAIN, Fleet, Served, pushed, refusal
from tests.cloud_collector.front import release
from tests.cloud_collector.identity.test_authority import HOUR, csr

if TYPE_CHECKING:
    from collections.abc import Iterator

JFK, ANN = f"spiffe://{DOMAIN}/acme/jfk", f"spiffe://{DOMAIN}/acme/analyst/ann"


@contextlib.contextmanager
def opened(served: Served, fleet: Fleet) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(served.open, grpc.ssl_channel_credentials(fleet.anchors)) as channel:
        yield channel


def refused(served: Served) -> dict[str, str]:
    """Refusals by code, and whose they were."""
    lines = [fields for event, fields in served.events if event in {"request_refused", "release_refused"}]
    assert all(line.get("request_id") for line in lines)
    return {line["refusal"]: line["caller"].partition(":127.0.0.1:")[0] for line in lines}


def check_named(fleet: Fleet) -> None:
    jfk, ann = fleet.holder("acme", "jfk"), fleet.holder("acme", "ann", analyst=True)
    token = fleet.token("acme", "bob")
    with fleet.serving() as served:
        with jfk.channel(served.address, fleet.anchors) as channel:
            pushed(channel, release("lga", 0, tenant="acme"))
            sealed = release("jfk", 0, tenant="acme")
            with pytest.raises(grpc.RpcError):
                QueryServiceStub(channel).ListPlans(query_pb2.ListPlansRequest(), timeout=20)
            fleet.pki.joinpath("denied.txt").write_text(f"id:{JFK}")
            assert refusal(lambda: pushed(channel, sealed)) == "revoked"
        with opened(served, fleet) as channel:
            assert refusal(lambda: pushed(channel, sealed)) == "unauthenticated"
            asked = enrollment_pb2.EnrollRequest(token="none", csr=csr())
            assert refusal(lambda: EnrollmentServiceStub(channel).Enroll(asked, timeout=20)) == "enrollment_refused"
        names = refused(served)
        assert names.pop("enrollment_refused").startswith("ipv4")
        assert names == {"identity_mismatch": JFK, "forbidden": JFK, "revoked": JFK, "unauthenticated": "ipv4"}
        served.events.clear()
        with ann.channel(served.address, fleet.anchors) as channel:
            refusal(lambda: pushed(channel, sealed))
        assert refused(served) == {"forbidden": ANN}
        served.events.clear()
        with client.connect(served.open, ca=fleet.hand_out("bob", ann) / "ca.pem", token=token) as c:
            refusal(lambda: pushed(c._channel, sealed))
        assert refused(served) == {"forbidden": "acme/analyst/bob"}


def test_a_refusal_names_whom_it_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the id in the certificate, the token's analyst, or an address where there is neither. Mutant: nobody."""
    check_named(fleet)
    fleet.pki.joinpath("denied.txt").write_text("")
    monkeypatch.setattr(gate, "name_caller", lambda name: None)
    with pytest.raises((AssertionError, KeyError)):
        check_named(fleet)


def check_ids(fleet: Fleet) -> None:
    ann = fleet.hand_out("ann", fleet.holder("acme", "ann", analyst=True))
    with fleet.authority() as authority:
        asked = enrollment_pb2.EnrollRequest(token=authority.make_token("acme", "lga", HOUR), csr=csr())
    with fleet.serving() as served:
        with client.connect(served.address, ca=ann / "ca.pem", cert=ann / "cert.pem", key=ann / "key.pem") as c:
            c.estimate("flights", "departures")
        with opened(served, fleet) as channel:
            EnrollmentServiceStub(channel).Enroll(asked, timeout=20)
        ids: dict[str, Any] = {event: fields.get("request_id") for event, fields in served.events}
        assert ids["query_answered"]
        assert ids["certificate_issued"]
        assert ids["query_answered"] != ids["certificate_issued"]


def test_what_a_call_does_in_a_thread_carries_its_id(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions and enrollments work beside the loop; their lines are the call's. Mutant: a thread of its own."""
    check_ids(fleet)
    monkeypatch.setattr(service, "copy_context", Context)
    with pytest.raises(AssertionError):
        check_ids(fleet)
