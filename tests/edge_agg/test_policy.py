"""The device's own policy: strict to read, and a plan that breaks a rule is vetoed by that rule's name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract.plan import parse_plan, plan_hash
from edge_agg.contract.release import Veto
from edge_agg.errors import ConfigInvalid
from edge_agg.policy import Policy, judge, load_policy, objections, veto
from edge_agg.policy.tables import NoiseTable, WindowTable
from edge_agg.privacy.measurement import Measurement, compile_plan
from edge_agg.privacy.statement import budget_of
from tests.fakes import COUNT, DAY, MEAN, SUM, small_plan, small_plan_text

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.privacy.ledger import Budget

PLAN = compile_plan(parse_plan(small_plan_text(COUNT, MEAN).replace('column = "u"\n', 'column = "u"\nmax_nodes = 3\n')))
"""Epsilon 1 at 1e-6 a window of a week, at up to three sites."""
SELF = "sha256:" + plan_hash(PLAN.plan).hex()
BUDGET = budget_of(epsilon=20.0, delta=1e-5, horizon=365 * DAY)
DEVIATION = {spec.name: spec.scale for spec in PLAN.specs}
"""Of each vector, in its steps."""
EVENTS = compile_plan(
    parse_plan(small_plan_text(max_rows=1).replace('[privacy_unit]\ncolumn = "u"', "[privacy_unit]\nevent = true"))
)
FOUND = compile_plan(small_plan(COUNT, discover=1e-7))
PURE = compile_plan(small_plan(COUNT, mechanism="laplace", epsilon=0.5))

KEPT = {
    "plans by name": '[plans]\nallowed = ["other", "small"]',
    "plans by hash": f'[plans]\nallowed = ["{SELF}"]',
    "sites": "[plans]\nmax_nodes = 3",
    "windows": '[plans]\nmin_window = "7d"',
    "columns": '[columns]\nallowed = ["t", "u", "k", "x"]',
    "columns by pattern": '[columns]\nallowed = ["*"]\ndenied = ["ux*", "T"]',
    "what is asked for": "[window]\nepsilon = 1.0\ndelta = 1e-6",
    "a larger delta": "[window]\nepsilon = 0.96\ndelta = 1e-5",
    "a horizon": '[horizon]\nepsilon = 20.0\ndelta = 1e-5\nover = "365d"',
    "part of a horizon": '[horizon]\nepsilon = 20.0\ndelta = 1e-5\nover = "30d"',
    "two horizons": '[horizon]\nepsilon = 35.0\ndelta = 1e-5\nover = "730d"',
    "noise of counts": f"[noise]\ncount = {DEVIATION['n'] * 0.99}",
    "noise of means": f"[noise]\nmean = {min(DEVIATION['level_sum'] / 100, DEVIATION['level_count']) * 0.99}",
}
BROKEN = {
    "plans by name": ('[plans]\nallowed = ["other"]', Veto.PLAN, "plans.allowed"),
    "no plan at all": ("[plans]\nallowed = []", Veto.PLAN, "plans.allowed"),
    "plans by hash": (
        f'[plans]\nallowed = ["{SELF[:-1]}{"0" if SELF[-1] != "0" else "1"}"]',
        Veto.PLAN,
        "plans.allowed",
    ),
    "sites": ("[plans]\nmax_nodes = 2", Veto.NODES, "plans.max_nodes"),
    "windows": ('[plans]\nmin_window = "8d"', Veto.WINDOW, "plans.min_window"),
    "columns": ('[columns]\nallowed = ["t", "u", "k"]', Veto.COLUMN, "columns.allowed"),
    "denied beside allowed": ('[columns]\nallowed = ["*"]\ndenied = ["x"]', Veto.COLUMN, "columns.denied"),
    "epsilon": ("[window]\nepsilon = 0.99\ndelta = 1e-6", Veto.EPSILON, "window.epsilon"),
    "a smaller delta": ("[window]\nepsilon = 1.0\ndelta = 1e-9", Veto.EPSILON, "window.epsilon"),
    "a horizon": ('[horizon]\nepsilon = 19.9\ndelta = 1e-5\nover = "365d"', Veto.HORIZON, "horizon.epsilon"),
    "two horizons": ('[horizon]\nepsilon = 20.0\ndelta = 1e-5\nover = "366d"', Veto.HORIZON, "horizon.epsilon"),
    "noise of counts": (f"[noise]\ncount = {DEVIATION['n'] * 1.01}", Veto.NOISE, "noise.count"),
    "noise of means": (f"[noise]\nmean = {DEVIATION['level_sum'] / 100 * 1.01}", Veto.NOISE, "noise.mean"),
    "noise of any kind": ("[noise]\nany = 1000.0\ncount = 0.001", Veto.NOISE, "noise.any"),
}


def policy_of(tmp_path: Path, text: str) -> Policy:
    """The policy as an owner writes it."""
    (tmp_path / "policy.toml").write_text(text)
    return load_policy(tmp_path / "policy.toml")


def judged(policy: Policy, measurement: Measurement = PLAN, budget: Budget = BUDGET) -> Veto | None:
    """The verdict."""
    return veto(policy, measurement, budget)


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT.keys())
def test_a_plan_within_every_rule_runs(text: str, tmp_path: Path) -> None:
    """Guarantee: a ceiling that is just met is not broken."""
    policy = policy_of(tmp_path, text)
    assert [one.problem for one in objections(policy, PLAN, BUDGET)] == []
    assert judged(policy) is None


@pytest.mark.parametrize(("text", "expected", "field"), BROKEN.values(), ids=BROKEN.keys())
def test_a_plan_that_breaks_a_rule_is_vetoed_by_its_name(text: str, expected: Veto, field: str, tmp_path: Path) -> None:
    """Guarantee: the rule that is broken gives the reason, and its field is named for the owner."""
    policy = policy_of(tmp_path, text)
    assert judged(policy) is expected
    assert field in {one.field for one in objections(policy, PLAN, BUDGET)}


@pytest.mark.parametrize("room", ["_of_the_plan", "_of_the_loss", "_of_the_noise"])
def test_no_check_stands_for_another(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: without its third of the judge, no rule of that third is kept, and every other one still is."""
    thirds = {"_of_the_plan": "plans columns", "_of_the_loss": "window horizon", "_of_the_noise": "noise"}
    monkeypatch.setattr(judge, room, lambda *_: iter(()))
    for text, expected, field in BROKEN.values():
        lost = field.partition(".")[0] in thirds[room].split()
        assert judged(policy_of(tmp_path, text)) is (None if lost else expected)


