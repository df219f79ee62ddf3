"""An operator sees when the agent's certificate ends: by `status` and by `doctor`, which warns as the agent does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from cloud_collector.authority import certificate as make
from edge_agg.config import load
from edge_agg.doctor import around
from edge_agg.doctor.finding import Health
from edge_agg.identity.credentials import Lifetime, lifetime_of
from edge_agg.report import status
from tests.cloud_collector.fleet import LIFE, Fleet, Holder
from tests.fakes import COUNT, small_plan_text, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.config import Config

DAY = timedelta(days=1)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """An authority."""
    return Fleet(tmp_path)


def config_of(fleet: Fleet, holder: Holder) -> Config:
    """An agent's config, whose identity is this holder's."""
    folder = fleet.hand_out("identity", holder)
    loaded, _ = load(write_config(fleet.folder, small_plan_text(COUNT), history=None))
    files = {f"{name}_file": str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}
    return msgspec.structs.replace(
        loaded,
        agent=msgspec.structs.replace(loaded.agent, tenant="acme", name="jfk"),
        collector=msgspec.structs.replace(loaded.collector, **files),
    )


def test_doctor_warns_when_the_agent_does(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine for two thirds of its life, odd until it ends, then wrong; mutant: only a day before the end is odd."""
    config, now = config_of(fleet, fleet.holder("acme", "jfk")), datetime.now(UTC)

    def healths() -> list[Health]:
        moments = (now, now + LIFE * 2 / 3 - DAY, now + LIFE * 2 / 3 + DAY, now + LIFE - 2 * DAY, now + LIFE + DAY)
        return [next(around.examine_files(config, now=moment)).health for moment in moments]

    wanted = [Health.OK, Health.OK, Health.WARN, Health.WARN, Health.FAIL]
    assert healths() == wanted
    monkeypatch.setattr(Lifetime, "due", property(lambda self: self.ends - DAY))
    assert healths() != wanted


def test_doctor_says_what_else_is_wrong_with_it(fleet: Fleet) -> None:
    """Not there, another key's, another agent's, or not good yet: each has its own words, and nothing is changed."""
    config, now = config_of(fleet, fleet.holder("acme", "jfk")), datetime.now(UTC)
    folder = fleet.folder / "identity"

    def said(moment: datetime = now) -> str:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        finding = next(around.examine_files(config, now=moment))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert finding.health is Health.FAIL
        return finding.said

    assert "not good before" in said(now - 2 * DAY)
    other = fleet.holder("acme", "lga")
    (folder / "cert.pem").write_bytes(other.chain)
    assert "is not the key" in said()
    (folder / "key.pem").write_bytes(other.key)
    assert "another tenant or agent" in said()
    (folder / "key.pem").write_bytes(make.key_pem(make.new_key()))
    assert "is not the key" in said()
    (folder / "cert.pem").write_bytes(b"nothing")
    assert "cannot be read" in said()
    (folder / "cert.pem").unlink()
    assert lifetime_of(config.collector) is None


def test_status_says_when_it_ends() -> None:
    """In words with its colour, from the certificate's own dates."""
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    held = Lifetime(begins=begins, ends=begins + 30 * DAY)
    assert status._certificate(held, begins + DAY) == "certificate ends 2026-01-31 00:00, in 29 d"
    assert status._certificate(held, begins + 21 * DAY).endswith("it is due to be renewed since 2026-01-21")
    assert "ended" in status._certificate(held, begins + 30 * DAY)
