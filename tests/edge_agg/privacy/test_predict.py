"""Predicted errors against the mechanism itself: drawn many times, read as an analyst reads them, and compared."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cloud_collector.tree import prefix_weights
from edge_agg.contract.plan import Plan, parse_plan
from edge_agg.contract.release import Mechanism
from edge_agg.contract.tree import Tree, least_error
from edge_agg.contract.vectors import vectors_of
from edge_agg.privacy import noise, predict
from edge_agg.privacy.measurement import Measurement, compile_plan
from edge_agg.privacy.predict import (
    Figure,
    assumed,
    chances_to_show,
    deviation,
    figures,
    rank_deviation,
    units_to_show,
    values,
)
from tests.fakes import small_plan_text

if TYPE_CHECKING:
    from edge_agg.privacy.predict import Floats, Truth

DRAWS = 4_000
"""A standard deviation is known to 1.1 % from them; 8 % off is a false alarm in less than 1 of 10**12."""
ROWS = 20_000
GRID = 'column = "x"\nlower = 0.0\nupper = 100.0\nresolution = 0.5'
KINDS = {
    "count": 'kind = "count"',
    "units": 'kind = "distinct_units"',
    "sum": f'kind = "sum"\n{GRID}',
    "total": f'kind = "sum"\nclip = "unit"\n{GRID}',
    "mean": f'kind = "mean"\n{GRID}',
    "variance": f'kind = "variance"\n{GRID}',
    "histogram": 'kind = "histogram"\ncolumn = "x"\nedges = [0.0, 10.0, 50.0, 100.0]',
    "quantiles": 'kind = "quantiles"\ncolumn = "x"\nlower = 0.0\nupper = 100.0\nbins = 5\nquantiles = [0.5, 0.9]',
    "deep": 'kind = "quantiles"\ncolumn = "x"\nlower = 1.0\nupper = 1000.0\nbins = 64\nspacing = "logarithmic"\n'
    "quantiles = [0.3]",
}
RATIO = [
    'name = "above"\nkind = "count"',
    f'name = "below"\nkind = "sum"\n{GRID}',
    'name = "per"\nkind = "ratio"\nnumerator = "above"\ndenominator = "below"',
]


def plan_of(*metrics: str, mechanism: str = "gaussian", epsilon: float = 1.0) -> Plan:
    """A small plan of these metrics."""
    return parse_plan(small_plan_text(*metrics, mechanism=mechanism, epsilon=epsilon, max_rows=3))


def typical(plan: Plan) -> dict[str, Floats]:
    """What is taken for granted, but with every value's sum in a place of no symmetry."""
    truth = assumed(plan, ROWS)
    return {name: values * (0.4 if name.endswith("_sum") else 1.0) for name, values in truth.items()}


def drawn(measurement: Measurement, truth: Truth, copies: int, draws: int = DRAWS) -> dict[str, Floats]:
    """The vectors of `copies` cells added up, with fresh noise on each, float64[draws, columns]."""
    found = {}
    for vector, spec in zip(measurement.vectors, measurement.specs, strict=True):
        shape = (draws, copies, len(vector.columns))
        noisy = noise.draw(spec.mechanism, spec.scale, np.zeros(shape, np.int64)).sum(axis=1)
        found[vector.name] = noisy + truth[vector.name] * copies
    return found


