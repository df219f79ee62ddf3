"""A device's veto, from its policy to the analyst: typed absence, and nothing of the data on the way."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import cloud_collector
from cloud_collector.admission import Refused, admit
from cloud_collector.caller import LOCAL
from cloud_collector.config import Config, PlanEntry
from edge_agg.contract import codec
from edge_agg.contract.plan import parse_plan
from edge_agg.contract.refusal import Refusal
from edge_agg.contract.release import Charge, Release, Status, Veto
from edge_agg.journal import Journal
from edge_agg.policy import load_policy, veto
from edge_agg.privacy.measurement import compile_plan
from edge_agg.privacy.statement import budget_of
from edge_agg.series import Account, Series
from edge_agg.window import Span
from tests.cloud_collector.conftest import NOW
from tests.cloud_collector.front import push, running
from tests.fakes import COUNT, DAY, MONDAY, WEEK, Row, batch_of, small_plan_text

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.contract.release import Sealed

TEXT = small_plan_text(COUNT, epsilon=1.0)
PLAN = parse_plan(TEXT)
BUDGET = budget_of(epsilon=20.0, delta=1e-5, horizon=365 * DAY)


def weeks_of(folder: Path, node: str, policy: str | None, *, weeks: int = 2) -> list[Sealed]:
    """What an agent seals in its first weeks, under its device's policy."""
    measurement = compile_plan(PLAN)
    forbidden = None
    if policy is not None:
        (folder / "policy.toml").write_text(policy)
        forbidden = veto(load_policy(folder / "policy.toml"), measurement, BUDGET)
    with closing(Journal.open(folder / node, node, now=MONDAY)) as journal:
        series = Series(
            tenant="default",
            measurement=measurement,
            account=Account(name="people", budget=BUDGET),
            journal=journal,
            span=Span(start=MONDAY, end=MONDAY + weeks * WEEK),
            veto=forbidden,
        )
        series.add(batch_of([Row(u=f"canary-{i}") for i in range(50)], PLAN))
        for n in range(weeks):
            series.close(MONDAY + n * WEEK)
        assert journal.entries("people") == [] or forbidden is None
        return [one.sealed for one in journal.waiting(10)]


def opened(sealed: Sealed) -> Release:
    """What a release says."""
    return codec.open_sealed(sealed.header, sealed.payload)[0]


def test_a_vetoed_window_is_released_without_values_or_charge(tmp_path: Path) -> None:
    """Guarantee: each window says vetoed and by which rule; no payload, no charge; the collector admits it."""
    for policy, reason in (
        ("[plans]\nallowed = []", Veto.PLAN),
        ("[window]\nepsilon = 0.5\ndelta = 1e-6", Veto.EPSILON),
    ):
        made = weeks_of(tmp_path, f"node-{reason}", policy)
        assert [opened(one).status for one in made] == [Status.VETOED] * 2
        for one in made:
            release = opened(one)
            assert (release.veto, release.charge, one.payload) == (reason, Charge(), b"")
            assert admit(one.header, one.payload, lambda _: PLAN, LOCAL.sends_for, NOW).release == release


@pytest.mark.parametrize("reason", Veto)
def test_every_rule_is_admitted_and_only_with_its_status(tmp_path: Path, reason: Veto) -> None:
    """Guarantee: any rule is taken; one beside another status is malformed (mutant: a veto on a lost window)."""
    vetoed = opened(weeks_of(tmp_path, "node", "[plans]\nallowed = []", weeks=1)[0])
    fits = codec.seal(replace(vetoed, veto=reason), b"")
    assert admit(fits.header, b"", lambda _: PLAN, LOCAL.sends_for, NOW).release.veto is reason
    lost = codec.seal(replace(vetoed, veto=reason, status=Status.LOST), b"")
    with pytest.raises(Refused) as refused:
        admit(lost.header, b"", lambda _: PLAN, LOCAL.sends_for, NOW)
    assert refused.value.refusal is Refusal.MALFORMED


@pytest.mark.slow
def test_an_analyst_sees_who_vetoed(tmp_path: Path) -> None:
    """Guarantee: through the whole collector: a site that vetoes is absent with that reason, and the rest answers."""
    (tmp_path / "plan.toml").write_text(TEXT)
    config = Config(
        listen="127.0.0.1:0",
        data=tmp_path / "data",
        seal_every_s=60.0,
        max_message_bytes=2**20,
        max_queued_releases=100,
        max_batch=64,
        plans=(PlanEntry(path=tmp_path / "plan.toml", nodes=("free", "strict")),),
    )
    with running(config) as address, cloud_collector.connect(address) as client:
        for node, policy in (("free", None), ("strict", '[columns]\ndenied = ["x"]')):
            receipts = push(address, *weeks_of(tmp_path, node, policy))
            assert [refusal for _, refusal in receipts] == ["", ""]
        nodes = client.estimate("small", "n", by=["node"]).rows_by_key("node", named=True, unique=True)
        assert (nodes["free"]["status"], nodes["strict"]["status"]) == ("complete", "vetoed")
        assert (nodes["strict"]["value"], nodes["strict"]["windows_reporting"]) == (None, 0)
        whole = client.estimate("small", "n").row(0, named=True)
        assert (whole["nodes_reporting"], whole["nodes_expected"], whole["status"]) == (1, 2, "vetoed")
        assert whole["value"] == nodes["free"]["value"]
