"""What an interval promises, held against brute force where the law is small and against OpenDP's own draws.

Coverage over 10,000 cells has a standard error of 0.22 points, so a true 95 % leaves 94..96 once in 200,000 runs; the
95.1 % of a ratio, once in 20,000. Not proved here: that agents draw what they declare; the edge's noise tests do.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import numpy as np
import opendp.mod as dp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opendp.domains import atom_domain, vector_domain
from opendp.measurements import make_gaussian, make_laplace
from opendp.metrics import l1_distance, l2_distance

from cloud_collector import combine
from cloud_collector.combine import Interval, Mechanism, Noise, Term, half_width, ratio, ratio_interval, sum_interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

dp.enable_features("contrib")

CELLS = 10_000
MECHANISMS: tuple[Mechanism, ...] = get_args(Mechanism)


def noise(*terms: tuple[Mechanism, float, int]) -> Noise:
    return Noise.of(Term(mechanism=mechanism, scale=scale, count=count) for mechanism, scale, count in terms)


def pmf(mechanism: Mechanism, scale: float) -> NDArray[np.float64]:
    """Probabilities of -r..r by definition; what lies outside has less than 1e-15."""
    r = math.ceil(40 * scale if mechanism == "laplace" else 9 * scale)
    x = np.abs(np.arange(-r, r + 1.0))
    p = np.exp(-x / scale) if mechanism == "laplace" else np.exp(-((x / scale) ** 2) / 2)
    return np.asarray(p / p.sum())


def pmf_of_sum(of: Noise) -> NDArray[np.float64]:
    """One convolution for each draw."""
    total = np.ones(1)
    for term in of.terms:
        for _ in range(term.count):
            total = np.convolve(total, pmf(term.mechanism, term.scale))
    return total


def masses(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(|Z| <= h) at index h."""
    r = len(p) // 2
    return np.asarray(p[r] + 2 * np.concatenate(([0.0], np.cumsum(p[r + 1 :]))))


def assert_smallest_that_covers(of: Noise, confidence: float, find: Callable[[Noise, float], int] = half_width) -> None:
    assert find(of, confidence) == int(np.argmax(masses(pmf_of_sum(of)) >= confidence))


def draw(of: Noise, cells: int = CELLS) -> list[int]:
    """OpenDP's own noise: a sum of `count` releases of zeros for each term."""
    total = np.zeros(cells, dtype=np.int64)
    domain = vector_domain(atom_domain(T="i64"))
    for term in of.terms:
        if term.mechanism == "gaussian":
            release = make_gaussian(domain, l2_distance(T="f64"), term.scale)
        else:
            release = make_laplace(domain, l1_distance(T="i64"), term.scale)
        for _ in range(term.count):
            total += np.asarray(release([0] * cells), dtype=np.int64)
    return [int(z) for z in total]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999999])
def test_half_width_of_one_draw_is_exact(mechanism: Mechanism, confidence: float) -> None:
    """For one draw at any scale, no smaller integer covers and this one does."""
    for scale in np.geomspace(0.05, 3000, 25).tolist():
        assert_smallest_that_covers(noise((mechanism, scale, 1)), confidence)


SUMS = {
    "3 sites x 4 windows, gaussian": noise(("gaussian", 7.5, 12)),
    "3 sites x 4 windows, laplace": noise(("laplace", 7.5, 12)),
    "one agent upgraded": noise(("laplace", 3.0, 8), ("laplace", 9.0, 4)),
    "mechanisms mixed": noise(("gaussian", 0.6, 3), ("laplace", 4.0, 2), ("gaussian", 11.0, 1)),
    "one dominates": noise(("laplace", 30.0, 1), ("gaussian", 0.3, 5)),
    "rarely any noise": noise(("laplace", 0.2, 4), ("gaussian", 0.25, 4)),
    "on both sides of the series": noise(("gaussian", 1.999, 2), ("gaussian", 2.0, 2)),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.9999])
def test_half_width_of_a_sum_is_exact(name: str, confidence: float) -> None:
    """For sums of small variance the characteristic function gives what convolution gives."""
    assert_smallest_that_covers(SUMS[name], confidence)


