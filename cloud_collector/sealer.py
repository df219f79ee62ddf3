"""The sealer: moves landed releases into the lake.

Place: between the landing and the lake, at intervals and before every answer.
Invariants: ids reach a table in ascending order, so the lake's mark passes no release that was left behind, unless that
is damaged; a pass moves what was there when it was asked for, and ends; a release leaves the landing only once the lake
and the roll-ups have it on disk, and each of them takes it once however often it comes; one plan whose table fails, or
one release that the disk did not keep as it was, does not hold up the others, and every pass fails until it is mended.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from cloud_collector.errors import StoreFailed
from cloud_collector.lake_rows import digest
from cloud_collector.payload import open_payload
from cloud_collector.telemetry import Event, emit
from edge_agg.contract import codec
from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.vectors import payload_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cloud_collector.lake import Lake
    from cloud_collector.lake_rows import Row
    from cloud_collector.rollup import Rollups
    from edge_agg.contract.plan import Plan, PlanHash
    from edge_agg.contract.release import Release

    _Opened = tuple[int, Release, bytes]

MAX_VALUES = 2_000_000
"""Values of one commit, unless a single release has more: they are in memory together."""
_CHUNK = 1024  # releases that are read from the landing at a time,
_LEAST_CHUNK = 256  # at first, and where so many are
_CHUNK_BYTES = 16 * 2**20  # or more


class Landed(Protocol):
    """What the sealer needs of a landing."""

    @property
    def id(self) -> str:
        """The landing's own name."""

    @property
    def restored(self) -> bool:
        """Whether it came out of a backup, so that the lake may hold releases that it has forgotten."""

    def newest(self) -> int:
        """The highest id of what is not sealed; 0 if all is."""

    def unsealed(self, limit: int, *, after: int = 0) -> Sequence[Waiting]:
        """The oldest releases that are not sealed, of ids above `after`."""

    def mark_sealed(self, digests: Mapping[int, bytes]) -> None:
        """These are in the lake for good; by id, what their rows are known by."""


class Waiting(Protocol):
    """A release that waits in a landing."""

    @property
    def id(self) -> int:
        """Ascending in the order of commits."""

    @property
    def header(self) -> bytes:
        """As it was sent."""

    @property
    def payload(self) -> bytes:
        """As it was sent."""


class Sealer:
    """Moves releases from a landing to the lake.

    Args:
        landing: where they wait.
        lake: where they go.
        plan_of: the registered plan of a hash; a release of an unknown plan stays where it is.
        rollups: kept in step with the lake, if there are any.
    """

    def __init__(
        self, landing: Landed, lake: Lake, plan_of: Callable[[PlanHash], Plan | None], rollups: Rollups | None = None
    ) -> None:
        self._landing, self._lake, self._plan_of, self._rollups = landing, lake, plan_of, rollups
        self._lock = threading.Lock()
        self._damaged: set[int] = set()
        self._skipped = 0

    def newest(self) -> int:
        """The highest id of what waits now; 0 if nothing does."""
        return self._landing.newest()

    def seal(self, upto: int | None = None) -> int:
        """Move what waits; calls at the same time take turns.

        Args:
            upto: the highest id that is moved; of what waits when the pass begins if None. What comes later waits for
                the next pass, so a pass ends however fast others push.

        Returns:
            How many releases were moved.

        Raises:
            StoreFailed: after all other plans' releases were moved; those of the failing plan wait for the next call,
                and so does a damaged one.
        """
        with self._lock:
            # One answer a hash for the whole pass: a plan that turned up half-way would overtake its older releases.
            plans: dict[PlanHash, Plan | None] = {}
            moved, after, failure = 0, 0, None
            self._skipped = 0
            last = self._landing.newest() if upto is None else upto
            limit = min(_LEAST_CHUNK, _CHUNK)
            while chunk := [one for one in self._landing.unsealed(limit, after=after) if one.id <= last]:
                after, limit = chunk[-1].id, _next_limit(chunk)
                for plan_hash, group in self._by_plan(chunk).items():
                    if plan_hash not in plans:
                        plans[plan_hash] = self._plan_of(plan_hash)
                    plan = plans[plan_hash]
                    if plan is None:
                        continue
                    try:
                        moved += self._move(plan, plan_hash, group)
                    except StoreFailed as error:
                        plans[plan_hash], failure = None, error
                        emit(Event.SEAL_FAILED, cause=type(error).__name__, plan=plan.name)
            if failure is not None:
                raise failure
            if self._skipped:
                raise StoreFailed("a landed release is no longer what it was: `verify` names it; look at the disk")
            return moved

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the sealer from moving anything meanwhile: for upkeep, which takes its turn."""
        with self._lock:
            yield

    def _move(self, plan: Plan, plan_hash: PlanHash, group: Sequence[_Opened]) -> int:
        moved = 0
        for part in _parts(group, len(payload_columns(plan))):
            rows = list(self._rows(plan, part))
            if not rows:
                continue
            if self._rollups is not None and not self._rollups.covers(plan_hash):
                self._rollups.begin(plan, plan_hash, self._lake.stored(plan, plan_hash))
            landing = self._landing
            self._lake.append(plan, plan_hash, rows, app_id=landing.id, restored=landing.restored)
            if self._rollups is not None:
                self._rollups.add(plan, plan_hash, rows)
            self._landing.mark_sealed({row[0]: digest(plan, row) for row in rows})
            moved += len(rows)
        if moved:
            emit(Event.RELEASES_SEALED, releases=moved, plan=plan.name, version=plan.version)
        return moved

    def _by_plan(self, chunk: Sequence[Waiting]) -> dict[PlanHash, list[_Opened]]:
        """Group by plan, without what is damaged; the order of ids stays."""
        groups: dict[PlanHash, list[_Opened]] = {}
        for one in chunk:
            try:
                release, sealed = codec.open_sealed(one.header, one.payload)
            except MalformedRelease:
                self._skip(one.id)
            else:
                groups.setdefault(release.plan_hash, []).append((one.id, release, sealed.payload))
        return groups

    def _rows(self, plan: Plan, part: Sequence[_Opened]) -> Iterator[Row]:
        """The values of releases, without what is damaged."""
        for landing_id, release, payload in part:
            try:
                yield landing_id, release, open_payload(release, payload, plan)
            except MalformedRelease:
                self._skip(landing_id)

    def _skip(self, landing_id: int) -> None:
        """Leave a damaged release where it is, and say so once."""
        self._skipped += 1
        if landing_id not in self._damaged:
            self._damaged.add(landing_id)
            emit(Event.SEAL_FAILED, cause="ReleaseDamaged", release=landing_id)


def _next_limit(chunk: Sequence[Waiting]) -> int:
    """How many releases to read next: a commit's syncs cost the same for many, and what is read is in memory."""
    size = sum(len(one.payload) for one in chunk) // len(chunk) + 1
    return min(max(_LEAST_CHUNK, _CHUNK_BYTES // size), _CHUNK)


def _parts(group: Sequence[_Opened], columns: int) -> Iterator[Sequence[_Opened]]:
    """Cut a group, in its order, into what one commit takes."""
    part: list[_Opened] = []
    values = 0
    for one in group:
        size = one[1].rows * columns
        if part and values + size > MAX_VALUES:
            yield part
            part, values = [], 0
        part.append(one)
        values += size
    if part:
        yield part
