"""The page of costs: what it says of the machine is what was stored with the results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.bar import Bar
from benchmarks.privacy import page, surroundings
from benchmarks.privacy.meter import Reading
from benchmarks.privacy.question import Case
from benchmarks.privacy.result import Result, index

if TYPE_CHECKING:
    import pytest

READING = Reading(cpu_s=1.0, wall_s=1.0, peak_mb=1.0)
OLD = Result(system="plain_polars", query="A", case=page.LARGE, readings=[READING])
NEW = msgspec.structs.replace(
    OLD, case=Case(events=1_000_000, units=100_000), machine="another box", versions={"polars": "0.1"}, load=0.25
)


def test_the_page_says_what_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee: neither the machine that writes the page nor its packages are on it.

    Mutant: the writer's machine, in place of a result's.
    """
    monkeypatch.setattr(surroundings, "machine", lambda: "the writer's")
    said = page._surroundings(index([OLD, NEW]))
    assert said.splitlines() == [
        "1 results: machine, versions and load unknown, they were stored before these were kept.",
        "1 results: another box; polars 0.1; load average before each 0.2 to 0.2.",
    ]
    here = msgspec.structs.replace(NEW, **surroundings.surroundings())
    assert "the writer's" in page._surroundings(index([here]))


def test_a_record_of_a_run_is_read_again() -> None:
    """Guarantee: machine, versions and load survive the file; a record without them is read too."""
    stored = msgspec.structs.replace(OLD, **surroundings.surroundings())
    assert msgspec.json.decode(msgspec.json.encode(stored), type=Result) == stored
    assert stored.machine == surroundings.machine()
    assert stored.load is not None
    old = {key: value for key, value in msgspec.to_builtins(OLD).items() if key not in {"machine", "versions", "load"}}
    assert msgspec.convert(old, Result) == OLD


def test_a_bar_at_its_limit_carries_what_is_known_of_it() -> None:
    """Guarantee: a run that met it does not hide the runs that missed it."""
    assert "3 of 7 quiet runs missed it" in page._verdict(Bar(name="floor_ratio_A_10M-1M-string", value=9.9, limit=10))
    assert page._verdict(Bar(name="peak_rss_mb", value=500, limit=400)) == "missed"
