"""Ranks out of a noisy tree of bins: the best unbiased weights, and so how much noise they leave.

Place: below `order.py`, which asks at which edges a quantile may lie.
Invariant: the weights depend on the tree's shape alone, never on the counts, so a rank's noise has a known law.

Every node counts the rows below it, with noise of its own of one and the same law. A row of bins can be read off many
combinations of nodes; least squares takes the one of least variance. It works up the tree (a node's count is averaged
with the sum of its children's) and down again (what the children miss of their parent is shared out among them). Here
both passes run backwards, from the weights of the bins to those of the nodes. Padding is known to be empty: its nodes
have no say.

Source: Hay, Rastogi, Miklau, Suciu, Boosting the accuracy of differentially private histograms through consistency,
PVLDB 3 (2010), section 4; here for bins of unequal variance, since padding has none.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@lru_cache(maxsize=8)
def prefix_weights(bins: int, branching: int, height: int) -> Floats:
    """The weights of the nodes in the count of rows below each edge.

    Args:
        bins: how many of the leaves are real; the others are empty.
        branching: children of a node, and nodes of the first level.
        height: levels.

    Returns:
        float64[bins + 1, nodes], read-only: a row an edge, the last one the count of all; nodes by level from the top.

    Raises:
        ValueError: the tree has fewer leaves than bins, or none.
    """
    if not 0 < bins <= branching**height:
        raise ValueError("a tree has at least one bin, and a leaf for each")
    shares = _shares(bins, branching, height)
    below = np.tril(np.ones((bins + 1, branching**height)), -1)  # row e: the bins under edge e
    weights = _to_nodes(_to_subtrees(below, shares, branching), shares, branching)
    weights.setflags(write=False)
    return weights


def _shares(bins: int, branching: int, height: int) -> list[Floats]:
    """By level from the top, each node's weight in the average of its own count with its children's sum.

    That is S / (1 + S), where S is the variance of the children's sum in variances of one node; and it is the average's
    own variance too. It is 1 at a bin, which has no children, and 0 at padding.
    """
    levels = [np.where(np.arange(branching**height) < bins, 1.0, 0.0)]
    while len(levels) < height:
        children = levels[-1].reshape(-1, branching).sum(axis=1)
        levels.append(children / (1 + children))
    return levels[::-1]


def _to_subtrees(bins: Floats, shares: list[Floats], branching: int) -> list[Floats]:
    """From weights of the consistent bins to weights of each node's average, by level from the top.

    A child is its average plus its share, by variance, of what its parent has and the children's averages have not.
    """
    levels: list[Floats] = []
    given = bins
    for level in reversed(shares[1:]):
        group, variances = given.reshape(len(given), -1, branching), level.reshape(-1, branching)
        total = np.maximum(variances.sum(axis=1, keepdims=True), 1e-300)  # a family of padding shares nothing
        to_parent = (group * (variances / total)).sum(axis=2)
        levels.append((group - to_parent[:, :, None]).reshape(given.shape))
        given = to_parent
    return [given, *reversed(levels)]  # the first level has no parent to agree with


def _to_nodes(subtrees: list[Floats], shares: list[Floats], branching: int) -> Floats:
    """From weights of the averages to weights of the noisy counts, all levels in one row."""
    weights: list[Floats] = []
    inherited = np.zeros((len(subtrees[0]), 1))
    for average, share in zip(subtrees, shares, strict=True):
        whole = average + (inherited if not weights else np.repeat(inherited, branching, axis=1))
        weights.append(whole * share)
        inherited = whole * (1 - share)
    return np.concatenate(weights, axis=1)
