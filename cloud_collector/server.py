"""The composition root: builds the collector's parts, runs them, and stops them in order.

Place: around the whole path at the collector, from the socket to the lake; no decision about a release is taken here.

Invariants:
- Start is strict: a plan, certificate, address or store that does not work fails before the first call is taken.
- Every service stands behind one gate; without TLS no address but loopback is listened on, whoever made the config.
- Stop is in order: no new calls, finish those in work, seal, close the landing.
- A disk that fails ends the process, after the call that met it was refused; nothing unacked was promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cloud_collector import metrics, shared_plans, tracing
from cloud_collector.contacts import Contacts, note_until
from cloud_collector.denied import DenyList
from cloud_collector.enrollment import EnrollmentService
from cloud_collector.errors import ConfigInvalid, StoreFailed
from cloud_collector.expiry import look_until
from cloud_collector.gate import Gate, Identification, local
from cloud_collector.lake import Lake
from cloud_collector.landing import Landing
from cloud_collector.listener import Services, listening
from cloud_collector.monitor import Monitor
from cloud_collector.payload import most_bytes
from cloud_collector.plans import PlanRegistry
from cloud_collector.query import Query
from cloud_collector.retention import Retention
from cloud_collector.rollup import Rollups
from cloud_collector.sealer import Sealer
from cloud_collector.sealing import Turns, keep_until, seal_until
from cloud_collector.service import CollectorService, Door, QueryService
from cloud_collector.telemetry import Event, emit
from cloud_collector.tokens import Tokens
from cloud_collector.upkeep import Upkeep
from edge_agg.contract.errors import PlanInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cloud_collector.config import Config
    from cloud_collector.service import Lookup
    from edge_agg.contract.plan import Plan, PlanHash

MAX_PUSHES, MAX_QUESTIONS, MAX_ENROLLMENTS = 64, 16, 8
"""Calls of each kind in work at once; more are refused with a pushback."""
DISK_FAILED = "the disk did not keep what it was given: look at the disk, then start the collector again"
"""What is said when a disk's failure ended a process."""


async def serve(
    config: Config,
    *,
    ready: Callable[[str], None] | None = None,
    stop: asyncio.Event | None = None,
    monitored: Callable[[str], None] | None = None,
) -> None:
    """Run a collector in this process until it is told to stop: all of it, or one worker of several.

    Args:
        config: what :func:`cloud_collector.config.load` read. With several workers this is one of them: whoever looks
            after them has registered the plans and chosen the port, seals, and answers those who watch.
        ready: is told the address that is listened on, with the port that was bound, once calls are taken.
        stop: ends the collector when set; SIGTERM and SIGINT do if there is none.
        monitored: is told the address of the page for those who watch, if there is one.

    Raises:
        ConfigInvalid: a plan or the address does not work: fix what the text names.
        StoreFailed: the disk failed: look at it, then start again.
    """
    ending = stop if stop is not None else on_signals()
    broken = asyncio.Event()
    alone = config.workers == 1
    metrics.start()
    tracing.start(config.traces)
    registry, retention = registry_of(config) if alone else (PlanRegistry(config.plans_path), None)
    with _stores(config, registry) as stores:
        landing, turns = stores.landing, stores.turns

        def note_failure() -> None:
            if (
                landing.failed or stores.lake.failed
            ):  # a full disk is refused and waited for; an I/O error is the end of this process
                broken.set()

        with (
            _door(MAX_PUSHES, note_failure) as pushes,
            _door(MAX_QUESTIONS, note_failure) as questions,
            _door(MAX_ENROLLMENTS, note_failure) as enrollments,
            _gate(config) as gate,
        ):
            query = Query(
                registry,
                stores.lake,
                turns.seal,
                rollups=stores.rollups,
                waiting=landing.waiting_of,
                known=landing.known,
                grace=config.grace,
            )
            contacts = Contacts()
            services = Services(
                collector=CollectorService(
                    landing,
                    plan_of(registry),
                    door=pushes,
                    max_batch=config.max_batch,
                    max_queued=config.max_queued_releases,
                    contacts=contacts,
                ),
                query=QueryService(registry, query, door=questions),
                enrollment=_enrollment(config, enrollments),
            )
            up = asyncio.Event()
            monitor = Monitor(lambda: up.is_set() and not ending.is_set() and not broken.is_set())
            async with monitor.listening(config.monitor if alone else None) as watched:
                async with listening(config, gate, services) as address:
                    up.set()
                    emit(Event.COLLECTOR_STARTED, listen=address, plans=len(registry.list()))
                    if monitored is not None and watched is not None:
                        monitored(watched)
                    if ready is not None:
                        ready(address)
                    waits = [asyncio.create_task(event.wait()) for event in (ending, broken)]
                    upkeep = None if retention is None else stores.upkeep(registry, retention)
                    beside = asyncio.gather(
                        seal_until(waits, turns.seal if alone else None, config.seal_every_s, note_failure),
                        keep_until(waits, upkeep, config.upkeep_every_s, note_failure),
                        look_until(waits, config.tls if alone else None),
                        shared_plans.pull_until(waits, registry),
                        note_until(waits, contacts, landing, note_failure),
                    )
                    ends: list[asyncio.Future[Any]] = [*waits, beside]
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                await beside  # a pass over the lake that was begun may take long: calls are drained meanwhile
            if not broken.is_set():
                await asyncio.to_thread(contacts.write, landing)
        if alone and not broken.is_set():
            await asyncio.to_thread(turns.seal)
    emit(Event.COLLECTOR_STOPPED)
    if broken.is_set():
        raise StoreFailed(DISK_FAILED)


