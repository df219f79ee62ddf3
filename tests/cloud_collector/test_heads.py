"""What an agent says of its journal is held against its chain: who has forgotten something is fenced (promise B6).

Each rule comes with the mutant that the same check must catch.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud_collector import chain, heads
from cloud_collector.gate import Gate, local
from cloud_collector.heads import Standing
from cloud_collector.landed import Action, Reason, Verdict
from cloud_collector.landing import Landing
from cloud_collector.service import CollectorService, Door
from edge_agg.contract.errors import MalformedRelease
from edge_agg.contract.head import MAX_PLACES, MAX_SPENT, Head
from edge_agg.contract.release import Charge
from edge_agg.contract.v1 import collector_pb2 as pb
from edge_agg.contract.v1.collector_pb2_grpc import CollectorServiceStub, add_CollectorServiceServicer_to_server
from tests.cloud_collector.conftest import land
from tests.cloud_collector.test_chain import MAKER, Journal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cloud_collector.config import Database
    from tests.cloud_collector.conftest import Made


def head_of(journal: Journal, *also: tuple[int, bytes], **changes: Any) -> Head:
    """What an agent with this journal says."""
    places = (*also, (journal.seq, journal.head)) if journal.seq else also
    head = Head(
        tenant="acme",
        agent="jfk",
        incarnation=journal.incarnation,
        places=places,
        spent={"aircraft": Charge(rho=journal.spent)},
    )
    return replace(head, **changes)


def test_a_journal_nobody_has_seen_is_unknown(landing: Landing) -> None:
    """Guarantee: a new agent is let in, and nothing is written about it."""
    assert landing.hear(head_of(Journal(MAKER))).standing is Standing.UNKNOWN
    assert (landing.agents(), landing.audit()) == ([], [])


def test_an_agent_that_is_as_far_or_further_is_let_in(landing: Landing) -> None:
    """Guarantee: what waits to be sent, or was lost on the way, is no offence."""
    journal = Journal(MAKER)
    made = journal.releases([0, 1])
    land(landing, *made)
    assert landing.hear(head_of(journal)).standing is Standing.KNOWN
    held = (journal.seq, journal.head)
    journal.release(2)
    assert landing.hear(head_of(journal)) == heads.Heard(standing=Standing.BEHIND, last_seq=2)
    assert landing.hear(head_of(journal, held)).standing is Standing.BEHIND
    assert landing.audit() == []


def a_rollback_is_fenced(landing: Landing) -> bool:
    """A journal that ends before the last release of it that is here."""
    journal = Journal(MAKER)
    first = journal.release(0)
    image = journal.clone(seed=1)
    land(landing, first, journal.release(1))
    said = landing.hear(head_of(image))
    confirmed = landing.hear(head_of(image, confirmed=True))
    return (
        (said.standing, said.last_seq) == (Standing.AHEAD, 2)
        and (confirmed.standing, confirmed.alarm) == (Standing.FENCED, Reason.ROLLBACK)
        and landing.hear(head_of(image)).standing is Standing.FENCED
        and land(landing, image.release(2)) == [Verdict.FENCED]
    )


def a_clone_is_fenced(landing: Landing) -> bool:
    """Two journals with one past: what one sent stands where the other has something else."""
    journal = Journal(MAKER)
    first = journal.release(0)
    twin = journal.clone(seed=1)
    land(landing, first, journal.release(1))
    twin.release(2)
    at_two = twin.seq, twin.head
    twin.release(3)
    behind = landing.hear(head_of(twin))
    return (
        (behind.standing, behind.last_seq) == (Standing.BEHIND, 2)
        and landing.hear(head_of(twin, at_two)).standing is Standing.FENCED
        and landing.agents()[0].fence is Reason.FORK
    )


def a_charge_that_fell_is_fenced(landing: Landing) -> bool:
    """The same releases, and an account that was charged less than they say."""
    journal = Journal(MAKER)
    land(landing, *journal.releases([0, 1]))
    less = head_of(journal, spent={"aircraft": Charge(rho=journal.spent - Fraction(1, 100))})
    return landing.hear(less).alarm is Reason.ROLLBACK


def no_fault(*given: Any) -> None:
    """Mutant: nothing is held against anybody."""


CHECKS: dict[Callable[[Landing], bool], tuple[Any, str, Any]] = {
    a_rollback_is_fenced: (heads, "_fault", no_fault),
    a_clone_is_fenced: (heads, "_fault", no_fault),
    a_charge_that_fell_is_fenced: (chain, "is_fallen", lambda earlier, later: False),
}


@pytest.mark.parametrize("check", CHECKS)
def test_who_has_forgotten_something_is_fenced(landing: Landing, check: Callable[[Landing], bool]) -> None:
    """Guarantee: before it draws; the audit log says who was fenced, and why, once."""
    assert check(landing)
    (line,) = landing.audit("acme", "jfk")
    assert (line.action, line.who) == (Action.FENCED, "collector")


@pytest.mark.parametrize("check", CHECKS)
def test_the_checks_catch_a_collector_that_does_not_compare(
    landing: Landing, monkeypatch: pytest.MonkeyPatch, check: Callable[[Landing], bool]
) -> None:
    monkeypatch.setattr(*CHECKS[check])
    assert not check(landing)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_an_honest_agent_said_is_never_held_against_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Guarantee: whenever the call arrives, before or after whichever releases, and however often."""
    journal = Journal(MAKER)
    said: list[Head | Made] = [head_of(journal)]
    for window in range(4):
        before = (journal.seq, journal.head)
        said.append(journal.release(window))
        said += [head_of(journal), head_of(journal, *([before] if before[0] else []))]
    order = data.draw(st.permutations(said))
    with contextlib.closing(Landing(tmp_path_factory.mktemp("honest") / "landing.sqlite")) as landing:
        for one in order:
            if isinstance(one, Head):
                assert landing.hear(one).standing is not Standing.FENCED
            else:
                assert land(landing, one) == [Verdict.ACCEPTED]
        assert landing.audit() == []