def read(measurement: Measurement, figure: Figure, noisy: dict[str, Floats]) -> Floats:
    """One number of a metric as an analyst would compute it from noisy vectors, float64[DRAWS]."""
    metric = next(one for one in measurement.plan.metric if one.name == figure.metric)
    vectors = vectors_of(measurement.plan, metric)
    columns = [noisy[vector.name] for vector in vectors]
    steps = [1.0 if vector.clip is None else vector.clip.resolution for vector in vectors]
    match metric.__class__.__name__:
        case "Mean":
            clip = vectors[0].clip
            assert clip is not None
            return np.asarray((clip.centre + columns[0][:, 0] / columns[1][:, 0]) * steps[0])
        case "Variance":
            mean = columns[0][:, 0] / columns[1][:, 0]
            return np.asarray((columns[2][:, 0] / columns[1][:, 0] - mean**2) * steps[0] ** 2)
        case "Ratio":
            return np.asarray(columns[0][:, 0] * steps[0] / (columns[1][:, 0] * steps[1]))
        case _:
            return np.asarray(columns[0][:, 0] * steps[0])


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize("kind", ["count", "units", "sum", "total", "mean", "variance", "histogram"])
def test_the_predicted_error_is_that_of_the_mechanism(kind: str, mechanism: str) -> None:
    """Guarantee: the standard deviation of thousands of answers is the predicted error, of one cell and of several."""
    measurement = compile_plan(plan_of(f'name = "m"\n{KINDS[kind]}', mechanism=mechanism))
    truth = typical(measurement.plan)
    for copies in (1, 5):
        (figure,) = figures(measurement, truth, copies=copies)
        answers = read(measurement, figure, drawn(measurement, truth, copies))
        assert answers.std() == pytest.approx(figure.error, rel=0.08)
        if kind != "histogram":
            assert answers.mean() == pytest.approx(figure.value, abs=5 * figure.error / math.sqrt(DRAWS) + 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_the_predicted_error_of_a_ratio_is_that_of_the_mechanism(mechanism: str) -> None:
    """Guarantee: as above, for the ratio of two other metrics of the plan."""
    measurement = compile_plan(plan_of(*RATIO, mechanism=mechanism))
    truth = typical(measurement.plan)
    figure = figures(measurement, truth)[-1]
    assert (figure.metric, figure.part) == ("per", "")
    assert read(measurement, figure, drawn(measurement, truth, 1)).std() == pytest.approx(figure.error, rel=0.08)


def least_squares(tree: Tree, bins: int, nodes: Floats) -> Floats:
    """The rows below each edge by least squares over the tree, float64[draws, bins + 1]."""
    node = []
    for level, size in enumerate(tree.sizes):
        under = tree.leaves // size
        rows = np.zeros((size, bins))
        for i in range(size):
            rows[i, i * under : (i + 1) * under] = 1
        node.append(rows)
        assert level < tree.height
    fitted = np.linalg.lstsq(np.concatenate(node), nodes.T, rcond=None)[0].T
    return np.concatenate([np.zeros((len(fitted), 1)), np.cumsum(fitted, axis=1)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
@pytest.mark.parametrize("kind", ["quantiles", "deep"])
def test_the_predicted_error_of_a_rank_and_of_a_quantile(kind: str, mechanism: str) -> None:
    """Guarantee: the rank is as noisy as predicted, and the value too (within a fifth: its spread is not normal)."""
    measurement = compile_plan(plan_of(f'name = "m"\n{KINDS[kind]}', mechanism=mechanism, epsilon=2.0))
    (vector,) = measurement.vectors
    assert vector.tree is not None and vector.reading is not None  # noqa: PT018  # for the type checker
    assert (vector.tree.height > 1) == (kind == "deep")
    truth, edges = typical(measurement.plan), np.array(vector.reading.edges)
    bins = len(edges) - 1
    below = least_squares(vector.tree, bins, drawn(measurement, truth, 1, 1_500)["m"])
    for figure in figures(measurement, truth):
        q = float(figure.part.removeprefix("q"))
        at, share = divmod(q * bins, 1)
        there = (1 - share) * below[:, int(at)] + share * below[:, int(at) + 1]
        rank = (there - q * below[:, -1]) / ROWS
        assert figure.rank is not None
        assert rank.std() == pytest.approx(figure.rank, rel=0.1)
        shares = np.clip(np.maximum.accumulate(below, axis=1) / below[:, -1:], 0, 1)
        scaled = np.log(edges) if kind == "deep" else edges
        found = np.array([np.interp(q, row, scaled) for row in shares])
        found = np.exp(found) if kind == "deep" else found
        assert found.std() == pytest.approx(figure.error, rel=0.2)


@pytest.mark.parametrize(
    ("bins", "tree"), [(7, Tree(branching=7, height=1)), (11, Tree(branching=3, height=3)), (64, None)]
)
def test_a_ranks_noise_is_that_of_the_collectors_reading(bins: int, tree: Tree | None) -> None:
    """Guarantee: predicted by solving the normal equations; read by two passes over the tree; the same numbers."""
    tree = tree or least_error(bins, "gaussian")
    weights = prefix_weights(bins, tree.branching, tree.height)
    for q in (0.1, 0.5):
        expected = np.sqrt(((weights - q * weights[-1]) ** 2).sum(axis=1))
        said = [rank_deviation(bins, tree, q, edge) for edge in range(bins + 1)]
        assert said == pytest.approx(expected, rel=1e-9, abs=1e-9)
        between = 0.7 * (weights[2] - q * weights[-1]) + 0.3 * (weights[3] - q * weights[-1])
        assert rank_deviation(bins, tree, q, 2, 0.3) == pytest.approx(np.linalg.norm(between))


def test_a_rank_read_from_the_bins_alone_would_be_caught() -> None:
    """Mutant: only the leaves of a tree; its upper levels must make the rank less noisy."""
    tree = least_error(256, "gaussian")
    assert tree.height > 1
    leaves = rank_deviation(256, Tree(branching=256, height=1), 0.5, 128)
    assert rank_deviation(256, tree, 0.5, 128) < 0.7 * leaves


@pytest.mark.parametrize("mutant", ["copies", "count"])
def test_a_prediction_that_leaves_noise_out_would_be_caught(mutant: str) -> None:
    """Mutants: copies that add no noise of their own; a mean that takes its count for exact."""
    measurement = compile_plan(plan_of(f'name = "m"\n{KINDS["mean"]}'))
    truth = typical(measurement.plan)
    (honest,) = figures(measurement, truth, copies=25)
    if mutant == "copies":
        (one,) = figures(measurement, {name: 25 * values for name, values in truth.items()})
        assert honest.error == pytest.approx(5 * one.error)
    else:
        specs = tuple(replace(s, scale=s.scale * (1e-6 if s.name == "m_count" else 1)) for s in measurement.specs)
        (exact,) = figures(replace(measurement, specs=specs), truth, copies=25)
        assert exact.error < 0.95 * honest.error


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 1.9, 2.1, 20.0])
@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_the_deviation_of_the_noise(mechanism: Mechanism, scale: float) -> None:
    """By its series."""
    k = np.arange(-2000, 2001)
    weights = np.exp(-((k / scale) ** 2) / 2 if mechanism is Mechanism.GAUSSIAN else -np.abs(k) / scale)
    expected = math.sqrt(float((weights * k**2).sum() / weights.sum()))
    assert deviation(mechanism, scale) == pytest.approx(expected, rel=1e-9)


def test_a_denominator_that_is_lost_in_noise_says_so() -> None:
    """Guarantee: no error is predicted for a mean, a ratio or a quantile whose rows are not clear of their noise."""
    metrics = [f'name = "m"\n{KINDS["mean"]}', f'name = "q"\n{KINDS["quantiles"]}', *RATIO]
    measurement = compile_plan(plan_of(*metrics))
    nothing = {name: values * 1e-9 for name, values in assumed(measurement.plan, 1).items()}
    said = {figure.label: figure.error for figure in figures(measurement, nothing)}
    assert all(math.isinf(said[label]) for label in ("m", "q q0.5", "q q0.9", "per"))
    assert math.isfinite(said["above"])


def test_what_is_taken_for_granted() -> None:
    """Guarantee: rows, units, the edge of a range, evenly spread bins: each metric at what its docstring says."""
    plan = plan_of(*(f'name = "{name}"\n{text}' for name, text in KINDS.items()))
    said = values(plan, assumed(plan, 600))
    assert said["count"] == 600
    assert said["units"] == 200
    assert said["sum"] == 600 * 50
    assert said["total"] == 200 * 50
    assert said["mean"] == 100
    assert said["variance"] == 0
    assert said["histogram a bin"] == 200
    assert said["quantiles q0.5"] == pytest.approx(50)
    assert said["deep q0.3"] == pytest.approx(1000**0.3)


def test_a_mean_has_its_largest_error_at_the_edge_of_its_range() -> None:
    """Guarantee: what is taken for granted of a mean is its worst case."""
    measurement = compile_plan(plan_of(f'name = "m"\n{KINDS["mean"]}'))
    truth = assumed(measurement.plan, 1000)
    errors = [
        figures(measurement, {**truth, "m_sum": truth["m_sum"] * share})[0].error for share in np.linspace(-1, 1, 21)
    ]
    assert max(errors) == errors[-1] == figures(measurement, truth)[0].error


DISCOVER = 'column = "k"\ndiscover = { delta = 1e-6 }'


def selecting(mechanism: str) -> Measurement:
    """A plan that discovers keys."""
    text = small_plan_text(mechanism=mechanism, epsilon=1.0, max_partitions=2)
    text = text.replace("delta = 1e-6", "delta = 1e-5")
    return compile_plan(parse_plan(text.replace('column = "k"\nvalues = ["a", "b"]\nother = true', DISCOVER)))


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["gaussian", "laplace"])
def test_a_key_shows_as_often_as_predicted(mechanism: str) -> None:
    """Guarantee: noise added to so many units lifts them strictly above the threshold at the predicted rate.

    20,000 draws; 2 points off is a false alarm in less than 1 of 10**7. Mutant: `>=` in place of `>`, one unit off.
    """
    spec = selecting(mechanism).selection
    assert spec is not None
    for chance in (0.5, 0.95):
        needed = units_to_show(spec, chance)
        said, less = chances_to_show(spec, [needed, needed - 1])
        assert less < chance <= said
        passed = noise.draw(spec.mechanism, spec.scale, np.full(20_000, needed)) > spec.threshold
        assert float(passed.mean()) == pytest.approx(said, abs=0.02)
    assert units_to_show(spec, 0.5) == spec.threshold + 1
    assert chances_to_show(spec, [1])[0] <= 1e-6  # one of two keys that one unit may have
    assert chances_to_show(spec, [10**9])[0] == pytest.approx(1.0)


def test_the_threshold_is_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: with a tail that begins one lower, a key would be said to show with one unit less."""
    spec = selecting("gaussian").selection
    assert spec is not None
    honest = units_to_show(spec, 0.5)
    reach, tail = predict._tail(spec.mechanism, spec.scale)
    monkeypatch.setattr(predict, "_tail", lambda *_: (reach, np.concatenate([[1.0], tail[:-1]])))
    assert units_to_show(spec, 0.5) == honest - 1


def test_a_relative_error() -> None:
    """Of a value that is 0 there is none."""
    assert Figure(metric="m", part="", value=-4.0, error=1.0).relative == 0.25
    assert math.isinf(Figure(metric="m", part="", value=0.0, error=1.0).relative)
