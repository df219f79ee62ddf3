"""How long accounts last, in words: what the ledger admits, window by window, and what would make them last."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING

import pytest

from edge_agg.config import load
from edge_agg.contract.plan import parse_plan, plan_hash
from edge_agg.contract.release import Charge
from edge_agg.errors import BudgetExhausted, JournalFailed
from edge_agg.journal import Journal
from edge_agg.privacy.ledger import Entry, check_room
from edge_agg.privacy.measurement import compile_plan
from edge_agg.prospect import prospects
from tests.fakes import COUNT, MONDAY, WEEK, small_plan_text, write_config

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.contract.plan import Plan
    from edge_agg.prospect import Prospect


def one(config: Path, *, extra: tuple[Plan, str] | None = None, now: datetime = MONDAY) -> Prospect:
    """The only account of a config."""
    loaded, plans = load(config)
    (found,) = prospects(loaded, plans, now=now, extra=extra)
    return found


def charge(config: Path, plan: Plan, weeks: int) -> None:
    """A journal that has charged so many windows of a plan."""
    loaded, _ = load(config)
    journal = Journal.open(config.parent / "state", loaded.agent.name, now=MONDAY)
    for week in range(weeks):
        entry = Entry(window_start=MONDAY + week * WEEK, charge=compile_plan(plan).charge)
        journal.charge(account="people", plan_hash=plan_hash(plan), name=plan.name, text="", entry=entry)
    journal.close()


@pytest.mark.parametrize("charged", [0, 1, 3])
def test_the_budget_in_words_is_what_the_ledger_admits(tmp_path: Path, charged: int) -> None:
    """Guarantee: "n more weekly releases" is how many a ledger takes one by one, and the date where they end."""
    text = small_plan_text(epsilon=4.0)
    config = write_config(tmp_path, text, history=None)
    charge(config, parse_plan(text), charged)
    said = one(config)
    entries, left = list(said.entries), 0
    assert len(entries) == charged
    # Nothing is sealed, so the words begin at the window that the journal was created in.
    while True:
        entry = Entry(window_start=MONDAY + left * WEEK, charge=said.measurements[0].charge)
        try:
            check_room(said.budget, entries, entry)
        except BudgetExhausted:
            break
        entries.append(entry)
        left += 1
    assert 0 < left < 53
    assert said.lasts() == f"{left} more weekly releases of small, until {MONDAY + left * WEEK:%-d %b %Y}"
    assert said.spent().startswith("account people: epsilon ")
    assert said.spent().endswith(" of 20 spent in 365 days")


@pytest.mark.slow
def test_plans_share_an_account(tmp_path: Path) -> None:
    """Guarantee: all plans of an account are counted together, each with its own windows."""
    weekly, daily = small_plan_text(epsilon=3.0), small_plan_text(epsilon=0.2, name="fast", every="1d")
    alone = one(write_config(tmp_path, weekly, history=None))
    both = one(write_config(tmp_path, weekly, daily, history=None))
    assert " and " in both.lasts()
    assert "more daily releases of fast" in both.lasts()
    assert int(both.lasts().split()[0]) < int(alone.lasts().split()[0])


@pytest.mark.slow
def test_what_if_adds_a_plan(tmp_path: Path) -> None:
    """Guarantee: a plan that is not configured yet counts as if it were; one of the same name replaces the other."""
    weekly, daily = small_plan_text(epsilon=3.0), small_plan_text(epsilon=0.2, name="fast", every="1d")
    both = one(write_config(tmp_path, weekly, daily, history=None))
    asked = one(write_config(tmp_path, weekly, history=None), extra=(parse_plan(daily), "people"))
    assert asked.lasts() == both.lasts()
    cheaper = one(
        write_config(tmp_path, weekly, history=None), extra=(parse_plan(small_plan_text(epsilon=0.1)), "people")
    )
    assert cheaper.lasts() == "weekly releases of small never run out"
    assert cheaper.remedy() is None


@pytest.mark.parametrize("delta", ["1e-7", "5e-7"])
def test_a_delta_lowered_below_what_is_spent_is_said(tmp_path: Path, delta: str) -> None:
    """Guarantee: neither `check` nor `status` fails over an account whose delta cannot express what it lost."""
    config = write_config(tmp_path, history=None)
    charge(config, parse_plan(small_plan_text(discover=5e-7)), 1)
    config.write_text(config.read_text().replace("delta = 1e-5", f"delta = {delta}"))
    said = one(config)
    spent = [entry.charge.delta for entry in said.entries]
    assert Fraction(1, 10**7) < spent[0] <= Fraction(5e-7)
    if delta == "5e-7":
        said = replace(said, entries=[replace(said.entries[0], charge=Charge(delta=Fraction(5e-7)))])
    assert said.spent() == f"account people: more than delta {float(delta):g} can express spent in 365 days"


@pytest.mark.slow
def test_the_remedy_works(tmp_path: Path) -> None:
    """Guarantee: with what is advised written into the plan, the account never runs out."""
    found = one(write_config(tmp_path, small_plan_text(epsilon=4.0), history=None))
    remedy = found.remedy()
    assert remedy is not None
    assert remedy.startswith("small asks for ")
    slower = remedy.split("window.every = ")[1].split(" ")[0]
    cheaper = float(remedy.split("epsilon ")[1].split(" ")[0])
    for text in (small_plan_text(epsilon=4.0, every=slower), small_plan_text(epsilon=cheaper)):
        assert one(write_config(tmp_path, text, history=None)).lasts().endswith("never run out")


def test_old_charges_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: where what was charged before fills an account, no change of its plans is advised, and the date holds.

    The date is where a ledger that takes every window that fits refuses the last one. Mutant: the plans are asked to
    slow down, which helps nothing.
    """
    cheap = small_plan_text(epsilon=1.0)
    config = write_config(tmp_path, cheap, history=None)
    charge(config, parse_plan(small_plan_text(epsilon=10.0)), 3)
    said = one(config)
    entries, refused = list(said.entries), list[datetime]()
    for week in range(150):
        entry = Entry(window_start=MONDAY + week * WEEK, charge=said.measurements[0].charge)
        try:
            check_room(said.budget, entries, entry)
        except BudgetExhausted:
            refused.append(entry.window_start)
        else:
            entries.append(entry)
    assert 10 < len(refused) < 60
    remedy = said.remedy()
    assert remedy is not None
    assert f"up to that of {refused[-1]:%-d %b %Y}. Wait" in remedy
    soon = replace(said, until=refused[-1]).remedy()
    assert soon is not None
    assert f"up to that of {refused[-2]:%-d %b %Y}. Wait; after it they last for the rest of the history." in soon
    monkeypatch.setattr("edge_agg.prospect.lasts_for_ever", lambda *_: False)
    assert "in place of" not in remedy
    assert "in place of" in (said.remedy() or "")


