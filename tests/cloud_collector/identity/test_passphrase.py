"""The issuer's key may lie encrypted beside the collector; what opens it comes from elsewhere."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest

from cloud_collector.authority import keys
from cloud_collector.authority.folder import Authority
from cloud_collector.authority.index import Index
from cloud_collector.authority.keys import Passphrases
from cloud_collector.config import load
from cloud_collector.errors import ConfigInvalid, RequestInvalid
from edge_agg.contract.v1 import enrollment_pb2
from edge_agg.contract.v1.enrollment_pb2_grpc import EnrollmentServiceStub
from tests.cloud_collector.fleet import Fleet, refusal
from tests.cloud_collector.identity.test_authority import csr
from tests.cloud_collector.identity.test_commands import CONFIG, ok
from tests.cloud_collector.typed import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET, OTHER = "correct-horse-battery", "another-horse-staple"
PLAIN = b"-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An authority whose keys are encrypted, each under its own passphrase."""
    for name, text in (("issuer.pass", SECRET), ("root.pass", OTHER)):
        (tmp_path / name).write_text(f"{text}\n")
        (tmp_path / name).chmod(0o600)
    pki, both = tmp_path / "pki", opening(tmp_path, "issuer", "root")
    ok("ca", "init", pki, "--trust-domain", "fleet.example", *both)
    return tmp_path


def opening(home: Path, *which: str) -> list[object]:
    options = {"issuer": "--passphrase-file", "root": "--root-passphrase-file"}
    return [word for one in which for word in (options[one], home / f"{one}.pass")]


def check_no_open_key(home: Path) -> None:
    """No file of the authority holds a key that opens by itself."""
    for path in (home / "pki").iterdir():
        assert PLAIN not in path.read_bytes()


def check_every_way(home: Path) -> None:
    pki = home / "pki"
    check_no_open_key(home)
    ok("ca", "issue", pki, "--server", "127.0.0.1", "--out", home / "server", *opening(home, "issuer"))
    ok("ca", "renew", pki, "--in", home / "server", *opening(home, "issuer"))
    ok("ca", "renew", pki, "--issuer", *opening(home, "issuer", "root"))
    check_no_open_key(home)
    ok("ca", "renew", pki, "--root", *opening(home, "issuer", "root"))
    check_no_open_key(home)