def test_a_call_that_arrives_late_would_fence_an_honest_agent_unasked(landing: Landing) -> None:
    """The mutant of the check above: without the second look, an old call is taken for a rollback."""
    journal = Journal(MAKER)
    land(landing, journal.release(0))
    late = head_of(journal)
    land(landing, journal.release(1))
    assert landing.hear(late).standing is Standing.AHEAD
    assert landing.hear(replace(late, confirmed=True)).standing is Standing.FENCED


def test_a_new_journal_is_shut_out_where_the_config_says_so(where: Path | Database) -> None:
    """Guarantee: before it has drawn; lifting the fence lets this one journal in, as after a push."""
    with contextlib.closing(Landing(where, new_incarnation="fence")) as landing:
        land(landing, Journal(MAKER).release(0))
        new = Journal(MAKER, "b" * 32, seed=1)
        heard = landing.hear(head_of(new))
        assert (heard.standing, heard.alarm) == (Standing.FENCED, Reason.INCARNATION)
        assert landing.unfence("acme", "jfk", who="ann", note="a new disk")
        assert landing.hear(head_of(new)).standing is Standing.KNOWN
        assert land(landing, new.release(1)) == [Verdict.ACCEPTED]


GOOD = head_of(Journal(MAKER), (1, bytes(32)), (2, bytes(32)))
MALFORMED: list[tuple[str, Callable[[pb.SayHeadRequest], object]]] = [
    ("no name", lambda m: m.ClearField("agent")),
    ("a name that cannot be shown", lambda m: setattr(m, "tenant", "a\nb")),
    ("no incarnation", lambda m: setattr(m, "incarnation", "?" * 32)),
    ("a place before the first", lambda m: setattr(m.places[0], "seq", 0)),
    ("a place beyond all", lambda m: setattr(m.places[1], "seq", 2**64 - 1)),
    ("places out of order", lambda m: setattr(m.places[0], "seq", 2)),
    ("a hash cut short", lambda m: setattr(m.places[0], "hash", b"x")),
    ("too many places", lambda m: m.places.extend([pb.Place(seq=9 + n, hash=bytes(32)) for n in range(MAX_PLACES)])),
    ("no rational", lambda m: setattr(m.spent[0].cumulative, "rho", "1/0")),
    ("no charge", lambda m: m.spent[0].ClearField("cumulative")),
    ("too many accounts", lambda m: m.spent.extend([spent(f"a{n}") for n in range(MAX_SPENT + 1)])),
]


def spent(account: str) -> pb.Spent:
    one = pb.Spent(account=account)
    one.cumulative.rho = one.cumulative.delta = "0/1"
    return one


@pytest.mark.parametrize(("what", "spoil"), MALFORMED, ids=[what for what, _ in MALFORMED])
def test_a_head_that_could_not_be_is_not_read(what: str, spoil: Callable[[pb.SayHeadRequest], object]) -> None:
    """Guarantee: of whatever bytes came, what is judged has names, places and charges that could be."""
    assert Head.read(GOOD.message()) == GOOD
    message = GOOD.message()
    spoil(message)
    with pytest.raises(MalformedRelease):
        Head.read(message)


def test_the_door_answers_and_refuses_by_the_table(where: Path | Database) -> None:
    """Guarantee: an answer for each standing; what could not be is refused as malformed."""

    async def go() -> None:
        journal = Journal(MAKER)
        with contextlib.closing(Landing(where)) as landing:
            door = Door(max_calls=8, threads=2, store_failed=lambda: None)
            service = CollectorService(landing, lambda *_, **__: None, door=door, max_batch=4)
            server = grpc.aio.server(interceptors=[Gate(local)])
            add_CollectorServiceServicer_to_server(service, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = CollectorServiceStub(channel)
                new = await stub.SayHead(head_of(journal).message())
                image = journal.clone(seed=1)
                await landing.land([one.pair for one in journal.releases([0, 1])])
                known = await stub.SayHead(head_of(journal).message())
                ahead = await stub.SayHead(head_of(image).message())
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await stub.SayHead(pb.SayHeadRequest(tenant="acme"))
                fenced = await stub.SayHead(head_of(image, confirmed=True).message())
            await server.stop(0)
            door.close()
        assert [one.standing for one in (new, known, ahead, fenced)] == [
            pb.STANDING_UNKNOWN,
            pb.STANDING_KNOWN,
            pb.STANDING_AHEAD,
            pb.STANDING_FENCED,
        ]
        assert (known.last_seq, ahead.last_seq) == (2, 2)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(go())
