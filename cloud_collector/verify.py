"""Whether what is kept still fits together: chains, bytes, lake and roll-ups, each against the others.

Place: `cloud-collector verify`; reads only, beside a collector that may be running.
What is sums at: whose the lake is; each journal's links, head and count; the sha256 of what waits for the lake; the
digest of every release in the lake against the one that the landing kept, and that each is there once and in order; the
roll-ups against ones made anew from the lake.
A release in the lake that a restored landing does not know came after the landing was copied: that is no difference.
Invariants: what it says names tenants, agents, plans and windows, never a value; the lake is read before the landing,
so a release that is sealed meanwhile is no difference. Of the roll-ups and the lake one moment is compared, at which
nobody was sealing; the sealer waits for as long as it takes to open them, not to read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from cloud_collector.errors import StoreFailed
from cloud_collector.lake import RETIRED
from cloud_collector.rollup import Rollups
from cloud_collector.turns import turn
from edge_agg.contract import codec
from edge_agg.contract.errors import MalformedRelease

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cloud_collector.deltalog import Snapshot
    from cloud_collector.lake import Lake
    from cloud_collector.landing_store import Statements, Store
    from edge_agg.contract.plan import Plan, PlanHash


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What is compared."""

    landing: Store
    lake: Lake
    rollups: Path | None
    """None where there are none."""
    turns: Path
    """The file that whoever seals holds a lock on."""
    plans: Sequence[tuple[Plan, PlanHash]]


def differences(stores: Stores) -> Iterator[str]:
    """Everything that does not fit, in words.

    Raises:
        StoreFailed: a file cannot be read at all.
    """
    plans = {plan_hash: plan for plan, plan_hash in stores.plans}
    snapshots = {plan_hash: stores.lake.snapshot(plan, plan_hash) for plan_hash, plan in plans.items()}
    with stores.landing.reading() as db:
        yield from stores.landing.damages(db)
        yield from _belonging(db, stores.lake)
        yield from _chains(db)
        yield from _waiting(db)
        for plan_hash, plan in plans.items():
            yield from _sealed(db, stores.lake, plan, plan_hash, snapshots[plan_hash])
    if stores.rollups is not None and stores.rollups.exists():
        for plan_hash, plan in plans.items():
            yield from _rolled(stores, stores.rollups, plan, plan_hash)


def _belonging(db: Statements, lake: Lake) -> Iterator[str]:
    """Whose the lake is: what follows would be said of each release, if it is another landing's."""
    if lake.owner() not in {None, str(db.execute("SELECT id FROM meta").get)}:
        yield "the lake belongs to another landing: look at landing.id in it"


def _chains(db: Statements) -> Iterator[str]:
    """Links, heads, counts."""
    query = (
        "SELECT tenant, agents.agent, journals.journal, seq, hash, prev FROM releases "
        "JOIN journals ON journals.agent = releases.agent AND journals.journal = releases.journal "
        "JOIN agents ON agents.no = releases.agent ORDER BY agents.no, journals.journal, seq"
    )
    before: Any = None
    for tenant, agent, journal, seq, digest, prev in db.execute(query):
        here = (tenant, agent, journal)
        if before is not None and before[:2] == (here, seq - 1) and prev is not None and prev != before[2]:
            yield f"{tenant}/{agent}: release {seq} does not continue release {seq - 1}"
        before = (here, seq, digest)
    query = (
        "SELECT tenant, agents.agent, head_seq, journals.releases, max(seq), count(seq) FROM journals "
        "JOIN agents ON agents.no = journals.agent LEFT JOIN releases ON releases.agent = journals.agent "
        "AND releases.journal = journals.journal GROUP BY agents.no, journals.agent, journals.journal "
        "HAVING (head_seq, journals.releases) <> (coalesce(max(seq), 0), count(seq)) "
        "AND (SELECT count(*) FROM releases AS old WHERE old.agent = journals.agent AND old.seq IS NULL) = 0"
    )
    for tenant, agent, head, count, last, found in db.execute(query):
        yield f"{tenant}/{agent}: the head says {count} releases up to {head}; there are {found} up to {last}"
    query = (
        "SELECT tenant, agents.agent, account FROM accounts JOIN agents ON agents.no = accounts.agent "
        "LEFT JOIN releases ON releases.agent = accounts.agent AND releases.journal = accounts.journal "
        "AND releases.seq = accounts.seq WHERE releases.id IS NULL"
    )
    for tenant, agent, _ in db.execute(query):
        yield f"{tenant}/{agent}: the charges of an account were told by a release that is not there"


