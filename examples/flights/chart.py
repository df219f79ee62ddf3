"""One metric over the weeks, with its band."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import altair as alt

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl


def band_chart(frame: pl.DataFrame, *, title: str, y: str, by: str | None = None) -> alt.LayerChart:
    """A line (or one for each key) and the 95 % noise interval around it; both break where nothing was released.

    Args:
        frame: what `estimate` answered: start, value, lo, hi, and the column `by` if it is given.
        title: what the chart shows.
        y: the label of the value's axis, with its unit.
        by: the column that tells lines apart.
    """
    x = alt.X("start:T", title="week beginning", scale=alt.Scale(type="utc"))  # windows begin at midnight UTC
    base = alt.Chart(frame).encode(x=x)
    if by is not None:
        base = base.encode(color=alt.Color(f"{by}:N", title=by))
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("lo:Q", title=y), y2="hi:Q")
    dot = alt.OverlayMarkDef(size=16)  # all that shows of a week between two without a value
    line = base.mark_line(point=dot).encode(y=alt.Y("value:Q", title=y))
    subtitle = "band: 95 % noise interval; bias from clipping and bounding is not in it"
    layered = alt.layer(band, line).properties(title=alt.TitleParams(title, subtitle=subtitle), width=860, height=380)
    return cast("alt.LayerChart", layered)


def save(chart: alt.LayerChart, stem: Path) -> tuple[Path, Path]:
    """Write a chart as PNG and as an HTML page that needs no network; returns both paths."""
    png, html = stem.with_suffix(".png"), stem.with_suffix(".html")
    chart.save(str(png), scale_factor=2)
    chart.save(str(html), inline=True)
    return png, html
