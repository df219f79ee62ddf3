"""The commands about who may call: a small fleet is set up by typing them, and a secret is shown once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509

from cloud_collector import client, shared_plans
from cloud_collector.authority import certificate as make
from cloud_collector.authority.denylist import MOST_LINES
from cloud_collector.authority.folder import Authority
from cloud_collector.config import load
from cloud_collector.errors import AccessDenied, ConfigInvalid, StoreFailed
from edge_agg.identity.credentials import identity_of
from tests.cloud_collector.front import PLAN_TEXT, running
from tests.cloud_collector.typed import run

if TYPE_CHECKING:
    from pathlib import Path

    from cloud_collector.config import Config
    from cloud_collector.plans import PlanRegistry

CONFIG = """
[collector]
listen = "127.0.0.1:0"
data = "data"

[tls]
cert_file = "server/cert.pem"
key_file = "server/key.pem"
ca_file = "pki/root.pem"
denied_file = "pki/denied.txt"
trust_domain = "fleet.example"
listen_open = "127.0.0.1:0"
authority = "pki"

[[plan]]
path = "flights.toml"
nodes = ["jfk"]
tenant = "acme"
"""


def ok(*words: object) -> str:
    done = run(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What the page for operators says to type."""
    (tmp_path / "flights.toml").write_text(PLAN_TEXT)
    (tmp_path / "collector.toml").write_text(CONFIG)
    printed = ok("ca", "init", tmp_path / "pki", "--trust-domain", "fleet.example")
    assert "sha256 of the root: " in printed
    ok("ca", "issue", tmp_path / "pki", "--server", "127.0.0.1", "--out", tmp_path / "server")
    return tmp_path


def serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes()).serial_number


def test_a_token_is_issued_used_listed_and_revoked(home: Path) -> None:
    """The secret is in what `issue` prints and in nothing else."""
    config = home / "collector.toml"
    given = run("token", "issue", "ann", "--tenant", "acme", "--plan", "flights", "--config", config)
    assert given.exit_code == 0, given.output
    assert "no plan of acme is registered as 'flights' yet" in given.stderr
    secret, token_id = given.stdout.strip(), given.stderr.split("its id is ")[1].partition(";")[0]
    listed = ok("token", "list", "--config", config)
    assert token_id in listed
    assert secret not in listed
    assert "flights" in listed
    with running(load(config)) as address:
        assert address
    assert "revoked" in ok("token", "revoke", token_id, "--config", config)
    assert "before" in ok("token", "revoke", token_id, "--config", config)
    unknown = run("token", "revoke", "00000000", "--config", config)
    assert (unknown.exit_code, "no token has this id" in unknown.stderr) == (3, True)
    assert "revoked" in ok("token", "list", "--config", config)


