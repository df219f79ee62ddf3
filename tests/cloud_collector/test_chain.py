"""Forks, rollbacks and clones are noticed, and an honest agent never is (promise B6); fences and who decided them.

Each rule comes with the mutant that the same check must catch. Not proved here: that a clone is noticed before it has
sent anything, which is the agent's own affair.
"""

from __future__ import annotations

import contextlib
from fractions import Fraction
from typing import TYPE_CHECKING

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_collector import chain
from cloud_collector.errors import StoreFailed
from cloud_collector.landed import Action, Reason, Verdict
from cloud_collector.landing import Landing
from edge_agg.contract.release import Charge, Link
from tests.cloud_collector.conftest import Maker, land
from tests.cloud_collector.test_landing import without_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cloud_collector.config import Database
    from tests.cloud_collector.conftest import Made

A, D, C, F = Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.CONFLICT, Verdict.FENCED
RHO = Fraction(1, 8)


class Journal:
    """A journal that chains its releases as an agent's does; a copy of it is a clone."""

    def __init__(self, maker: Maker, incarnation: str = "a" * 32, *, seed: int = 0) -> None:
        self.maker, self.incarnation, self.seed = maker, incarnation, seed
        self.seq, self.head, self.spent = 0, b"", Fraction(0)

    def clone(self, *, seed: int) -> Journal:
        """A copy that goes on by itself."""
        twin = Journal(self.maker, self.incarnation, seed=seed)
        twin.seq, twin.head, twin.spent = self.seq, self.head, self.spent
        return twin

    def release(self, window: int) -> Made:
        """The next release of the chain."""
        self.seq += 1
        self.spent += RHO
        link = Link(incarnation=self.incarnation, seq=self.seq, prev_hash=self.head)
        made = self.maker.make(
            seed=1000 * self.seed + window, window=window, link=link, cumulative=Charge(rho=self.spent)
        )
        self.head = made.sealed.hash
        return made

    def releases(self, windows: Sequence[int]) -> list[Made]:
        """The next releases, in order."""
        return [self.release(window) for window in windows]


