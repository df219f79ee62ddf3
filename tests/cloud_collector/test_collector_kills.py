"""Kills: whatever instant the collector dies at, what was acked is in the lake once, and everything fits together.

What this shows: processes killed by SIGKILL at every named instant between the ack and the lake, in compaction,
retention and checkpoints. What it does not show: power cuts (test_landing, test_lake_cuts).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cloud_collector.failpoint import POINTS
from edge_agg.contract.codec import to_us
from tests.cloud_collector.kill_child import KEPT, NOW, releases, store_of
from tests.cloud_collector.test_keeping import collecting
from tests.lives import Lives

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
RETIRED = to_us(NOW - KEPT) - to_us(NOW - KEPT) % (24 * 3600 * 10**6)


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    """The process that forks collectors."""
    opened = Lives("tests.cloud_collector.kill_child")
    yield opened
    opened.close()


def lost_acks(home: Path) -> list[str]:
    """What was acked before the kill and is not in the landing: seen before anything is sent again."""
    acks = (home / "acks").read_text().splitlines() if (home / "acks").exists() else []
    with collecting(home / "data", store=store_of(home)) as one:
        made = releases(one)
        keys = one.landing._db.execute("SELECT hash FROM releases").fetchall()
        held = {row[0] for row in keys}
        return [n for n, _ in map(str.split, acks) if made[int(n)].sealed.hash not in held]


def broken_promises(home: Path) -> list[str]:
    """Everything that is not as promised, in words."""
    with collecting(home / "data", store=store_of(home)) as one:
        one.sealer.seal()
        broken = one.differences()
        found = Counter((stored.node, stored.window_start_us) for stored in one.lake.stored(*one.plans[0]))
        wanted = Counter(
            (made.release.agent, start)
            for made in releases(one)
            if (start := to_us(made.release.window_start)) >= RETIRED
        )
        if found != wanted:
            broken.append(f"the lake holds {found.total()} releases for {wanted.total()}")
        if any(seen.fenced for seen in one.landing.agents()):
            broken.append("an honest agent was fenced")
        return broken


HITS = {
    "compaction_written": (1,),
    "compaction_committed": (1,),
    "retirement_written": (1,),
    "retirement_committed": (1,),
    "checkpoint_made": (1, 2),
    "checkpoint_linked": (1, 2),
    "checkpoint_named": (1, 2),
    "log_cleared": (1,),
}


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_named_instant_nothing_is_lost_or_doubled(lives: Lives, tmp_path: Path, point: str) -> None:
    """Guarantee: what was acked is there; sent again, all is there once; landing, lake and roll-ups agree."""
    for hit in HITS.get(point, (1, 3)):
        home = tmp_path / str(hit)
        home.mkdir()
        assert lives.live(home, point=point, hit=hit) == "killed", f"{point} was never passed {hit} times"
        assert lost_acks(home) == []
        assert lives.live(home) == "exit 0"
        assert broken_promises(home) == []


@pytest.mark.parametrize("point", ["landing_committed", "log_linked", "rollup_committed"])
def test_killed_at_three_instants_in_short(lives: Lives, tmp_path: Path, point: str) -> None:
    """As above, among the fast tests."""
    assert lives.live(tmp_path, point=point, hit=2) == "killed"
    assert lost_acks(tmp_path) == []
    assert lives.live(tmp_path) == "exit 0"
    assert broken_promises(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "point", "hit", "broken"),
    [
        ("roll_up_twice", "rollup_committed", 8, "the roll-ups are not the sums"),
        ("no_lake_mark", "log_synced", 6, "is in the lake twice"),
    ],
)
def test_a_mutant_of_the_sealer_is_caught(  # noqa: PLR0917  # pytest's fixtures
    lives: Lives, tmp_path: Path, mutant: str, point: str, hit: int, broken: str
) -> None:
    assert lives.live(tmp_path, point=point, hit=hit, mutant=mutant) == "killed"
    assert lives.live(tmp_path, mutant=mutant) == "exit 0"
    assert any(broken in text for text in broken_promises(tmp_path))


@pytest.mark.slow
def test_the_mutant_that_acks_before_the_commit_is_caught(lives: Lives, tmp_path: Path) -> None:
    assert lives.live(tmp_path, point="landing_uncommitted", hit=2, mutant="ack_before_commit") == "killed"
    assert lost_acks(tmp_path) == ["0"]
