"""Kills on the way in: whatever instant the agent dies at, what it had called safe is released, once.

A batch has a partition key of its own, so its release says whether it was lost (0), counted (5) or counted twice (10).
What was not called safe may count or not: its sender was told nothing. What this does not show: power cuts, which
test_powercuts.py has.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from cloud_collector.payload import open_payload
from edge_agg.contract import codec
from edge_agg.contract.plan import parse_plan
from edge_agg.failpoint import POINTS, SPOOL_POINTS
from tests.edge_agg.kill_child import PUSHED_ROWS
from tests.edge_agg.test_kills import lines
from tests.fakes import small_plan_text, write_config
from tests.lives import Lives

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BATCHES = 12
"""Pushed in one life."""
LIVES = 6
KEYS = [f"b{i}" for i in range(BATCHES * (LIVES + 1))]
PLAN = small_plan_text(max_rows=2, keys=str(KEYS).replace("'", '"'), epsilon=1.0)


def lay_out(home: Path) -> Path:
    """An agent of one plan over four weeks, with a key for every batch."""
    home.mkdir(parents=True)
    write_config(home, PLAN, epsilon=1000.0)
    return home


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    """The process that forks agents, warmed up."""
    opened = Lives("tests.edge_agg.kill_child", str(lay_out(tmp_path_factory.mktemp("warm") / "home")))
    yield opened
    opened.close()


def released(home: Path) -> dict[str, int]:
    """By batch, the rows that the collector's releases count; no noise was added."""
    plan, counts = parse_plan(PLAN), dict.fromkeys(KEYS, 0)
    for path in (home / "releases").glob("*.header"):
        release, sealed = codec.open_sealed(path.read_bytes(), path.with_suffix(".payload").read_bytes())
        counted = open_payload(release, sealed.payload, plan).columns["n"].tolist()
        for key, n in zip(KEYS, counted, strict=False):
            counts[key] += n
    return counts


def broken_promises(home: Path) -> list[str]:
    """What was called safe and is not released once; what is released and was never pushed."""
    answered = {f"b{i}" for i in lines(home / "answered")}
    counts = released(home)
    lost = [key for key in answered if counts[key] == 0]
    odd = [key for key, n in counts.items() if n not in {0, PUSHED_ROWS}]
    return [f"lost {lost}"] * bool(lost) + [f"counted otherwise {odd}"] * bool(odd)


def kills(lives: Lives, home: Path, seed: int) -> int:
    """Lives that push and die on the way in, one that dies as windows close, one that ends; how many were killed."""
    chance = random.Random(seed)
    for life in range(LIVES):
        point = {"point": chance.choice(SPOOL_POINTS), "hit": chance.randint(1, 5)}
        assert lives.live(home, push=[life * BATCHES, BATCHES, "dies"], **point) == "killed"
    closing = {"point": chance.choice(POINTS[:6]), "hit": chance.randint(1, 3)}
    assert lives.live(home, push=[LIVES * BATCHES, BATCHES], **closing) == "killed"
    assert lives.live(home, push=[0, 0]) == "exit 0"
    return LIVES + 1


@pytest.mark.parametrize("point", SPOOL_POINTS)
def test_killed_on_the_way_in_nothing_safe_is_lost_or_doubled(lives: Lives, tmp_path: Path, point: str) -> None:
    """Guarantee: what was called safe is released once, whichever side of the sync the agent died on."""
    home = lay_out(tmp_path / "home")
    assert lives.live(home, push=[0, BATCHES], point=point, hit=2) == "killed"
    assert lives.live(home, push=[BATCHES, BATCHES]) == "exit 0"
    assert broken_promises(home) == []
    assert len(lines(home / "answered")) >= BATCHES


@pytest.mark.parametrize("point", POINTS[:6])
def test_killed_while_windows_close_the_spool_still_has_their_rows(lives: Lives, tmp_path: Path, point: str) -> None:
    """Guarantee: between charge and seal a window's rows stay on disk: the second draw counts what the first did."""
    home = lay_out(tmp_path / "home")
    assert lives.live(home, push=[0, BATCHES], point=point, hit=1) == "killed"
    assert lives.live(home, push=[BATCHES, 0]) == "exit 0"
    assert len(lines(home / "answered")) == BATCHES
    assert broken_promises(home) == []


@pytest.mark.slow
def test_killed_hundreds_of_times_nothing_safe_is_lost_or_doubled(lives: Lives, tmp_path: Path) -> None:
    """Guarantee: life after life, at random points of intake and of closing; at least 200 kills."""
    killed = 0
    for seed in range(32):
        home = lay_out(tmp_path / f"home{seed}")
        killed += kills(lives, home, seed)
        assert broken_promises(home) == [], seed
    assert killed >= 200


@pytest.mark.parametrize(
    ("mutant", "point"), [("answer_before_sync", "before_spool"), ("forget_before_seal", "noise_drawn")]
)
def test_mutants_lose_what_they_called_safe(lives: Lives, tmp_path: Path, mutant: str, point: str) -> None:
    """Mutants: the answer comes before the sync; raw events leave with the charge. Both lose rows that were safe."""
    home = lay_out(tmp_path / "home")
    assert lives.live(home, push=[0, BATCHES], point=point, hit=1, mutant=mutant) == "killed"
    assert lives.live(home, push=[BATCHES, 0]) == "exit 0"
    assert any(broken.startswith("lost") for broken in broken_promises(home))