async def seal(config: Config, *, ready: Callable[[str], None], stop: asyncio.Event) -> None:
    """Only seal, beside workers that take the calls, until told to stop; what waits then is sealed first.

    Raises:
        StoreFailed: the disk failed: look at it, then start again.
    """
    broken = asyncio.Event()
    metrics.start()
    tracing.start(config.traces)
    registry, retention = registry_of(config, first=False)
    with _stores(config, registry) as stores:
        turns = stores.turns

        def note_failure() -> None:
            if stores.landing.failed or stores.lake.failed:
                broken.set()

        ready("")
        waits = [asyncio.create_task(event.wait()) for event in (stop, broken)]
        upkeep = stores.upkeep(registry, retention)
        keeping = asyncio.create_task(keep_until(waits, upkeep, config.upkeep_every_s, note_failure))
        looking = asyncio.create_task(look_until(waits, config.tls))
        pulling = asyncio.create_task(shared_plans.pull_until(waits, shared_plans.registry(config, pull=False)))
        await seal_until(waits, turns.seal, config.seal_every_s, note_failure)
        await asyncio.gather(keeping, looking, pulling)
        if not broken.is_set():
            await asyncio.to_thread(turns.seal)
    if broken.is_set():
        raise StoreFailed(DISK_FAILED)


def on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set from now on."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return ending


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stores:
    """What is on the disk, opened, and the sealer between."""

    landing: Landing
    lake: Lake
    rollups: Rollups | None
    """None where collectors on several machines seal in turn: each machine's would lack what others sealed."""
    turns: Turns

    def upkeep(self, registry: PlanRegistry, retention: Retention) -> Upkeep:
        """What is done to the lake now and then."""
        return Upkeep(
            lake=self.lake,
            rollups=self.rollups,
            alone=self.turns.alone,
            plans=lambda: [(one.plan, one.hash) for one in registry.list()],
            retention=retention.of,
        )


@contextlib.contextmanager
def _stores(config: Config, registry: PlanRegistry) -> Iterator[_Stores]:
    opened = Landing(config.landing, max_queued=config.max_queued_releases, new_incarnation=config.new_incarnation)
    with contextlib.ExitStack() as stack:
        landing = stack.enter_context(contextlib.closing(opened))
        lake = Lake.of(config, writes=config.workers == 1)  # of several, whoever looks after them has tried the store
        if config.workers == 1:
            bind(config, landing, lake, registry)
        rollups = None
        if config.database is None:
            rollups = stack.enter_context(contextlib.closing(Rollups(config.rollups_path)))
        sealer = Sealer(landing, lake, plan_of(registry), rollups)
        turns = Turns(sealer, config.turns_path, landing.turn)
        yield _Stores(landing=landing, lake=lake, rollups=rollups, turns=turns)


def bind(config: Config, landing: Landing, lake: Lake, registry: PlanRegistry) -> None:
    """Make sure, before anything is taken, that the stores belong together; of several processes the first does.

    Raises:
        ConfigInvalid: they do not; or roll-ups here would lack what another landing sealed.
        StoreFailed: a store does not answer.
    """
    if config.database is not None and config.landing_path.exists():
        raise ConfigInvalid("$.landing.url: this data folder has a landing of its own, whose keys would be forgotten")
    landing.bind(lake)
    for one in registry.list() if config.database is None else ():
        with contextlib.suppress(StoreFailed):  # a table that fails holds up no other plan: the sealer will say so
            if lake.sealed_by(one.plan, one.hash) - {landing.id}:
                raise ConfigInvalid(
                    f"$.collector.data: the table of {one.plan.name} was sealed from another landing too"
                )


def registry_of(config: Config, *, first: bool = True) -> tuple[PlanRegistry, Retention]:
    """The registry, with the plans that the config names registered, and how long the data of their tables is kept.

    Of several processes the first shares plans with other machines; one that is started again, perhaps while those
    cannot be reached, goes on with this one's copy.
    """
    registry = shared_plans.registry(config) if first else PlanRegistry(config.plans_path)
    if isinstance(registry, shared_plans.SharedPlans):
        registry.share()
    retention = Retention(registry)
    for entry in config.plans:
        try:
            added = registry.add_file(entry.path, entry.nodes, tenant=entry.tenant)
        except PlanInvalid as error:
            raise ConfigInvalid(f"{entry.path.name}: {error}") from None
        retention.wish(added, entry.retention)
        if first and (values := most_bytes(added.hash, added.plan)) > config.max_message_bytes:
            emit(Event.PLAN_LARGE, plan=added.plan.name, version=added.plan.version, bytes=values)
    return registry, retention


def plan_of(registry: PlanRegistry) -> Lookup:
    """How the rooms look plans up."""

    def found(plan_hash: PlanHash, *, tenant: str | None = None) -> Plan | None:
        registered = registry.get(plan_hash, tenant)
        return None if registered is None else registered.plan

    return found


@contextlib.contextmanager
def _door(max_calls: int, store_failed: Callable[[], None]) -> Iterator[Door]:
    door = Door(max_calls=max_calls, threads=2, store_failed=store_failed)
    try:
        yield door
    finally:
        door.close()


def _enrollment(config: Config, door: Door) -> EnrollmentService:
    if config.tls is None:
        return EnrollmentService(None, None, door=door)
    tls = config.tls
    return EnrollmentService(tls.authority, tls.ca_file, passphrase=tls.authority_passphrase_file, door=door)


def _now() -> datetime:
    return datetime.now(UTC)


@contextlib.contextmanager
def _gate(config: Config) -> Iterator[Gate]:
    if config.tls is None:
        yield Gate(local)
        return
    denied = DenyList(config.tls.denied_file)
    with contextlib.closing(Tokens(config.tokens_path)) as tokens:
        domain = config.tls.trust_domain
        yield Gate(Identification(domain=domain, denied=denied, tokens=tokens, now=_now, scopes=config.scopes))