def test_no_policy_vetoes_nothing() -> None:
    """Guarantee: what the policy does not mention it does not limit."""
    assert [judged(Policy(), one) for one in (PLAN, EVENTS, FOUND, PURE)] == [None] * 4


def test_weaker_promises_can_be_denied(tmp_path: Path) -> None:
    """Guarantee: event-level units and keys out of the data, each by its own rule, and other plans run on."""
    events = policy_of(tmp_path, "[plans]\nevent_units = false")
    assert (judged(events, EVENTS), judged(events, FOUND)) == (Veto.UNIT, None)
    keys = policy_of(tmp_path, "[columns]\ndiscovered = false")
    assert (judged(keys, FOUND), judged(keys, EVENTS)) == (Veto.COLUMN, None)
    assert FOUND.selection is not None
    loud = policy_of(tmp_path, f"[noise]\nkeys = {FOUND.selection.scale * 1.01}")
    assert (judged(loud, FOUND), judged(loud, PLAN)) == (Veto.NOISE, None)


def test_a_pure_plan_is_held_to_its_pure_epsilon(tmp_path: Path) -> None:
    """Guarantee: a loss that needs no delta fits under any delta; a hair above the ceiling it does not."""
    assert judged(policy_of(tmp_path, "[window]\nepsilon = 0.5\ndelta = 1e-30"), PURE) is None
    assert judged(policy_of(tmp_path, "[window]\nepsilon = 0.499\ndelta = 1e-30"), PURE) is Veto.EPSILON


def test_discovery_that_costs_more_than_the_ceilings_delta(tmp_path: Path) -> None:
    """Guarantee: where keys alone cost more delta than allowed, no epsilon makes up for it; no error either."""
    assert judged(policy_of(tmp_path, "[window]\nepsilon = 1000.0\ndelta = 1e-8"), FOUND) is Veto.EPSILON
    kept = budget_of(epsilon=20.0, delta=1e-5, horizon=365 * DAY, discovery=5e-6)
    over = '[horizon]\nepsilon = 1000.0\ndelta = 1e-6\nover = "365d"'
    assert judged(policy_of(tmp_path, over), FOUND, kept) is Veto.HORIZON


