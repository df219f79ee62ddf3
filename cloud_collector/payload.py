"""What a payload holds, read by its plan: released columns, and the discovered keys that they stand for.

Place: admission opens a payload of unknown origin, the sealer opens it again on its way to the lake.
Invariants: pure; the work is bounded by the plan, for a row count that the plan does not allow is not decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_agg.contract import arrow
from edge_agg.contract.cells import n_cells
from edge_agg.contract.release import Status
from edge_agg.contract.vectors import max_keys, payload_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edge_agg.contract.plan import Plan
    from edge_agg.contract.release import Release


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """The values of one release."""

    columns: Mapping[str, NDArray[np.int64]]
    """int64[n_rows] by payload column, in the plan's order; none at all unless the status is released."""
    keys: Sequence[str] | None = None
    """Where the plan discovers keys, those that were released: row `i * n_cells + c` is cell c of key i."""


def fits_rows(release: Release, plan: Plan) -> bool:
    """Whether a released payload may have so many rows: all public cells, or those of each key that fits."""
    cells = n_cells(plan)
    if plan.discovered is None:
        return release.rows == cells
    return release.rows % cells == 0 and release.rows // cells <= max_keys(plan)


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
    names = payload_columns(plan)
    partition = plan.discovered
    if partition is None:
        return Values(columns=arrow.decode(payload, names, n_cells(plan)))
    assert partition.discover is not None, "or its keys would be public"
    keys, columns = arrow.decode_keyed(
        payload,
        partition.label,
        names,
        release.rows,
        cells=n_cells(plan),
        max_bytes=partition.discover.max_bytes,
    )
    return Values(columns=columns, keys=tuple(keys.texts))