def _waiting(db: Statements) -> Iterator[str]:
    """What has not reached the lake: its bytes are here, and their hashes are in them."""
    for landing_id, digest, header, payload in db.execute(
        "SELECT id, hash, header, payload FROM waiting JOIN releases USING (id) ORDER BY id"
    ):
        try:
            codec.open_sealed(header, payload)
        except MalformedRelease:
            yield f"landing: release {landing_id} is no longer what was sent"
            continue
        if hashlib.sha256(header).digest() != digest:
            yield f"landing: release {landing_id} has another hash than it had"


def _sealed(db: Statements, lake: Lake, plan: Plan, plan_hash: PlanHash, at: Snapshot) -> Iterator[str]:
    """What has reached the lake."""
    landing_id, restored = db.execute("SELECT id, restored_us IS NOT NULL FROM meta").get
    mark, retired = at.transactions.get(landing_id, 0), at.transactions.get(RETIRED)
    query = (
        "SELECT tenant, agents.agent, window_start_us, digest, waiting.id IS NULL, releases.id FROM releases "
        "LEFT JOIN waiting ON waiting.id = releases.id JOIN agents ON agents.no = releases.agent "
        "JOIN plans ON plans.no = plan WHERE plans.hash = ?"
    )
    kept = {row[:3]: row[3:] for row in db.execute(query, (bytes(plan_hash),))}
    found: set[tuple[Any, ...]] = set()
    for one in lake.stored(plan, plan_hash, at):
        key = (one.tenant, one.node, one.window_start_us)
        where = f"{plan.name}: {one.tenant}/{one.node} at {codec.from_us(one.window_start_us):%Y-%m-%dT%H:%MZ}"
        if key in found:
            yield f"{where} is in the lake twice"
        found.add(key)
        if not one.in_order:
            yield f"{where} is in the lake with other keys than the plan's"
        if key not in kept and restored:
            continue
        if key not in kept:
            yield f"{where} is in the lake, and the landing does not know it"
        elif kept[key][1] and kept[key][0] is not None and kept[key][0] != one.digest:
            yield f"{where} is in the lake with other values than were sealed"
    for key, (_, sealed, number) in kept.items():
        gone = retired is not None and key[2] < retired
        if sealed and number <= mark and key not in found and not gone:
            moment = f"{codec.from_us(key[2]):%Y-%m-%dT%H:%MZ}"
            yield f"{plan.name}: {key[0]}/{key[1]} at {moment} was sealed, and is not in the lake"


def _rolled(stores: Stores, rollups: Path, plan: Plan, plan_hash: PlanHash) -> Iterator[str]:
    """The roll-ups, against ones made anew from the lake, both as they were between two turns of the sealer."""
    with contextlib.ExitStack() as stack:
        with turn(stores.turns):
            at = stores.lake.snapshot(plan, plan_hash)
            db = stack.enter_context(_one_state(rollups))
        kept = _rows(db, plan_hash)
    if kept is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "anew.sqlite"
        with contextlib.closing(Rollups(path)) as anew, contextlib.suppress(ValueError):  # other cells than the plan's
            anew.begin(plan, plan_hash, stores.lake.stored(plan, plan_hash, at))
        with _one_state(path) as db:
            fits = _rows(db, plan_hash) == kept
    if not fits:
        yield f"{plan.name}: the roll-ups are not the sums of the lake; stop the collector, remove rollups.sqlite"


@contextlib.contextmanager
def _one_state(rollups: Path) -> Iterator[apsw.Connection]:
    """The file as it is now, whatever is written meanwhile; whoever writes does not wait."""
    try:
        with contextlib.closing(apsw.Connection(str(rollups), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            db.set_busy_timeout(5_000)
            db.execute("BEGIN")
            db.execute("SELECT 1 FROM plans").fetchall()  # the state is that of the first reading
            yield db
    except apsw.Error as error:
        raise StoreFailed(f"the roll-ups cannot be read ({type(error).__name__})") from None


def _rows(db: apsw.Connection, plan_hash: PlanHash) -> dict[str, set[tuple[Any, ...]]] | None:
    """Everything that is rolled up of a plan, by table; None if it is not."""
    tables = {
        "sums": "SELECT day, start_us, tenant, scales, releases, sums FROM sums WHERE plan = ?",
        "days": "SELECT start_us, tenant, nodes.node, status, windows FROM days "
        "JOIN nodes ON nodes.no = days.node WHERE plan = ?",
        "records": "SELECT start_us, tenant, nodes.node, status FROM records "
        "JOIN nodes ON nodes.no = records.node WHERE plan = ?",
        "seen": "SELECT tenant, nodes.node, first_us, last_us FROM seen "
        "JOIN nodes ON nodes.no = seen.node WHERE plan = ?",
    }
    number: Any = db.execute("SELECT no FROM plans WHERE hash = ?", (bytes(plan_hash),)).get
    if number is None:
        return None
    return {name: set(db.execute(query, (number,)).fetchall()) for name, query in tables.items()}
