"""What becomes of a release: whether its key is free, and whether it continues its agent's chain (promises B2, B6).

Place: called by the landing's writer, inside the transaction that will hold the release. `heads.py` judges by the same
rules what an agent says of itself before it draws.
Invariants:
- A key (tenant, agent, plan hash, window start) is taken once, for ever. The sha256 is compared, never part of the key.
- Every check compares a release with others of its own journal in whatever order they came, and an honest journal's
  releases pass each of them in every order, however often they are sent: one place holds one release, a release names
  the hash of the one before, and what an account was charged never falls from one place to a later one.
- What fails a check is not stored, and its agent is fenced in the same commit.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

from cloud_collector import fence
from cloud_collector.landed import Action, Reason, Verdict
from edge_agg.contract.codec import to_us
from edge_agg.contract.release import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloud_collector.landing_store import Statements
    from edge_agg.contract.release import Release, Sealed

_MAX_SEQ = 2**63 - 2  # the wire has 64 bits, the databases 63: a liar must not stop the group

NewIncarnation = Literal["accept", "fence"]
"""What is done with an agent that comes with a journal nobody has seen, and is not itself new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of a release, and what a person should hear of it."""

    verdict: Verdict
    alarm: Reason | Action | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Journal:
    """An agent's journal as it is known before a release."""

    agent: int
    journal: int | None
    """Its number among the agent's; None if it is new."""
    head_seq: int
    reborn: bool
    """Whether the agent had another one before."""
    plan: int
    around: Sequence[tuple[int, bytes, bytes | None]]
    """Of the releases at its place, before and after it: place, hash, and the link where it is kept."""
    spent: tuple[int, str, str] | None
    """What its account was charged by the latest release that says so: place, rho, delta."""


def decide(
    db: Statements, release: Release, sealed: Sealed, *, new_incarnation: NewIncarnation, restored: bool
) -> Judged:
    """Take a release in, or say why not."""
    who = (release.tenant, release.agent)
    agent, journals, fenced, journal, head = known_of(db, *who, bytes.fromhex(release.link.incarnation))
    plan, known = (None, None) if agent is None else _held(db, agent, release)
    if known is not None:
        if known == sealed.hash:
            return Judged(verdict=Verdict.DUPLICATE)
        return Judged(verdict=Verdict.CONFLICT, alarm=_shut_out(db, release, Reason.CONFLICT))
    if fenced is not None:
        return Judged(verdict=Verdict.FENCED)
    if agent is None:
        agent = fence.number_of(db, *who)
    around, spent = ([], None) if journal is None else _near(db, agent, journal, release)
    at = _Journal(
        agent=agent,
        journal=journal,
        head_seq=head,
        reborn=journals > 0,
        plan=_number(db, release) if plan is None else plan,
        around=around,
        spent=spent,
    )
    fault = _fault(at, release, sealed)
    if fault is None and at.journal is None and at.reborn and new_incarnation == "fence":
        fault = Reason.INCARNATION
    if fault is not None:
        return Judged(verdict=Verdict.FENCED, alarm=_shut_out(db, release, fault))
    alarm = _insert(db, at, release, sealed)
    if restored:
        alarm = _catch_up(db, at, release) or alarm
    return Judged(verdict=Verdict.ACCEPTED, alarm=alarm)


def known_of(
    db: Statements, tenant: str, agent: str, incarnation: bytes
) -> tuple[int | None, int, str | None, int | None, int]:
    """An agent's number, how many journals it had, why it is fenced; this journal's number and its last place."""
    query = (  # no outer joins: SQLite prepares such a statement again each time it runs
        "SELECT no, journals, (SELECT reason FROM fences WHERE fences.agent = agents.no), "
        "(SELECT journal FROM journals WHERE journals.agent = agents.no AND incarnation = ?), "
        "(SELECT head_seq FROM journals WHERE journals.agent = agents.no AND incarnation = ?) "
        "FROM agents WHERE tenant = ? AND agent = ?"
    )
    found: Any = db.execute(query, (incarnation, incarnation, tenant, agent)).fetchone()
    no, journals, reason, journal, head = found or (None, 0, None, None, None)
    return no, journals, reason, journal, head or 0


def turned(seq: int, head_seq: int) -> Reason:
    """What it is where other bytes stand at a place."""
    return Reason.ROLLBACK if seq < head_seq else Reason.FORK


def is_fallen(earlier: tuple[Fraction, Fraction], later: tuple[Fraction, Fraction]) -> bool:
    """Whether an account has been charged less, in rho or in delta, at a later place than at an earlier one."""
    return earlier[0] > later[0] or earlier[1] > later[1]


def _held(db: Statements, agent: int, release: Release) -> tuple[int | None, bytes | None]:
    """The plan's number, if it has one, and the hash of what has the release's key, if anything has."""
    query = (
        "SELECT no, (SELECT hash FROM releases WHERE agent = ? AND plan = plans.no AND window_start_us = ?) "
        "FROM plans WHERE hash = ?"
    )
    found: Any = db.execute(query, (agent, to_us(release.window_start), bytes(release.plan_hash))).fetchone()
    return found or (None, None)


def _shut_out(db: Statements, release: Release, reason: Reason) -> Reason | None:
    incarnation = bytes.fromhex(release.link.incarnation) if reason is Reason.INCARNATION else None
    raised = fence.raise_fence(db, release.tenant, release.agent, reason, incarnation=incarnation)
    return reason if raised or reason is Reason.CONFLICT else None


