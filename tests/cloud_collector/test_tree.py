"""What the weights of a tree promise: unbiased, of least variance, and blind to padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_collector import tree
from cloud_collector.tree import prefix_weights


def counts_of(leaves: np.ndarray, branching: int, height: int) -> np.ndarray:
    """Each node's count of its leaves, by level from the top."""
    sizes = [branching**level for level in range(1, height + 1)]
    return np.concatenate([leaves.reshape(*leaves.shape[:-1], size, -1).sum(axis=-1) for size in sizes], axis=-1)


def by_least_squares(bins: int, branching: int, height: int) -> np.ndarray:
    """The same weights by the pseudo-inverse of the whole design, which Gauss and Markov prove to be best."""
    design = counts_of(np.eye(bins, branching**height), branching, height).T
    return np.tril(np.ones((bins + 1, bins)), -1) @ np.linalg.pinv(design)


trees = st.tuples(st.integers(1, 40), st.integers(2, 6)).map(
    lambda pair: (pair[0], pair[1], max(1, math.ceil(math.log(pair[0], pair[1]) - 1e-9)))
)


def assert_best(bins: int, branching: int, height: int) -> None:
    found = prefix_weights.__wrapped__(bins, branching, height)
    assert found == pytest.approx(by_least_squares(bins, branching, height), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(shape=trees)
def test_weights_are_those_of_least_squares(shape: tuple[int, int, int]) -> None:
    """Two passes over the tree find what the pseudo-inverse finds, with padding and without."""
    assert_best(*shape)


@settings(deadline=None)
@given(shape=trees, data=st.data())
def test_weights_are_unbiased(shape: tuple[int, int, int], data: st.DataObject) -> None:
    """Without noise, they give the rows below each edge."""
    bins, branching, height = shape
    counts = data.draw(st.lists(st.integers(0, 1000), min_size=bins, max_size=bins))
    nodes = counts_of(np.array(counts + [0] * (branching**height - bins)), branching, height)
    assert prefix_weights(*shape) @ nodes == pytest.approx(np.cumsum([0, *counts]), abs=1e-6)


def test_a_flat_histogram_is_added_up() -> None:
    """One level: the bins below an edge count once, the others not at all."""
    assert prefix_weights(5, 5, 1).tolist() == np.tril(np.ones((6, 5)), -1).tolist()


def test_a_tree_is_less_noisy_than_its_leaves() -> None:
    """A rank of 256 bins costs at most 10 variances of a node in a tree of fours; 255 if the leaves are added up."""
    assert (prefix_weights(256, 4, 4) ** 2).sum(axis=1).max() < 10


def test_least_squares_kills_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves alone, an average that ignores how noisy the children's sum is, a missing pass: none is best."""
    assert_best(7, 2, 3)
    mutants = {
        "leaves alone": (
            "_to_nodes",
            lambda subtrees, shares, _: np.concatenate([np.zeros((8, 6)), np.repeat(subtrees[0], 4, axis=1)], axis=1),
        ),
        "plain averages": (
            "_shares",
            lambda bins, branching, height: (
                [
                    np.where(np.arange(branching**level) * branching ** (height - level) < bins, 0.5, 0.0)
                    for level in range(1, height)
                ]
                + [np.where(np.arange(branching**height) < bins, 1.0, 0.0)]
            ),
        ),
        "nothing is shared out": (
            "_to_subtrees",
            lambda bins, shares, _: [*(np.zeros((len(bins), len(level))) for level in shares[:-1]), bins],
        ),
    }
    for name, (part, mutant) in mutants.items():
        with monkeypatch.context() as patch:
            patch.setattr(tree, part, mutant)
            with pytest.raises(AssertionError):
                assert_best(7, 2, 3)
            assert name


def test_no_tree_is_refused() -> None:
    """A tree with too few leaves, or no bin, is a mistake of the caller."""
    for bins in (0, 9):
        with pytest.raises(ValueError, match="tree"):
            prefix_weights(bins, 2, 3)
