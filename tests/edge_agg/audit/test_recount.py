"""The journal gone over again: what an agent wrote follows, and nothing that was changed afterwards does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from edge_agg.audit import chain, charges
from edge_agg.audit.books import open_books
from edge_agg.audit.recount import recount
from edge_agg.contract.codec import to_us
from edge_agg.contract.v1 import release_pb2 as pb
from edge_agg.errors import JournalFailed
from edge_agg.journal import Journal
from edge_agg.privacy import noise
from edge_agg.privacy.ledger import Budget
from tests.edge_agg.audit.journals import NARROW, PROMISED, WIDE
from tests.fakes import MONDAY, WEEK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edge_agg.audit.recount import Recount


def test_what_an_agent_wrote_follows(found: Callable[[], Recount]) -> None:
    """Guarantee: charges of every kind, redrawn, lost, exhausted, acked and unfinished windows, and no difference."""
    said = found()
    assert said.differences == []
    assert (said.agent, said.releases) == ("node", 20)
    people, poor = said.accounts
    counts = {plan.name: plan for account in (people, poor) for plan in account.plans}
    assert dict(counts["small"].statuses) == {"released": 3, "lost": 1}
    assert (counts["small"].charges, counts["small"].redrawn, counts["small"].in_flight) == (7, 2, 1)
    assert dict(counts["narrow"].statuses) == {"released": 1, "exhausted": 3}
    assert counts["periodic"].charges == 4
    measurement = counts["periodic"].measurement
    assert measurement is not None
    assert counts["periodic"].charged == measurement.charge * 2
    assert people.charged.rho == sum(plan.charged.rho for plan in people.plans)


def test_it_is_read_while_the_agent_runs(folder: Path, found: Callable[[], Recount]) -> None:
    """Guarantee: an open journal is no obstacle, and is not changed."""
    before = (folder / "journal.sqlite").read_bytes()
    running = Journal.open(folder, "node", now=MONDAY)
    assert found().differences == []
    running.close()
    assert (folder / "journal.sqlite").read_bytes() == before


def test_a_snapshot_is_one_moment(folder: Path, spoil: Callable[..., None]) -> None:
    """Guarantee: a window that is charged and sealed while the books are read is seen whole, or not at all."""
    with open_books(folder) as books:
        spoil("DELETE FROM release WHERE seq=20")
        assert sum(1 for _ in books.releases) == 20


CHARGES = [
    pytest.param("UPDATE charge SET rho='1/1000000' WHERE attempt=1", "its plan says rho", id="less"),
    pytest.param("UPDATE charge SET rho='2' WHERE rowid=1", "is rho 2 (2), its plan says rho", id="more"),
    pytest.param("UPDATE charge SET delta='1/7' WHERE rowid=1", "delta 0.143 (1/7), its plan says", id="delta"),
    pytest.param("UPDATE charge SET rho='much' WHERE rowid=1", "is no amount", id="no number"),
    pytest.param("UPDATE charge SET rho='-1' WHERE rowid=1", "is no amount", id="negative"),
    pytest.param("UPDATE charge SET window_start_us=1<<62 WHERE rowid=1", "is for no moment", id="no moment"),
    pytest.param("DELETE FROM charge WHERE rowid=1", "was released, and nothing was charged for it", id="gone"),
    pytest.param("DELETE FROM charge WHERE rowid=1", "states a charge of rho", id="gone, stated"),
    pytest.param("DELETE FROM charge WHERE rowid=2", "which the charges never came to by then", id="gone, summed"),
    pytest.param("UPDATE charge SET attempt=3 WHERE rowid=1", "should be attempt 1", id="attempts"),
    pytest.param("UPDATE charge SET window_start_us=window_start_us+1 WHERE rowid=1", "no window begins", id="moved"),
    pytest.param("UPDATE charge SET account='other' WHERE rowid=1", "is charged to several accounts", id="accounts"),
    pytest.param("UPDATE charge SET account='other' WHERE rowid=1", "says another account than", id="said account"),
    pytest.param("UPDATE charge SET account='other' WHERE rowid=1", "the config names no such account", id="unknown"),
    pytest.param("UPDATE charge SET through_us=NULL WHERE through_us NOT NULL", "covers other windows", id="uncovered"),
    pytest.param("UPDATE charge SET through_us=through_us+604800000000", "covers other windows", id="covers more"),
    pytest.param("UPDATE plan SET text=replace(text, '1.0', '9.0')", "its text has another hash", id="plan text"),
    pytest.param("UPDATE plan SET text='{}'", "its text is not a plan", id="plan gone"),
    pytest.param('UPDATE plan SET text=replace(text, \'"plan"\', \'"x":1,"plan"\')', "is not a plan", id="plan field"),
    pytest.param("UPDATE plan SET name='other'", "its text has another name", id="plan name"),
    pytest.param("DELETE FROM plan", "there is no text of it to recompute from", id="plan row"),
]


@pytest.mark.parametrize(("statement", "said"), CHARGES)
def test_a_charge_that_was_changed_is_found(
    spoil: Callable[..., None], problems: Callable[[], Sequence[str]], statement: str, said: str
) -> None:
    """Guarantee: each way to change what was charged, or the plan that it is recomputed from, is said."""
    spoil(statement)
    assert any(said in problem for problem in problems()), problems()


RELEASES = [
    pytest.param("DELETE FROM release WHERE seq=3", "the chain has a gap", id="gap"),
    pytest.param("DELETE FROM release WHERE seq=3", "does not follow the release before it", id="link"),
    pytest.param("DELETE FROM release WHERE seq=3", "was passed over without a release", id="passed over"),
    pytest.param("UPDATE release SET hash=zeroblob(32) WHERE seq=3", "another hash than its header", id="hash"),
    pytest.param("UPDATE release SET payload=zeroblob(9) WHERE seq=3", "another payload than its header", id="payload"),
    pytest.param(
        "UPDATE release SET payload=NULL WHERE seq=3", "lost its payload before it was acked", id="no payload"
    ),
    pytest.param("UPDATE release SET status='lost' WHERE seq=3", "status than its row", id="status"),
    pytest.param("UPDATE release SET status='exhausted' WHERE seq=3", "is exhausted, and was charged", id="exhausted"),
    pytest.param("UPDATE release SET window_end_us=window_end_us+1 WHERE seq=3", "window or status than", id="window"),
    pytest.param("UPDATE release SET header=x'ff' WHERE seq=3", "a header that does not parse", id="header"),
    pytest.param("UPDATE journal SET incarnation='0'", "says another journal or agent", id="incarnation"),
    pytest.param("UPDATE journal SET agent='other'", "says another journal or agent", id="agent"),
]


@pytest.mark.parametrize(("statement", "said"), RELEASES)
def test_a_release_that_was_changed_is_found(
    spoil: Callable[..., None], problems: Callable[[], Sequence[str]], statement: str, said: str
) -> None:
    """Guarantee: each way to change a release's row is said."""
    spoil(statement)
    assert any(said in problem for problem in problems()), problems()


