"""What bounds take away: against figures that were counted by hand, by the agent's own path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_agg.contract.plan import parse_plan
from edge_agg.errors import SourceUnreadable
from edge_agg.preview import study as room
from edge_agg.preview.sample import keep, read_batches, read_sample
from edge_agg.preview.study import average, study
from edge_agg.privacy.predict import chances_to_show
from tests.edge_agg.compiled import compiled_once as measured
from tests.edge_agg.preview.samples import plan_of
from tests.fakes import COUNT, Row, batch_of, small_plan_text, write_events

if TYPE_CHECKING:
    from pathlib import Path

    from edge_agg.contract.plan import Plan
    from edge_agg.preview.study import Study

PLACES = 6
"""Three cells hold rows in each of two weeks."""


def studied(plan: Plan, rows: list[Row]) -> Study:
    """A study of these rows."""
    return study(measured(plan), [batch_of(rows, plan)])


def test_the_truth_is_that_of_all_rows(rows: list[Row]) -> None:
    """Guarantee: with bounds that nothing reaches, every figure is the plain one over every row."""
    truth = studied(plan_of(), rows).truth
    assert truth["n"] == 200 / PLACES
    assert truth["people"] == 120 / PLACES
    assert truth["total"] == 2 * (40 * 4.0 + 50 * 20.0) / PLACES
    assert truth["capped"] == truth["total"]
    values = np.array([4.0] * 40 + [20.0] * 50)
    assert truth["level"] == pytest.approx(values.mean())
    assert truth["spread"] == pytest.approx(values.var())
    assert truth["half q0.5"] == pytest.approx(20.0)


def test_each_bound_takes_away_its_part(rows: list[Row]) -> None:
    """Guarantee: clipping, then rows in a cell, then cells of a unit, each as counted by hand; together, all of it."""
    found = studied(plan_of(max_partitions=1, max_rows=2), rows)
    assert list(found.steps) == ["truth", "clipping", "rows in a cell", "cells of a unit"]
    total = [round(step["total"] * PLACES / 2) for step in found.steps.values()]
    assert total[:3] == [160 + 1000, 160 + 500, 160 + 200]  # 20.0 becomes 10.0; five rows become two
    kept_b = total[3] - 160
    assert kept_b % 20 == 0  # of each unit in b and c one cell is kept, and with b its two rows
    assert 0 < kept_b < 200
    assert round(found.steps["rows in a cell"]["n"] * PLACES / 2) == 40 + 20 + 10
    assert round(found.bounded["people"] * PLACES / 2) == 50
    assert round(found.steps["clipping"]["capped"] * PLACES / 2) == 160 + 10 * 10  # a unit's rows as a whole
    assert found.steps["rows in a cell"]["capped"] == found.steps["clipping"]["capped"]
    assert found.steps["clipping"]["level"] == pytest.approx((160 + 500) / 90)


def test_bounds_that_are_not_put_on_would_be_caught(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the plan's bounds are left out of the study; no row is missed any more."""
    assert studied(plan_of(), rows).bounded["n"] < studied(plan_of(), rows).truth["n"]
    honest = room.rebound
    monkeypatch.setattr(room, "rebound", lambda plan, **_: honest(plan, partitions=1000, rows=1000))
    assert studied(plan_of(), rows).bounded["n"] == studied(plan_of(), rows).truth["n"]


def test_windows_of_a_period_are_counted_as_the_journal_does(rows: list[Row]) -> None:
    """Guarantee: with one window in two weeks, nobody of the first week is in the second."""
    found = studied(plan_of(more='max_windows = 1\nperiod = "14d"'), rows)
    assert list(found.steps)[-1] == "windows of a period"
    assert found.steps["cells of a unit"]["people"] * PLACES == 100
    assert found.bounded["people"] * PLACES == 50


def test_rows_of_units(rows: list[Row]) -> None:
    """Guarantee: what a unit has in a cell, and how many cells, without bounds."""
    found = studied(plan_of(), rows)
    assert sorted(found.loose.rows_of_units.tolist()) == [1] * 100 + [5] * 20
    assert sorted(found.loose.cells_of_units.tolist()) == [1] * 80 + [2] * 20
    assert (found.loose.places, found.cells) == (PLACES, 3)
    assert (found.sample.rows, found.sample.dropped) == (200, 0)


