"""Who a caller is comes from a certificate's SPIFFE id, or a token's row, and from nothing else (promise B3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloud_collector import client, denied, gate, server
from cloud_collector.admission import Refused
from cloud_collector.authority import certificate as make
from cloud_collector.caller import Caller, Kind
from cloud_collector.denied import DenyList
from cloud_collector.errors import AccessDenied, ConfigInvalid, PlanUnknown
from cloud_collector.gate import Identification
from edge_agg.contract.spiffe import SpiffeId
from edge_agg.contract.v1 import collector_pb2
from tests.cloud_collector.fleet import DOMAIN, LIFE, Fleet, Holder, pushed, refusal
from tests.cloud_collector.front import release

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ACCEPTED = (collector_pb2.OUTCOME_ACCEPTED, "")
MISMATCH = (collector_pb2.OUTCOME_REFUSED, "identity_mismatch")


def check_claims(fleet: Fleet) -> None:
    jfk = fleet.holder("acme", "jfk")
    with fleet.serving() as served, jfk.channel(served.address, fleet.anchors) as channel:
        sent = [release("lga", 0, tenant="acme"), release("jfk", 0, tenant="globex"), release("jfk", 0, tenant="acme")]
        assert pushed(channel, *sent) == [MISMATCH, MISMATCH, ACCEPTED]


def test_a_release_must_claim_whom_the_certificate_names(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tenant and agent of the payload, each alone, are refused if they are another's; mutant: they are believed."""
    check_claims(fleet)
    with monkeypatch.context() as mutant:
        mutant.setattr(Caller, "sends_for", lambda self, tenant, agent: True)
        with pytest.raises(AssertionError):
            check_claims(fleet)


def builder(*names: x509.GeneralName, cn: str = "jfk", ends: timedelta = LIFE) -> tuple[x509.CertificateBuilder, Any]:
    key, now = make.new_key(), datetime.now(UTC)
    begun = make._begin(make._name(cn), key.public_key(), now, now + ends)
    return make._leaf(begun, names, ExtendedKeyUsageOID.CLIENT_AUTH), key


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def from_common_name(self: Identification, certificate: bytes, chain: bytes) -> Caller:
    """The mutant: whoever made the request chose the name."""
    name = x509.load_pem_x509_certificate(certificate).subject.rfc4514_string().removeprefix("CN=")
    return Caller(kind=Kind.AGENT, tenant="acme", name=name)


def check_common_name(fleet: Fleet, n: int) -> None:
    lga = fleet.crafted(*builder(uri(f"spiffe://{DOMAIN}/acme/lga"), cn="jfk"))
    with fleet.serving() as served, lga.channel(served.address, fleet.anchors) as channel:
        assert pushed(channel, release("jfk", n, tenant="acme")) == [MISMATCH]
        assert pushed(channel, release("lga", n, tenant="acme")) == [ACCEPTED]


