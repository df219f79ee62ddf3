"""The roll call in SQL against the rules in `absence.py`, over random small fleets; and what the landing remembers."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_collector import roll_call
from cloud_collector.absence import END, Due, Known, Standing, standing
from cloud_collector.attendance import expected_of
from cloud_collector.errors import StoreFailed
from cloud_collector.landed import Action
from cloud_collector.landing import Landing
from cloud_collector.plans import RegisteredPlan
from cloud_collector.register import Expectation
from edge_agg.contract.release import Status
from tests.cloud_collector.rolls import (
    MAKER,
    STATUSES,
    WEEK_US,
    WINDOWS,
    Agent,
    ask,
    contact,
    due,
    start_us,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cloud_collector.config import Database
    from tests.cloud_collector.postgres import Postgres

STEPS = st.tuples(st.sampled_from(STATUSES), st.booleans(), st.integers(0, 3).map(bool))
"""One window's status; whether the agent passes it in silence; whether its release arrives."""
AGENTS = st.fixed_dictionaries(
    {
        "steps": st.lists(STEPS, max_size=WINDOWS),
        "heard": st.none() | st.integers(0, 9),
        "fenced": st.integers(0, 4).map(lambda n: n == 0),
        "named": st.sampled_from(["config", "told", "nobody"]),
        "span": st.tuples(st.integers(-1, 4), st.integers(2, 8) | st.none()),
    }
)
Drawn = dict[str, Any]


FLEETS = {
    "fleet": st.lists(AGENTS, min_size=1, max_size=3),
    "now": st.integers(0, 9),
    "off": st.integers(0, WEEK_US - 1),
}


@settings(max_examples=60, deadline=None)
@given(**FLEETS)
def test_the_roll_call_says_what_the_rules_say(fleet: list[Drawn], now: int, off: int) -> None:
    """For any fleet, each agent's counts are those that the pure rules give, window by window, and so are the sums."""
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder) / "landing", fleet, now, off)


@pytest.mark.slow
def test_the_roll_call_on_a_server_says_what_the_rules_say(postgres: Postgres) -> None:
    """The same over PostgreSQL."""

    @settings(max_examples=25, deadline=None)
    @given(**FLEETS)
    def compared(fleet: list[Drawn], now: int, off: int) -> None:
        check(postgres.database(), fleet, now, off)

    compared()


def check(where: Path | Database, fleet: list[Drawn], now: int, off: int) -> None:
    with contextlib.closing(Landing(where)) as landing:
        agents = [arranged(landing, f"a{n}", one, off) for n, one in enumerate(fleet)]
        when = due(start_us(now) + off)
        called = landing.roll_call(ask([one.name for one in agents if one.named == "config"], now_us=when.now_us))
        facts = known_of(landing, *(one.name for one in agents))
        for one in agents:
            if one.named != "told":
                assert facts.get(("acme", one.name), Known()) == one.known
        wanted = by_the_rules(agents, when)
        assert {one.agent: +Counter(dict(one.counts)) for one in called.worst} == wanted
        assert +Counter(dict(called.counts)) == sum(wanted.values(), Counter())
        assert called.agents == len(wanted)
        assert called.fenced == sum(one.fenced and one.name in wanted for one in agents)


def known_of(landing: Landing, *agents: str) -> Mapping[tuple[str, str], Known]:
    """What the landing says is known of agents now."""
    with landing.known(bytes(MAKER.hash), MAKER.plan.name, "acme") as facts:
        return facts.of([("acme", agent) for agent in agents])


def arranged(landing: Landing, name: str, drawn: Drawn, off: int) -> Agent:
    """An agent with this history."""
    heard = None if drawn["heard"] is None else start_us(drawn["heard"]) + off
    since, until = drawn["span"]
    span = (start_us(since), END if until is None else start_us(until))
    agent = Agent(name, heard, fenced=drawn["fenced"], named=drawn["named"], span=span)
    for window, (status, skipped, arrives) in enumerate(drawn["steps"]):
        if not skipped:
            agent.seal(window, status)
            if arrives:
                agent.arrive(landing, len(agent.chain))
    agent.tell(landing)
    return agent


