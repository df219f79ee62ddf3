"""What a payload holds, read by its plan: released columns, and the discovered keys that they stand for.

Place: admission opens a payload of unknown origin, the sealer opens it again on its way to the lake.
Invariants: pure; the work is bounded by the plan, for a row count that the plan does not allow is not decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agg.contract import arrow
from edge_agg.contract.cells import n_cells
from edge_agg.contract.release import Mechanism, Status
from edge_agg.contract.vectors import max_keys, payload_columns, plan_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edge_agg.contract.grammar import Partition
    from edge_agg.contract.plan import Plan, PlanHash
    from edge_agg.contract.release import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The values of one release."""

    columns: Mapping[str, NDArray[np.int64]]
    """int64[n_rows] by payload column, in the plan's order; none at all unless the status is released."""
    keys: Sequence[str] | None = None
    """Where the plan discovers keys, those that were released: row `i * n_cells + c` is cell c of key i."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What follows from a plan for every payload of it, worked out once."""

    vectors: tuple[tuple[str, Mechanism], ...]
    """The names of its vectors, in the plan's order, and how each is made."""
    columns: tuple[str, ...]
    """The int64 columns, in the payload's order."""
    cells: int
    """Its public cells."""
    key: Partition | None
    """The partition whose keys are discovered."""
    max_keys: int
    """How many of those fit."""


_SHAPES: dict[PlanHash, Shape] = {}
_MOST_SHAPES = 1024  # then they are forgotten, all of them; a plan is asked for again with its next release


def shape_of(plan_hash: PlanHash, plan: Plan) -> Shape:
    """The shape of the plan of this hash."""
    shape = _SHAPES.get(plan_hash)
    if shape is None:
        if len(_SHAPES) >= _MOST_SHAPES:
            _SHAPES.clear()
        shape = _SHAPES[plan_hash] = Shape(
            vectors=tuple((vector.name, Mechanism(plan.budget.mechanism)) for vector in plan_vectors(plan)),
            columns=tuple(payload_columns(plan)),
            cells=n_cells(plan),
            key=plan.discovered,
            max_keys=0 if plan.discovered is None else max_keys(plan),
        )
    return shape


def most_bytes(plan_hash: PlanHash, plan: Plan) -> int:
    """The bytes of a release's values before they are compressed; 0 where the plan discovers keys, so nobody knows."""
    shape = shape_of(plan_hash, plan)
    return 0 if shape.key is not None else 8 * shape.cells * len(shape.columns)


def fits_rows(release: Release, plan: Plan) -> bool:
    """Whether a released payload may have so many rows: all public cells, or those of each key that fits."""
    shape = shape_of(release.plan_hash, plan)
    if shape.key is None:
        return release.rows == shape.cells
    return release.rows % shape.cells == 0 and release.rows // shape.cells <= shape.max_keys


def open_payload(release: Release, payload: bytes, plan: Plan) -> Values:
    """Decode a payload.

    Args:
        release: its header.
        payload: its bytes, whose sha256 is the header's.
        plan: the plan that the header names.

    Raises:
        MalformedRelease: it is not what the plan and the header say.
    """
    if release.status is not Status.RELEASED:
        return Values(columns={})
    shape = shape_of(release.plan_hash, plan)
    names, partition = shape.columns, shape.key
    if partition is None:
        return Values(columns=arrow.decode(payload, names, shape.cells))
    assert partition.discover is not None, "or its keys would be public"
    keys, columns = arrow.decode_keyed(
        payload,
        partition.label,
        names,
        release.rows,
        cells=shape.cells,
        max_bytes=partition.discover.max_bytes,
    )
    return Values(columns=columns, keys=tuple(keys.texts))
