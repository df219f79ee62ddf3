"""What a Parquet file says of its row groups saves reading, and changes nothing of what is read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agg.ingest import decode, groups, parquet
from edge_agg.ingest.file import FileSource

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_agg.contract.plan import ColumnType
    from edge_agg.ingest.groups import OneTime

START = datetime(2013, 1, 7, tzinfo=UTC)
COLUMNS: dict[str, ColumnType] = {"t": "timestamp", "u": "string", "i": "integer"}
Event = tuple[datetime | None, str | None]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "LEAST_ROWS", 1)


def written(path: Path, events: Sequence[Event], *, group: int = 4, **options: Any) -> str:
    """A file of events, so many to a row group."""
    times = pa.array([time for time, _ in events], pa.timestamp("us", tz="UTC"))
    units = pa.array([unit for _, unit in events], pa.string())
    table = pa.table({"t": times, "u": units, "i": list(range(len(events)))})
    pq.write_table(table, path, row_group_size=group, **options)
    return str(path)


def read(path: str, one_time: OneTime | None = None) -> tuple[list[dict[str, Any]], int]:
    """The rows, and how many were rejected."""
    frames = list(FileSource(path, batch_rows=3, one_time=one_time).frames(COLUMNS))
    rows = [row for frame in frames for row in frame.batch.to_pylist()]
    return rows, sum(frame.rejected for frame in frames)


def hour_by_hour(_column: str, first: int, last: int) -> bool:
    """A reader that tells hours apart and nothing below."""
    return first // 3_600_000_000 == last // 3_600_000_000


def by_hour(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as that reader sees them."""
    return [row | {"t": row["t"] and row["t"].replace(minute=0, second=0, microsecond=0)} for row in rows]


times = st.integers(0, 200).map(lambda minutes: START + timedelta(minutes=minutes))
units = st.sampled_from(["a", "b", "c", "é", "", "x" * (decode.MAX_TEXT_BYTES + 1)])
events = st.lists(st.tuples(st.none() | times, st.none() | units), max_size=20)


@given(events=events, ordered=st.booleans(), dictionary=st.booleans(), said=st.booleans())
def test_a_file_s_word_saves_reading_and_changes_no_row(
    tmp_path_factory: Any, *, events: list[Event], ordered: bool, dictionary: bool, said: bool
) -> None:
    """Whatever is null, too long or repeated, and whether or not the file says anything of its groups."""
    if ordered:
        events = sorted(events, key=lambda event: event[0] or START)
    path = written(
        tmp_path_factory.getbasetemp() / "any.parquet", events, use_dictionary=dictionary, write_statistics=said
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "LEAST_ROWS", 1 << 30)  # every group is read the long way
        slowly = read(path)
    assert read(path) == slowly
    rows, rejected = read(path, hour_by_hour)
    assert (by_hour(rows), rejected) == (by_hour(slowly[0]), slowly[1])


def test_times_are_read_only_where_they_are_needed(tmp_path: Path) -> None:
    """Groups within an hour get one time; one that spans two keeps each row's."""
    path = written(tmp_path / "x.parquet", [(START + timedelta(minutes=9 * i), "a") for i in range(12)])
    got = [(row["t"] - START) // timedelta(minutes=1) for row in read(path, hour_by_hour)[0]]
    assert got == [0] * 4 + [36, 45, 54, 63] + [72] * 4


@pytest.mark.parametrize("event", [(None, "a"), (datetime(2300, 1, 1, tzinfo=UTC), "a")])
def test_a_group_with_a_time_that_is_none_is_read(event: Event, tmp_path: Path) -> None:
    """A missing time stays missing, and one out of range costs its row, even for who cannot tell times apart."""
    path = written(tmp_path / "x.parquet", [(START, "a"), event])
    assert read(path, lambda *_: True) == read(path)


def test_groups_believed_without_a_look_at_what_is_missing_would_be_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: the bounds alone are asked for."""
    moment = int(START.timestamp() * 1e6)
    monkeypatch.setattr(groups, "_bounds", lambda chunk: (moment, moment))
    with pytest.raises(AssertionError):
        test_a_group_with_a_time_that_is_none_is_read((None, "a"), tmp_path)


def test_texts_stay_in_their_dictionary_where_that_repays(tmp_path: Path) -> None:
    """Repeated texts come as codes of one dictionary a group; those that hardly repeat come as texts."""
    often = written(tmp_path / "often.parquet", [(START, "ab"[i % 2]) for i in range(8)], group=8)
    kinds = [frame.batch["u"].type for frame in FileSource(often, batch_rows=4).frames(COLUMNS)]
    assert all(pa.types.is_dictionary(kind) for kind in kinds)
    assert len(kinds) == 2
    rarely = written(tmp_path / "rarely.parquet", [(START, f"unit {i}") for i in range(12)])
    kinds = [frame.batch["u"].type for frame in FileSource(rarely, batch_rows=4).frames(COLUMNS)]
    assert kinds[1:] == [pa.string()] * 2


def test_dictionaries_kept_without_a_glance_would_be_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: what stands in a dictionary is taken as fit."""
    path = written(tmp_path / "x.parquet", [(START, "x" * (decode.MAX_TEXT_BYTES + 1))] * 4)
    assert read(path) == ([], 4)
    monkeypatch.setattr(decode, "_is_short_ascii", lambda held: True)
    assert read(path) != ([], 4)


def test_row_groups_too_small_to_be_worth_it_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many small groups costs no more calls than before."""
    monkeypatch.setattr(groups, "LEAST_ROWS", 5)
    path = written(tmp_path / "x.parquet", [(START, "a")] * 40)
    assert [raw.batch.num_rows for raw in parquet.batches(path, COLUMNS, rows=20)] == [20, 20]
