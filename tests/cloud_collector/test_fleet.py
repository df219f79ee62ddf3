"""What an operator sees of a fleet: the plans, the worst agents, whom they expect; a large fleet floods nothing.

Not proved here: that each count is right (test_roll_call).
"""

from __future__ import annotations

import contextlib
import json
import tracemalloc
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from cloud_collector import board as page
from cloud_collector import expecting, roll_call
from cloud_collector.absence import END, Standing
from cloud_collector.board import MAX_PLANS, board
from cloud_collector.landing import Landing
from cloud_collector.overview import Overview, Wanted, as_json, look
from cloud_collector.plans import PlanRegistry
from edge_agg.contract.codec import from_us
from edge_agg.contract.release import Status
from tests.cloud_collector.conftest import PLAN
from tests.cloud_collector.crowd import write_crowd
from tests.cloud_collector.rolls import MAKER, Agent, contact, start_us
from tests.cloud_collector.typed import run

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

HOUR = timedelta(hours=1)
NOW = from_us(start_us(6)) + 3 * HOUR


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A collector that has taken releases of a small fleet; it does not run."""
    path = tmp_path / "collector.toml"
    path.write_text('[collector]\nlisten = "127.0.0.1:0"\ndata = "data"\n')
    nodes = ["good", "late", "gone", "lost", "shut", "strict", "poor"]
    PlanRegistry(tmp_path / "data" / "plans").add(PLAN, nodes, tenant="acme")
    with contextlib.closing(Landing(tmp_path / "data" / "landing.sqlite")) as landing:
        kinds = {"strict": Status.VETOED, "poor": Status.EXHAUSTED, "lost": Status.LOST}
        for name in [*nodes, "[red]stray"]:
            agent = Agent(name, heard_us=start_us(2 if name == "gone" else 6) + 7_200_000_000, fenced=name == "shut")
            for window in range({"gone": 2, "late": 5, "shut": 3}.get(name, 6)):
                agent.seal(window, kinds.get(name, Status.RELEASED) if window == 4 else Status.RELEASED)
                agent.arrive(landing, window + 1)
            agent.tell(landing)
        landing.note_contacts([contact("good", start_us(6) + 7_200_000_001, start_us(6) + 4 * 86_400_000_000)])
    return path


def seen(config: Path, **wanted: Any) -> Overview:
    """One look, a few hours after the sixth window was due."""
    registry = PlanRegistry(config.parent / "data" / "plans")
    with contextlib.closing(Landing(config.parent / "data" / "landing.sqlite")) as landing:
        return look(landing, registry.list(), Wanted(**wanted), now=NOW, grace=HOUR)


def shown(found: Overview, width: int = 160) -> str:
    """As on a terminal."""
    console = Console(width=width)
    with console.capture() as captured:
        console.print(board(found))
    return captured.get()


def test_each_standing_is_seen_of_the_agent_it_is_of(config: Path) -> None:
    """One agent of each kind: its one window that is not released counts as what it is, and the worst comes first."""
    found = seen(config)
    by_agent = {one.present.agent: +Counter(one.present.counts) for one in found.agents}
    six = {Standing.RELEASED: 6}
    assert by_agent == {
        "good": six,
        "[red]stray": six,
        "late": {Standing.RELEASED: 5, Standing.LATE: 1},
        "gone": {Standing.RELEASED: 2, Standing.OFFLINE: 4},
        "lost": {Standing.RELEASED: 5, Standing.LOST: 1},
        "shut": {Standing.RELEASED: 3, Standing.LATE: 3},
        "strict": {Standing.RELEASED: 5, Standing.VETOED: 1},
        "poor": {Standing.RELEASED: 5, Standing.EXHAUSTED: 1},
    }
    assert [one.present.agent for one in found.agents][:4] == ["shut", "gone", "lost", "late"]
    (line,) = found.plans
    assert (line.called.agents, line.called.absent, line.called.fenced, found.well) == (8, 4, 1, False)


def test_the_page_is_readable_and_takes_no_markup(config: Path) -> None:
    """Two tables, on 100 columns as well; names as they are; a certificate that ends soon, a fence, a stray say so."""
    text = shown(seen(config))
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "[red]stray" in lines
    assert lines["[red]stray"].endswith("nobody expects it")
    assert "FENCED: person" in lines["shut"]
    assert "3 d left" in lines["good"]
    assert "27 d ago" in lines["gone"] or "28 d ago" in lines["gone"]
    narrow = shown(seen(config), 100)
    assert "…" not in narrow
    assert "offline" in narrow


def test_filters_narrow_the_look(config: Path) -> None:
    """By tenant, plan and agent; by the number of windows, and by when they ended."""
    assert seen(config, tenant="globex").plans == seen(config, plan="other").plans == []
    (one,) = seen(config, agent="gone").agents
    assert (one.present.agent, one.present.heard_us) == ("gone", start_us(2) + 7_200_000_000)
    (line,) = seen(config, windows=2).plans
    assert sum(line.called.counts.values()) == 2 * 8
    (line,) = seen(config, until=from_us(start_us(2))).plans
    assert (line.called.counts[Standing.RELEASED], line.called.end_us) == (16, start_us(2))
    assert seen(config, until=from_us(start_us(2))).plans[0].called.absent == 0


def test_windows_that_nobody_could_have_closed_are_not_due(config: Path) -> None:
    """Not before end and lateness, nor before the plan's first release; without any release, one window is due."""
    (line,) = seen(config).plans
    assert (line.called.start_us, line.called.end_us) == (start_us(0), start_us(6))
    registry = PlanRegistry(config.parent / "data" / "plans")
    with contextlib.closing(Landing(config.parent / "other.sqlite")) as landing:
        found = look(landing, registry.list(), Wanted(), now=from_us(start_us(6)) + HOUR / 2, grace=HOUR)
    assert (found.plans[0].called.start_us, found.plans[0].called.end_us) == (start_us(4), start_us(5))