MUTANTS: dict[str, Callable[[Noise, float], int]] = {
    "one site is forgotten": lambda of, confidence: half_width(
        Noise.of(Term(mechanism=t.mechanism, scale=t.scale, count=max(1, t.count * 2 // 3)) for t in of.terms),
        confidence,
    ),
    "1.96 standard deviations": lambda of, _: round(1.96 * math.sqrt(of.variance)),
    "half widths are added, not variances": lambda of, confidence: sum(
        t.count * half_width(noise((t.mechanism, t.scale, 1)), confidence) for t in of.terms
    ),
    "one step too narrow": lambda of, confidence: half_width(of, confidence) - 1,
    "one step too wide": lambda of, confidence: half_width(of, confidence) + 1,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_exactness_kills_mutants(name: str) -> None:
    """Brute force tells a forgotten site, 1.96 sigma under Laplace, and a step more or less from the half width."""
    one, twelve = noise(("laplace", 30.0, 1)), SUMS["3 sites x 4 windows, laplace"]
    with pytest.raises(AssertionError):  # noqa: PT012  # some mutants are right for one draw, none for both
        for of in (one, twelve):
            assert_smallest_that_covers(of, 0.95, MUTANTS[name])


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_variance_is_that_of_the_discrete_law(mechanism: Mechanism) -> None:
    """Not the continuous law's, which is far off below a scale of 1; and variances of independent draws add up."""
    for scale in np.geomspace(0.05, 300, 25).tolist():
        p = pmf(mechanism, scale)
        x = np.arange(len(p)) - len(p) // 2
        assert noise((mechanism, scale, 12)).variance == pytest.approx(12 * float(p @ x**2), rel=1e-9)


def test_half_width_meets_the_continuous_laws_at_large_scales() -> None:
    """At scales up to 1e9, and for a million draws, the widths are those of the limits, and not narrower."""
    z = 1.9599639845400545
    for scale in (1e4, 1e6, 1e9):
        assert half_width(noise(("gaussian", scale, 1))) == pytest.approx(z * scale, rel=1e-9, abs=1)
        assert half_width(noise(("laplace", scale, 1))) == pytest.approx(math.log(20) * scale, rel=1e-9, abs=1)
        y = (half_width(noise(("laplace", scale, 2))) + 0.5) / scale
        beyond = math.exp(-y) * (1 + y / 2)  # P(|sum of two| > y scale)
        assert 0.05 - 0.05 / scale - 1e-7 < beyond < 0.05 + 1e-9
        assert half_width(noise(("laplace", scale, 1), ("laplace", 0.05, 1))) >= half_width(
            noise(("laplace", scale, 1))
        )
    million = half_width(noise(("laplace", 1e9, 1_000_000)))
    assert 1 <= million / (z * math.sqrt(2e6) * 1e9) < 1 + 1e-6


terms = st.builds(
    Term,
    mechanism=st.sampled_from(MECHANISMS),
    scale=st.floats(0.05, 50),
    count=st.integers(1, 20),
)
noises = st.lists(terms, min_size=1, max_size=3).map(Noise.of)
confidences = st.floats(0.01, 0.9999)


@settings(deadline=None, max_examples=50)
@given(of=noises, other=noises, pair=st.tuples(confidences, confidences))
def test_half_width_grows_with_confidence_and_with_noise(of: Noise, other: Noise, pair: tuple[float, float]) -> None:
    """More confidence never narrows an interval, nor does more noise; a half width is never negative."""
    low, high = sorted(pair)
    assert 0 <= half_width(of, low) <= half_width(of, high) <= half_width(of + other, high)


@settings(deadline=None)
@given(mechanism=st.sampled_from(MECHANISMS), scales=st.tuples(*[st.floats(0.05, 1e9)] * 2), confidence=confidences)
def test_half_width_grows_with_scale(mechanism: Mechanism, scales: tuple[float, float], confidence: float) -> None:
    """A larger scale never narrows the interval of one draw."""
    small, large = (half_width(noise((mechanism, scale, 1)), confidence) for scale in sorted(scales))
    assert small <= large


@settings(deadline=None)
@given(left=st.lists(terms, max_size=5), right=st.lists(terms, max_size=5))
def test_noise_is_canonical(left: list[Term], right: list[Term]) -> None:
    """The same draws make the same value and the same hash, in any order and grouping."""
    apart = Noise.of(left) + Noise.of(right)
    together = Noise.of([*reversed(right), *left])
    assert apart == together
    assert hash(apart) == hash(together)
    assert len({(term.mechanism, term.scale) for term in apart.terms}) == len(apart.terms)
    assert apart.variance == together.variance


def test_no_noise_is_no_width() -> None:
    """A sum of nothing is exact."""
    assert Noise.of([]).variance == 0
    assert half_width(Noise.of([])) == 0


def test_sum_interval_is_centred_never_clamped_and_in_units() -> None:
    """The unit applies to both ends; a negative total keeps a negative interval; large totals stay exact integers."""
    of = noise(("laplace", 30.0, 1))
    h = half_width(of)
    assert sum_interval(-5, of, unit=0.5) == Interval(lo=(-5 - h) * 0.5, hi=(-5 + h) * 0.5)
    big = 2**70 + 2**20
    assert sum_interval(big, of, unit=2.0**-20).hi == (big + h) / 2**20


def test_bad_inputs_are_refused() -> None:
    """A scale, count, confidence, unit or range that makes no sense is an error, not a number."""
    for scale in (0.0, -1.0, math.nan, math.inf, 2.0**63):
        with pytest.raises(ValueError, match="scale"):
            noise(("gaussian", scale, 1))
    with pytest.raises(ValueError, match="count"):
        noise(("gaussian", 1.0, 0))
    with pytest.raises(ValueError, match="mechanism"):
        noise(("geometric", 1.0, 1))  # type: ignore[arg-type]
    of = noise(("gaussian", 1.0, 1))
    for confidence in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="confidence"):
            half_width(of, confidence)
        with pytest.raises(ValueError, match="confidence"):
            interval_of_ratio(1, of, 2, of, confidence=confidence)
    with pytest.raises(ValueError, match="unit"):
        sum_interval(1, of, unit=0.0)
    with pytest.raises(ValueError, match="lower"):
        interval_of_ratio(1, of, 2, of, bound=-1)


def test_ratio_of_a_denominator_that_is_not_positive_is_none() -> None:
    """A quotient by a noisy zero or less is not reported."""
    assert ratio(3, 4) == 0.75
    assert ratio(3, 0) is None
    assert ratio(3, -2) is None


def interval_of_ratio(
    n: int, n_noise: Noise, d: int, d_noise: Noise, *, bound: float = 1, confidence: float = 0.95
) -> Interval:
    return ratio_interval(
        numerator=n,
        numerator_noise=n_noise,
        denominator=d,
        denominator_noise=d_noise,
        lower=-bound,
        upper=bound,
        confidence=confidence,
    )


@given(n=st.integers(-500, 500), d=st.integers(-50, 500), confidence=st.sampled_from([0.5, 0.9, 0.99]))
@settings(deadline=None)
@example(n=0, d=0, confidence=0.9)
@example(n=500, d=0, confidence=0.9)
@example(n=500, d=-50, confidence=0.5)
def test_ratio_interval_is_within_its_bounds_symmetric_and_nested(n: int, d: int, confidence: float) -> None:
    """It lies in [lower, upper], mirrors with the numerator, holds the quotient, and grows with confidence."""
    n_noise, d_noise = noise(("laplace", 20.0, 1)), noise(("gaussian", 10.0, 4))
    found = interval_of_ratio(n, n_noise, d, d_noise, confidence=confidence)
    assert -1 <= found.lo <= found.hi <= 1
    mirrored = interval_of_ratio(-n, n_noise, d, d_noise, confidence=confidence)
    if found.lo < found.hi:
        assert (mirrored.lo, mirrored.hi) == pytest.approx((-found.hi, -found.lo))
        wider = interval_of_ratio(n, n_noise, d, d_noise, confidence=(1 + confidence) / 2)
        assert wider.lo <= found.lo
        assert found.hi <= wider.hi
    if d > 0 and abs(n) <= d:
        assert found.lo <= n / d <= found.hi


def test_ratio_interval_where_the_denominator_says_nothing() -> None:
    """A denominator lost in noise leaves the whole range; a ratio beyond it, the nearest end; no noise, a point."""
    of = noise(("gaussian", 10.0, 1))
    assert interval_of_ratio(5, of, 0, of) == Interval(lo=-1, hi=1)
    assert interval_of_ratio(5, of, 0, of, bound=math.inf) == Interval(lo=-math.inf, hi=math.inf)
    assert interval_of_ratio(5000, of, 1000, of) == Interval(lo=1, hi=1)
    assert interval_of_ratio(-5000, of, 1000, of) == Interval(lo=-1, hi=-1)
    assert interval_of_ratio(10**6, of, 1, of) == Interval(lo=1, hi=1)
    exact = interval_of_ratio(300, Noise.of([]), 1000, Noise.of([]))
    assert (exact.lo, exact.hi) == pytest.approx((0.3, 0.3), abs=0.001)  # one step of the grid


def coverage_of_ratio(n: int, n_noise: Noise, d: int, d_noise: Noise) -> float:
    """The exact chance that the interval holds n / d, over all noisy pairs; pairs below 1e-8 count as missed."""
    covered = 0.0
    p_n, p_d = pmf_of_sum(n_noise), pmf_of_sum(d_noise)
    pairs = np.argwhere(np.outer(p_n, p_d) >= 1e-8) - [len(p_n) // 2, len(p_d) // 2]
    for x, y in pairs.tolist():
        found = interval_of_ratio(n + x, n_noise, d + y, d_noise, bound=2)
        if found.lo - 1e-12 <= n / d <= found.hi + 1e-12:
            covered += float(p_n[len(p_n) // 2 + x] * p_d[len(p_d) // 2 + y])
    return covered


@pytest.mark.parametrize("n_scale", [("gaussian", 0.06, 1), ("laplace", 0.6, 1), ("gaussian", 2.3, 1)])
@pytest.mark.parametrize("d_scale", [("laplace", 0.25, 1), ("gaussian", 0.7, 2)])
@pytest.mark.parametrize(("n", "d"), [(-32, 79), (11, 104), (2, 3), (0, 40)])
def test_ratio_interval_covers_at_small_scales(
    n_scale: tuple[Mechanism, float, int], d_scale: tuple[Mechanism, float, int], n: int, d: int
) -> None:
    """Where noise is a few steps of the grid, the exact coverage is 95 % or, for want of finer steps, more."""
    assert coverage_of_ratio(n, noise(n_scale), d, noise(d_scale)) >= 0.9499


@pytest.mark.slow
def test_ratio_interval_covers_at_any_small_scale() -> None:
    """The same for settings drawn from a fixed seed; 4,235 such settings were tried once: the least had 95.00 %."""
    rng = np.random.default_rng(20240229)
    for _ in range(200):
        n_noise, d_noise = (
            noise((MECHANISMS[rng.integers(2)], float(scale), 1)) for scale in np.exp(rng.uniform(-3, 1, size=2))
        )
        d = int(rng.integers(1, 200))
        n = int(rng.integers(-2 * d, 2 * d + 1))
        assert coverage_of_ratio(n, n_noise, d, d_noise) >= 0.9499


def test_coverage_of_ratio_kills_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact coverage is too low for 1.96 sigma under Laplace, and where either part's noise is forgotten."""
    n_noise = d_noise = noise(("laplace", 2.0, 1))
    assert coverage_of_ratio(30, n_noise, 60, d_noise) >= 0.9499
    fieller = combine._fieller
    mutants: dict[str, tuple[str, Callable[..., object]]] = {
        "1.96 sigma": ("_critical", lambda *_: 1.96),
        "denominator exact": ("_fieller", lambda n, n_width, d, _: fieller(n, n_width, d, 1e-9)),
        "numerator exact": ("_fieller", lambda n, _, d, d_width: fieller(n, 1e-9, d, d_width)),
    }
    for name, (part, mutant) in mutants.items():
        with monkeypatch.context() as patch:
            patch.setattr(combine, part, mutant)
            assert coverage_of_ratio(30, n_noise, 60, d_noise) < 0.9499, name


def assert_sums_covered(declared: Noise, drawn: list[int], truth: int = 1234) -> None:
    """Within a point of the interval's own exact coverage, which is 95 % or a little more on a coarse lattice."""
    found = [sum_interval(truth + z, declared, unit=0.25) for z in drawn]
    covered = sum(interval.lo <= truth * 0.25 <= interval.hi for interval in found) / len(drawn)
    exact = 0.95 if declared.variance > 1e4 else masses(pmf_of_sum(declared))[half_width(declared)]
    assert abs(covered - exact) <= 0.01


@pytest.mark.parametrize("scale", [0.7, 40.0, 1e5])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_sum_interval_covers_one_draw(mechanism: Mechanism, scale: float) -> None:
    """Over 10,000 cells of OpenDP's noise, 95 % of the intervals hold the truth, to a point."""
    of = noise((mechanism, scale, 1))
    assert_sums_covered(of, draw(of))


@pytest.mark.slow
@pytest.mark.parametrize(
    "of",
    [
        noise(("gaussian", 40.0, 12)),
        noise(("laplace", 40.0, 12)),
        noise(("gaussian", 1.0, 12)),
        noise(("laplace", 40.0, 8), ("laplace", 90.0, 4)),
        noise(("laplace", 60.0, 4), ("gaussian", 40.0, 8)),
    ],
    ids=["gaussian", "laplace", "small", "upgraded", "mixed"],
)
def test_sum_interval_covers_sums_over_sites_and_windows(of: Noise) -> None:
    """The same over 3 sites x 4 windows; and the check fails if the variance of one site is left out."""
    drawn = draw(of)
    assert_sums_covered(of, drawn)
    forgetful = Noise.of(Term(mechanism=t.mechanism, scale=t.scale, count=max(1, t.count * 2 // 3)) for t in of.terms)
    with pytest.raises(AssertionError):
        assert_sums_covered(forgetful, drawn)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_noise", "d_noise", "n", "d"),
    [
        (noise(("gaussian", 5e3, 1)), noise(("gaussian", 50.0, 1)), 150_000, 5_000),
        (noise(("laplace", 5e3, 1)), noise(("laplace", 50.0, 1)), 150_000, 5_000),
        (noise(("gaussian", 5e3, 12)), noise(("gaussian", 50.0, 12)), 150_000, 5_000),
        (noise(("laplace", 5e3, 12)), noise(("laplace", 50.0, 12)), -150_000, 5_000),
        (noise(("laplace", 5e3, 8), ("laplace", 9e3, 4)), noise(("laplace", 50.0, 8), ("laplace", 90.0, 4)), 0, 5_000),
        (noise(("laplace", 5e3, 4), ("gaussian", 7e3, 8)), noise(("gaussian", 50.0, 12)), 300_000, 5_000),
    ],
    ids=["gaussian", "laplace", "12 gaussian", "12 laplace", "upgraded", "mixed"],
)
def test_ratio_interval_covers(n_noise: Noise, d_noise: Noise, n: int, d: int) -> None:
    """Over 10,000 cells of OpenDP's noise, 95 % of the intervals of a mean hold the true one, to a point."""
    pairs = zip(draw(n_noise), draw(d_noise), strict=True)
    found = [interval_of_ratio(n + x, n_noise, d + y, d_noise, bound=100) for x, y in pairs]
    covered = sum(interval.lo <= n / d <= interval.hi for interval in found) / CELLS
    assert abs(covered - 0.95) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_ratio_interval_covers_where_the_denominator_is_weak(mechanism: Mechanism) -> None:
    """Near a denominator of twice its noise the hull and the known range may cover more than 95 %, never under 94 %."""
    n_noise, d_noise = noise((mechanism, 5e3, 1)), noise((mechanism, 50.0, 1))
    pairs = zip(draw(n_noise), draw(d_noise), strict=True)
    found = [interval_of_ratio(3_000 + x, n_noise, 100 + y, d_noise, bound=100) for x, y in pairs]
    assert sum(interval.lo <= 30 <= interval.hi for interval in found) / CELLS >= 0.94