def test_a_registry_that_fails_leaves_no_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that nobody was told would be valid until somebody looks. Mutant: the registry is read afterwards."""

    def unreachable(config: Config) -> PlanRegistry:
        raise StoreFailed("the bucket does not answer")

    monkeypatch.setattr(shared_plans, "registry", unreachable)
    done = run("token", "issue", "ann", "--tenant", "acme", "--config", home / "collector.toml")
    assert (done.exit_code, done.stdout) == (5, "")
    assert "ann" not in ok("token", "list", "--config", home / "collector.toml")


def test_an_analyst_with_a_certificate_asks(home: Path) -> None:
    """`ca issue --analyst` is all it takes; `ca renew --in` makes another key; `ca revoke` ends both."""
    ok("ca", "issue", home / "pki", "--analyst", "ann", "--tenant", "acme", "--out", home / "ann")
    ann = home / "ann"
    first = serial(ann)

    def ask(address: str) -> list[str]:
        with client.connect(address, ca=ann / "ca.pem", cert=ann / "cert.pem", key=ann / "key.pem") as c:
            return c.plans()["plan"].unique().to_list()

    with running(load(home / "collector.toml")) as address:
        assert ask(address) == ["flights"]
        ok("ca", "renew", home / "pki", "--in", ann)
        assert serial(ann) != first
        assert ask(address) == ["flights"]
        identity = identity_of(x509.load_pem_x509_certificate((ann / "cert.pem").read_bytes()))
        denied = ok("ca", "revoke", home / "pki", identity)
        assert denied.count("denied ") == 2
        with pytest.raises(AccessDenied, match="revoked"):
            ask(address)
    assert ok("ca", "list", home / "pki").count("revoked") == 2
    assert "no certificate" in ok("ca", "revoke", home / "pki", f"{first:x}")
    assert "denied.txt" in run("ca", "revoke", home / "pki", f"{first:x}").stderr


def test_a_root_cannot_be_revoked_and_that_is_said(home: Path) -> None:
    """Denying nothing is not success. The issuer below it can be, by its serial; mutant: roots are passed over."""
    for name, code in (("root", 3), ("issuer", 0)):
        certificate = x509.load_pem_x509_certificate((home / "pki" / f"{name}.pem").read_bytes())
        done = run("ca", "revoke", home / "pki", f"{certificate.serial_number:x}")
        assert (done.exit_code, "ca_file" in done.stderr.replace("denied_file", "")) == (code, name == "root")


def test_revoking_many_certificates_says_that_the_name_is_out(home: Path) -> None:
    """And how it gets in again: an operator would not know why the next enrollment is refused."""
    with Authority.opened(home / "pki") as authority:
        for _ in range(MOST_LINES + 1):
            authority.issue_client(authority.id_of("acme", "jfk"), make.new_key().public_key(), make.CLIENT_LIFE)
    subject = "spiffe://fleet.example/acme/jfk"
    told = ok("ca", "revoke", home / "pki", subject)
    assert told.startswith(f"denied {subject}: {MOST_LINES + 1} certificates")
    assert "to let the name in again" in told
    assert len(told.splitlines()) == 2
    assert f"id:{subject} " in (home / "pki" / "denied.txt").read_text()


def test_revoking_an_analyst_says_that_bearer_tokens_stay(home: Path) -> None:
    """They are another command's: whoever ends an analyst's certificates must know where the rest is."""
    config = home / "collector.toml"
    ok("ca", "issue", home / "pki", "--analyst", "ann", "--tenant", "acme", "--out", home / "ann")
    ok("token", "issue", "ann", "--tenant", "acme", "--config", config)
    done = run("ca", "revoke", home / "pki", "spiffe://fleet.example/acme/analyst/ann")
    assert "`cloud-collector token revoke`" in done.stderr
    assert "revoked" not in ok("token", "list", "--config", config)
    ok("ca", "issue", home / "pki", "--agent", "jfk", "--tenant", "acme", "--out", home / "jfk")
    assert "token" not in run("ca", "revoke", home / "pki", "spiffe://fleet.example/acme/jfk").stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ca", "init", "pki", "--trust-domain", "fleet.example"], 3),
        (["ca", "init", "new", "--trust-domain", "Not A Domain"], 3),
        (["ca", "issue", "pki", "--out", "x"], 2),
        (["ca", "issue", "pki", "--agent", "a", "--analyst", "b", "--out", "x"], 2),
        (["ca", "issue", "pki", "--agent", "a/b", "--out", "x"], 3),
        (["ca", "issue", "nothing", "--agent", "a", "--out", "x"], 3),
        (["ca", "renew", "pki"], 2),
        (["ca", "renew", "pki", "--root", "--issuer"], 2),
        (["ca", "revoke", "pki", "xyz"], 2),
        (["ca", "revoke", "pki", "abc"], 3),
        (["ca", "revoke", "pki", "spiffe://fleet.example/acme/nobody"], 3),
        (["ca", "issue", "pki", "--server", "two words", "--out", "x"], 3),
        (["ca", "issue", "pki", "--server", "-a.example", "--out", "x"], 3),
        (["ca", "issue", "pki", "--server", "a..example", "--out", "x"], 3),
        (["ca", "issue", "pki", "--agent", "a", "--out", "pki/index.sqlite/x"], 5),
        (["ca", "init", "pki/index.sqlite/new", "--trust-domain", "fleet.example"], 5),
        (["ca", "protect", "pki"], 2),
        (["ca", "protect", "pki", "--open", "--new-passphrase-file", "collector.toml"], 2),
        (["ca", "token", "pki", "--agent", ".."], 3),
        (["token", "issue", "a b", "--config", "collector.toml"], 3),
    ],
)
def test_what_is_wrong_is_said_by_its_code(
    home: Path, words: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, no traceback, and nothing is written."""
    monkeypatch.chdir(home)
    done = run(*words)
    assert done.exit_code == code, done.output
    assert not (home / "x").exists()
    assert not (home / "new").exists()


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('"server/key.pem"', '"server/none.pem"', "$.tls.key_file: "),
        ('"pki/denied.txt"', '"pki/none.txt"', "$.tls.denied_file: "),
        ('"fleet.example"', '"Fleet Example"', "$.tls.trust_domain: "),
        ('listen_open = "127.0.0.1:0"', 'listen_open = "8816"', "$.tls.listen_open: "),
        ('authority = "pki"', 'authority = "server"', "$.tls.authority: "),
        ('authority = "pki"', 'max_connection_age = "0s"', "$.tls.max_connection_age: "),
        ('authority = "pki"', 'ca_path = "x"', "$.tls: "),
        ('tenant = "acme"', 'tenant = "../acme"', "$.plan[0].tenant: "),
        ('cert_file = "server/cert.pem"\n', "", "$.tls: "),
    ],
)
def test_a_wrong_field_of_tls_is_refused_by_its_path(home: Path, old: str, new: str, path: str) -> None:
    """As every other field is."""
    assert old in CONFIG
    (home / "collector.toml").write_text(CONFIG.replace(old, new))
    with pytest.raises(ConfigInvalid) as caught:
        load(home / "collector.toml")
    assert str(caught.value).startswith(path)


def test_with_tls_every_address_may_be_listened_on(home: Path) -> None:
    """Without it, the same address is refused."""
    text = CONFIG.replace('listen = "127.0.0.1:0"\ndata', 'listen = "0.0.0.0:8815"\ndata')
    (home / "collector.toml").write_text(text)
    assert load(home / "collector.toml").listen == "0.0.0.0:8815"
    (home / "collector.toml").write_text(text[: text.index("[tls]")])
    with pytest.raises(ConfigInvalid, match=r"^\$\.collector\.listen: without \[tls\]"):
        load(home / "collector.toml")