def spec(which: str, /, **changes: object) -> Callable[[Any], None]:
    """Change one vector of a header, or its selection."""

    def change(header: Any) -> None:
        made = header.selection if which == "selection" else header.vectors[0]
        for field, value in changes.items():
            setattr(made, field, value)

    return change


def charge(field: str, rho: str) -> Callable[[Any], None]:
    """Change what a header says was charged."""
    return lambda header: setattr(getattr(header, field), "rho", rho)


FORGED = [
    pytest.param(1, charge("charge", "1/7"), "states a charge of rho 0.142857", id="charge"),
    pytest.param(1, charge("charge", "x"), "states a charge that is no amount", id="no amount"),
    pytest.param(1, charge("cumulative", "1/7"), "which the charges never came to", id="cumulative"),
    pytest.param(19, charge("cumulative", "1/7"), "which the charges never came to", id="cumulative of many"),
    pytest.param(1, spec("vector", loss=1e-9), "the mechanism's map says", id="loss"),
    pytest.param(1, spec("vector", scale=0.5), "its mechanisms lose", id="scale"),
    pytest.param(1, spec("vector", scale=-1.0), "names a scale or a distance that none could be", id="no scale"),
    pytest.param(1, spec("vector", sensitivity=0.5), "its plan lets it move by", id="sensitivity"),
    pytest.param(1, spec("vector", mechanism=2), "another mechanism than its plan's", id="mechanism"),
    pytest.param(1, spec("vector", name="other"), "has other vectors than its plan's", id="vectors"),
    pytest.param(3, spec("selection", delta=1e-12), "the mechanism's map says", id="delta of keys"),
    pytest.param(3, spec("selection", threshold=1), "its mechanisms lose", id="threshold"),
    pytest.param(3, spec("selection", threshold=-1), "names a threshold that none could be", id="no threshold"),
    pytest.param(3, spec("selection", sensitivity=0.1), "its plan lets it move by", id="sensitivity of keys"),
    pytest.param(3, spec("selection", loss=1e-9), "selection of k: states a loss", id="loss of keys"),
    pytest.param(3, lambda header: header.ClearField("selection"), "has other vectors", id="no selection"),
    pytest.param(1, lambda header: setattr(header, "plan", "x"), "another plan or version", id="plan"),
    pytest.param(1, lambda header: setattr(header, "rows", 4), "has other cells", id="rows"),
    pytest.param(1, lambda header: setattr(header.bounds, "max_nodes", 9), "other bounds than", id="bounds"),
    pytest.param(1, lambda header: setattr(header, "seq", 7), "says another number in the chain", id="seq"),
    pytest.param(1, lambda header: header.ClearField("payload_sha256"), "values without being released", id="values"),
]