def test_the_command_speaks_to_people_machines_and_monitors(config: Path) -> None:
    """A page once where nobody looks at a terminal; JSON; exit code 4 on request only."""
    there = ("--config", config)
    page = run("fleet", *there)
    assert page.exit_code == 0, page.output
    assert "windows of acme that are due" in page.output
    said = json.loads(run("fleet", "--json", *there).output)
    assert {"at", "well", "plans", "worst"} == set(said)
    assert said["plans"][0]["windows"].keys() == {str(one) for one in Standing}
    assert run("fleet", "--check", *there).exit_code == 4
    chains = run("fleet", "chains", "good", *there).output.splitlines()
    assert len(chains) == 2
    assert chains[1].split()[3:6] == ["6", "6", "0"]


def test_who_is_expected_is_told_by_name_or_by_file(config: Path, tmp_path: Path) -> None:
    """From a window on, until another; a plan that is not registered is refused; the audit log has it."""
    there = ("--tenant", "acme", "--config", config)
    (tmp_path / "names").write_text("new-1\nnew-2\n\n")
    many = run(
        "fleet", "expect", "--plan", "flight_delays", "--file", tmp_path / "names", "--since", "2013-01-16", *there
    )
    assert many.output == "2 agents are expected\n"
    run("fleet", "unexpect", "gone", "--plan", "flight_delays", "--until", "2013-01-21", "--by", "ada", *there)
    with contextlib.closing(Landing(tmp_path / "data" / "landing.sqlite")) as landing:
        spans = {one.agent: (one.since_us, one.until_us) for one in landing.expected()}
        assert spans["new-1"][0] == spans["new-2"][0] == start_us(1)
        assert spans["gone"] == (0, start_us(2))
    agents = {one.present.agent: one.present.counts for one in seen(config).agents}
    assert +Counter(agents["gone"]) == {Standing.RELEASED: 2}
    assert +Counter(agents["new-1"]) == {Standing.OFFLINE: 5}
    assert "ada" in run("fleet", "list", "gone", "--config", config).output
    assert run("fleet", "expect", "x", "--plan", "nothing", *there).exit_code == 3
    assert run("fleet", "expect", "--plan", "flight_delays", *there).exit_code == 2
    assert run("fleet", "expect", "x" * 129, "--plan", "flight_delays", *there).exit_code == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--plan", "mistyped"), "no plan of this tenant and name"),
        (("--tenant", "globex"), "no plan of this tenant and name"),
        (("--agent", "nobody"), "nobody expects an agent of this name"),
        (("--agent", "good", "--tenant", "globex"), "no plan of this tenant and name"),
    ],
)
def test_a_name_that_is_mistyped_is_not_well(
    config: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor that asks about what does not exist is told so, and never that all is well.

    Mutant: a filter that matches nothing is an empty fleet, of which nothing is lost.
    """
    for more in ((), ("--check",), ("--json",)):
        found = run("fleet", *words, *more, "--config", config)
        assert (found.exit_code, said in found.output) == (3, True)
    monkeypatch.setattr("cloud_collector.overview.require_there", lambda *_: None)
    assert run("fleet", "--check", *words, "--config", config).exit_code == 0


def test_whoever_is_known_may_be_asked_about(config: Path) -> None:
    """Who reported though nobody expects it, who is expected and never reported, who is expected no longer."""
    told(config, "expect", "new")
    told(config, "unexpect", "new")
    for name in ("[red]stray", "new", "good"):
        assert run("fleet", "--agent", name, "--config", config).exit_code == 0


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    """A collector whose plan names nobody; `a` and `b` sent the second window to the fourth."""
    path = tmp_path / "collector.toml"
    path.write_text('[collector]\nlisten = "127.0.0.1:0"\ndata = "data"\n')
    PlanRegistry(tmp_path / "data" / "plans").add(PLAN, [], tenant="acme")
    with contextlib.closing(Landing(tmp_path / "data" / "landing.sqlite")) as landing:
        for name in "ab":
            agent = Agent(name)
            for window in (1, 2, 3):
                agent.seal(window)
                agent.arrive(landing, window)
    return path


def told(config: Path, *words: str) -> Result:
    """Change who is expected."""
    command, *names = words
    return run("fleet", command, *names, "--plan", "flight_delays", "--tenant", "acme", "--config", config)


def spans(config: Path) -> dict[str, tuple[int, int]]:
    """From when until when somebody said that agents are expected."""
    with contextlib.closing(Landing(config.parent / "data" / "landing.sqlite")) as landing:
        return {one.agent: (one.since_us, one.until_us) for one in landing.expected()}


def test_an_agent_leaves_a_learned_roster_alone(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was expected from its first window on; the others stay expected, and whom nobody expects cannot leave.

    Mutant: an agent that nobody named was expected from 1970 on.
    """
    assert told(learned, "unexpect", "a", "--until", "2013-02-04").output == "1 agents are expected no longer\n"
    assert spans(learned) == {"a": (start_us(1), start_us(4))}
    offline = {one.present.agent: one.present.counts[Standing.OFFLINE] for one in seen(learned).agents}
    assert offline == {"a": 0, "b": 2}
    assert not seen(learned).well
    refused = told(learned, "unexpect", "b", "mistyped")
    assert (refused.exit_code, "nobody expects 'mistyped'" in refused.output) == (3, True)
    assert spans(learned).keys() == {"a"}

    monkeypatch.setattr("cloud_collector.whereabouts.Whereabouts.reported", lambda _: {("acme", "b"): 0})
    told(learned, "unexpect", "b", "--until", "2013-02-04")
    assert spans(learned)["b"][0] != start_us(1)


def test_the_first_name_is_said_to_end_a_learned_roster(learned: Path) -> None:
    """Who is expected no longer because others are named is counted, and so is the way back told."""
    first = told(learned, "expect", "new", "a")
    assert "1 agents that have reported are expected no longer" in first.output
    assert spans(learned)["a"] == (start_us(1), END)  # as it was expected before
    assert told(learned, "expect", "newer").output == "1 agents are expected\n"
    assert told(learned, "unexpect", "new", "newer").output == "2 agents are expected no longer\n"
    assert "whoever has reported is expected" in told(learned, "unexpect", "a").output


def test_a_list_that_is_given_again_moves_nobody(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is expected stays so from the same window on, and until the same; a second span is asked for by name.

    Mutant: whoever is named again is expected from now on, and what they missed is forgotten.
    """
    told(config, "expect", "old", "--since", "2013-01-16")
    told(config, "expect", "old", "good", "new")
    assert (spans(config)["old"], spans(config)["good"]) == ((start_us(1), END), (0, END))
    assert spans(config)["new"][0] > start_us(50)
    for until in (["--until", "2013-01-21"], []):
        told(config, "unexpect", "old", *until)
        assert spans(config)["old"] == (start_us(1), start_us(2))
    again = told(config, "expect", "newest", "old")
    assert (again.exit_code, "expected once, and no longer: 'old'" in again.output) == (3, True)
    assert "newest" not in spans(config)
    told(config, "expect", "old", "--since", "2013-01-28")
    assert spans(config)["old"] == (start_us(3), END)

    monkeypatch.setattr(expecting, "_roster", lambda *_: {})
    told(config, "expect", "old")
    assert spans(config)["old"][0] > start_us(50)


def test_many_plans_are_summed_up(config: Path) -> None:
    """No more lines than a screen has; the rest is one line."""
    registry = PlanRegistry(config.parent / "data" / "plans")
    text = MAKER.text
    for n in range(MAX_PLANS + 4):
        registry.add(text.replace("flight_delays", f"plan_{n}"), ["a"], tenant="acme")
    said = shown(seen(config))
    assert "and 5 more plans, none of them worse" in said
    assert len(said.splitlines()) < MAX_PLANS + 40


def hold(folder: Path) -> tuple[Overview, int]:
    """A look at a fleet of 20,000, and how many bytes of Python's it took."""
    if not (folder / "crowd.sqlite").exists():
        write_crowd(folder / "crowd.sqlite", 20_000)
    plans = PlanRegistry(folder / "plans")
    plans.add(PLAN, [], tenant="acme")
    with contextlib.closing(Landing(folder / "crowd.sqlite")) as landing:
        tracemalloc.start()
        found = look(landing, plans.list(), Wanted(), now=from_us(start_us(12)), grace=HOUR)
        bytes_held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found, bytes_held


@pytest.mark.slow
def test_a_large_fleet_is_counted_and_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 agents: their sums, 20 lines, and under 200 KB held; mutant: everybody is fetched and cut in Python."""
    found, held = hold(tmp_path)
    (line,) = found.plans
    assert (line.called.agents, line.called.fenced) == (20_000, 20)
    assert sum(line.called.counts.values()) == 20_000 * 10
    assert len(shown(found).splitlines()) < 40
    assert len(as_json(found)["worst"]) == len(found.agents) == 20
    assert held < 200_000

    real = roll_call.call
    monkeypatch.setattr(roll_call, "call", lambda db, ask: real(db, type(ask)(**{**_fields(ask), "worst": 1_000_000})))
    assert hold(tmp_path)[1] > 2_000_000


def test_a_hostile_name_moves_no_cursor() -> None:
    """Control characters become question marks; mutant: they are printed."""
    assert page.clean("a\x1b[2Jb\n").plain == "a?[2Jb?"


def test_it_is_now_somewhere(config: Path) -> None:
    """The command itself looks at the clock: what was due in 2013 is overdue."""
    said = json.loads(run("fleet", "--json", "--windows", "3", "--config", config).output)
    assert datetime.fromisoformat(said["at"]) <= datetime.now(UTC)
    assert said["plans"][0]["windows"]["released"] == 0


def _fields(ask: Any) -> dict[str, Any]:
    return {name: getattr(ask, name) for name in ask.__dataclass_fields__}
