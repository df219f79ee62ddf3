"""What an account may still lose, whatever became of the plans and the config that charged it before."""

from __future__ import annotations

import asyncio
from contextlib import closing
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from edge_agg.accounts import budget_for, promised
from edge_agg.assembly import build
from edge_agg.audit.books import open_books
from edge_agg.audit.recount import recount
from edge_agg.config import discovery_of, load
from edge_agg.contract.plan import parse_plan, plan_hash
from edge_agg.contract.release import Charge
from edge_agg.doctor.examine import examine
from edge_agg.errors import BudgetExhausted, ConfigInvalid
from edge_agg.journal import Journal
from edge_agg.privacy.ledger import Budget, Entry, check_room
from edge_agg.privacy.noise import rho_within
from edge_agg.report.check import check
from tests.fakes import DAY, MONDAY, FakeClock, FakeCollector, small_plan_text, write_config

if TYPE_CHECKING:
    from pathlib import Path

PLAN = parse_plan(small_plan_text())
SOME = Charge(rho=Fraction(1, 100), delta=Fraction(1, 10**7))


def charge(home: Path, *charges: Charge, start: int = 0, account: str = "people") -> None:
    """Charge so many days in a row."""
    with closing(Journal.open(home / "state", "node", now=MONDAY)) as journal:
        for day, one in enumerate(charges, start):
            entry = Entry(window_start=MONDAY + day * DAY, charge=one)
            journal.charge(account=account, plan_hash=plan_hash(PLAN), name=PLAN.name, text="", entry=entry)


def budget(config: Path) -> Budget:
    """The only account's, beside its journal."""
    loaded, plans = load(config)
    with closing(Journal.read(config.parent / "state", "node")) as journal:
        return budget_for(loaded.account[0], plans, journal)


def overruns(config: Path) -> list[str]:
    """What the audit says of the account."""
    loaded, _ = load(config)
    with open_books(config.parent / "state") as books:
        found = recount(books, promised(loaded)).differences
    return [one.problem for one in found if one.where == "account people"]


def test_delta_that_discovery_took_stays_set_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An account whose last discovering plan is gone has room still, and its books follow.

    Mutant: what was charged is not looked at; every span with a discovered key is then over.
    """
    charge(tmp_path, *[SOME] * 10)
    config = write_config(tmp_path)
    kept = budget(config)
    assert kept.delta >= 10 * SOME.delta
    assert kept.rho == rho_within(20.0, 1e-5 - float(kept.delta))
    entries = [Entry(window_start=MONDAY + day * DAY, charge=SOME) for day in range(10)]
    new = Entry(window_start=MONDAY + 10 * DAY, charge=Charge(rho=SOME.rho))
    check_room(kept, entries, new)
    assert overruns(config) == []
    monkeypatch.setattr("edge_agg.accounts.discovery_of", lambda table, plans, _charged: discovery_of(table, plans))
    with pytest.raises(BudgetExhausted):
        check_room(budget(config), entries, new)
    assert len(overruns(config)) == 1


def test_discovery_gets_no_more_than_it_took(tmp_path: Path) -> None:
    """The delta that stays set apart pays for nothing new where no plan discovers keys."""
    charge(tmp_path, SOME)
    kept = budget(write_config(tmp_path))
    with pytest.raises(BudgetExhausted):
        check_room(kept, [Entry(window_start=MONDAY, charge=SOME)], Entry(window_start=MONDAY + DAY, charge=SOME))


@pytest.mark.parametrize(("written", "kept"), [(None, 5e-6), (1e-8, 1e-8), (2e-6, 2e-6)])
def test_what_is_written_or_asked_for_is_kept_where_it_is_more(
    tmp_path: Path, written: float | None, kept: float
) -> None:
    """Half of delta for a plan that discovers keys, or what is written, also where more was charged before."""
    charge(tmp_path, SOME)
    found = budget(write_config(tmp_path, small_plan_text(discover=1e-9), discovery=written))
    assert found.delta == Fraction(kept)


def test_the_first_plan_that_discovers_keys_makes_no_old_charge_an_overrun(tmp_path: Path) -> None:
    """A span that was full before any key was discovered keeps its promise, which was made without discovery."""
    full = rho_within(20.0, 1e-5)
    charge(tmp_path, Charge(rho=full))
    config = write_config(tmp_path, small_plan_text(discover=1e-9))
    assert budget(config).rho < full
    assert overruns(config) == []
    charge(tmp_path, SOME, start=365)
    assert overruns(config) == []


def test_a_span_that_is_full_has_no_room_for_discovery(tmp_path: Path) -> None:
    """Mutant of the charges: a discovered key in a span that rho had filled at the whole delta is an overrun."""
    charge(tmp_path, Charge(rho=rho_within(20.0, 1e-5)), SOME)
    assert len(overruns(write_config(tmp_path, small_plan_text(discover=1e-9)))) == 1
    charge(tmp_path, *[Charge(rho=Fraction(0), delta=Fraction(1, 10**5))], start=2)
    assert len(overruns(write_config(tmp_path, small_plan_text(discover=1e-9)))) == 1


def test_rho_and_delta_are_each_half_over(tmp_path: Path) -> None:
    """A span within delta, and within rho at the whole of delta, but not at what discovery leaves, is an overrun."""
    rho = rho_within(20.0, 5e-6)
    charge(tmp_path, Charge(rho=rho, delta=Fraction(1, 200_000)))
    assert overruns(write_config(tmp_path)) == []
    charge(tmp_path, Charge(rho=Fraction(1, 1000)), start=1)
    assert len(overruns(write_config(tmp_path))) == 1


def started(config: Path) -> str:
    """Build the agent, and let it go; what it refuses to start for, if it does."""

    async def live() -> None:
        loaded, plans = load(config)
        build(loaded, plans, clock=FakeClock(MONDAY), wire=FakeCollector()).journal.close()

    try:
        asyncio.run(live())
    except ConfigInvalid as error:
        return str(error)
    return ""


def test_a_charged_account_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: the same population under a new name has no new budget; the agent does not start, and `check` says why.

    Mutant: the journal's charges are not looked at.
    """
    config = write_config(tmp_path)
    charge(tmp_path, SOME)
    text = config.read_text()
    assert started(config) == ""
    config.write_text(text.replace('"people"', '"persons"'))
    refused = started(config)
    assert refused.startswith("$.account: the journal has charges of account people, which the config does not name")
    with pytest.raises(ConfigInvalid, match="charges of account people"):
        check(config, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "charged", lambda _: set())
        assert started(config) == ""
    config.write_text(text)
    assert started(config) == ""  # what was refused left the folder as it was