def test_a_plan_that_keeps_everything_has_no_bias(rows: list[Row]) -> None:
    """Guarantee: what is called bias is none where no bound is reached."""
    whole = 'name = "t"\nkind = "sum"\ncolumn = "x"\nlower = 0.0\nupper = 32.0\nresolution = 0.5'
    wide = plan_of(whole, COUNT, max_partitions=3, max_rows=5)
    found = studied(wide, rows)
    assert all(step == found.truth for step in found.steps.values())
    assert found.true_values(7) == {label: 7 * value for label, value in found.truth.items()}


def test_keys_that_will_not_show(rows: list[Row]) -> None:
    """Guarantee: the expected share of rows whose key stays below the threshold at one site."""
    text = small_plan_text(COUNT, epsilon=2.0).replace(
        'column = "k"\nvalues = ["a", "b"]\nother = true', 'column = "k"\ndiscover = { delta = 1e-7 }'
    )
    plan = parse_plan(text)
    measurement = measured(plan)
    found = study(measurement, [batch_of(rows, plan)])
    assert measurement.selection is not None
    shown = chances_to_show(measurement.selection, found.kept.units_of_keys)
    assert sorted(found.kept.units_of_keys.tolist())[-2:] == [40, 40]
    lost = ((1 - shown) * found.kept.rows_of_keys).sum() / found.kept.rows
    assert found.suppressed == pytest.approx(lost)
    assert 0 < found.suppressed < 1


def test_a_sample_is_read_from_files(tmp_path: Path, rows: list[Row]) -> None:
    """Guarantee: the same figures from files as from rows, in however many files."""
    plan = plan_of()
    write_events(tmp_path / "a.parquet", rows[:70])
    write_events(tmp_path / "b.parquet", rows[70:])
    batches, rejected = read_batches(plan, str(tmp_path / "*.parquet"))
    assert rejected == 0
    found = study(measured(plan), batches)
    assert found.steps == studied(plan, rows).steps


def test_a_sample_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    """Guarantee: no figures are made of nothing."""
    plan = plan_of()
    with pytest.raises(SourceUnreadable, match="no file matches"):
        read_batches(plan, str(tmp_path / "*.parquet"))
    write_events(tmp_path / "a.parquet", [])
    with pytest.raises(SourceUnreadable, match="holds no row"):
        read_batches(plan, str(tmp_path / "*.parquet"))
    with pytest.raises(SourceUnreadable, match="no row of the sample"):
        studied(plan, [Row(u=None)])


def test_extreme_values_do_not_wrap_the_truth() -> None:
    """Guarantee: infinities and huge values are clipped, in the truth too, before a sum could wrap."""
    rows = [Row(u=f"u{i}", x=x) for i, x in enumerate([1.0, 2.0, 3.0, 1e300, -1e300, float("inf"), None])]
    for step in studied(plan_of(), rows).steps.values():
        assert all(np.isfinite(value) for value in step.values())
    assert studied(plan_of(), rows).bounded["n"] == 7


def test_one_value_has_a_quantile() -> None:
    """A sample in which all values are equal."""
    assert studied(plan_of(), [Row(u="a", x=3.0), Row(u="b", x=3.0)]).truth["half q0.5"] == pytest.approx(3.0)


def test_an_average_cell(rows: list[Row]) -> None:
    """What is kept, shared out over the cells that hold rows at all."""
    plan = plan_of(COUNT)
    kept = keep(measured(plan), plan, read_sample(plan, [batch_of(rows, plan)]))
    assert average(kept, 10)["n"].tolist() == [kept.rows / 10]


DERIVED = """
[[derive]]
column = "size"
from = "x"
buckets = [5, 30]
numbered = true
[[derive]]
column = "head"
from = "k"
map = { a = "low", b = "high", c = "high" }
[[filter]]
column = "k"
not_equals = "c"
"""


def test_derived_columns_are_studied_as_the_agent_reads_them(tmp_path: Path, rows: list[Row]) -> None:
    """Guarantee: partitions (also discovered ones) and metrics of derived columns, filters and windows of a period."""
    write_events(tmp_path / "a.parquet", rows)
    sizes = 'name = "sizes"\nkind = "sum"\ncolumn = "size"\nlower = 0\nupper = 1\nresolution = 1'
    text = small_plan_text(COUNT, sizes, by="head", discover=1e-9, max_windows=1)
    plan = parse_plan(text + DERIVED)
    assert plan.discovered is not None
    batches, rejected = read_batches(plan, str(tmp_path / "*.parquet"))
    found = study(measured(plan), batches, rejected)
    assert found.sample.rows == 2 * (40 + 50)
    assert found.truth["sizes"] * found.loose.places == 2 * 50
    assert found.loose.places == 4
    assert list(found.steps)[-1] == "windows of a period"
    assert found.bounded["n"] < found.truth["n"]
