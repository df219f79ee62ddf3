"""The gate: is this a well-formed release of a plan that we know? Pure.

Place: after the service has read the call and before the landing; whatever comes out has been checked against its plan.
Invariants: a release that its sender may not have made is refused before anything else is said of it; any bytes give an
:class:`Admitted` or :class:`Refused`, nothing else; checks run cheapest first (size and sha256, plan, shape, and only
then the payload), so the work is bounded by the plan; a refusal is a code and carries nothing out of the release; no
release is of a window that nobody can have lived through, for what is kept is kept for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from cloud_collector.payload import Values, fits_rows, open_payload, shape_of
from edge_agg.contract import codec
from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.grid import window_of
from edge_agg.contract.refusal import RULES, Refusal
from edge_agg.contract.release import Release, Sealed, Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from edge_agg.contract.plan import Plan, PlanHash


MOST_AHEAD = timedelta(days=2)
"""How far from now a window may begin: an agent takes events of the next day, and a drain closes windows early."""


class Refused(Exception):
    """A release is not taken; what its sender should do stands in the contract's table."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(RULES[refusal].text)
        self.refusal = refusal
        """The code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A release that fits its plan."""

    release: Release
    sealed: Sealed
    plan: Plan
    values: Values


def admit(
    header: bytes,
    payload: bytes,
    lookup: Callable[[PlanHash], Plan | None],
    sends_for: Callable[[str, str], bool],
    now: datetime,
) -> Admitted:
    """Check a release that a caller sent.

    Args:
        header: the header's bytes as they came.
        payload: the payload's bytes as they came.
        lookup: the registered plan of a hash, among those of the caller's tenant.
        sends_for: whether the caller is this tenant's agent of this name.
        now: the time in UTC.

    Raises:
        Refused: MALFORMED, IDENTITY_MISMATCH, PLAN_UNKNOWN, PLAN_MISMATCH or WINDOW_AHEAD.
    """
    try:
        release, sealed = codec.open_sealed(header, payload)
    except MalformedRelease:
        raise Refused(Refusal.MALFORMED) from None
    if not sends_for(release.tenant, release.agent):
        raise Refused(Refusal.IDENTITY_MISMATCH)
    plan = lookup(release.plan_hash)
    if plan is None:
        raise Refused(Refusal.PLAN_UNKNOWN)
    if not (_fits_identity(release, plan) and _fits_grid(release, plan) and _fits_shape(release, plan)):
        raise Refused(Refusal.PLAN_MISMATCH)
    if release.window_start > now + MOST_AHEAD:
        raise Refused(Refusal.WINDOW_AHEAD)
    try:
        values = open_payload(release, sealed.payload, plan)
    except MalformedRelease:
        raise Refused(Refusal.MALFORMED) from None
    return Admitted(release=release, sealed=sealed, plan=plan, values=values)


def _fits_identity(release: Release, plan: Plan) -> bool:
    claimed = (release.max_partitions, release.max_rows_per_partition, release.max_nodes)
    declared = (plan.bounds.max_partitions, plan.bounds.max_rows_per_partition, plan.privacy_unit.max_nodes)
    return (release.plan, release.plan_version, claimed) == (plan.name, plan.version, declared)


def _fits_grid(release: Release, plan: Plan) -> bool:
    aligned = window_of(release.window_start, plan.every) == release.window_start
    return aligned and release.window_end - release.window_start == plan.every


def _fits_shape(release: Release, plan: Plan) -> bool:
    if release.status is not Status.RELEASED:
        return release.rows == 0
    specs = tuple([(spec.name, spec.mechanism) for spec in release.vectors])
    return (
        specs == shape_of(release.plan_hash, plan).vectors
        and _fits_selection(release, plan)
        and fits_rows(release, plan)
    )


def _fits_selection(release: Release, plan: Plan) -> bool:
    """Whether keys were selected as the plan declares, or not at all where it does not discover any."""
    selection, partition = release.selection, shape_of(release.plan_hash, plan).key
    if selection is None or partition is None or partition.discover is None:
        return selection is None and partition is None
    claimed = (selection.partition, selection.mechanism)
    return claimed == (partition.label, plan.budget.mechanism) and selection.delta <= partition.discover.delta
