"""Plans that travel alone: files of keys are written out, and the hash stays."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.contract import plan as plan_module
from edge_agg.contract import rules
from edge_agg.contract.errors import PlanInvalid
from edge_agg.contract.plan import parse_plan, plan_hash, self_contained
from tests.edge_agg.contract.plans import CALENDAR, FILE, INTEGERS, KEYS, SECOND_PARTITION, edited, parsed, read

if TYPE_CHECKING:
    from edge_agg.contract.plan import Key

lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), min_size=1, max_size=20)
keys = st.lists(
    lines.filter(lambda key: key == key.strip() and key != "other" and not key.startswith("\ufeff")),
    min_size=1,
    max_size=8,
    unique=True,
)


@settings(max_examples=20)
@given(keys=keys)
def test_what_travels_alone_is_the_same_plan(keys: list[str]) -> None:
    """Any keys that a file can hold are written out as TOML that needs no file and has the same hash."""
    text = edited(*FILE)
    alone = self_contained(text, lambda _: "\n".join(keys))
    assert tomllib.loads(alone)["partition"] == [{"column": "carrier", "values": keys, "other": True}]
    assert plan_hash(parse_plan(alone)) == plan_hash(parse_plan(text, read=lambda _: "\n".join(keys)))
    assert plan_hash(parse_plan(alone)) == plan_hash(parse_plan(self_contained(alone, no_file)))


def no_file(name: str) -> str:
    """There is no file to read."""
    raise AssertionError(name)


def test_each_partition_gets_its_own_keys() -> None:
    """Two files go to the two partitions that name them; what had no file stays as it was written."""
    second = SECOND_PARTITION.replace('values = ["x"]', 'file = "fewer.txt"\nname = "tail"')
    third = '[[partition]]\ncolumn = "time_hour"\ncalendar = "weekday"\n\n[[metric]]\nname = "aircraft"'
    text = edited(*FILE, ('[[metric]]\nname = "departures"', second), ('[[metric]]\nname = "aircraft"', third))
    alone = parse_plan(self_contained(text, read))
    assert [len(partition.public) for partition in alone.partition] == [9, 2, 7]
    assert alone == parse_plan(text, read=read)
    assert "calendar" in self_contained(text, read)


def test_a_plan_without_files_stays_as_it_is(plan_text: str) -> None:
    """Comments and all."""
    assert self_contained(plan_text, no_file) == plan_text


def test_mutant_keys_that_are_not_written_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the text travels as it was written; parsed alone, it is refused for want of its file."""
    monkeypatch.setattr(plan_module, "self_contained", lambda text, read: text)
    with pytest.raises(PlanInvalid, match="no file can be read"):
        parse_plan(plan_module.self_contained(edited(*FILE), read))


def test_what_cannot_be_parsed_cannot_travel() -> None:
    """A file that is not one of keys is refused with the path where it is named."""
    with pytest.raises(PlanInvalid) as refused:
        self_contained(edited(*FILE, ("keys.txt", "twice.txt")), read)
    assert refused.value.path == "$.partition[0].file"


@settings(max_examples=40)
@given(start=st.integers(-50, 50), stop=st.integers(-50, 50), step=st.integers(-9, 9).filter(bool))
def test_a_range_is_pythons(start: int, stop: int, step: int) -> None:
    """Keys by a rule are those of `range`; one without keys is refused where it stands."""
    changes = (*INTEGERS, (KEYS, f"range = {{ start = {start}, stop = {stop}, step = {step} }}"))
    wanted: list[Key] = list(range(start, stop, step))
    if wanted:
        (partition,) = parsed(*changes).partition
        assert partition == msgspec.structs.replace(partition, values=wanted, range=None)
    else:
        with pytest.raises(PlanInvalid) as refused:
            parsed(*changes)
        assert refused.value.path == "$.partition[0].range"


@pytest.mark.parametrize("changes", [(*INTEGERS, (KEYS, "range = { start = 0, stop = 1" + "0" * 4000 + " }"))])
def test_a_short_text_does_not_become_a_long_list(changes: tuple[tuple[str, str], ...]) -> None:
    """However far a range reaches, it is refused before a key of it is made."""
    with pytest.raises(PlanInvalid) as refused:
        parsed(*changes)
    assert refused.value.path == "$.partition[0].range"


@pytest.mark.parametrize(("calendar", "wanted"), [("hour", list(range(24))), ("weekday", list(range(1, 8)))])
def test_a_calendar_has_all_its_keys(calendar: str, wanted: list[int]) -> None:
    """Hours from 0, ISO weekdays from 1, in that order; named after the column and the calendar."""
    (partition,) = parsed(*CALENDAR, ('"hour"', f'"{calendar}"')).partition
    assert partition.values == wanted
    assert partition.label == f"time_hour_{calendar}"


def unknown(names: set[str]) -> set[str]:
    """The names that Python or Polars does not know for a time zone."""
    moment, strangers = pl.Series([0]).cast(pl.Datetime("us", "UTC")), set()
    for name in names:
        try:
            ZoneInfo(name)
            moment.dt.convert_time_zone(name)
        except (OSError, ValueError, pl.exceptions.PolarsError):
            strangers.add(name)
    return strangers


def test_every_time_zone_that_parses_can_be_used() -> None:
    """No plan parses and then fails at the agent: Polars reads each zone that the rules take."""
    zones = set(rules.timezones())
    assert {"UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata"} <= zones
    assert len(zones) > 400
    assert unknown(zones) == set()


def test_mutant_zones_of_this_machine_are_caught() -> None:
    """Mutant: whatever the machine has; `localtime` is one of those, and means something else on every machine."""
    assert unknown({*rules.timezones(), "localtime", "Factory"}) >= {"localtime", "Factory"}