def by_the_rules(agents: Sequence[Agent], when: Due) -> dict[str, Counter[Standing]]:
    """The same, a window at a time, of those whom an answer expects too."""
    registered = RegisteredPlan(
        plan=MAKER.plan,
        hash=MAKER.hash,
        text=MAKER.text,
        nodes=tuple(one.name for one in agents if one.named == "config"),
        tenant="acme",
    )
    reported = {("acme", one.name): start_us(min(one.here)) for one in agents if one.here}
    expected = expected_of(
        registered, reported, {("acme", one.name): one.span for one in agents if one.named == "told"}
    )
    found: dict[str, Counter[Standing]] = {}
    for one in agents:
        since, until = expected.get(("acme", one.name), (END, END))
        windows = [n for n in range(WINDOWS) if since <= start_us(n) < until]
        if ("acme", one.name) not in expected:
            windows = sorted(one.here)
        if windows:
            said = {n: Standing(status.value) for n, status in one.here.items()}
            found[one.name] = Counter(standing(said.get(n), start_us(n), one.known, when) for n in windows)
    return found


SAID = (Status.VETOED, Status.VETOED, Status.LOST)
LATE_ON: list[Drawn] = [
    {"steps": [(Status.RELEASED, True, True)] + [(Status.RELEASED, False, True)] * 2, "heard": 3, "fenced": False},
    {"steps": [(one, False, True) for one in SAID], "heard": None, "fenced": False},
    {"steps": [(Status.EXHAUSTED, False, True)], "heard": 2, "fenced": True},
    {"steps": [(Status.RELEASED, False, n != 1) for n in range(4)], "heard": None, "fenced": False},
    {"steps": [(Status.RELEASED, n == 1, True) for n in range(4)], "heard": None, "fenced": False},
    {"steps": [(Status.RELEASED, False, n > 0) for n in range(2)], "heard": None, "fenced": False},
    {"steps": [], "heard": 4, "fenced": False},
]
for _one in LATE_ON:
    _one.update(named="config", span=(0, 6))


