"""Kills (A1): whatever instant the agent dies at, each window is released once, as the same bytes, never uncharged.

What this shows: processes killed by SIGKILL at every named instant and at random ones. What it does not show: power
cuts, which lose what was written and not synced; those need a file system that forgets.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

from edge_agg.contract import codec
from edge_agg.contract.v1 import release_pb2
from edge_agg.failpoint import POINTS
from tests.fakes import DAY, MONDAY, WEEK, Row, small_plan_text, write_config, write_events
from tests.lives import Lives

if TYPE_CHECKING:
    from collections.abc import Iterator

WINDOWS = 4
PLANS = [small_plan_text(name="one"), small_plan_text(name="two"), small_plan_text(name="three", max_windows=2)]
"""The last one bounds the windows of a unit, so its first window pays for the period."""
RELEASES = WINDOWS * len(PLANS)
ROOT = Path(__file__).parents[2]


def lay_out(home: Path) -> Path:
    """An agent of three plans over two files and four weeks."""
    home.mkdir(parents=True)
    write_config(home, *PLANS, epsilon=1000.0)
    config = home / "agent.toml"
    config.write_text(config.read_text().replace('url = "127.0.0.1:1"', 'url = "127.0.0.1:1"\nbatch = 3'))
    for i in range(2):
        rows = [Row(u=f"u{n}", t=MONDAY + (7 * i + n) * DAY, k="ab"[n % 2]) for n in range(14)]
        write_events(home / "events" / f"{i}.parquet", rows)
    return home


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    """The process that forks agents, warmed up."""
    opened = Lives("tests.edge_agg.kill_child", str(lay_out(tmp_path_factory.mktemp("warm") / "home")))
    yield opened
    opened.close()


def lines(path: Path) -> list[str]:
    """What was appended to a file."""
    return path.read_text().splitlines() if path.exists() else []


def broken_promises(home: Path) -> list[str]:
    """Everything that is not as A1 promises, in words."""
    db = apsw.Connection(str(home / "state" / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    sealed = list(db.execute("SELECT seq, header, hash, state, plan_hash, window_start_us FROM release ORDER BY seq"))
    charges = Counter(db.execute("SELECT plan_hash, window_start_us FROM charge"))
    periods = list(db.execute("SELECT plan_hash FROM charge WHERE through_us IS NOT NULL"))
    db.close()
    arrived = [line.split() for line in lines(home / "collector")]
    hashes: dict[str, set[str]] = {}
    for key, digest, _ in arrived:
        hashes.setdefault(key, set()).add(digest)
    wanted = {codec.to_us(MONDAY + i * WEEK) for i in range(WINDOWS)}
    broken = []
    if len(sealed) != RELEASES or {us for *_, us in sealed} != wanted:
        broken.append(f"the journal holds {len(sealed)} releases")
    if any(state != "acked" for _, _, _, state, _, _ in sealed):
        broken.append("a release was not acked")
    if len(hashes) != RELEASES or any(len(different) != 1 for different in hashes.values()):
        broken.append("a window is missing at the collector, or was sent as two different releases")
    if sum(charges.values()) < len(lines(home / "draws")):
        broken.append("more was drawn than was charged")
    if any(count > 2 for count in charges.values()):
        broken.append("a window was charged more than twice")
    if len(periods) != 1:
        broken.append(f"a period was paid for {len(periods)} times")
    before = b""
    for i, (seq, header, digest, *_rest) in enumerate(sealed):
        message = release_pb2.ReleaseHeader.FromString(header)
        link = (seq, message.seq, message.prev_hash, hashlib.sha256(header).digest())
        if link != (i + 1, i + 1, before, digest):
            broken.append(f"the chain is broken at {seq}")
        before = digest
    return broken


def until_done(lives: Lives, home: Path, *, mutant: str | None = None) -> None:
    """Start the agent as its supervisor does."""
    more = {"mutant": mutant} if mutant else {}
    assert lives.live(home, **more) == "exit 0"


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_named_instant_nothing_is_lost_or_doubled(lives: Lives, tmp_path: Path, point: str) -> None:
    """Guarantee: each window released exactly once and as the same bytes, charges no less than draws, one chain."""
    home = lay_out(tmp_path / "home")
    assert lives.live(home, point=point, hit=2) == "killed", f"{point} was never passed twice"
    until_done(lives, home)
    assert broken_promises(home) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("hits", [[1], [1, 1], [2, 1]])
def test_killed_life_after_life_nothing_is_lost_or_doubled(
    lives: Lives, tmp_path: Path, point: str, hits: list[int]
) -> None:
    """Guarantee: as above, also where the next life dies at the same point; a run after the last changes nothing."""
    home = lay_out(tmp_path / "home")
    for hit in hits:
        assert lives.live(home, point=point, hit=hit) == "killed", f"{point} was never passed {hit} times"
    until_done(lives, home)
    assert broken_promises(home) == []
    before = lines(home / "collector"), lines(home / "draws")
    until_done(lives, home)
    assert (lines(home / "collector"), lines(home / "draws")) == before


def test_a_window_whose_two_draws_were_killed_is_published_as_lost(lives: Lives, tmp_path: Path) -> None:
    """Guarantee: a third draw is never made; the collector is told."""
    home = lay_out(tmp_path / "home")
    for _ in range(2):
        assert lives.live(home, point="noise_drawn", hit=1) == "killed"
    until_done(lives, home)
    assert broken_promises(home) == []
    db = apsw.Connection(str(home / "state" / "journal.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    assert [status for (status,) in db.execute("SELECT status FROM release ORDER BY seq")] == [
        "lost",
        *["released"] * (RELEASES - 1),
    ]
    db.close()


@pytest.mark.parametrize(
    ("mutant", "point", "broken"),
    [
        ("charge_after_draw", "noise_drawn", "more was drawn than was charged"),
        (
            "send_before_seal",
            "seal_uncommitted",
            "a window is missing at the collector, or was sent as two different releases",
        ),
    ],
)
def test_another_order_would_be_caught(lives: Lives, tmp_path: Path, mutant: str, point: str, broken: str) -> None:
    """Mutants: charge after draw; send before seal. The same kills, the same checks, and they see it."""
    home = lay_out(tmp_path / "home")
    assert lives.live(home, point=point, hit=1, mutant=mutant) == "killed"
    assert lives.live(home, mutant=mutant) in {"exit 0", "exit 1"}
    assert broken in broken_promises(home)


@pytest.mark.slow
@pytest.mark.timeout(2400)  # a thousand lives take minutes, and many more where other work runs beside them
def test_killed_at_random_instants_nothing_is_lost_or_doubled(lives: Lives, tmp_path: Path) -> None:
    """Guarantee: as above, over at least 1,000 kills at instants that nobody named and 500 windows."""
    chance = random.Random(20130107)
    kills = i = 0
    whole_s = life_s(lives, tmp_path)
    while kills < 1000:
        home = lay_out(tmp_path / str(i))
        i += 1
        for _ in range(4):
            kills += lives.live(home, after_s=chance.uniform(0.0, whole_s)) == "killed"
        until_done(lives, home)
        assert broken_promises(home) == []
        shutil.rmtree(home)
    assert i * RELEASES >= 500


def life_s(lives: Lives, tmp_path: Path) -> float:
    """How long a whole life takes, seconds."""
    import time

    begun = time.monotonic()
    until_done(lives, lay_out(tmp_path / "timed"))
    return time.monotonic() - begun