@pytest.mark.slow
def test_a_history_ends_the_windows(tmp_path: Path) -> None:
    """Guarantee: an account only has to last as long as its history."""
    short = one(write_config(tmp_path, small_plan_text(epsilon=4.0)))
    assert short.lasts() == "weekly releases of small last for all of its history, to 4 Feb 2013"
    assert short.remedy() is None
    tight = one(write_config(tmp_path, small_plan_text(epsilon=15.0)))
    assert "until " in tight.lasts()
    assert tight.remedy() is not None


@pytest.mark.slow
def test_a_history_that_is_closed_lasts_no_longer(tmp_path: Path) -> None:
    """Guarantee: once its last window closed, nobody is told that the releases last: some may have been exhausted.

    Mutant: what is left of a closed history, which is nothing, always finds room.
    """
    said = one(write_config(tmp_path, small_plan_text(epsilon=15.0)))
    assert said.until is not None
    closed = replace(said, demands=[replace(demand, start=said.until) for demand in said.demands])
    assert closed.lasts() == "its history, to 4 Feb 2013, is closed: nothing more is charged"
    assert closed.remedy() is None
    last = replace(said, demands=[replace(demand, start=said.until - WEEK) for demand in said.demands])
    assert "is closed" not in last.lasts()


def test_a_period_that_is_paid_is_not_counted_again(tmp_path: Path) -> None:
    """Guarantee: the windows of a period that its first one paid for cost nothing more."""
    text = small_plan_text(COUNT, epsilon=4.0).replace(
        "max_rows_per_partition = 2", 'max_rows_per_partition = 2\nmax_windows = 1\nperiod = "28d"'
    )
    config, plan = write_config(tmp_path, text, history=None), parse_plan(text)
    first = next(one(config).demands[0].entries())
    assert first.through is not None
    journal = Journal.open(tmp_path / "state", "node", now=MONDAY)
    earlier = replace(first, window_start=first.window_start - WEEK)
    journal.charge(account="people", plan_hash=plan_hash(plan), name="small", text="", entry=earlier)
    journal.close()
    paid = one(config).demands[0]
    assert paid.paid_through == first.through
    assert next(paid.entries()).window_start == first.through + WEEK


def test_a_plan_that_is_new_to_an_old_journal_begins_now(tmp_path: Path) -> None:
    """Guarantee: `--what-if` counts the windows that the plan will have. Mutant: those since the journal was made."""
    weekly, daily = small_plan_text(epsilon=1.0), small_plan_text(epsilon=0.1, name="fast", every="1d")
    config, now = write_config(tmp_path, weekly, history=None), MONDAY + 20 * WEEK
    Journal.open(tmp_path / "state", "node", now=MONDAY).close()
    asked = one(config, extra=(parse_plan(daily), "people"), now=now)
    assert [demand.start for demand in asked.demands] == [now, now]
    journal = Journal.open(tmp_path / "state", "node", now=MONDAY)
    journal.note_first_run(plan_hash(parse_plan(weekly)), MONDAY + WEEK)
    journal.close()
    assert [demand.start for demand in one(config, now=now).demands] == [MONDAY + WEEK]


def test_an_account_that_nobody_charges(tmp_path: Path) -> None:
    """It lasts."""
    config = write_config(tmp_path, small_plan_text())
    extra = '\n[[account]]\nname = "spare"\nprivacy_unit = "u"\nepsilon = 1.0\ndelta = 1e-6\nhorizon = "30d"\n'
    config.write_text(config.read_text() + extra)
    loaded, plans = load(config)
    _, spare = prospects(loaded, plans, now=MONDAY)
    assert (spare.lasts(), spare.remedy()) == ("no plan charges it", None)
    assert "epsilon 0.000 of 1 spent in 30 days" in spare.spent()


def test_without_a_journal_it_begins_now(tmp_path: Path) -> None:
    """Guarantee: looking creates nothing; a broken journal is not passed over."""
    now = datetime(2026, 5, 6, tzinfo=UTC)
    found = one(write_config(tmp_path, history=None), now=now)
    assert found.demands[0].start == datetime(2026, 5, 4, tzinfo=UTC)
    assert not (tmp_path / "state").exists()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(JournalFailed):
        one(write_config(tmp_path, history=None))
