"""What the tests of intervals share: laws by brute force, and draws from them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import numpy as np
import opendp.mod as dp
from hypothesis import strategies as st
from opendp.domains import atom_domain, vector_domain
from opendp.measurements import make_gaussian, make_laplace
from opendp.metrics import l1_distance, l2_distance

from cloud_collector.noise import Mechanism, Noise, Term

if TYPE_CHECKING:
    from numpy.typing import NDArray

dp.enable_features("contrib")

CELLS = 10_000
MECHANISMS: tuple[Mechanism, ...] = get_args(Mechanism)

terms = st.builds(
    Term,
    mechanism=st.sampled_from(MECHANISMS),
    scale=st.floats(0.05, 50),
    count=st.integers(1, 20),
)
noises = st.lists(terms, min_size=1, max_size=3).map(Noise.of)
confidences = st.floats(0.01, 0.9999)


def noise(*terms: tuple[Mechanism, float, int]) -> Noise:
    return Noise.of(Term(mechanism=mechanism, scale=scale, count=count) for mechanism, scale, count in terms)


def halved(of: Noise) -> Noise:
    """The same noise, declared at half its scale."""
    return Noise.of(Term(mechanism=term.mechanism, scale=term.scale / 2, count=term.count) for term in of.terms)


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


def sample(rng: np.random.Generator, of: Noise, *shape: int) -> NDArray[np.int64]:
    """Seeded draws from the laws of :func:`pmf`; above a scale of 1,000, rounded draws of the continuous laws."""
    total = np.zeros(shape, dtype=np.int64)
    for term in of.terms:
        for _ in range(term.count):
            if term.scale > 1000:
                continuous = rng.normal if term.mechanism == "gaussian" else rng.laplace
                total += np.rint(continuous(0.0, term.scale, shape)).astype(np.int64)
            else:
                p = pmf(term.mechanism, term.scale)
                total += rng.choice(len(p), shape, p=p) - len(p) // 2
    return total