@pytest.mark.parametrize(
    ("part", "broken"),
    [
        ("CASE WHEN passed_us > lives_us", "CASE WHEN passed_us > :ever"),  # time is looked at before the chain
        ("WHEN NOT EXISTS", "WHEN 0 = 1 AND NOT EXISTS"),  # a chain may begin anywhere
        ("coalesce(heard_us - :reach + 1, :far)", ":far"),  # nobody is ever heard of
        ("CASE WHEN fence IS NOT NULL THEN", "CASE WHEN 0 = 1 THEN"),  # a fence says nothing
        ("status = 'vetoed'", "status = 'exhausted'"),
        ("status = 'exhausted'", "status = 'lost'"),
        ("status = 'lost'", "status = 'vetoed'"),
        ("r.seq + 1", "r.seq + 2"),  # a hole is overlooked
        (":overdue", ":far"),  # nothing is ever overdue
    ],
)
def test_the_comparison_catches(part: str, broken: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guarantee of the tests above: each rule broken in the SQL shows."""
    check_all(tmp_path / "sound")
    assert part in roll_call._ROLL
    monkeypatch.setattr(roll_call, "_ROLL", roll_call._ROLL.replace(part, broken))
    with pytest.raises(AssertionError):
        check_all(tmp_path / "broken")


def check_all(folder: Path) -> None:
    check(folder / "six", LATE_ON, 6, 5)
    check(folder / "three", LATE_ON, 3, 5)


def test_the_worst_come_first_and_only_so_many(landing: Landing) -> None:
    """Fenced ones, then those with most windows lost or offline; the sums still count everybody."""
    for n in range(5):
        agent = Agent(f"a{n}", fenced=n == 4)
        for window in range(n):
            agent.seal(window)
            agent.arrive(landing, window + 1)
        agent.tell(landing)
    called = landing.roll_call(ask([f"a{n}" for n in range(5)], worst=3))
    assert [one.agent for one in called.worst] == ["a4", "a0", "a1"]
    assert (called.agents, called.fenced, called.counts[Standing.RELEASED]) == (5, 1, 10)
    one = landing.roll_call(ask([f"a{n}" for n in range(5)], agent="a2"))
    assert [(found.agent, found.counts[Standing.OFFLINE]) for found in one.worst] == [("a2", 4)]


def test_an_agent_that_nobody_expects_is_told_apart(landing: Landing) -> None:
    """What it sent counts, what it did not send is no absence."""
    for name in ("known", "stray"):
        agent = Agent(name)
        agent.seal(1)
        agent.arrive(landing, 1)
    found = {one.agent: one for one in landing.roll_call(ask(["known"])).worst}
    assert (found["known"].expected, found["stray"].expected) == (True, False)
    assert +Counter(dict(found["stray"].counts)) == {Standing.RELEASED: 1}


def test_that_one_is_expected_no_longer_names_nobody(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the roster is learned, a span that ends is the end of one agent's, and the others stay expected.

    Mutant: a span that ends names somebody, so that everybody else's silence is well.
    """
    for name in ("gone", "silent"):
        agent = Agent(name, named="told" if name == "gone" else "nobody", span=(start_us(1), start_us(3)))
        for window in (1, 2):
            agent.seal(window)
            agent.arrive(landing, window)
        agent.tell(landing)

    def offline() -> dict[str, int]:
        return {one.agent: one.counts[Standing.OFFLINE] for one in landing.roll_call(ask()).worst}

    assert offline() == {"gone": 0, "silent": 3}
    with landing.known(bytes(MAKER.hash), MAKER.plan.name, "acme") as facts:
        assert facts.reported() == {("acme", "gone"): start_us(1), ("acme", "silent"): start_us(1)}
    monkeypatch.setattr(roll_call, "_ROLL", roll_call._ROLL.replace("WHERE until_us = :ever", ""))
    assert offline() == {"gone": 0, "silent": 0}


def test_a_restored_hole_is_lost_and_holds_up_nothing(landing: Landing) -> None:
    """What was acked before a restore never comes again: lost, and windows passed after it are too."""
    agent = Agent("a", heard_us=start_us(50))
    for window in (0, 1, 2, 4):
        agent.seal(window)
    agent.arrive(landing, 1)
    landing._db.execute("INSERT INTO behind SELECT no, 1, 0, ?, ? FROM agents", (start_us(1), start_us(2)))
    agent.arrive(landing, 3)
    agent.arrive(landing, 4)
    agent.tell(landing)
    called = landing.roll_call(ask(["a"]))
    assert +Counter(dict(called.counts)) == {Standing.RELEASED: 3, Standing.LOST: 2, Standing.LATE: 1}
    assert called.worst[0].behind


def test_the_last_contact_is_kept(landing: Landing) -> None:
    """Later goes before earlier, in whatever order workers tell it; a certificate's end stays until another is seen."""
    landing.note_contacts([contact("a", 5, 70), contact("b", 5)])
    landing.note_contacts([contact("a", 9), contact("b", 4, 80)])
    found = {one.agent: one for one in landing.roll_call(ask(["a", "b", "c"])).worst}
    assert {name: (one.heard_us, one.certificate_ends_us) for name, one in found.items()} == {
        "a": (9, 70),
        "b": (5, None),
        "c": (None, None),
    }


def test_who_is_expected_stands_in_the_audit_log(landing: Landing) -> None:
    """The last word holds; each is on record with who said it."""
    told = Expectation(tenant="acme", plan="flight_delays", agent="jfk", since_us=0, until_us=END)
    landing.expect([told], who="ada")
    over = Expectation(tenant="acme", plan="flight_delays", agent="jfk", since_us=0, until_us=start_us(1))
    landing.expect([over], who="bob")
    assert landing.expected() == landing.expected("acme", "flight_delays") == [over]
    assert landing.expected("acme", "other") == []
    about = [(one.action, one.reason, one.who) for one in landing.audit()]
    assert about == [(Action.EXPECTED, "flight_delays", "ada"), (Action.UNEXPECTED, "flight_delays", "bob")]


def test_a_landing_of_version_2_is_taken_over(where: Path | Database, request: pytest.FixtureRequest) -> None:
    """Statuses of what still waits are known; what was sealed before counts as released."""
    agent = Agent("a")
    with contextlib.closing(Landing(where)) as landing:
        for window, status in enumerate((Status.LOST, Status.VETOED, Status.RELEASED)):
            agent.seal(window, status)
            agent.arrive(landing, window + 1)
        landing.mark_sealed({1: b"d" * 16})
    older = "DROP INDEX told; ALTER TABLE releases DROP COLUMN status; DROP TABLE contacts; DROP TABLE expected; "
    if isinstance(where, Path):
        with contextlib.closing(apsw.Connection(str(where))) as db:
            db.execute(older + "PRAGMA user_version = 2")
    else:
        request.getfixturevalue("postgres").run(older + "UPDATE meta SET version = 2", at=where)
    for _ in range(2):  # once is enough
        with contextlib.closing(Landing(where)) as landing:
            counts = landing.roll_call(ask(["a"], end_us=start_us(3))).counts
            assert +Counter(dict(counts)) == {Standing.RELEASED: 2, Standing.VETOED: 1}
            landing.note_contacts([contact("a", start_us(2))])


def test_a_landing_that_cannot_be_read_says_so(where: Path | Database, request: pytest.FixtureRequest) -> None:
    """Guarantee: a foreign exception does not leave the room."""
    with contextlib.closing(Landing(where)) as landing:
        if isinstance(where, Path):
            where.rename(where.with_name("gone"))
        else:
            request.getfixturevalue("postgres").run("DROP TABLE expected", at=where)
        with pytest.raises(StoreFailed):
            landing.roll_call(ask())
        with pytest.raises(StoreFailed):
            landing.expected()


def test_a_server_that_goes_away_under_a_question_says_so(postgres: Postgres) -> None:
    """Guarantee: the same where a question has begun, and asks for more."""

    def ask_more(landing: Landing) -> None:
        with landing.known(bytes(MAKER.hash), "flight_delays", None) as facts:
            postgres.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
            facts.of([("acme", "a")])

    with contextlib.closing(Landing(postgres.database())) as landing, pytest.raises(StoreFailed):
        ask_more(landing)


def test_what_is_known_is_of_one_moment(landing: Landing) -> None:
    """What lands, calls or is fenced after the question began is not in its answer, and is in the next."""
    agent, silent = Agent("a"), Agent("b")
    for one in (agent, silent):
        for window in (0, 2):
            one.seal(window)
        one.arrive(landing, 1)
    with landing.known(bytes(MAKER.hash), MAKER.plan.name, "acme") as facts:
        before = Known(passed_us=start_us(0))
        agent.arrive(landing, 2)
        landing.note_contacts([contact("b", start_us(3))])
        landing.fence("acme", "b", who="ada", note="")
        assert facts.of([("acme", "a"), ("acme", "b")]) == {("acme", "a"): before, ("acme", "b"): before}
    assert known_of(landing, "a", "b") == {
        ("acme", "a"): Known(passed_us=start_us(2)),
        ("acme", "b"): Known(passed_us=start_us(0), heard_us=start_us(3), fenced=True),
    }


def test_a_question_that_reads_late_shows(landing: Landing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee of the test above: without the transaction that it reads in, the comparison fails."""
    reading = landing._store.reading

    @contextlib.contextmanager
    def loose() -> Iterator[Any]:
        with reading() as db:
            db.execute("ROLLBACK")
            yield db

    monkeypatch.setattr(landing._store, "reading", loose)
    with pytest.raises((AssertionError, StoreFailed)):
        test_what_is_known_is_of_one_moment(landing)


def test_only_those_that_are_asked_about_are_looked_at(landing: Landing) -> None:
    """And of another tenant's agents nothing is said, whoever asks about them."""
    landing.note_contacts([contact(name, start_us(1)) for name in "abc"])
    with landing.known(bytes(MAKER.hash), MAKER.plan.name, "acme") as facts:
        assert set(facts.of([("acme", "a"), ("acme", "x")])) == {("acme", "a")}
    with landing.known(bytes(MAKER.hash), MAKER.plan.name, "globex") as facts:
        assert facts.of([("acme", "a")]) == {}


def test_nothing_is_known_of_a_plan_without_releases(landing: Landing) -> None:
    """Who is expected is offline once its windows are overdue, and late before."""
    landing.note_contacts([contact("a", start_us(2))])
    assert known_of(landing, "a", "b") == {("acme", "a"): Known(heard_us=start_us(2))}
    counts = landing.roll_call(ask(["a", "b"], now_us=start_us(4))).counts
    assert +Counter(dict(counts)) == {Standing.LATE: 1 + 3 + 3, Standing.OFFLINE: 2 + 3}