def test_a_common_name_is_nobodys_identity(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate that calls itself jfk in its subject and names lga is lga's; mutant: the CN is believed."""
    with monkeypatch.context() as mutant:
        mutant.setattr(Identification, "_certified", from_common_name)
        with pytest.raises(AssertionError):
            check_common_name(fleet, 0)
    check_common_name(fleet, 1)


@pytest.mark.parametrize(
    "names",
    [
        [uri(f"spiffe://{DOMAIN}/acme/jfk"), uri(f"spiffe://{DOMAIN}/acme/lga")],
        [uri(f"spiffe://{DOMAIN}/acme/jfk"), uri(f"https://{DOMAIN}/acme")],
        [x509.DNSName("jfk.acme.example")],
        [uri(f"spiffe://{DOMAIN}/acme")],
        [uri(f"spiffe://{DOMAIN}/acme/jfk/")],
        [uri(f"spiffe://{DOMAIN}/acme/../jfk")],
        [uri(f"spiffe://{DOMAIN}/acme/auditor/jfk")],
        [uri(f"SPIFFE://{DOMAIN}/acme/jfk")],
        [uri(f"spiffe://{DOMAIN}/acme/jfk?x=1")],
    ],
    ids=["two ids", "two uris", "no uri", "no agent", "empty", "dots", "another kind", "scheme", "query"],
)
def test_a_certificate_that_names_not_exactly_one_caller_names_nobody(
    fleet: Fleet, names: list[x509.GeneralName]
) -> None:
    """Although the issuer signed it, the caller is nobody; what else the name may mean is not guessed."""
    identify = Identification(
        domain=DOMAIN,
        denied=DenyList(fleet.pki / "denied.txt"),
        tokens=None,  # type: ignore[arg-type]  # not looked at
        now=lambda: datetime.now(UTC),
    )
    good, bad = fleet.crafted(*builder(uri(f"spiffe://{DOMAIN}/acme/jfk"))), fleet.crafted(*builder(*names))
    assert identify._certified(good.chain, b"").name == "jfk"
    with pytest.raises(Refused, match="no valid certificate"):
        identify._certified(bad.chain, b"")


def check_long_chains(fleet: Fleet) -> None:
    gate._shown.cache_clear()
    identify = Identification(
        domain=DOMAIN,
        denied=DenyList(fleet.pki / "denied.txt"),
        tokens=None,  # type: ignore[arg-type]  # not looked at
        now=lambda: datetime.now(UTC),
    )
    chain = fleet.holder("acme", "jfk").chain
    own, issuer = (make.pem(one) for one in x509.load_pem_x509_certificates(chain))
    assert identify._certified(own, own + issuer * 7).name == "jfk"
    for long in (own + issuer * 8, chain + b"\n" * 2**14):
        with pytest.raises(Refused, match="no valid certificate"):
            identify._certified(own, long)
    assert gate._shown.cache_info().currsize == 1


def test_a_chain_that_is_too_long_is_nobodys_and_is_not_kept(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process remembers of callers is bounded in bytes. Mutants: by count alone; by bytes alone."""
    check_long_chains(fleet)
    for bound, much in (("MAX_CHAIN_BYTES", 2**20), ("MAX_CHAIN", 2**20)):
        with monkeypatch.context() as mutant:
            mutant.setattr(gate, bound, much)
            with pytest.raises(pytest.fail.Exception):
                check_long_chains(fleet)
    gate._shown.cache_clear()


def test_another_domain_is_nobody(tmp_path: Path) -> None:
    """Neither by an issuer of that domain below a trusted root, nor by ours, which cannot sign for it."""
    fleet = Fleet(tmp_path)
    stranger = fleet.crafted(*builder(uri("spiffe://other.example/acme/jfk")))
    with fleet.serving() as served, stranger.channel(served.address, fleet.anchors) as channel:
        assert refusal(lambda: pushed(channel, release("jfk", 0, tenant="acme"))) == "UNAVAILABLE"  # no handshake
    with fleet.serving(trust_domain="other.example") as served:
        jfk = fleet.holder("acme", "jfk")
        with jfk.channel(served.address, fleet.anchors) as channel:
            assert refusal(lambda: pushed(channel, release("jfk", 0, tenant="acme"))) == "unauthenticated"


def lines_for(holder: Holder, fleet: Fleet) -> dict[str, str]:
    own, issuer = x509.load_pem_x509_certificates(holder.chain)
    return {
        "serial": f"serial:{own.serial_number:x}",
        "id": f"id:spiffe://{DOMAIN}/acme/jfk",
        "fingerprint": f"sha256:{own.fingerprint(hashes.SHA256()).hex()}",
        "issuer": f"sha256:{issuer.fingerprint(hashes.SHA256()).hex()}",
    }


def check_denied(fleet: Fleet, by: str) -> None:
    jfk = fleet.holder("acme", "jfk")
    fleet.pki.joinpath("denied.txt").write_text("# nobody yet\n")
    with fleet.serving() as served, jfk.channel(served.address, fleet.anchors) as channel:
        pushed(channel, release("jfk", 0, tenant="acme"))
        fleet.pki.joinpath("denied.txt").write_text(f"{lines_for(jfk, fleet)[by]}  # left the fleet\n")
        assert refusal(lambda: pushed(channel, release("jfk", 1, tenant="acme"))) == "revoked"
        fleet.pki.joinpath("denied.txt").unlink()
        assert refusal(lambda: pushed(channel, release("jfk", 1, tenant="acme"))) == "revoked"
        fleet.pki.joinpath("denied.txt").write_text("this is no entry\n")
        assert refusal(lambda: pushed(channel, release("jfk", 1, tenant="acme"))) == "revoked"
        assert [fields["problem"] for event, fields in served.events if event == "deny_list_unusable"] == ["unreadable"]
        fleet.pki.joinpath("denied.txt").write_text("\n")
        assert pushed(channel, release("jfk", 1, tenant="acme")) == [ACCEPTED]


def rewritten(pem: bytes) -> bytes:
    """The same certificate with (r, n - s) for (r, s): as valid, made by whoever holds it, and of another sha256."""
    one = x509.load_pem_x509_certificate(pem)
    r, s = decode_dss_signature(one.signature)
    signature = encode_dss_signature(r, ec.SECP256R1.group_order - s)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    inner = one.tbs_certificate_bytes + algorithm + bytes((3, len(signature) + 1, 0)) + signature
    made = x509.load_der_x509_certificate(b"\x30\x82" + len(inner).to_bytes(2, "big") + inner)
    assert made.fingerprint(hashes.SHA256()) != one.fingerprint(hashes.SHA256())
    return make.pem(made)


def check_rewritten(fleet: Fleet, by: str, name: str) -> None:
    holder = fleet.holder("acme", name)
    own, issuer = (make.pem(one) for one in x509.load_pem_x509_certificates(holder.chain))
    other = Holder(holder.key, rewritten(own) + issuer if by == "fingerprint" else own + rewritten(issuer))
    fleet.pki.joinpath("denied.txt").write_text("")
    with fleet.serving() as served:
        with other.channel(served.address, fleet.anchors) as channel:
            assert pushed(channel, release(name, 0, tenant="acme")) == [ACCEPTED]  # TLS takes it
        fleet.pki.joinpath("denied.txt").write_text(lines_for(holder, fleet)[by])
        with other.channel(served.address, fleet.anchors) as channel:
            assert refusal(lambda: pushed(channel, release(name, 1, tenant="acme"))) == "revoked"


@pytest.mark.parametrize("by", ["fingerprint", "issuer"])
def test_a_certificate_that_is_written_differently_stays_denied(
    fleet: Fleet, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own and its issuer's, with the second form of their signatures. Mutant: one form is looked up."""
    check_rewritten(fleet, by, "jfk")
    real = denied.fingerprints
    gate._shown.cache_clear()
    with monkeypatch.context() as mutant:
        mutant.setattr(gate, "fingerprints", lambda one: real(one)[:1])
        with pytest.raises(pytest.fail.Exception):
            check_rewritten(fleet, by, "lga")
    gate._shown.cache_clear()


@pytest.mark.parametrize(
    ("line", "serial"),
    [("serial:0A1B", 0x0A1B), ("SERIAL:0a:1b", 0x0A1B), ("\tserial:a1b # gone", 0x0A1B), ("serial:00", 0)],
)
def test_a_serial_is_read_as_tools_print_it(tmp_path: Path, line: str, serial: int) -> None:
    """Large digits, colons and zeros in front deny the same certificate; a sha256 likewise."""
    path = tmp_path / "denied.txt"
    path.write_text(f"{line}\nSHA256:{'AB:' * 31}AB\n")
    listed = DenyList(path)
    assert listed.denies(serial=serial, spiffe_id="spiffe://a/b/c", fingerprints=())
    assert listed.denies(serial=77, spiffe_id="spiffe://a/b/c", fingerprints=("ab" * 32,))
    assert not listed.denies(serial=78, spiffe_id="spiffe://a/b/c", fingerprints=())


@pytest.mark.parametrize(
    "line", ["id:spiffe://a/b/cserial:1f", "id:spiffe://A/b/c", "id:spiffe://a/b", "serial:", "sha256:ab", "jfk"]
)
def test_a_line_that_could_deny_nobody_is_wrong(tmp_path: Path, line: str) -> None:
    """The start is refused and the line named; two entries run together are one of these."""
    path = tmp_path / "denied.txt"
    path.write_text(f"# head\n{line}\n")
    with pytest.raises(ConfigInvalid, match="line 2"):
        DenyList(path)


@pytest.mark.parametrize("by", ["serial", "id", "fingerprint", "issuer"])
def test_who_is_denied_is_out_with_the_next_call(fleet: Fleet, by: str) -> None:
    """On a connection that lives (promise B5); a list that is lost or broken lets nobody back in."""
    check_denied(fleet, by)


def test_the_list_of_the_denied_is_read_while_running(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: it is read at the start, once."""
    monkeypatch.setattr(DenyList, "_refresh", lambda self: None)
    with pytest.raises(pytest.fail.Exception):
        check_denied(fleet, "serial")


def test_a_change_that_the_stamp_hides_is_seen_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read again after REREAD_S whatever its stamp says."""
    from cloud_collector import denied as room

    path, now = tmp_path / "denied.txt", [0.0]
    path.write_text("serial:1\n")
    monkeypatch.setattr(room, "_stamp", lambda path: (1, 1, 1))
    listed = DenyList(path, monotonic=lambda: now[0])
    path.write_text("serial:2\n")
    asked = {"spiffe_id": "spiffe://a/b/c", "fingerprints": ()}
    assert not listed.denies(serial=2, **asked)  # type: ignore[arg-type]  # as it is called
    now[0] = room.REREAD_S
    assert listed.denies(serial=2, **asked)  # type: ignore[arg-type]  # as above
    assert not listed.denies(serial=1, **asked)  # type: ignore[arg-type]  # as above


def check_expired(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    jfk, passed = fleet.holder("acme", "jfk"), [timedelta(0)]
    monkeypatch.setattr(server, "_now", lambda: datetime.now(UTC) + passed[0])
    with fleet.serving() as served, jfk.channel(served.address, fleet.anchors) as channel:
        pushed(channel, release("jfk", 0, tenant="acme"))
        passed[0] = LIFE
        assert refusal(lambda: pushed(channel, release("jfk", 1, tenant="acme"))) == "unauthenticated"


def test_a_certificate_that_ends_ends_on_a_connection_that_lives(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS looks at the date in the handshake alone; the gate looks at it in each call. Mutant: it does not."""
    check_expired(fleet, monkeypatch)
    with monkeypatch.context() as mutant:
        mutant.setattr(
            Identification,
            "_certified",
            lambda self, certificate, chain: Caller.of(gate._shown(certificate, chain).id, serial=1),  # type: ignore[union-attr]  # it is one
        )
        with pytest.raises(pytest.fail.Exception):
            check_expired(fleet, monkeypatch)


def test_an_expired_certificate_makes_no_connection(fleet: Fleet) -> None:
    """One that ended yesterday does not get through the handshake."""
    jfk = fleet.holder("acme", "jfk", now=lambda: datetime.now(UTC) - LIFE - timedelta(days=1))
    with fleet.serving() as served, jfk.channel(served.address, fleet.anchors) as channel:
        assert refusal(lambda: pushed(channel, release("jfk", 0, tenant="acme"))) == "UNAVAILABLE"


def check_roles(fleet: Fleet) -> None:
    jfk, ann = fleet.holder("acme", "jfk"), fleet.holder("acme", "jfk", analyst=True)
    jfk_files, ann_files = fleet.hand_out("jfk", jfk), fleet.hand_out("ann", ann)
    with fleet.serving() as served:
        with ann.channel(served.address, fleet.anchors) as channel:
            assert refusal(lambda: pushed(channel, release("jfk", 0, tenant="acme"))) == "forbidden"
        token = fleet.token("acme", "jfk")
        with client.connect(served.open, ca=ann_files / "ca.pem", token=token) as c:
            assert c.plans()["plan"].unique().to_list() == ["flights"]
            assert refusal(lambda: with_token(c._channel)) == "forbidden"

        def connected(files: Path) -> client.Client:
            return client.connect(served.address, ca=files / "ca.pem", cert=files / "cert.pem", key=files / "key.pem")

        with connected(ann_files) as c:
            assert "value" in c.estimate("flights", "departures").columns
        with connected(jfk_files) as c:
            for ask in (c.plans, lambda: c.estimate("flights", "departures")):
                with pytest.raises(AccessDenied, match="this kind of identity"):
                    ask()


def with_token(channel: Any) -> None:
    pushed(channel, release("jfk", 0, tenant="acme"))


@pytest.mark.slow
def test_agents_push_and_analysts_ask(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does the other's work, by certificate or by token; mutants: each may."""
    check_roles(fleet)
    for method, kind in (
        ("/edge_agg.contract.v1.CollectorService/PushReleases", Kind.ANALYST),
        ("/edge_agg.contract.v1.QueryService/Estimate", Kind.AGENT),
    ):
        with monkeypatch.context() as mutant:
            mutant.setitem(gate.ALLOWED, method, gate.ALLOWED[method] | {kind})
            with pytest.raises((AssertionError, pytest.fail.Exception, PlanUnknown)):
                check_roles(fleet)


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Bearer nonsense")],
        [("authorization", "Bearer ")],
        [("authorization", "Basic abc")],
        [],
    ],
)
def test_without_certificate_or_token_nothing_is_to_be_had(fleet: Fleet, metadata: Any) -> None:
    """A token that nobody issued is worth what none is worth."""
    import grpc

    from edge_agg.contract.v1 import query_pb2
    from edge_agg.contract.v1.query_pb2_grpc import QueryServiceStub

    with (
        fleet.serving() as served,
        grpc.secure_channel(served.open, grpc.ssl_channel_credentials(fleet.anchors)) as channel,
    ):
        stub = QueryServiceStub(channel)
        call: Callable[[], object] = lambda: stub.ListPlans(query_pb2.ListPlansRequest(), metadata=metadata, timeout=10)  # noqa: E731
        assert refusal(call) == "unauthenticated"


@pytest.mark.parametrize("text", ["spiffe://fleet.example/acme/jfk", "spiffe://fleet.example/acme/analyst/ann"])
def test_an_id_is_read_back_as_it_was_written(text: str) -> None:
    """One text, one id."""
    assert str(SpiffeId.parse(text)) == text
