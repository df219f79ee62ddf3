"""The authority: what it signs, what it refuses, and what its folder gives away."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_collector.authority import certificate as make
from cloud_collector.authority import denylist, folder
from cloud_collector.authority import index as room
from cloud_collector.authority.folder import Authority
from cloud_collector.authority.index import Index
from cloud_collector.denied import DenyList, fingerprints
from cloud_collector.errors import ConfigInvalid, RequestInvalid
from cloud_collector.secret import hashed
from edge_agg.contract.v1 import enrollment_pb2
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceStub
from edge_agg.identity.credentials import identity_of
from edge_agg.identity.request import Request
from tests.cloud_collector.fleet import DOMAIN, LIFE, Fleet, aged, refusal

if TYPE_CHECKING:
    from pathlib import Path

HOUR = timedelta(hours=1)


def csr(key: Any = None, **claims: Any) -> bytes:
    """A request that claims to be somebody else."""
    key = make.new_key() if key is None else key
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
    names = [x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/globex/king")]
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def leaf(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain)


def renewed(authority: Authority, held: x509.Certificate) -> x509.Certificate:
    return leaf(authority.renew(held.serial_number, csr(), fingerprints(held)))


def test_a_token_says_whose_certificate_it_is(fleet: Fleet) -> None:
    """Name, role and rights are the token's; of the request, only the key is used."""
    with fleet.authority() as authority:
        made = leaf(authority.enroll(authority.make_token("acme", "jfk", HOUR), csr()))
    assert str(identity_of(made)) == f"spiffe://{DOMAIN}/acme/jfk"
    assert made.subject.rfc4514_string() == "CN=jfk"
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def check_single_use(at: Path) -> None:
    fleet, together = Fleet(at), threading.Barrier(8)
    with fleet.authority() as authority:
        token = authority.make_token("acme", "jfk", HOUR)

    def enroll(_: int) -> bool:
        with fleet.authority() as authority:
            together.wait(10)
            try:
                authority.enroll(token, csr())
            except RequestInvalid:
                return False
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enroll, range(8))) == 1
    with fleet.authority() as authority:
        assert sum(one.kind == "agent" for one in authority.certificates()) == 1


@pytest.mark.slow
def test_a_token_is_used_once_whoever_asks_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight processes' worth of connections, one certificate. Mutant: looked at first, marked later."""
    (tmp_path / "real").mkdir()
    check_single_use(tmp_path / "real")

    def look(self: Index, secret: str, now: datetime) -> str:
        rows = self._db.execute("SELECT subject FROM tokens WHERE hash = ?", (hashed(secret),)).fetchall()
        return str(rows[0][0])

    (tmp_path / "mutant").mkdir()
    with monkeypatch.context() as mutant:
        mutant.setattr(Index, "use_token", look)
        with pytest.raises(AssertionError):
            check_single_use(tmp_path / "mutant")


def test_a_token_ends_and_others_open_nothing(fleet: Fleet) -> None:
    """Old, unknown and empty ones alike; what went wrong is not told apart."""
    with fleet.authority(now=lambda: datetime.now(UTC) - 2 * HOUR) as authority:
        old = authority.make_token("acme", "jfk", HOUR)
    texts = set()
    with fleet.authority() as authority:
        for token in (old, "eagg_unknown", ""):
            with pytest.raises(RequestInvalid) as raised:
                authority.enroll(token, csr())
            texts.add(str(raised.value))
    assert len(texts) == 1


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: b"",
        lambda: b"\x30" * 100,
        lambda: b"\x00" * (make.MAX_CSR_BYTES + 1),
        lambda: csr()[:-1] + b"\x00",
        lambda: csr(ec.generate_private_key(ec.SECP384R1())),
        lambda: csr(ed25519.Ed25519PrivateKey.generate()),
    ],
    ids=["empty", "junk", "long", "unsigned", "another curve", "another kind"],
)
def test_a_request_that_is_no_good_spends_no_token(fleet: Fleet, request_of: Any) -> None:
    """Its sender must hold a P-256 key; a device that erred may try again."""
    with fleet.authority() as authority:
        token = authority.make_token("acme", "jfk", HOUR)
        with pytest.raises(RequestInvalid):
            authority.enroll(token, request_of())
        authority.enroll(token, csr())


