"""Written timestamps against the standard library's reader."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agg.ingest import instant

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


def _micros(text: Sequence[str | None]) -> list[int | None]:
    micros, valid = instant.from_text(pa.array(text, pa.string()))
    return [int(value) if ok else None for value, ok in zip(micros, valid, strict=True)]


def _expected(text: str) -> int:
    moment = datetime.fromisoformat(text.upper())
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // MICROSECOND


_zones = st.one_of(
    st.sampled_from(["", "Z", "z", "+02", "-0530"]),
    st.integers(-1439, 1439).map(lambda m: f"{'-' if m < 0 else '+'}{abs(m) // 60:02}:{abs(m) % 60:02}"),
)
_moments = st.datetimes(datetime(1901, 1, 1), datetime(2199, 12, 31))  # noqa: DTZ001 - the zone is put on as text


@settings(max_examples=200, deadline=None)
@given(
    moments=st.lists(
        st.builds(
            lambda at, sep, spec, zone: at.isoformat(sep, spec) + zone,
            _moments,
            st.sampled_from("T "),
            st.sampled_from(["minutes", "seconds", "milliseconds", "microseconds"]),
            _zones,
        ),
        max_size=8,
    )
)
def test_iso_timestamps_are_read_as_the_standard_library_reads_them(moments: list[str]) -> None:
    """Every spelling in the grammar, in any mixture, to the microsecond.

    Mutant: offsets added instead of taken away.
    """
    assert _micros([*moments, None]) == [*map(_expected, moments), None]


@settings(max_examples=500, deadline=None)
@given(
    st.text("0123456789-:TZ+. é", max_size=36)
    | st.from_regex(r"20[0-9]{2}-[0-3][0-9]-[0-3][0-9][T ][0-9:.Z+-]{0,20}", fullmatch=True)
)
def test_nothing_is_read_that_the_standard_library_would_not_read_the_same(text: str) -> None:
    """What is accepted of arbitrary text means what the standard library says it means."""
    (found,) = _micros([text])
    assert found is None or found == _expected(text)


@pytest.mark.parametrize(
    "text",
    [
        "2013-13-01", "2013-02-30", "2013-00-10", "2013-01-00", "2013-01-01T", "2013-01-01T10", "2013-01-01T24:00",
        "2013-01-01T10:60", "2013-01-01T10:00:60Z", "2013-01-01T10:00:00.", "2013-01-01T10:00:00.1234567890",
        "2013-01-01Z", "2013-01-01+02", "2013-01-01T10:00:00+24:00", "2013-01-01T10:00:00+02:60",
        "2013-01-01T10:00:00+02-00", "20130101T100000Z", "2013-1-1", "1357034400", "now", "", "2O13-01-01",
        "\uff12013-01-01", "2013-01-01T10:00:00+2:00",
    ],
)  # fmt: skip
def test_other_text_is_no_instant(text: str) -> None:
    """No guessing: what is outside the grammar is rejected.

    Mutant: a day that its month does not have.
    """
    assert _micros([text]) == [None]


def test_fractions_are_cut_not_rounded() -> None:
    """Nine digits become six by leaving three out, also before 1970."""
    assert _micros(["1970-01-01T00:00:00.9999999Z", "1969-12-31T23:59:59.999999999"]) == [999_999, -1]


def test_the_years_1900_to_2200_are_instants() -> None:
    """The first and the last microsecond count in, by UTC and not as written; the ones beside them do not.

    Mutant: the range of written timestamps not checked.
    """
    text = [
        "1900-01-01",
        "1899-12-31T23:59:59.999999",
        "2200-12-31T23:59:59.999999",
        "2201-01-01",
        "2201-01-01T00:30+01:00",
    ]
    first = datetime(1900, 1, 1, tzinfo=UTC)
    last = datetime(2201, 1, 1, tzinfo=UTC) - MICROSECOND
    assert _micros(text) == [
        (first - EPOCH) // MICROSECOND,
        None,
        (last - EPOCH) // MICROSECOND,
        None,
        _expected(text[4]),
    ]
