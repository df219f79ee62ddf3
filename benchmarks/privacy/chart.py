"""The page's chart: CPU seconds by system and query, on a logarithmic axis.

Place: beside `tables.py`; draws what the cost table says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from benchmarks.privacy.question import QUERIES, Case, short
from benchmarks.privacy.tables import SHOWN

if TYPE_CHECKING:
    from benchmarks.privacy.result import Results

_COLOURS = {"floor": "#b0b7bf", "bounded": "#7f8c99", "ours": "#c2410c", "peer": "#2f6f9f"}
_KINDS = {"floor": "no privacy", "bounded": "bounded by hand, no noise", "ours": "edge-agg", "peer": "other DP systems"}


def chart(results: Results, case: Case) -> alt.Chart:
    """A row of dots a system, a panel a query."""
    values = [
        {"system": system.title, "kind": _KINDS[system.kind], "query": f"{query}: {QUERIES[query]}", "cpu": one.cpu_s}
        for system in SHOWN
        for query in QUERIES
        if (one := results.get((system.name, query, case))) and one.readings
    ]
    dots = (
        alt.Chart(pl.DataFrame(values))
        .mark_circle(size=110, opacity=1)
        .encode(
            x=alt.X("cpu:Q", scale=alt.Scale(type="log"), title="CPU seconds, logarithmic"),
            y=alt.Y("system:N", sort=[system.title for system in SHOWN], title=None),
            color=alt.Color(
                "kind:N",
                scale=alt.Scale(domain=list(_KINDS.values()), range=list(_COLOURS.values())),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
        )
        .properties(width=330, height=190)
    )
    title = f"{short(case.events)} events, {short(case.units)} units: CPU seconds from Parquet to the answer"
    faceted: alt.Chart = dots.facet(facet=alt.Facet("query:N", title=None), columns=2).properties(title=title)
    return faceted