def test_a_sum_is_held_to_what_one_row_can_add(tmp_path: Path) -> None:
    """Guarantee: noise counts in multiples of the largest clipped value, so the column's unit does not matter."""
    wide, narrow = (compile_plan(small_plan(SUM.replace("10000000", top))) for top in ("10000000", "100"))
    least = wide.specs[0].scale / 10_000_000 * 0.9
    assert narrow.specs[0].scale / 100 == pytest.approx(least / 0.9, rel=1e-3)
    for one in (wide, narrow):
        assert judged(policy_of(tmp_path, f"[noise]\nsum = {least}"), one) is None
        assert judged(policy_of(tmp_path, f"[noise]\nsum = {least * 1.2}"), one) is Veto.NOISE


@settings(max_examples=60)
@given(epsilon=st.floats(0.01, 10), delta=st.floats(1e-9, 1e-3), noise=st.floats(0.01, 100), factor=st.floats(1, 100))
def test_a_looser_policy_vetoes_no_more(epsilon: float, delta: float, noise: float, factor: float) -> None:
    """Guarantee: raising a ceiling, or asking for less noise, never brings a veto about."""
    tight = Policy(window=WindowTable(epsilon=epsilon, delta=delta), noise=NoiseTable(any=noise))
    loose = Policy(
        window=WindowTable(epsilon=epsilon * factor, delta=min(0.5, delta * factor)),
        noise=NoiseTable(any=noise / factor),
    )
    if judged(tight) is None:
        assert judged(loose) is None


INVALID = {
    "no such table": ("[plan]\nallowed = []", "$"),
    "no such field": ("[plans]\nalowed = []", "$.plans"),
    "another type": ('[plans]\nmax_nodes = "3"', "$.plans.max_nodes"),
    "half a ceiling": ("[window]\nepsilon = 1.0", "$.window"),
    "a plan by half its hash": ('[plans]\nallowed = ["sha256:12ab"]', "$.plans.allowed[0]"),
    "no sites": ("[plans]\nmax_nodes = 0", "$.plans.max_nodes"),
    "no duration": ('[plans]\nmin_window = "a week"', "$.plans.min_window"),
    "an empty column": ('[columns]\ndenied = [""]', "$.columns.denied"),
    "epsilon 0": ("[window]\nepsilon = 0.0\ndelta = 1e-6", "$.window.epsilon"),
    "epsilon without end": ("[window]\nepsilon = inf\ndelta = 1e-6", "$.window.epsilon"),
    "delta 1": ("[window]\nepsilon = 1.0\ndelta = 1.0", "$.window.delta"),
    "no number": ("[noise]\ncount = nan", "$.noise.count"),
    "a negative number": ("[noise]\nany = -1.0", "$.noise.any"),
    "an hour": ('[horizon]\nepsilon = 1.0\ndelta = 1e-6\nover = "1h"', "$.horizon.over"),
    "beyond time": ('[horizon]\nepsilon = 1.0\ndelta = 1e-6\nover = "999999999d"', "$.horizon.over"),
}


@pytest.mark.parametrize(("text", "field"), INVALID.values(), ids=INVALID.keys())
def test_a_wrong_field_is_named(text: str, field: str, tmp_path: Path) -> None:
    """Guarantee: a slip of the pen stops the start, with the file and the field; it never opens the door."""
    with pytest.raises(ConfigInvalid) as refused:
        policy_of(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path / 'policy.toml'}: {field}: ")


@pytest.mark.parametrize("raw", [b"[plans", b"\xff\xfe", b"x = " + b"[" * 5_000])
def test_what_is_no_toml_is_refused(raw: bytes, tmp_path: Path) -> None:
    """Guarantee: one error, whatever the bytes; and a policy that is not there is no policy without limits."""
    (tmp_path / "policy.toml").write_bytes(raw)
    with pytest.raises(ConfigInvalid, match="not TOML"):
        load_policy(tmp_path / "policy.toml")
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        load_policy(tmp_path / "none.toml")
