"""The cells of a plan: the ordered product of its public partitions.

Place: bounding maps rows to cells by this order, and the collector reads a payload's rows by it, so no public key
travels. Where keys are discovered, a payload holds all these cells for each key that was released, key by key.
Invariant: the order is the plan's (row-major, `other` last in each dimension), never the data's.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from edge_agg.contract.grammar import OTHER, Partition, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_agg.contract.derivation import Key


def dimension(partition: Partition) -> list[Key]:
    """The keys of one partition column in the order of its codes, `other` last."""
    return [*partition.public, *([OTHER] if partition.other else [])]


def shape(plan: Plan) -> tuple[int, ...]:
    """The size of each public dimension; empty for a plan without any."""
    return tuple(len(dimension(partition)) for partition in plan.public)


def n_cells(plan: Plan) -> int:
    """The number of public cells: the rows of every payload, or of every discovered key in it; 1 without partitions."""
    return math.prod(shape(plan))


def keys(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Each public cell's keys as text, in the order of the cells."""
    return itertools.product(*([key_text(key) for key in dimension(partition)] for partition in plan.public))


def key_text(key: Key) -> str:
    """How a key is shown: integers in decimal, booleans as `true` and `false`."""
    return str(key).lower() if isinstance(key, bool) else str(key)
