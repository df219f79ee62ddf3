"""Bearer tokens: what is stored lets nobody in, and a token that is over lets in nobody either."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from cloud_collector import client, secret, tokens
from cloud_collector.caller import Caller, Kind
from cloud_collector.errors import AccessDenied, CollectorUnreachable, RequestInvalid, StoreFailed
from cloud_collector.tokens import Tokens
from tests.cloud_collector.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Tokens]:
    with contextlib.closing(Tokens(tmp_path / "tokens.sqlite")) as opened:
        yield opened


def check_hashed(folder: Path) -> None:
    folder.mkdir()
    with contextlib.closing(Tokens(folder / "tokens.sqlite")) as store:
        token_id, given = store.issue("acme", "ann", plans=["flights"], now=NOW, ends=NOW + DAY)
        assert store.caller(given, NOW) is not None
        stored = b"".join(path.read_bytes() for path in folder.iterdir())
        assert given.encode() not in stored
        assert given.removeprefix(secret.PREFIX).encode() not in stored
        for line in store.list():
            assert given not in repr(line)
        for guess in (token_id, secret.hashed(given).hex(), given.removeprefix(secret.PREFIX), ""):
            assert store.caller(guess, NOW) is None
    assert (folder / "tokens.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_token_is_stored_as_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the file nor the list holds what lets one in; mutant: the token itself is stored."""
    check_hashed(tmp_path / "real")
    with monkeypatch.context() as mutant:
        mutant.setattr(tokens, "hashed", str.encode)
        with pytest.raises(AssertionError):
            check_hashed(tmp_path / "clear")


def test_a_token_is_256_random_bits() -> None:
    """So a fast hash keeps it as well as a slow one would."""
    given = {secret.new_secret() for _ in range(100)}
    assert len(given) == 100
    assert {len(one) for one in given} == {len(secret.PREFIX) + 43}


def test_a_token_says_who_asks_and_about_what(store: Tokens) -> None:
    """Its row is all there is to the identity."""
    _, some = store.issue("acme", "ann", plans=["b", "a"], now=NOW, ends=NOW + DAY)
    _, every = store.issue("globex", "bob", plans=None, now=NOW, ends=NOW + DAY)
    assert store.caller(some, NOW) == Caller(kind=Kind.ANALYST, tenant="acme", name="ann", plans=frozenset({"a", "b"}))
    assert store.caller(every, NOW) == Caller(kind=Kind.ANALYST, tenant="globex", name="bob")


def test_a_token_ends(store: Tokens) -> None:
    """At its instant, for good, and earlier if it is revoked; a revocation is said once."""
    token_id, given = store.issue("acme", "ann", plans=None, now=NOW, ends=NOW + DAY)
    _, other = store.issue("acme", "ann", plans=None, now=NOW, ends=NOW + DAY)
    assert store.caller(given, NOW + DAY - timedelta(seconds=1))
    assert store.caller(given, NOW + DAY) is None
    assert store.revoke(token_id, NOW)
    assert not store.revoke(token_id, NOW)
    assert store.caller(given, NOW) is None
    assert store.caller(other, NOW)
    assert [one.revoked for one in store.list() if one.id == token_id] == [NOW]


@pytest.mark.parametrize(("tenant", "name"), [("", "ann"), ("acme", "a/b"), ("..", "ann"), ("acme", "x" * 64)])
def test_a_name_that_is_none_gets_no_token(store: Tokens, tenant: str, name: str) -> None:
    """What could lead to another folder, or look like another name, is refused."""
    with pytest.raises(RequestInvalid):
        store.issue(tenant, name, plans=None, now=NOW, ends=NOW + DAY)


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    """As every store of this package does."""
    path = tmp_path / "tokens.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreFailed):
        Tokens(path)


def test_a_revoked_token_is_out_with_the_next_call(fleet: Fleet) -> None:
    """On a connection that lives; an expired one never gets in."""
    with fleet.serving() as served:
        root = fleet.pki / "root.pem"
        given = fleet.token("acme", "ann")
        with client.connect(served.open, ca=root, token=given) as c:
            c.plans()
            with contextlib.closing(Tokens(fleet.folder / "data" / "tokens.sqlite")) as store:
                store.revoke(store.list()[0].id, datetime.now(UTC))
            with pytest.raises(AccessDenied):
                c.plans()
        over = fleet.token("acme", "ann", life=timedelta(0))
        with client.connect(served.open, ca=root, token=over) as c, pytest.raises(AccessDenied):
            c.plans()


def test_a_token_goes_only_to_whom_the_ca_vouches_for(fleet: Fleet, tmp_path: Path) -> None:
    """Another CA, no CA, or both ways to prove oneself at once: nothing is sent."""
    (tmp_path / "other").mkdir()
    other = Fleet(tmp_path / "other")
    with fleet.serving() as served:
        root = fleet.pki / "root.pem"
        for given in (
            {"ca": other.pki / "root.pem", "token": "t"},
            {"token": "t"},
            {"ca": root},
            {"ca": root, "cert": root},
            {"ca": root, "token": "t", "cert": root, "key": root},
            {"ca": tmp_path / "none.pem", "token": "t"},
        ):
            with pytest.raises(CollectorUnreachable):
                client.connect(served.open, **given)


@pytest.mark.slow
def test_a_script_that_never_hangs_up_ends(fleet: Fleet) -> None:
    """The interpreter ends although the client was not closed: its channel is closed before threads are gone."""
    ca = fleet.hand_out("ann", fleet.holder("acme", "ann", analyst=True)) / "ca.pem"
    with fleet.serving() as served:
        asked = f"c = cloud_collector.connect({served.open!r}, ca={str(ca)!r}, token={fleet.token('acme', 'ann')!r})"
        script = f"import cloud_collector\n{asked}\nc.plans()\nprint(c._hang_up.alive, c._hang_up.atexit)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True True\n"
