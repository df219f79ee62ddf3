"""An analyst's certificate is narrowed to plans as a token is; who called is noted, with the certificate's end."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

import cloud_collector
from cloud_collector import config as settings
from cloud_collector.caller import LOCAL, Caller, Kind, Scopes
from cloud_collector.contacts import Contacts
from cloud_collector.errors import ConfigInvalid, PlanUnknown, StoreFailed
from cloud_collector.landing import Landing
from tests.cloud_collector.fleet import LIFE, Fleet, pushed
from tests.cloud_collector.front import release, running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cloud_collector.register import Contact

NARROW = Scopes(listed={("acme", "ann"): frozenset({"other"}), ("acme", "bob"): None}, others=frozenset())


def check(fleet: Fleet, scopes: Scopes) -> None:
    """Ann may ask about another plan only, Bob about all, whoever is not listed about none."""
    may = {}
    with running(replace(fleet.config(), scopes=scopes)) as address:
        jfk = fleet.holder("acme", "jfk")
        assert pushed(jfk.channel(address, fleet.anchors), release("jfk", 0, tenant="acme")) == [(1, "")]
        for name in ("ann", "bob", "eve"):
            folder = fleet.hand_out(name, fleet.holder("acme", name, analyst=True))
            files = [folder / f"{part}.pem" for part in ("ca", "cert", "key")]
            with cloud_collector.connect(address, ca=files[0], cert=files[1], key=files[2]) as client:
                may[name] = client.plans().height
                asks: tuple[Callable[[], object], ...] = (
                    partial(client.estimate, "flights", "departures"),
                    partial(client.coverage, "flights"),
                )
                for ask in asks:
                    with contextlib.nullcontext() if may[name] else pytest.raises(PlanUnknown):
                        ask()
    assert {name for name, plans in may.items() if plans} == {"bob"}


def test_a_certificate_asks_about_its_plans_alone(tmp_path: Path) -> None:
    """Estimate, coverage and the list of plans; mutant: the scope is not looked at."""
    fleet = Fleet(tmp_path)
    check(fleet, NARROW)
    with pytest.raises(AssertionError):
        check(fleet, Scopes())
    with contextlib.closing(Landing(tmp_path / "data" / "landing.sqlite")) as landing:
        rows: list[Any] = landing._db.execute("SELECT agent, heard_us, certificate_ends_us FROM contacts").fetchall()
    ((_, heard_us, ends_us),) = rows
    now_us = datetime.now(UTC).timestamp() * 1e6
    assert 0 <= now_us - heard_us < 120e6
    assert abs(ends_us - now_us - LIFE.total_seconds() * 1e6) < 7200e6


def test_scopes_are_read_and_checked(tmp_path: Path) -> None:
    """From `[[analyst]]`; without TLS, twice, or with a name that is none they are refused by the field's path."""
    path = tmp_path / "collector.toml"
    fleet = Fleet(tmp_path)
    files = {f"{name}_file": f"server/{name}.pem" for name in ("cert", "key", "ca")}
    tls = "\n".join(f'{name} = "{value}"' for name, value in files.items())
    tls = f'[tls]\n{tls}\ndenied_file = "pki/denied.txt"\ntrust_domain = "fleet.example"\n'
    ann = '[[analyst]]\nname = "ann"\ntenant = "acme"\nplans = ["flights"]\n'
    path.write_text(f'{tls}unlisted_analysts = "none"\n{ann}[fleet]\ngrace = "2h"\n')
    told = settings.load(path)
    assert told.scopes == Scopes(listed={("acme", "ann"): frozenset({"flights"})}, others=frozenset())
    assert told.grace.total_seconds() == 7200
    path.write_text(tls + ann)
    assert settings.load(path).scopes.plans("acme", "eve") is None
    assert fleet.pki.exists()
    for text, where in (
        (ann, "$.analyst[0]: needs [tls]"),
        (tls + ann + ann, "$.analyst[1]: is listed twice"),
        (tls + ann.replace("ann", "a/b"), "$.analyst[0].name"),
        (tls + ann.replace("acme", ""), "$.analyst[0].tenant"),
        ('[fleet]\ngrace = "soon"', "$.fleet.grace"),
        ('[fleet]\ngrace = "400d"', "$.fleet.grace"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigInvalid) as raised:
            settings.load(path)
        assert str(raised.value).startswith(where)


def test_an_agent_is_who_the_gate_says(tmp_path: Path) -> None:
    """Not whom its releases claim; on this machine, whom admitted releases name; what was not kept is kept later."""
    kept: list[Contact] = []

    class Disk:
        broken = True

        def note_contacts(self, contacts: Sequence[Contact]) -> None:
            """Fails once."""
            if self.broken:
                raise StoreFailed("full")
            kept.extend(contacts)

    contacts, disk = Contacts(), Disk()
    contacts.note(Caller(kind=Kind.AGENT, tenant="acme", name="jfk"), {("globex", "lga")})
    contacts.note(LOCAL, {("default", "ewr")})
    with pytest.raises(StoreFailed):
        contacts.write(disk)
    disk.broken = False
    contacts.write(disk)
    contacts.write(disk)
    assert {(one.tenant, one.agent) for one in kept} == {("acme", "jfk"), ("default", "ewr")}
    assert len(kept) == 2
