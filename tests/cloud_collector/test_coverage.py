"""Who stands behind a row: what reports never exceeds what is expected, and nothing that lacks is left untyped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloud_collector.absence import Due, Known
from cloud_collector.coverage import EXPIRED, REASONS, Absences, Covered


@given(
    whole=st.integers(0, 20),
    offline=st.integers(0, 20),
    share=st.floats(0, 1),
    keys=st.integers(1, 4),
)
def test_a_window_without_the_key_is_typed(whole: int, offline: int, share: float, keys: int) -> None:
    """`complete` is said only where every window that was expected was released with every key asked for."""
    covered = Covered(
        nodes_reporting=min(whole, 3),
        nodes_expected=3,
        windows_reporting=whole,
        windows_expected=whole + offline,
        reasons={"offline": offline},
    )
    windows = int(whole * share)
    lacking = keys * whole - windows
    found = covered.narrowed(nodes=min(windows, 3), windows=windows, lacking=lacking)
    assert found.windows_reporting <= found.windows_expected == whole + offline
    assert (found.status == "complete") == (lacking == offline == 0 and whole > 0)
    assert found.status != "complete" or found.windows_reporting == found.windows_expected
    assert covered.status in {"complete", "offline"}
    if lacking > offline:
        assert found.status == "suppressed"


def test_a_day_that_is_cut_within_a_window_loses_nothing() -> None:
    """What was retired is expired, also the window that the cut lies in, where windows do not fit into days.

    Mutant: the range begins at the cut itself, so the window across it is lost.
    """
    window, day = 5 * 3_600_000_000, 86_400_000_000
    retired = Absences(due=Due(window_us=window, allowed_us=0, now_us=9 * day), retired_us=2 * day)
    kept = range(10 * window, 40 * window, window)  # the tenth window is the first that starts after the second day
    known = Known(heard_us=9 * day, passed_us=40 * window)
    assert retired.counted(known, 0, 40 * window, kept) == {EXPIRED: 10}
    assert retired.counted(known, 0, 5 * window, ()) == {EXPIRED: 5}
    assert retired.counted(known, 20 * window, 40 * window, kept) == {}


def test_the_most_frequent_reason_is_named() -> None:
    """Of those that are equally frequent, the one that a person can do most about comes first."""

    def covered(**reasons: int) -> Covered:
        return Covered(nodes_reporting=1, nodes_expected=2, windows_reporting=1, windows_expected=5, reasons=reasons)

    assert covered(offline=2, vetoed=2).status == "vetoed"
    assert covered(offline=3, lost=1).status == "offline"
    absent = dict.fromkeys(REASONS, 0) | {"offline": 3, "lost": 1}
    assert covered(offline=3, lost=1).row == (1, 2, 1, 5, absent, "offline")