def test_a_key_that_is_encrypted_never_lies_open(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issued, renewed, replaced: it is encrypted at every step. Mutant: a key is stored as it is."""
    check_every_way(home)
    assert PLAIN in (home / "server" / "key.pem").read_bytes()  # a server reads its own without a person
    real = keys.store
    with monkeypatch.context() as mutant:
        mutant.setattr(keys, "store", lambda folder, which, issuer, unlock: real(folder, which, issuer, Passphrases()))
        with pytest.raises(AssertionError):
            check_every_way(home)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["issue", "--agent", "a", "--out", "x"], "issuer.key: is encrypted"),
        (["issue", "--agent", "a", "--out", "x", "--passphrase-file", "root.pass"], "does not open it"),
        (["issue", "--agent", "a", "--out", "x", "--passphrase-file", "short"], "16 characters"),
        (["issue", "--agent", "a", "--out", "x", "--passphrase-file", "seen"], "everybody may read"),
        (["renew", "--issuer"], "root.key: is encrypted"),
        (["renew", "--issuer", "--root-passphrase-file", "root.pass"], "issuer.key: is encrypted"),
        (["renew", "--root", "--passphrase-file", "issuer.pass"], "root.key: is encrypted"),
        (["protect", "--open", "--passphrase-file", "root.pass"], "does not open it"),
    ],
)
def test_without_its_passphrase_nothing_is_done(
    home: Path, words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 3 and what is wrong; the folder's keys are as they were, and nothing of a passphrase is said."""
    monkeypatch.chdir(home)
    (home / "short").write_text("hunter2\n")
    (home / "seen").write_text(f"{SECRET}\n")
    (home / "short").chmod(0o600)
    (home / "seen").chmod(0o644)
    before = {path.name: path.read_bytes() for path in (home / "pki").glob("*.[kp]e[ym]")}
    done = run("ca", words[0], "pki", *words[1:])
    assert (done.exit_code, problem in done.stderr) == (3, True), done.output
    assert before == {path.name: path.read_bytes() for path in (home / "pki").glob("*.[kp]e[ym]")}
    assert not (home / "x").exists()
    assert all(one not in done.output for one in (SECRET, OTHER, "hunter2"))


def test_a_key_is_protected_opened_and_protected_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ca protect` turns what there is into what is asked for, and the key stays the same."""
    monkeypatch.chdir(home)
    ok("ca", "protect", "pki", "--new-passphrase-file", "root.pass", "--passphrase-file", "issuer.pass")
    ok("ca", "issue", "pki", "--agent", "a", "--out", "a", "--passphrase-file", "root.pass")
    ok("ca", "protect", "pki", "--open", "--passphrase-file", "root.pass")
    assert PLAIN in (home / "pki" / "issuer.key").read_bytes()
    ok("ca", "issue", "pki", "--agent", "b", "--out", "b")
    wrong = run("ca", "issue", "pki", "--agent", "c", "--out", "c", "--passphrase-file", "root.pass")
    assert (wrong.exit_code, "is not encrypted" in wrong.stderr) == (3, True)
    ok("ca", "protect", "pki", "--root", "--new-passphrase-file", "issuer.pass", "--root-passphrase-file", "root.pass")
    ok("ca", "renew", "pki", "--issuer", "--root-passphrase-file", "issuer.pass")
    assert (home / "pki" / "issuer.key").stat().st_mode & 0o777 == 0o600


@contextlib.contextmanager
def door(address: str, anchors: bytes) -> Iterator[EnrollmentServiceStub]:
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(anchors)) as channel:
        yield EnrollmentServiceStub(channel)


def test_a_device_enrolls_at_a_collector_that_is_given_the_passphrase(fleet: Fleet) -> None:
    """A passphrase that gets lost is an alarm in the log; the device keeps its token, and is told to ask again."""
    held = fleet.folder / "pass"
    held.write_text(SECRET)
    held.chmod(0o600)
    with fleet.authority() as authority:
        authority.protect("issuer", SECRET.encode())
        token = authority.make_token("acme", "jfk", timedelta(hours=1))
    with (
        pytest.raises(ConfigInvalid, match=r"issuer\.key: is encrypted"),
        fleet.serving(),  # the start is strict
    ):
        pass
    with fleet.serving(authority_passphrase_file=held) as served, door(served.open, fleet.anchors) as stub:
        asked = enrollment_pb2.EnrollRequest(token=token, csr=csr())
        held.rename(fleet.folder / "gone")
        assert refusal(lambda: stub.Enroll(asked, timeout=20)) == "internal"
        (alarm,) = [fields for event, fields in served.events if event == "authority_unusable"]
        assert alarm["problem"] == "pass: the passphrase cannot be read"
        (failed,) = [fields for event, fields in served.events if event == "request_failed"]
        assert alarm["request_id"] == failed["request_id"]
        (fleet.folder / "gone").rename(held)
        assert stub.Enroll(asked, timeout=20).chain
        assert SECRET not in str(served.events)


def test_the_config_names_the_passphrases_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It need not be there for other commands: the supervisor may show it to the service alone."""
    ok("ca", "issue", home / "pki", "--server", "127.0.0.1", "--out", home / "server", *opening(home, "issuer"))
    named = 'authority_passphrase_file = "/nowhere/issuer"'
    path = home / "collector.toml"
    path.write_text(CONFIG.replace('authority = "pki"', f'authority = "pki"\n{named}').partition("[[plan]]")[0])
    tls = load(path).tls
    assert tls is not None
    assert str(tls.authority_passphrase_file) == "/nowhere/issuer"
    path.write_text(CONFIG.replace('authority = "pki"', named).partition("[[plan]]")[0])
    with pytest.raises(ConfigInvalid, match=r"^\$\.tls\.authority_passphrase_file: needs an authority"):
        load(path)


def test_an_issuer_that_ended_issues_nothing_and_can_be_renewed(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it made would be over before it began. A lost or half written issuer's key is replaced in the same way."""
    ends = keys.certificate_of(fleet.pki, "issuer").not_valid_after_utc
    with fleet.authority(now=lambda: ends) as authority:
        with pytest.raises(ConfigInvalid, match=r"issuer\.pem: ended on .* `cloud-collector ca renew FOLDER --issuer`"):
            authority.check()
        authority.renew_issuer()
        authority.check()
    (fleet.pki / "issuer.key").write_bytes((fleet.pki / "root.key").read_bytes())
    with Authority.opened(fleet.pki) as authority:
        with pytest.raises(ConfigInvalid, match="is not the key"):
            authority.check()
        authority.renew_issuer()
        authority.check()


def check_voided(fleet: Fleet) -> None:
    with fleet.authority() as authority:
        fleet.holder("acme", "jfk")
        theirs = authority.make_token("acme", "jfk", timedelta(hours=1))
        others = authority.make_token("acme", "lga", timedelta(hours=1))
        authority.revoke(subject="spiffe://fleet.example/acme/jfk")
        with pytest.raises(RequestInvalid, match="no such token"):
            authority.enroll(theirs, csr())
        authority.enroll(others, csr())


def test_revoking_somebody_uses_their_one_time_tokens_up(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that is still out would let them back in; another's stays good. Mutant: certificates alone."""
    check_voided(fleet)
    monkeypatch.setattr(Index, "void_tokens", lambda self, subject, now: 0)
    with pytest.raises(pytest.fail.Exception):
        check_voided(fleet)