@pytest.mark.parametrize(("seq", "change", "said"), FORGED)
def test_a_release_that_was_sealed_anew_is_found(
    forge: Callable[..., None],
    problems: Callable[[], Sequence[str]],
    seq: int,
    change: Callable[[Any], None],
    said: str,
) -> None:
    """Guarantee: a whole chain is not believed; losses, sums and bounds are recomputed from plan and charges."""
    forge(seq, change)
    found = problems()
    assert any(said in problem for problem in found), found
    assert not any("chain has a gap" in problem or "does not follow" in problem for problem in found)


def test_a_forger_who_changes_nothing_is_not_accused(
    forge: Callable[..., None], problems: Callable[[], Sequence[str]]
) -> None:
    """The forger of these tests by itself breaks nothing."""
    forge(1, lambda _: None)
    assert problems() == []


def test_a_window_that_was_released_twice_is_found(
    forge: Callable[..., None], spoil: Callable[..., None], problems: Callable[[], Sequence[str]]
) -> None:
    """Guarantee: no plan goes back in time along the chain."""
    before = to_us(MONDAY - WEEK)
    forge(16, lambda header: setattr(header, "window_start_us", before))
    spoil("UPDATE release SET window_start_us=? WHERE seq=16", before)
    assert any("is for a window that was closed before" in problem for problem in problems())


def test_a_third_attempt_is_found(
    spoil: Callable[..., None], found: Callable[[], Recount], problems: Callable[[], Sequence[str]]
) -> None:
    """Guarantee: noise is drawn for a window twice at most."""
    assert found().differences == []
    spoil(
        "INSERT INTO charge SELECT account, plan_hash, window_start_us, 3, rho, delta, NULL FROM charge WHERE attempt=2"
    )
    assert any("one attempt more than the 2 that are allowed" in problem for problem in problems())


def test_a_budget_that_was_overrun_is_found(folder: Path) -> None:
    """Guarantee: every span of the horizon is added up, against what the config says now."""
    with open_books(folder) as books:
        said = recount(books, PROMISED | {"people": lambda _: Budget(rho=NARROW.rho, delta=WIDE.delta, horizon=WEEK)})
    assert [one.where for one in said.differences] == ["account people"]
    assert "in 7 days, and its budget is rho" in said.differences[0].problem


def test_an_audit_that_believes_a_stated_loss_would_be_caught(
    folder: Path, forge: Callable[..., None], problems: Callable[[], Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: a map that says what the release says, whatever its scale; half the noise then passes."""

    def half(header: Any) -> None:
        header.vectors[0].scale /= 2

    forge(1, half)
    assert any("its mechanisms lose" in problem for problem in problems())
    stated = {}
    with open_books(folder) as books:
        for row in books.releases:
            for made in pb.ReleaseHeader.FromString(row.header).vectors:
                stated[made.scale, made.sensitivity] = made.loss
    honest = noise.loss_of

    def believing(mechanism: Any, *, scale: float, sensitivity: float) -> float:
        return stated.get((scale, sensitivity), 0.0) or honest(mechanism, scale=scale, sensitivity=sensitivity)

    monkeypatch.setattr(noise, "loss_of", believing)
    assert problems() == []


def test_an_audit_that_believes_a_charge_would_be_caught(
    spoil: Callable[..., None], problems: Callable[[], Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: charges that are not compared with their plans; an attempt under way can then be made cheap unseen."""
    spoil("UPDATE charge SET rho='1/1000000' WHERE rowid=(SELECT max(rowid) FROM charge)")
    assert any("its plan says rho" in problem for problem in problems())
    monkeypatch.setattr(charges, "_plan_differences", lambda *_: [])
    assert problems() == []


def test_an_audit_without_the_chain_would_be_caught(
    spoil: Callable[..., None], problems: Callable[[], Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: links that are not looked at; an acked release of nothing but a header can be changed unseen."""
    spoil("UPDATE release SET hash=zeroblob(32) WHERE seq=20")
    assert problems() != []
    monkeypatch.setattr(chain, "_links", lambda *_: [])
    assert problems() == []


def test_books_that_are_no_journal(tmp_path: Path, folder: Path, spoil: Callable[..., None]) -> None:
    """Guarantee: a journal's failure, not a finding: nothing there, or a version that is not known here."""
    with pytest.raises(JournalFailed), open_books(tmp_path / "nowhere"):
        pass
    spoil("PRAGMA user_version=99")
    with pytest.raises(JournalFailed, match="version 99"), open_books(folder):
        pass
