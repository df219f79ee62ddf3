"""Strange events, for the grey box: what a file may hold that nobody meant to write.

Place: drawn by Hypothesis; all values are text, which every column type can be read from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from hypothesis import strategies as st


class Raw(NamedTuple):
    """One event as a file holds it: all text, null where None."""

    u: str | None
    k: str | None
    x: str | None
    t: str | None = "2013-01-07T00:00:00Z"


_EXTREMES = ["nan", "-nan", "inf", "-inf", "1e308", "-1e308", "1e400", "5e-324"]
_NEAR = ["-0.0", "0.25", "4.999", "5", "5.25", "-2"]

values = st.none() | st.sampled_from([*_EXTREMES, *_NEAR, "", " 1 ", "word"]) | st.floats(width=32).map(str)
keys = st.none() | st.sampled_from(["a", "b", "", "é", "c", "a\0", "日本", "toolong"])
_TIMES = ["2013-01-07T00:00:00Z", "2013-01-08T23:30:00Z", "2013-01-10", "1970-01-01", "2190-01-01", "not a time"]
times = st.none() | st.sampled_from(_TIMES)
units = st.none() | st.sampled_from(["", "a", "a\0", "é", "x" * 12, "x" * 13, "x" * 300, "Mine", "mine "])
numbered = st.sampled_from(["0", "1", "-1", str(2**63 - 1), str(-(2**63)), str(2**28), "2.5", "word"])


whole = st.none() | numbered | st.sampled_from(["5", "-2", "3", str(2**53 + 1), str(2**62), str(2**63), "1e3"])


def raws(
    who: st.SearchStrategy[Any], size: int, x: st.SearchStrategy[str | None] = values
) -> st.SearchStrategy[list[Raw]]:
    """Rows, some of them more than once."""
    rows = st.lists(st.builds(Raw, u=who, k=keys, x=x, t=times), max_size=size)
    return st.tuples(rows, st.integers(0, size)).map(lambda drawn: drawn[0] + drawn[0][: drawn[1]])