MAKER = Maker()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_honest_agent_is_never_fenced(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the order of arrival, the repetitions, the batches, and re-installations in between."""
    first, second = Journal(MAKER), Journal(MAKER, "b" * 32, seed=1)
    made = first.releases(range(5)) + second.releases(range(5, 9))
    order = data.draw(st.permutations([*made, *data.draw(st.lists(st.sampled_from(made), max_size=6))]))
    cut = data.draw(st.integers(0, len(order)))
    path = tmp_path_factory.mktemp("honest") / "landing.sqlite"
    with contextlib.closing(Landing(path)) as landing:
        verdicts = land(landing, *order[:cut]) + land(landing, *order[cut:])
        assert set(verdicts) <= {A, D}
        assert verdicts.count(A) == len(made)
        (seen,) = landing.agents()
        assert (seen.fence, seen.missing, seen.journals) == (None, 0, 2)
        reinstalled = [one.action for one in landing.audit()]
        assert reinstalled == [Action.REINSTALLED], "each further journal is noted once"


def found(landing: Landing) -> Reason | None:
    return landing.agents()[0].fence


def a_fork_is_fenced(landing: Landing) -> bool:
    """A clone goes on from the same head: its next release has the same place and another hash."""
    journal = Journal(MAKER)
    land(landing, *journal.releases([0, 1]))
    twin = journal.clone(seed=1)
    one, other = journal.release(2), twin.release(3)
    return land(landing, one, other, journal.release(4)) == [A, F, F] and found(landing) is Reason.FORK


def test_a_fork_is_fenced(landing: Landing) -> None:
    assert a_fork_is_fenced(landing)
    (line,) = landing.audit("acme", "jfk")
    assert (line.action, line.reason, line.who) == (Action.FENCED, Reason.FORK, "collector")


@pytest.mark.parametrize("late", ["successor", "predecessor"])
def test_a_fork_is_fenced_whichever_of_two_neighbours_comes_first(landing: Landing, late: str) -> None:
    """Only the link between them tells: the places are both free."""
    journal = Journal(MAKER)
    base = journal.release(0)
    twin = journal.clone(seed=1)
    mine, _, next_of_twin = journal.release(1), twin.release(2), twin.release(3)
    pair = [mine, next_of_twin] if late == "successor" else [next_of_twin, mine]
    assert land(landing, base, *pair) == [A, A, F]
    assert found(landing) is Reason.FORK


def a_rollback_is_fenced(landing: Landing) -> bool:
    """A device set back to an old copy of its journal: its place lies behind the head, with another hash."""
    journal = Journal(MAKER)
    land(landing, *journal.releases([0, 1]))
    old = journal.clone(seed=1)
    land(landing, *journal.releases([2, 3]))
    return land(landing, old.release(4)) == [F] and found(landing) is Reason.ROLLBACK


def test_a_rollback_is_fenced(landing: Landing) -> None:
    assert a_rollback_is_fenced(landing)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_an_account_that_was_charged_less_than_before_is_fenced(landing: Landing, order: list[int]) -> None:
    """Whichever of the two comes first; the links between them are not here."""
    journal = Journal(MAKER)
    journal.seq, journal.head, journal.spent = 10, b"h" * 32, Fraction(5)
    early = journal.release(0)
    journal.seq, journal.spent = 20, Fraction(2)
    late = journal.release(1)
    pair = [early, late]
    assert land(landing, *(pair[i] for i in order)) == [A, F]
    assert found(landing) is Reason.ROLLBACK


def test_a_conflict_is_fenced_before_its_place_is_looked_at(landing: Landing) -> None:
    journal = Journal(MAKER)
    twin = journal.clone(seed=1)
    assert land(landing, journal.release(0), twin.release(0)) == [A, C]
    assert found(landing) is Reason.CONFLICT


@pytest.mark.parametrize("check", [a_fork_is_fenced, a_rollback_is_fenced])
def test_mutant_a_fork_that_is_accepted_is_caught(
    where: Path | Database, monkeypatch: pytest.MonkeyPatch, check: Callable[[Landing], bool]
) -> None:
    """The chain is not looked at, and a place may be taken twice."""
    without_keys(monkeypatch, "UNIQUE (agent, journal, seq)")
    monkeypatch.setattr(chain, "_fault", lambda *_: None)
    with contextlib.closing(Landing(where)) as landing:
        assert not check(landing)


def test_a_fence_holds_what_is_new_and_knows_what_is_old(where: Path | Database) -> None:
    """Also after a restart; after it was lifted honest releases go on, in the order in which they were held."""
    journal = Journal(MAKER)
    before, after = journal.releases([0, 1]), journal.releases([2, 3])
    with contextlib.closing(Landing(where)) as landing:
        land(landing, *before)
        assert landing.fence("acme", "jfk", who="ada", note="stolen?")
        assert not landing.fence("acme", "jfk", who="bob", note="late")
        assert land(landing, *before, *after) == [D, D, F, F]
    with contextlib.closing(Landing(where)) as landing:
        assert land(landing, *after) == [F, F]
        assert landing.unfence("acme", "jfk", who="bob", note="found again")
        assert land(landing, *after) == [A, A]
        lines = [(one.action, one.reason, one.who, one.note) for one in landing.audit("acme", "jfk")]
        assert lines == [("fenced", "person", "ada", "stolen?"), ("unfenced", "person", "bob", "found again")]
        assert landing.audit("acme", "lga") == []


def test_an_agent_nobody_has_seen_can_be_fenced(landing: Landing) -> None:
    assert landing.fence("acme", "jfk", who="ada", note="not yet")
    assert land(landing, Journal(MAKER).release(0)) == [F]
    assert [(one.agent, one.fence, one.releases) for one in landing.agents()] == [("jfk", Reason.PERSON, 0)]


def test_a_new_journal_waits_for_a_person_where_the_config_says_so(where: Path | Database) -> None:
    """The first journal of an agent is let in; another one after its fence was lifted, and no third."""
    old, new, third = (Journal(MAKER, letter * 32, seed=i) for i, letter in enumerate("abc"))
    with contextlib.closing(Landing(where, new_incarnation="fence")) as landing:
        held = new.release(1)
        assert land(landing, old.release(0), held) == [A, F]
        assert found(landing) is Reason.INCARNATION
        assert landing.unfence("acme", "jfk", who="ada", note="new card")
        assert land(landing, held, new.release(2), third.release(3)) == [A, A, F]


def test_a_chain_says_how_much_of_it_is_missing(landing: Landing) -> None:
    journal = Journal(MAKER)
    made = journal.releases(range(6))
    land(landing, made[0], made[5], made[2])
    (seen,) = landing.agents()
    assert (seen.last_seq, seen.missing) == (6, 3)
    land(landing, made[4], made[1], made[3])
    assert landing.agents()[0].missing == 0


def test_a_landing_of_version_1_is_taken_over(tmp_path: Path) -> None:
    """Keys, bytes, ids and fences stay; what came before has no place in a chain, and what follows starts one."""
    path = tmp_path / "landing.sqlite"
    made = [MAKER.make(seed=i, window=i) for i in range(3)]
    db = apsw.Connection(str(path))
    db.execute(VERSION_1)
    db.execute("INSERT INTO meta VALUES ('one')")
    for i, one in enumerate(made, start=4):
        release = one.release
        key = ("acme", "jfk", release.plan, bytes(release.plan_hash), int(release.window_start.timestamp() * 1e6))
        bytes_of = (None, None) if i == 4 else (one.sealed.header, one.sealed.payload)
        db.execute("INSERT INTO releases VALUES (?,?,?,?,?,?,?,?,?)", (i, *key, one.sealed.hash, *bytes_of))
    db.execute("INSERT INTO agents VALUES ('acme', 'jfk', ?, 3, 3, 5), ('acme', 'lga', ?, 1, 1, 5)", ("f" * 32,) * 2)
    db.execute("INSERT INTO fences VALUES ('acme', 'lga')")
    db.pragma("user_version", 1)
    db.close()
    with contextlib.closing(Landing(path)) as landing:
        assert landing.id == "one"
        assert [one.id for one in landing.unsealed(9)] == [5, 6]
        assert land(landing, *made, MAKER.make(seed=9), MAKER.make(agent="lga")) == [D, D, D, C, F]
        landing.unfence("acme", "jfk", who="ada", note="a test")
        assert land(landing, Journal(MAKER).release(7)) == [A]
        assert landing.unsealed(9)[-1].id > 6
    with pytest.raises(StoreFailed):
        _of_another_version(path)


def _of_another_version(path: Path) -> None:
    db = apsw.Connection(str(path))
    db.pragma("user_version", 77)
    db.close()
    Landing(path)


VERSION_1 = """
CREATE TABLE releases (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  tenant TEXT NOT NULL, agent TEXT NOT NULL, plan TEXT NOT NULL,
  plan_hash BLOB NOT NULL, window_start_us INTEGER NOT NULL,
  hash BLOB NOT NULL, header BLOB, payload BLOB,
  UNIQUE (tenant, agent, plan_hash, window_start_us)
) STRICT;
CREATE INDEX unsealed ON releases (id) WHERE header IS NOT NULL;
CREATE TABLE agents (
  tenant TEXT NOT NULL, agent TEXT NOT NULL, incarnation TEXT NOT NULL,
  last_seq INTEGER NOT NULL, releases INTEGER NOT NULL, last_window_end_us INTEGER NOT NULL,
  PRIMARY KEY (tenant, agent)
) STRICT;
CREATE TABLE fences (tenant TEXT NOT NULL, agent TEXT NOT NULL, PRIMARY KEY (tenant, agent)) STRICT;
CREATE TABLE meta (id TEXT NOT NULL) STRICT;
"""
