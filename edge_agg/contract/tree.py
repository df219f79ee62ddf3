"""Trees of bins: what a histogram for quantiles releases, so that a rank is the sum of few noisy counts.

Place: both ends must agree on a plan's tree; the agent fills it, the collector reads ranks out of it.
Invariant: the choice depends on the plan alone: how many bins, and which noise.

A tree of height h and branching b has h levels, level l (from 1) with b**l nodes; the leaves are the bins, padded with
bins that stay empty. A row counts once on every level, so more levels mean more noise on each node; but a rank takes at
most b - 1 nodes a level in place of up to all bins. One level is the plain histogram.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """How bins are arranged."""

    branching: int
    height: int

    @property
    def leaves(self) -> int:
        """Bins, and the padding behind them."""
        return int(self.branching**self.height)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes of each level, from the top: the order of the columns."""
        return tuple(int(self.branching**level) for level in range(1, self.height + 1))

    @property
    def nodes(self) -> int:
        """Nodes of all levels."""
        return sum(self.sizes)


def flat(bins: int) -> Tree:
    """One level: the bins themselves."""
    return Tree(branching=bins, height=1)


@cache
def least_error(bins: int, mechanism: Literal["gaussian", "laplace"]) -> Tree:
    """The tree with the least predicted variance of a rank, averaged over the edges; the flat one if they tie.

    Every level multiplies a node's noise variance by the number of levels (Gaussian, whose sensitivity grows with
    their square root) or by its square (Laplace), and a rank adds (branching - 1) / 2 nodes a level on average.

    Source: Hay, Rastogi, Miklau, Suciu 2010; Qardaji, Yang, Li 2013 for the choice of the branching.
    """
    power = 2 if mechanism == "gaussian" else 3
    best = flat(bins)
    least = rank_error(best, power)
    for height in range(2, max(2, bins.bit_length() + 1)):
        branching = next(b for b in range(2, bins + 2) if b**height >= bins)
        tree = Tree(branching=branching, height=height)
        if rank_error(tree, power) < least:
            best, least = tree, rank_error(tree, power)
    return best


def rank_error(tree: Tree, power: int) -> float:
    """The mean variance of a rank, in variances of one bin of the flat histogram at the same loss."""
    return float(tree.height**power * (tree.branching - 1) / 2)