def test_the_token_is_not_in_the_folder(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the index enrolls nothing; mutant: stored as it is."""

    def kept() -> bool:
        with fleet.authority() as authority:
            token = authority.make_token("acme", "jfk", HOUR)
            return any(token.encode() in path.read_bytes() for path in fleet.pki.iterdir())

    assert not kept()
    monkeypatch.setattr(room, "hashed", str.encode)
    assert kept()


def test_keys_are_for_their_owner_alone(fleet: Fleet) -> None:
    """0600, and nothing of them in any other file."""
    for name in ("root.key", "issuer.key", "index.sqlite"):
        assert (fleet.pki / name).stat().st_mode & 0o777 == 0o600
    assert fleet.pki.stat().st_mode & 0o777 == 0o700


def test_an_issuer_is_bound_and_the_root_may_leave(fleet: Fleet) -> None:
    """It signs leaves alone, ids of one domain alone; without the root's key everything goes on but a new issuer."""
    issuer = leaf((fleet.pki / "issuer.pem").read_bytes())
    assert issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    within = issuer.extensions.get_extension_for_class(x509.NameConstraints).value
    assert within.permitted_subtrees == [x509.UniformResourceIdentifier(DOMAIN)]
    (fleet.pki / "root.key").rename(fleet.folder / "safe.key")
    fleet.holder("acme", "jfk")
    with fleet.authority() as authority:
        with pytest.raises(ConfigInvalid, match=r"root\.key"):
            authority.renew_issuer()
        (fleet.folder / "safe.key").rename(fleet.pki / "root.key")
        authority.renew_issuer()
    assert leaf((fleet.pki / "issuer.pem").read_bytes()).serial_number != issuer.serial_number


def test_nothing_outlives_its_issuer(fleet: Fleet) -> None:
    """A chain ends when its first certificate does, so a leaf says so itself."""
    issuer = leaf((fleet.pki / "issuer.pem").read_bytes())
    late = fleet.holder("acme", "jfk", now=lambda: issuer.not_valid_after_utc - HOUR)
    assert leaf(late.chain).not_valid_after_utc == issuer.not_valid_after_utc


def lives_after_another_issuer(at: Path, *, forget: bool = False) -> list[timedelta]:
    """Of what was cut short by an issuer's end, renewed once beside it and again below the next issuer."""
    fleet = Fleet(at)
    issuer = leaf((fleet.pki / "issuer.pem").read_bytes())
    late, later = issuer.not_valid_after_utc - HOUR, issuer.not_valid_after_utc - HOUR / 12
    agent = leaf(fleet.holder("acme", "jfk", now=lambda: late).chain)
    out = fleet.hand_out("late", fleet.server(now=lambda: late))
    with fleet.authority(now=lambda: later) as authority:
        agent = renewed(authority, agent)
        authority.renew_in(out)
        if forget:
            authority._index._db.execute("DROP TABLE lives")
    with fleet.authority(now=lambda: later + HOUR / 24) as authority:
        authority.renew_issuer()
        agent = renewed(authority, agent)
        authority.renew_in(out)
    server = leaf((out / "cert.pem").read_bytes())
    return [one.not_valid_after_utc - one.not_valid_before_utc - make.BACKDATED for one in (agent, server)]


def test_what_an_issuers_end_cut_short_is_whole_again_below_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal is for as long as was asked for, whatever was left of it. Mutant: for as long as the last one."""
    (tmp_path / "real").mkdir()
    assert lives_after_another_issuer(tmp_path / "real") == [LIFE, LIFE]
    monkeypatch.setattr(Authority, "_life", lambda _, held: held.ends - held.issued)
    (tmp_path / "mutant").mkdir()
    assert max(lives_after_another_issuer(tmp_path / "mutant")) < HOUR


def test_an_index_that_knows_no_lives_is_taken_over(tmp_path: Path) -> None:
    """What an older version issued and an issuer's end cut short is renewed for as long as its kind is by default."""
    assert lives_after_another_issuer(tmp_path, forget=True) == [make.CLIENT_LIFE, make.SERVER_LIFE]


def test_what_an_older_version_issued_for_a_short_life_keeps_it(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """No issuer's end cut it: it was meant so. Mutant: every certificate of that time gets its kind's default."""
    now = datetime.now(UTC)
    with fleet.authority(now=lambda: now - 2 * HOUR) as authority:
        key = make.new_key().public_key()
        held = leaf(authority.issue_client(authority.id_of("acme", "jfk"), key, 3 * HOUR))
        authority._index._db.execute("DELETE FROM lives")
    with fleet.authority() as authority:
        after = renewed(authority, held)
        assert after.not_valid_after_utc - now < 4 * HOUR
    monkeypatch.setattr(Authority, "_life", lambda _, held: max(held.ends - held.issued, make.CLIENT_LIFE))
    with fleet.authority() as authority:
        assert renewed(authority, held).not_valid_after_utc - now > 4 * HOUR


def test_serials_are_random_and_on_record(fleet: Fleet) -> None:
    """Every certificate is in the index before anybody has it."""
    serials = {leaf(fleet.holder("acme", f"a{n}").chain).serial_number for n in range(8)}
    assert len({one >> 100 for one in serials}) == 8
    with fleet.authority() as authority:
        assert serials <= {one.serial for one in authority.certificates()}


def test_a_renewal_is_for_the_same_identity_and_never_after_a_revocation(fleet: Fleet) -> None:
    """Whose it is stands on record; who was revoked, by serial or by identity, renews nothing more."""
    first = leaf(fleet.holder("acme", "jfk", now=aged).chain)
    with fleet.authority() as authority:
        second = renewed(authority, first)
        assert identity_of(second) == identity_of(first)
        assert {one.serial for one in authority.revoke(subject=f"spiffe://{DOMAIN}/acme/jfk")} == {
            first.serial_number,
            second.serial_number,
        }
        for one in (first, second):
            with pytest.raises(RequestInvalid):
                renewed(authority, one)
        assert authority.revoke(serial=first.serial_number) == []
        with pytest.raises(RequestInvalid):
            authority.renew(12345, csr(), ())
    denied = (fleet.pki / "denied.txt").read_text()
    assert all(f"serial:{one.serial_number:x}" in denied for one in (first, second))


def check_another_authority(at: Path) -> None:
    for name in ("ours", "theirs"):
        (at / name).mkdir(parents=True)
    fleet, other = Fleet(at / "ours"), Fleet(at / "theirs")
    serial = leaf(fleet.holder("acme", "jfk", now=aged).chain).serial_number
    with pytest.MonkeyPatch.context() as chosen:
        chosen.setattr(x509, "random_serial_number", lambda: serial)
        same = other.holder("acme", "lga", now=aged)
    (at / "both.pem").write_bytes(fleet.anchors + other.anchors)
    with fleet.serving(ca_file=at / "both.pem") as served, same.channel(served.address, fleet.anchors) as channel:
        stub, asked = EnrollmentServiceStub(channel), enrollment_pb2.RenewRequest(csr=csr())
        assert refusal(lambda: stub.Renew(asked, timeout=20)) == "enrollment_refused"


def test_a_serial_of_another_authority_is_nobody_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two CAs in `ca_file`, a serial alone names two certificates. Mutant: the serial decides whose it is."""
    check_another_authority(tmp_path / "real")
    real = Authority.renew

    def by_serial(self: Authority, serial: int, sent: bytes, _: object) -> bytes:
        return real(self, serial, sent, {one.fingerprint for one in self.certificates()})

    monkeypatch.setattr(Authority, "renew", by_serial)
    with pytest.raises(pytest.fail.Exception):
        check_another_authority(tmp_path / "mutant")


def renewed_at_most(at: Path, asked: timedelta, times: int) -> int:
    """How many of so many renewals of one serial are given, that long after its issue."""
    fleet, now = Fleet(at), datetime.now(UTC)
    held, given = leaf(fleet.holder("acme", "jfk", now=lambda: now - asked).chain), 0
    with fleet.authority(now=lambda: now) as authority:
        for _ in range(times):
            with contextlib.suppress(RequestInvalid):
                renewed(authority, held)
                given += 1
    return given


def test_a_certificate_is_renewed_in_the_second_half_of_its_life_and_so_often_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stolen key gets few certificates; an agent asks at two thirds, so it never asks in vain.

    Mutant: a renewal is not looked at.
    """
    folders = iter(tmp_path / str(n) for n in range(10))

    def given(asked: timedelta, times: int) -> int:
        at = next(folders)
        at.mkdir()
        return renewed_at_most(at, asked, times)

    assert given(LIFE * 0.49, 1) == 0
    assert given(LIFE * 0.5, 1) == 1
    begins = -make.BACKDATED
    assert given(begins + (LIFE + make.BACKDATED) * 2 / 3, 20) == folder.MOST_A_DAY
    with monkeypatch.context() as mutant:
        mutant.setattr(Authority, "_check_due", lambda self, held: None)
        assert given(HOUR, 20) == 20


def test_the_day_after_it_is_renewed_again(fleet: Fleet) -> None:
    """A device that could keep nothing of what came, as with a full disk, is not shut out for good."""
    now = datetime.now(UTC)
    held = leaf(fleet.holder("acme", "jfk", now=lambda: now - LIFE * 0.7).chain)
    for day in range(3):
        with fleet.authority(now=lambda day=day: now + timedelta(days=day)) as authority:
            for _ in range(folder.MOST_A_DAY):
                renewed(authority, held)
            with pytest.raises(RequestInvalid, match="within a day"):
                renewed(authority, held)


def check_many_revoked(fleet: Fleet) -> None:
    chains = [leaf(fleet.holder("acme", "jfk").chain) for _ in range(denylist.MOST_LINES + 1)]
    subject, path = f"spiffe://{DOMAIN}/acme/jfk", fleet.pki / "denied.txt"
    lines = len(path.read_text().splitlines())
    with fleet.authority() as authority:
        assert len(authority.revoke(subject=subject)) == len(chains)
        assert authority.revoke(subject=subject) == []
    assert len(path.read_text().splitlines()) == lines + 1
    assert all(DenyList(path).denies(serial=one.serial_number, spiffe_id=subject, fingerprints=()) for one in chains)


def test_a_subject_of_many_certificates_takes_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list stays short, and all of them are denied. Mutant: a line each."""
    (tmp_path / "real").mkdir()
    check_many_revoked(Fleet(tmp_path / "real"))
    monkeypatch.setattr(denylist, "by_subject", lambda issued: False)
    (tmp_path / "mutant").mkdir()
    with pytest.raises(AssertionError):
        check_many_revoked(Fleet(tmp_path / "mutant"))


def check_revoked_beside(fleet: Fleet, name: str, before: str | None) -> None:
    made = leaf(fleet.holder("acme", name).chain)
    path = fleet.pki / "denied.txt"
    path.unlink() if before is None else path.write_text(before)
    with fleet.authority() as authority:
        authority.revoke(serial=made.serial_number)
    listed = DenyList(path)
    assert listed.denies(serial=made.serial_number, spiffe_id="spiffe://a/b/c", fingerprints=())
    if before:
        assert listed.denies(serial=1, spiffe_id="spiffe://a/b/lga", fingerprints=())


def test_a_revocation_stands_whatever_a_person_wrote_into_the_list(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last line without its end, no list at all. Mutant: the entry is put behind what is there."""
    for n, before in enumerate(["id:spiffe://a/b/lga", "id:spiffe://a/b/lga\n", "", None]):
        check_revoked_beside(fleet, f"a{n}", before)
    monkeypatch.setattr(denylist, "so_far", lambda folder: (folder / "denied.txt").read_bytes())
    with pytest.raises((AssertionError, ConfigInvalid)):
        check_revoked_beside(fleet, "b", "id:spiffe://a/b/lga")


def test_a_servers_certificate_is_renewed_by_hand_alone(fleet: Fleet) -> None:
    """With the same hosts and as long; a caller cannot renew it over the wire."""
    out = fleet.hand_out("server", fleet.server())
    before = leaf((out / "cert.pem").read_bytes())
    with fleet.authority() as authority:
        with pytest.raises(RequestInvalid, match="server"):
            renewed(authority, before)
        authority.renew_in(out)
    after = leaf((out / "cert.pem").read_bytes())
    names = [one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for one in (before, after)]
    assert names[0] == names[1]
    assert make.public_der(before.public_key()) != make.public_der(after.public_key())
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600


def test_one_folder_holds_one_authority(fleet: Fleet) -> None:
    """A second `init` would make every device's certificate worthless."""
    with pytest.raises(ConfigInvalid, match="already"):
        Authority.init(fleet.pki, DOMAIN, now=datetime.now(UTC))
    with pytest.raises(ConfigInvalid, match="no authority"), Authority.opened(fleet.folder):
        pass


@pytest.mark.parametrize(("tenant", "name"), [("acme", "a/b"), ("acme", ".."), ("", "a"), ("acme", "é")])
def test_a_name_that_is_none_gets_nothing(fleet: Fleet, tenant: str, name: str) -> None:
    """Neither a token nor a certificate."""
    with fleet.authority() as authority:
        with pytest.raises(RequestInvalid):
            authority.make_token(tenant, name, HOUR)
        with pytest.raises(RequestInvalid):
            authority.id_of(tenant, name)


def test_a_key_that_is_held_proves_nothing_for_another(fleet: Fleet) -> None:
    """The agent checks that what came back is over its own key."""
    with fleet.authority() as authority:
        chain = authority.issue_client(authority.id_of("acme", "jfk"), make.new_key().public_key(), LIFE)
    from edge_agg.errors import EnrollmentFailed

    with pytest.raises(EnrollmentFailed, match="key"):
        Request().check(chain, fleet.anchors)