def let_others_pay(config: Path) -> None:
    """A second account like the first, which pays for all plans."""
    persons = '[[account]]\nname = "persons"\nprivacy_unit = "u"\nepsilon = 20.0\ndelta = 1e-5\nhorizon = "365d"\n'
    text = config.read_text().replace('account = "people"', 'account = "persons"')
    config.write_text(text.replace("[[source]]", f"{persons}\n[[source]]"))


def test_an_account_is_retired_by_taking_its_plans_away(tmp_path: Path) -> None:
    """Its table stays, and its charges with it; other plans are other accounts'."""
    config = write_config(tmp_path, small_plan_text(name="another"))
    charge(tmp_path, SOME)
    let_others_pay(config)
    assert [account.name for account in load(config)[0].account] == ["people", "persons"]
    assert started(config) == ""


def test_a_plan_that_two_accounts_have_paid_for_may_stay_with_either(tmp_path: Path) -> None:
    """It was moved before anybody looked: each has its charges, and no third comes in. Mutant: all must be the one."""
    config = write_config(tmp_path)
    charge(tmp_path, SOME)
    charge(tmp_path, SOME, SOME, start=1, account="persons")
    whole = config.read_text()
    let_others_pay(config)
    assert started(config) == ""
    with_both = config.read_text()
    config.write_text(with_both.replace('account = "persons"', 'account = "people"'))
    assert started(config) == ""
    config.write_text(whole)
    assert "charges of account persons" in started(config)


def test_a_plan_stays_with_the_account_that_it_was_charged_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A3: a plan that was charged is not paid for by another account. Mutant: only names are compared."""
    config = write_config(tmp_path)
    charge(tmp_path, SOME)
    let_others_pay(config)
    assert started(config) == "$.plan[0].account: the journal has charged this plan to account people"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "charged", lambda _: {("people", b"")})
        assert started(config) == ""


def test_a_doctor_names_an_account_that_keeps_the_agent_from_starting(tmp_path: Path) -> None:
    """The same sentence that the agent ends with. Mutant: the journal's charges are not looked at."""
    config = write_config(tmp_path)
    charge(tmp_path, SOME)
    assert [one for one in examine(config).findings if one.about == "accounts"] == []
    let_others_pay(config)
    found = [one.said for one in examine(config).findings if one.about == "accounts"]
    assert found == ["$.plan[0].account: the journal has charged this plan to account people"]
