"""Distribution of the noise, through the whole path: the releases of empty windows are noise and nothing else.

Every p-value is compared with FALSE_ALARM, so a true mechanism fails one test in a million. The scales are computed
here by hand from the plan, not taken from the release.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_agg.privacy import noise
from tests.privacy.audit.audit import report
from tests.privacy.audit.path import drained, table
from tests.privacy.audit.reference import chi_squared, correlation, kolmogorov_smirnov, rho_of, tails

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from edge_agg.contract.release import Mechanism

    Int64s = npt.NDArray[np.int64]

pytestmark = pytest.mark.slow

FALSE_ALARM = 1e-6
WINDOWS, CELLS = 8, 2_000
EPSILON, DELTA = 1.0, 1e-6

PLAN = """
[plan]
name = "noise"
version = 1
[events]
time = "t"
columns = {{ t = "timestamp", u = "string", k = "string", x = "float" }}
[privacy_unit]
column = "u"
[bounds]
max_partitions = 2
max_rows_per_partition = 3
[window]
every = "1d"
[[partition]]
column = "k"
values = {keys}
[[metric]]
name = "n"
kind = "count"
[[metric]]
name = "s"
kind = "sum"
column = "x"
lower = -20.0
upper = 10.0
resolution = 0.5
weight = 3.0
[budget]
mechanism = "{mechanism}"
epsilon = {epsilon}
{delta}
"""
# By hand: a unit moves two cells; a count by 3 in each, a sum by 3 * 20 / 0.5 = 120. Shares of the loss 1 : 3.
MOVES = {"n": (3, 1 / 4), "s": (120, 3 / 4)}


def scale_of(mechanism: str, vector: str) -> float:
    """The scale of a vector's noise by the textbook."""
    linf, share = MOVES[vector]
    if mechanism == "laplace":
        return 2 * linf / (EPSILON * share)
    return math.sqrt(2) * linf / math.sqrt(2 * rho_of(EPSILON, DELTA) * share)


def released(home: Path, mechanism: str) -> dict[str, Int64s]:
    """The noise of every window and cell, by vector: int64[WINDOWS, CELLS]."""
    keys = [f"k{i}" for i in range(CELLS)]
    delta = f"delta = {DELTA}" if mechanism == "gaussian" else ""
    plan = PLAN.format(keys=keys, mechanism=mechanism, epsilon=EPSILON, delta=delta)
    windows = drained(home, plan, table([], WINDOWS, 1), WINDOWS)
    return {name: np.stack([window.columns[name] for window in windows]) for name in MOVES}


def worst(noisy: dict[str, Int64s], mechanism: str) -> float:
    """The least p-value of eleven tests: five of independence, three of the distribution of each vector."""
    counts, sums = noisy["n"], noisy["s"]
    found = [
        correlation(counts[:, 1:].ravel(), counts[:, :-1].ravel()),
        correlation(counts[1:].ravel(), counts[:-1].ravel()),
        correlation(counts.ravel(), sums.ravel()),
        correlation(np.abs(counts).ravel(), np.abs(sums).ravel()),
        correlation(np.abs(counts[:, 1:]).ravel(), np.abs(counts[:, :-1]).ravel()),
    ]
    for name, values in noisy.items():
        scale = scale_of(mechanism, name)
        found += [test(values.ravel(), mechanism, scale) for test in (chi_squared, kolmogorov_smirnov, tails)]
    return min(found)


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_released_noise_has_the_exact_distribution(tmp_path: Path, mechanism: str) -> None:
    """Guarantee: in every cell, vector and window, fresh and independent discrete noise of the scale by hand.

    16,000 draws a vector; false-alarm rate: 11 tests at 1e-6.
    """
    found = worst(released(tmp_path / "run", mechanism), mechanism)
    report(f"{mechanism}: least p-value {found:.2g} of 11 tests, {WINDOWS * CELLS} draws a vector")
    assert found > FALSE_ALARM


honest = noise.draw


def _scaled(mechanism: Mechanism, scale: float, exact: Int64s) -> Int64s:
    return honest(mechanism, scale / 1.1, exact)


def _clamped(mechanism: Mechanism, scale: float, exact: Int64s) -> Int64s:
    return np.clip(honest(mechanism, scale, exact), exact - int(3 * scale), exact + int(3 * scale))


def _for_all_cells(mechanism: Mechanism, scale: float, exact: Int64s) -> Int64s:
    few = honest(mechanism, scale, np.zeros(2, np.int64))
    repeated: Int64s = exact + few[np.arange(len(exact)) % 2]
    return repeated


def _from_a_seed(mechanism: Mechanism, scale: float, exact: Int64s) -> Int64s:
    uniform = np.random.default_rng(7).random(len(exact)) - 0.5
    drawn = np.rint(-scale * np.sign(uniform) * np.log1p(-2 * np.abs(uniform))).astype(np.int64)
    seeded: Int64s = exact + drawn
    return seeded


@pytest.mark.parametrize("mutant", [_scaled, _clamped, _for_all_cells, _from_a_seed])
@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_other_noise_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str, mutant: object) -> None:
    """Mutants: a tenth less noise, tails cut at three scales, few draws for many cells, a seed that starts again."""
    monkeypatch.setattr(noise, "draw", mutant)
    assert worst(released(tmp_path / "run", mechanism), mechanism) < FALSE_ALARM