def _near(db: Statements, agent: int, journal: int, release: Release) -> tuple[list[Any], Any]:
    """What a release's place in its chain is judged by."""
    seq = _place(release)
    query = "SELECT seq, hash, prev FROM releases WHERE agent = ? AND journal = ? AND seq BETWEEN ? AND ?"
    around = db.execute(query, (agent, journal, seq - 1, seq + 1))
    query = "SELECT seq, rho, delta FROM accounts WHERE agent = ? AND journal = ? AND account = ?"
    spent = db.execute(query, (agent, journal, release.account))  # both are asked before either is waited for
    return around.fetchall(), spent.fetchone()


def _place(release: Release) -> int:
    return min(release.link.seq, _MAX_SEQ)


def _fault(at: _Journal, release: Release, sealed: Sealed) -> Reason | None:
    """What is wrong with a release's place in its chain."""
    seq = _place(release)
    for place, found, before in at.around:
        if place == seq:
            return turned(seq, at.head_seq)
        if place == seq - 1 and found != release.link.prev_hash:
            return Reason.FORK
        if place == seq + 1 and before is not None and before != sealed.hash:
            return Reason.FORK
    if at.spent is not None:
        here = Fraction(at.spent[1]), Fraction(at.spent[2])
        there = release.cumulative.rho, release.cumulative.delta
        if is_fallen(there, here) if seq < at.spent[0] else is_fallen(here, there):
            return Reason.ROLLBACK
    return None


def _insert(db: Statements, at: _Journal, release: Release, sealed: Sealed) -> Action | None:
    journal, alarm = at.journal, None
    if journal is None:
        journal = fence.add_journal(db, at.agent, bytes.fromhex(release.link.incarnation))
        if at.reborn:
            alarm = Action.REINSTALLED
            fence.note(db, release.tenant, release.agent, alarm, reason=Reason.INCARNATION)
    seq = _place(release)
    chain = (at.agent, journal)
    key = (at.agent, at.plan, to_us(release.window_start))
    if any(place == seq + 1 and link is not None for place, _, link in at.around):
        db.execute("UPDATE releases SET prev = NULL WHERE agent=? AND journal=? AND seq=?", (*chain, seq + 1))
    # A link is kept until the release that it names is here; from then on the two hashes say the same. The row is given
    # as many bytes as its digest will have, so that it stays where it is.
    query = (
        "INSERT INTO releases (agent, plan, window_start_us, journal, seq, hash, digest, status, prev) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    known = seq == 1 or any(place == seq - 1 for place, _, _ in at.around)
    link = None if known else release.link.prev_hash
    status = None if release.status is Status.RELEASED else release.status.value
    db.execute(query, (*key, journal, seq, sealed.hash, bytes(16), status, link))
    query = (
        "INSERT INTO waiting SELECT max(id), ?, ? FROM releases WHERE agent = ? AND plan = ? AND window_start_us = ?"
    )
    db.execute(query, (sealed.header, sealed.payload, *key))
    query = "UPDATE journals SET head_seq = ?, releases = releases + 1 WHERE agent = ? AND journal = ?"
    db.execute(query, (max(at.head_seq, seq), *chain))
    query = (
        "UPDATE agents SET journal = ?, releases = releases + 1, last_window_end_us = "
        "CASE WHEN last_window_end_us < ? THEN ? ELSE last_window_end_us END WHERE no = ?"
    )
    end = to_us(release.window_end)
    db.execute(query, (journal, end, end, at.agent))
    query = (
        "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (agent, journal, account) DO UPDATE "
        "SET seq = excluded.seq, rho = excluded.rho, delta = excluded.delta WHERE excluded.seq > accounts.seq"
    )
    db.execute(query, (*chain, release.account, seq, str(release.cumulative.rho), str(release.cumulative.delta)))
    return alarm


def _number(db: Statements, release: Release) -> int:
    """The plan's number, given to it now if it has none; another writer may do so at the same time."""
    known, added = "SELECT no FROM plans WHERE hash = ?", "INSERT INTO plans (name, hash) VALUES (?, ?)"
    plan_hash = bytes(release.plan_hash)
    found = db.execute(known, (plan_hash,)).get
    if found is None:
        found = db.execute(f"{added} ON CONFLICT (hash) DO NOTHING RETURNING no", (release.plan, plan_hash)).get
    if found is None:
        found = db.execute(known, (plan_hash,)).get
    return int(found)


def _catch_up(db: Statements, at: _Journal, release: Release) -> Action | None:
    """After a restore: where an agent goes on, the windows between its old head and here are lost unless they come."""
    start = to_us(release.window_start)
    query = "SELECT from_us, until_us FROM behind WHERE agent = ? AND plan = ?"
    row: Any = db.execute(query, (at.agent, at.plan)).fetchone()
    if row is None or start < row[0] or (row[1] is not None and start >= row[1]):
        return None
    db.execute("UPDATE behind SET until_us = ? WHERE agent = ? AND plan = ?", (start, at.agent, at.plan))
    if row[1] is not None or start == row[0]:
        return None
    fence.note(db, release.tenant, release.agent, Action.BEHIND, reason="restored")
    return Action.BEHIND
