"""A certificate that is renewed by hand is missed by nobody, for the collector says in time that it ends."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509

from cloud_collector import expiry, metrics
from cloud_collector.telemetry import Event
from tests.cloud_collector.fleet import LIFE, Fleet

if TYPE_CHECKING:
    from pathlib import Path

DAY = timedelta(days=1)


def said(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, after: timedelta) -> tuple[dict[str, Any], dict[str, float]]:
    """What is said at a moment, and the figures."""
    lines: dict[str, Any] = {}
    figures: dict[str, float] = {}

    def emit(event: Event, **fields: Any) -> None:
        assert event is Event.CERTIFICATE_AGED
        lines[fields["certificate"]] = fields["ends"]

    with monkeypatch.context() as patched:
        patched.setattr(expiry, "emit", emit)
        patched.setattr(metrics, "certificate_ends", figures.__setitem__)
        tls = fleet.config().tls
        assert tls is not None
        expiry.look(tls, datetime.now(UTC) + after)
    return lines, figures


def ends(path: Path) -> datetime:
    return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc


def test_an_end_is_said_in_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last third of a short life, the last 30 days of a long one; the figure is there from the first day on."""
    server, issuer = ends(fleet.folder / "server" / "cert.pem"), ends(fleet.pki / "issuer.pem")
    lines, figures = said(fleet, monkeypatch, timedelta(0))
    assert lines == {}
    assert figures["server"] == server.timestamp()
    assert figures["issuer"] == issuer.timestamp()
    assert set(figures) == {"server", "issuer", "ca"}
    assert said(fleet, monkeypatch, LIFE * 0.6)[0] == {}
    assert set(said(fleet, monkeypatch, LIFE * 0.7)[0]) == {"server"}
    assert set(said(fleet, monkeypatch, issuer - datetime.now(UTC) - 31 * DAY)[0]) == {"server"}
    lines, _ = said(fleet, monkeypatch, issuer - datetime.now(UTC) - 29 * DAY)
    assert lines["issuer"] == f"{issuer:%Y-%m-%dT%H:%MZ}"


def test_the_newest_of_several_roots_counts(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old root beside a new one is no alarm; a file that cannot be read is none either."""
    root = ends(fleet.pki / "root.pem")
    with fleet.authority(now=lambda: datetime.now(UTC) + 365 * DAY) as authority:
        authority.renew_root()
    ca = fleet.folder / "server" / "ca.pem"
    ca.write_bytes(fleet.anchors)
    after = root - datetime.now(UTC) - DAY
    assert "ca" not in said(fleet, monkeypatch, after)[0]
    ca.write_text("junk")
    lines, figures = said(fleet, monkeypatch, after)
    assert "ca" not in {**lines, **figures}


def check_said_while_running(fleet: Fleet) -> None:
    fleet.hand_out("server", fleet.server(now=lambda: datetime.now(UTC) - 0.9 * LIFE))
    with fleet.serving() as served:
        assert served.address
    assert [fields["certificate"] for event, fields in served.events if event == "certificate_aged"] == ["server"]


def test_a_collector_says_it_when_it_starts(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its log, beside its work. Mutant: nobody looks."""
    check_said_while_running(fleet)
    monkeypatch.setattr(expiry, "look", lambda tls, now: None)
    with pytest.raises(AssertionError):
        check_said_while_running(fleet)
