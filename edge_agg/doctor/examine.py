"""Everything that is looked at, in the order in which a person would look.

Invariant: one look that fails hides no other; without a config that can be read there is nothing else to look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agg.accounts import check_charged, journal_of
from edge_agg.clock import SystemClock
from edge_agg.config import load
from edge_agg.doctor.around import (
    examine_clock,
    examine_collector,
    examine_files,
    examine_process,
    examine_sources,
)
from edge_agg.doctor.finding import Finding, fine, odd, wrong
from edge_agg.doctor.folder import examine_folder
from edge_agg.errors import ConfigInvalid, JournalFailed, PlanRefused
from edge_agg.privacy.measurement import compile_plan
from edge_agg.report.state import vetoes_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edge_agg.config import Config
    from edge_agg.contract.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What was found."""

    findings: Sequence[Finding]
    config: Config | None
    """None if it cannot be read."""
    plans: Sequence[Plan]


def examine(path: Path) -> Examined:
    """Look at everything around the agent of a config."""
    try:
        config, plans = load(path)
    except ConfigInvalid as error:
        remedy = "Correct the field that it names; `edge-agg check` says whether it is right."
        return Examined(findings=[wrong("config", str(error), remedy)], config=None, plans=[])
    said = f"{len(plans)} plans, {len(config.source)} sources, {len(config.account)} accounts"
    findings = [fine("config", said), *_rest(config, plans)]
    return Examined(findings=findings, config=config, plans=plans)


def _rest(config: Config, plans: Sequence[Plan]) -> Iterator[Finding]:
    now = SystemClock().now()
    compiled = list(_plans(plans))
    yield from compiled
    if all(not finding.remedy for finding in compiled):
        yield _policy(config, plans)
        yield from examine_folder(config)
        yield from _accounts(config, plans)
    yield examine_clock(config, now=now)
    yield examine_collector(config)
    yield from examine_sources(config, plans)
    yield from examine_files(config, now=now)
    yield examine_process(config)


def _accounts(config: Config, plans: Sequence[Plan]) -> Iterator[Finding]:
    try:
        with journal_of(config) as journal:
            if journal is not None:
                check_charged(config, plans, journal)
    except ConfigInvalid as error:
        yield wrong("accounts", str(error), "Put it back as it was: the agent does not start over other accounts.")
    except JournalFailed:
        return  # the ledger's finding says so


def _plans(plans: Sequence[Plan]) -> Iterator[Finding]:
    for plan in plans:
        try:
            compile_plan(plan)
        except PlanRefused as error:
            yield wrong(f"plan {plan.name}", str(error), "Give it more epsilon, or narrower bounds.")
        else:
            yield fine(f"plan {plan.name}", f"v{plan.version}, every {plan.window.every}")


def _policy(config: Config, plans: Sequence[Plan]) -> Finding:
    about = "policy"
    if config.agent.policy is None:
        return fine(about, "none: nothing is vetoed")
    try:
        vetoes = vetoes_of(config, plans)
    except ConfigInvalid as error:
        return wrong(about, str(error), "Correct the field that it names; the agent does not start without.")
    broken = [f"{plan.name} ({veto.field})" for plan, veto in zip(plans, vetoes, strict=True) if veto is not None]
    if broken:
        remedy = "If that is meant, nothing. `edge-agg check` says by how much each rule is broken."
        return odd(about, f"vetoes {', '.join(broken)}", remedy)
    return fine(about, "vetoes nothing")
